"""Why scopes are closed, holder by holder, and what opens them."""

import math

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation, RequestNumber
from quiesce.registry.scope import Scope
from registry_helpers import GRACE, WALL, Desk, session_id

X = {"tenant_id": "x"}
Y = {"tenant_id": "y"}


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    desk.session("B")
    return desk


def refusal(desk: Desk, **row: str) -> str:
    """What opens the scope, as a refused spawn says it; "" if it was taken."""
    desk.spawn(row or X)
    answer = desk.answers()[0]
    assert answer.error in (None, "ScopeClosedError")
    return answer.text.rpartition("; ")[2]


# --- hold and release -----------------------------------------------------------------------------


def test_a_block_keeps_the_scope_closed_until_it_is_released(desk: Desk) -> None:
    stop = desk.stop(**X, hold=True)
    assert desk.closed() == [("tenant_id=x", "block")]
    assert refusal(desk) == "it opens when the stopped() block has ended"
    desk.release(stop)
    desk.expect_facts(facts.BlockReleased(stop, False))
    desk.expect(effects.AnswerDone(session_id("A"), RequestNumber(901)))
    assert desk.closed() == []
    assert refusal(desk) == ""


def test_a_release_that_comes_again_is_only_answered_again(desk: Desk) -> None:
    stop = desk.stop(**X, hold=True)
    desk.release(stop)
    desk.release(stop)
    desk.expect_facts()
    desk.expect(effects.AnswerDone)


def test_nobody_releases_the_block_of_another(desk: Desk) -> None:
    stop = desk.stop(**X, hold=True)
    desk.release(stop, session="B")
    desk.expect_facts()
    assert desk.closed() == [("tenant_id=x", "block")]


def test_a_reopening_by_an_unknown_session(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True)
    desk.reopen(session="C", **X)
    desk.expect(effects.WantHello(session_id("C")))
    assert desk.closed() == [("tenant_id=x", "kept")]


@pytest.mark.parametrize(
    ("scope", "error", "text"),
    [
        ({"kind": "gb"}, "UnknownKindError", "unknown kind 'gb'; did you mean 'gc'?"),
        ({"runtime": "pol"}, "UnknownRuntimeError", "unknown runtime 'pol'; did you mean 'pool'?"),
    ],
)
def test_a_scope_of_a_name_that_nobody_declared(
    desk: Desk, scope: dict[str, str], error: str, text: str
) -> None:
    """Found empty, a typo would pass for "nothing runs"."""
    for ask in (desk.stop, desk.reopen):
        ask(**scope)
        desk.expect_facts()
        refused = desk.one(effects.RefuseRequest)
        assert (refused.error, refused.text.partition(" Known")[0]) == (error, text)
        desk.expect(effects.RefuseRequest)


def test_a_release_by_an_unknown_session(desk: Desk) -> None:
    stop = desk.stop(**X, hold=True)
    desk.release(stop, session="C")
    desk.expect(effects.WantHello(session_id("C")))


def test_two_blocks_are_counted_apart(desk: Desk) -> None:
    first = desk.stop(**X, hold=True)
    desk.stop("B", **X, hold=True)
    desk.release(first)
    assert desk.closed() == [("tenant_id=x", "block")]


