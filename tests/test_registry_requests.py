"""The request to stop: sent until heard, dated, answered again if asked again, talked about."""

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation, RequestNumber, StopId, TaskId
from quiesce.registry.scope import Scope
from registry_helpers import WALL, Desk, fact_types, session_id, supervisor_id

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


# --- requests that come again ---------------------------------------------------------------------


def test_a_request_that_comes_again_while_the_stop_is_open_is_answered_once(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.stop(**X, request=1)
    desk.expect_nothing()
    desk.obey(worker, 1)
    assert len(desk.take(effects.AnswerStop)) == 1


def test_a_request_that_comes_again_later_gets_the_same_report(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X, timeout=1.0)
    desk.obey(worker, 1)
    desk.wait(2.0)
    first = desk.report()
    assert [len(rows) for rows in first.report] == [1, 0, 0, 1]
    desk.obey(worker, 2)
    desk.stop(**X, timeout=1.0, request=1)
    desk.expect_facts()
    desk.expect(first)


def test_reports_are_bounded_and_what_is_forgotten_is_not_done_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quiesce.registry.apply_stops.REPORTS_KEPT", 2)
    for _ in range(3):
        desk.stop(**X)
    assert list(desk.registry.state.sessions[session_id("A")].reports) == [2, 3]
    assert list(desk.registry.state.stops) == [2, 3]
    desk.spawn(X)
    desk.stop(**X, request=1)
    desk.expect_facts()
    desk.expect(
        effects.RefuseRequest(
            session_id("A"),
            RequestNumber(1),
            "QuiesceError",
            "request 1 has been answered before, and its report is no longer kept; ask again, as a "
            "new request",
        )
    )
    assert desk.life(1) == "queued"


def test_the_rows_of_reports_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.registry.apply_stops.ROWS_KEPT", 6)
    for _ in range(3):
        desk.spawn(X, X, X)
        desk.stop(**X)
        assert len(desk.report().report.tasks) == 3
    assert list(desk.registry.state.stops) == [2, 3]


def test_the_last_report_is_kept_whatever_its_size(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quiesce.registry.apply_stops.ROWS_KEPT", 2)
    desk.stop(**Y)
    desk.spawn(X, X, X)
    desk.stop(**X)
    assert list(desk.registry.state.stops) == [2]
    desk.stop(**X, request=2)
    assert len(desk.report().report.tasks) == 3


def test_what_is_forgotten_stays_so_whatever_ends_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quiesce.registry.apply_stops.REPORTS_KEPT", 1)
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.stop(**Y)
    desk.stop(**Y)
    desk.obey(worker, 1)
    desk.stop(**Y)
    for request in (1, 2, 3):
        desk.stop(**X, request=request)
        assert len(desk.take(effects.RefuseRequest)) == 1


def test_a_stop_of_an_unknown_session_is_not_begun(desk: Desk) -> None:
    desk.say(events.SessionGoodbye(session_id("B")))
    desk.stop("B", **X)
    desk.expect(effects.WantHello(session_id("B")))
    desk.expect_facts()


def test_a_session_that_comes_back_under_its_name_is_not_the_old_one(desk: Desk) -> None:
    """The stop of the old one runs to its end, for nobody."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.say(events.SessionGoodbye(session_id("A")))
    desk.session("A")
    desk.obey(worker, 1)
    assert desk.take(effects.AnswerStop) == []
    assert desk.closed() == []
    assert desk.registry.state.stops == {}


# --- saying it until it is heard ------------------------------------------------------------------


def test_the_request_is_sent_until_it_is_acknowledged(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.wait(0.4)
    desk.expect()
    desk.wait(0.2)
    desk.expect(*ask(worker, 1, 1, "shutdown_tasks(tenant_id=x)"))
    desk.wait(0.5)
    assert [type(effect) for effect in desk.effects] == [
        effects.AskStops,
        effects.RaiseFlags,
        effects.Log,
        effects.StillWaiting,
    ]
    desk.seen(worker, 1)
    desk.expect_facts(facts.StopDelivered(1, WALL + 1.1))
    desk.expect()
    desk.wait(2.0)
    assert desk.take(effects.AskStops) == []


def test_an_end_is_an_acknowledgement(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.obey(worker, 1)
    desk.wait(100.0)
    desk.expect()


def test_a_request_sent_again_says_what_has_been_assigned_since(desk: Desk) -> None:
    """So that a tombstone for it stands long enough."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.spawn(Y)
    desk.wait(0.5)
    assert desk.one(effects.AskStops).rows == [(1, 1, 2, "shutdown_tasks(tenant_id=x)")]


# --- the four times -------------------------------------------------------------------------------


def test_the_four_times_of_a_task(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.wait(10.0)
    desk.stop(**X)
    desk.wait(3.0)
    desk.say(events.StopsSeen(worker, [(1, 1, "running", 2.0, None)]))
    desk.expect_facts(facts.StopDelivered(1, WALL + 11.0))
    desk.say(events.StopsSeen(worker, [(1, 1, "running", 2.0, 1.0)]))
    desk.expect_facts(facts.StopObserved(1, WALL + 12.0))
    desk.wait(1.0)
    desk.end(worker, 1, outcome="cancelled", ended_age=0.5, observed_age=2.0)
    row = desk.rows()[1]
    assert (row.requested_at, row.delivered_at, row.observed_at, row.stopped_at) == (
        WALL + 10.0,
        WALL + 11.0,
        WALL + 12.0,
        WALL + 13.5,
    )


def test_delivered_never_observed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.seen(worker, 1)
    desk.end(worker, 1)
    row = desk.rows()[1]
    assert (row.delivered_at, row.observed_at) == (WALL, None)


def test_an_end_may_be_the_first_that_says_that_it_was_observed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.wait(3.0)
    desk.end(worker, 1, ended_age=0.5, observed_age=2.0)
    row = desk.rows()[1]
    assert (row.delivered_at, row.observed_at, row.stopped_at) == (
        WALL + 1.0,
        WALL + 1.0,
        WALL + 2.5,
    )


def test_an_end_may_be_the_first_that_says_that_it_was_delivered(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.wait(3.0)
    desk.end(worker, 1, delivered_age=2.0)
    assert (desk.rows()[1].delivered_at, desk.rows()[1].observed_at) == (WALL + 1.0, None)


def test_a_request_is_observed_once(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.seen(worker, 1, observed_age=0.0)
    desk.wait(1.0)
    desk.seen(worker, 1, observed_age=0.0)
    desk.expect_nothing()
    desk.end(worker, 1, delivered_age=0.0, observed_age=0.0)
    assert desk.rows()[1].delivered_at == desk.rows()[1].observed_at == WALL


def test_a_task_may_know_of_a_request_that_the_registry_never_made(desk: Desk) -> None:
    """Its pool asked it, because the broker was out of reach for long."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.end(worker, 1, outcome="cancelled", delivered_age=1.0, observed_age=1.0)
    assert fact_types(desk) == ["TaskEnded"]


@pytest.mark.parametrize(
    ("delivered", "observed", "ended"),
    [
        (99.0, 99.0, 99.0),
        (0.0, 5.0, 9.0),
        (0.0, None, 9.0),
        (0.4, 0.1, 9.0),
        (-5.0, -9.0, -5.0),
        (1.0, 2.0, 3.0),
    ],
    ids=["old", "wrong order", "not observed", "ended first", "future", "before the request"],
)
def test_the_times_are_in_order_whatever_a_worker_says(
    desk: Desk, delivered: float, observed: float | None, ended: float
) -> None:
    """The checker of invariants looks at each row."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.wait(2.0)
    desk.stop(**X)
    desk.wait(0.5)
    desk.say(events.StopsSeen(worker, [(1, 1, "running", delivered, None)]))
    desk.say(events.StopsSeen(worker, [(1, 1, "running", delivered, observed)]))
    desk.end(worker, 1, ended_age=ended, observed_age=observed)
    row = desk.rows()[1]
    assert row.delivered_at is not None
    assert max(row.delivered_at, row.observed_at or 0.0) <= desk.wall
    assert (row.observed_at is None) is (observed is None)


def test_the_times_are_in_order_when_the_wall_clock_goes_back(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.wait(2.0)
    desk.stop(**X)
    desk.step = -3600.0
    desk.seen(worker, 1)
    desk.seen(worker, 1, observed_age=0.0)
    desk.end(worker, 1, observed_age=0.0)
    row = desk.rows()[1]
    assert row.requested_at == row.delivered_at == row.observed_at == row.stopped_at == WALL + 2.0
    assert desk.report().completed_at == WALL + 2.0


# --- a word about it ------------------------------------------------------------------------------


def test_what_a_stop_waits_for_is_said_after_a_second_of_silence_then_each_minute(
    desk: Desk,
) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, grace=float("inf"))
    desk.seen(worker, 1)
    desk.wait(0.9)
    desk.expect()
    desk.wait(0.2)
    head = "stop 1 of [tenant_id=x] still waits for 1 task:\n  1.1 gc 't' of x in process 1001 on here: "
    waits = "waits for the task, to look: the request was delivered, never observed; "
    look = effects.StillWaiting(StopId(1), [TaskId(1)])
    never = effects.Log("INFO", f"{head}{waits}no look for a request is known")
    desk.expect(never, look)
    desk.wait(59.0)
    desk.expect()
    desk.task(1).last_check_at = desk.wall - 2.0
    desk.task(1).progress = (3.0, 10.0, "layers")
    desk.wait(1.0)
    said = f"{head}{waits}last looked 2.9 s ago; progress 3/10 layers"
    desk.expect(effects.Log("INFO", said), look)
    desk.obey(worker, 1)
    assert desk.take(effects.Log) == [
        effects.Log("INFO", "stop 1 of [tenant_id=x] is complete after 61.1 s: 1 task ended")
    ]
    desk.wait(100.0)
    desk.expect()


@pytest.mark.parametrize("count", [5, 6, 8])
def test_it_names_a_few_of_many_and_wants_the_stacks_of_the_first(desk: Desk, count: int) -> None:
    worker = desk.worker(slots=10)
    desk.running(worker, *[X] * count)
    desk.stop(**X)
    desk.wait(1.0)
    (log,) = desk.take(effects.Log)
    head, *lines = log.text.splitlines()
    assert head == f"stop 1 of [tenant_id=x] still waits for {count} tasks:"
    more = [f"and {count - 5} more"] if count > 5 else []
    assert [line.split()[0] for line in lines[:5]] == [f"{task}.1" for task in range(1, 6)]
    assert [line.strip() for line in lines[5:]] == more
    assert desk.one(effects.StillWaiting).task_ids == [1, 2, 3]


def test_what_may_have_begun_may_have_a_stack(desk: Desk) -> None:
    """Word of its beginning does not leave an interpreter that is stuck."""
    desk.worker()
    desk.spawn(X)
    desk.stop(**X)
    desk.wait(1.0)
    (log,) = desk.take(effects.Log)
    assert log.text.splitlines()[1] == (
        "  1.1 gc 't' of x in process 1001 on here: waits for its worker, to acknowledge the request to stop"
    )
    assert desk.one(effects.StillWaiting).task_ids == [1]


def test_a_stop_may_wait_for_its_callers_own_spawns(desk: Desk) -> None:
    desk.stop(**X, last_spawn=3)
    desk.wait(1.0)
    desk.expect(
        effects.Log(
            "INFO",
            "stop 1 of [tenant_id=x] still waits for spawns that its caller sent before it",
        )
    )


def test_a_report_says_when_it_was_asked_for_and_made(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.wait(1.0)
    desk.stop(**X)
    desk.wait(0.25)
    desk.obey(worker, 1)
    assert (desk.report().requested_at, desk.report().completed_at) == (WALL + 1, WALL + 1.25)


def test_names_of_users_add_no_line_to_the_log_and_nothing_that_a_terminal_obeys(
    desk: Desk,
) -> None:
    hostile = "x\n  9.9 forged \x1b[31m"
    worker = desk.worker()
    desk.running(worker, {"tenant_id": hostile, "name": hostile})
    desk.stop(tenant_id=hostile, reason=hostile, timeout=5.0)
    said = []
    for seconds in (1.0, 5.0):
        desk.wait(seconds)
        said += [line for log in desk.take(effects.Log) for line in log.text.split("\n")]
    assert len(said) == 3  # a stop, its task, and the end of the stop
    assert all(line.isprintable() for line in said)
    assert "[tenant_id=x�  9.9 forged �[31m]" in said[0]
    assert " of x�  9.9 forged �[31m in process" in said[1]
    desk.spawn({"tenant_id": hostile})
    assert desk.answers()[0].text.isprintable()


def test_why_the_system_stops_is_one_line_of_the_log(desk: Desk) -> None:
    desk.say(events.SystemStopAsked("it was \x1b]0;asked\x07 to\n"))
    assert desk.take(effects.Log) == [
        effects.Log("INFO", "the system stops: it was �]0;asked� to�"),
    ]


def test_a_quick_stop_says_nothing(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.obey(worker, 1)
    assert desk.take(effects.Log) == []


def test_a_scope_reads_well() -> None:
    assert str(Scope()) == "everything"
    assert str(Scope("gc", "x", "l", "pool")) == "kind=gc tenant_id=x timeline_id=l runtime=pool"
