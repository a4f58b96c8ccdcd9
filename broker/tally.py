"""How long things take: histograms of what this broker has seen since its start, for `Client.statistics()`.

Kept always, since they cost little: what has ended together is counted together. The totals, which outlive a
broker, are the registry's own.
"""

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter, sub
from typing import Any, Final, cast

from quiesce.broker.histogram import CHECK_AGES, TASK_TIMES, Histogram
from quiesce.registry import facts
from quiesce.registry.events import UsageSaid
from quiesce.registry.facts import Fact
from quiesce.registry.ids import TaskId
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

_POOL: Final = attrgetter("runtime", "kind")
_CREATED: Final = attrgetter("created_at")
_STARTED: Final = attrgetter("started_at")
_ENDED: Final = attrgetter("ended_at")
#: What is measured, and its buckets.
MEASURES: Final = {
    "queue": TASK_TIMES,  # from the spawn to the beginning of the first attempt
    "run": TASK_TIMES,  # from the beginning of the last attempt to its end
    "stop_delivery": TASK_TIMES,  # from the request to stop to its arrival at the worker
    "stop_observation": TASK_TIMES,  # from there to the task's look
    "stop_end": TASK_TIMES,  # from there to the end
    "stop": TASK_TIMES,  # from the request to the end, of all that were asked
    "check_age": CHECK_AGES,  # how long ago running tasks had last looked, sampled every few seconds
}


class _Asked:
    """When a task was asked to stop, and how far that has come."""

    __slots__ = ("at", "delivered_at", "observed_at")

    def __init__(self, at: float) -> None:
        self.at = at
        self.delivered_at: float | None = None
        self.observed_at: float | None = None


class Tally:
    """Is shown all facts of a turn once they are applied. By runtime and kind, so there are only so many."""

    def __init__(self, state: State) -> None:
        self._state = state
        #: By runtime and kind: a histogram for each measure.
        self._histograms: dict[tuple[str, str], dict[str, Histogram]] = {}
        #: All and only the live tasks that this broker has asked to stop.
        self._asked: dict[int, _Asked] = {}

    def take(self, happened: list[Fact]) -> None:
        """What the registry has decided."""
        for fact in happened:
            count = _COUNTED.get(type(fact))
            if count is not None:
                count(self, fact)

    def plain(self) -> dict[str, Any]:
        """As `Client.statistics()` shows it: of each measure its bounds, and a row for each runtime and kind."""
        shown: dict[str, Any] = {
            measure: {"bounds": list(bounds), "rows": []} for measure, bounds in MEASURES.items()
        }
        for (runtime, kind), histograms in sorted(self._histograms.items()):
            for measure, histogram in histograms.items():
                if any(histogram.counts):
                    row = {"runtime": runtime, "kind": kind, **histogram.plain()}
                    shown[measure]["rows"].append(row)
        return shown

    def _of(self, runtime: str, kind: str) -> dict[str, Histogram]:
        found = self._histograms.get((runtime, kind))
        if found is None:
            found = {measure: Histogram(bounds) for measure, bounds in MEASURES.items()}
            self._histograms[(runtime, kind)] = found
        return found

    # --- facts and events -------------------------------------------------------------------------

    def on_asked(self, fact: facts.TaskAsked) -> None:
        self._asked[fact.task_id] = _Asked(fact.at)

    def on_delivered(self, fact: facts.StopDelivered) -> None:
        asked = self._asked.get(fact.task_id)
        if asked is not None:
            asked.delivered_at = fact.at

    def on_observed(self, fact: facts.StopObserved) -> None:
        asked = self._asked.get(fact.task_id)
        if asked is not None:
            asked.observed_at = fact.at

    def on_requeued(self, fact: facts.TaskRequeued) -> None:
        self._asked.pop(fact.task_id, None)

    def on_ended(self, fact: facts.TaskEnded) -> None:
        asked = self._asked.pop(fact.task_id, None) if self._asked else None
        ended = self._state.ended_now[TaskId(fact.task_id)]
        histograms = self._of(ended.runtime, ended.kind)
        if fact.started_at is not None:
            if ended.attempt == 1:
                histograms["queue"].add(fact.started_at - ended.created_at)
            histograms["run"].add(fact.at - fact.started_at)
        if asked is None:
            return
        histograms["stop"].add(fact.at - asked.at)
        delivered, observed = asked.delivered_at, asked.observed_at
        if delivered is not None:
            histograms["stop_delivery"].add(delivered - asked.at)
            if observed is not None:
                histograms["stop_observation"].add(observed - delivered)
                histograms["stop_end"].add(fact.at - observed)

    def on_completed(self, fact: facts.TasksCompleted) -> None:
        """Nobody had asked them to stop."""
        task_ids = cast("list[TaskId]", fact.task_ids)
        for pool, together in groupby(map(self._state.ended_now.__getitem__, task_ids), _POOL):
            histograms, ended = self._of(*pool), list(together)
            first = [each for each in ended if each.attempt == 1]
            if first:
                histograms["queue"].add_all(map(sub, map(_STARTED, first), map(_CREATED, first)))
            histograms["run"].add_all(map(sub, map(_ENDED, ended), map(_STARTED, ended)))

    def on_never_ran(self, fact: facts.TasksNeverRan) -> None:
        """As if each had been asked, and had ended then: nothing else is measured of it."""
        ended = map(self._state.ended_now.__getitem__, map(TaskId, fact.task_ids))
        pools = Counter(map(_POOL, ended))
        for pool, count in pools.items():
            self._of(*pool)["stop"].add(fact.at - fact.asked_at, count)

    def on_usage(self, event: UsageSaid, now: float) -> None:
        """What a supervisor says of its tasks' looks. One that never looked counts from its beginning."""
        for _, _, _, _, checks in event.workers:
            for task_id, attempt, age in checks:
                task = self._state.tasks.get(TaskId(task_id))
                if task is None or task.attempt != attempt or task.state is not TaskState.RUNNING:
                    continue
                since = now - (task.started_at or now) if age is None else age
                self._of(task.spawn.runtime, task.spawn.kind)["check_age"].add(since)


_COUNTED: Final[dict[type, Callable[[Tally, Any], None]]] = {
    facts.TaskAsked: Tally.on_asked,
    facts.StopDelivered: Tally.on_delivered,
    facts.StopObserved: Tally.on_observed,
    facts.TaskRequeued: Tally.on_requeued,
    facts.TaskEnded: Tally.on_ended,
    facts.TasksCompleted: Tally.on_completed,
    facts.TasksNeverRan: Tally.on_never_ran,
}
