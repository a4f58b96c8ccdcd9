"""The processes that `quiesce up` starts, and all that fall to it when their parents die."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from quiesce import processes
from quiesce.markers import ATTEMPT_MARKER, KEEP_ENVIRONMENT, RUN_MARKER, WORKER_MARKER
from quiesce.processes import Process
from quiesce.workers import kernel

#: -P: the current folder is for the tasks' code, and must not shadow what a broker or supervisor imports.
#: -u: a line for a standard error that nobody can read any more is lost at once. Kept for later, it would fail
#: whoever flushes next: multiprocess before it starts a worker, Python at the exit, whose status is then 120.
PYTHON: Final = (sys.executable, "-P", "-u", "-m")


class Child:
    """A process that we started. `status` is None while it runs; negative is the signal that ended it."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.pid = process.pid
        self.status: int | None = None
        self._process = process

    def send(self, signum: int) -> None:
        """Nothing happens if it has ended: its pid stays its own until we have reaped it."""
        if self.status is None:
            os.kill(self.pid, signum)

    def has_pending(self, signum: int) -> bool:
        """Whether such a signal was sent to it and waits still: then one more would be lost in that one."""
        return self.status is None and is_pending(self.pid, signum)

    def ended(self, status: int) -> None:
        """It has been reaped."""
        self.status = status
        self._process.returncode = status

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def start(
    name: str,
    command: Sequence[str],
    settings: str,
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Child:
    """Start `command` with the line `settings` on its standard input. Call it from the main thread only.

    The child dies with us. It has a process group of its own: what a terminal, a shell's `kill %1` or GNU
    `timeout` sends to all processes of a group is for us alone, who end the others in their order. The
    settings are in memory and not in a pipe, so neither side can block the other.
    """
    parent = os.getpid()

    def prepare() -> None:  # between fork and exec: we have one thread only
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # In the background of a terminal with `stty tostop`: who writes there must not be stopped for it.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        kernel.die_with_parent(parent)

    stdin = settings_file(settings)
    try:
        process = subprocess.Popen(
            [*command],
            stdin=stdin,
            env=env,
            pass_fds=pass_fds,
            process_group=0,
            preexec_fn=prepare,  # noqa: PLW1509 - no other thread runs here
        )
    finally:
        os.close(stdin)
    return Child(name, process)


def is_pending(pid: int, signum: int) -> bool:
    """Whether a signal waits for this process; False of one that is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            masks = [int(line.split()[1], 16) for line in status if line.startswith(b"ShdPnd:")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(mask >> (signum - 1) & 1 for mask in masks)


def environment(address: str, run: str) -> dict[str, str]:
    """What all that we start inherits: our own without the marks of others, with ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in (RUN_MARKER, WORKER_MARKER, ATTEMPT_MARKER)
    }
    return {**kept, "QUIESCE_ADDRESS": address, RUN_MARKER: run, KEEP_ENVIRONMENT: "1"}


def settings_file(settings: str) -> int:
    """A descriptor to read the line from."""
    fd = os.memfd_create("quiesce-settings", os.MFD_CLOEXEC)
    data = settings.encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def reap_all() -> Iterator[tuple[int, int]]:
    """Wait for every child that has ended, started by us or fallen to us: (pid, status)."""
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(wait_status)


class Orphans:
    """Processes that fell to us because their parent died: workers, and what their tasks had started.

    A supervisor that lives keeps its own, so each of these has lost its supervisor and must end. Children
    that we had before we started anything (`exec quiesce up` in a script) are left alone.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        """`warn` is told of each that can't be killed, once."""
        self._warn = warn
        #: By (pid, start): those of the last look that we may not signal, in words.
        self._not_ours: dict[tuple[int, int], str] = {}
        #: Whether there is nothing left but these: SIGCHLD tells when one ends, no need to look often.
        self.only_wait = False
        self._foreign = {(each.pid, each.start) for each in processes.children(os.getpid())}
        #: Exit statuses of those that were reaped since `forget`, by pid.
        self.statuses: dict[int, int] = {}

    def left(self, ours: set[int]) -> list[Process]:
        """Those that still run; `ours` are the pids that are not orphans. Zombies count: reap them first."""
        return [
            each
            for each in processes.children(os.getpid())
            if each.pid not in ours and (each.pid, each.start) not in self._foreign
        ]

    def kill(self, ours: set[int]) -> list[Process]:
        """Kill those that run; gives what was still there."""
        left = self.left(ours)
        known, self._not_ours = self._not_ours, {}
        for each in left:
            if not processes.kill(each):
                who = (each.pid, each.start)
                words = f"{each.pid} ({processes.command(each.pid)[:60]}; {processes.NOT_OURS})"
                self._not_ours[who] = known.get(who, words)
                if who not in known:
                    self._warn(f"this process can't be killed, and is waited for: {words}")
        self.only_wait = bool(left) and len(left) == len(self._not_ours)
        return left

    def words(self) -> str:
        """Those that are left, for people."""
        left = self.left(set())
        return ", ".join(self._not_ours.get((each.pid, each.start), str(each.pid)) for each in left)

    def ended(self, pid: int, status: int) -> None:
        """One of them was reaped."""
        self.statuses[pid] = status

    def forget(self) -> None:
        """Every account that needs the statuses has been made."""
        self.statuses.clear()


def describe(status: int) -> str:
    """An exit status for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
