"""Freezing ahead of a snapshot: queued tasks, some in each turn, so that the snapshot itself does not take long.

They are nearly all of a registry that is large. And of a queued task that nothing is parked behind, nothing that
a journal holds changes but in three ways: it is assigned, joined, or something is parked behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from quiesce.registry import facts
from quiesce.registry.facts import Fact
from quiesce.registry.freezing import freeze_for_journal
from quiesce.registry.ids import TaskId
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

#: Tasks that are frozen in one turn.
SLICE: Final = 1000


class Ahead:
    """What has been frozen for the next snapshot. Is shown all facts."""

    def __init__(self, state: State) -> None:
        self._state = state
        #: Queued tasks as they are now.
        self._rows: dict[TaskId, tuple[Any, ...]] = {}
        #: Those of this round that have not been looked at; None: it has not begun.
        self._left: Iterator[int] | None = None
        #: Until which task this round goes, and over how many.
        self._through = self._many = 0

    @property
    def begun(self) -> bool:
        """Whether a snapshot is to come."""
        return self._left is not None

    def go_on(self) -> bool:
        """Freeze some more; whether it is time for the snapshot."""
        state = self._state
        if self._left is None:
            self._left = self._round(list(state.tasks))
        looked = list(islice(self._left, SLICE))
        for number in looked:
            task = state.tasks.get(TaskId(number))
            if task is not None and task.state is TaskState.QUEUED and not task.parked:
                self._rows[task.id] = freeze_for_journal(task)
        if len(looked) == SLICE:
            return False
        # The next round is over those that came during this one; unless they come as fast as they are frozen.
        came = range(self._through + 1, state.last_task_id + 1)
        if len(came) < SLICE or len(came) >= self._many:
            return True
        self._left = self._round(came)
        return False

    def _round(self, numbers: Sequence[int]) -> Iterator[int]:
        self._through, self._many = self._state.last_task_id, len(numbers)
        return iter(numbers)

    def see(self, happened: Iterable[Fact]) -> None:
        """These have been applied."""
        if self._left is None:
            return
        for fact in happened:
            if isinstance(fact, (facts.TaskAssigned, facts.SpawnJoined)):
                self._rows.pop(TaskId(fact.task_id), None)
            elif isinstance(fact, facts.TasksAssigned):
                for task_id in fact.task_ids:
                    self._rows.pop(TaskId(task_id), None)
            elif isinstance(fact, facts.SpawnParked):
                self._rows.pop(TaskId(fact.holder), None)

    def take(self) -> dict[TaskId, tuple[Any, ...]]:
        """All that there is, for the snapshot that is now; or to be forgotten, if none is."""
        rows, self._rows, self._left = self._rows, {}, None
        return rows
