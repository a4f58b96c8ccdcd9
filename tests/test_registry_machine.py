"""The machine itself: frozen and thawed, replayed, checked, and the collections that it is made of."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from quiesce.registry import effects, events
from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.index import ScopeIndex
from quiesce.registry.invariants import check
from quiesce.registry.limits import KindLimits
from quiesce.registry.machine import Registry
from quiesce.registry.moving import RegistryFault
from quiesce.registry.queue import Lane, RuntimeQueue
from quiesce.registry.records import Blob, Closure, Task, stopped_row
from quiesce.registry.scope import Scope
from quiesce.registry.states import State as TaskState
from quiesce.registry.timers import Timers
from registry_helpers import Desk, ended_row, session_id, spawn_row

X = {"tenant_id": "x"}
A = session_id("A")


def busy() -> Desk:
    """Something of everything: a desk in the middle of its work.

    Task 1 is forced, 2 runs and holds up a parked spawn, 3 is queued, 4 is an orphan, 5 has ended; one stop
    is open, one is a block, one has timed out, one is kept.
    """
    desk = Desk()
    desk.session()
    desk.session("B")
    solo = desk.worker("solo")
    worker = desk.worker()
    desk.running(worker, X, {"unique_key": "k", "tenant_id": "u"})
    desk.spawn({"runtime": "solo", "kind": "flush"}, {"runtime": "solo", "tenant_id": "q"})
    desk.begin(solo, 3)
    desk.running(worker, {})
    desk.end(worker, 5, result=b"five")
    desk.stop(task_id=2)
    desk.spawn({"unique_key": "k", "tenant_id": "u"})
    desk.stop(**X, grace=1.0)
    desk.stop("B", **X, timeout=0.5)
    desk.seen(worker, 1)
    desk.stop(tenant_id="b", hold=True)
    desk.stop(tenant_id="c", keep_closed=True)
    desk.wait(1.0)
    desk.exit(solo, -9, {3: "completed"})
    desk.say(events.ProgressSaid(worker, [(1, 1, 3.0, 4.0, "half")]))
    return desk


# --- frozen ---------------------------------------------------------------------------------------


def plain(frozen: object) -> bool:
    if isinstance(frozen, tuple):
        return all(map(plain, frozen))
    return frozen is None or isinstance(frozen, int | str | bytes | float)


def test_frozen_it_is_plain_and_hashable() -> None:
    frozen = busy().registry.freeze()
    assert plain(frozen)
    assert hash(frozen) == hash(busy().registry.freeze())
    assert frozen == busy().registry.freeze()


def test_thawed_it_is_the_same() -> None:
    desk = busy()
    thawed = Registry.thaw(desk.registry.freeze(), **desk.configuration)
    assert thawed.freeze() == desk.registry.freeze()
    check(thawed)
    assert thawed.next_deadline() == desk.registry.next_deadline()


def test_thawed_it_shares_nothing_with_the_first() -> None:
    desk = busy()
    frozen = desk.registry.freeze()
    thawed = Registry.thaw(frozen, **desk.configuration)
    desk.stop()
    desk.wait(100.0)
    assert thawed.freeze() == frozen
    assert desk.registry.freeze() != frozen


def test_payloads_that_are_not_bytes_are_kept_as_their_length() -> None:
    """Also those that wait to be registered, and results."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"function": Blob(5), "arguments": bytearray(7), "unique_key": "k"})
    desk.stop(task_id=1)
    desk.spawn({"arguments": Blob(9), "unique_key": "k"})
    assert plain(desk.registry.freeze())
    desk.thorough = False  # a Blob thaws to another Blob, and those are not compared
    thawed = Registry.thaw(desk.registry.freeze(), **desk.configuration)
    task = thawed.state.tasks[TaskId(1)]
    assert [len(task.spawn.function), len(task.spawn.arguments)] == [5, 7]
    assert len(next(iter(task.parked.values())).arguments) == 9
    thawed.handle(events.TasksEnded(worker, [ended_row(1, result=Blob(11))]), desk.now)
    again = Registry.thaw(thawed.freeze(), **desk.configuration)
    assert len(again.state.sessions[A].results[TaskId(1)].result) == 11
    assert again.freeze() == thawed.freeze()


