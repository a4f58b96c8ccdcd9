"""shutdown_tasks: closed and marked in one step, and complete with the evidence of the last end."""

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Attempt, Incarnation, RequestNumber, TaskId
from quiesce.registry.machine import Registry
from quiesce.registry.moving import RegistryFault
from quiesce.registry.queue import Lane
from quiesce.registry.records import Task
from registry_helpers import GRACE, WALL, Desk, fact_types, session_id, spawn_row, supervisor_id

X = {"tenant_id": "x"}
Y = {"tenant_id": "y"}


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    desk.session("B")
    return desk


def ask(worker: int, task_id: int, last_assign: int, reason: str) -> list[effects.Effect]:
    """What a task that is asked to stop causes."""
    return [
        effects.AskStops(Incarnation(worker), [(task_id, 1, last_assign, reason)]),
        effects.RaiseFlags(supervisor_id("pool"), [(1, task_id, 1)]),
    ]


# --- the atomic step ------------------------------------------------------------------------------


def test_a_stop_of_nothing_is_complete_at_once_and_leaves_the_scope_open(desk: Desk) -> None:
    desk.stop(**X)
    desk.expect(
        effects.AnswerStop(
            session_id("A"),
            RequestNumber(1),
            desk.registry.state.last_stop_id,
            False,
            WALL,
            WALL,
            effects.Report([], [], [], []),
        )
    )
    assert fact_types(desk) == ["StopOpened", "StopEnded"]
    assert desk.closed() == []


def test_it_closes_the_scope_and_marks_every_task_in_one_step(desk: Desk) -> None:
    """Queued tasks end there, an assigned one and a running one are asked; others are left alone."""
    worker = desk.worker()
    desk.running(worker, X, Y)
    desk.spawn(X, X, X)
    assert [desk.life(task) for task in (1, 2, 3, 4, 5)] == [
        "running",
        "running",
        "assigned",
        "queued",
        "queued",
    ]
    desk.stop(**X, reason="detach")
    assert fact_types(desk) == [
        "StopOpened",
        *["TaskAsked"] * 2,
        "TasksNeverRan",
    ]
    assert [type(fact).__name__ for fact in facts.singly(desk.facts)][3:] == [
        *["TaskAsked", "TaskEnded"] * 2
    ]
    asked = desk.one(effects.AskStops)
    assert asked == (worker, [(1, 1, 3, "detach"), (3, 1, 3, "detach")])
    assert desk.one(effects.RaiseFlags).rows == [(1, 1, 1), (1, 3, 1)]
    assert desk.closed() == [("tenant_id=x", "stop")]
    assert [desk.life(task) for task in (1, 2, 3, 4, 5)] == [
        "running",
        "running",
        "assigned",
        "cancelled NEVER_RAN",
        "cancelled NEVER_RAN",
    ]


def test_it_returns_with_the_last_end_and_never_before(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X)
    assert desk.take(effects.AnswerStop) == []
    desk.obey(worker, 1)
    assert desk.take(effects.AnswerStop) == []
    desk.obey(worker, 2)
    assert desk.ends() == [(1, "cancelled", "RETURNED"), (2, "cancelled", "RETURNED")]
    assert desk.closed() == []


def test_a_task_that_completes_meanwhile_is_reported_as_completed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.end(worker, 1)
    assert desk.ends() == [(1, "completed", "RETURNED")]


def test_an_assigned_task_that_has_not_begun_never_runs(desk: Desk) -> None:
    """The request carries the number of its assignment: the worker's tombstone makes it end unbegun."""
    worker = desk.worker()
    desk.spawn(X)
    desk.stop(**X)
    desk.expect(*ask(worker, 1, 1, "shutdown_tasks(tenant_id=x)"))
    desk.end(worker, 1, outcome="cancelled", evidence="NEVER_RAN", begun_age=None, result=b"")
    assert desk.ends() == [(1, "cancelled", "NEVER_RAN")]
    assert desk.registry.state.history[desk.rows()[1].id].started_at is None


