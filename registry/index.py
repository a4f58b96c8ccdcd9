"""Indexes over live tasks, so that a stop or a listing costs what it matches, not what the registry holds."""

from quiesce.registry.ids import TaskId
from quiesce.registry.records import Task
from quiesce.registry.scope import Scope

Key = tuple[str, ...]


def _keys(kind: str, tenant_id: str | None, timeline_id: str | None, runtime: str) -> list[Key]:
    keys: list[Key] = [("k", kind), ("r", runtime)]
    if tenant_id is not None:
        keys.append(("t", tenant_id))
        keys.append(("tk", tenant_id, kind))
    if timeline_id is not None:
        keys.append(("l", timeline_id))
    return keys


class ScopeIndex:
    """Finds the live tasks of a scope from the smallest set that holds them all."""

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        #: For each key, all and only the live tasks with that label; no empty sets.
        self._sets: dict[Key, set[TaskId]] = {}

    def add(self, task: Task) -> None:
        """Enter a live task under its present labels."""
        spawn = task.spawn
        for key in _keys(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime):
            self._sets.setdefault(key, set()).add(task.id)

    def remove(self, task: Task) -> None:
        """Take it out again; its labels must be those it was added under."""
        spawn = task.spawn
        for key in _keys(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime):
            members = self._sets[key]
            members.remove(task.id)
            if not members:
                del self._sets[key]

    def has(self, *, kind: str | None = None, runtime: str | None = None) -> bool:
        """Whether a live task is of this kind, or this runtime."""
        return ("k", kind) in self._sets or ("r", runtime) in self._sets

    def find(self, scope: Scope, tasks: dict[TaskId, Task]) -> list[TaskId]:
        """The ids of all tasks in the scope, ascending."""
        keys: list[Key] = []
        if scope.kind is not None:
            keys.append(("k", scope.kind))
        if scope.runtime is not None:
            keys.append(("r", scope.runtime))
        if scope.tenant_id is not None:
            keys.append(("t", scope.tenant_id))
            if scope.kind is not None:
                keys.append(("tk", scope.tenant_id, scope.kind))
        if scope.timeline_id is not None:
            keys.append(("l", scope.timeline_id))
        if not keys:
            return sorted(tasks)
        candidates = min((self._sets.get(key, set()) for key in keys), key=len)
        if len(keys) == 1:
            return sorted(candidates)
        return sorted(
            task_id
            for task_id in candidates
            if scope.matches(
                (task := tasks[task_id]).spawn.kind,
                task.tenant_id,
                task.timeline_id,
                task.spawn.runtime,
            )
        )

    def as_dict(self) -> dict[Key, set[TaskId]]:
        """For the checker of invariants."""
        return self._sets
