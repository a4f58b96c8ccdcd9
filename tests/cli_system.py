"""A folder in which `quiesce` is called as users do; for the tests of the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quiesce.testing.leaks import descendants

TASKS = """
import subprocess, time
from pathlib import Path
import quiesce

def add(a, b=1):
    return a + b

def fail():
    raise ValueError("on purpose")

def until_asked(path):
    child = subprocess.Popen(["sleep", "1000"])
    try:
        Path(path).touch()
        while not quiesce.is_shutdown_requested():
            quiesce.wait_for_shutdown(1)
    finally:
        child.kill()
        child.wait()

def deaf(path, release):
    Path(path).touch()
    while not Path(release).exists():
        time.sleep(0.01)
"""


class CommandSystem:
    """A folder with a configuration and tasks, and the processes of `quiesce` that run in it."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        (folder / "work.py").write_text(TASKS)
        (folder / "quiesce.toml").write_text(
            f'[broker]\naddress = "ipc://{folder}/q"\nstate = "{folder}/state"\n{settings}'
        )
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """In the background and in a process group of its own; its output goes to files."""
        number = len(self._running)
        command = [sys.executable, "-m", "quiesce", *words]
        with (
            (self.folder / f"out-{number}").open("wb") as out,
            (self.folder / f"err-{number}").open("wb") as err,
        ):
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=err, process_group=0
            )
        self._running.append(process)
        return process

    def text(self, kind: str = "err", number: int = 0) -> str:
        return (self.folder / f"{kind}-{number}").read_text()

    def run(self, *words: str, code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "quiesce", *words],
            cwd=self.folder,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, (done, self.text() if self._running else "")
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        done = self.run(*words, "--json", code=code)
        return json.loads(done.stdout)

    def until(self, what: str, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; the log:\n{self.text()}")
            time.sleep(0.01)
        return found

    def until_exists(self, name: str) -> str:
        self.until(name, (self.folder / name).exists)
        return name

    def up(self, *words: str) -> "subprocess.Popen[bytes]":
        process = self.start("up", *words)
        self.until("the line", lambda: "quiesce is up" in self.text() or "pid" in self.text("out"))
        return process

    def end(self, process: "subprocess.Popen[bytes]", signum: int, code: int = 0) -> None:
        """It ends by this signal, and leaves nothing."""
        process.send_signal(signum)
        self.assert_ended(process, code)

    def assert_ended(self, process: "subprocess.Popen[bytes]", code: int) -> None:
        assert process.wait(30) == code, self.text()
        left = [each for each in descendants(os.getpid()) if _is_ours(each.command)]
        assert left == []
        assert not (self.folder / "q").exists()
        assert not (self.folder / "state" / "lock").exists()

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.wait()


def _is_ours(command: str) -> bool:
    return "quiesce" in command or "worker" in command or "sleep 1000" in command


BACKGROUND = "default_runtimes = false\n[runtimes.background]\nprocesses = 1\n"
