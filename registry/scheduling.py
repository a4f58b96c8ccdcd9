"""Handing queued tasks to workers: round-robin over tenants, to the worker that holds the least.

A worker whose tasks are short is handed more than it has slots for, so that none of these waits for a round trip;
what it does not begin within moments it gives back. But a body that never lets go of the interpreter lets
nothing be given back. So where a task shall have its process to itself, in a worker of one slot, only calls of
functions whose last call there was short are handed over ahead, and only behind such.
"""

import heapq
from collections.abc import Iterable, Sized
from functools import partial
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Final

from quiesce.registry import facts
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.records import Task, Worker
from quiesce.registry.rows import RUN, Alike, AssignRow
from quiesce.registry.state import State
from quiesce.registry.turn import Turn

#: The pace of a worker that has given something back.
GIVEN_BACK: Final = 1.0
#: Seconds of work that a worker may be handed beyond its slots, and how many tasks at most.
AHEAD: Final = 0.004
MOST: Final = 384
#: So many of those that wait are looked at before all that may be are dealt out.
LOOK: Final = 8
#: So many functions are remembered of a worker, by so many bytes at most.
FUNCTIONS: Final = 8
LONGEST: Final = 1024
#: What takes less counts as if it took so many seconds.
LEAST: Final = 10e-6
#: Without the detour over the arguments of a named tuple.
_new: Final = tuple.__new__
_NUMBERS: Final = attrgetter("assign_number", "id")
#: All that the worker is told of a task, but for its numbers; first what differs the soonest.
_TOLD: Final = attrgetter(
    "spawn.arguments", "spawn", "attempt", "tenant_id", "timeline_id", "created_at"
)


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
        (held, worker.incarnation, most)
        for worker in state.pool[runtime].values()
        if (held := len(worker.tasks)) < (most := room(worker)) and takes(state, worker)
    ]
    heapq.heapify(free)
    #: What each of them is to get, all at once: where no turns of tenants and no limits matter.
    hands: dict[Incarnation, list[TaskId]] | None = None
    following = partial(queue.peek, state.has_room, state.allowed)
    alike = queue.alike() if free and len(queue) >= state.alike else None
    if alike is not None and not state.kind(alike[0]).is_limited:
        line = alike[1]
        total = sum([most - held for held, _, most in free])
        first = [*islice(line, min(LOOK, total))]
        # Else nearly all that may be dealt out stays in the queue, and would be looked at again in each turn.
        if all(
            _are_quick(state, each, chain(state.workers[each].tasks, first)) for _, each, _ in free
        ):
            first += islice(line, total - len(first))
            hands = deal(first, free)
            if all(_are_quick(state, each, hand) for each, hand in hands.items()):
                for incarnation, hand in hands.items():
                    assign(turn, hand, incarnation)
                return
        hands, following = {}, partial(next, chain(first, line), None)
    #: The workers of which it is known in this turn whether anything may wait behind what they hold.
    calm: dict[Incarnation, bool] = {}
    task_id = following()
    while free and task_id is not None:
        held, incarnation, most = free[0]
        hand = [] if hands is None else hands.setdefault(incarnation, [])
        worker = state.workers[incarnation]
        if held and worker.slots == 1:
            if incarnation not in calm:
                calm[incarnation] = all_quick(
                    worker, map(state.tasks.__getitem__, (*worker.tasks, *hand))
                )
            if not (calm[incarnation] and is_quick(worker, state.tasks[task_id])):
                heapq.heappop(free)
                continue
        hand.append(task_id)
        if hands is None:
            assign(turn, hand, incarnation)
        task_id = following()
        if held + 1 < most:
            heapq.heapreplace(free, (held + 1, incarnation, most))
        else:
            heapq.heappop(free)
    for incarnation, hand in (hands or {}).items():
        if hand:
            assign(turn, hand, incarnation)


def deal(
    task_ids: list[TaskId], free: list[tuple[int, Incarnation, int]]
) -> dict[Incarnation, list[TaskId]]:
    """Who gets which of these tasks, if each in its turn goes to who holds the least by then, the oldest first.

    `free`: how much each holds, who it is, and how much it may hold; there are no more tasks than these may hold.
    """
    hands: dict[Incarnation, list[TaskId]] = {}
    left, start = sorted(free), 0
    while start < len(task_ids):
        # Those who hold the least have their turns, until another holds as little, or one of them may hold no more.
        level = left[0][0]
        lowest = [each for each in left if each[0] == level]
        others = left[len(lowest) :]
        until = min([most for _, _, most in lowest] + [held for held, _, _ in others[:1]])
        end = start + (until - level) * len(lowest)
        for place, (_, incarnation, _) in enumerate(lowest, start):
            if place < len(task_ids):
                hands.setdefault(incarnation, []).extend(task_ids[place : end : len(lowest)])
        left = sorted([(until, each, most) for _, each, most in lowest if until < most] + others)
        start = end
    return hands