@pytest.mark.parametrize(
    "change",
    [
        lambda desk: desk.registry.timers.set(("word", 2), 999.0),
        lambda desk: setattr(desk.task(1), "last_check_at", 1.0),
        lambda desk: setattr(desk.task(1), "progress", (1.0, None, "")),
        lambda desk: setattr(desk.task(1), "waits_on", (2,)),
        lambda desk: setattr(desk.registry.state.stops[1], "asked_by", (1, 1)),
        lambda desk: setattr(desk.registry.state.stops[1], "cycle_told", True),
        lambda desk: setattr(desk.task(1).ask, "forced", 3),
        lambda desk: setattr(desk.task(1).ask, "killed", True),
        lambda desk: setattr(desk.task(1).ask, "heard", 99.0),
        lambda desk: setattr(desk.registry.state.workers[4], "attached", False),
        lambda desk: setattr(desk.registry.state.workers[4], "arrived", 1),
        lambda desk: setattr(desk.registry.state.workers[4], "cpu_seconds", 1.0),
        lambda desk: setattr(desk.registry.state.sessions[A], "last_heard", 1.0),
        lambda desk: setattr(desk.registry.state, "leaving", True),
        lambda desk: setattr(desk.registry.state, "certain_at", 5.0),
        lambda desk: setattr(desk.registry.state, "full", True),
        lambda desk: setattr(desk.registry.system, "phase", 2),
    ],
)
def test_what_is_volatile_is_frozen_apart(change: Callable[[Desk], None]) -> None:
    desk = busy()
    whole, lasting = desk.registry.freeze(), desk.registry.freeze(volatile=False)
    change(desk)
    assert desk.registry.freeze() != whole
    assert desk.registry.freeze(volatile=False) == lasting


def test_a_replay_leads_to_the_same() -> None:
    """Every desk looks after every event; here a whole story at once, into a fresh registry."""
    desk = busy()
    told = []
    for event in (events.SystemStopAsked("SIGTERM"), events.SystemStopAsked("again")):
        desk.say(event)
        told += desk.facts
    assert desk.replayed.freeze(volatile=False) == desk.registry.freeze(volatile=False)
    assert desk.replayed.state.stopping
    assert told


# --- checked --------------------------------------------------------------------------------------


def state(desk: Desk) -> Any:
    return desk.registry.state


def drop_queued(desk: Desk) -> None:
    state(desk).queues["solo"].remove(4, "q", "gc")


def assign_twice(desk: Desk) -> None:
    state(desk).workers[4].tasks[TaskId(4)] = None


def close(desk: Desk, holder: str, scope: Scope, *, listed: bool) -> None:
    closure = Closure(scope, "", 0.0, keep=False, caller=None)
    closure.holder = holder
    state(desk).closures[StopId(99)] = closure
    if listed:
        state(desk).closed[scope] = {StopId(99)}


def wait_for_the_ended(desk: Desk) -> None:
    state(desk).wait_for(TaskId(1), StopId(3))


def report_twice(desk: Desk) -> None:
    rows = state(desk).stops[2].rows
    rows.extend([stopped_row(desk.task(4), "completed", "RETURNED", None, 1.0)] * 2)


