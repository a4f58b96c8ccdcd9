"""The processes of a cluster by what they are, found anew at each look, and signals to exactly one of them."""

import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from quiesce import processes
from quiesce.processes import Process

UP: Final = "up"
BROKER: Final = "broker"
SUPERVISOR: Final = "supervisor"
WORKER: Final = "worker"
OTHER: Final = "other"
KINDS: Final = (UP, BROKER, SUPERVISOR, WORKER)

_SUPERVISOR_TITLE: Final = "quiesce supervisor: "
#: Seconds for a process to have stopped or died by a signal that can't be ignored.
_WITHIN: Final = 20.0


class ClusterProcess(NamedTuple):
    """A living process of a cluster. (pid, start) names it for ever; a pid alone is used again.

    `what`: "up", "broker", "supervisor", "worker", or "other": what tasks have started, processes that are just
    starting, helpers. `runtime`: of supervisors, workers, and an `up` that runs one pool alone; else None.
    """

    what: str
    runtime: str | None
    pid: int
    start: int
    command: str

    def __str__(self) -> str:
        whose = f" of {self.runtime}" if self.runtime else ""
        return f"{self.what}{whose} (pid {self.pid})"


def find(ups: Mapping[int, str | None], titles: Mapping[str, str]) -> list[ClusterProcess]:
    """All that lives: these `ups` (by pid, with the runtime of those that run a pool alone) and what descends from
    them. `titles`: of the workers, by runtime."""
    by_parent: dict[int, list[Process]] = {}
    by_pid = {each.pid: each for each in processes.everything()}
    for each in by_pid.values():
        by_parent.setdefault(each.parent, []).append(each)
    found: list[ClusterProcess] = []

    def add(process: Process, what: str, runtime: str | None) -> None:
        if not process.is_zombie:
            command = processes.command(process.pid)
            found.append(ClusterProcess(what, runtime, process.pid, process.start, command))

    def add_below(parent: int, of: str, runtime: str | None) -> None:
        for child in by_parent.get(parent, ()):
            what, whose = _judge(processes.command(child.pid), of, runtime, titles)
            add(child, what, whose)
            add_below(child.pid, what, whose)

    for pid, runtime in ups.items():
        if pid in by_pid:
            add(by_pid[pid], UP, runtime)
            add_below(pid, UP, runtime)
    return found


def _judge(
    command: str, parent: str, runtime: str | None, titles: Mapping[str, str]
) -> tuple[str, str | None]:
    """What a child is, by its title and what its parent is, and its runtime."""
    if parent == UP and command.startswith("quiesce broker"):
        return BROKER, None
    if parent == UP and command.startswith(_SUPERVISOR_TITLE):
        return SUPERVISOR, command.removeprefix(_SUPERVISOR_TITLE).strip()
    if parent == SUPERVISOR and command.startswith(titles.get(runtime or "", f"{runtime} worker")):
        return WORKER, runtime
    return OTHER, None


# --- signals to exactly one


def exists(process: ClusterProcess) -> bool:
    """Whether it runs (or is stopped), and is no other with its pid."""
    now = processes.look(process.pid)
    return now is not None and now.start == process.start and not now.is_zombie


def send(process: ClusterProcess, number: int) -> bool:
    """A signal to exactly this process; whether it was still there."""
    now = processes.look(process.pid)
    if now is None or now.start != process.start:
        return False
    fd = processes.open_pidfd(now)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def kill(process: ClusterProcess) -> bool:
    """SIGKILL, and wait until it is dead; whether it was still there. (Its parent has yet to wait for it.)"""
    now = processes.look(process.pid)
    fd = None if now is None or now.start != process.start else processes.open_pidfd(now)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(_WITHIN * 1000))
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def stop(process: ClusterProcess) -> bool:
    """SIGSTOP, and wait until all of its threads have stopped; whether it was still there."""
    if not send(process, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + _WITHIN
    while exists(process) and _thread_states(process.pid) != {"T"}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return exists(process)


def _thread_states(pid: int) -> set[str]:
    states = set()
    for each in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.add(each.read_text(errors="replace").rpartition(")")[2].split()[0])
        except OSError:
            continue  # the thread has ended
    return states


def listed(members: Iterable[ClusterProcess]) -> str:
    """For people, in one line."""
    return ", ".join(str(each) for each in members) or "none"
