"""The supervisor session by table: events in, the whole list of effects out."""

from typing import Any, Final

import pytest
from hypothesis import example, given, strategies as st

from quiesce.protocol import PROTOCOL_VERSION, from_supervisor, to_supervisor
from quiesce.protocol.from_supervisor import AttemptPhase, WorkerExitedRow
from quiesce.workers.lease import LONGEST, ArmLease, AskForLease, LeaseIsBack
from quiesce.workers.supervisor_effects import (
    AskToEnd,
    FreePlace,
    Identity,
    KillAll,
    KillFor,
    Quit,
    Send,
    SetFlags,
    StartWorker,
)
from quiesce.workers.supervisor_session import SupervisorSession

NAME = b"s" * 8
IDENTITY = Identity(
    NAME, "background", 4711, "here", "boot", processes=2, slots=4, places=4, run="run"
)
OVER = "no broker for 15 s: the lease of this pool is half over"


def hello(at: float, incarnation: int = 0, epoch: int = 0, *, armed: bool = False) -> Send:
    return Send(
        from_supervisor.Hello(
            PROTOCOL_VERSION,
            NAME,
            "background",
            4711,
            "here",
            "boot",
            2,
            4,
            incarnation,
            epoch,
            "run",
            at,
            armed,
            None,
        )
    )


def registered(sent_at: float, lease: float = 30.0, epoch: int = 3) -> to_supervisor.Registered:
    return to_supervisor.Registered(PROTOCOL_VERSION, epoch, 9, sent_at, lease)


def renew(at: float, *, armed: bool = True) -> Send:
    return Send(from_supervisor.Renew(NAME, at, armed))


def row(serial: int) -> WorkerExitedRow:
    return WorkerExitedRow(serial, 1000 + serial, -9, True, [AttemptPhase(1, 1, "begun")])


def report(serial: int) -> Send:
    return Send(from_supervisor.WorkerExited(NAME, row(serial)))


GOODBYE = Send(from_supervisor.Goodbye(NAME))
DONE = Quit(0, "all workers are reaped")


class Driver:
    """A session at a moment; thaws what it froze before each event, so that nothing hides elsewhere."""

    def __init__(self) -> None:
        self.session = SupervisorSession(IDENTITY)
        self.now = 100.0

    def __call__(self, message: Any) -> list[Any]:
        return self.do("receive", message)

    def do(self, event: str, *args: Any) -> list[Any]:
        self.session = SupervisorSession.thaw(IDENTITY, self.session.freeze())
        effects: list[Any] = getattr(self.session, event)(*args, self.now)
        self.session.check()
        frozen = self.session.freeze()
        hash(frozen)
        assert SupervisorSession.thaw(IDENTITY, frozen).freeze() == frozen
        return effects

    def dies(self, serial: int, *, ready: bool = True) -> list[Any]:
        return [
            *self.do("worker_died", serial, -9, ready),
            *self.do("worker_gone", serial, row(serial)),
        ]


@pytest.fixture
def pool() -> Driver:
    driver = Driver()
    assert driver.do("start") == [hello(100.0), StartWorker(0, 1)]
    driver.session.worker_ready()
    assert driver.session.due() == 0.0
    assert driver.do("tick") == [StartWorker(1, 2)]
    assert driver(registered(100.0)) == [ArmLease(130.0, 30.0), renew(100.0)]
    assert driver(grant(100.0)) == []
    return driver


def grant(sent_at: float, lease: float = 30.0, epoch: int = 3) -> to_supervisor.Grant:
    return to_supervisor.Grant(epoch, sent_at, lease)


def test_hello_is_said_again_until_it_is_answered() -> None:
    driver = Driver()
    driver.do("start")
    driver.session.worker_ready()
    driver.do("tick")
    driver.now += 0.5
    assert driver.do("tick") == [hello(100.5)]
    assert driver.session.due() == 101.5
    driver(registered(100.5))
    assert driver.session.due() == 105.5
    driver.now = 105.5
    assert driver.do("tick") == [renew(105.5)]


def test_hello_wanted_is_answered_once(pool: Driver) -> None:
    assert pool(to_supervisor.HelloWanted(4)) == [hello(100.0, 9, 4, armed=True)]
    assert pool(to_supervisor.HelloWanted(4)) == []


