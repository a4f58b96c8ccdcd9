"""What a stop matches: known before it is decided, and again when the fact that it has begun is applied."""

from typing import NamedTuple

from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.marked import Batch, Place, place_of
from quiesce.registry.queue import Lane, Tenant
from quiesce.registry.scope import Scope
from quiesce.registry.state import State


class Match(NamedTuple):
    """All live tasks that a stop has to wait for."""

    #: Those that workers hold.
    held: set[TaskId]
    #: The others: whole lanes that wait in the queues of runtimes, and whole batches that stops have marked; or
    #: single ones.
    lanes: dict[str, list[tuple[Tenant, str]]]
    batches: list[Batch]
    single: set[TaskId]
    #: How many these others are.
    queued: int


def match(state: State, scope: Scope, task_id: TaskId | None) -> Match:
    """What a stop of this scope matches, or one of this task alone."""
    if task_id is not None:
        found = {task_id} & state.tasks.keys()
        return listed(found & state.held, found - state.held)
    held = state.index.find(scope, state.tasks, among=state.held) | state.unfinished(scope)
    if scope.timeline_id is not None:  # of a lane, a timeline may have some
        return listed(held, state.index.find(scope, state.tasks) - state.held)
    lanes: dict[str, list[tuple[Tenant, str]]] = {}
    queued = 0
    for runtime, queue in state.queues.items():
        for tenant_id, kind, size in queue.sizes():
            if scope.matches(kind, tenant_id, None, runtime):
                lanes.setdefault(runtime, []).append((tenant_id, kind))
                queued += size
    batches = [
        batch
        for batch in state.marked
        if scope.matches(batch.place.kind, batch.place.tenant_id, None, batch.place.runtime)
    ]
    queued += sum(len(batch.lane.members) for batch in batches)
    return Match(held, lanes, batches, set(), queued)


def listed(held: set[TaskId], queued: set[TaskId]) -> Match:
    """The same of tasks that are known one by one."""
    return Match(held, {}, [], queued, len(queued))


def mark(state: State, found: Match, stop_id: StopId) -> None:
    """The queued ones of these leave their queues, if they have not yet: this open stop waits for them."""
    alone = frozenset((stop_id,))
    for batch in found.batches:
        batch.stops |= alone
    for runtime, places in found.lanes.items():
        lanes = state.queues[runtime].remove_lanes(places)
        for (tenant_id, kind), lane in zip(places, lanes, strict=True):
            state.marked.add(Place(runtime, tenant_id, kind), lane, alone)
    left = set(found.single)
    if left:
        state.marked.split(left, stop_id)
    while left:
        task_id = left.pop()
        left.add(task_id)
        place = place_of(state.tasks[task_id])
        out = state.queues[place.runtime].remove_many(left, place.tenant_id, place.kind)
        state.marked.add(place, Lane(out), alone)
