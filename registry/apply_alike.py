"""Applying what is said of many tasks at once: what `apply` does for each of them, as `facts.singly` has it."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final

from quiesce.registry import facts
from quiesce.registry.counts import count
from quiesce.registry.ids import AssignNumber, Incarnation, SessionId, SpawnNumber, TaskId
from quiesce.registry.leaving import alike, leave
from quiesce.registry.moving import move
from quiesce.registry.records import Task
from quiesce.registry.rows import SpawnAnswer, SpawnRow
from quiesce.registry.sets import take_out
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome, State as TaskState

_COMPLETED: Final = str(Outcome.COMPLETED)
_RETURNED: Final = str(Evidence.RETURNED)
_new: Final = tuple.__new__


def tasks_registered(state: State, fact: facts.TasksRegistered) -> None:
    """Tasks that are alike share one row; its number is that of the first."""
    row, session = fact.row, state.sessions[SessionId(fact.session)]
    task_ids: Sequence[TaskId] = range(fact.first, fact.last + 1)  # type: ignore[assignment]  # of ids
    many = len(task_ids)
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
    fields = zip(numbers, task_ids, repeat(None), repeat(""), strict=False)
    session.answers.update(zip(numbers, map(_new, repeat(SpawnAnswer), fields), strict=False))
    session.spawned = max(session.spawned, SpawnNumber(numbers[-1]))


def tasks_assigned(state: State, fact: facts.TasksAssigned) -> None:
    incarnation = Incarnation(fact.worker)
    worker = state.workers[incarnation]
    task_ids = list(map(TaskId, fact.task_ids))
    for number, task_id in enumerate(task_ids, fact.number):
        task = state.tasks[task_id]
        move(task, TaskState.ASSIGNED)
        task.worker = incarnation
        task.assign_number = AssignNumber(number)
    worker.last_assign = task.assign_number
    worker.tasks.update(dict.fromkeys(task_ids))
    state.held.update(task_ids)
    tenant, kind = task.tenant_id, task.spawn.kind
    state.queues[task.spawn.runtime].take_many(task_ids, tenant, kind)
    count(state.held_kind, kind, len(task_ids))
    count(state.held_tenant, (kind, tenant), len(task_ids))


def tasks_completed(state: State, fact: facts.TasksCompleted) -> None:
    worker = state.workers[Incarnation(fact.worker)]
    start = 0
    tasks = map(state.tasks.pop, fact.task_ids)  # type: ignore[arg-type]  # of ids
    for together in alike(tasks):
        ids = [task.id for task in together]
        end = start + len(ids)
        leave(
            state,
            together,
            ids,
            outcome=_COMPLETED,
            evidence=_RETURNED,
            ended_at=fact.at[start:end],
            started_at=fact.started_at[start:end],
            results=fact.results[start:end],
            host=worker.host,
            worker_pid=worker.pid,
        )
        start = end
        for task_id in ids:
            del worker.tasks[task_id]
        take_out(state.held, ids)
        kind = together[0].spawn.kind
        count(state.held_kind, kind, -len(ids))
        count(state.held_tenant, (kind, together[0].tenant_id), -len(ids))
