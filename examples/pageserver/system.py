"""Starts `quiesce up` for the demo as a process of its own, and ends it in whatever state it is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from quiesce import Client
from quiesce.errors import BrokerUnavailableError
from quiesce.examples.pageserver.names import BACKGROUND, COMPUTE, MGMT, PRELOAD, WALRECEIVER

#: runtime -> (processes, slots)
_POOLS = {COMPUTE: (2, 32), MGMT: (1, 4), WALRECEIVER: (2, 192), BACKGROUND: (2, 64)}

_CONFIG = """\
[broker]
address = "ipc://{root}/q"
state = "{root}/state"

[kinds.remote-upload-task]
max_running_per_tenant = 4
"""

_POOL = """
[runtimes.{name}]
processes = {processes}
slots = {slots}
preload = ["{preload}"]
"""


class SystemFailedError(Exception):
    """`quiesce up` did not start, or ended on its own."""


class ProcessId(NamedTuple):
    """A process, told apart from a later one of the same number by its start in clock ticks."""

    pid: int
    started: int


class System:
    """One `quiesce up` with its broker and pools, in a session of its own.

    So a Ctrl-C at the terminal reaches the demo only, which then stops the system in order.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = f"ipc://{root}/q"
        self.log = root / "up.log"
        self._process: subprocess.Popen[bytes] | None = None
        #: Every process that was ever seen to belong to the system.
        self.seen: set[ProcessId] = set()

    @property
    def pid(self) -> int:
        return self._running().pid

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise SystemFailedError("the system was not started")
        return self._process

    def start(self) -> None:
        """Write the configuration and start; returns before anything answers."""
        config = self.root / "quiesce.toml"
        pools = "".join(
            _POOL.format(name=name, processes=processes, slots=slots, preload=PRELOAD[name])
            for name, (processes, slots) in _POOLS.items()
        )
        config.write_text(_CONFIG.format(root=self.root) + pools)
        # Settings of the caller's own quiesce must not reach this one.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIESCE_")}
        # Relative entries would be looked for in the folder that `up` starts in.
        path = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in path if p)
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quiesce.cli.main", "up", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                # Workers import from the folder that `up` starts in: this one holds nothing to
                # import.
                cwd=self.root,
            )

    def wait_ready(self, timeout: float = 40.0) -> None:
        """Wait until the broker answers and all worker processes are there. Raises
        SystemFailedError.
        """
        expected = sum(processes for processes, _ in _POOLS.values())
        deadline = time.monotonic() + timeout
        last = "no broker answered"
        while time.monotonic() < deadline:
            self.require_running()
            try:
                with Client(self.address, timeout=2.0) as client:
                    while time.monotonic() < deadline:
                        workers = client.workers()
                        if len(workers) >= expected:
                            return
                        last = f"{len(workers)} of {expected} workers registered"
                        time.sleep(0.1)
            except BrokerUnavailableError:
                time.sleep(0.1)
        raise SystemFailedError(f"not ready after {timeout:.0f} s: {last}.\n{self.tail()}")

    def require_running(self) -> None:
        """Raise SystemFailedError if `up` has ended: nobody told it to."""
        status = self._running().poll()
        if status is not None:
            raise SystemFailedError(f"`quiesce up` ended with {status}:\n{self.tail()}")

    def note_processes(self, client: Client) -> None:
        """Remember who belongs to the system now."""
        pids = {self.pid, client.broker_info().pid, *_session(self.pid)}
        for worker in client.workers():
            pids |= {worker.pid, worker.supervisor_pid}
        for pid in pids:
            if (process := _identify(pid)) is not None:
                self.seen.add(process)

    def left(self) -> list[int]:
        """Return the processes of the system that are still there."""
        known = [process.pid for process in self.seen if _identify(process.pid) == process]
        return sorted({*known, *_session(self.pid)} - {os.getpid()})

    def stop(self, timeout: float = 45.0) -> int:
        """Send SIGTERM to `up` and return its exit status.

        Raises SystemFailedError if it does not end.
        """
        process = self._running()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise SystemFailedError(
                f"`quiesce up` did not end within {timeout:.0f} s of SIGTERM:\n{self.tail()}"
            ) from None

    def tail(self, lines: int = 12) -> str:
        """Return the end of what `up` wrote."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace").splitlines()
            return "\n".join(text[-lines:])
        return "(no output)"

    def destroy(self) -> None:
        """Leave no process, whatever happened: ask, ask again, then kill.

        Does nothing after a `stop`.
        """
        process = self._process
        if process is None:
            return
        for number, patience in (
            (signal.SIGTERM, 8.0),
            (signal.SIGTERM, 4.0),
            (signal.SIGQUIT, 3.0),
        ):
            if process.poll() is not None:
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if process.poll() is None:
            process.kill()
            process.wait()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def _identify(pid: int) -> ProcessId | None:
    fields = _stat(pid)
    return ProcessId(pid, int(fields[19])) if fields else None


def _session(leader: int) -> set[int]:
    """Return the processes of a session."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = _stat(int(entry.name))
            if fields and int(fields[3]) == leader:
                found.add(int(entry.name))
    return found
