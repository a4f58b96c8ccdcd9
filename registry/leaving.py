"""What follows for the registry when tasks have ended: one, or many that follow each other and are alike."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from typing import Any

from quiesce.registry.counts import count
from quiesce.registry.ended import ended_tasks
from quiesce.registry.ids import TaskId
from quiesce.registry.moving import keep_short, move_all
from quiesce.registry.records import Task
from quiesce.registry.results import made
from quiesce.registry.rows import ResultRow
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState


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
    exit_status: int | None = None,
    text: str = "",
    results: Sequence[Any] = (b"",),
    host: str = "",
    worker_pid: int | None = None,
) -> None:
    """These, which are alike, have ended, each at its times, with its result or one that is everybody's.
    `State.tasks` and who held them have none of them.
    """
    move_all(tasks, TaskState.ENDED)
    if state.unique or state.parked.holders:
        for task in tasks:
            _leave_key(state, task)
    first = tasks[0]
    fields = (first.attempt, outcome, evidence, exit_status, text)
    rows: list[ResultRow] = []
    for session in map(state.sessions.get, first.watchers):
        if session is not None:
            rows = rows or made(ids, fields, results)
            session.results.update(zip(ids, rows, strict=True))
    times = zip(tasks, started_at, ended_at, strict=False)
    ended = ended_tasks(first, outcome, evidence, exit_status, times, host, worker_pid)
    for task_id, each in zip(ids, ended, strict=True):
        state.history[task_id] = state.ended_now[task_id] = each
    keep_short(state)
    spawn = first.spawn
    state.index.remove_many(ids, spawn.kind, first.tenant_id, first.timeline_id, spawn.runtime)
    pool = (spawn.runtime, spawn.kind)
    count(state.live_total, pool, -len(ids))
    count(state.ended_total, (*pool, outcome), len(ids))


def _leave_key(state: State, task: Task) -> None:
    """It has ended: its unique key is free, and nothing is parked behind it."""
    unique = task.unique
    if unique is not None:
        del state.unique[unique]
    for session_id, number in list(task.parked):
        state.parked.remove(task, state.sessions[session_id], number)