def test_a_dead_worker_is_replaced_before_its_account_is_settled(pool: Driver) -> None:
    assert pool.do("worker_died", 1, -9, True) == [StartWorker(2, 3)]
    assert pool.do("worker_gone", 1, row(1)) == [report(1)]
    pool.now += 0.4
    assert pool.do("tick") == []
    pool.now += 0.2
    assert pool.do("tick") == [report(1)]
    assert pool(to_supervisor.ExitTaken(1)) == [FreePlace(0)]
    assert pool(to_supervisor.ExitTaken(1)) == []
    pool.now += 1
    assert pool.do("tick") == []


def test_reports_wait_for_the_registration(pool: Driver) -> None:
    pool.do("connection_lost")
    assert pool.dies(1) == [StartWorker(2, 3)]
    assert pool.do("connected") == [hello(100.0, 9, 3, armed=True)]
    assert pool(registered(100.0)) == [report(1)]


def test_places_run_out_while_the_broker_is_away(pool: Driver) -> None:
    pool.do("connection_lost")
    assert pool.dies(1) == [StartWorker(2, 3)]
    assert pool.dies(2) == [StartWorker(3, 4)]
    assert pool.dies(3) == []
    assert pool.dies(4) == []
    assert pool.session.due() == 115.0
    pool.do("connected")
    pool(registered(100.0))
    assert pool(to_supervisor.ExitTaken(2)) == [FreePlace(1), StartWorker(1, 5)]


def test_starts_that_fail_back_off(pool: Driver) -> None:
    waits = []
    for serial in range(1, 9):
        pool.dies(serial, ready=False)
        pool(to_supervisor.ExitTaken(serial))
        waits.append(round(pool.session.start_at - pool.now, 3))
        assert pool.do("tick") == []
        pool.now = pool.session.start_at
        started = [each for each in pool.do("tick") if isinstance(each, StartWorker)]
        assert len(started) == 1
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    serial = pool.session.last_serial
    pool.session.worker_ready()
    assert [type(each) for each in pool.dies(serial)] == [StartWorker, Send]


def test_orders(pool: Driver) -> None:
    rows = [
        to_supervisor.FlagRow(1, 5, 1),
        to_supervisor.FlagRow(2, 6, 1),
        to_supervisor.FlagRow(1, 7, 2),
    ]
    assert pool(to_supervisor.Flag(3, [*rows, to_supervisor.FlagRow(9, 8, 1)])) == [
        SetFlags(0, [(5, 1), (7, 2)]),
        SetFlags(1, [(6, 1)]),
    ]
    spared = [(5, 1), (7, 2)]
    assert pool(to_supervisor.Kill(3, 2, 6, 1, spared)) == [KillFor(2, 1, 6, 1, spared)]
    assert pool(to_supervisor.Kill(3, 9, 6, 1, [])) == []
    pool.do("worker_died", 2, -9, True)
    assert pool(to_supervisor.Kill(3, 2, 6, 1, [])) == []


def test_orders_of_an_older_epoch_are_ignored(pool: Driver) -> None:
    pool(to_supervisor.HelloWanted(5))
    assert pool(to_supervisor.Kill(3, 2, 6, 1, [])) == []
    assert pool(to_supervisor.Flag(4, [to_supervisor.FlagRow(1, 5, 1)])) == []
    assert pool(to_supervisor.Exit(4, 1.0)) == []


def test_the_end_in_order(pool: Driver) -> None:
    assert pool(to_supervisor.Exit(3, 10.0)) == [AskToEnd()]
    assert pool(to_supervisor.Exit(3, 10.0)) == []
    assert pool.dies(1) == [report(1)]
    assert pool.session.due() == 100.5
    assert pool(to_supervisor.ExitTaken(1)) == [FreePlace(0)]
    pool.now = 110.0
    assert pool.do("tick") == [renew(110.0), KillAll()]
    assert pool.do("tick") == []
    assert pool.dies(2) == [report(2)]
    assert pool(to_supervisor.ExitTaken(2)) == [FreePlace(1), GOODBYE, DONE]


def test_a_second_request_to_end_is_faster(pool: Driver) -> None:
    pool.do("end", 30.0)
    assert pool.do("end", 0.0) == [KillAll()]