DAMAGE: list[tuple[str, Callable[[Desk], object]]] = [
    ("no live task has ended", lambda desk: setattr(desk.task(1), "state", TaskState.ENDED)),
    ("a task stands under its id", lambda desk: setattr(desk.task(1), "id", 7)),
    ("the index holds", lambda desk: state(desk).index.remove(desk.task(1))),
    ("unique keys name", lambda desk: state(desk).unique.clear()),
    ("a task is held iff it has a worker", lambda desk: setattr(desk.task(1), "worker", 0)),
    ("only a running task has begun", lambda desk: setattr(desk.task(1), "started_at", None)),
    ("that a stop waits for is asked", lambda desk: setattr(desk.task(1), "ask", None)),
    ("retries are used up", lambda desk: setattr(desk.task(1), "retries", 9)),
    ("a session watches once", lambda desk: setattr(desk.task(1), "watchers", (A, A))),
    ("the times of a request", lambda desk: setattr(desk.task(1).ask, "delivered_at", 0.0)),
    ("queue 'solo' holds", drop_queued),
    ("counted by kind", lambda desk: state(desk).held_kind.clear()),
    ("counted by kind and tenant", lambda desk: state(desk).held_tenant.clear()),
    ("live or has ended", lambda desk: setattr(state(desk), "spawned_total", 0)),
    ("by runtime and kind", lambda desk: state(desk).live_total.clear()),
    ("pool 'pool' is all", lambda desk: state(desk).pool["pool"].clear()),
    ("assignments of worker 4", assign_twice),
    ("is registered once", lambda desk: setattr(state(desk), "last_incarnation", 0)),
    ("dead worker holds are orphans", lambda desk: state(desk).workers[2].orphans.clear()),
    (
        "the supervisor of worker 4",
        lambda desk: state(desk).supervisors[b"pool1..."].workers.clear(),
    ),
    ("requests of session", lambda desk: state(desk).sessions[A].requests.clear()),
    ("reports of session", lambda desk: state(desk).sessions[A].reports.clear()),
    ("each block belongs", lambda desk: state(desk).sessions[A].blocks.clear()),
    ("results of ended tasks only", lambda desk: state(desk).sessions[A].results.update({1: None})),
    ("their parked spawns", lambda desk: state(desk).sessions[A].parked.clear()),
    ("parked spawns are counted", lambda desk: state(desk).parked.in_runtime.clear()),
    ("holders have", lambda desk: state(desk).parked.holders.clear()),
    ("reports of session", lambda desk: setattr(state(desk).stops[1], "open", False)),
    ("stops that wait are open", wait_for_the_ended),
    ("waits for all and only", lambda desk: state(desk).waited.clear()),
    ("reports each end once", report_twice),
    ("closes its scope iff", lambda desk: state(desk).closures.pop(2)),
    ("closed scopes are those", lambda desk: state(desk).closed.clear()),
    ("what has timed out is known", lambda desk: state(desk).timed_out.clear()),
    ("closure of .kind=x.", lambda desk: close(desk, "stop", Scope("x"), listed=True)),
    ("closed scopes are those", lambda desk: close(desk, "kept", Scope("x"), listed=False)),
    (
        "a live task in it is not asked",
        lambda desk: close(desk, "kept", Scope(tenant_id="q"), listed=True),
    ),
    ("everything that waits", lambda desk: desk.registry.timers.clear(("resend", 2))),
    ("everything that waits", lambda desk: desk.registry.timers.clear(("force", 1))),
    ("everything that waits", lambda desk: desk.registry.timers.clear(("late", 3))),
    ("everything that waits", lambda desk: desk.registry.timers.clear(("session", A))),
    ("everything that waits", lambda desk: desk.registry.timers.clear(("word", 2))),
    ("every timer has something", lambda desk: desk.registry.timers.set(("resend", 4), 9.0)),
    ("every timer has something", lambda desk: desk.registry.timers.set(("force", 4), 9.0)),
    ("a phase iff it has begun", lambda desk: setattr(desk.registry.system, "phase", 0)),
    ("pending stops are nobody's", lambda desk: desk.registry.system.pending.add(2)),
    ("over at its end only", lambda desk: setattr(desk.registry.system, "over", True)),
    ("the pools leave only in it", lambda desk: setattr(state(desk), "leaving", True)),
]


@pytest.mark.parametrize(("what", "damage"), DAMAGE)
def test_the_checker_sees_damage(what: str, damage: Callable[[Desk], object]) -> None:
    desk = busy()
    desk.registry.check()
    damage(desk)
    with pytest.raises(RegistryFault, match=what):
        check(desk.registry)


def test_the_checker_tells_the_story() -> None:
    desk = busy()
    desk.task(1).ask = None
    with pytest.raises(RegistryFault) as caught:
        check(desk.registry)
    assert str(caught.value) == (
        "a held task that a stop waits for is asked: task 1.1 (gc 't' of tenant 'x', timeline None), "
        "running, worker 4, assignment 1, asked to stop: False"
    )


def test_a_free_slot_beside_a_waiting_task_is_a_fault() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker("solo")
    desk.running(worker, {"runtime": "solo"})
    desk.spawn({"runtime": "solo"})
    state(desk).workers[worker].slots = 2
    with pytest.raises(RegistryFault, match="nothing that may run waits beside a free slot"):
        check(desk.registry)


def test_a_stop_that_is_complete_but_open_is_a_fault() -> None:
    desk = Desk()
    desk.session()
    desk.stop(**X, last_spawn=1)
    state(desk).sessions[A].spawned = 1
    with pytest.raises(RegistryFault, match="a stop that is complete has ended"):
        check(desk.registry)


# --- timers ---------------------------------------------------------------------------------------


def test_timers_come_in_their_order_each_once() -> None:
    timers = Timers()
    timers.set(("resend", 1), 3.0)
    timers.set(("resend", 2), 1.0)
    timers.set(("resend", 1), 2.0)
    timers.set(("resend", 3), 5.0)
    timers.clear(("resend", 3))
    assert timers.next() == 1.0
    assert timers.pop(0.5) is None
    assert [timers.pop(9.0), timers.pop(9.0), timers.pop(9.0)] == [
        (("resend", 2), 1.0),
        (("resend", 1), 2.0),
        None,
    ]


