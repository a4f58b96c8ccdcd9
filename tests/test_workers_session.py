"""The worker session by table: events in, the whole list of effects out; the state is checked after each step."""

from collections.abc import Callable
from typing import Any

import pytest

from quiesce.protocol import PROTOCOL_VERSION, from_worker, to_worker
from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.rows import LEASE_OVER, AssignRow, EndedRow
from quiesce.registry.states import Outcome
from quiesce.workers.worker_effects import (
    AskToStop,
    Control,
    Data,
    ForceAttempt,
    Forget,
    Hand,
    Identity,
    Limit,
    Look,
    Quit,
    Ran,
    Settle,
    Withdraw,
)
from quiesce.workers.worker_gives_back import GIVE_BACK
from quiesce.workers.worker_session import BEGUN_AFTER, WorkerSession

IDENTITY = Identity("background", b"s" * 8, 4, 4711, "here", slots=2, capacity=4)


def key(task: int, attempt: int = 1) -> AttemptKey:
    return (TaskId(task), Attempt(attempt))


def row(number: int, task: int, attempt: int = 1) -> AssignRow:
    return AssignRow(
        number,
        *key(task, attempt),
        "compaction",
        f"task {task}",
        None,
        None,
        False,
        1.0,
        b"f",
        b"a",
    )


def assign(*rows: AssignRow, epoch: int = 3) -> to_worker.Assign:
    return to_worker.Assign(epoch, list(rows))


def stop(task: int, last_assign: int, reason: str = "r", epoch: int = 3) -> to_worker.Stop:
    return to_worker.Stop(epoch, [to_worker.StopOrder(task, 1, last_assign, reason)])


def seen(task: int, state: str, age: float = 0.0, observed: float | None = None) -> Control:
    return Control(from_worker.StopSeen([from_worker.StopSeenRow(task, 1, state, age, observed)]))


def hello(**changes: Any) -> Control:
    message = from_worker.Hello(
        PROTOCOL_VERSION, "background", b"s" * 8, 4, 4711, "here", 2, 0, 0, 0, [], []
    )
    return Control(message._replace(**changes))


def never_ran(task: int, age: float = 0.0) -> EndedRow:
    return EndedRow(
        *key(task),
        "cancelled",
        "NEVER_RAN",
        None,
        age,
        None,
        None,
        "asked to stop before it began",
        b"",
    )


class Driver:
    """A session at a moment; thaws what it froze before each event, so that nothing hides elsewhere."""

    def __init__(self, identity: Identity = IDENTITY) -> None:
        self.session = WorkerSession(identity)
        self.now = 100.0

    def __call__(self, message: Any) -> list[Any]:
        return self.do("receive", message)

    def do(self, event: str, *args: Any) -> list[Any]:
        return self.tell(event, *args, self.now)

    def tell(self, event: str, *args: Any) -> list[Any]:
        identity = self.session.identity
        self.session = WorkerSession.thaw(identity, self.session.freeze())
        effects: list[Any] = getattr(self.session, event)(*args)
        self.session.check()
        frozen = self.session.freeze()
        assert WorkerSession.thaw(identity, frozen).freeze() == frozen
        hash(str(frozen))
        return effects


@pytest.fixture
def worker() -> Driver:
    """Registered, in epoch 3 as incarnation 9."""
    driver = Driver()
    assert driver.do("start") == [hello()]
    assert driver(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000)) == [
        Limit(1000),
        Data(from_worker.Attach(9, 3)),
    ]
    return driver


def begin(worker: Driver, *tasks: int) -> None:
    """They are handed over already; synchronous ones, loaded in no time."""
    for task in tasks:
        assert worker.do("load", key(task)) == []
        assert worker.do("begin", key(task)) == []
        assert told(worker) == begun(task, BEGUN_AFTER)


def told(worker: Driver) -> list[Any]:
    """What is said of beginnings a moment later; the driver's clock does not move."""
    effects = worker.tell("tick", worker.now + BEGUN_AFTER)
    return [
        Control(from_worker.Begun([(*row[:2], round(row[2], 6)) for row in effect.message.rows]))
        for effect in effects
        if isinstance(effect.message, from_worker.Begun)
    ]


def begun(task: int, age: float = 0.0) -> list[Any]:
    return [Control(from_worker.Begun([(task, 1, age)]))]


def run(worker: Driver, *rows: AssignRow) -> None:
    """Assign, and begin what is handed over."""
    for effect in worker(assign(*rows)):
        if isinstance(effect, Hand):
            begin(worker, *(each.task_id for each in effect.rows))


def end(worker: Driver, task: int, outcome: Outcome = Outcome.COMPLETED) -> list[Any]:
    return worker.do("ended", key(task), outcome, "text", b"result")


def ended(
    task: int,
    begun: float,
    age: float = 0.0,
    delivered: float | None = None,
    observed: float | None = None,
) -> EndedRow:
    return EndedRow(
        *key(task), "completed", "RETURNED", begun, age, delivered, observed, "text", b"result"
    )


