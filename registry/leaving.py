"""Tasks that end together: what `apply.task_ended` does for each, for all that follow each other and are alike."""

from collections.abc import Iterable, Iterator
from itertools import groupby, repeat
from typing import Any

from quiesce.registry.ended import ended_task
from quiesce.registry.ids import TaskId
from quiesce.registry.moving import RegistryFault, count, leave_key, story
from quiesce.registry.records import Task
from quiesce.registry.rows import ResultRow, copies
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState


class Group:
    """Live tasks of which all that is told afterwards is the same, but for their ids, times and results."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks
        #: Whatever is told of one is told of this one.
        self.first = tasks[0]
        self.ids: list[TaskId] = [task.id for task in tasks]

    @property
    def labels(self) -> tuple[str, str | None, str | None, str]:
        """What places them in the index."""
        task, spawn = self.first, self.first.spawn
        return (spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)

    def check_leads(self, to: TaskState) -> None:
        """Raise RegistryFault if one of them can't become that."""
        if any(to not in state.leads_to for state in {task.state for task in self.tasks}):
            stories = [story(task) for task in self.tasks if to not in task.state.leads_to]
            raise RegistryFault(f"can't go to {to}: {stories[0]}")


def groups(tasks: Iterable[Task]) -> Iterator[Group]:
    """These, in their order."""
    for _, together in groupby(tasks, _told):
        yield Group(list(together))


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
    group: Group,
    *,
    outcome: str,
    evidence: str,
    text: str = "",
    results: Iterable[Any] = repeat(b""),
    started_at: Iterable[float | None] = repeat(None),
    ended_at: Iterable[float],
    host: str = "",
    worker_pid: int | None = None,
) -> None:
    """They have ended, each with its result and at its times. They have left `State.tasks`, and who held them."""
    task, ids = group.first, group.ids
    group.check_leads(TaskState.ENDED)
    if state.unique or state.parked:
        for each in group.tasks:
            leave_key(state, each)
    watching = [each for each in map(state.sessions.get, task.watchers) if each is not None]
    if watching:
        result = ResultRow(task.id, task.attempt, outcome, evidence, None, text, b"")
        rows = dict(zip(ids, copies(result, task_id=ids, result=results), strict=False))
        for session in watching:
            session.results.update(rows)
    ended = ended_task(task, outcome, evidence, None, None, 0.0, host, worker_pid)
    created_at = [each.created_at for each in group.tasks]
    remembered = copies(
        ended, id=ids, created_at=created_at, started_at=started_at, ended_at=ended_at
    )
    now = dict(zip(ids, remembered, strict=True))
    state.history.update(now)
    state.ended_now.update(now)
    state.index.remove_many(ids, *group.labels)
    pool = (task.spawn.runtime, task.spawn.kind)
    count(state.live_total, pool, -len(ids))
    count(state.ended_total, (*pool, outcome), len(ids))
