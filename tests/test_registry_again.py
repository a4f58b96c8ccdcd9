"""Attempts that follow one another, by restart policy; and tasks that run longer than their own timeout."""

from typing import Any, Final

import pytest

from quiesce.registry import effects, events
from quiesce.registry.ending import INTENSITY, PERIOD
from quiesce.registry.ids import Incarnation
from quiesce.registry.rows import LEASE_OVER, TIMED_OUT, alike_ends
from registry_helpers import GRACE, Desk, answer, ended_row


@pytest.mark.parametrize(
    ("restart", "outcome", "again"),
    [
        ("never", "failed", False),
        ("never", "completed", False),
        ("on-failure", "failed", True),
        ("on-failure", "crashed", True),
        ("on-failure", "completed", False),
        ("always", "completed", True),
        ("always", "failed", True),
        ("always", "cancelled", False),
    ],
)
def test_a_restart_policy_starts_another_attempt(restart: str, outcome: str, again: bool) -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"restart": restart})
    desk.end(worker, 1, outcome=outcome)
    if again:
        assert desk.task(1).attempt == 2
        assert desk.results() == []
    else:
        assert desk.life(1) == f"{outcome} RETURNED"


def test_a_dead_process_is_a_reason_to_restart() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"restart": "on-failure"})
    desk.exit(worker, phases={1: "begun"})
    assert (desk.task(1).attempt, desk.task(1).state) == (2, "queued")


def test_restarts_have_an_intensity() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"restart": "on-failure"})
    for attempt in range(1, INTENSITY + 1):
        desk.end(worker, 1, attempt, outcome="failed")
        desk.begin(worker, 1)
    desk.end(worker, 1, INTENSITY + 1, outcome="failed")
    assert desk.life(1) == "failed RETURNED"
    assert "not restarted any more" in desk.one(effects.Log).text


def test_restarts_of_long_ago_do_not_count() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"restart": "on-failure"})
    for attempt in range(1, 2 * INTENSITY):
        desk.wait(PERIOD / INTENSITY + 1)
        desk.say(events.SessionHeard(next(iter(desk.registry.state.sessions)), 0))
        desk.end(worker, 1, attempt, outcome="failed")
        desk.begin(worker, 1)
    assert desk.task(1).attempt == 2 * INTENSITY


def test_a_stopped_task_is_never_restarted() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"restart": "always", "retries": 3, "tenant_id": "x"})
    desk.stop(tenant_id="x")
    desk.end(worker, 1, outcome="failed")
    assert desk.life(1) == "failed RETURNED"


