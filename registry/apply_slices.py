"""Applying a slice of a stop: what `apply.task_ended` does for one task, for hundreds of queued ones at once."""

from typing import Final, NamedTuple

from quiesce.registry import facts
from quiesce.registry.ended import ended_task
from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.marked import Batch
from quiesce.registry.moving import RegistryFault, count, keep_short, leave_sessions, move, story
from quiesce.registry.records import Ask, stopped_row
from quiesce.registry.rows import ResultRow, StoppedRow
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome, State as TaskState

_CANCELLED: Final = str(Outcome.CANCELLED)
_NEVER_RAN: Final = str(Evidence.NEVER_RAN)


class _Labels(NamedTuple):
    """What places a task in the indexes and counts."""

    kind: str
    tenant_id: str | None
    timeline_id: str | None
    runtime: str


def tasks_never_ran(state: State, fact: facts.TasksNeverRan) -> None:
    """As `facts.singly` has it. A stop took them out of their queue when it marked them."""
    batch: Batch | None = None
    left: dict[Batch, set[TaskId]] = {}
    ask = Ask(fact.asked_at, fact.reason)  # theirs alone, and none outlives this step
    ask.stopped = True
    alike: dict[_Labels, list[TaskId]] = {}
    rows: dict[frozenset[StopId], list[StoppedRow]] = {}
    for number in fact.task_ids:
        task = state.tasks.pop(TaskId(number))
        if task.state is not TaskState.QUEUED:
            raise RegistryFault(f"a slice of a stop ends only what is queued: {story(task)}")
        move(task, TaskState.ENDED)
        task.ask = ask
        spawn = task.spawn
        labels = _Labels(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
        alike.setdefault(labels, []).append(task.id)
        if batch is None or task.id not in batch.lane.members:
            batch = state.marked.find(task)
            if batch is None:
                raise RegistryFault(
                    f"a slice of a stop ends only what it has marked: {story(task)}"
                )
        left.setdefault(batch, set()).add(task.id)
        row = stopped_row(task, _CANCELLED, _NEVER_RAN, None, fact.at)
        rows.setdefault(batch.stops, []).append(row)
        result = ResultRow(task.id, task.attempt, _CANCELLED, _NEVER_RAN, None, fact.text, b"")
        leave_sessions(state, task, result)
        state.history[task.id] = state.ended_now[task.id] = ended_task(
            task,
            outcome=_CANCELLED,
            evidence=_NEVER_RAN,
            exit_status=None,
            started_at=None,
            ended_at=fact.at,
            host="",
            worker_pid=None,
        )
    for batch, gone in left.items():
        state.marked.leave(batch, gone)
    for labels, task_ids in alike.items():
        state.index.remove_many(task_ids, *labels)
        pool = (labels.runtime, labels.kind)
        count(state.live_total, pool, -len(task_ids))
        count(state.ended_total, (*pool, _CANCELLED), len(task_ids))
    for stops, ended in rows.items():
        for stop_id in stops:
            state.stops[stop_id].report(ended)
    keep_short(state)
