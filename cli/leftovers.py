"""What earlier runs of `quiesce up` left alive: found by the mark in its environment, killed, waited for.

Everything that an `up` starts carries its run in the environment, and so does all that descends from it. When
`up` itself is killed, the kernel kills the broker, the supervisors and the workers with it, but what the tasks
had started lives on, with any parent. These are no children of ours: their ends are seen through pidfds.

Not found: who cleared the mark from its own memory (as programs that write their state into their title do)
and lost all its parents that had it; and who runs as another user.
"""

import os
import select
import signal
import time
from collections.abc import Collection
from typing import Final, NamedTuple

from quiesce.errors import QuiesceError
from quiesce.workers import processes
from quiesce.workers.markers import RUN_MARKER
from quiesce.workers.processes import Process

#: Seconds for what was killed to be gone. Only a process that hangs in the kernel takes longer.
PATIENCE: Final = 30.0
#: A process that starts another and ends, while a scan passes between them, is missed once, not twice.
_EMPTY_SCANS: Final = 2


class Found(NamedTuple):
    """What one look at all processes shows."""

    #: All and only those that belong to one of the runs and are to be killed.
    left: list[Process]
    #: By run: an ancestor of ours that belongs to it. We can't kill it, so that run is not over.
    ours: dict[str, int]


def find(runs: Collection[str]) -> Found:
    """Look for living processes that carry the mark of one of these runs, or descend from one that does.

    We ourselves are in none of them, whatever we inherited.
    """
    by_pid = {each.pid: each for each in processes.everything()}
    line = _ancestors(os.getpid(), by_pid)
    marked: set[int] = set()
    ours: dict[str, int] = {}
    for process in by_pid.values():
        if process.is_zombie or process.pid == os.getpid():
            continue
        run = processes.environment(process.pid).get(RUN_MARKER, "")
        if run not in runs:
            continue
        if process.pid in line:
            ours[run] = process.pid
        else:
            marked.add(process.pid)
    left = [
        process
        for process in by_pid.values()
        if not process.is_zombie
        and process.pid not in line
        and not marked.isdisjoint(_ancestors(process.pid, by_pid))
    ]
    return Found(left, ours)


def _ancestors(pid: int, by_pid: dict[int, Process]) -> set[int]:
    """The pids of a process and its ancestors."""
    line: set[int] = set()
    start = by_pid[pid].start
    # Who is younger than its child has got the pid of a parent that died during the scan.
    while pid in by_pid and by_pid[pid].start <= start:
        line.add(pid)
        start = by_pid[pid].start
        pid = by_pid[pid].parent
    return line


def end(runs: Collection[str], patience: float = PATIENCE) -> tuple[list[str], dict[str, int]]:
    """Kill everything that is left of these runs, and wait until it has ended.

    Gives what was killed, for people, and by run the ancestor of ours that keeps it from being over.

    Raises:
        QuiesceError: some do not end within `patience` seconds; the text names them.
    """
    deadline = time.monotonic() + patience
    killed: dict[tuple[int, int], str] = {}
    empty = 0
    while empty < _EMPTY_SCANS:
        found = find(runs)
        empty = 0 if found.left else empty + 1
        names = {each: f"{each.pid} ({processes.command(each.pid)[:60]})" for each in found.left}
        alive = _end(found.left, deadline)
        if alive:
            raise QuiesceError(
                "these processes, left by an earlier `quiesce up` that was killed, were killed too but do "
                f"not end: {', '.join(names[each] for each in alive)}; nothing is started before they have "
                "ended, because tasks of then may still run in them"
            )
        killed.update({(each.pid, each.start): names[each] for each in found.left})
    return list(killed.values()), found.ours


def _end(left: list[Process], deadline: float) -> list[Process]:
    """Kill these, and wait; gives those that have not ended at the deadline."""
    watched: dict[int, Process] = {}
    try:
        for process in left:
            fd = processes.open_pidfd(process)
            if fd is None:
                continue
            watched[fd] = process
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it has ended; or it is not ours to kill, and will be named if it stays
        poll = select.poll()
        waiting = dict(watched)
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting:
            remaining = deadline - time.monotonic()
            ready = poll.poll(max(0.0, remaining) * 1000)
            for fd, _ in ready:
                poll.unregister(fd)
                del waiting[fd]
            if not ready and remaining <= 0:
                break
        return list(waiting.values())
    finally:
        for fd in watched:
            os.close(fd)
