"""What the dead left alive: found by a mark in its environment, killed, waited for.

Everything that a `quiesce up` starts carries its run in the environment, every worker its supervisor, and so does
all that descends from them. When `up` is killed, the kernel kills the broker, the supervisors and the workers with
it, and the workers with their supervisor, but what the tasks had started lives on, with any parent. These are no
children of ours: their ends are seen through pidfds.

Why an empty scan is a proof: whoever is alive at its end, and was not seen, was born after the pids were listed,
of a line of parents one of which was listed. That one was read alive, and did not carry the mark; or it had
ended by then, and such a scan does not count.

Not found: who cleared the mark from its own memory (as programs that write their state into their title do)
and lost all its parents that had it; and who runs as another user.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from quiesce import processes
from quiesce.errors import QuiesceError
from quiesce.markers import RUN_MARKER, WORKER_MARKER
from quiesce.processes import Process

#: Seconds for what was killed to be gone. Only a process that hangs in the kernel takes longer.
PATIENCE: Final = 30.0
#: So many scans in a row must prove it: a process that is just being replaced by exec shows no environment.
_PROOFS: Final = 2
#: On a machine where some process ends during every scan, so many that found nothing are enough.
_EMPTY_SCANS: Final = 100


#: By its environment: whose a process is, of those that are looked for; "" if it is none of theirs.
Whose = Callable[[dict[str, str]], str]


class Swept(NamedTuple):
    """What became of it."""

    #: What was killed, for people.
    killed: list[str]
    #: By whose it is: an ancestor of ours. We can't kill it, so that is not over.
    ours: dict[str, int]
    #: What does not end, for people; then there may be more.
    alive: list[str]


def of_runs(runs: Collection[str]) -> Whose:
    """Of these runs of `quiesce up`."""

    def whose(environment: dict[str, str]) -> str:
        run = environment.get(RUN_MARKER, "")
        return run if run in runs else ""

    return whose


def of_supervisor(supervisor: str) -> Whose:
    """Of the workers of this one, named in hex."""

    def whose(environment: dict[str, str]) -> str:
        named = environment.get(WORKER_MARKER, "").partition(":")[0]
        return named if named == supervisor else ""

    return whose


def end(runs: Collection[str], patience: float = PATIENCE) -> Swept:
    """Kill everything that is left of these runs, and wait until it has ended.

    That is what carries the mark, and what descends from it. We ourselves belong to none of them, whatever
    we inherited.

    Raises:
        QuiesceError: some do not end within `patience` seconds; the text names them.
    """
    swept = sweep(of_runs(runs), patience) if runs else Swept([], {}, [])
    if swept.alive:
        raise QuiesceError(
            "these processes, left by an earlier `quiesce up` that was killed, were killed too but do "
            f"not end: {', '.join(swept.alive)}; nothing is started before they have ended, because tasks of then "
            "may still run in them"
        )
    return swept


def sweep(whose: Whose, patience: float = PATIENCE) -> Swept:
    """Kill everything that is theirs, and wait until it has ended, at most `patience` seconds."""
    deadline = time.monotonic() + patience
    scans = _Sweep(whose)
    proofs = empty = 0
    alive: list[str] = []
    while proofs < _PROOFS and empty < _EMPTY_SCANS:
        found, proves = scans.scan()
        alive = scans.wait(deadline)
        if alive or time.monotonic() > deadline:
            alive = alive or ["ever new ones"]
            break
        proofs = proofs + 1 if proves else 0
        empty = 0 if found else empty + 1
    return Swept(list(scans.killed.values()), scans.ours, alive)


def remain(runs: Collection[str]) -> bool:
    """Whether anything that carries the mark of one of these runs is not dead yet, as far as one look can tell."""
    whose = of_runs(runs)
    return any(whose(_environment(each.pid)) for each in processes.everything())


class _Sweep:
    def __init__(self, whose: Whose) -> None:
        self._whose = whose
        self.ours: dict[str, int] = {}
        #: By (pid, start): all that was found, in words.
        self.killed: dict[tuple[int, int], str] = {}
        #: Those of the last scan that have not been waited for, by pidfd.
        self._dying: dict[int, Process] = {}
        #: Zombies of the last scan: they had ended before this one.
        self._dead: set[tuple[int, int]] = set()

    def scan(self) -> tuple[bool, bool]:
        """Look at all processes, and kill those that are theirs: whether there were any, and whether it is proven
        that there are no more."""
        by_pid = {each.pid: each for each in processes.everything()}
        above = _line(os.getpid(), by_pid)
        marked: set[int] = set()
        dead: set[tuple[int, int]] = set()
        missed = False
        # The youngest first, and killed at once: who lives shortly may have a successor before it ends.
        for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc"))), reverse=True):
            process = processes.look(pid)
            environment = _environment(pid)
            mark = self._whose(environment)
            if process is None:
                missed = True
            elif not environment and _has_ended(process):
                dead.add((pid, process.start))
            elif mark and pid in above:
                if pid != os.getpid():
                    self.ours[mark] = pid
            elif mark:
                by_pid[pid] = process
                marked.add(pid)
                self._kill(process)
        for process in by_pid.values():
            line = _line(process.pid, by_pid)
            if process.pid not in marked and not marked.isdisjoint(line):
                self._kill(process)
        proves = not marked and not missed and dead <= self._dead
        self._dead = dead
        return bool(marked), proves

    def _kill(self, process: Process) -> None:
        """And keep a descriptor, to see it end."""
        try:
            fd = processes.open_pidfd(process)
        except OSError:
            return  # there are more than we may have descriptors: the next scan finds it again
        if fd is None:
            return
        self._dying[fd] = process
        who = (process.pid, process.start)
        self.killed.setdefault(who, f"{process.pid} ({processes.command(process.pid)[:60]})")
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended; or it is not ours to kill, and will be named if it stays

    def wait(self, deadline: float) -> list[str]:
        """Until all that was killed has ended; gives those that have not at the deadline, in words."""
        poll = select.poll()
        for fd in self._dying:
            poll.register(fd, select.POLLIN)
        while self._dying:
            remaining = deadline - time.monotonic()
            for fd, _ in poll.poll(max(0.0, remaining) * 1000):
                poll.unregister(fd)
                del self._dying[fd]
                os.close(fd)
            if remaining <= 0:
                break
        alive = [self.killed[each.pid, each.start] for each in self._dying.values()]
        for fd in self._dying:
            os.close(fd)
        self._dying.clear()
        return alive


def _line(pid: int, by_pid: dict[int, Process]) -> set[int]:
    """The pids of a process and its ancestors."""
    line: set[int] = set()
    start = by_pid[pid].start
    # Who is younger than its child has got the pid of a parent that died during the scan.
    while pid in by_pid and by_pid[pid].start <= start and pid not in line:
        line.add(pid)
        start = by_pid[pid].start
        pid = by_pid[pid].parent
    return line


def _has_ended(process: Process) -> bool:
    """Since, or before we looked. A zombie with threads has lost its first one only."""
    now = processes.look(process.pid)
    if now is None or now.start != process.start:
        return True
    return now.is_zombie and not _threads(process.pid)


def _environment(pid: int) -> dict[str, str]:
    """Of a process; by its other threads once the first has ended, and with it what /proc shows of the process."""
    environment = processes.environment(pid)
    for thread in () if environment else _threads(pid):
        environment = environment or processes.environment(thread)
    return environment


def _threads(pid: int) -> list[int]:
    """The threads of a process but for the first. (Each has a folder in /proc too, which is not listed.)"""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    except OSError:
        return []