def test_a_timer_that_is_moved_away_and_back_comes_once() -> None:
    timers = Timers()
    for tick in (1.0, 2.0, 1.0):
        timers.set(("resend", 1), tick)
    assert timers.pop(5.0) == (("resend", 1), 1.0)
    assert timers.pop(5.0) is None


def test_what_is_due_at_the_end_of_time_is_not_due() -> None:
    timers = Timers()
    timers.set(("stop", 1), 5.0)
    timers.set(("stop", 1), math.inf)
    assert timers.next() is None
    assert timers.items() == []


def test_moving_timers_often_costs_no_memory() -> None:
    timers = Timers()
    for tick in range(10_000):
        timers.set(("resend", tick % 10), float(tick))
    assert len(timers._heap) < 200
    assert [due[1] for due, _ in timers.items()] == list(range(10))


# --- the queue and the index ----------------------------------------------------------------------


def test_a_lane_gives_the_lowest_and_lets_go_from_everywhere() -> None:
    lane = Lane()
    for task in (5, 3, 8, 1, 9):
        lane.push(TaskId(task))
    order = []
    for leaves in (8, 1, 3, 5):
        order.append(lane.first())
        lane.remove(TaskId(leaves))
    assert [*order, lane.first()] == [1, 1, 3, 5, 9]


def test_a_lane_forgets_those_that_have_left_it() -> None:
    lane = Lane()
    for task in range(1, 1001):
        lane.push(TaskId(task))
    for task in range(2, 1000):
        lane.remove(TaskId(task))
    assert lane.members == {1, 1000}
    assert len(lane.line) + len(lane.back) <= 65


def test_an_empty_tenant_has_no_turn() -> None:
    queue = RuntimeQueue()
    queue.push(TaskId(1), "x", "gc")
    queue.push(TaskId(2), None, "gc")
    assert queue.turns() == ("x", None)
    queue.take(TaskId(1), "x", "gc")
    assert queue.turns() == (None,)
    assert queue.peek(lambda kind: True, lambda tenant, kind: True) == 2
    assert queue.peek(lambda kind: True, lambda tenant, kind: False) is None
    assert queue.peek(lambda kind: False, lambda tenant, kind: True) is None
    assert len(queue) == 1


def test_the_index_finds_what_matches() -> None:
    index = ScopeIndex()
    tasks = {}
    labels = [
        (kind, tenant, line, runtime)
        for kind in ("gc", "flush")
        for tenant in ("x", "y", None)
        for line in ("l", None)
        for runtime in ("pool", "solo")
    ]
    for number, (kind, tenant, line, runtime) in enumerate(labels, 1):
        row = spawn_row(1, kind=kind, tenant_id=tenant, timeline_id=line, runtime=runtime)
        tasks[TaskId(number)] = Task(TaskId(number), row, 0.0)
        index.add(tasks[TaskId(number)])
    named = itertools.product(
        (None, "gc", "none"), (None, "x", "none"), (None, "l", "none"), (None, "pool", "none")
    )
    for scope in itertools.starmap(Scope, named):
        expected = [number for number, each in enumerate(labels, 1) if scope.matches(*each)]
        assert sorted(index.find(scope, tasks)) == expected, scope
    for task in tasks.values():
        index.remove(task)
    assert index.as_dict() == {}


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (Scope(), Scope(), True),
        (Scope(), Scope("gc", "x", "l", "pool"), True),
        (Scope("gc"), Scope("gc", "x"), True),
        (Scope("gc", "x"), Scope("gc"), False),
        (Scope("gc"), Scope("flush"), False),
        (Scope(tenant_id="x"), Scope("gc"), False),
    ],
)
def test_a_scope_covers_all_that_another_can_match(
    wide: Scope, narrow: Scope, covers: bool
) -> None:
    assert wide.covers(narrow) is covers


@pytest.mark.parametrize(
    "left", [[], range(500), range(500, 1000), range(0, 1000, 2), range(7, 1000)]
)
def test_many_leave_a_lane_at_once(left: Iterable[int]) -> None:
    """The lowest that stays is first; those that were not there stay what they were."""
    lane = Lane()
    for number in range(1000):
        lane.push(TaskId(number))
    going = {TaskId(number) for number in range(2000)} - set(left)
    assert lane.remove_many(going) == set(range(1000)) - set(left)
    assert going == set(range(1000, 2000))
    assert lane.members == set(left)
    assert [lane.first() for _ in lane.members][:1] == list(left)[:1]