def running_for(seconds: float, **spawn: Any) -> tuple[Desk, Incarnation]:
    """A task with a timeout of 2 s, which began so long ago; and its worker."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 2.0, **spawn})
    desk.wait(seconds)
    return desk, worker


def test_a_task_that_runs_for_too_long_is_asked_and_has_failed() -> None:
    desk, worker = running_for(1.9)
    assert desk.task(1).ask is None
    desk.wait(0.2)
    ((_, rows),) = desk.take(effects.AskStops)
    assert rows[0][:2] == (1, 1)
    desk.end(worker, 1, outcome="completed", begun_age=2.1)
    (result,) = desk.results()
    assert (result.outcome, result.evidence, len(result.result)) == ("failed", "RETURNED", 0)
    assert result.text.startswith(TIMED_OUT)


#: What a worker says of a task, with a timeout of 2 s, that ended after 1.5 s. It is read after 2.5 s.
ENDED_IN_TIME: Final[dict[str, Any]] = {"begun_age": 2.5, "ended_age": 1.0}


@pytest.mark.parametrize("outcome", ["completed", "failed", "crashed"])
@pytest.mark.parametrize("together", [False, True])
def test_a_task_that_ended_in_time_did_so_however_late_that_is_known(
    outcome: str, together: bool
) -> None:
    """The limit was over for the broker, which had not heard of the end: it was away, or out of reach."""
    desk = Desk(alike=2)
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 2.0}, {"timeout": 2.0})
    desk.wait(2.5)
    assert all(desk.task(task).ask for task in (1, 2))
    rows = [ended_row(task, outcome=outcome, text="t", **ENDED_IN_TIME) for task in (1, 2)]
    desk.say(events.TasksEnded(worker, alike_ends(rows) if together else rows))
    for result in desk.results():
        assert (result.outcome, result.text, result.result) == (outcome, "t", b"result")
    assert [desk.life(task) for task in (1, 2)] == [f"{outcome} RETURNED"] * 2


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"begun_age": 2.5, "ended_age": 0.5}, "completed"),  # at the last moment
        ({"begun_age": 2.5, "ended_age": 0.4}, "failed"),  # late
        ({"begun_age": None, "ended_age": 1.0}, "failed"),  # nobody knows
        # Asked so early since the clocks disagree. What it made of that, it made of its timeout.
        ({**ENDED_IN_TIME, "delivered_age": 1.1}, "failed"),
    ],
)
def test_what_in_time_means(changes: dict[str, Any], outcome: str) -> None:
    desk, worker = running_for(2.5)
    desk.end(worker, 1, **changes)
    assert desk.life(1) == f"{outcome} RETURNED"


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_what_ended_in_time_is_tried_again_only_if_it_failed(stopped: bool, outcome: str) -> None:
    desk, worker = running_for(2.5, retries=1, tenant_id="x")
    if stopped:
        desk.stop(tenant_id="x")
    desk.end(worker, 1, outcome=outcome, **ENDED_IN_TIME)
    again = outcome == "failed" and not stopped
    assert desk.life(1) == ("assigned" if again else f"{outcome} RETURNED")
    if stopped:
        assert desk.ends() == [(1, outcome, "RETURNED")]


def test_what_its_pool_had_asked_to_stop_in_time_was_interrupted() -> None:
    """By a lease that was half over, before its own timeout was: that is not what ended it."""
    desk, worker = running_for(2.5, retries=1)
    text = f"{LEASE_OVER}no broker for 0.7 s"
    desk.end(worker, 1, outcome="cancelled", text=text, delivered_age=1.1, **ENDED_IN_TIME)
    assert (desk.life(1), desk.task(1).attempt, desk.task(1).ask) == ("assigned", 2, None)


def test_its_timeout_uses_the_same_ladder() -> None:
    desk, worker = running_for(2.1)
    desk.seen(worker, 1)
    desk.wait(GRACE)
    assert desk.one(effects.ForceTask).task_id == 1


def test_a_task_that_ran_for_too_long_is_tried_again_unless_a_stop_waits_for_it() -> None:
    for stopped in (False, True):
        desk, worker = running_for(2.1, retries=1, tenant_id="x")
        if stopped:
            desk.stop(tenant_id="x")
        desk.end(worker, 1, outcome="cancelled", begun_age=2.1)
        if stopped:
            assert desk.life(1) == "failed RETURNED"
        else:
            assert (desk.task(1).attempt, desk.task(1).ask) == (2, None)


def test_a_task_that_ends_in_time_has_no_timer_left() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 2.0})
    desk.end(worker, 1)
    desk.wait(5)
    assert desk.life(1) == "completed RETURNED"


@pytest.mark.parametrize("word", ["in time", "late"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_task_that_has_ended_in_time_by_the_table_has_no_timer_left(
    word: str, restarted: bool
) -> None:
    """Its process is dead, and its end may still arrive; `word`: when that it had begun does."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.spawn({"timeout": 0.2})
    if word == "in time":
        desk.begin(worker, 1)
    desk.exit(worker, phases={1: "completed"})
    if restarted:
        desk.restart()
    if word == "late":
        desk.begin(worker, 1)
    assert [due for due, _ in desk.registry.timers.items() if due[1] == 1] == [("late", 1)]
    desk.wait(0.3)
    assert desk.life(1) == "completed RETURNED"


def test_spawns_that_waited_for_its_end_join_the_next_attempt() -> None:
    """It was stopping by its own timeout; then it is tried again."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"unique_key": "k", "timeout": 5.0, "retries": 1})
    desk.wait(5.0)
    desk.spawn({"unique_key": "k"})
    assert desk.answers() == []
    desk.obey(worker, 1)
    assert desk.task(1).attempt == 2
    assert desk.answers() == [answer(2, 1)]


@pytest.mark.parametrize("first", ["timeout", "stop"])
def test_a_task_that_was_stopped_by_name_is_not_tried_again_though_the_stop_gave_up(
    first: str,
) -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 5.0, "retries": 1, "restart": "always"})
    if first == "timeout":
        desk.wait(5.0)
    desk.stop(task_id=1, timeout=1.0)
    desk.wait(5.0)
    desk.end(worker, 1, outcome="failed")
    assert desk.life(1) == "failed RETURNED"


@pytest.mark.parametrize("timeout", [float("inf"), 1e9])
def test_a_timeout_that_is_never_over(timeout: float) -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": timeout})
    desk.wait(200.0)
    assert desk.task(1).ask is None
    assert desk.registry.next_deadline() != float("inf")
