"""The explorer: what it must go through to the end, that it finds planted bugs, and what it has found."""

from dataclasses import replace

import pytest

from quiesce.testing.explorer.__main__ import main
from quiesce.testing.explorer.model import Step
from quiesce.testing.explorer.plants import PLANTS, planted
from quiesce.testing.explorer.rules import BrokenRule
from quiesce.testing.explorer.scenario import Batch, Faults, Scenario, Spawn, Stop
from quiesce.testing.explorer.scenarios import SCENARIOS
from quiesce.testing.explorer.search import Explored, explore
from quiesce.testing.explorer.trace import pasteable, replay, story


def whole(scenario: Scenario, *, jobs: int = 1) -> Explored:
    """Explore it to its end; no rule may be broken."""
    explored = explore(scenario, jobs=jobs)
    assert explored.broken is None, explored.broken
    assert explored.complete
    assert 0 < explored.over < explored.states < explored.transitions
    return explored


@pytest.mark.slow
def test_one_stop_of_two_tasks_holds_whatever_happens() -> None:
    explored = whole(SCENARIOS["one-stop"])
    assert explored.states > 20_000
    assert explored.transitions > 2 * explored.states


@pytest.mark.timeout(600)
def test_a_worker_that_runs_in_a_row_holds_whatever_happens() -> None:
    """Two tasks of the three of the scenario "in-a-row"."""
    few = Batch((Spawn("a"), Spawn("b")))
    scenario = replace(SCENARIOS["in-a-row"], clients=((few, Stop(tenant="T")),))
    assert whole(scenario).states > 10_000


@pytest.mark.parametrize("name", ["associate", "pool-death", "late-notice"])
def test_a_small_scenario_holds_whatever_happens(name: str) -> None:
    assert whole(SCENARIOS[name]).states > 1_000


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    plant = PLANTS[name]
    explored = explore(SCENARIOS[plant.scenario], plant=name)
    broken = explored.broken
    assert broken is not None
    assert len(broken.steps) <= 20
    with planted(name):
        told = story(plant.scenario, broken.steps)
        if broken.rule == "everything can still end":
            replay(plant.scenario, broken.steps)
        else:
            with pytest.raises(BrokenRule, match=broken.rule):
                replay(plant.scenario, broken.steps)
    compile(pasteable(plant.scenario, broken, told), "test", "exec")
    # Without the bug the same way is harmless.
    replay(plant.scenario, broken.steps)


TINY = Scenario(
    name="tiny",
    words="",
    clients=((Spawn("a", endless=True), Stop(tenant="T")),),
    faults=Faults(total=1, workers=1),
    eager=True,
)


def test_several_processes_find_the_same() -> None:
    alone, together = whole(TINY), whole(TINY, jobs=2)
    assert alone.states > 300
    for field in ("states", "transitions", "over", "depth"):
        assert getattr(alone, field) == getattr(together, field), field


def test_several_processes_find_the_same_bug() -> None:
    found = [explore(TINY, plant="table-ignored", jobs=jobs).broken for jobs in (1, 2)]
    assert found[0] is not None
    assert found[0] == found[1]


def test_clients_that_do_the_same_are_explored_once() -> None:
    clients = ((Spawn("a"),), (Spawn("b"),))
    scenario = replace(TINY, clients=clients, faults=Faults(total=0), symmetric=True)
    once, twice = whole(scenario), whole(replace(scenario, symmetric=False))
    assert once.states < 0.6 * twice.states


def test_a_budget_ends_it() -> None:
    explored = explore(SCENARIOS["one-stop-in-full"], budget=500)
    assert explored.broken is None
    assert not explored.complete
    assert 500 <= explored.states < 5_000


def test_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "one-stop " in capsys.readouterr().out
    assert main(["--scenario", "broker-restart", "--jobs", "1", "--plant", "hasty-answers"]) == 1
    said = capsys.readouterr().out
    assert "an acknowledged spawn is never lost" in said
    assert "    replay(\n        'broker-restart'" in said


# --- what it has found ----------------------------------------------------------------------------


def test_results_that_are_sent_again_wait_for_the_journal() -> None:
    """A client that had come back was told of ends at once: if the broker died then, it had been told too much."""
    steps: list[Step] = [
        ("goes on", 2),
        ("hear", 2, 1),  # the spawn
        ("commit",),
        ("hears", 1, 1),  # the task
        ("the broker dies",),
        ("the broker starts",),
        ("hear", 1, 0),  # the worker's hello
        ("commit",),
        ("begins", 1, (1, 1)),
        ("ends", 1, (1, 1), "completed"),
        ("hears", 1, 0),
        ("hear", 2, 0),  # the client's hello
        ("commit",),
        ("hear", 1, 1),
        ("hear", 1, 1),  # the end, which is not committed
        ("hear", 2, 1),  # the client can be reached on its data connection
    ]
    assert replay("broker-restart", steps).pending
