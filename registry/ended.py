"""What the registry remembers of a task that has ended, changed by nobody any more."""

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


def ended_task(
    task: Task,
    outcome: str,
    evidence: str,
    exit_status: int | None,
    started_at: float | None,
    ended_at: float,
    host: str,
    worker_pid: int | None,
) -> EndedTask:
    """What is remembered of this one."""
    spawn, ask = task.spawn, task.ask
    return _new(
        EndedTask,
        (
            ask.reason if ask else "",
            task.attempt,
            task.created_at,
            ended_at,
            evidence,
            exit_status,
            host,
            task.id,
            spawn.kind,
            spawn.name,
            outcome,
            spawn.runtime,
            started_at,
            ask is not None,
            task.tenant_id,
            task.timeline_id,
            worker_pid,
            task.progress,
        ),
    )


#: Thousands of them end at a time: without the detour over the arguments of a named tuple.
_new = tuple.__new__
