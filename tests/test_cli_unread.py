"""A system whose output nobody can read any more: it goes on, recovers, and stops in order."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_system import BACKGROUND, CommandSystem
from quiesce import Client

CAREFUL = """
import os
from pathlib import Path
import quiesce

def tidy(path):
    try:
        Path(path).touch()
        quiesce.wait_for_shutdown(100)
    finally:
        Path(path + ".tidied").touch()

def fail():
    raise ValueError("on purpose")

def leave():
    os._exit(1)
"""
UP = (sys.executable, "-m", "quiesce", "up")


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    (run_folder / "careful.py").write_text(CAREFUL)
    (run_folder / "err-0").touch()  # what it says there goes nowhere
    yield made
    made.close()


def start(system: CommandSystem, *command: str, **streams: Any) -> "subprocess.Popen[bytes]":
    # With this variable Python keeps nothing that it could not write; then half of what may go wrong can't.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=system.folder, env=env, **streams)
    system._running.append(process)
    return process


def start_on_pipe(system: CommandSystem) -> "subprocess.Popen[bytes]":
    """As `quiesce up 2>&1 | head`, once that has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return start(system, *UP, stderr=writer)
    finally:
        os.close(writer)


def start_on_full_disk(system: CommandSystem) -> "subprocess.Popen[bytes]":
    with open("/dev/full", "w") as full:
        return start(system, *UP, stderr=full)


def start_without(system: CommandSystem) -> "subprocess.Popen[bytes]":
    return start(system, "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *UP)


def begin_tidy(system: CommandSystem) -> None:
    """Of a task that leaves a file when it is asked to stop."""
    system.run("spawn", "careful:tidy", json.dumps("task"), "--kind", "compaction")
    system.until_exists("task")


@pytest.mark.parametrize("begin", [start_on_pipe, start_on_full_disk, start_without])
def test_what_nobody_can_read_hinders_nothing(
    system: CommandSystem, begin: Callable[[CommandSystem], "subprocess.Popen[bytes]"]
) -> None:
    process = begin(system)
    # Its worker has a record of the first, its supervisor of the second, after which it starts another worker.
    for body in ("careful:fail", "careful:leave"):
        system.run("spawn", body, "--kind", "compaction", "--wait", code=1)
    begin_tidy(system)
    with Client(f"ipc://{system.folder}/q") as client:
        broker = client.broker_info()
        os.kill(broker.pid, signal.SIGKILL)
        system.until("the next broker", lambda: client.broker_info().epoch > broker.epoch)
        assert [task.state for task in client.tasks()] == ["running"]
    system.end(process, signal.SIGTERM)
    system.until_exists("task.tidied")


def test_a_closed_terminal_stops_in_order(system: CommandSystem) -> None:
    ours, theirs = pty.openpty()
    process = start(system, *UP, preexec_fn=lambda: os.login_tty(theirs))
    os.close(theirs)
    begin_tidy(system)
    os.close(ours)  # the kernel sends SIGHUP
    system.assert_ended(process, 0)
    system.until_exists("task.tidied")


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_nobody_can_read_of_a_start_that_fails_is_no_other_failure(
    system: CommandSystem, words: list[str]
) -> None:
    (system.folder / "quiesce.toml").write_text("[brokr]\n")
    with open("/dev/full", "w") as full:
        assert start(system, *UP, *words, stderr=full).wait(30) == 1


def test_who_asked_for_json_may_leave(system: CommandSystem) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(system, *UP, "--json", stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    begin_tidy(system)
    system.end(process, signal.SIGTERM)
    system.until_exists("task.tidied")
