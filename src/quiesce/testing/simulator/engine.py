"""The virtual world's time, chance and memory: one heap of what happens next, one source of chance, one trace."""

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, TextIO

Call = Callable[..., object]


class Violation(Exception):  # noqa: N818 - a promise was broken; nobody handles that
    """What was promised did not hold. The text says what, and when."""


class Engine:
    """Runs events in the order of their moments; those of one moment in the order in which they were planned.

    Nothing else decides what comes next, so a seed says all: no clock, no hash order, no address.
    """

    __slots__ = ("_heap", "_planned", "counts", "done", "faults", "now", "random", "trace")

    def __init__(self, seed: int, trace: TextIO | None = None) -> None:
        #: Seconds of true time, which no process of the cluster can read.
        self.now = 0.0
        self.random = Random(seed)
        self.trace = trace
        #: Faults that have happened, by kind; and what else is counted.
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        #: Events that have happened.
        self.done = 0
        self._heap: list[tuple[float, int, Call, tuple[Any, ...]]] = []
        self._planned = 0

    def at(self, when: float, call: Call, *args: Any) -> None:
        """Plan `call(*args)`."""
        self._planned += 1
        heappush(self._heap, (when, self._planned, call, args))

    def after(self, delay: float, call: Call, *args: Any) -> None:
        """Plan it so many seconds from now."""
        self._planned += 1
        heappush(self._heap, (self.now + delay, self._planned, call, args))

    def note(self, text: str) -> None:
        """One line of the trace. Ask `trace` first where it costs something to make the text."""
        if self.trace is not None:
            self.trace.write(f"{self.now:.7f} {text}\n")

    def fault(self, kind: str, text: object = "") -> None:
        """A fault happens."""
        self.faults[kind] += 1
        if self.trace is not None:
            self.note(f"FAULT {kind} {text}")

    def run(self, until: float) -> None:
        """All that happens up to this moment."""
        heap = self._heap
        count = 0
        try:
            while heap and heap[0][0] <= until:
                self.now, _, call, args = heappop(heap)
                count += 1
                call(*args)
        finally:
            self.done += count
        self.now = until
