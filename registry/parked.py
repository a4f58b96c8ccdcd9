"""The spawns that wait for the end of a task which is stopping, and has their unique key."""

from collections.abc import Iterable

from quiesce.registry.counts import count
from quiesce.registry.ids import SessionId, TaskId
from quiesce.registry.records import Session, Task
from quiesce.registry.rows import SpawnRow

#: Whose spawn it is, and its number there.
Key = tuple[SessionId, int]


class Parked:
    """All and only these: tasks have those behind them, sessions their own. Each is decided once."""

    __slots__ = ("_by", "holders", "in_runtime")

    def __init__(self) -> None:
        #: The tasks that some are behind.
        self.holders: set[TaskId] = set()
        #: How many are to run in each runtime. No zeros.
        self.in_runtime: dict[str, int] = {}
        #: Those that tasks have made: task -> spawn -> whom it is behind. No empty ones.
        self._by: dict[TaskId, dict[Key, TaskId]] = {}

    def __len__(self) -> int:
        return sum(self.in_runtime.values())

    def add(self, holder: Task, session: Session, row: SpawnRow) -> None:
        """It waits for the end of the holder."""
        holder.park(session.id, row)
        session.parked[row.number] = holder.id
        self.holders.add(holder.id)
        count(self.in_runtime, row.runtime, +1)
        if row.parent is not None:
            made = self._by.setdefault(TaskId(row.parent[0]), {})
            made[session.id, row.number] = holder.id

    def remove(self, holder: Task, session: Session, number: int) -> None:
        """It waits no more."""
        row = holder.unpark(session.id, number)
        del session.parked[number]
        if not holder.parked:
            self.holders.remove(holder.id)
        count(self.in_runtime, row.runtime, -1)
        if row.parent is not None:
            parent = TaskId(row.parent[0])
            made = self._by[parent]
            del made[session.id, number]
            if not made:
                del self._by[parent]

    def all_made(self) -> list[tuple[TaskId, Key]]:
        """Those of all tasks, for the checker of invariants."""
        return self.made_by(self._by)

    def made_by(self, tasks: Iterable[TaskId]) -> list[tuple[TaskId, Key]]:
        """Those that these tasks have made, each with whom it is behind, by these."""
        return sorted(
            (holder, key) for task_id in tasks for key, holder in self._by.get(task_id, {}).items()
        )
