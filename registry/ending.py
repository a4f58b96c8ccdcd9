"""The end of an attempt, and what it leads to: a retry, a result, a stop's proof, a stop of the system."""

from collections.abc import Sized
from itertools import groupby
from operator import attrgetter
from typing import Final

from quiesce.registry import facts
from quiesce.registry.ids import SessionId, TaskId
from quiesce.registry.records import Task, Worker
from quiesce.registry.results import told
from quiesce.registry.rows import LEASE_OVER, TIMED_OUT, EndedRow, SpawnRow
from quiesce.registry.states import Evidence, Outcome
from quiesce.registry.turn import Turn

#: Outcomes that a retry, or a stop of the system, may follow.
BAD: Final = frozenset({Outcome.FAILED, Outcome.CRASHED, Outcome.LOST})
#: So many restarts in so many seconds, and no more.
INTENSITY: Final = 5
PERIOD: Final = 60.0
#: What is said of a task that was stopped before it began.
NEVER_BEGAN: Final = "stopped before it began"
#: Enumerations are slow.
_COMPLETED: Final = str(Outcome.COMPLETED)
_RETURNED: Final = str(Evidence.RETURNED)
_ASK: Final = attrgetter("ask")
_ATTEMPT: Final = attrgetter("attempt")
_ID: Final = attrgetter("id")
_PARKED: Final = attrgetter("parked")
_SPAWN: Final = attrgetter("spawn")
_WATCHERS: Final = attrgetter("watchers")


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
    in_time: bool = False,
) -> None:
    """The attempt has ended: a new one begins, or the task has ended and all that waited for it hears so.

    `in_time`: within its own timeout, though it was asked to stop since that seemed to be over.
    """
    state = turn.state
    if task.ask is not None:
        turn.timers.clear(("resend", task.id))
        turn.timers.clear(("force", task.id))
    if task.spawn.timeout is not None:
        turn.timers.clear(("limit", task.id))
    turn.timers.clear(("late", task.id))
    turn.let_go(task)
    if task.ask is not None and task.ask.timed_out and not in_time:
        outcome, result = Outcome.FAILED, b""
        text = f"{TIMED_OUT}{task.ask.reason}\n{text}".rstrip()
    if _goes_on(turn, task, outcome, interrupted=text.startswith(LEASE_OVER)):
        return
    if task.ask is not None:
        at = max(at, task.ask.at, task.ask.delivered_at or 0.0, task.ask.observed_at or 0.0)
    if state.waited:  # a worker held it
        turn.touched.update(state.waited.get(task.id, ()))
    turn.unpark(task)
    turn.emit(
        facts.TaskEnded(
            task.id, str(outcome), str(evidence), exit_status, started_at, at, text, result
        )
    )
    for session in map(turn.state.sessions.get, task.watchers):
        if session is not None:
            turn.send_results(session.id, [session.results[task.id]])
    if task.spawn.shutdown_process_on_error and outcome in BAD and not _asked(task):
        turn.fatal = (
            f"task {task.id} {task.spawn.kind} {task.spawn.name!r}, marked "
            f"shutdown_process_on_error, {outcome}"
        )


def is_plain(task: Task, row: EndedRow) -> bool:
    """Whether nothing follows from this end but its result: no stop waits for it, for it was not asked to stop, and
    nothing comes after it. (Of a worker that lives.)
    """
    return may_be_plain(row) and task.ask is None and not task.parked and _ends_plainly(task.spawn)


def may_be_plain(row: EndedRow) -> bool:
    """As far as the row says."""
    return row.outcome == _COMPLETED and row.evidence == _RETURNED and not row.text


def _ends_plainly(spawn: SpawnRow) -> bool:
    return spawn.timeout is None and spawn.unique_key is None and spawn.restart != "always"


def all_plain(tasks: list[Task], attempt: int) -> bool:
    """The same of many tasks whose rows may be plain; they are in this attempt, too. (Those that were spawned
    together share a row.)
    """
    return (
        not any(map(_ASK, tasks))
        and not any(map(_PARKED, tasks))
        and set(map(_ATTEMPT, tasks)) == {attempt}
        and all(_ends_plainly(next(same)) for _, same in groupby(map(_SPAWN, tasks), id))
    )