def test_the_end_without_a_broker(pool: Driver) -> None:
    pool.do("connection_lost")
    assert pool.do("end", 0.0) == [AskToEnd(), KillAll()]
    assert pool.dies(1) == []
    assert pool.dies(2) == []
    assert pool.session.due() == 102.0
    pool.now = 102.0
    assert pool.do("tick") == [DONE]


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_a_refused_supervisor_ends_its_workers(pool: Driver, grace: float) -> None:
    effects = pool(to_supervisor.Refused("unknown runtime", grace))
    if grace:
        assert effects == [AskToEnd()]
        pool(grant(100.0))
        pool.now = 104.9
        assert pool.do("tick") == []
        pool.now = 105.0
        assert pool.do("tick") == [renew(105.0), KillAll()]
    else:
        assert effects == [AskToEnd(), KillAll()]
    pool.dies(1)
    pool.dies(2)
    pool(to_supervisor.ExitTaken(1))
    assert pool(to_supervisor.ExitTaken(2)) == [
        FreePlace(1),
        GOODBYE,
        Quit(1, "the broker refused it: unknown runtime"),
    ]


def test_workers_are_started_one_by_one() -> None:
    """Messages, and the renewal of the lease, have their turns in between."""
    driver = Driver()
    assert driver.do("start") == [hello(100.0), StartWorker(0, 1)]
    driver.session.worker_ready()
    driver.now += 0.5
    assert driver.do("tick") == [hello(100.5), StartWorker(1, 2)]
    assert driver.do("tick") == []


def test_the_first_worker_has_a_head_start() -> None:
    driver = Driver()
    driver.do("start")
    assert driver.session.waits_for_first
    driver.now += 0.5
    assert driver.do("tick") == [hello(100.5)]
    assert driver.session.due() == 101.0
    driver.now += 0.5
    assert driver.do("tick") == [StartWorker(1, 2)]
    assert not driver.session.waits_for_first


def test_the_head_start_is_over_once_the_first_is_ready() -> None:
    driver = Driver()
    driver.do("start")
    driver.session.worker_ready()
    assert not driver.session.waits_for_first
    assert driver.do("tick") == [StartWorker(1, 2)]


def test_the_head_start_is_over_with_the_first() -> None:
    """Then its death says how long the next one waits."""
    driver = Driver()
    driver.do("start")
    driver.do("worker_died", 1, -9, False)
    assert not driver.session.waits_for_first
    assert driver.session.due() == 100.1
    driver.now += 0.1
    assert driver.do("tick") == [StartWorker(1, 2)]
    assert driver.do("tick") == [StartWorker(2, 3)]


def test_an_ending_pool_starts_no_others() -> None:
    driver = Driver()
    driver.do("start")
    driver.do("end", 5.0)
    assert not driver.session.waits_for_first
    driver.now += 2.0
    assert [each for each in driver.do("tick") if isinstance(each, StartWorker)] == []


# --- the lease ------------------------------------------------------------------------------------


def test_the_lease_is_asked_for_each_sixth_of_it(pool: Driver) -> None:
    for moment in (105.0, 110.0):
        assert pool.session.due() == moment
        pool.now = moment - 0.001
        assert pool.do("tick") == []
        pool.now = moment
        assert pool.do("tick") == [renew(moment)]  # also when the last one was not answered
    pool.now = 110.25
    assert pool(grant(110.0)) == [ArmLease(140.0, 30.0)]
    assert pool.session.due() == 115.0


def test_after_the_first_arming_it_is_told_at_once() -> None:
    driver = Driver()
    driver.do("start")
    driver.now = 100.25
    assert driver(registered(100.0)) == [ArmLease(130.0, 30.0), renew(100.25)]
    driver.now = 100.5
    assert driver(grant(100.25)) == [ArmLease(130.25, 30.0)]
    assert driver.do("connected") == [hello(100.5, 9, 3, armed=True)]
    assert driver(registered(100.5)) == [ArmLease(130.5, 30.0)]


def test_the_timer_only_moves_later(pool: Driver) -> None:
    pool.now = 120.0
    assert pool(grant(95.0)) == []
    assert pool(grant(110.0, lease=10.5)) == []
    assert pool(grant(110.0, lease=20.0)) == []
    assert pool(grant(110.0, lease=20.5)) == [ArmLease(130.5, 20.5)]
    assert pool(grant(100.0, lease=31.0)) == [ArmLease(131.0, 20.5)]


