"""What is kept of stops that have ended: enough to say who asked for what, and what came of it."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.records import Stop
from quiesce.registry.scope import Scope

#: Who has asked for the stops of which the stop of the whole system consists.
THE_SYSTEM: Final = "the system"


class EndedStop(NamedTuple):
    """A stop in the bounded history. `outcomes` and `evidence`: how many of its tasks ended how."""

    id: StopId
    scope: Scope
    task_id: TaskId | None
    reason: str
    requested_at: float
    completed_at: float
    timed_out: bool
    outcomes: tuple[tuple[str, int], ...]
    evidence: tuple[tuple[str, int], ...]
    remaining: int
    keep_closed: bool
    by: str


def says_something(ended: EndedStop) -> bool:
    """Whether people want to see it: the system stops each kind, and most of those have no task."""
    return ended.by != THE_SYSTEM or bool(ended.outcomes) or ended.remaining > 0


def remembered(stop: Stop) -> EndedStop:
    """A stop that has ended, for the history. That of one task alone is found by the labels of that task."""
    scope = stop.scope
    for row in (*stop.rows, *stop.left) if stop.task_id is not None else ():
        scope = Scope(row.kind, row.tenant_id, row.timeline_id, row.runtime)
    return EndedStop(
        stop.id,
        scope,
        stop.task_id,
        stop.reason,
        stop.at,
        stop.completed_at or stop.at,
        stop.timed_out,
        _counted((outcome, count) for (outcome, _), count in stop.ends.items()),
        _counted((evidence, count) for (_, evidence), count in stop.ends.items()),
        len(stop.left),
        stop.keep_closed,
        stop.by,
    )


def _counted(ends: Iterable[tuple[str | None, int]]) -> tuple[tuple[str, int], ...]:
    """By name."""
    counts: Counter[str] = Counter()
    for name, count in ends:
        counts[name or ""] += count
    return tuple(sorted(counts.items()))
