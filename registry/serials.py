"""Numbers of which most come in a row, sooner or later: kept as ranges, for as long as a broker runs."""

from bisect import bisect_left
from collections.abc import Iterable


class Serials:
    """A set of positive integers that only grows; its size is that of its gaps."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges`: as `ranges` gives them."""
        # Range i is from _firsts[i] to _lasts[i]; between two there is a number that is in neither.
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self._firsts.append(first)
            self._lasts.append(last)

    def __contains__(self, serial: int) -> bool:
        place = bisect_left(self._lasts, serial)
        return place < len(self._lasts) and self._firsts[place] <= serial

    def add(self, serial: int) -> None:
        """Twice is harmless."""
        firsts, lasts = self._firsts, self._lasts
        place = bisect_left(lasts, serial)  # of the range that it is in, or lies before
        if place < len(lasts) and firsts[place] <= serial:
            return
        follows = place > 0 and lasts[place - 1] == serial - 1
        precedes = place < len(firsts) and firsts[place] == serial + 1
        if follows and precedes:
            lasts[place - 1] = lasts.pop(place)
            del firsts[place]
        elif follows:
            lasts[place - 1] = serial
        elif precedes:
            firsts[place] = serial
        else:
            firsts.insert(place, serial)
            lasts.insert(place, serial)

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last of each, in order: equal for equal sets."""
        return tuple(zip(self._firsts, self._lasts, strict=True))