# --- registration ---------------------------------------------------------------------------------


def test_hello_is_said_again_more_and_more_slowly() -> None:
    driver = Driver()
    assert driver.do("start") == [hello()]
    for moment, effects in [(100.9, []), (101.0, [hello()]), (102.9, []), (103.0, [hello()])]:
        driver.now = moment
        assert driver.do("tick") == effects
    assert driver.session.due() == 107.0


def test_hello_wanted_is_answered_once(worker: Driver) -> None:
    again = hello(incarnation=9, epoch=4)
    assert worker(to_worker.HelloWanted(4)) == [again]
    assert worker(to_worker.HelloWanted(4)) == []
    worker.now += 1.0
    assert worker(to_worker.HelloWanted(4)) == [again]


def test_a_refused_worker_quits(worker: Driver) -> None:
    assert worker(to_worker.Refused("too old")) == [
        Quit(1, "the broker refused this worker: too old")
    ]


def test_a_reconnection_tells_everything_again(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3), row(4, 4))
    worker(stop(4, 4))
    worker.do("connection_lost")
    worker.session.linger(key(2), "thread 'x'")
    worker.now += 2.0
    # Task 3 begins in the place of task 1, and nothing is sent.
    assert end(worker, 1) == [Hand([row(3, 3)])]
    assert worker.do("begin", key(3)) == []
    assert worker.do("tick") == []
    request, effects = worker.session.associate(key(2), "t", None)
    assert (request, effects) == (1, [])
    assert worker.do("connected") == [
        hello(incarnation=9, epoch=3, last_assign=4, begun=[(2, 1), (3, 1), (1, 1)])
    ]
    worker.now += 1.0
    assert worker(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000)) == [
        Limit(1000),
        Data(from_worker.Attach(9, 3)),
        Data(from_worker.Begun([(2, 1, 3.0), (3, 1, 1.0)])),
        Data(from_worker.Ended([never_ran(4, 3.0), ended(1, 3.0, 1.0)])),
        Control(from_worker.Lingering(2, 1, "thread 'x'")),
        Control(from_worker.Associate(1, 2, 1, "t", None)),
    ]


def test_an_older_epoch_is_ignored(worker: Driver) -> None:
    worker(to_worker.HelloWanted(5))
    before = worker.session.freeze()
    for message in (
        assign(row(1, 1)),
        stop(1, 1),
        to_worker.Force(3, 1, 1),
        to_worker.Exit(4),
        to_worker.HelloWanted(4),
    ):
        assert worker(message) == []
    assert worker.session.freeze() == before


def test_a_new_incarnation_numbers_anew(worker: Driver) -> None:
    worker(assign(row(5, 1)))
    worker(stop(2, 6))
    worker(to_worker.HelloWanted(4))
    worker(to_worker.Registered(PROTOCOL_VERSION, 4, 10, 1000))
    assert worker(assign(row(1, 3), epoch=4)) == [Hand([row(1, 3)])]


# --- assignments ----------------------------------------------------------------------------------


def test_slots_bound_what_runs(worker: Driver) -> None:
    handed = [Hand([row(1, 1), row(2, 2)])]
    assert worker(assign(row(1, 1), row(2, 2), row(3, 3))) == handed
    begin(worker, 1)
    worker.now += 5
    assert end(worker, 1) == [Data(from_worker.Ended([ended(1, 5.0)])), Hand([row(3, 3)])]
    # Those that have not begun have slots, too.
    assert worker(assign(row(4, 4))) == []


def test_capacity_bounds_what_is_held(worker: Driver) -> None:
    run(worker, *(row(n, n) for n in range(1, 7)))
    end(worker, 1)
    end(worker, 2)
    begin(worker, 3)
    end(worker, 3)
    # One is handed over and three are held: the table is full.
    assert (list(worker.session.handed), worker.session.running) == ([key(4)], {})
    assert worker(to_worker.EndedTaken([key(1), key(2)])) == [
        Forget([key(1), key(2)]),
        Hand([row(5, 5)]),
    ]


def test_what_came_before_does_not_come_again(worker: Driver) -> None:
    worker(assign(row(1, 1)))
    assert worker(assign(row(1, 1))) == []
    # The numbers of one message need not be in order.
    assert worker(assign(row(4, 4), row(3, 3))) == [Hand([row(4, 4)])]
    assert list(worker.session.received) == [key(3)]


def test_what_has_ended_and_is_forgotten_does_not_come_again(worker: Driver) -> None:
    """Its number has passed, and nothing else is left of it."""
    run(worker, row(1, 1))
    end(worker, 1)
    assert worker(to_worker.EndedTaken([key(1)])) == [Forget([key(1)])]
    assert worker(assign(row(1, 1))) == []


