"""The end of an attempt, and what it leads to: a retry, a result, a stop's proof, a stop of the system."""

from collections.abc import Sized
from typing import Final

from quiesce.registry import facts
from quiesce.registry.records import Task
from quiesce.registry.states import Evidence, Outcome
from quiesce.registry.turn import Turn

#: Outcomes that a retry, or a stop of the system, may follow.
BAD: Final = frozenset({Outcome.FAILED, Outcome.CRASHED, Outcome.LOST})


def end(
    turn: Turn,
    task: Task,
    *,
    outcome: str,
    evidence: str,
    started_at: float | None,
    at: float,
    exit_status: int | None = None,
    text: str = "",
    result: Sized = b"",
) -> None:
    """The attempt has ended: a new one begins, or the task has ended and all that waited for it hears so."""
    state = turn.state
    turn.timers.clear(("resend", task.id))
    turn.timers.clear(("force", task.id))
    turn.timers.clear(("late", task.id))
    turn.let_go(task)
    if outcome in BAD and may_retry(turn, task):
        turn.log(
            "WARNING",
            f"task {task.id}.{task.attempt} {task.spawn.kind} {task.spawn.name!r} {outcome}; "
            f"{task.retries} retries left: it is queued again",
        )
        turn.emit(facts.TaskRequeued(task.id, task.attempt + 1, task.retries - 1))
        return
    if task.ask is not None:
        at = max(at, task.ask.at, task.ask.delivered_at or 0.0, task.ask.observed_at or 0.0)
    turn.emit(
        facts.TaskEnded(
            task.id, str(outcome), str(evidence), exit_status, started_at, at, text, result
        )
    )
    for session_id in task.watchers:
        session = state.sessions.get(session_id)
        if session is not None:
            turn.send_result(session_id, session.results[task.id])
    turn.unparked.extend(task.parked)
    turn.touched.update(task.stops)
    if outcome in BAD and task.spawn.shutdown_process_on_error and task.ask is None:
        turn.fatal = (
            f"task {task.id} {task.spawn.kind} {task.spawn.name!r}, marked "
            f"shutdown_process_on_error, {outcome}"
        )


def may_retry(turn: Turn, task: Task) -> bool:
    """Whether an attempt that fails now is followed by another."""
    if task.retries < 1 or task.ask is not None or turn.state.stopping:
        return False
    spawn = task.spawn
    closing = turn.state.closing
    return not (
        closing(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
        or closing(spawn.kind, spawn.tenant_id, spawn.timeline_id, spawn.runtime)
    )


def never_ran(turn: Turn, task: Task) -> None:
    """End a task that was asked to stop before it began."""
    end(
        turn,
        task,
        outcome=Outcome.CANCELLED,
        evidence=Evidence.NEVER_RAN,
        started_at=None,
        at=turn.now.wall,
        text="stopped before it began",
    )