@pytest.mark.parametrize("stops", [{"kind": "gc"}, {"timeline_id": "one"}, {"tenant_id": "t3"}])
def test_a_stop_takes_its_tasks_out_of_whatever_lanes(stops: dict[str, str]) -> None:
    """All of each, one of each long one, one lane of many."""
    desk = Desk()
    desk.thorough = False
    desk.session()
    for tenant in range(12):
        rows = [{"tenant_id": f"t{tenant}", "timeline_id": "other"} for _ in range(50)]
        desk.spawn(*rows, {"tenant_id": f"t{tenant}", "timeline_id": "one"})
    matched = desk.registry.state.index.find(Scope(**stops), desk.registry.state.tasks)
    desk.stop(**stops)
    if desk.again:
        desk.go_on()
    check(desk.registry)
    desk.compare_replay()
    assert {row[0] for row in desk.ends()} == matched


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A held task, and five queued ones frozen ahead in slices of two; the second of these holds a unique key."""
    monkeypatch.setattr("quiesce.registry.ahead.SLICE", 2)
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 1)
    desk = Desk()
    desk.thorough = False
    desk.session()
    desk.session("B")
    desk.running(desk.worker("solo"), {"runtime": "solo"})
    desk.spawn(*[{"runtime": "solo", "unique_key": key} for key in (None, "k", None, None, None)])
    frozen = [desk.registry.ahead.go_on() for _ in range(4)]
    assert frozen == [False, False, False, True]
    return desk


@pytest.mark.parametrize(
    "change",
    [
        lambda desk: desk.spawn({"runtime": "solo", "unique_key": "k"}, session="B"),
        lambda desk: desk.end(2, 1),
        lambda desk: (desk.stop(runtime="solo"), desk.spawn({"unique_key": "k"})),
        lambda desk: desk.spawn({"runtime": "solo"}),
    ],
    ids=["joined", "assigned", "parked behind", "new"],
)
def test_what_changes_after_it_was_frozen_ahead_is_frozen_again(
    ahead: Desk, change: Callable[[Desk], object]
) -> None:
    before = ahead.registry.freeze(volatile=False, payloads=True)
    change(ahead)
    whole = ahead.registry.freeze(volatile=False, payloads=True)
    assert whole[1] != before[1]
    assert ahead.registry.snapshot() == whole
    assert not ahead.registry.ahead.begun


@pytest.mark.parametrize(
    ("come", "turns"),
    [([0, 3], 6), ([0, 1], 4), ([2] * 9, 4)],
    ids=["frozen, too", "few enough to be left", "as fast as they are frozen"],
)
def test_those_that_come_while_others_are_frozen_ahead(
    monkeypatch: pytest.MonkeyPatch, come: list[int], turns: int
) -> None:
    monkeypatch.setattr("quiesce.registry.ahead.SLICE", 2)
    desk = Desk()
    desk.thorough = False
    desk.session()
    desk.spawn(*[{"runtime": "solo"}] * 6)
    taken = 1
    for many in itertools.chain(come, itertools.repeat(0)):
        if desk.registry.ahead.go_on():
            break
        if many:
            desk.spawn(*[{"runtime": "solo"}] * many)
        taken += 1
    assert taken == turns
    assert desk.registry.snapshot() == desk.registry.freeze(volatile=False, payloads=True)


def test_a_snapshot_of_an_older_journal_is_read() -> None:
    """In it, the progress of an ended task stands beside the rest."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, X)
    desk.end(worker, 1)
    state, tasks, queues, workers, supervisors, gone, sessions, stops, closures, *rest = (
        desk.registry.freeze(volatile=False, payloads=True)
    )
    history, *others = rest
    older = tuple((tuple(row[:-1]), None) for row in history)
    sections = (state, tasks, queues, workers, supervisors, gone, sessions, stops, closures)
    thawed = Registry.thaw((*sections, older, *others), **desk.configuration)
    assert len(history) == 1
    assert thawed.freeze(volatile=False, payloads=True)[9] == history
    assert thawed.state.history[TaskId(1)].outcome == "completed"


def test_limits_are_checked() -> None:
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="stop_grace of kind 'gc' must be 0 or more"):
            KindLimits(name="gc", stop_grace=wrong)
    assert KindLimits(name="gc", stop_grace=math.inf).stop_grace == math.inf


def test_what_is_hasty_does_not_wait_for_the_journal() -> None:
    """A stalled disk holds up no request to stop; but nothing is promised before it is written."""
    hasty = {kind.__name__ for kind in effects.HASTY}
    asking = {"AskStops", "RaiseFlags", "ForceTask", "KillWorker"}
    assert hasty == {*asking, "GrantLease", "Log", "StillWaiting", "Again"}
    assert effects.HASTY.isdisjoint(effects.BINDING)
