"""Applying what is said of many tasks at once: what `apply` does for each of them, as `facts.singly` has it."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final, cast

from quiesce.registry import facts
from quiesce.registry.counts import count
from quiesce.registry.ids import Incarnation, SessionId, SpawnNumber, TaskId
from quiesce.registry.leaving import alike, leave
from quiesce.registry.moving import move_all
from quiesce.registry.records import Task
from quiesce.registry.rows import SpawnRow
from quiesce.registry.sets import take_out
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome, State as TaskState

_COMPLETED: Final = str(Outcome.COMPLETED)
_RETURNED: Final = str(Evidence.RETURNED)
_new: Final = tuple.__new__


def tasks_registered(state: State, fact: facts.TasksRegistered) -> None:
    """Tasks that are alike share one row; its number is that of the first."""
    row, session = fact.row, state.sessions[SessionId(fact.session)]
    ids = range(fact.first, fact.last + 1)
    task_ids: Sequence[TaskId] = ids  # type: ignore[assignment]  # of ids
    many = len(ids)
    spawns: Iterable[SpawnRow] = repeat(row)
    if fact.arguments:
        spawns = [_new(SpawnRow, (*row[:-1], each)) for each in fact.arguments]
    tasks, at, watchers = state.tasks, fact.at, session.alone
    for task_id, spawn in zip(task_ids, spawns, strict=False):
        task = tasks[task_id] = Task(task_id, spawn, at)
        task.watchers = watchers
    state.last_task_id = TaskId(fact.last)
    state.spawned_total += many
    count(state.live_total, (row.runtime, row.kind), many)
    state.index.add_many(task_ids, row.kind, row.tenant_id, row.timeline_id, row.runtime)
    state.queues[row.runtime].push_many(task_ids, row.tenant_id, row.kind)
    numbers = range(fact.number, fact.number + many)
    session.answers.add_tasks(numbers, ids)
    session.spawned = max(session.spawned, SpawnNumber(numbers[-1]))


def tasks_assigned(state: State, fact: facts.TasksAssigned) -> None:
    incarnation = Incarnation(fact.worker)
    worker = state.workers[incarnation]
    task_ids = cast("list[TaskId]", fact.task_ids)
    tasks = list(map(state.tasks.__getitem__, task_ids))
    move_all(tasks, TaskState.ASSIGNED)
    for number, task in enumerate(tasks, fact.number):
        task.worker = incarnation
        task.assign_number = number  # type: ignore[assignment]  # of numbers
    worker.last_assign = task.assign_number
    worker.tasks.update(dict.fromkeys(task_ids))
    state.held.update(task_ids)
    tenant, kind = task.tenant_id, task.spawn.kind
    state.queues[task.spawn.runtime].take_many(task_ids, tenant, kind)
    count(state.held_kind, kind, len(task_ids))
    count(state.held_tenant, (kind, tenant), len(task_ids))


def tasks_completed(state: State, fact: facts.TasksCompleted) -> None:
    worker = state.workers[Incarnation(fact.worker)]
    task_ids = cast("list[TaskId]", fact.task_ids)
    start = 0
    for together in alike(map(state.tasks.pop, task_ids)):
        end = start + len(together)
        leave(
            state,
            together,
            task_ids[start:end],
            outcome=_COMPLETED,
            evidence=_RETURNED,
            ended_at=fact.at[start:end],
            started_at=fact.started_at[start:end],
            results=fact.results[start:end],
            host=worker.host,
            worker_pid=worker.pid,
        )
        start = end
        kind = together[0].spawn.kind
        count(state.held_kind, kind, -len(together))
        count(state.held_tenant, (kind, together[0].tenant_id), -len(together))
    take_out(worker.tasks, task_ids)
    take_out(state.held, task_ids)
