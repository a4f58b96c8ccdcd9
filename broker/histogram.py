"""Counts of durations by size: cheap to keep, and read while they are kept by another thread."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, Final

#: Upper bounds of the buckets, in seconds; the last bucket has none.
TASK_TIMES: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
CHECK_AGES: Final = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
COMMITS: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)


class Histogram:
    """One thread adds; any thread may read, and then sees the sum of one addition more or less."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        #: How many were at most as long as each bound and longer than the one before; the last: than all.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """One more, or so many alike. Clocks that were set back make no negative ones."""
        if seconds < 0.0:  # noqa: PLR1730 - max() costs more than all the rest
            seconds = 0.0
        self.counts[bisect_left(self._bounds, seconds)] += count
        self.sum += count * seconds

    def add_all(self, seconds: Iterable[float]) -> None:
        """All these, of which there is one at least. They are sorted, for most of them lie in the same bucket."""
        ordered = sorted(seconds)
        if ordered[0] < 0.0:
            ordered = [max(0.0, each) for each in ordered]
        counts, bounds, before = self.counts, self._bounds, 0
        last = bisect_left(bounds, ordered[-1])
        for place in range(bisect_left(bounds, ordered[0]), last):
            through = bisect_right(ordered, bounds[place])
            counts[place] += through - before
            before = through
        counts[last] += len(ordered) - before
        self.sum += sum(ordered)

    def plain(self) -> dict[str, Any]:
        """As `Client.statistics()` shows it."""
        return {"counts": list(self.counts), "sum": self.sum}