def test_ends_are_sent_again_until_they_are_taken(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert end(worker, 1) == [Data(from_worker.Ended([ended(1, 0.0)]))]
    for wait, again in [(0.9, False), (0.2, True), (1.9, False), (0.2, True)]:
        worker.now += wait
        age = worker.now - 100.0
        expected = [Data(from_worker.Ended([ended(1, age, age)]))] if again else []
        assert worker.do("tick") == expected
    assert worker(to_worker.EndedTaken([key(1)])) == [Forget([key(1)])]
    assert worker(to_worker.EndedTaken([key(1)])) == []
    worker.now += 100
    assert worker.do("tick") == []
    assert worker.session.due() is None


# --- requests to stop -----------------------------------------------------------------------------


def test_a_stop_of_what_runs(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert worker(stop(1, 1)) == [AskToStop(*key(1), "r"), seen(1, "running")]
    worker.now += 2
    assert worker(stop(1, 1)) == [seen(1, "running", 2.0)]
    assert worker.do("observed", key(1)) == [seen(1, "running", 2.0, 0.0)]
    worker.now += 1
    assert worker.do("observed", key(1)) == []
    assert worker(stop(1, 1)) == [seen(1, "running", 3.0, 1.0)]
    assert end(worker, 1) == [Data(from_worker.Ended([ended(1, 3.0, 0.0, 3.0, 1.0)]))]
    assert worker(stop(1, 1)) == [seen(1, "over")]


def test_the_flag_may_be_faster(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert worker.do("observed", key(1)) == []
    worker.now += 1
    assert worker(stop(1, 1)) == [AskToStop(*key(1), "r"), seen(1, "running", 1.0, 1.0)]


def test_a_stop_of_what_has_not_begun(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3))
    assert worker(stop(3, 3)) == [
        seen(3, "never-began"),
        Data(from_worker.Ended([never_ran(3)])),
    ]
    assert worker(stop(3, 3)) == [seen(3, "never-began")]
    assert end(worker, 1) == [Data(from_worker.Ended([ended(1, 0.0)]))]
    # It was never in the table.
    assert worker(to_worker.EndedTaken([key(3), key(1)])) == [Forget([key(1)])]


def test_a_stop_overtakes_its_task(worker: Driver) -> None:
    assert worker(stop(2, 2)) == [seen(2, "never-began")]
    assert worker(stop(2, 2)) == [seen(2, "never-began")]
    assert worker(assign(row(1, 1))) == [Hand([row(1, 1)])]
    assert worker.session.tombstones == {key(2): 2}
    assert worker(assign(row(2, 2), row(3, 3))) == [
        Data(from_worker.Ended([never_ran(2)])),
        Hand([row(3, 3)]),
    ]
    assert worker.session.tombstones == {}


def test_a_tombstone_goes_when_the_socket_has_passed_it(worker: Driver) -> None:
    worker(stop(7, 1))
    worker(assign(row(1, 1)))
    assert worker.session.tombstones == {}


def test_a_stop_of_what_was_lost_on_its_way(worker: Driver) -> None:
    worker(assign(row(2, 2)))
    assert worker(stop(1, 2)) == [
        seen(1, "never-began"),
        Data(from_worker.Ended([never_ran(1)])),
    ]
    assert worker(assign(row(1, 1))) == []


def test_force(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3))
    assert worker(to_worker.Force(3, 1, 1)) == [
        AskToStop(*key(1), ""),
        ForceAttempt(*key(1)),
        seen(1, "running"),
    ]
    assert worker(to_worker.Force(3, 1, 1))[0] == ForceAttempt(*key(1))
    assert worker(to_worker.Force(3, 3, 1)) == [Data(from_worker.Ended([never_ran(3)]))]
    assert worker(to_worker.Force(3, 9, 1)) == []


# --- handed over, and not begun -------------------------------------------------------------------


def handed(worker: Driver, age: float) -> None:
    """Handed over as task 1, `age` ago; 2 has the other slot and 3 waits for one."""
    worker(assign(row(1, 1), row(2, 2), row(3, 3)))
    worker.now += age


def put_off(worker: Driver, age: float) -> None:
    """The same, but a coroutine that was loaded and waits for the loop."""
    handed(worker, age)
    assert worker.do("load", key(1)) == []
    assert worker.session.put_off(key(1)) == []


WAYS = pytest.mark.parametrize("way", [handed, put_off])


@WAYS
@pytest.mark.parametrize(
    ("message", "said"),
    [(stop(1, 3), [seen(1, "never-began")]), (to_worker.Force(3, 1, 1), [])],
)
def test_a_stop_does_not_wait_until_it_can_begin(
    worker: Driver, way: Callable[[Driver, float], None], message: Any, said: list[Any]
) -> None:
    way(worker, 2.0)
    assert worker(message) == [
        Withdraw([key(1)]),
        *said,
        Data(from_worker.Ended([never_ran(1)])),
        Hand([row(3, 3)]),
    ]
    assert key(1) not in worker.session.handed
    assert worker(stop(1, 3)) == [seen(1, "never-began")]
    assert worker(to_worker.EndedTaken([key(1)])) == []


@WAYS
def test_it_begins_when_its_body_does(worker: Driver, way: Callable[[Driver, float], None]) -> None:
    way(worker, 2.0)
    assert worker.do("begin", key(1)) == []
    assert told(worker) == begun(1, BEGUN_AFTER)
    assert worker.session.running == {key(1): 102.0}
    assert worker(stop(1, 3)) == [AskToStop(*key(1), "r"), seen(1, "running")]


@WAYS
def test_hello_lists_it_as_received(worker: Driver, way: Callable[[Driver, float], None]) -> None:
    way(worker, 0.0)
    worker.do("load", key(2))
    worker.do("connection_lost")
    waiting = [(2, 1), (1, 1), (3, 1)]
    assert worker.do("connected") == [
        hello(incarnation=9, epoch=3, last_assign=3, received=waiting)
    ]
    assert worker(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000)) == [
        Limit(1000),
        Data(from_worker.Attach(9, 3)),
    ]


