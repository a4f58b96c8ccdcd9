"""What has been measured: values by measure, by whom, and by round."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Figure:
    """One thing measured of one participant, once in each round that succeeded."""

    measure: str
    who: str
    unit: str
    values: dict[int, float] = field(default_factory=dict)
    #: How much of it: tasks, bytes, clients.
    n: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values.values())

    @property
    def lowest(self) -> float:
        return min(self.values.values())

    @property
    def highest(self) -> float:
        return max(self.values.values())


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of two figures, round by round: what slows a whole round down cancels out."""

    median: float
    lowest: float
    highest: float


class Figures:
    """All of one run."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], Figure] = {}
        #: What failed: who, what, in which round, why.
        self.failures: list[dict[str, Any]] = []
        #: What is only to be drawn: points (x, y) by plot and line.
        self.curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)

    def add(
        self, measure: str, who: str, number: int, value: float, unit: str, n: float | None = None
    ) -> None:
        """One value of a round; `n` may grow or shrink, and the last one is told."""
        figure = self._all.setdefault(
            (measure, who), Figure(measure=measure, who=who, unit=unit, n=n)
        )
        figure.values[number] = value
        figure.n = n

    def fail(self, measure: str, who: str, number: int, why: str) -> None:
        """Something gave no value."""
        self.failures.append({"measure": measure, "who": who, "round": number, "why": why})

    def get(self, measure: str, who: str) -> Figure | None:
        """None: it was not measured."""
        return self._all.get((measure, who))

    def ratio(self, measure: str, who: str, to: str, to_measure: str = "") -> Ratio | None:
        """How many times the other's it is; None unless both were measured in one round."""
        one, other = self.get(measure, who), self.get(to_measure or measure, to)
        if one is None or other is None:
            return None
        ratios = [
            one.values[number] / other.values[number]
            for number in one.values
            if other.values.get(number)
        ]
        if not ratios:
            return None
        return Ratio(median=statistics.median(ratios), lowest=min(ratios), highest=max(ratios))

    def of(self, measure: str) -> list[Figure]:
        """Of everybody, in the order in which they came."""
        return [figure for figure in self._all.values() if figure.measure == measure]

    def everything(self) -> list[Figure]:
        """In the order in which they came."""
        return list(self._all.values())


def percentile(values: list[float], part: float) -> float:
    """The smallest that at least this part of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