def test_a_block_with_keep_closed_is_kept_after_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the report of its stop has been forgotten by then."""
    monkeypatch.setattr("quiesce.registry.apply_stops.REPORTS_KEPT", 1)
    stop = desk.stop(**X, hold=True, keep_closed=True)
    desk.stop(**Y)
    desk.release(stop)
    assert desk.closed() == [("tenant_id=x", "kept")]


def test_the_block_of_a_session_that_is_gone_is_kept(desk: Desk) -> None:
    """Nobody has said that its body is done: it may still remove files."""
    stop = desk.stop(**X, hold=True)
    desk.say(events.SessionGoodbye(session_id("A")))
    desk.expect_facts(facts.BlockReleased(stop, True), facts.SessionClosed(session_id("A")))
    assert desk.closed() == [("tenant_id=x", "kept")]
    desk.spawn(X, session="B")
    assert desk.answers()[0].text.endswith("; reopen() opens it")


def test_a_program_that_was_silent_for_too_long_still_ends_its_block(desk: Desk) -> None:
    """It says so in a session of its own: the one in which it entered has expired."""
    stop, kept = desk.stop(**X, hold=True), desk.stop(**Y, hold=True, keep_closed=True)
    desk.say(events.SessionGoodbye(session_id("A")))
    desk.release(kept, session="B")
    desk.expect_facts()
    desk.release(stop, session="B")
    desk.expect_facts(facts.BlockReleased(stop, False))
    assert desk.closed() == [("tenant_id=y", "kept")]


@pytest.mark.parametrize("keep_closed", [False, True])
def test_a_block_that_was_never_entered_leaves_nothing_closed(
    desk: Desk, keep_closed: bool
) -> None:
    """Its client has gone while its stop waited. Should it come back, it asks again, as a new client."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, hold=True, keep_closed=keep_closed)
    desk.say(events.SessionGoodbye(session_id("A")))
    assert desk.closed() == [("tenant_id=x", "stop")]
    again = desk.stop("B", **X, hold=True)
    desk.obey(worker, 1)
    desk.release(again, session="B")
    assert desk.closed() == ([("tenant_id=x", "kept")] if keep_closed else [])


# --- keep_closed and reopen -----------------------------------------------------------------------


def test_what_is_kept_closed_is_reopened(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True, reason="detached")
    assert desk.closed() == [("tenant_id=x", "kept")]
    assert refusal(desk) == "reopen() opens it"
    desk.reopen(session="B", **X)
    desk.expect_facts(facts.ScopesReopened(Scope(tenant_id="x"), False, session_id("B"), 901))
    desk.expect(effects.AnswerDone(session_id("B"), RequestNumber(901)))
    assert refusal(desk) == ""


@pytest.mark.parametrize(
    ("scope", "opened"),
    [
        ({}, True),
        (X, True),
        ({"tenant_id": "x", "kind": "gc"}, False),
        ({"kind": "gc"}, False),
        (Y, False),
    ],
)
def test_reopen_opens_what_lies_within_its_scope(
    desk: Desk, scope: dict[str, str], opened: bool
) -> None:
    desk.stop(**X, keep_closed=True)
    desk.reopen(**scope)
    assert (desk.closed() == []) is opened


def test_reopen_opens_neither_a_stop_in_progress_nor_a_block(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.stop(**Y, hold=True)
    desk.reopen()
    assert desk.closed() == [("tenant_id=x", "stop"), ("tenant_id=y", "block")]


def test_a_stop_by_others_does_not_open_what_is_kept(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True)
    desk.stop("B")
    assert desk.closed() == [("tenant_id=x", "kept")]


def test_a_task_that_comes_into_a_kept_scope_is_asked(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, Y)
    desk.stop(**X, keep_closed=True)
    desk.associate(worker, 1, "x")
    desk.expect_facts(
        facts.TaskAssociated(1, "x", None),
        facts.TaskAsked(1, WALL, "the scope [tenant_id=x] is closed", WALL + GRACE),
    )
    desk.wait(10.0)
    assert desk.take(effects.ForceTask) == [effects.ForceTask(worker, 1, 1)]


def test_it_is_told_why_the_scope_is_closed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, Y)
    desk.stop(**X, keep_closed=True, reason="detached")
    desk.associate(worker, 1, "x")
    assert desk.one(facts.TaskAsked).reason == "detached"


def test_a_caller_that_comes_into_a_scope_that_others_keep_is_asked(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**Y, keep_closed=True)
    desk.stop(caller=(1, 1))
    assert desk.task(1).ask is None
    desk.associate(worker, 1, "y")
    assert desk.task(1).ask is not None


