"""The supervisor session by table: events in, the whole list of effects out."""

from typing import Any

import pytest

from quiesce.protocol import PROTOCOL_VERSION, from_supervisor, to_supervisor
from quiesce.protocol.from_supervisor import AttemptPhase, WorkerExitedRow
from quiesce.workers.supervisor_session import (
    AskToEnd,
    FreePlace,
    Identity,
    KillAll,
    KillFor,
    Quit,
    Send,
    SetFlags,
    StartWorker,
    SupervisorSession,
)

NAME = b"s" * 8
IDENTITY = Identity(NAME, "background", 4711, "here", "boot", processes=2, slots=4, places=4)


def hello(incarnation: int = 0, epoch: int = 0) -> Send:
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
            None,
        )
    )


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
    assert driver.do("start") == [hello(), StartWorker(0, 1), StartWorker(1, 2)]
    assert driver(to_supervisor.Registered(PROTOCOL_VERSION, 3, 9)) == []
    return driver


def test_hello_is_said_again_until_it_is_answered() -> None:
    driver = Driver()
    driver.do("start")
    driver.now += 0.5
    assert driver.do("tick") == [hello()]
    assert driver.session.due() == 101.5
    driver(to_supervisor.Registered(PROTOCOL_VERSION, 3, 9))
    assert driver.session.due() == 105.5
    driver.now = 105.5
    assert driver.do("tick") == [Send(from_supervisor.Heartbeat(NAME))]


def test_hello_wanted_is_answered_once(pool: Driver) -> None:
    assert pool(to_supervisor.HelloWanted(4)) == [hello(9, 4)]
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
    assert pool.do("connected") == [hello(9, 3)]
    assert pool(to_supervisor.Registered(PROTOCOL_VERSION, 3, 9)) == [report(1)]


def test_places_run_out_while_the_broker_is_away(pool: Driver) -> None:
    pool.do("connection_lost")
    assert pool.dies(1) == [StartWorker(2, 3)]
    assert pool.dies(2) == [StartWorker(3, 4)]
    assert pool.dies(3) == []
    assert pool.dies(4) == []
    assert pool.session.due() is None
    pool.do("connected")
    pool(to_supervisor.Registered(PROTOCOL_VERSION, 3, 9))
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
    assert pool.do("tick") == [Send(from_supervisor.Heartbeat(NAME)), KillAll()]
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


def test_a_refused_supervisor_ends_its_workers(pool: Driver) -> None:
    assert pool(to_supervisor.Refused("unknown runtime")) == [AskToEnd(), KillAll()]
    pool.dies(1)
    pool.dies(2)
    pool(to_supervisor.ExitTaken(1))
    assert pool(to_supervisor.ExitTaken(2)) == [
        FreePlace(1),
        GOODBYE,
        Quit(1, "the broker refused it: unknown runtime"),
    ]