def room(worker: Worker) -> int:
    """How many tasks this worker may hold, by the pace of its last ones."""
    if worker.pace > AHEAD:
        return worker.slots
    return worker.slots + min(MOST, int(AHEAD / max(worker.pace, LEAST)))


def paced(worker: Worker, tasks: list[Task], took: list[float]) -> None:
    """So many seconds its last tasks took. Slow ones count at once, quick ones by and by."""
    worker.pace = max(sum(took) / len(took), worker.pace / 2)
    if worker.slots == 1:
        for task, seconds in zip(tasks, took, strict=True):
            function = task.spawn.function
            if (function in worker.quick) is not (seconds <= AHEAD):
                _note(worker, function, quick=seconds <= AHEAD)


def is_quick(worker: Worker, task: Task) -> bool:
    """Whether the last call of its function by this worker was short."""
    return task.spawn.function in worker.quick


def all_quick(worker: Worker, tasks: Iterable[Task]) -> bool:
    """Whether the last call of each of their functions by this worker was short: then something may be handed to it
    behind all these.
    """
    last = None
    for task in tasks:
        function = task.spawn.function
        if function is not last and function not in worker.quick:
            return False
        last = function
    return True


def may_follow(state: State, worker: Worker, task: Task) -> bool:
    """Whether this task may be handed to this worker with what it holds."""
    if not worker.tasks or worker.slots > 1:
        return True
    return is_quick(worker, task) and all_quick(worker, map(state.tasks.__getitem__, worker.tasks))


def _are_quick(state: State, incarnation: Incarnation, task_ids: Iterable[TaskId]) -> bool:
    """Whether each of these may be with this worker behind those before it."""
    worker = state.workers[incarnation]
    return worker.slots > 1 or all_quick(worker, map(state.tasks.__getitem__, task_ids))


def _note(worker: Worker, function: Sized, *, quick: bool) -> None:
    others = tuple(each for each in worker.quick if each != function)
    if quick and isinstance(function, bytes) and len(function) <= LONGEST:
        worker.quick = (*others[1 - FUNCTIONS :], function)
    else:
        worker.quick = others


def stuck(worker: Worker) -> None:
    """It has given something back: it gets no more than it can begin, until it has shown otherwise."""
    worker.pace, worker.quick = GIVEN_BACK, ()


def takes(state: State, worker: Worker) -> bool:
    """Whether tasks may be handed to this worker, while it has room: only if its supervisor dies with its lease."""
    if not worker.attached or worker.exiting:
        return False
    supervisor = state.supervisors[worker.supervisor]
    return supervisor.armed and supervisor.silent_since is None


def assign(turn: Turn, task_ids: list[TaskId], incarnation: Incarnation) -> None:
    """Hand queued tasks, of one tenant and kind if many, to a worker, under its next numbers."""
    state = turn.state
    number = state.workers[incarnation].last_assign + 1
    tasks = map(state.tasks.__getitem__, task_ids)
    if len(task_ids) < turn.state.alike:
        for place, task_id in enumerate(task_ids):
            turn.emit(facts.TaskAssigned(task_id, incarnation, number + place))
        turn.assign(incarnation, map(assign_row, tasks))
        return
    turn.emit(facts.TasksAssigned(incarnation, number, list[int](task_ids)))
    rows: list[AssignRow | Alike] = []
    for _, told in groupby(tasks, _TOLD):
        together = list(told)
        if len(together) < RUN:
            rows += map(assign_row, together)
        else:
            numbers = chain.from_iterable(map(_NUMBERS, together[1:]))
            rows.append(Alike(assign_row(together[0]), [*numbers], len(together)))
    turn.assign(incarnation, rows)


def assign_row(task: Task) -> AssignRow:
    """An assigned task as its worker gets it."""
    spawn = task.spawn
    return _new(
        AssignRow,
        (
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
        ),
    )
