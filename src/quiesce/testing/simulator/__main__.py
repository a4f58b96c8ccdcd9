"""scripts/simulate: runs one world after the other, and says which seed broke a promise."""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final, TextIO

from quiesce.testing.simulator.engine import Violation
from quiesce.testing.simulator.faults import STORM, WEIGHTS
from quiesce.testing.simulator.world import Plan, World

DURABILITIES: Final = ("crash", "power-loss", "none")


def main(arguments: Sequence[str] | None = None) -> int:
    """As a program: 0 if all worlds kept their promises, 1 if one did not."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Simulate whole clusters under a virtual clock, with faults; a seed says all that happens.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first one (1)")
    parser.add_argument("--worlds", type=int, metavar="N", help="how many; without this, 10")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="of this machine's time, instead of --worlds"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="of virtual time with faults (20)"
    )
    parser.add_argument(
        "--durability", choices=[*DURABILITIES], help="of the journal; without this, all in turn"
    )
    parser.add_argument("--storm", action="store_true", help="rare faults ten times as often")
    parser.add_argument("--trace", metavar="FILE", help="all that happens, for one world; slow")
    wishes = parser.parse_args(arguments)
    logging.getLogger("quiesce.broker").disabled = True
    worlds = wishes.worlds or (1 if wishes.trace else 10)
    until = None if wishes.minutes is None else time.monotonic() + 60 * wishes.minutes
    weights = STORM if wishes.storm else WEIGHTS
    total: Counter[str] = Counter()
    seed, broken, began = wishes.seed, 0, time.process_time()
    with Path(wishes.trace).open("w") if wishes.trace else nullcontext() as trace:
        while (seed < wishes.seed + worlds) if until is None else (time.monotonic() < until):
            durability = wishes.durability or DURABILITIES[seed % len(DURABILITIES)]
            broken += not simulate(seed, durability, weights, wishes.seconds, trace, total)
            seed += 1
    spent = max(time.process_time() - began, 1e-9)
    per_minute = ", ".join(
        f"{total[name] / spent * 60:,.0f} {name}" for name in ("faults", "stops")
    )
    _say(
        f"{seed - wishes.seed} worlds, {broken} broken: "
        f"{', '.join(f'{count:,} {name}' for name, count in total.items())}; a minute of CPU: {per_minute}"
    )
    return 1 if broken else 0


def simulate(
    seed: int,
    durability: str,
    weights: dict[str, float],
    seconds: float,
    trace: TextIO | None,
    total: Counter[str],
) -> bool:
    """One world, from its beginning to its end. Says whether it kept its promises."""
    world = World(seed, Plan(durability=durability, weights=weights), trace)
    words = ""
    try:
        world.run(seconds)
        world.heal()
    except Violation as violation:
        words = str(violation)
    judge, faults = world.judge, world.engine.faults.total()
    total.update(faults=faults, stops=judge.checked, ends=sum(judge.evidence.values()))
    _say(
        f"seed {seed:<6} {durability:10} {faults:6,} faults {judge.checked:6,} stops  {words or 'all held'}"
    )
    if words:
        storm = " --storm" if weights is STORM else ""
        _say(
            f"again: scripts/simulate --seed {seed} --worlds 1 --durability {durability} "
            f"--seconds {seconds:g}{storm} --trace FILE"
        )
    return not words


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