def test_an_assigned_task_may_have_begun_all_the_same(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn(X)
    desk.stop(**X)
    desk.begin(worker, 1)
    desk.obey(worker, 1)
    assert desk.ends() == [(1, "cancelled", "RETURNED")]


def test_all_labels_given_must_match(desk: Desk) -> None:
    worker, solo = desk.worker(), desk.worker("solo")
    desk.running(
        worker,
        {**X, "kind": "gc", "timeline_id": "l"},
        {**X, "kind": "flush", "timeline_id": "l"},
        Y,
    )
    desk.running(solo, {**X, "kind": "gc", "timeline_id": "l", "runtime": "solo"})
    desk.stop(**X, kind="gc", timeline_id="l", runtime="pool")
    asked = desk.one(effects.AskStops)
    assert [row[0] for row in asked.rows] == [1]


def test_a_task_without_a_tenant_is_in_no_scope_that_names_one(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.stop(tenant_id="")
    assert desk.report().report.tasks == []
    desk.stop()
    assert desk.one(effects.AskStops).rows[0][0] == 1


def test_the_next_tasks_of_other_scopes_run_on(desk: Desk) -> None:
    worker = desk.worker("solo")
    desk.running(worker, {**X, "runtime": "solo"})
    desk.spawn({**X, "runtime": "solo"}, {**Y, "runtime": "solo"})
    desk.stop(**X)
    desk.obey(worker, 1)
    assert [row.task_id for row in desk.assigned(worker)] == [3]


# --- slices ---------------------------------------------------------------------------------------


@pytest.fixture
def sliced(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Slices of two, four queued tasks of x and one of y, one worker without a free slot."""
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 2)
    worker = desk.worker("solo")
    desk.running(worker, {"runtime": "solo"})
    desk.spawn(*[{**X, "runtime": "solo"}] * 4, {**Y, "runtime": "solo"})
    return desk


def test_queued_tasks_end_in_slices(sliced: Desk) -> None:
    stop = sliced.stop(**X)
    assert [sliced.life(task) for task in (2, 3, 4, 5)] == [
        "cancelled NEVER_RAN",
        "cancelled NEVER_RAN",
        "queued",
        "queued",
    ]
    assert sliced.one(effects.Again) == effects.Again(stop)
    assert sliced.take(effects.AnswerStop) == []
    assert sliced.one(facts.TasksNeverRan).task_ids == [2, 3]
    sliced.go_on()
    assert [row[0] for row in sliced.ends()] == [2, 3, 4, 5]
    assert len(sliced.take(facts.TasksNeverRan)) == 1


def test_a_slice_looks_at_no_more_tenants_than_it_ends(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred have two each. Whose task is the oldest is the first, with both."""
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 2)
    desk.thorough = False  # or it is frozen each time, which looks at all
    for _ in range(2):
        desk.spawn(*[{"tenant_id": f"tenant {number}"} for number in range(100)])
    desk.stop(kind="gc")
    looked: list[Lane] = []

    def first(lane: Lane) -> TaskId:
        looked.append(lane)
        return original(lane)

    original = Lane.first
    monkeypatch.setattr(Lane, "first", first)
    ended = [desk.one(facts.TasksNeverRan).task_ids]
    while desk.again:
        looked.clear()
        desk.say(events.Continue(desk.again.pop(0)))
        assert len(looked) < 20
        ended.append(desk.one(facts.TasksNeverRan).task_ids)
    assert ended == [[number, number + 100] for number in range(1, 101)]


def test_each_task_is_asked_by_the_first_stop_that_marked_it(sliced: Desk) -> None:
    """So a slice speaks of those of each stop apart, and of labels that differ together."""
    sliced.stop(runtime="solo", tenant_id="y", timeout=0.0)
    sliced.spawn({**X, "runtime": "solo"}, {"runtime": "solo"})
    sliced.stop(**X, reason="first")
    sliced.stop("B", runtime="solo", reason="second")
    assert [(fact.task_ids, fact.reason) for fact in sliced.take(facts.TasksNeverRan)] == [
        ([4, 5], "first")
    ]
    sliced.go_on()
    assert [(fact.task_ids, fact.reason) for fact in sliced.take(facts.TasksNeverRan)] == [
        ([7], "first"),
        ([8], "second"),
    ]


def test_a_task_of_a_later_slice_is_never_assigned(sliced: Desk) -> None:
    """A slot becomes free between two slices: it goes to the first task outside of the scope."""
    sliced.stop(**X)
    sliced.end(1 + 1, 1)
    assert [row.task_id for row in sliced.assigned()] == [6]
    assert [sliced.life(task) for task in (4, 5)] == ["queued", "queued"]


def test_two_stops_share_the_slices(sliced: Desk) -> None:
    sliced.stop(**X)
    sliced.stop("B", runtime="solo", kind="gc")
    assert [row[0] for row in sliced.ends()] == [2, 3, 4, 5]
    sliced.go_on()
    sliced.obey(2, 1)
    assert [row[0] for row in sliced.ends()] == [1, 4, 5, 6]


def test_a_stop_whose_time_is_over_lets_its_slices_end(sliced: Desk) -> None:
    """Its queued tasks can't run any more, so that they are no part of what remains."""
    sliced.stop(runtime="solo", timeout=0.0)
    sliced.wait(0.01)
    assert sliced.take(effects.AnswerStop) == []
    sliced.go_on()
    sliced.wait(0.1)
    assert [row.id for row in sliced.report().report.remaining] == [1]
    assert [row[0] for row in sliced.ends()] == [2, 3, 4, 5, 6]


def test_the_fact_of_a_stop_names_only_what_workers_hold(sliced: Desk) -> None:
    """However many are queued: which these are follows from the state."""
    sliced.stop(runtime="solo")
    opened = sliced.one(facts.StopOpened)
    assert (opened.members, opened.queued) == ([1], 5)


@pytest.mark.parametrize("stops", [{"runtime": "solo"}, X, {**X, "timeline_id": "l"}])
def test_an_older_journal_names_all_that_a_stop_matched(
    sliced: Desk, stops: dict[str, str]
) -> None:
    sliced.spawn({**X, "timeline_id": "l", "runtime": "solo"})
    before = sliced.registry.freeze(volatile=False)
    live: list[int] = list(sliced.registry.state.tasks)
    sliced.stop(**stops)
    opened = sliced.one(facts.StopOpened)
    now, then = (Registry.thaw(before, **sliced.configuration) for _ in range(2))
    now.apply(opened)
    scope = opened.scope
    matched = [
        task_id for task_id in live if scope.matches(*_labels(then.state.tasks[TaskId(task_id)]))
    ]
    assert len(matched) == len(opened.members) + (opened.queued or 0)
    then.apply(opened._replace(members=matched, queued=None))
    assert then.freeze(volatile=False) == now.freeze(volatile=False)


def _labels(task: Task) -> tuple[str, str | None, str | None, str]:
    return task.spawn.kind, task.tenant_id, task.timeline_id, task.spawn.runtime


def test_a_stop_that_matches_something_else_when_it_is_replayed_is_a_fault(sliced: Desk) -> None:
    sliced.stop(**X)
    opened = sliced.one(facts.StopOpened)
    other = Registry.thaw(sliced.registry.freeze(), **sliced.configuration)
    with pytest.raises(RegistryFault, match="stop 1 matched 4 queued tasks, and now matches 2"):
        other.apply(opened)


def test_a_stop_of_a_timeline_takes_its_tasks_out_of_a_lane_and_out_of_a_stop(
    sliced: Desk,
) -> None:
    sliced.spawn(*[{**Y, "timeline_id": "l", "runtime": "solo"}] * 2)
    sliced.stop(**Y, timeline_id="l")
    assert [row[0] for row in sliced.ends()] == [7, 8]
    sliced.spawn(*[{**Y, "timeline_id": "l", "runtime": "solo"}] * 3)
    sliced.stop(**Y)
    sliced.stop("B", **Y, timeline_id="l")
    assert sliced.one(facts.StopOpened).queued == 2  # a slice of the other stop has ended one
    assert [(each.session, len(each.report.tasks)) for each in sliced.take(effects.AnswerStop)] == [
        (session_id("A"), 4),
        (session_id("B"), 2),
    ]


def test_who_has_not_begun_has_called_nothing(sliced: Desk) -> None:
    """Whoever says so: it is stopped like the others."""
    sliced.stop(**X, caller=(TaskId(2), Attempt(1)))
    sliced.go_on()
    assert [row[0] for row in sliced.ends()] == [2, 3, 4, 5]
    assert sliced.report().report.caller == []


# --- overlapping stops ----------------------------------------------------------------------------


def test_a_second_stop_of_the_same_task_does_not_return_early(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, reason="first")
    desk.stop("B", **X, reason="second")
    desk.expect_facts(facts.StopOpened)
    desk.expect()
    desk.obey(worker, 1)
    assert [(each.session, len(each.report.tasks)) for each in desk.take(effects.AnswerStop)] == [
        (session_id("A"), 1),
        (session_id("B"), 1),
    ]


def test_overlapping_stops_wait_each_for_their_own(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**X, "kind": "gc"}, {**X, "kind": "flush"}, {**Y, "kind": "gc"})
    desk.stop(**X)
    desk.stop("B", kind="gc")
    desk.obey(worker, 1, 2)
    assert [row[0] for row in desk.ends()] == [1, 2]
    desk.obey(worker, 3)
    assert [row[0] for row in desk.ends()] == [1, 3]


def test_a_task_is_stopped_by_name_without_closing_anything(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(task_id=1)
    desk.expect(*ask(worker, 1, 2, "shutdown_tasks(task 1)"))
    assert desk.closed() == []
    assert desk.spawn(X) == 3
    desk.obey(worker, 1)
    assert desk.ends() == [(1, "cancelled", "RETURNED")]


def test_a_queued_task_is_stopped_by_name(desk: Desk) -> None:
    desk.spawn(X, X)
    desk.stop(task_id=2)
    assert desk.ends() == [(2, "cancelled", "NEVER_RAN")]
    assert desk.life(1) == "queued"


@pytest.mark.parametrize("task_id", [1, 9])
def test_a_stop_of_a_task_that_has_ended_is_complete_at_once(desk: Desk, task_id: int) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.end(worker, 1)
    desk.stop(task_id=task_id)
    assert desk.report().report == effects.Report([], [], [], [])


def test_a_stopped_task_is_not_tried_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 5})
    desk.stop(task_id=1)
    desk.end(worker, 1, outcome="failed")
    assert desk.ends() == [(1, "failed", "RETURNED")]
    assert desk.registry.state.tasks == {}


