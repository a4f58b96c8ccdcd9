"""What a listing shows: pure reads of the state, as rows."""

from collections.abc import Iterator

from quiesce.registry.ended import EndedTask
from quiesce.registry.ids import TaskId
from quiesce.registry.records import Task
from quiesce.registry.rows import ClosedRow, EndedStopRow, StopRow, TaskRow, WorkerRow
from quiesce.registry.scope import Scope
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState
from quiesce.registry.stop_history import THE_SYSTEM, says_something
from quiesce.registry.waiting import holding, waiting_for

#: Tasks named in one row of `stops`.
NAMED = 20


def live_row(state: State, task: Task) -> TaskRow:
    """A live task."""
    worker = state.workers.get(task.worker)
    ask = task.ask
    return TaskRow(
        task.id,
        task.attempt,
        task.spawn.kind,
        task.spawn.name,
        task.spawn.runtime,
        task.tenant_id,
        task.timeline_id,
        task.state,
        state.is_stopping(task),
        bool(task.lingering),
        None,
        None,
        None,
        "" if ask is None else ask.reason,
        task.created_at,
        task.started_at,
        None,
        task.last_check_at,
        task.progress,
        "" if worker is None else worker.host,
        None if worker is None else worker.pid,
        waiting_for(state, task),
    )


def ended_row(ended: EndedTask) -> TaskRow:
    """A task of the history."""
    return TaskRow(
        ended.id,
        ended.attempt,
        ended.kind,
        ended.name,
        ended.runtime,
        ended.tenant_id,
        ended.timeline_id,
        TaskState.ENDED,
        ended.stopping,
        False,
        ended.outcome,
        ended.evidence,
        ended.exit_status,
        ended.ask_reason,
        ended.created_at,
        ended.started_at,
        ended.ended_at,
        None,
        ended.progress,
        ended.host,
        ended.worker_pid,
        "",
    )


def tasks(state: State, scope: Scope, wanted: str | None) -> Iterator[TaskRow]:
    """The tasks of a scope: live ones (of one state, if named), or "ended" ones of the history.

    Those of this moment; but each is made when it is taken, and shows what the task is by then. Live ones that have
    ended meanwhile are left out.
    """
    if wanted == TaskState.ENDED:
        found = [
            ended
            for ended in state.history.values()
            if scope.matches(ended.kind, ended.tenant_id, ended.timeline_id, ended.runtime)
        ]
        return map(ended_row, found)
    live = map(state.tasks.get, sorted(state.index.find(scope, state.tasks)))
    return (
        live_row(state, task)
        for task in live
        if task is not None and (wanted is None or task.state == wanted)
    )


def task(state: State, task_id: TaskId) -> TaskRow | None:
    """One task, live or in the history."""
    live = state.tasks.get(task_id)
    if live is not None:
        return live_row(state, live)
    ended = state.history.get(task_id)
    return None if ended is None else ended_row(ended)


def workers(state: State) -> list[WorkerRow]:
    """All living workers, by runtime and incarnation."""
    rows = []
    for runtime in sorted(state.pool):
        for worker in state.pool[runtime].values():
            supervisor = state.supervisors.get(worker.supervisor)
            rows.append(
                WorkerRow(
                    runtime,
                    worker.host,
                    worker.pid,
                    0 if supervisor is None else supervisor.pid,
                    worker.incarnation,
                    "exiting" if worker.exiting else "ready" if worker.attached else "starting",
                    list(worker.tasks),
                    worker.cpu_seconds,
                    worker.memory_bytes,
                )
            )
    return rows


def closed(state: State) -> list[ClosedRow]:
    """All closed scopes, oldest first."""
    return [
        ClosedRow(
            *closure.scope,
            closure.holder,
            closure.reason,
            closure.since,
            holding(state, stop_id, closure),
        )
        for stop_id, closure in sorted(state.closures.items())
    ]


def stops(state: State) -> list[StopRow]:
    """All stops in progress and what they wait for."""
    return [
        StopRow(
            stop.id,
            str(stop.scope) if stop.task_id is None else f"task={stop.task_id}",
            stop.reason,
            stop.at,
            state.left_of(stop),
            [live_row(state, state.tasks[member]) for member in state.first_left(stop, NAMED)],
        )
        for stop in state.open_stops.values()
    ]


def ended_stops(state: State, scope: Scope) -> list[EndedStopRow]:
    """The ended stops of the history that may have matched a task of this scope, in the order of their ends.

    What the system's own have closed opens with its next start: they keep nothing closed.
    """
    return [
        EndedStopRow(
            ended.id,
            *ended.scope,
            ended.task_id,
            ended.reason,
            ended.requested_at,
            ended.completed_at,
            ended.timed_out,
            list(ended.outcomes),
            list(ended.evidence),
            ended.remaining,
            ended.keep_closed and ended.by != THE_SYSTEM,
            ended.by,
        )
        for ended in state.stop_history
        if says_something(ended)
        and all(
            wanted is None or (mine is None and ended.task_id is None) or mine == wanted
            for wanted, mine in zip(scope, ended.scope, strict=True)
        )
    ]