@pytest.mark.parametrize(
    ("sent_at", "lease"),
    [
        (80.0, 30.0),  # over already
        (110.0, 0.0),
        (110.0, -1.0),
        (110.1, 30.0),  # nothing was said then
        (float("nan"), 30.0),
        (110.0, float("nan")),
        (110.0, float("inf")),
        (float("-inf"), float("inf")),
        (110.0, LONGEST + 1),
    ],
)
def test_a_grant_that_makes_no_sense_is_none(pool: Driver, sent_at: float, lease: float) -> None:
    pool.now = 110.0
    assert pool(grant(sent_at, lease)) == []
    unarmed = Driver()
    unarmed.do("start")
    unarmed.now = 110.0
    assert unarmed(registered(sent_at, lease)) == [renew(110.0, armed=False)]
    assert unarmed(grant(sent_at, lease)) == []
    unarmed.do("tick")
    assert unarmed.session.due() == 110.5
    unarmed.now = 110.5
    assert unarmed.do("tick") == [renew(110.5, armed=False)]
    assert unarmed(grant(110.0)) == [ArmLease(140.0, 30.0), renew(110.5)]


def test_grants_of_an_older_epoch_are_ignored(pool: Driver) -> None:
    pool.now = 105.0
    pool(to_supervisor.HelloWanted(4))
    assert pool(grant(105.0)) == []
    assert pool(registered(105.0)) == []
    assert pool(registered(105.0, epoch=4)) == [ArmLease(135.0, 30.0)]


def away(pool: Driver, *moments: float) -> None:
    for moment in moments:
        pool.now = moment
        assert pool.do("tick") == [renew(moment)]


def test_half_a_lease_without_the_broker(pool: Driver) -> None:
    away(pool, 105.0, 110.0)
    pool.now = 115.0
    assert pool.do("tick") == [renew(115.0), AskForLease(OVER)]
    assert pool.do("tick") == []
    away(pool, 120.0)
    pool.now = 120.5
    assert pool(grant(105.0)) == [ArmLease(135.0, 30.0)]  # half of that is over, too
    assert pool(grant(120.0)) == [ArmLease(150.0, 30.0), LeaseIsBack()]
    away(pool, 125.0, 130.0)
    pool.now = 135.0
    assert pool.do("tick") == [renew(135.0), AskForLease(OVER)]


def test_a_broker_that_is_back_answers_the_oldest_first(pool: Driver) -> None:
    """What begins by the first answers is not asked to stop before the last is read."""
    away(pool, 105.0, 110.0)
    pool.now = 115.0
    assert pool.do("tick") == [renew(115.0), AskForLease(OVER)]
    pool.now = 119.9
    # Half of this one is over in a tenth of a second.
    assert pool(grant(105.0)) == [ArmLease(135.0, 30.0)]
    assert pool(grant(110.0)) == [ArmLease(140.0, 30.0), LeaseIsBack()]
    pool.now = 124.9
    assert AskForLease(OVER) not in pool.do("tick")


def test_half_a_lease_without_a_connection(pool: Driver) -> None:
    pool.do("connection_lost")
    assert pool.session.due() == 115.0
    pool.now = 115.0
    assert pool.do("tick") == [AskForLease(OVER)]
    assert pool.session.due() is None
    pool.now = 120.0
    assert pool.do("connected") == [hello(120.0, 9, 3, armed=True)]
    assert pool(registered(120.0)) == [ArmLease(150.0, 30.0), LeaseIsBack()]


def test_half_a_lease_before_there_was_any() -> None:
    driver = Driver()
    driver.do("start")
    driver.session.worker_ready()
    driver.do("tick")
    driver.now = 1e6
    assert [type(each) for each in driver.do("tick")] == [Send]
    assert driver.session.due() == 1e6 + 1


def test_who_was_away_itself_asks_before_it_tells_its_tasks(pool: Driver) -> None:
    """Stopped or suspended for a while; the broker may have been there all the time."""
    pool.now = 118.0
    assert pool.do("tick") == [renew(118.0)]
    assert pool.session.due() == 120.5
    pool.now = 118.5
    assert pool(grant(118.0)) == [ArmLease(148.0, 30.0)]
    assert pool.session.due() == 123.0
    # Nor does it wait for ever.
    pool.now = 140.0
    assert pool.do("tick") == [renew(140.0)]
    assert pool.session.due() == 142.5
    pool.now = 147.0
    assert pool.do("tick") == [renew(147.0), AskForLease(OVER)]


