"""The queued tasks that open stops wait for. A stop marks them by whole lanes, so that it costs no more than these.

They have left their queues, so that nothing can assign them, and wait for a slice of their stops to end them.
"""

import itertools
from collections.abc import Iterator
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

    __slots__ = ("lane", "place", "stops")

    def __init__(self, place: Place, lane: Lane, stops: frozenset[StopId]) -> None:
        self.place = place
        self.lane = lane
        self.stops = stops

    def first(self) -> TaskId:
        """The lowest id: batches take their turns by these."""
        return self.lane.first()


class Marked:
    """All and only the queued tasks that open stops wait for."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        #: By place, at most one for the same stops; no empty ones.
        self._batches: dict[Place, list[Batch]] = {}

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._batches.values())

    def add(self, place: Place, lane: Lane, stops: frozenset[StopId]) -> None:
        """These have just been marked; no other batch of this place has these stops."""
        self._batches.setdefault(place, []).append(Batch(place, lane, stops))

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
        return (batch for batch in self if stop_id in batch.stops)

    def count(self, stop_id: StopId) -> int:
        """How many this stop waits for."""
        return sum(len(batch.lane.members) for batch in self.of(stop_id))
