"""Applying a slice of a stop: what `apply.task_ended` does for one task, for hundreds of queued ones at once."""

from itertools import repeat
from typing import Final

from quiesce.registry import facts
from quiesce.registry.ids import StopId
from quiesce.registry.leaving import Group, groups, leave
from quiesce.registry.marked import Batch
from quiesce.registry.moving import RegistryFault, keep_short, story
from quiesce.registry.records import Ask, stopped_row
from quiesce.registry.rows import StoppedRow, copies
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome, State as TaskState

_CANCELLED: Final = str(Outcome.CANCELLED)
_NEVER_RAN: Final = str(Evidence.NEVER_RAN)


def tasks_never_ran(state: State, fact: facts.TasksNeverRan) -> None:
    """As `facts.singly` has it. A stop took them out of their queue when it marked them."""
    ask = Ask(fact.asked_at, fact.reason)  # theirs alone, and none outlives this step
    ask.stopped = True
    rows: dict[frozenset[StopId], list[StoppedRow]] = {}
    tasks = map(state.tasks.pop, fact.task_ids)  # type: ignore[arg-type]  # of ids
    for group in groups(tasks):
        first = group.first
        first.ask = ask
        batch = _batch_of(state, group)
        state.marked.leave(batch, set(group.ids))
        row = stopped_row(first, _CANCELLED, _NEVER_RAN, None, fact.at)
        rows.setdefault(batch.stops, []).extend(copies(row, id=group.ids))
        leave(
            state,
            group,
            outcome=_CANCELLED,
            evidence=_NEVER_RAN,
            text=fact.text,
            ended_at=repeat(fact.at, len(group.ids)),
        )
    for stops, ended in rows.items():
        for stop_id in stops:
            state.stops[stop_id].report(ended)
    keep_short(state)


def _batch_of(state: State, group: Group) -> Batch:
    """In which a stop has put them all: they are queued at one place, and have been marked by the same stops."""
    for task in group.tasks:
        if task.state is not TaskState.QUEUED:
            raise RegistryFault(f"a slice of a stop ends only what is queued: {story(task)}")
    batch = state.marked.find(group.first)
    if batch is None or not batch.lane.members.issuperset(group.ids):
        raise RegistryFault(
            f"a slice of a stop ends only what it has marked: {story(group.first)} and those with it"
        )
    return batch