@pytest.mark.parametrize("late", [0.0, 0.1, 2.4])
def test_who_was_away_for_just_half_a_lease_asks_first_too(pool: Driver, late: float) -> None:
    """The broker owes it no answer: it did not ask."""
    pool.now = 115.0 + late
    assert pool.do("tick") == [renew(pool.now)]
    asked = pool.now
    assert pool.session.due() == asked + 2.5
    pool.now = asked + 0.1
    assert pool(grant(asked)) == [ArmLease(asked + 30.0, 30.0)]
    # Nor does it wait for ever.
    pool.now = asked + 15.0
    assert pool.do("tick") == [renew(pool.now)]
    pool.now += 2.5
    assert AskForLease(OVER) in pool.do("tick")


def test_a_short_lease_is_asked_for_more_often() -> None:
    """By Hello, too, which otherwise gets slower and slower."""
    driver = Driver()
    driver.do("start")
    driver.do("tick")
    assert driver(registered(100.0, lease=0.75)) == [ArmLease(100.75, 0.75), renew(100.0)]
    assert driver.session.due() == 100.125
    assert driver.do("connected") == [hello(100.0, 9, 3, armed=True)]
    for moment in (100.125, 100.25):
        assert driver.session.due() == moment
        driver.now = moment
        assert driver.do("tick") == [hello(moment, 9, 3, armed=True)]
    driver.now = 100.375
    reason = "no broker for 0.375 s: the lease of this pool is half over"
    assert driver.do("tick") == [hello(100.375, 9, 3, armed=True), AskForLease(reason)]


def test_an_ending_pool_keeps_its_lease(pool: Driver) -> None:
    pool.do("end", 100.0)
    away(pool, 105.0)
    assert pool(grant(105.0)) == [ArmLease(135.0, 30.0)]


#: The lease is judged again so late that less is left of it than the answer may take.
GRANTED_LATE: Final = [
    (0.0, "handle", 0, 10.0),
    (10.0, "answer", 0, 10.0),
    (2.0, "handle", 0, 10.0),
    (5.0, "handle", 5, 30.0),
    (9.0, "handle", 0, 10.0),
    (12.0, "answer", 2, 10.0),
    (2.0, "handle", 0, 10.0),
]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 12),
            st.sampled_from(["handle", "handle", "answer", "answer", "lose", "reconnect"]),
            st.integers(0, 5),
            st.sampled_from([10.0, 30.0]),
        ),
        max_size=60,
    )
)
@example(GRANTED_LATE)
def test_it_never_outlives_what_the_broker_has_granted(
    steps: list[tuple[float, str, int, float]],
) -> None:
    """Requests and grants are late, lost, doubled and out of order; tasks are asked before it dies."""
    pool = Driver()
    requests: list[float] = []
    grants: list[to_supervisor.Grant] = []
    last_handled = 0.0  # `a + L` is never later than `b + L`
    asked = False

    def do(effects: list[Any]) -> None:
        nonlocal asked
        for effect in effects:
            if isinstance(effect, Send) and hasattr(effect.message, "sent_at"):
                assert effect.message.sent_at == pool.now
                assert effect.message.armed == (pool.session.lease.armed_until is not None)
                requests.append(pool.now)
            elif isinstance(effect, ArmLease):
                assert effect.until > armed
                assert effect.until <= last_handled
            elif isinstance(effect, AskForLease):
                assert not asked
                asked = True
            elif isinstance(effect, LeaseIsBack):
                assert asked
                asked = False

    armed = 0.0
    do(pool.do("start"))
    for wait, step, which, lease in steps:
        until = pool.now + wait
        while (due := pool.session.due()) is not None and due <= until:
            pool.now = max(due, pool.now)
            do(pool.do("tick"))
        pool.now = until
        if armed and pool.now >= armed:
            assert asked
            return
        match step:
            case "handle" if requests:
                sent_at = requests[which % len(requests)]
                grants.append(grant(sent_at, lease))
                last_handled = max(last_handled, pool.now + lease)
            case "answer" if grants:
                answer: Any = grants[which % len(grants)]
                if not pool.session.registered:
                    answer = registered(answer.sent_at, answer.lease)
                do(pool(answer))
            case "lose":
                del requests[:which], grants[:which]
            case "reconnect":
                pool.do("connection_lost")
                do(pool.do("connected"))
        armed = pool.session.lease.armed_until or 0.0