def complete(
    turn: Turn,
    worker: Worker,
    tasks: list[Task],
    started_at: list[float],
    at: list[float],
    results: list[Sized],
) -> None:
    """End these, which are plain, as `end` would, at once: when each began and ended, and its result."""
    for task in {task.spawn.kind: task for task in tasks}.values():
        turn.let_go(task)
    task_ids: list[int] = list(map(_ID, tasks))
    turn.emit(facts.TasksCompleted(worker.incarnation, task_ids, started_at, at, results))
    _tell_watchers(turn, tasks)


def _goes_on(turn: Turn, task: Task, outcome: str, *, interrupted: bool) -> bool:
    """Queue the task for another attempt, by its retries or its restart policy; whether it was.

    `interrupted`: its pool had asked it to stop, for want of a broker. Nobody wanted it stopped, so what it made
    of that request is as good as a failure.

    Restarts have an intensity, as supervisors of Erlang/OTP do: after INTENSITY of them in PERIOD
    seconds the task ends as it is.
    """
    if outcome == Outcome.COMPLETED and task.spawn.restart != "always":
        return False
    if not may_run_again(turn, task):
        return False
    retries, now = task.retries, turn.now.tick
    bad = outcome in BAD or (interrupted and outcome != Outcome.COMPLETED)
    if bad and retries > 0:
        why = f"{retries} retries left"
        retries -= 1
    elif task.spawn.restart == "always" or (task.spawn.restart == "on-failure" and bad):
        if outcome == Outcome.CANCELLED and not interrupted:
            return False
        lately = [at for at in task.restarts if now - at < PERIOD]
        if len(lately) >= INTENSITY:
            turn.log(
                "ERROR",
                f"task {task.id}.{task.attempt} {task.spawn.kind} {task.spawn.name!r} {outcome} after "
                f"{INTENSITY} restarts in {PERIOD:.0f} s: it is not restarted any more",
            )
            return False
        task.restarts = (*lately, now)
        why = f"its restart policy is {task.spawn.restart}"
    else:
        return False
    turn.log(
        "WARNING" if outcome in BAD else "DEBUG",
        f"task {task.id}.{task.attempt} {task.spawn.kind} {task.spawn.name!r} {outcome}; {why}: "
        "it is queued again",
    )
    turn.emit(facts.TaskRequeued(task.id, task.attempt + 1, retries))
    turn.unpark(task)  # they waited for its end; now they join it
    return True


def has_more(turn: Turn, task: Task) -> bool:
    """Whether an attempt that fails now would be followed by another, as far as can be said before."""
    return may_run_again(turn, task) and (task.retries > 0 or task.spawn.restart != "never")


def _asked(task: Task) -> bool:
    """Whether somebody asked it to stop; its own timeout is nobody."""
    return task.ask is not None and (not task.ask.timed_out or task.ask.stopped)


def may_run_again(turn: Turn, task: Task) -> bool:
    """Whether another attempt may follow: not if it was asked to stop, nor into a closed scope."""
    if _asked(task) or turn.state.stopping:
        return False
    spawn = task.spawn
    closing = turn.state.closing
    return not (
        closing(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
        or closing(spawn.kind, spawn.tenant_id, spawn.timeline_id, spawn.runtime)
    )


def never_queued(turn: Turn, task_ids: list[TaskId], asked_at: float, reason: str) -> None:
    """End queued tasks that the same stops have marked. They hold nothing that others could get now."""
    tasks = [turn.state.tasks[task_id] for task_id in task_ids]
    if turn.state.parked.holders:
        for task in tasks:
            turn.unpark(task)
    turn.touched.update(turn.state.stops_for(tasks[0]))
    at = max(turn.now.wall, asked_at)
    turn.emit(facts.TasksNeverRan([*task_ids], asked_at, reason, at, NEVER_BEGAN))
    _tell_watchers(turn, tasks)


def _tell_watchers(turn: Turn, tasks: list[Task]) -> None:
    """These have ended: whoever watches one of them, and is still there, gets its result."""
    watched: dict[SessionId, list[TaskId]] = {}
    for watchers, together in groupby(tasks, _WATCHERS):
        task_ids = list(map(_ID, together))
        for session_id in watchers:
            watched.setdefault(session_id, []).extend(task_ids)
    for session_id, task_ids in watched.items():
        session = turn.state.sessions.get(session_id)
        if session is not None:
            turn.send_results(session_id, told(session, task_ids))


def never_ran(turn: Turn, task: Task) -> None:
    """End a task that was asked to stop before it began."""
    end(
        turn,
        task,
        outcome=Outcome.CANCELLED,
        evidence=Evidence.NEVER_RAN,
        started_at=None,
        at=turn.now.wall,
        text=NEVER_BEGAN,
    )
