"""Tasks that wait for others, the cycles that come of it, and the history of stops."""

import pytest

from quiesce.registry import cycles, effects, events, facts, views
from quiesce.registry.cycles import cycle_of
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.limits import RuntimeLimits
from quiesce.registry.machine import Registry
from quiesce.registry.records import Task
from quiesce.registry.rows import EndedStopRow
from quiesce.registry.scope import Scope
from quiesce.registry.state import State
from quiesce.registry.waiting import waiting_for
from registry_helpers import WALL, Desk, session_id

X = {"tenant_id": "x"}
Y = {"tenant_id": "y"}


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    return desk


def waits(desk: Desk, worker: int, *rows: tuple[int, int]) -> None:
    """The worker says what the first attempts of these tasks wait for: (task, other)."""
    said = [(task, 1, other) for task, other in rows]
    desk.say(events.WaitsSaid(Incarnation(worker), said))
    desk.expect_nothing()


def words(desk: Desk, task_id: int) -> str:
    return waiting_for(desk.registry.state, desk.task(task_id))


def cycle(desk: Desk, task_id: int) -> list[int]:
    return [task.id for task in cycle_of(desk.registry.state, desk.task(task_id))]


# --- waits ----------------------------------------------------------------------------------------


def test_a_wait_for_a_task_is_shown_until_it_is_over(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"name": "a"}, {"name": "b"}, {"name": "c"})
    assert words(desk, 1) == ""
    waits(desk, worker, (1, 2))
    assert words(desk, 1) == "the end of task 2 'b'"
    waits(desk, worker, (1, 2), (1, 3))
    assert words(desk, 1) == "the ends of tasks 2 'b', 3 'c'"
    desk.end(worker, 2)
    assert words(desk, 1) == "the end of task 3 'c'"
    waits(desk, worker, (1, 0))
    assert words(desk, 1) == ""
    assert desk.task(1).waits_on == ()


def test_of_many_tasks_a_few_are_named(desk: Desk) -> None:
    worker = desk.worker(slots=10)
    desk.running(worker, *[{"name": "n"}] * 8)
    waits(desk, worker, *((1, other) for other in range(2, 9)))
    assert words(desk, 1) == "the ends of tasks 2 'n', 3 'n', 4 'n', 5 'n', 6 'n' and 2 more"


def test_a_wait_ends_with_its_attempt(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1}, {})
    waits(desk, worker, (1, 2))
    desk.end(worker, 1, outcome="failed")
    assert desk.task(1).waits_on == ()
    waits(desk, worker, (1, 2))  # of the attempt before
    assert desk.task(1).waits_on == ()


def test_a_task_that_is_asked_says_for_whom_it_waits_too(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, {"name": "b"})
    waits(desk, worker, (1, 2))
    desk.stop(**X)
    desk.seen(worker, 1, observed_age=0.0)
    assert words(desk, 1) == (
        "the task, to end: it has seen the request; it waits for the end of task 2 'b'"
    )


def test_a_task_waits_in_the_stop_that_it_has_asked_for(desk: Desk) -> None:
    worker = desk.worker(slots=5)
    desk.running(worker, {}, X, X)
    desk.stop(**X, caller=(1, 1))
    assert words(desk, 1) == "stop 1 of [tenant_id=x]: 2 tasks"
    desk.obey(worker, 2)
    assert words(desk, 1) == "stop 1 of [tenant_id=x]: 1 task"
    desk.obey(worker, 3)
    assert words(desk, 1) == ""
    desk.stop(**X, caller=(1, 1), last_spawn=99)
    assert words(desk, 1) == "stop 2 of [tenant_id=x]: spawns that came before it"


def test_a_stop_of_an_attempt_that_is_gone_is_nobodys(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1}, X)
    desk.stop(**X, caller=(1, 1))
    desk.end(worker, 1, outcome="failed")
    desk.begin(worker, 1)
    assert words(desk, 1) == ""
    desk.stop(**X, caller=(1, 1))  # late
    assert words(desk, 1) == ""


def test_a_caller_that_is_asked_itself_waits_no_more(desk: Desk) -> None:
    """Its call ends with ShutdownRequested; the stop goes on."""
    worker = desk.worker()
    desk.running(worker, Y, X)
    desk.stop(**X, caller=(1, 1))
    desk.stop(**Y)
    assert "stop" not in words(desk, 1).replace("to stop", "")


# --- cycles ---------------------------------------------------------------------------------------