# --- the caller -----------------------------------------------------------------------------------


def test_a_task_that_stops_its_own_scope_is_left_out_and_listed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X, caller=(1, 1))
    assert [row[0] for row in desk.one(effects.AskStops).rows] == [2]
    desk.obey(worker, 2)
    report = desk.report().report
    assert [row.id for row in report.caller] == [1]
    assert [row.id for row in report.tasks] == [2]
    assert report.caller[0].outcome is None
    assert desk.task(1).ask is None


@pytest.mark.parametrize("caller", [(2, 1), (1, 2), (7, 1)], ids=["outside", "older", "unknown"])
def test_others_are_no_callers(desk: Desk, caller: tuple[int, int]) -> None:
    worker = desk.worker()
    desk.running(worker, X, Y)
    desk.stop(**X, caller=caller)
    assert [row[0] for row in desk.one(effects.AskStops).rows] == [1]
    desk.obey(worker, 1)
    assert desk.report().report.caller == []


def test_the_caller_is_asked_by_the_stops_of_others(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X, caller=(1, 1))
    desk.stop("B", **X)
    assert [row[0] for row in desk.one(effects.AskStops).rows] == [1]
    desk.obey(worker, 2)
    assert desk.report().session == session_id("A")
    desk.obey(worker, 1)
    assert desk.report().session == session_id("B")


