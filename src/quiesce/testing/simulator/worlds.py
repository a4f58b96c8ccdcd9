"""What scripts/simulate runs: hours of virtual time, as one world after the other; and what it says."""

import argparse
import logging
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from quiesce.testing.arguments import count, duration
from quiesce.testing.simulator.engine import Violation
from quiesce.testing.simulator.faults import STORM, WEIGHTS
from quiesce.testing.simulator.world import Plan, World

DURABILITIES: Final = ("crash", "power-loss", "none")


class Wish(NamedTuple):
    """One world. `seconds` of trouble, before it is healed."""

    seed: int
    durability: str
    seconds: float
    storm: bool


@dataclass(slots=True)
class Lived:
    """What became of it. `broken`: what did not hold. Of virtual time, it lasted `seconds`."""

    wish: Wish
    broken: str = ""
    seconds: float = 0.0
    stops: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    evidence: Counter[str] = field(default_factory=Counter)


def main(arguments: Sequence[str] | None = None) -> int:
    """As a program: 0 if all worlds kept their promises, 1 if one did not."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Simulate whole clusters under a virtual clock, with faults; a seed says all that happens.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the first world (1)")
    parser.add_argument(
        "--hours",
        type=duration,
        default=0.1,
        metavar="H",
        help="of virtual time, busy all along (0.1)",
    )
    parser.add_argument(
        "--world",
        type=duration,
        default=60.0,
        metavar="SECONDS",
        help="one lasts so long at most (60)",
    )
    parser.add_argument(
        "--durability", choices=[*DURABILITIES], help="of the journal; else all in turn"
    )
    parser.add_argument("--storm", action="store_true", help="rare faults ten times as often")
    parser.add_argument(
        "--jobs", type=count, default=os.cpu_count() or 1, metavar="N", help="worlds at a time"
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="all that happens, one line each: slow, and large"
    )
    wishes = parser.parse_args(arguments)
    try:
        trace = Path(wishes.trace).open("w") if wishes.trace else None  # noqa: SIM115 - closed below
    except OSError as error:
        parser.error(f"argument --trace: {wishes.trace} can't be written: {error.strerror}")
    seconds = wishes.hours * 3600
    worlds = math.ceil(seconds / wishes.world)
    began = time.monotonic()
    lived: list[Lived] = []
    plan = [
        Wish(
            seed,
            wishes.durability or DURABILITIES[seed % len(DURABILITIES)],
            min(wishes.world, seconds - number * wishes.world),
            wishes.storm,
        )
        for number, seed in enumerate(range(wishes.seed, wishes.seed + worlds))
    ]
    with nullcontext() if trace is None else trace:
        for each in _all(plan, wishes.jobs, trace):
            lived.append(each)
            _say(_line(each))
    _say(_sum(lived, time.monotonic() - began))
    return 1 if any(each.broken for each in lived) else 0


def _all(plan: list[Wish], jobs: int, trace: TextIO | None) -> Iterator[Lived]:
    if trace is not None or jobs == 1 or len(plan) == 1:
        for wish in plan:
            yield simulate(wish, trace)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(plan))) as pool:
        yield from pool.imap(simulate, plan)


def simulate(wish: Wish, trace: TextIO | None = None) -> Lived:
    """One world, from its beginning to its end."""
    logging.getLogger("quiesce.broker").disabled = True
    lived = Lived(wish)
    plan = Plan(durability=wish.durability, weights=STORM if wish.storm else WEIGHTS)
    if trace is not None:
        trace.write(f"world {wish}\n")
    world = World(wish.seed, plan, trace)
    try:
        world.run(wish.seconds)
        world.heal()
    except Violation as violation:
        lived.broken = str(violation)
    except Exception:
        lived.broken = traceback.format_exc()
    lived.seconds = world.engine.now
    lived.stops = world.judge.checked
    lived.faults.update(world.engine.faults)
    lived.evidence.update(world.judge.evidence)
    return lived


def _line(lived: Lived) -> str:
    wish = lived.wish
    line = (
        f"seed {wish.seed:<6} {wish.durability:10} {lived.seconds:7.1f} s "
        f"{lived.faults.total():8,} faults {lived.stops:8,} stops  "
    )
    if not lived.broken:
        return f"{line}all held"
    storm = " --storm" if wish.storm else ""
    hours = repr(wish.seconds / 3600)
    return (
        f"{line}BROKEN: {lived.broken}\nagain: scripts/simulate --seed {wish.seed} --hours {hours} "
        f"--world {wish.seconds + 1:g} --durability {wish.durability}{storm} --trace FILE"
    )


def _sum(lived: list[Lived], spent: float) -> str:
    faults, evidence = Counter[str](), Counter[str]()
    for each in lived:
        faults.update(each.faults)
        evidence.update(each.evidence)
    stops = sum(each.stops for each in lived)
    minutes = max(spent, 1e-9) / 60
    return "\n".join(
        [
            f"worlds     {len(lived)}, of which broken: {sum(bool(each.broken) for each in lived)}",
            f"simulated  {sum(each.seconds for each in lived) / 3600:.3f} h in {spent:.1f} s",
            f"stops      {stops:,} checked, {stops / minutes:,.0f} a minute; rows: {_counts(evidence)}",
            f"faults     {faults.total():,}, {faults.total() / minutes:,.0f} a minute: {_counts(faults)}",
        ]
    )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name or 'none'} {count:,}" for name, count in counter.most_common())


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
