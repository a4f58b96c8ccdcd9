"""Deadlines as data: what is due when. No clock."""

import heapq
import math
from typing import Final

#: What is due, and for whom: ("resend", task id), ("force", task id), ("limit", task id), ("late", task id),
#: ("stop", stop id), ("word", stop id), ("session", session id), ("lease", supervisor id), ("certain", 0),
#: ("system", 0).
Due = tuple[str, int | bytes]
#: A broker that comes to what is due so many seconds late was held up.
HELD_UP: Final = 1.0


class Timers:
    """Each Due has at most one time; setting it again moves it."""

    __slots__ = ("_heap", "_times")

    def __init__(self) -> None:
        #: The time of each Due.
        self._times: dict[Due, float] = {}
        #: (time, due) for at least all of `_times`; stale ones are skipped.
        self._heap: list[tuple[float, str, str, Due]] = []

    def set(self, due: Due, tick: float) -> None:
        """Due at `tick`, whatever was said of it before; never, if that is infinite or no number."""
        if not tick < math.inf:
            self.clear(due)
            return
        self._times[due] = tick
        heapq.heappush(self._heap, (tick, due[0], str(due[1]), due))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._times):
            self._heap = [(when, d[0], str(d[1]), d) for d, when in self._times.items()]
            heapq.heapify(self._heap)

    def clear(self, due: Due) -> None:
        """Not due any more."""
        self._times.pop(due, None)

    def when(self, due: Due) -> float | None:
        """When it is due, None if it isn't."""
        return self._times.get(due)

    def next(self) -> float | None:
        """When the next is due, None if nothing is."""
        while self._heap:
            tick, _, _, due = self._heap[0]
            if self._times.get(due) == tick:
                return tick
            heapq.heappop(self._heap)
        return None

    def pop(self, tick: float) -> tuple[Due, float] | None:
        """Take one that is due by `tick`, and when it was due."""
        when = self.next()
        if when is None or when > tick:
            return None
        due = heapq.heappop(self._heap)[3]
        return due, self._times.pop(due)

    def items(self) -> list[tuple[Due, float]]:
        """All, for `freeze`."""
        return sorted(self._times.items(), key=lambda item: (item[1], item[0][0], str(item[0][1])))
