"""A real system for tests: `quiesce up` as a process of its own, with a configuration in a folder of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from quiesce import Client, WorkerInfo

T = TypeVar("T")

CONFIG = """
[broker]
address = "ipc://{folder}/run"
state = "{folder}/state"
log_level = "DEBUG"
{broker}
[runtimes.compute-request]
processes = 1
slots = 64
[runtimes.mgmt-request]
processes = 1
slots = 64
[runtimes.walreceiver]
processes = 1
slots = 64
[runtimes.background]
processes = 2
slots = 1
[kinds.attach]
stop_grace = 1.0
{more}
"""


class System:
    """One `quiesce up`. Its log is in `log`; `stop` ends it and says with what status."""

    def __init__(self, folder: Path, *, broker: str = "", more: str = "") -> None:
        self.folder = folder
        self.address = f"ipc://{folder}/run"
        self.log = folder / "log"
        config = folder / "quiesce.toml"
        config.write_text(CONFIG.format(folder=folder, broker=broker, more=more))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quiesce", "up", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def client(self, timeout: float = 30.0) -> Client:
        """A client of this system."""
        return Client(self.address, timeout=timeout)

    def signal(self, number: int = signal.SIGTERM, *, group: bool = False) -> None:
        """Signal `up`, or, as a terminal does, its whole process group."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit status of `up`."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`quiesce up` did not end; its log:\n{self.text()}") from None

    def stop(self) -> int:
        """End it in order, or hard if it does not."""
        if self.process.poll() is None:
            self.signal()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGQUIT)
            self.process.wait(10)
            raise AssertionError(f"`quiesce up` did not end; its log:\n{self.text()}") from None

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")


def until(read: Callable[[], T], wanted: Callable[[T], Any] = bool, timeout: float = 20.0) -> T:
    """Read until it is as wanted; at the deadline fail with what was last seen."""
    deadline = time.monotonic() + timeout
    while True:
        seen = read()
        if wanted(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s it was still {seen!r}")
        time.sleep(0.005)


@contextmanager
def running(broker: str = "") -> Iterator[System]:
    """One in a folder of its own, up in full, so that what it starts is no leak of a test; it must end in order."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as folder:
        system = System(Path(folder), broker=broker)
        try:
            with system.client() as client:
                until(client.workers, lambda workers: len(workers) == 5)
                until(client.workers, lambda workers: {w.state for w in workers} == {"ready"})
            yield system
        finally:
            assert system.stop() == 0, system.text()


def workers_of(client: Client, runtime: str) -> list[WorkerInfo]:
    """The ready workers of a runtime."""
    return [
        worker
        for worker in client.workers()
        if worker.runtime == runtime and worker.state == "ready"
    ]


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until all of its threads have stopped."""
    os.kill(pid, signal.SIGSTOP)

    def states() -> set[str]:
        stats = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    until(states, lambda found: found == {"T"})