def test_a_caller_that_moves_within_its_scope_stays_the_caller(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X, caller=(1, 1))
    desk.associate(worker, 1, "x", "line")
    assert desk.task(1).ask is None
    desk.obey(worker, 2)
    assert [row.id for row in desk.report().report.tasks] == [2]


def test_a_caller_within_its_own_block_is_not_asked_either(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, caller=(1, 1), hold=True)
    desk.associate(worker, 1, "x", "line")
    desk.expect(effects.AnswerAssociate)
    assert desk.task(1).ask is None


def test_a_caller_that_fails_in_its_closed_scope_is_not_tried_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**X, "retries": 3})
    desk.stop(**X, caller=(1, 1), hold=True)
    desk.end(worker, 1, outcome="failed")
    assert desk.life(1) == "failed RETURNED"


# --- into the closed scope ------------------------------------------------------------------------


def test_a_spawn_into_the_closed_scope_is_refused(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, reason="detach")
    desk.spawn(X, Y)
    refused, taken = desk.answers()
    assert taken.task_id == 2
    assert (refused.error, refused.text) == (
        "ScopeClosedError",
        (
            "nothing was started: gc 't' of tenant 'x', timeline None lies in the closed scope "
            "[tenant_id=x] (detach); it opens when that stop has ended"
        ),
    )
    desk.obey(worker, 1)
    assert desk.spawn(X) == 3