@WAYS
def test_after_exit_it_never_begins(worker: Driver, way: Callable[[Driver, float], None]) -> None:
    way(worker, 0.0)
    begin(worker, 2)
    assert worker(to_worker.Exit(3)) == [Withdraw([key(1)])]
    assert list(worker.session.received) == [key(1), key(3)]
    assert worker(to_worker.Exit(3)) == []
    assert end(worker, 2) == [Data(from_worker.Ended([ended(2, 0.0)]))]


def test_what_is_cancelled_by_a_neighbour_before_its_first_step_ends(worker: Driver) -> None:
    put_off(worker, 2.0)
    assert end(worker, 1) == [Data(from_worker.Ended([ended(1, 0.0)])), Hand([row(3, 3)])]
    assert key(1) not in worker.session.handed


def test_what_is_asked_while_it_loads_is_not_put_off(worker: Driver) -> None:
    handed(worker, 0.0)
    worker.do("load", key(1))
    assert worker(stop(1, 3)) == [AskToStop(*key(1), "r"), seen(1, "running")]
    assert worker.session.put_off(key(1)) == []
    assert list(worker.session.running) == [key(1)]
    assert end(worker, 1) == [
        Data(from_worker.Ended([ended(1, 0.0, 0.0, 0.0)])),
        Hand([row(3, 3)]),
    ]


def test_what_loads_for_long_has_begun(worker: Driver) -> None:
    worker(assign(row(1, 1)))
    worker.do("load", key(1))
    assert worker.session.due() == 101.0
    worker.now = 101.0
    assert worker.do("tick") == begun(1, 1.0)
    assert worker.do("tick") == []
    assert worker.session.due() is None
    assert worker.do("begin", key(1)) == []


def test_what_needs_no_loading_begins_at_once(worker: Driver) -> None:
    worker(assign(row(1, 1)))
    assert worker.do("begin", key(1)) == []
    assert (worker.session.loading, list(worker.session.running)) == ({}, [key(1)])
    assert worker.session.due() == 100.0 + BEGUN_AFTER


def test_a_worker_of_one_slot_tells_while_it_loads() -> None:
    """No neighbour can make it wait again."""
    session = WorkerSession(IDENTITY._replace(slots=1))
    session.start(100.0)
    session.receive(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000), 100.0)
    session.receive(assign(row(1, 1)), 100.0)
    assert session.load(key(1), 100.0) == []
    assert session.due() == 100.0 + BEGUN_AFTER
    assert session.tick(100.5) == begun(1, 0.5)
    assert session.begin(key(1), 100.5) == []
    session.check()


def test_of_what_has_ended_in_a_moment_no_beginning_is_told(worker: Driver) -> None:
    worker(assign(row(1, 1)))
    worker.do("load", key(1))
    worker.do("begin", key(1))
    worker.now = 100.001
    (said,) = end(worker, 1)
    assert [round(each.begun_age, 6) for each in said.message.rows] == [0.001]
    assert worker.tell("tick", 100.5) == []


# --- more than slots ------------------------------------------------------------------------------


def test_what_waits_for_a_slot_for_long_is_given_back(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3), row(4, 4))
    assert worker.session.due() == 100.0 + GIVE_BACK
    worker.now = 100.0 + GIVE_BACK
    back = Data(from_worker.GivenBack([(3, 1, 3), (4, 1, 4)]))
    assert worker.do("tick") == [back]
    assert worker.do("tick") == []
    worker.do("connection_lost")
    (greeting,) = worker.do("connected")
    assert greeting.message.received == []
    assert back in worker(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000))
    assert worker(to_worker.GivenBackTaken([(3, 1, 3)])) == []
    assert Data(from_worker.GivenBack([(4, 1, 4)])) in worker(
        to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000)
    )


