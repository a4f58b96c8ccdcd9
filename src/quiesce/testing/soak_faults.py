"""The faults of a soak: one after the other at random, and each that lasts is undone after a while."""

import random
import time
from collections.abc import Callable
from typing import Final

from quiesce.testing.cluster import Cluster
from quiesce.testing.failures import ClusterError
from quiesce.testing.network import BROKER, CLIENTS
from quiesce.testing.soak_result import SoakResult

#: Seconds that each may last, at most. Clients wait for the end of theirs, so these are short.
LONGEST: Final = {
    "worker": 6.0,
    "supervisor": 6.0,
    "broker": 0.7,
    "partition": 4.0,
    "clients": 1.0,
    "delay": 3.0,
    "disk": 2.0,
}
#: Seconds with room on the disk before it is full again: with none for ever, no broker comes back.
_REST: Final = 6.0


class Faults:
    """Used by one thread."""

    def __init__(
        self,
        cluster: Cluster,
        draw: random.Random,
        result: SoakResult,
        *,
        network: bool,
        disk: bool,
    ) -> None:
        self._cluster = cluster
        self._draw = draw
        self._result = result
        #: What undoes those that last, with when.
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self._busy: set[str] = set()
        self._freed_at = 0.0
        self._kinds: list[Callable[[], None]] = [self._kill, self._kill, self._pause, self._pause]
        if network:
            self._kinds += [self._partition, self._delay, self._cut]
        else:
            self._kinds += [self._kill_up] if draw.random() < 0.5 else []
        if disk:
            self._kinds += [self._fill]

    def go_on(self, until: float) -> None:
        """Hurt until this moment, then undo everything."""
        try:
            while time.monotonic() < until:
                time.sleep(self._draw.uniform(0.05, 0.6))
                self._undo_due(time.monotonic())
                try:
                    self._draw.choice(self._kinds)()
                except ClusterError:
                    pass  # there was none just now, or it has ended first
        finally:
            self._undo_due(float("inf"))

    def _undo_due(self, now: float) -> None:
        due = [each for each in self._undo if each[0] <= now]
        self._undo = [each for each in self._undo if each[0] > now]
        for _, undo in due:
            undo()

    def _last(self, what: str, undo: Callable[[], object], busy: str = "") -> None:
        self._busy.add(busy)

        def end() -> None:
            self._busy.discard(busy)
            undo()

        self._undo.append((time.monotonic() + self._draw.uniform(0.1, LONGEST[what]), end))

    def _victim(self) -> tuple[str, int]:
        what = self._draw.choice(("worker",) * 6 + ("supervisor",) * 2 + ("broker",) * 2)
        found = self._cluster.processes(what)
        if not found:
            raise ClusterError(f"no {what}")
        return what, self._draw.choice(found).pid

    def _kill(self) -> None:
        what, pid = self._victim()
        self._cluster.kill(what, pid=pid)
        self._result.faults[f"kill {what}"] += 1

    def _pause(self) -> None:
        what, pid = self._victim()
        process = self._cluster.pause(what, pid=pid)
        self._last(what, lambda: self._cluster.resume(process))
        self._result.faults[f"pause {what}"] += 1

    def _kill_up(self) -> None:
        """Everything is dead at once; rare, for nothing else is tried meanwhile."""
        if self._draw.random() < 0.9:
            return
        self._undo_due(float("inf"))
        self._cluster.kill("up")
        self._result.faults["kill up"] += 1
        self._cluster.restart("up", timeout=60.0)

    # --- the network

    def _link(self) -> str:
        name = self._draw.choice((*(each.name for each in self._cluster.config.runtimes), CLIENTS))
        if name in self._busy:
            raise ClusterError(f"{name} is hurt already")
        return name

    def _partition(self) -> None:
        name = self._link()
        ends = [BROKER, name]
        self._draw.shuffle(ends)
        one_way = self._draw.random() < 0.4
        channel = self._draw.choice((None, None, "control", "data"))
        self._cluster.partition(*ends, one_way=one_way, channel=channel)
        what = "clients" if name == CLIENTS else "partition"
        self._last(what, lambda: self._cluster.heal(*ends), name)
        self._result.faults[f"partition{' one way' if one_way else ''}"] += 1

    def _delay(self) -> None:
        name = self._link()
        channel = self._draw.choice((None, "control", "data"))
        self._cluster.delay(BROKER, name, self._draw.uniform(0.005, 0.1), channel=channel)
        self._last("delay", lambda: self._cluster.heal(BROKER, name), name)
        self._result.faults["delay"] += 1

    def _cut(self) -> None:
        name = self._link()
        ends = [BROKER, name]
        self._draw.shuffle(ends)
        after = self._draw.choice((None, 1, self._draw.randrange(2, 2000)))
        self._cluster.cut(*ends, after=after)
        self._result.faults["cut" if after is None else "cut at a byte"] += 1

    # --- the disk

    def _fill(self) -> None:
        if "disk" in self._busy or time.monotonic() < self._freed_at + _REST:
            return

        def free() -> None:
            self._cluster.free_disk()
            self._freed_at = time.monotonic()

        self._cluster.fill_disk()
        self._last("disk", free, "disk")
        self._result.faults["full disk"] += 1