def test_a_task_that_comes_into_the_closed_scope_is_asked_and_waited_for(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, Y)
    stop = desk.stop(**X, reason="detach")
    desk.associate(worker, 2, "x")
    desk.expect_facts(
        facts.TaskAssociated(2, "x", None),
        facts.StopJoined(stop, 2),
        facts.TaskAsked(2, WALL, "detach", WALL + GRACE),
    )
    desk.expect(*ask(worker, 2, 2, "detach"), effects.AnswerAssociate(worker, 1, None, ""))
    desk.obey(worker, 1)
    assert desk.take(effects.AnswerStop) == []
    desk.obey(worker, 2)
    assert [row[0] for row in desk.ends()] == [1, 2]


def test_it_joins_every_open_stop_that_covers_it(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**X, "kind": "gc"}, {**Y, "kind": "gc"}, {"kind": "flush"})
    first = desk.stop(**X)
    second = desk.stop("B", kind="gc")
    third = desk.stop("B", kind="flush", tenant_id="x", timeline_id="other")
    desk.associate(worker, 2, "x")
    assert desk.take(facts.StopJoined) == [facts.StopJoined(first, 2)]
    waited = desk.registry.state.waited[TaskId(2)]
    assert waited == {first, second}
    assert third not in waited
    desk.obey(worker, 1)
    assert desk.take(effects.AnswerStop) == []
    desk.obey(worker, 2)
    assert len(desk.take(effects.AnswerStop)) == 2


def test_a_task_that_is_asked_already_joins_without_a_second_request(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, Y)
    stop = desk.stop(**X)
    desk.stop("B", task_id=2, reason="by name")
    desk.associate(worker, 2, "x")
    desk.expect_facts(facts.TaskAssociated(2, "x", None), facts.StopJoined(stop, 2))
    desk.expect(effects.AnswerAssociate)
    assert desk.task(2).ask is not None
    desk.obey(worker, 1, 2)
    assert [len(each.report.tasks) for each in desk.take(effects.AnswerStop)] == [2, 1]


def test_leaving_a_scope_releases_nobody(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.associate(worker, 1, "elsewhere")
    desk.expect(effects.AnswerAssociate)
    desk.obey(worker, 1)
    assert [(row.id, row.tenant_id) for row in desk.report().report.tasks] == [(1, "elsewhere")]


def test_a_later_stop_waits_for_those_that_have_left_too(desk: Desk) -> None:
    """Its caller wants to hear that nothing of the tenant's runs any more; an earlier stop still waits."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.associate(worker, 1, "elsewhere")
    desk.stop("B", **X)
    assert desk.take(effects.AnswerStop) == []
    desk.stop("B", **X, kind="flush")
    assert desk.report().report.tasks == []
    desk.obey(worker, 1)
    assert len(desk.take(effects.AnswerStop)) == 2


def test_it_waits_for_those_that_have_left_a_stop_that_timed_out(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=1.0)
    desk.wait(2.0)
    desk.associate(worker, 1, "elsewhere")
    desk.stop("B", **X)
    assert desk.take(effects.AnswerStop) == []
    assert desk.closed() == [("tenant_id=x", "timed-out"), ("tenant_id=x", "stop")]
    desk.obey(worker, 1)
    assert [row[0] for row in desk.ends()] == [1]
    assert desk.closed() == []


# --- the caller's own spawns ----------------------------------------------------------------------


def test_a_stop_is_complete_only_when_all_earlier_spawns_have_arrived(desk: Desk) -> None:
    """They travel on another connection; those that match are refused when they come."""
    desk.spawn(Y)
    desk.stop(**X, last_spawn=3)
    desk.expect()
    desk.spawn(spawn_row(2, **Y))
    assert desk.take(effects.AnswerStop) == []
    desk.spawn(spawn_row(3, **X))
    assert [each.error for each in desk.answers()] == ["ScopeClosedError"]
    assert desk.report().report.tasks == []


def test_a_parked_spawn_has_arrived(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**Y, "unique_key": "k"})
    desk.stop("B", task_id=1)
    desk.stop(**X, last_spawn=2)
    desk.spawn({**Y, "unique_key": "k"})
    assert desk.report().session == session_id("A")


def test_a_session_that_is_gone_sends_no_more_spawns(desk: Desk) -> None:
    desk.stop(**X, last_spawn=3)
    desk.say(events.SessionGoodbye(session_id("A")))
    assert fact_types(desk) == ["SessionClosed", "StopEnded"]
    assert desk.closed() == []
