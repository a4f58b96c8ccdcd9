"""The goals, each a ratio within one run or a bound, and whether this run meets them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from figures import Figures, Ratio
from units import amount, ratio_text

LESS: Final = "at most"
MORE: Final = "at least"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One goal and what this run says of it."""

    number: str
    what: str
    goal: str
    measured: str
    #: "met", "missed: ...", "not measured".
    verdict: str
    #: The bound, the further aim if there is one, and what was measured, as plain numbers; with their unit.
    bound: float
    aim: float | None
    value: float | None
    unit: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on a number that `read` takes from the figures; `aim` is what we would like beyond it."""

    number: str
    what: str
    sense: str
    bound: float
    read: Callable[[Figures], "Reading | None"]
    unit: str = "x"
    aim: float | None = None
    #: How much of it must have been tried, for the bound to mean something.
    whole: float | None = None

    def judge(self, figures: Figures) -> Verdict:
        """What this run says."""
        reading = self.read(figures)
        text = _shown(self.bound, self.unit)
        goal = f"{self.sense} {text}" + (f", aim {_shown(self.aim, self.unit)}" if self.aim else "")
        value = None if reading is None else reading.value
        return Verdict(
            number=self.number,
            what=self.what,
            goal=goal,
            measured="-" if reading is None else reading.text,
            verdict=self._verdict(reading),
            bound=self.bound,
            aim=self.aim,
            value=value,
            unit=self.unit,
        )

    def _verdict(self, reading: "Reading | None") -> str:
        if reading is None:
            return "not measured"
        if self.whole is not None and reading.n is not None and reading.n < self.whole:
            return f"not tried in full: {reading.n:,.0f} of {self.whole:,.0f}"
        value = reading.value
        if not self._meets(value, self.bound):
            return f"missed: {_shown(value, self.unit)} of {_shown(self.bound, self.unit)}"
        if self.aim is not None:
            return "met, and the aim" if self._meets(value, self.aim) else "met"
        return "met"

    def _meets(self, value: float, bound: float) -> bool:
        return value <= bound if self.sense == LESS else value >= bound


@dataclass(frozen=True)
class Reading:
    """A number, and how it is told."""

    value: float
    text: str
    #: How much was tried.
    n: float | None = None


def _shown(value: float, unit: str) -> str:
    return f"{value:.3g}x" if unit == "x" else amount(value, unit)


# --- ways to read -----------------------------------------------------------------------------------

Read = Callable[[Figures], Reading | None]


def _ratio(measure: str, who: str, to: str, to_measure: str = "") -> Read:
    def read(figures: Figures) -> Reading | None:
        ratio: Ratio | None = figures.ratio(measure, who, to, to_measure)
        if ratio is None:
            return None
        figure = figures.get(measure, who)
        return Reading(ratio.median, ratio_text(ratio), figure.n if figure else None)

    return read


def _value(measure: str, who: str = "quiesce", *, worst: bool = False) -> Read:
    def read(figures: Figures) -> Reading | None:
        figure = figures.get(measure, who)
        if figure is None:
            return None
        value = figure.highest if worst else figure.median
        text = amount(value, figure.unit)
        if figure.lowest != figure.highest:
            text += (
                f" [{amount(figure.lowest, figure.unit)} - {amount(figure.highest, figure.unit)}]"
            )
        return Reading(value, text, figure.n)

    return read


def _fastest_broker(figures: Figures) -> Reading | None:
    """Against whichever brokered peer was the fastest."""
    best = None
    for who in ("ray", "dask", "parsl", "celery", "dramatiq", "huey", "saq"):
        found = figures.ratio("peers-individual", "quiesce", who)
        if found is not None and (best is None or found.median < best[0].median):
            best = found, who
    if best is None:
        return None
    return Reading(best[0].median, f"{ratio_text(best[0])} of {best[1]}")


TARGETS: Final = [
    Target(
        number="1",
        what="individual spawns, to multiprocessing.Pool.apply_async",
        sense=MORE, bound=1.5, aim=3.0, read=_ratio("individual", "quiesce", "pool"),
    ),
    Target(
        number="1",
        what="individual spawns, to the fastest peer with a broker",
        sense=MORE, bound=20.0, read=_fastest_broker,
    ),
    Target(
        number="2",
        what="spawn_many, to the bare parts with 64 in a message",
        sense=MORE, bound=0.2, aim=0.3, read=_ratio("batch", "quiesce", "floor"),
    ),
    Target(
        number="2",
        what="QuiesceExecutor.map in chunks, to ProcessPoolExecutor.map",
        sense=MORE, bound=1.5, read=_ratio("map", "quiesce", "futures"),
    ),
    Target(
        number="3",
        what="round trip p50, to the bare parts",
        sense=LESS, bound=1.6, aim=1.3, read=_ratio("roundtrip-p50", "quiesce", "floor"),
    ),
    Target(
        number="3",
        what="round trip p99, to the bare parts",
        sense=LESS, bound=1.5, read=_ratio("roundtrip-p99", "quiesce", "floor"),
    ),
    Target(
        number="3",
        what="round trip p50 beside 10,000 queued tasks of another client, to the bare parts alone",
        sense=LESS, bound=2.0, read=_ratio("loaded-p50", "quiesce", "floor", "loaded-base-p50"),
    ),
    Target(
        number="4",
        what="a sleeping task sees the stop, p50, to the bare parts",
        sense=LESS, bound=1.2, read=_ratio("asleep-p50", "quiesce", "floor"),
    ),
    Target(
        number="4",
        what="a task in a loop sees the stop, p50, to the bare parts with a sleeping one",
        sense=LESS, bound=1.2, read=_ratio("busy-p50", "quiesce", "floor", "asleep-p50"),
    ),
    Target(
        number="4",
        what="the same beside a payload of 64 MiB, to without it (unchanged)",
        sense=LESS, bound=1.25, read=_ratio("payload-p50", "quiesce", "quiesce", "neighbour-p50"),
    ),
    Target(
        number="5",
        what="shutdown_tasks of 200 running coroutines",
        sense=LESS, bound=0.030, unit="s", read=_value("stop-200"),
    ),
    Target(
        number="5",
        what="shutdown_tasks of 100,000 queued tasks",
        sense=LESS, bound=1.5, unit="s", whole=100_000, read=_value("stop-queued"),
    ),
    Target(
        number="5",
        what="longest round trip of another client meanwhile",
        sense=LESS, bound=0.020, unit="s", whole=100_000,
        read=_value("stop-queued-wait", worst=True),
    ),
    Target(
        number="5",
        what="a stop of 500 among many others, to one of 500 alone (cost by what matches)",
        sense=LESS, bound=1.5, read=_ratio("stop-500-of-many", "quiesce", "quiesce", "stop-500"),
    ),
    Target(
        number="6",
        what="is_shutdown_requested() in a task",
        sense=LESS, bound=150e-9, unit="s", read=_value("is_shutdown_requested"),
    ),
    Target(
        number="6",
        what="checkpoint() in a task",
        sense=LESS, bound=150e-9, unit="s", read=_value("checkpoint"),
    ),
    Target(
        number="7",
        what="memory of the broker per queued task",
        sense=LESS, bound=1024.0, unit="B", read=_value("backlog-deep-bytes"),
    ),
    Target(
        number="7",
        what="throughput at 1,000,000 queued tasks, to that at 10,000",
        sense=MORE, bound=0.8, whole=1_000_000,
        read=_ratio("backlog-deep", "quiesce", "quiesce", "backlog-shallow"),
    ),
    Target(
        number="7",
        what="connected clients that hold",
        sense=MORE, bound=1000.0, unit="clients", whole=1_000, read=_value("clients"),
    ),
    Target(
        number="7",
        what="worker sessions that hold",
        sense=MORE, bound=200.0, unit="workers", whole=200, read=_value("sessions", worst=True),
    ),
    Target(
        number="8",
        what="from `quiesce up` with four runtimes to the first result",
        sense=LESS, bound=1.5, unit="s", read=_value("start-four"),
    ),
    Target(
        number="8",
        what="processor time of an idle system with four runtimes",
        sense=LESS, bound=0.01, unit="of a processor", read=_value("idle"),
    ),
    Target(
        number="8",
        what="memory (PSS) of up, broker, one supervisor and two workers",
        sense=LESS, bound=120.0 * 1024 * 1024, unit="B", read=_value("system-memory"),
    ),
    Target(
        number="9",
        what="spawn_many with power-loss, to crash",
        sense=MORE, bound=0.8, read=_ratio("batch", "quiesce-power-loss", "quiesce"),
    ),
]  # fmt: skip


def judge(figures: Figures) -> list[Verdict]:
    """All of them."""
    return [target.judge(figures) for target in TARGETS]
