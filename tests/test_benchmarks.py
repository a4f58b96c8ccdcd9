"""The benchmark runs, survives what it measures, and says what its readers rely on. No figure is judged here."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from quiesce.testing.leaks import descendants

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "benchmarks" / "bench.py"


def bench(
    *words: str, cache: Path, code: int = 0, script: Path = BENCH
) -> "subprocess.CompletedProcess[str]":
    """One run of it, by the interpreter of the tests: nothing is installed."""
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env={**os.environ, "QUIESCE_BENCH_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_a_quick_run_gives_figures_ratios_and_verdicts(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    words = "--quick --rounds 1 --only individual roundtrip --peers quiesce pool floor loky"
    done = bench(*words.split(), "--no-install", "--json", str(file), cache=tmp_path)
    run: dict[str, Any] = json.loads(file.read_text())

    assert run["format"] == 1
    assert run["quick"] is True
    assert run["rounds"] == 1
    assert run["failures"] == []
    assert run["machine"]["processors"] >= 1
    participants = run["participants"]
    assert {name for name in participants if participants[name]["missing"] is None} == {
        "quiesce",
        "pool",
        "floor",
    }
    assert "not installed" in participants["loky"]["missing"]

    figures = {(each["measure"], each["who"]): each for each in run["figures"]}
    for who in ("quiesce", "pool", "floor"):
        figure = figures["individual", who]
        assert figure["unit"] == "tasks/s"
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert figure["n"] > 0
        assert list(figure["values"]) == ["0"]
        assert ("roundtrip-p50", who) in figures
        assert ("peers-individual", who) in figures
    assert figures["individual", "pool"]["to_pool"]["median"] == 1.0
    assert figures["individual", "quiesce"]["to_pool"]["median"] > 0

    verdicts = {each["what"]: each for each in run["targets"]}
    verdict = verdicts["individual spawns, to multiprocessing.Pool.apply_async"]
    assert verdict["goal"] == "at least 1.5x, aim 3x"
    assert verdict["verdict"].startswith(("met", "missed: "))
    assert verdicts["checkpoint() in a task"]["verdict"] == "not measured"

    assert "| multiprocessing.Pool" in done.stdout
    assert "not measured: loky" in done.stdout


def driver_program(body: str) -> str:
    """A script that lets one thing happen to a driver, with the drivers of `pool` replaced by `body`."""
    return textwrap.dedent(
        f"""
        import os, sys
        sys.path.insert(0, {str(BENCH.parent)!r})
        import drivers
        drivers.PEERS = __import__("pathlib").Path(sys.argv[1])
        with drivers.nothing_left_behind():
            driver = drivers.Driver("pool", sys.executable)
        """
    ) + textwrap.indent(textwrap.dedent(body), "    ")


def run_with_driver(folder: Path, peer: str, body: str) -> str:
    """What `body` prints."""
    (folder / "peer_pool.py").write_text(textwrap.dedent(peer))
    script = folder / "script.py"
    script.write_text(driver_program(body))
    return bench(str(folder), cache=folder, script=script).stdout


HANGS = """
import subprocess, sys
for line in sys.stdin:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(child.pid, file=sys.stderr, flush=True)
    subprocess.Popen(["sleep", "1000"]).wait()
"""


def test_a_driver_that_hangs_is_given_up_and_ended_with_all_it_started(tmp_path: Path) -> None:
    body = """
    try:
        driver.ask("individual", limit=1.0, n=1)
    except drivers.DriverError as error:
        print(error)
    driver.close()
    print(len(drivers.descendants(os.getpid())), os.listdir(os.environ["TMPDIR"]))
    """
    assert run_with_driver(tmp_path, HANGS, body).splitlines() == [
        "individual took more than 1 s",
        "1 []",
    ]


def test_a_driver_that_dies_says_its_last_words(tmp_path: Path) -> None:
    peer = "import sys; input(); sys.exit('the end of it')"
    body = """
    try:
        driver.ask("individual", n=1)
    except drivers.DriverError as error:
        print(error)
    driver.close()
    """
    said = run_with_driver(tmp_path, peer, body)
    assert said == "it ended in individual: the end of it\n"


@pytest.mark.slow
def test_a_run_that_is_ended_ends_its_drivers(tmp_path: Path) -> None:
    words = "--quick --only roundtrip --peers quiesce pool"
    process = subprocess.Popen(
        [sys.executable, str(BENCH), *words.split()],
        env={**os.environ, "QUIESCE_BENCH_CACHE": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert any("side by side" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert [each for each in descendants(os.getpid()) if "peer_" in each.command] == []


def test_wrong_words_are_refused_with_the_right_ones(tmp_path: Path) -> None:
    assert "individual" in bench("--only", "speed", cache=tmp_path, code=2).stderr
    assert "quiesce-power-loss" in bench("--peers", "nobody", cache=tmp_path, code=2).stderr
    assert ".png or .svg" in bench("--plot", "a.txt", cache=tmp_path, code=2).stderr
