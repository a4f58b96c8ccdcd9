"""What `quiesce top` knows: a snapshot of the whole system at each tick, and what changed between them."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from quiesce.client import Client
    from quiesce.registry.rows import StopRow
    from quiesce.values import ClosedScope, TaskInfo, WorkerInfo

#: With more queued tasks than this, only those that workers hold are listed: a listing must not burden the broker.
LISTED: Final = 2000
#: Seconds over which rates are taken: CPU times come every two seconds.
WINDOW: Final = 6.0
#: Points of the line of throughput.
POINTS: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The system at one moment. `unlisted`: how many queued tasks are not in `tasks`."""

    at: float
    statistics: dict[str, Any]
    tasks: "list[TaskInfo]"
    workers: "list[WorkerInfo]"
    stops: "list[StopRow]"
    closed: "list[ClosedScope]"
    unlisted: int = 0

    @property
    def runtimes(self) -> dict[str, dict[str, Any]]:
        """The counts of each runtime."""
        found: dict[str, dict[str, Any]] = self.statistics["runtimes"]
        return found


def take(client: "Client") -> Snapshot:
    """Ask the broker for everything. Its errors are the caller's."""
    statistics = client.statistics()
    unlisted = 0
    if statistics["queued"] <= LISTED:
        tasks = client.tasks()
    else:
        unlisted = statistics["queued"]
        tasks = [*client.tasks(state="running"), *client.tasks(state="assigned")]
        tasks.sort(key=lambda task: task.id)
    return Snapshot(
        at=time.time(),
        statistics=statistics,
        tasks=tasks,
        workers=client.workers(),
        stops=client.stops(),
        closed=client.closed_scopes(),
        unlisted=unlisted,
    )


class Rates(NamedTuple):
    """Per second. `cpu`: of one processor, 1.0 is all of it."""

    spawned: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0


def _counts(snapshot: Snapshot) -> dict[object, tuple[float, float, float]]:
    """(spawned, ended, CPU seconds) of everything that has a rate; the names are those of `Trend.rate`."""
    statistics = snapshot.statistics
    counts: dict[object, tuple[float, float, float]] = {
        None: (statistics["spawned_total"], statistics["ended_total"], 0.0),
        "broker": (0, 0, statistics["broker"]["cpu_seconds"]),
    }
    for name, runtime in snapshot.runtimes.items():
        ended = sum(runtime["ended"].values())
        counts[("runtime", name)] = (runtime["spawned"], ended, runtime["cpu_seconds"])
        for kind, row in runtime["kinds"].items():
            counts[("kind", name, kind)] = (row["spawned"], sum(row["ended"].values()), 0.0)
    for worker in snapshot.workers:
        counts[("worker", worker.incarnation)] = (0, 0, worker.cpu_seconds)
    return counts


@dataclass
class Trend:
    """The last few snapshots, as rates."""

    _past: deque[tuple[float, int, dict[object, tuple[float, float, float]]]] = field(
        default_factory=deque
    )
    #: Tasks that ended per second, tick by tick.
    ended: deque[float] = field(default_factory=lambda: deque(maxlen=POINTS))

    def add(self, snapshot: Snapshot) -> None:
        """The next one. Those of an earlier broker are forgotten: its counters of CPU were others."""
        now = (float(snapshot.statistics["at"]), snapshot.statistics["broker"]["pid"])
        counts = _counts(snapshot)
        if self._past:
            at, _, last = self._past[-1]
            if now[0] > at:
                self.ended.append(max(0.0, counts[None][1] - last[None][1]) / (now[0] - at))
            if self._past[-1][1] != now[1]:
                self._past.clear()
        self._past.append((*now, counts))
        while len(self._past) > 2 and now[0] - self._past[1][0] >= WINDOW:
            self._past.popleft()

    def rate(self, of: object = None) -> Rates:
        """Of None (everything), "broker", ("runtime", name), ("kind", runtime, kind), ("worker", incarnation)."""
        if len(self._past) < 2:
            return Rates()
        (since, _, before), (now, _, after) = self._past[0], self._past[-1]
        if now <= since or of not in before or of not in after:
            return Rates()
        pairs: Iterator[tuple[float, float]] = zip(before[of], after[of], strict=True)
        return Rates(*(max(0.0, new - old) / (now - since) for old, new in pairs))


def document(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot for `--json`."""
    return {
        "at": snapshot.at,
        "statistics": snapshot.statistics,
        "tasks": snapshot.tasks,
        "unlisted": snapshot.unlisted,
        "workers": snapshot.workers,
        "stops": snapshot.stops,
        "closed": snapshot.closed,
    }