def test_what_flows_is_not_given_back(worker: Driver) -> None:
    run(worker, *(row(n, n) for n in range(1, 6)))
    for task in (1, 2):
        worker.now += GIVE_BACK - 0.001
        assert worker.do("tick") == []
        assert Hand([row(task + 2, task + 2)]) in end(worker, task)
        begin(worker, task + 2)
    assert list(worker.session.received) == [key(5)]


def test_what_was_given_back_may_come_again(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3))
    worker.now += GIVE_BACK
    worker.do("tick")
    assert worker(assign(row(4, 3))) == []
    assert list(worker.session.received) == [key(3)]
    assert worker(to_worker.GivenBackTaken([(3, 1, 3)])) == []
    assert list(worker.session.received) == [key(3)]


def test_a_stop_of_what_was_given_back(worker: Driver) -> None:
    """The broker did not know yet."""
    run(worker, row(1, 1), row(2, 2), row(3, 3))
    worker.now += GIVE_BACK
    worker.do("tick")
    assert worker(stop(3, 3)) == [seen(3, "never-began"), Data(from_worker.Ended([never_ran(3)]))]


def test_a_worker_of_one_slot_gives_back_too() -> None:
    session = WorkerSession(IDENTITY._replace(slots=1))
    session.start(100.0)
    session.receive(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000), 100.0)
    session.receive(assign(row(1, 1), row(2, 2)), 100.0)
    session.load(key(1), 100.0)
    back = Data(from_worker.GivenBack([(2, 1, 2)]))
    assert session.tick(105.0) == [*begun(1, 5.0), back]
    assert session.received == {}


# --- in a row -------------------------------------------------------------------------------------


@pytest.fixture
def solo() -> Driver:
    """Of one slot, registered; of four tasks the first has ended, and the others follow in a row."""
    driver = Driver(IDENTITY._replace(slots=1, capacity=8))
    driver.do("start")
    driver(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000))
    assert driver(assign(*(row(n, n) for n in range(1, 5)))) == [Hand([row(1, 1)])]
    assert driver.do("ran", [ran(1, 99.5, 99.75)]) == [
        Data(from_worker.Ended([ended(1, 0.5, 0.25)])),
        Hand([row(2, 2), row(3, 3), row(4, 4)]),
    ]
    return driver


def ran(task: int, begun_at: float, ended_at: float) -> Ran:
    return Ran(key(task), begun_at, ended_at, Outcome.COMPLETED, "text", b"result")


def test_those_that_ran_are_told_together(solo: Driver) -> None:
    solo.now = 101.0
    assert solo.do("ran", [ran(2, 100.0, 100.25), ran(3, 100.25, 100.5)]) == [
        Data(from_worker.Ended([ended(2, 1.0, 0.75), ended(3, 0.75, 0.5)]))
    ]
    assert list(solo.session.handed) == [key(4)]
    assert solo(assign(row(5, 5), row(6, 6))) == [], "one is still to come"
    assert solo.do("ran", [ran(4, 100.5, 100.5)])[1:] == [Hand([row(5, 5), row(6, 6)])]


def test_once_it_is_known_that_one_runs_the_others_are_withdrawn(solo: Driver) -> None:
    solo.now = 100.5
    assert solo.tell("begin", key(2), 100.25) == [Withdraw([key(3), key(4)])]
    assert solo.session.running == {key(2): 100.25}
    assert list(solo.session.received) == [key(3), key(4)]
    assert solo(assign(row(5, 5))) == []
    # It has lasted since it began, not since that was known.
    assert solo.session.due() == 100.25 + BEGUN_AFTER
    assert solo.session.flowed_at == 100.25
    solo.now = 100.25 + GIVE_BACK
    (begins, back) = solo.do("tick")
    assert begins.message.rows == [(2, 1, pytest.approx(GIVE_BACK))]
    assert back == Data(from_worker.GivenBack([(3, 1, 3), (4, 1, 4), (5, 1, 5)]))
    assert solo.do("ran", [ran(2, 100.25, 100.25)])[1:] == []
    assert solo.session.running == {}


def test_it_is_asked_soon_whether_one_runs(solo: Driver) -> None:
    assert solo.session.due() == 100.0 + BEGUN_AFTER
    solo.now = 100.0 + BEGUN_AFTER
    assert solo.do("tick") == []
    assert solo.session.due() == solo.now + BEGUN_AFTER


def test_a_stop_of_what_follows_in_a_row(solo: Driver) -> None:
    assert solo(stop(3, 4)) == [
        Withdraw([key(3)]),
        seen(3, "never-began"),
        Data(from_worker.Ended([never_ran(3)])),
    ]
    assert list(solo.session.handed) == [key(2), key(4)]


