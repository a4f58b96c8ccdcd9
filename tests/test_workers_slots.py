"""The threads of a worker with several slots, and its main thread: see `slots_house` and `hands_house`."""

import subprocess
import sys
from pathlib import Path

import pytest

from hands_house import SCENARIOS
from quiesce.testing import worker_bodies as bodies
from workers_fakes import Pool, value_of

HERE = Path(__file__).parent


def run(house: str, *words: str) -> str:
    command = [sys.executable, str(HERE / house), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_the_main_thread_misses_nothing_when_it_falls_asleep() -> None:
    assert int(run("slots_house.py")) > 1_000


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_threads_take_what_waits(scenario: str) -> None:
    run("hands_house.py", scenario)


def test_short_ones_around_one_that_lasts(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ends are told while it does, however few threads are awake."""
    broker = pool.broker
    monkeypatch.setattr(broker, "assigns_again", True)  # what waits for a moment is given back
    peer = broker.await_peer()
    if pool.settings.slots == 1:
        pytest.skip("what is behind it waits for it")
    for row in (broker.row(peer, bodies.nothing), broker.row(peer, bodies.add, 1, 2)):
        broker.assign(peer, row)  # so that the function is known
        broker.await_end((row.task_id, row.attempt))
    short = [broker.row(peer, bodies.nothing) for _ in range(2)]
    long = broker.row(peer, bodies.gate_file, str(tmp_path), "long")
    others = [broker.row(peer, bodies.add, n, n) for n in range(200)]
    broker.assign(peer, *short, long, *others)
    for row in short:
        broker.await_end((row.task_id, row.attempt))
    for number, row in enumerate(others):
        assert value_of(broker.await_end((row.task_id, row.attempt))) == 2 * number
    assert (long.task_id, long.attempt) not in broker.ended
    bodies.mark(str(tmp_path), "long-go")
    broker.await_end((long.task_id, long.attempt))
