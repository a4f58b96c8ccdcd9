"""What a stop matches: known before it is decided, and again when the fact that it has begun is applied."""

from typing import NamedTuple

from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.marked import Batch, place_of
from quiesce.registry.queue import Lane, RuntimeQueue, Tenant
from quiesce.registry.scope import Scope
from quiesce.registry.state import State


class Match(NamedTuple):
    """All live tasks that a stop has to wait for."""

    #: Those that workers hold.
    held: set[TaskId]
    #: The others: whole lanes that wait in the queues of these runtimes, of this tenant and kind (None: of all),
    #: and whole batches that stops have marked; or single ones.
    queues: dict[str, RuntimeQueue]
    tenant_id: Tenant
    kind: str | None
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
    kind, tenant_id, timeline_id, its_runtime = scope
    if timeline_id is not None:  # of a lane, a timeline may have some
        return listed(held, state.index.find(scope, state.tasks) - state.held)
    queues = {
        runtime: queue
        for runtime, queue in state.queues.items()
        if its_runtime is None or runtime == its_runtime
    }
    batches = [
        batch
        for batch in state.marked
        if scope.matches(batch.place.kind, batch.place.tenant_id, None, batch.place.runtime)
    ]
    queued = sum(queue.count(tenant_id, kind) for queue in queues.values())
    queued += sum(len(batch.lane.members) for batch in batches)
    return Match(held, queues, tenant_id, kind, batches, set(), queued)


def listed(held: set[TaskId], queued: set[TaskId]) -> Match:
    """The same of tasks that are known one by one."""
    return Match(held, {}, None, None, [], queued, len(queued))


def mark(state: State, found: Match, stop_id: StopId) -> None:
    """The queued ones of these leave their queues, if they have not yet: this open stop waits for them."""
    state.marked.join(found.batches, stop_id)
    for runtime, queue in found.queues.items():
        out = queue.remove_lanes(found.tenant_id, found.kind)
        state.marked.add_lanes(runtime, out, stop_id)
    left = set(found.single)
    if left:
        state.marked.split(left, stop_id)
    while left:
        task_id = left.pop()
        left.add(task_id)
        place = place_of(state.tasks[task_id])
        members = state.queues[place.runtime].remove_many(left, place.tenant_id, place.kind)
        state.marked.add(place, Lane(members), frozenset((stop_id,)))