# --- timeouts -------------------------------------------------------------------------------------


@pytest.fixture
def stubborn(desk: Desk) -> Desk:
    """A stop of x that has timed out: task 1, of worker 2, does not end; task 2 has."""
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X, timeout=3.0)
    desk.seen(worker, 1)
    desk.obey(worker, 2)
    desk.wait(2.9)
    assert desk.take(effects.AnswerStop) == []
    desk.wait(0.1)
    return desk


def test_at_its_timeout_a_stop_says_what_remains(stubborn: Desk) -> None:
    report = stubborn.report()
    assert report.timed_out
    assert [row.id for row in report.report.tasks] == [2]
    (row,) = report.report.remaining
    assert (row.id, row.outcome, row.evidence, row.stopped_at) == (1, None, None, None)
    assert (row.requested_at, row.delivered_at) == (WALL, WALL)
    assert stubborn.take(effects.Log)[-1] == effects.Log(
        "INFO", "stop 1 of [tenant_id=x] timed out after 3.0 s: 1 task ended, 1 are left"
    )


def test_the_scope_stays_closed(stubborn: Desk) -> None:
    assert stubborn.closed() == [("tenant_id=x", "timed-out")]
    assert refusal(stubborn) == (
        "that stop timed out: a stop of it that succeeds, or reopen(), opens it"
    )


def test_what_remains_is_still_forced_and_its_end_recorded(stubborn: Desk) -> None:
    stubborn.wait(7.0)
    assert stubborn.take(effects.ForceTask) == [effects.ForceTask(Incarnation(2), 1, 1)]
    stubborn.obey(2, 1)
    assert stubborn.life(1) == "cancelled RETURNED"
    assert stubborn.take(effects.AnswerStop) == []
    assert stubborn.closed() == [("tenant_id=x", "timed-out")]


def test_reopen_opens_it(stubborn: Desk) -> None:
    stubborn.reopen(**X)
    assert stubborn.closed() == []


@pytest.mark.parametrize(
    ("scope", "cleared"), [(X, True), ({}, True), ({"tenant_id": "x", "kind": "gc"}, False)]
)
def test_an_equal_or_wider_stop_that_succeeds_opens_it(
    stubborn: Desk, scope: dict[str, str], cleared: bool
) -> None:
    stubborn.stop("B", **scope)
    assert ("tenant_id=x", "timed-out") in stubborn.closed()
    stubborn.obey(2, 1)
    assert ([holder for _, holder in stubborn.closed()] == []) is cleared
    assert len(stubborn.take(facts.ScopesReopened)) == cleared


def test_a_stop_that_succeeds_reopens_nothing_else(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True)
    desk.stop()
    assert desk.take(facts.ScopesReopened) == []


def test_a_stop_that_times_out_too_opens_nothing(stubborn: Desk) -> None:
    stubborn.stop("B", timeout=1.0)
    stubborn.wait(1.0)
    assert [holder for _, holder in stubborn.closed()] == ["timed-out", "timed-out"]


def test_a_stop_by_name_opens_nothing(stubborn: Desk) -> None:
    stubborn.stop("B", task_id=1)
    stubborn.obey(2, 1)
    assert stubborn.report().report.tasks[0].id == 1
    assert stubborn.closed() == [("tenant_id=x", "timed-out")]


def test_keep_closed_outlives_the_timeout(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=1.0, keep_closed=True)
    desk.wait(1.0)
    assert desk.closed() == [("tenant_id=x", "timed-out")]
    desk.stop("B", **X)
    desk.obey(worker, 1)
    assert desk.closed() == [("tenant_id=x", "kept")]


