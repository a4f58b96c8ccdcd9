"""Applying a slice of a stop: what `apply.task_ended` does for one task, for hundreds of queued ones at once."""

from itertools import repeat
from typing import Final

from quiesce.registry import facts
from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.leaving import alike, leave
from quiesce.registry.marked import Batch
from quiesce.registry.moving import RegistryFault, story
from quiesce.registry.records import Ask, Task, stopped_row
from quiesce.registry.rows import StoppedRow
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome, State as TaskState

_CANCELLED: Final = str(Outcome.CANCELLED)
_NEVER_RAN: Final = str(Evidence.NEVER_RAN)
_new: Final = tuple.__new__


def tasks_never_ran(state: State, fact: facts.TasksNeverRan) -> None:
    """As `facts.singly` has it. A stop took them out of their queue when it marked them."""
    ask = Ask(fact.asked_at, fact.reason)  # theirs alone, and none outlives this step
    ask.stopped = True
    rows: dict[frozenset[StopId], list[StoppedRow]] = {}
    tasks = map(state.tasks.pop, fact.task_ids)  # type: ignore[arg-type]  # of ids
    for together in alike(tasks):
        first, ids = together[0], [task.id for task in together]
        first.ask = ask
        batch = _batch_of(state, together, ids)
        state.marked.leave(batch, set(ids))
        row = stopped_row(first, _CANCELLED, _NEVER_RAN, None, fact.at)[1:]
        ended = [_new(StoppedRow, (task_id, *row)) for task_id in ids]
        rows.setdefault(batch.stops, []).extend(ended)
        leave(
            state,
            together,
            ids,
            outcome=_CANCELLED,
            evidence=_NEVER_RAN,
            ended_at=repeat(fact.at),
            text=fact.text,
        )
    for stops, reported in rows.items():
        for stop_id in stops:
            state.stops[stop_id].report(reported, _CANCELLED, _NEVER_RAN)


def _batch_of(state: State, tasks: list[Task], ids: list[TaskId]) -> Batch:
    """In which a stop has put them all: they are queued at one place, and have been marked by the same stops."""
    for task in tasks:
        if task.state is not TaskState.QUEUED:
            raise RegistryFault(f"a slice of a stop ends only what is queued: {story(task)}")
    batch = state.marked.find(tasks[0])
    if batch is None or not batch.lane.members.issuperset(ids):
        raise RegistryFault(
            f"a slice of a stop ends only what it has marked: {story(tasks[0])} and {len(ids) - 1} others"
        )
    return batch
