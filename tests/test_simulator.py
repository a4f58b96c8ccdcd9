"""The simulator: promises hold in its worlds, a seed says all that happens, and its judge sees planted bugs."""

import hashlib
import io
import os
import subprocess
import sys

import pytest

from quiesce.testing.explorer.plants import planted
from quiesce.testing.simulator import Plan, Violation, World
from quiesce.testing.simulator.faults import STORM
from quiesce.testing.simulator.worlds import DURABILITIES, main

TRACED = """
import hashlib, io, logging
from quiesce.testing.simulator import Plan, World
logging.getLogger("quiesce.broker").disabled = True
trace = io.StringIO()
world = World(7, Plan(), trace)
world.run(2.0)
print(hashlib.sha256(trace.getvalue().encode()).hexdigest(), world.engine.done)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_every_stop_that_returns_is_true(durability: str) -> None:
    world = World(11, Plan(durability=durability))
    world.run(6.0)
    world.heal()
    assert world.judge.checked > 100
    assert set(world.judge.evidence) >= {"RETURNED", "NEVER_RAN", "REAPED"}
    assert world.engine.faults.total() > 500


@pytest.mark.parametrize("durability", DURABILITIES)
def test_every_stop_that_returns_is_true_in_a_storm(durability: str) -> None:
    world = World(15, Plan(durability=durability, weights=STORM))
    world.run(7.0)
    world.heal()
    assert world.engine.faults.total() > 500


def test_a_seed_says_all_that_happens_whatever_the_order_of_hashes() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", TRACED],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_another_seed_is_another_world() -> None:
    traces = set[str]()
    for seed in (1, 2):
        trace = io.StringIO()
        World(seed, Plan(), trace).run(0.5)
        traces.add(hashlib.sha256(trace.getvalue().encode()).hexdigest())
    assert len(traces) == 2


@pytest.mark.parametrize("bug", ["stop-trails", "table-ignored"])
def test_the_judge_sees_a_planted_bug(bug: str) -> None:
    with planted(bug), pytest.raises(Violation):
        World(1, Plan(weights=STORM)).run(20.0)


def test_the_program_says_what_it_did_and_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = ["--hours", "0.001", "--jobs", "1", "--durability", "crash"]
    assert main(short) == 0
    said = capsys.readouterr().out
    assert "all held" in said
    assert "worlds     1, of which broken: 0" in said
    with planted("stop-trails"):
        assert main([*short, "--storm"]) == 1
    said = capsys.readouterr().out
    assert "of which broken: 1" in said
    again = said.split("again: scripts/simulate ")[1].splitlines()[0].replace(" --trace FILE", "")
    with planted("stop-trails"):
        assert main([*again.split(), "--jobs", "1"]) == 1
    assert said.split("BROKEN: ")[1].splitlines()[0] in capsys.readouterr().out