def test_a_block_whose_stop_times_out_never_begins(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    stop = desk.stop(**X, timeout=1.0, hold=True)
    desk.wait(1.0)
    desk.release(stop)
    assert desk.closed() == [("tenant_id=x", "timed-out")]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_no_time_at_all(desk: Desk, timeout: float) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.thorough = not math.isnan(timeout)  # which differs from itself in a frozen copy
    desk.stop(**X, timeout=timeout)
    desk.wait(0.0)
    assert desk.report().timed_out


@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_for_ever(desk: Desk, timeout: float | None) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=timeout, grace=float("inf"))
    desk.seen(worker, 1)
    desk.wait(250.0)
    assert desk.take(effects.AnswerStop) == []
    assert desk.registry.next_deadline() is not None
    assert desk.registry.next_deadline() != float("inf")


def test_a_stop_that_still_waits_for_spawns_times_out(desk: Desk) -> None:
    desk.stop(**X, last_spawn=1, timeout=1.0)
    desk.wait(1.0)
    assert desk.report().timed_out
    assert desk.report().report.remaining == []
    assert desk.closed() == [("tenant_id=x", "timed-out")]


def test_the_report_of_a_stop_by_a_session_that_is_gone(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=1.0)
    desk.say(events.SessionGoodbye(session_id("A")))
    desk.wait(1.0)
    assert desk.take(effects.AnswerStop) == []
    assert desk.closed() == [("tenant_id=x", "timed-out")]


def test_the_blocks_of_a_reaped_process_are_kept(desk: Desk) -> None:
    """Its client lived in a worker that is proved dead: nobody can say any more that the files are gone."""
    worker = desk.worker()
    nested = session_id("N")
    desk.say(events.SessionHello(nested, pid=78, host="here", worker=worker))
    desk.say(
        events.StopAsked(
            nested,
            RequestNumber(1),
            Scope(tenant_id="x"),
            None,
            None,
            None,
            False,
            True,
            "",
            0,
            None,
        )
    )
    assert desk.closed() == [("tenant_id=x", "block")]
    desk.exit(worker)
    assert desk.closed() == [("tenant_id=x", "kept")]
    assert nested not in desk.registry.state.sessions


def test_the_block_of_a_silent_client_stays_closed_until_its_session_is_over(desk: Desk) -> None:
    """It may have been paused, and go on in the block: a reopen by somebody else opens nothing under its hands."""
    desk.stop("B", **X, hold=True)
    desk.wait(250.0)
    desk.say(events.SessionHeard(session_id("A"), 0))
    desk.reopen()
    assert desk.closed() == [("tenant_id=x", "block")]
    desk.wait(85.0)
    assert desk.closed() == [("tenant_id=x", "kept")]
    desk.reopen()
    assert desk.closed() == []


def test_a_reopen_that_comes_again_opens_nothing_that_was_closed_since(desk: Desk) -> None:
    """Its answer was lost with the connection; meanwhile the same program has closed the scope, for good."""
    desk.stop(**X, keep_closed=True)
    desk.reopen(**X)
    assert desk.closed() == []
    desk.stop(**X, keep_closed=True)
    desk.restart()
    desk.reopen_again(**X)
    desk.expect_facts()
    desk.expect(effects.AnswerDone(session_id("A"), RequestNumber(901)))
    assert desk.closed() == [("tenant_id=x", "kept")]
    desk.reopen(**X)
    assert desk.closed() == []


def test_a_stop_looks_at_no_scopes_that_are_kept_closed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tenants that have left are kept closed, more and more of them over the years."""
    for number in range(50):
        desk.stop(keep_closed=True, tenant_id=f"gone {number}")
    looked: list[Scope] = []

    def covers(scope: Scope, other: Scope) -> bool:
        looked.append(other)
        return original(scope, other)

    original = Scope.covers
    monkeypatch.setattr(Scope, "covers", covers)
    desk.thorough = False  # or all is looked at each time
    desk.stop(tenant_id="x")
    assert not desk.one(effects.AnswerStop).timed_out
    assert len(looked) < 5
    assert len(desk.closed()) == 50
