"""The queued tasks that open stops wait for. A stop marks them by whole lanes, so that it costs no more than these.

They have left their queues, so that nothing can assign them, and wait for a slice of their stops to end them.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.queue import Lane, Tenant
from quiesce.registry.records import Task


class Place(NamedTuple):
    """Where a task is queued."""

    runtime: str
    tenant_id: Tenant
    kind: str


def place_of(task: Task) -> Place:
    """Where it is queued, or would be."""
    return Place(task.spawn.runtime, task.tenant_id, task.spawn.kind)


class Batch:
    """All of one place for which the same stops wait."""

    __slots__ = ("lane", "number", "place", "stops")

    def __init__(self, place: Place, lane: Lane, stops: frozenset[StopId], number: int) -> None:
        self.place = place
        self.lane = lane
        self.stops = stops
        #: No other one has it.
        self.number = number


class Marked:
    """All and only the queued tasks that open stops wait for."""

    __slots__ = ("_batches", "_numbers", "_turns")

    def __init__(self) -> None:
        #: By place, at most one for the same stops; no empty ones.
        self._batches: dict[Place, list[Batch]] = {}
        #: For each stop a heap of its batches, once each, by their first task and their number: as it was when they
        #: were last looked at, so now it may be a later one, or none.
        self._turns: dict[StopId, list[tuple[TaskId, int, Batch]]] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._batches.values())

    def add(self, place: Place, lane: Lane, stops: frozenset[StopId]) -> None:
        """These have just been marked; no other batch of this place has these stops."""
        batch = Batch(place, lane, stops, next(self._numbers))
        self._batches.setdefault(place, []).append(batch)
        for stop_id in stops:
            self._enter(stop_id, (batch,))

    def add_lanes(
        self, runtime: str, lanes: Iterable[tuple[Tenant, str, Lane]], stop_id: StopId
    ) -> None:
        """The same of whole lanes of this runtime, for which this stop alone waits."""
        alone = frozenset((stop_id,))
        batches = [
            Batch(Place(runtime, tenant_id, kind), lane, alone, next(self._numbers))
            for tenant_id, kind, lane in lanes
        ]
        for batch in batches:
            self._batches.setdefault(batch.place, []).append(batch)
        self._enter(stop_id, batches)

    def join(self, batches: Iterable[Batch], stop_id: StopId) -> None:
        """This new stop waits for all of these, too."""
        batches = tuple(batches)
        for batch in batches:
            batch.stops |= {stop_id}
        self._enter(stop_id, batches)

    def _enter(self, stop_id: StopId, batches: Iterable[Batch]) -> None:
        turns = self._turns.setdefault(stop_id, [])
        entries = [(batch.lane.first(), batch.number, batch) for batch in batches]
        if 8 * len(entries) < len(turns):
            for entry in entries:
                heapq.heappush(turns, entry)
        else:
            turns += entries
            heapq.heapify(turns)

    def find(self, task: Task) -> Batch | None:
        """The batch that it is in."""
        for batch in self._batches.get(place_of(task), ()):
            if task.id in batch.lane.members:
                return batch
        return None

    def leave(self, batch: Batch, task_ids: set[TaskId]) -> None:
        """These of it have ended, or belong to another batch now."""
        batch.lane.remove_many(task_ids)
        if not batch.lane.members:
            there = self._batches[batch.place]
            there.remove(batch)
            if not there:
                del self._batches[batch.place]

    def split(self, task_ids: set[TaskId], stop_id: StopId) -> None:
        """This stop waits for these, too; those that were not marked before are left in `task_ids`."""
        for batch in list(self):
            out = batch.lane.members & task_ids
            if out:
                task_ids -= out
                self.leave(batch, set(out))
                self.add(batch.place, Lane(out), batch.stops | {stop_id})

    def of(self, stop_id: StopId) -> Iterator[Batch]:
        """Those for which this stop waits."""
        return (batch for _, _, batch in self._turns.get(stop_id, ()) if batch.lane.members)

    def has(self, stop_id: StopId) -> bool:
        """Whether this stop waits for any."""
        return self._first(stop_id) is not None

    def next(self, stop_id: StopId, count: int) -> list[tuple[Batch, list[TaskId]]]:
        """So many tasks for which this stop waits: batches take their turns by their first."""
        found: list[tuple[Batch, list[TaskId]]] = []
        while count and (batch := self._first(stop_id)) is not None:
            task_ids = batch.lane.firsts(count)
            count -= len(task_ids)
            found.append((batch, task_ids))
            heapq.heappop(self._turns[stop_id])
        self._enter(stop_id, [batch for batch, _ in found])
        return found

    def _first(self, stop_id: StopId) -> Batch | None:
        """The one whose turn it is, now at the top of its heap; that of a stop which waits for none is gone."""
        turns = self._turns.get(stop_id)
        while turns:
            first, number, batch = turns[0]
            if not batch.lane.members:
                heapq.heappop(turns)
            elif batch.lane.first() != first:
                heapq.heapreplace(turns, (batch.lane.first(), number, batch))
            else:
                return batch
        self._turns.pop(stop_id, None)
        return None

    def count(self, stop_id: StopId) -> int:
        """How many this stop waits for."""
        return sum(len(batch.lane.members) for batch in self.of(stop_id))