def test_tasks_that_wait_for_each_other_are_named_in_a_cycle(desk: Desk) -> None:
    worker = desk.worker(slots=5)
    desk.running(worker, *[{"name": name} for name in "abcde"])
    waits(desk, worker, (1, 2), (2, 3), (3, 1), (3, 4), (5, 1))
    assert [cycle(desk, task) for task in (1, 2, 3)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2]]
    assert cycle(desk, 4) == cycle(desk, 5) == []
    assert words(desk, 2) == (
        "a cycle of waits: task 2 'b' waits for 3 'c' waits for 1 'a' waits for 2 'b'"
    )
    assert words(desk, 5) == "the end of task 1 'a'"
    waits(desk, worker, (1, 2), (1, 3))
    assert cycle(desk, 1) == [1, 3], "the shortest"
    waits(desk, worker, (1, 0))
    assert cycle(desk, 2) == []


def test_a_task_that_waits_for_itself_is_a_cycle(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"name": "a"})
    waits(desk, worker, (1, 1))
    assert words(desk, 1) == "a cycle of waits: task 1 'a' waits for 1 'a'"


def test_a_stop_is_part_of_a_cycle_and_that_is_said_once(desk: Desk) -> None:
    """Task 1 stops the scope of 2 and 3, and 2, which does not heed the request, waits for 1."""
    worker = desk.worker(slots=5)
    desk.running(worker, {"name": "a"}, {**X, "name": "b"}, X)
    waits(desk, worker, (2, 1))
    desk.stop(**X, caller=(1, 1), grace=float("inf"))
    desk.seen(worker, 2)
    desk.seen(worker, 3)
    assert cycle(desk, 1) == [1, 2]
    assert cycle(desk, 3) == []
    assert words(desk, 1) == "a cycle of waits: task 1 'a' waits for 2 'b' waits for 1 'a'"
    assert words(desk, 2).endswith(
        "it waits for a cycle of waits: task 2 'b' waits for 1 'a' waits for 2 'b'"
    )
    desk.wait(1.0)
    said = "a cycle of waits: task 2 'b' waits for 1 'a' waits for 2 'b'"
    warning = effects.Log("WARNING", f"stop 1 of [tenant_id=x] is held up by {said}")
    assert warning in desk.effects
    desk.wait(60.0)
    assert [log.level for log in desk.take(effects.Log)] == ["INFO"]


def test_a_cycle_behind_what_a_stop_waits_for_is_not_the_stops(desk: Desk) -> None:
    worker = desk.worker(slots=5)
    desk.running(worker, X, {}, {})
    waits(desk, worker, (1, 2), (2, 3), (3, 2))
    assert cycle(desk, 1) == []
    assert cycle(desk, 2) == [2, 3]


