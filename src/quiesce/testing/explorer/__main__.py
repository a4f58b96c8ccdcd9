"""scripts/explore: explores scenarios, and says what it found."""

import argparse
import os
import sys
from collections.abc import Sequence

from quiesce.testing.arguments import count, duration
from quiesce.testing.explorer.plants import PLANTS, planted
from quiesce.testing.explorer.scenarios import SCENARIOS
from quiesce.testing.explorer.search import explore
from quiesce.testing.explorer.trace import pasteable, story


def main(arguments: Sequence[str] | None = None) -> int:
    """As a program: 0 if all rules hold, 1 if one does not."""
    parser = argparse.ArgumentParser(
        prog="scripts/explore",
        description="Explore all interleavings of small clusters of quiesce's own machines, with faults.",
    )
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="say which scenarios there are")
    parser.add_argument("--budget", type=count, metavar="N", help="states, for each scenario")
    parser.add_argument("--minutes", type=duration, metavar="M", help="for each scenario")
    parser.add_argument("--jobs", type=count, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--plant", default="", choices=[*PLANTS], help="a bug, to be found")
    wishes = parser.parse_args(arguments)
    if wishes.list:
        for name, scenario in SCENARIOS.items():
            _say(f"{name:22} {scenario.words}")
        return 0
    found = 0
    for name in wishes.scenario or SCENARIOS:
        explored = explore(
            SCENARIOS[name],
            budget=wishes.budget,
            seconds=None if wishes.minutes is None else 60 * wishes.minutes,
            jobs=wishes.jobs,
            plant=wishes.plant,
        )
        _say(str(explored))
        broken = explored.broken
        if broken is not None:
            found += 1
            with planted(wishes.plant):
                told = story(name, broken.steps)
            _say(f"\nBROKEN: {broken.rule}:\n  {broken.text}\nThe shortest way to it:")
            for number, words in enumerate(told, 1):
                _say(f"  {number:3} {words}")
            _say("\nAs a test (from quiesce.testing.explorer.trace import replay):\n")
            _say(pasteable(name, broken, told) + "\n")
    return 1 if found else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