def test_it_returned_while_the_request_came(solo: Driver) -> None:
    """The end cannot be before the request, of which it is known that it came while it ran."""
    solo.do("begin", key(2))
    solo.now = 101.0
    solo(stop(2, 4))
    solo.now = 102.0
    (told, _) = solo.do("ran", [ran(2, 100.0, 100.5)])
    (end_row,) = told.message.rows
    assert (end_row.ended_age, end_row.delivered_age) == (1.0, 1.0)


def test_a_row_is_no_longer_than_there_is_room() -> None:
    """Ends that the broker has not taken have their entries in the table."""
    driver = Driver(IDENTITY._replace(slots=1, capacity=4))
    driver.do("start")
    driver(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000))
    driver(assign(*(row(n, n) for n in range(1, 7))))
    told = driver.do("ran", [ran(1, 100.0, 100.0)])
    assert told[1:] == [Hand([row(2, 2), row(3, 3), row(4, 4)])]
    assert driver.do("ran", [ran(n, 100.0, 100.0) for n in (2, 3, 4)])[1:] == []
    assert driver(to_worker.EndedTaken([key(1), key(2)])) == [
        Forget([key(1), key(2)]),
        Hand([row(5, 5)]),
    ]


def test_what_ran_while_the_broker_was_away_is_told_once_it_is_back(solo: Driver) -> None:
    solo.do("connection_lost")
    assert solo.do("ran", [ran(2, 100.0, 100.0)]) == []
    solo.do("connected")
    told = solo(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000))
    assert Data(from_worker.Ended([ended(1, 0.5, 0.25), ended(2, 0.0)])) in told


def test_of_several_slots_none_has_a_row(worker: Driver) -> None:
    run(worker, *(row(n, n) for n in range(1, 5)))
    assert end(worker, 1)[1:] == [Hand([row(3, 3)])]


# --- what attempts ask ----------------------------------------------------------------------------


