"""What the registry remembers of a task that has ended, changed by nobody any more."""

from collections.abc import Iterable
from typing import NamedTuple

from quiesce.registry.ids import Attempt, TaskId
from quiesce.registry.records import Task


class EndedTask(NamedTuple):
    """A task in the bounded history: what a listing shows of it, without its payloads.

    The order of its fields is that of snapshots.
    """

    ask_reason: str
    attempt: Attempt
    created_at: float
    ended_at: float
    evidence: str
    exit_status: int | None
    host: str
    id: TaskId
    kind: str
    name: str
    outcome: str
    runtime: str
    started_at: float | None
    stopping: bool
    tenant_id: str | None
    timeline_id: str | None
    worker_pid: int | None
    #: Volatile.
    progress: tuple[float, float | None, str] | None = None


def ended_tasks(
    task: Task,
    outcome: str,
    evidence: str,
    exit_status: int | None,
    times: Iterable[tuple[Task, float | None, float]],
    host: str,
    worker_pid: int | None,
) -> list[EndedTask]:
    """What is remembered of these, each with the times at which it began and ended. They are like `task` but for
    that, their ids, and when they were created.
    """
    spawn, ask = task.spawn, task.ask
    reason = ask.reason if ask else ""
    attempt, stopping, progress = task.attempt, ask is not None, task.progress
    kind, name, runtime = spawn.kind, spawn.name, spawn.runtime
    tenant_id, timeline_id = task.tenant_id, task.timeline_id
    return [
        _new(
            EndedTask,
            (
                reason,
                attempt,
                each.created_at,
                ended_at,
                evidence,
                exit_status,
                host,
                each.id,
                kind,
                name,
                outcome,
                runtime,
                started_at,
                stopping,
                tenant_id,
                timeline_id,
                worker_pid,
                progress,
            ),
        )
        for each, started_at, ended_at in times
    ]


#: Thousands of them end at a time: without the detour over the arguments of a named tuple.
_new = tuple.__new__
