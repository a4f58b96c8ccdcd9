"""What an `up` finds of earlier ones in its state folder, proves, and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce import leftovers
from quiesce.cli.runs import (
    MOST_KEPT,
    Ledger,
    Run,
    ended_with_its_boot,
    is_in_reach,
    new_id,
    read,
    this_run,
)
from quiesce.errors import ConfigurationError, QuiesceError
from quiesce.testing.leaks import is_running

HERE = Run(
    run="here",
    boot_id="boot",
    machine="0" * 32,
    namespace="pid:[4026531836]",
    uid=1000,
    pid=1,
    start=1,
)
#: Starts a process that has lost the mark, but not its parent, and tells its pid.
PARENT = "env -i sleep 1000 & echo $!; wait"


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with the mark of a run; all are gone at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: str, *command: str) -> subprocess.Popen[bytes]:
        words = command or ("sleep", "1000")
        env = {**os.environ, "QUIESCE_RUN": run}
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_number(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def dead(run: str, **changes: str) -> Run:
    """A run on this boot whose `up` is dead: no process has started when it says."""
    return this_run(run)._replace(start=1)._replace(**changes)  # type: ignore[arg-type]  # of text only


def listed(state: Path, *runs: Run) -> None:
    (state / "runs").write_text(json.dumps([run._asdict() for run in runs]))


def names(path: Path) -> list[str]:
    return [each.run for each in read(path)]


# --- what can be proven


@pytest.mark.parametrize(
    ("changes", "own", "expected"),
    [
        ({}, {}, True),
        ({"boot_id": "other"}, {}, False),
        ({"namespace": "pid:[1]"}, {}, False),
        ({"namespace": "pid:[1]"}, {"namespace": "pid:[1]"}, True),
        ({"uid": 0}, {}, False),  # we could not read what root's processes carry
        ({}, {"uid": 0}, True),
        ({"machine": ""}, {}, True),
    ],
)
def test_a_scan_shows_all_of_a_run(
    changes: dict[str, str], own: dict[str, str], expected: bool
) -> None:
    assert is_in_reach(HERE._replace(**changes), HERE._replace(**own)) is expected  # type: ignore[arg-type]  # of any field


@pytest.mark.parametrize(
    ("changes", "own", "expected"),
    [
        ({"boot_id": "other"}, {}, True),
        ({}, {}, False),
        ({"boot_id": "other", "machine": "1" * 32}, {}, False),
        ({"boot_id": "other", "machine": ""}, {"machine": ""}, False),
        # Images of containers may all have the same machine id.
        ({"boot_id": "other", "namespace": "pid:[1]"}, {"namespace": "pid:[1]"}, False),
        ({"boot_id": "other", "uid": 0}, {}, True),
    ],
)
def test_a_boot_ends_what_ran_before_it(
    changes: dict[str, str], own: dict[str, str], expected: bool
) -> None:
    assert ended_with_its_boot(HERE._replace(**changes), HERE._replace(**own)) is expected  # type: ignore[arg-type]  # of any field


def test_this_run_names_this_process() -> None:
    run = this_run("x", "/folder")
    assert (run.run, run.folder, run.pid, run.uid) == ("x", "/folder", os.getpid(), os.geteuid())
    assert is_in_reach(run, run)
    assert len({new_id() for _ in range(100)}) == 100


# --- the file


def test_a_run_is_there_before_and_after_its_life_and_goes_once_a_broker_knows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runs"
    first = Ledger.open(str(tmp_path), dead("one", folder="/folder"))
    assert (first.swept, first.notes, first.folders, path.exists()) == ((), [], set(), False)
    first.record()
    assert names(path) == ["one"]
    second = Ledger.open(str(tmp_path), dead("two"))
    assert ([run.run for run in second.swept], second.folders) == (["one"], {"/folder"})
    second.record()
    assert names(path) == ["one", "two"]
    second.settle()
    second.settle()
    assert names(path) == ["two"]
    second.finish()
    assert names(path) == ["two"]
    assert not (tmp_path / "runs.new").exists()


def test_a_run_that_no_broker_learnt_of_stays(tmp_path: Path) -> None:
    listed(tmp_path, dead("one"))
    ledger = Ledger.open(str(tmp_path), dead("two"))
    ledger.record()
    ledger.finish()
    assert names(tmp_path / "runs") == ["one", "two"]


def test_a_start_that_came_to_nothing_is_forgotten(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path), dead("one"))
    ledger.record()
    ledger.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_proven_is_kept_and_not_told(tmp_path: Path) -> None:
    listed(
        tmp_path,
        dead("away", boot_id="other", machine=""),
        dead("here"),
        dead("before", boot_id="other", machine="0" * 32, namespace=HERE.namespace),
    )
    own = dead("now", machine="0" * 32, namespace=HERE.namespace)
    ledger = Ledger.open(str(tmp_path), own)
    told = {run.run for run in ledger.swept}
    assert "before" in told
    assert "away" not in told
    ledger.record()
    ledger.settle()
    assert names(tmp_path / "runs")[0] == "away"


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    listed(tmp_path, *(dead(f"{n}", boot_id="other", machine="") for n in range(MOST_KEPT)))
    Ledger.open(str(tmp_path), dead("now")).record()
    assert names(tmp_path / "runs") == [*(f"{n}" for n in range(1, MOST_KEPT)), "now"]


@pytest.mark.parametrize("text", ["", "{", '{"run": []}', "[1]", "[{}]", '[{"run": 1}]', "3"])
def test_a_damaged_file_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs").write_text(text)
    with pytest.raises(ConfigurationError, match=r"should list the earlier runs .* remove it"):
        Ledger.open(str(tmp_path), dead("now"))


def test_an_up_that_lives_in_spite_of_the_lock_stops_the_start(
    tmp_path: Path, start: Start
) -> None:
    """As in a copy of a state folder."""
    living = start("one")
    listed(tmp_path, this_run("one"))
    with pytest.raises(ConfigurationError, match=rf"pid {os.getpid()}, which runs"):
        Ledger.open(str(tmp_path), dead("now"))
    assert is_running(living.pid)


def test_a_file_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path), dead("now"))
    (tmp_path / "runs.new").mkdir()
    with pytest.raises(QuiesceError, match=r"runs can't be written: Is a directory"):
        ledger.record()


# --- what is left


def test_all_and_only_what_belongs_to_the_run_is_ended(tmp_path: Path, start: Start) -> None:
    plain, other = start("one"), start("other")
    parent = start("one", "sh", "-c", PARENT)
    unmarked = first_number(parent)
    listed(tmp_path, dead("one"))
    ledger = Ledger.open(str(tmp_path), dead("now"))
    assert [is_running(pid) for pid in (plain.pid, parent.pid, unmarked)] == [False] * 3
    assert is_running(other.pid)
    (note,) = ledger.notes
    assert f"{plain.pid} (sleep 1000)" in note
    assert f"{other.pid} (" not in note
    assert plain.wait() == -signal.SIGKILL


def test_what_is_born_meanwhile_is_ended_too(start: Start) -> None:
    """A chain of processes, each of which starts the next and ends."""
    program = (
        "import os, sys, time\n"
        "print(1, flush=True)\n"
        "end = time.monotonic() + 60\n"
        "while time.monotonic() < end:\n"
        "    if os.fork(): os._exit(0)\n"
        "    time.sleep(0.001)\n"
    )
    first = start("one", sys.executable, "-c", program)
    first_number(first)
    assert leftovers.end({"one"}).killed
    assert leftovers.end({"one"}) == ([], {}, [])


def test_a_process_without_its_first_thread_is_ended_too(start: Start) -> None:
    """It looks like a zombie, and goes on."""
    program = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "print(1, flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    process = start("one", sys.executable, "-c", program)
    first_number(process)
    deadline = time.monotonic() + 10
    while is_running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    assert leftovers.remain({"one"})
    (killed,) = leftovers.end({"one"}).killed
    assert killed.startswith(f"{process.pid} (")
    assert process.wait(5) == -signal.SIGKILL
    assert not leftovers.remain({"one"})


def test_we_and_our_ancestors_are_not_ended_and_keep_the_run_from_being_over(
    tmp_path: Path, start: Start
) -> None:
    """A task of the earlier run started a shell, and that an `up`."""
    listed(tmp_path, dead("one"))
    opens = (
        "from quiesce.cli.runs import Ledger, this_run\n"
        f"ledger = Ledger.open({str(tmp_path)!r}, this_run('now'))\n"
        "print(len(ledger.swept), *ledger.notes, flush=True)\n"
    )
    shell = start("one", "sh", "-c", f'{sys.executable} -c "$0"; exit 7', opens)
    assert shell.stdout is not None
    assert shell.stdout.readline().decode() == (
        f"0 warning: we were started by process {shell.pid}, which a task of the earlier run one had "
        "started; so what that task did can't be proven to have ended\n"
    )
    assert shell.wait(20) == 7


def test_what_does_not_end_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("one")
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    began = time.monotonic()
    with pytest.raises(QuiesceError, match=rf"do not end: {process.pid} \(sleep 1000\); nothing"):
        leftovers.end({"one"}, patience=0.2)
    assert time.monotonic() - began < 5
