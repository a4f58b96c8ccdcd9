"""Indexes over live tasks, so that a stop or a listing costs what it matches, not what the registry holds."""

from collections.abc import Collection, Set as AnySet
from typing import Final

from quiesce.registry.ids import TaskId
from quiesce.registry.records import Task
from quiesce.registry.scope import Scope
from quiesce.registry.sets import take_out

Key = tuple[str, ...]
_NONE: Final[frozenset[TaskId]] = frozenset()


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
        self.add_many((task.id,), spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)

    def remove(self, task: Task) -> None:
        """Take it out again; its labels must be those it was added under."""
        spawn = task.spawn
        self.remove_many((task.id,), spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)

    def add_many(
        self,
        task_ids: Collection[TaskId],
        kind: str,
        tenant_id: str | None,
        timeline_id: str | None,
        runtime: str,
    ) -> None:
        """Enter live tasks that all have these labels."""
        for key in _keys(kind, tenant_id, timeline_id, runtime):
            self._sets.setdefault(key, set()).update(task_ids)

    def remove_many(
        self,
        task_ids: Collection[TaskId],
        kind: str,
        tenant_id: str | None,
        timeline_id: str | None,
        runtime: str,
    ) -> None:
        """Take out tasks that were added under these labels."""
        for key in _keys(kind, tenant_id, timeline_id, runtime):
            members = self._sets[key]
            take_out(members, task_ids)
            if not members:
                del self._sets[key]

    def has(self, *, kind: str | None = None, runtime: str | None = None) -> bool:
        """Whether a live task is of this kind, or this runtime."""
        return ("k", kind) in self._sets or ("r", runtime) in self._sets

    def find(
        self,
        scope: Scope,
        tasks: dict[TaskId, Task],
        *,
        among: AnySet[TaskId] | None = None,
    ) -> set[TaskId]:
        """The ids of all tasks in the scope, or of those `among` these."""
        keys: list[Key] = []
        if scope.tenant_id is not None and scope.kind is not None:
            keys.append(("tk", scope.tenant_id, scope.kind))
        elif scope.tenant_id is not None:
            keys.append(("t", scope.tenant_id))
        elif scope.kind is not None:
            keys.append(("k", scope.kind))
        if scope.runtime is not None:
            keys.append(("r", scope.runtime))
        if scope.timeline_id is not None:
            keys.append(("l", scope.timeline_id))
        if not keys:
            return set(tasks if among is None else among)
        sets: list[AnySet[TaskId]] = [self._sets.get(key, _NONE) for key in keys]
        if among is not None:
            sets.append(among)
        smallest, *others = sorted(sets, key=len)
        found = set(smallest)
        if others:
            found.intersection_update(*others)
        return found

    def as_dict(self) -> dict[Key, set[TaskId]]:
        """For the checker of invariants."""
        return self._sets
