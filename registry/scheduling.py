"""Handing queued tasks to workers: round-robin over tenants, to the worker that holds the least.

A worker whose tasks are short is handed more than it has slots for, so that none of these waits for a round trip;
what it does not begin within moments it gives back.
"""

import heapq
from typing import Final

from quiesce.registry import facts
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.records import Task, Worker
from quiesce.registry.rows import AssignRow
from quiesce.registry.state import State
from quiesce.registry.turn import Turn

#: Seconds of work that a worker may be handed beyond its slots, and how many tasks at most.
AHEAD: Final = 0.004
MOST: Final = 96
#: What takes less counts as if it took so many seconds.
LEAST: Final = 40e-6


def schedule(turn: Turn) -> None:
    """Assign what can be assigned in the runtimes where something has changed."""
    for runtime in sorted(turn.dirty):
        _schedule_runtime(turn, runtime)
    turn.dirty.clear()


def _schedule_runtime(turn: Turn, runtime: str) -> None:
    state = turn.state
    queue = state.queues[runtime]
    if not len(queue):
        return
    free = [
        (len(worker.tasks), worker.incarnation)
        for worker in state.pool[runtime].values()
        if takes(state, worker)
    ]
    heapq.heapify(free)
    while free and len(queue):
        held, incarnation = free[0]
        task_id = queue.peek(state.allowed)
        if task_id is None:
            return
        assign(turn, task_id, incarnation)
        if held + 1 < room(state.workers[incarnation]):
            heapq.heapreplace(free, (held + 1, incarnation))
        else:
            heapq.heappop(free)


def room(worker: Worker) -> int:
    """How many tasks this worker may hold, by the pace of its last ones."""
    if worker.pace > AHEAD:
        return worker.slots
    return worker.slots + min(MOST, int(AHEAD / max(worker.pace, LEAST)))


def paced(worker: Worker, seconds: float) -> None:
    """Its last tasks took so long, on average. Slow ones count at once, quick ones by and by."""
    worker.pace = max(seconds, worker.pace / 2)


def takes(state: State, worker: Worker) -> bool:
    """Whether one more task may be handed to this worker: only if its supervisor dies with its lease."""
    if not worker.attached or worker.exiting or len(worker.tasks) >= room(worker):
        return False
    supervisor = state.supervisors[worker.supervisor]
    return supervisor.armed and supervisor.silent_since is None


def assign(turn: Turn, task_id: TaskId, incarnation: Incarnation) -> None:
    """Hand one queued task to a worker, under the worker's next number."""
    number = turn.state.workers[incarnation].last_assign + 1
    turn.emit(facts.TaskAssigned(task_id, incarnation, number))
    turn.assign(incarnation, assign_row(turn.state.tasks[task_id]))


def assign_row(task: Task) -> AssignRow:
    """An assigned task as its worker gets it."""
    spawn = task.spawn
    return AssignRow(
        task.assign_number,
        task.id,
        task.attempt,
        spawn.kind,
        spawn.name,
        task.tenant_id,
        task.timeline_id,
        spawn.shutdown_process_on_error,
        task.created_at,
        spawn.function,
        spawn.arguments,
    )
