"""One run of the benchmark: what was asked for, who takes part, and how one thing is asked of one of them."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import environments
import peerlist
from drivers import Driver, DriverError
from figures import Figures, percentile

#: Tried before anything is timed: the first calls import, connect and grow.
WARM_UP = 200


class Session:
    """The settings of a run, and what it has found so far."""

    def __init__(
        self, *, quick: bool, rounds: int, only: Sequence[str], peers: Sequence[str], install: bool
    ) -> None:
        self.quick = quick
        self.rounds = rounds
        self.figures = Figures()
        self.only = only
        #: Why somebody who was asked for is not measured, by name.
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._peers = peers
        self._pythons: dict[str, str] = {}
        self._install = install
        #: Tasks a second as last seen, by participant and verb; and the drivers that have been warmed up.
        self._rates: dict[tuple[str, str], float] = {}
        self._warm: set[Driver] = set()

    def wants(self, *measures: str) -> bool:
        """Whether one of these is to be measured."""
        return not self.only or any(name in self.only for name in measures)

    def participants(self, names: Sequence[str]) -> list[str]:
        """Those of these who were asked for and can be measured here."""
        found = []
        for name in names:
            if name in self.missing:
                continue
            if (
                name not in self._peers
                if self._peers
                else self.quick and name in peerlist.NOT_QUICK
            ):
                continue
            if name not in self._pythons:
                kind = peerlist.KINDS[name]
                try:
                    self._pythons[name] = environments.python_of(kind, install=self._install)
                except environments.MissingError as missing:
                    self.missing[name] = str(missing)
                    continue
            found.append(name)
        return found

    def amount(self, full: int, quick: int) -> int:
        """How much, for a whole or a quick run."""
        return quick if self.quick else full

    # --- drivers

    @contextmanager
    def driver(
        self, name: str, *, options: dict[str, Any] | None = None, start: bool = True
    ) -> Iterator[Driver]:
        """A running driver; with `start`, what it measures has given its first result."""
        with Driver(name, self._pythons[name], options=options) as driver:
            if start:
                self.start(driver)
            yield driver

    def start(self, driver: Driver, limit: float = 90.0) -> float:
        """Seconds until its first result."""
        answer = driver.ask("start", limit=limit)
        self.versions[driver.name] = answer["version"]
        return float(answer["seconds"])

    def started(
        self,
        stack: ExitStack,
        names: Sequence[str],
        *,
        runtimes: dict[str, tuple[int, int]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Driver]:
        """A running driver for each participant of these; the stack ends them.

        `runtimes`: of quiesce, where its usual one is not enough.
        """
        drivers = {}
        for name in self.participants(names):
            given = dict(options or {})
            if runtimes is not None and name.startswith("quiesce"):
                given["runtimes"] = runtimes
            with self.attempt("start", name, 0):
                drivers[name] = stack.enter_context(self.driver(name, options=given))
        return drivers

    @contextmanager
    def attempt(self, measure: str, who: str, number: int) -> Iterator[None]:
        """What fails in here is noted, and the rest goes on."""
        try:
            yield
        except DriverError as error:
            self.figures.fail(measure, who, number, str(error))
            print(f"  {who}: {measure} failed: {error}", file=sys.stderr)

    # --- the common questions

    def rate(
        self, driver: Driver, verb: str, number: int, n: int, *, prefix: str = "", **arguments: Any
    ) -> None:
        """Tasks a second of `individual`, `batch` or `map`.

        `n` tasks, or as many as take about `seconds`: nobody waits a minute for the slow ones.
        """
        n = self.fitting(driver, verb, n, **arguments)
        answer = driver.ask(verb, n=n, limit=120, **arguments)
        rate = answer["n"] / answer["seconds"]
        self._rates[driver.name, verb] = rate
        self.figures.add(prefix + verb, driver.name, number, rate, "tasks/s", answer["n"])

    def fitting(
        self,
        driver: Driver,
        verb: str,
        n: int,
        *,
        seconds: float | None = None,
        **arguments: Any,
    ) -> int:
        """`n`, or as many as take so long by what was seen last; a new driver is warmed up first."""
        key = (driver.name, verb)
        if driver not in self._warm or key not in self._rates:
            for size in (WARM_UP // 4, WARM_UP):
                answer = driver.ask(verb, n=size, **arguments)
            self._warm.add(driver)
            self._rates.setdefault(key, answer["n"] / answer["seconds"])
        fits = int(self._rates[key] * (self.seconds if seconds is None else seconds))
        return min(n, max(WARM_UP // 2, fits))

    @property
    def seconds(self) -> float:
        """About as long as one thing of one participant may take in one round."""
        return 0.3 if self.quick else 1.5

    def latency(
        self, driver: Driver, measure: str, number: int, times: list[float], who: str = ""
    ) -> None:
        """Median and 99th percentile of seconds, as two measures."""
        if times:
            name, n = who or driver.name, len(times)
            self.figures.add(f"{measure}-p50", name, number, percentile(times, 0.5), "s", n)
            self.figures.add(f"{measure}-p99", name, number, percentile(times, 0.99), "s", n)

    def roundtrips(self, driver: Driver, number: int, measure: str = "roundtrip") -> None:
        """Of single no-ops, for a while."""
        (first, *_) = driver.ask("roundtrips", n=1)
        several = driver.ask("roundtrips", n=20)
        each = percentile([first, *several], 0.5)
        n = max(20, min(self.amount(1000, 100), int(self.seconds / each / 2)))
        self.latency(driver, measure, number, driver.ask("roundtrips", n=n, limit=60))


def rotated(items: Sequence[str], by: int) -> list[str]:
    """Everybody is first, and last, in turn."""
    by %= len(items) or 1
    return [*items[by:], *items[:by]]


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    print(f"{title} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


Phase = Callable[[Session], None]