@pytest.mark.parametrize("closes", [False, True])
def test_a_long_chain_of_waits_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Of three hundred tasks each waits for the next, and the last, perhaps, for the first: more than are looked at
    for each of them.
    """
    many = 300
    desk = Desk(runtimes=[RuntimeLimits(name="pool", slots=many)])
    desk.session()
    desk.thorough = False
    worker = desk.worker(slots=many)
    desk.running(worker, *[{**X, "name": "n"}] * many)
    waits(desk, worker, *[(task, task + 1) for task in range(1, many)])
    if closes:
        waits(desk, worker, (many, 1))
    looked: list[int] = []

    def waits_of(state: State, task: Task) -> list[TaskId]:
        looked.append(task.id)
        return original(state, task)

    original = cycles.waits_of
    monkeypatch.setattr(cycles, "waits_of", waits_of)
    tasks = [desk.task(number) for number in range(1, many + 1)]
    found = [task.id for task in cycles.first_cycle(desk.registry.state, tasks)]
    if closes:
        first = found.index(TaskId(1))
        assert found[first:] + found[:first] == list(range(1, many + 1))
    else:
        assert found == []
        assert len(looked) == many


# --- what closed scopes wait for ------------------------------------------------------------------


def test_a_closed_scope_says_what_has_to_end_before_it_opens(desk: Desk) -> None:
    worker = desk.worker(slots=9)
    desk.running(worker, {**X, "name": "a"}, {**Y, "name": "b"})
    desk.seen(worker, 1)
    desk.stop(**X)
    desk.stop(**Y, timeout=5.0)
    desk.stop(tenant_id="z", hold=True)
    desk.stop(tenant_id="k", keep_closed=True)
    desk.stop(tenant_id="s", last_spawn=99)
    request = "its worker, to acknowledge the request to stop"

    def closed() -> list[tuple[str | None, str, str]]:
        rows = views.closed(desk.registry.state)
        return [(row.tenant_id, row.holder, row.waiting_for) for row in rows]

    others = [
        ("z", "block", "the end of its stopped() block"),
        ("k", "kept", ""),
        ("s", "stop", "spawns that its caller sent before it"),
    ]
    assert closed() == [
        ("x", "stop", f"1 task: 1 'a' ({request})"),
        ("y", "stop", f"1 task: 2 'b' ({request})"),
        *others,
    ]
    desk.wait(5.0)
    assert closed()[1] == ("y", "timed-out", f"left behind: 1 task: 2 'b' ({request})")
    desk.obey(worker, 2)
    assert closed()[1] == ("y", "timed-out", "")


# --- the history of stops -------------------------------------------------------------------------


def history(desk: Desk, **scope: str) -> list[EndedStopRow]:
    return views.ended_stops(desk.registry.state, Scope(**scope))


def test_a_stop_that_has_ended_is_in_the_history(desk: Desk) -> None:
    worker = desk.worker(slots=2)
    desk.running(worker, X, X)
    desk.spawn(X)
    desk.stop(**X, reason="detach")
    assert history(desk) == []
    desk.wait(0.5)
    desk.end(worker, 1)
    desk.obey(worker, 2)
    assert history(desk) == [
        EndedStopRow(
            id=1,
            kind=None,
            tenant_id="x",
            timeline_id=None,
            runtime=None,
            task_id=None,
            reason="detach",
            requested_at=WALL,
            completed_at=WALL + 0.5,
            timed_out=False,
            outcomes=[("cancelled", 2), ("completed", 1)],
            evidence=[("NEVER_RAN", 1), ("RETURNED", 2)],
            remaining=0,
            keep_closed=False,
            by="process 77 on here",
        )
    ]


def test_a_stop_that_timed_out_says_how_many_are_left(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=2.0, keep_closed=True)
    desk.wait(2.0)
    (row,) = history(desk)
    assert (row.timed_out, row.remaining, row.keep_closed, row.outcomes) == (True, 1, True, [])
    assert row.completed_at == WALL + 2.0


def test_the_session_that_asked_is_remembered_beyond_its_end(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.say(events.SessionGoodbye(session_id("A")))
    desk.obey(worker, 1)
    assert [row.by for row in history(desk)] == ["process 77 on here"]


def test_of_the_systems_own_stops_those_that_ended_something_are_shown(desk: Desk) -> None:
    """They are one for each kind, and close their scopes only until the next start."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.say(events.SystemStopAsked("SIGTERM"))
    desk.obey(worker, 1)
    assert desk.registry.state.last_stop_id > 1
    (row,) = history(desk)
    assert (row.kind, row.outcomes) == ("gc", [("cancelled", 1)])
    assert (row.by, row.keep_closed) == ("the system", False)


def test_a_users_stop_that_ended_nothing_is_shown(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True)
    assert [(row.by, row.keep_closed) for row in history(desk)] == [("process 77 on here", True)]


def test_the_history_is_filtered_by_what_a_stop_may_have_matched(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**Y, "kind": "flush"})
    for scope in ({}, X, Y, {"kind": "gc", **X}):
        desk.stop(**scope)
        for task_id in list(desk.registry.state.tasks):
            desk.obey(worker, task_id)
    desk.spawn({**Y, "kind": "flush"})
    task_id = desk.registry.state.last_task_id
    desk.begin(worker, task_id)
    desk.stop(task_id=task_id)
    desk.obey(worker, task_id)
    assert [row.id for row in history(desk)] == [1, 2, 3, 4, 5]
    assert [row.id for row in history(desk, **X)] == [1, 2, 4]
    assert [row.id for row in history(desk, **Y)] == [1, 3, 5]
    assert [row.id for row in history(desk, kind="gc")] == [1, 2, 3, 4]
    assert [row.id for row in history(desk, kind="flush")] == [1, 2, 3, 5]
    assert history(desk)[4].task_id == task_id


def test_the_history_of_stops_is_bounded_and_follows_from_the_facts() -> None:
    desk = Desk(history=3)
    desk.session()
    for _ in range(5):
        desk.stop(**X)
        assert isinstance(desk.facts[-1], facts.StopEnded)
    assert [row.id for row in history(desk)] == [3, 4, 5]
    thawed = Registry.thaw(desk.registry.freeze(volatile=False), **desk.configuration)
    assert thawed.state.stop_history == desk.registry.state.stop_history
    assert thawed.state.stop_history.maxlen == 3
    assert isinstance(thawed.state.stop_history[0].scope, Scope)


def test_waits_of_unknown_tasks_are_not_shown(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    waits(desk, worker, (1, 99))
    assert desk.task(1).waits_on == (TaskId(99),)
    assert words(desk, 1) == ""
    assert cycle(desk, 1) == []
