"""The `quiesce up` processes of a cluster: started, watched, ended, and nothing of them left."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from quiesce import leftovers, processes
from quiesce.cli import runs
from quiesce.errors import QuiesceError
from quiesce.markers import RUN_MARKER

#: Seconds for what is about to end to do so by itself, and for what was killed to be gone.
_DYING: Final = 1.0
_GONE: Final = 10.0


class Launch:
    """One `quiesce up`, `broker` or `pool NAME` after the other, all with the same arguments."""

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        runtime: str | None,
    ) -> None:
        self.words = tuple(words)
        #: Of one that runs a pool alone.
        self.runtime = runtime
        #: It was killed on purpose: another exit status than that of an orderly end is no surprise.
        self.was_killed = False
        self._env = dict(env)
        self._folder = folder
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def set_address(self, address: str) -> None:
        """Have it find the broker elsewhere than its configuration says."""
        self._env["QUIESCE_BROKER_ADDRESS"] = address

    def start(self) -> int:
        """Start it; gives its pid."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quiesce", *self.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._env,
                start_new_session=True,
            )
        self.was_killed = False
        return self._process.pid

    @property
    def pid(self) -> int:
        """Of the one that runs, or ran last; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """None while it runs, and before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: int) -> None:
        """A signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Its exit status, or None if it has not ended within `timeout` seconds."""
        assert self._process is not None
        try:
            return self._process.wait(max(timeout, 0.0))
        except subprocess.TimeoutExpired:
            return None

    def end(self, patience: float, *, first: int = signal.SIGTERM) -> list[str]:
        """By a signal, then at once, then by SIGKILL; gives what had to be done beyond the first, in words."""
        troubles: list[str] = []
        for number, seconds in ((first, patience), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 15.0)):
            if not self.is_running:
                break
            self.send(number)
            if self.wait(seconds) is not None:
                break
            name = signal.Signals(number).name
            troubles.append(f"`{self}` did not end within {seconds:g} s of {name}")
        return troubles

    def __str__(self) -> str:
        return f"quiesce {' '.join(self.words[:1] if self.runtime is None else self.words[:2])}"


def environment(given: Mapping[str, str | None]) -> dict[str, str]:
    """Ours, without settings of another quiesce, and with the import path of this process; None takes one away."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("QUIESCE_")}
    # What this process can import (a test module, its helpers), tasks can import, too. The standard library and
    # what is installed beside it they have by themselves.
    ours = [os.path.abspath(each or ".") for each in sys.path]
    has = {sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths = [
        each
        for each in ours
        if os.path.isdir(each) and not any(_is_below(each, folder) for folder in has)
    ]
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    for name, value in given.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def runs_below(ups: Sequence[int]) -> set[str]:
    """The runs that the children of these processes belong to, by their environment."""
    found = set()
    for each in processes.everything():
        if each.parent in ups:
            found.add(processes.environment(each.pid).get(RUN_MARKER, ""))
    return found - {""}


def end_what_is_left(found: set[str], state: Path) -> list[str]:
    """Kill what carries the mark of one of these runs, or one noted in this state folder; gives who."""
    try:
        listed = {each.run for each in runs.read(state / "runs")}
    except QuiesceError:
        listed = set()
    every = found | listed
    if not every:
        return []
    deadline = time.monotonic() + _DYING
    while leftovers.remain(every) and time.monotonic() < deadline:
        time.sleep(0.01)
    return leftovers.end(every, _GONE).killed
