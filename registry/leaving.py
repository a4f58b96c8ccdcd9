"""Tasks that end together: what `apply.task_ended` does for each, for all that follow each other and are alike."""

from collections.abc import Iterable, Iterator
from itertools import groupby, repeat
from typing import Any, Final

from quiesce.registry.ended import ended_tasks
from quiesce.registry.ids import TaskId
from quiesce.registry.moving import RegistryFault, count, leave_key, story
from quiesce.registry.records import Task
from quiesce.registry.rows import ResultRow
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

_new: Final = tuple.__new__
_ENDED: Final = TaskState.ENDED


def alike(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """These, in their order: together those of which afterwards all is told alike but ids, times and results."""
    for _, together in groupby(tasks, _told):
        yield list(together)


def _told(task: Task) -> tuple[Any, ...]:
    spawn = task.spawn
    return (
        task.attempt,
        task.tenant_id,
        task.timeline_id,
        task.watchers,
        task.progress,
        spawn.kind,
        spawn.name,
        spawn.runtime,
    )


def leave(
    state: State,
    tasks: list[Task],
    ids: list[TaskId],
    *,
    outcome: str,
    evidence: str,
    ended_at: Iterable[float],
    started_at: Iterable[float | None] = repeat(None),
    text: str = "",
    results: Iterable[Any] = repeat(b""),
    host: str = "",
    worker_pid: int | None = None,
) -> None:
    """These, which are alike, have ended, each at its times. `State.tasks` and who held them have none of them."""
    for task in tasks:
        if _ENDED not in task.state.leads_to:
            raise RegistryFault(f"can't go from {task.state} to {_ENDED}: {story(task)}")
    if state.unique or state.parked:
        for task in tasks:
            leave_key(state, task)
    first = tasks[0]
    rows: list[ResultRow] = []
    for session_id in first.watchers:
        session = state.sessions.get(session_id)
        if session is not None:
            rows = rows or [
                _new(ResultRow, (task_id, first.attempt, outcome, evidence, None, text, result))
                for task_id, result in zip(ids, results, strict=False)
            ]
            session.results.update(zip(ids, rows, strict=True))
    times = zip(ids, [task.created_at for task in tasks], started_at, ended_at, strict=False)
    ended = ended_tasks(first, outcome, evidence, None, times, host, worker_pid)
    state.history.update(zip(ids, ended, strict=True))
    state.ended_now.update(zip(ids, ended, strict=True))
    spawn = first.spawn
    state.index.remove_many(ids, spawn.kind, first.tenant_id, first.timeline_id, spawn.runtime)
    pool = (spawn.runtime, spawn.kind)
    count(state.live_total, pool, -len(ids))
    count(state.ended_total, (*pool, outcome), len(ids))