def test_associate(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert worker.session.associate(key(1), "t", "l") == (
        1,
        [Control(from_worker.Associate(1, 1, 1, "t", "l"))],
    )
    answer = to_worker.Associated(1, None, "")
    assert worker(answer) == [Settle(1, "t", "l", None, "")]
    assert worker(answer) == []


def test_progress_is_thinned_out(worker: Driver) -> None:
    run(worker, row(1, 1))
    first = Control(from_worker.Progress([(1, 1, 1.0, None, "a")]))
    assert worker.do("report_progress", key(1), 1.0, None, "a") == [first]
    worker.now += 0.5
    assert worker.do("report_progress", key(1), 2.0, None, "b") == []
    assert worker.do("report_progress", key(1), 3.0, 9.0, "c") == []
    assert worker.session.due() == 101.0
    worker.now = 101.0
    assert worker.do("tick") == [Control(from_worker.Progress([(1, 1, 3.0, 9.0, "c")]))]
    assert worker.do("report_progress", key(2), 1.0, None, "gone") == []


def test_waits_are_told_when_they_change_and_all_again_after_a_new_registration(
    worker: Driver,
) -> None:
    """Three threads of one attempt: two wait for task 7, one for task 8; a second attempt waits for 7."""

    def did(what: str, task: int, other: int) -> list[Any]:
        return worker.tell(what, key(task), other)

    run(worker, row(1, 1), row(2, 2))
    assert did("wait_began", 1, 7) == [Control(from_worker.Waiting([(1, 1, 7)]))]
    assert did("wait_began", 1, 7) == []
    assert did("wait_began", 1, 8) == [Control(from_worker.Waiting([(1, 1, 7), (1, 1, 8)]))]
    assert did("wait_ended", 1, 7) == []
    assert did("wait_ended", 1, 7) == [Control(from_worker.Waiting([(1, 1, 8)]))]
    assert did("wait_ended", 1, 7) == []
    assert did("wait_began", 9, 7) == [], "of an attempt that has ended"
    worker.do("connection_lost")
    assert did("wait_began", 2, 7) == []
    worker.do("connected")
    again = worker(to_worker.Registered(PROTOCOL_VERSION, 3, 9, 1000))
    assert Control(from_worker.Waiting([(1, 1, 8), (2, 1, 7)])) in again
    assert did("wait_ended", 1, 8) == [Control(from_worker.Waiting([(1, 1, 0)]))]
    worker.do("ended", key(2), Outcome.COMPLETED, "", b"")
    assert did("wait_ended", 2, 7) == []


def test_lingering_is_told_when_it_changes(worker: Driver) -> None:
    run(worker, row(1, 1))
    told = Control(from_worker.Lingering(1, 1, "thread"))
    assert worker.session.linger(key(1), "thread") == [told]
    assert worker.session.linger(key(1), "thread") == []
    assert worker.session.linger(key(2), "thread") == []


def more_time(effects: list[Any]) -> list[from_worker.ExtendGrace]:
    """What is asked for in these."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Control) and isinstance(effect.message, from_worker.ExtendGrace)
    ]


def test_stacks(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert worker(to_worker.StacksWanted(3, [(1, 1)])) == [Look(3, [(1, 1)])]


def test_more_time_is_asked_for_in_all(worker: Driver) -> None:
    run(worker, row(1, 1))
    worker(stop(1, 1))
    said = Control(from_worker.ExtendGrace(1, 1, 5.0))
    assert worker.tell("extend_grace", key(1), 5.0) == [said]
    said = Control(from_worker.ExtendGrace(1, 1, 7.0))
    assert worker.tell("extend_grace", key(1), 2.0) == [said]
    worker.do("ended", key(1), Outcome.COMPLETED, "", b"")
    assert worker.tell("extend_grace", key(1), 2.0) == []


def test_who_is_not_asked_to_stop_has_no_time_to_ask_for(worker: Driver) -> None:
    run(worker, row(1, 1))
    assert worker.tell("extend_grace", key(1), 5.0) == []
    assert more_time(worker(stop(1, 1))) == []
    worker.do("connected")
    assert more_time(worker(to_worker.Registered(PROTOCOL_VERSION, 4, 9, 1000))) == []


def test_the_flag_is_a_request_to_stop_as_well(worker: Driver) -> None:
    run(worker, row(1, 1))
    worker.do("observed", key(1))
    assert more_time(worker.tell("extend_grace", key(1), 5.0)) == [(1, 1, 5.0)]


def test_more_time_that_was_asked_for_without_a_broker_is_said_to_the_next(worker: Driver) -> None:
    """And what one that died may have heard, and may not have: in all it is the same."""
    run(worker, row(1, 1), row(2, 2))
    worker(stop(1, 1))
    worker(stop(2, 2))
    worker.tell("extend_grace", key(1), 5.0)
    worker.do("connection_lost")
    assert worker.tell("extend_grace", key(1), 2.0) == []
    assert worker.tell("extend_grace", key(2), 1.0) == []
    worker.do("connected")
    again = worker(to_worker.Registered(PROTOCOL_VERSION, 4, 9, 1000))
    assert more_time(again) == [(1, 1, 7.0), (2, 1, 1.0)]


def test_more_time_that_was_asked_of_the_pool_is_asked_of_the_broker_too(worker: Driver) -> None:
    """For half of its lease the pool had no word of the broker; now a stop comes."""
    run(worker, row(1, 1))
    worker.tell("lease_half_over", "alone", worker.now)
    worker.tell("extend_grace", key(1), 5.0)
    assert more_time(worker(stop(1, 1))) == [(1, 1, 5.0)]


# --- the end --------------------------------------------------------------------------------------


def test_an_idle_worker_quits_at_once(worker: Driver) -> None:
    assert worker(to_worker.Exit(3)) == [Quit(0, "the pool is going")]


def test_exit_waits_for_what_runs_and_its_ends(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2), row(3, 3))
    end(worker, 1)
    begin(worker, 3)
    assert worker(to_worker.Exit(3)) == []
    assert end(worker, 2) == [Data(from_worker.Ended([ended(2, 0.0)]))]
    assert worker(to_worker.EndedTaken([key(1), key(2)])) == [Forget([key(1), key(2)])]
    assert end(worker, 3) == [Data(from_worker.Ended([ended(3, 0.0)]))]
    assert worker(to_worker.EndedTaken([key(3)])) == [
        Forget([key(3)]),
        Quit(0, "the pool is going"),
    ]


def test_exit_begins_nothing(worker: Driver) -> None:
    worker(assign(row(1, 1)))
    worker(to_worker.Exit(3))
    assert worker(assign(row(2, 2))) == []


def test_exit_does_not_wait_for_ever_for_a_broker(worker: Driver) -> None:
    run(worker, row(1, 1))
    end(worker, 1)
    worker.do("connection_lost")
    assert worker(to_worker.Exit(3)) == []
    assert worker.session.due() == 105.0
    worker.now = 105.0
    assert worker.do("tick") == [Quit(0, "the pool is going")]


def test_exit_asking(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2))
    worker(stop(2, 2))
    assert worker.do("exit_asking", "bye") == [AskToStop(*key(1), "bye")]


# --- the lease of the pool ------------------------------------------------------------------------


def lease_ended(task: int, age: float = 0.0, **changes: Any) -> EndedRow:
    """It was asked by its pool, `age` ago, when it had begun."""
    row = ended(task, age, 0.0, delivered=age)
    return row._replace(text=f"{LEASE_OVER}why\ntext", **changes)


def test_half_a_lease_asks_what_runs(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2))
    worker(stop(2, 2))
    assert worker.do("lease_half_over", "why") == [AskToStop(*key(1), "why")]
    assert worker.do("lease_half_over", "why") == []
    worker.now += 2
    assert worker.do("observed", key(1)) == []
    told = lease_ended(1, 2.0, observed_age=0.0)
    assert end(worker, 1) == [Data(from_worker.Ended([told]))]
    # Who was asked by the broker before ends as ever.
    assert end(worker, 2) == [Data(from_worker.Ended([ended(2, 2.0, 0.0, 2.0)]))]


def test_the_end_says_that_it_was_the_lease_whatever_it_came_to(worker: Driver) -> None:
    run(worker, row(1, 1))
    worker.do("lease_half_over", "why")
    (effect,) = worker.do("ended", key(1), Outcome.CANCELLED, "", b"")
    assert (effect.message.rows[0].outcome, effect.message.rows[0].text) == (
        "cancelled",
        f"{LEASE_OVER}why",
    )


def test_the_flag_may_tell_of_the_lease_before_the_session_knows(worker: Driver) -> None:
    run(worker, row(1, 1))
    worker.do("observed", key(1))
    worker.now += 1
    assert worker.do("lease_half_over", "why") == [AskToStop(*key(1), "why")]
    assert end(worker, 1) == [Data(from_worker.Ended([lease_ended(1, 1.0, observed_age=1.0)]))]


@pytest.mark.parametrize("observed", [False, True])
def test_a_stop_that_follows_is_acknowledged_as_any_other(worker: Driver, observed: bool) -> None:
    run(worker, row(1, 1))
    worker.do("lease_half_over", "why")
    if observed:
        worker.do("observed", key(1))
    worker.now += 5
    knows = 0.0 if observed else None
    assert worker(stop(1, 1)) == [AskToStop(*key(1), "r"), seen(1, "running", 0.0, knows)]
    assert worker.do("lease_half_over", "again") == []
    worker.now += 1
    if not observed:
        assert worker.do("observed", key(1)) == [seen(1, "running", 1.0, 0.0)]
    told = ended(1, 6.0, 0.0, 1.0, 1.0 if observed else 0.0)
    assert end(worker, 1) == [Data(from_worker.Ended([told]))]


def test_force_and_the_end_of_the_pool_count_for_more_than_the_lease(worker: Driver) -> None:
    run(worker, row(1, 1), row(2, 2))
    worker.do("lease_half_over", "why")
    assert worker(to_worker.Force(3, 1, 1))[:2] == [AskToStop(*key(1), ""), ForceAttempt(*key(1))]
    assert worker.do("exit_asking", "bye") == [AskToStop(*key(2), "bye")]
    for task in (1, 2):
        assert end(worker, task)[0] == Data(from_worker.Ended([ended(task, 0.0, 0.0, 0.0)]))


@WAYS
def test_nothing_begins_until_the_lease_is_back(
    worker: Driver, way: Callable[[Driver, float], None]
) -> None:
    way(worker, 0.0)
    begin(worker, 2)
    assert worker.do("lease_half_over", "why") == [Withdraw([key(1)]), AskToStop(*key(2), "why")]
    assert list(worker.session.received) == [key(1), key(3)]
    assert end(worker, 2) == [Data(from_worker.Ended([lease_ended(2)]))]
    assert worker(assign(row(4, 4))) == []
    assert worker.do("tick") == []
    assert worker.do("lease_is_back") == [Hand([row(1, 1), row(3, 3)])]
    begin(worker, 1, 3)
    assert end(worker, 1)[0] == Data(from_worker.Ended([ended(1, 0.0)]))


def test_what_was_taken_back_can_be_stopped(worker: Driver) -> None:
    handed(worker, 0.0)
    worker.do("lease_half_over", "why")
    assert worker(stop(1, 3)) == [
        seen(1, "never-began"),
        Data(from_worker.Ended([never_ran(1)])),
    ]
    assert worker.do("lease_is_back") == [Hand([row(2, 2), row(3, 3)])]


def test_what_loads_while_the_lease_is_over_is_not_put_off(worker: Driver) -> None:
    handed(worker, 0.0)
    worker.do("load", key(1))
    assert worker.do("lease_half_over", "why") == [
        Withdraw([key(2)]),
        AskToStop(*key(1), "why"),
    ]
    assert worker.session.put_off(key(1)) == []
    assert end(worker, 1) == [Data(from_worker.Ended([lease_ended(1)]))]


def test_what_was_asked_stays_asked_when_the_lease_is_back(worker: Driver) -> None:
    run(worker, row(1, 1))
    worker.do("lease_half_over", "why")
    assert worker.do("lease_is_back") == []
    run(worker, row(2, 2))
    assert worker.do("lease_half_over", "again") == [AskToStop(*key(2), "again")]
    assert end(worker, 1) == [Data(from_worker.Ended([lease_ended(1)]))]


def test_an_exiting_worker_begins_nothing_when_the_lease_is_back(worker: Driver) -> None:
    handed(worker, 0.0)
    begin(worker, 1)
    worker(to_worker.Exit(3))
    assert worker.do("lease_half_over", "why") == [AskToStop(*key(1), "why")]
    assert worker.do("lease_is_back") == []
