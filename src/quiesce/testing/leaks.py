"""What a test may leave behind: nothing. Processes, threads and descriptors are counted around it.

`no_leaks` does so around a block, the fixture `quiesce_leaks` around a test. While they count, the test process
is a child subreaper, so that a process whose parent was killed becomes its child instead of escaping from the
count to process 1. Its zombie stays until the count ends, or until somebody waits for it: `is_running` tells it
from the living, `os.kill(pid, 0)` does not.
"""

import ctypes
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from quiesce.testing.failures import LeakError

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37

#: How long what has been told to end may take to be gone, in seconds.
PATIENCE: Final = 3.0


@contextmanager
def no_leaks(*folders: str | Path, patience: float = PATIENCE) -> Iterator[None]:
    """A block that may leave nothing behind: no process (orphans too), thread, descriptor; no socket in `folders`.

    What is about to end is waited for, for `patience` seconds; processes that are left are killed then. If the
    block itself raises, what was left is added to that as a note.

    Raises:
        LeakError: says all that was left.
    """
    check = LeakCheck()
    was_subreaper = is_subreaper()
    become_subreaper()
    try:
        before = check.begin()
        try:
            yield
        except BaseException as error:
            left = check.end(before, patience)
            if left:
                error.add_note(_words(left))
            raise
        left = check.end(before, patience)
        for folder in folders:
            left += [f"file {path}" for path in sockets_and_locks(folder)]
        if left:
            raise LeakError(_words(left))
    finally:
        become_subreaper(was_subreaper)


def _words(left: list[str]) -> str:
    return "left behind:\n  " + "\n  ".join(left)


def sockets_and_locks(folder: str | Path) -> list[str]:
    """The sockets, pipes, locks and pid files below a folder."""
    return [str(path) for path in sorted(Path(folder).rglob("*")) if _is_socket_or_lock(path)]


def _is_socket_or_lock(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False  # gone since it was listed
    return (
        stat.S_ISSOCK(mode)
        or stat.S_ISFIFO(mode)
        or path.suffix in (".lock", ".pid")
        or path.name == "lock"
    )


class Process(NamedTuple):
    """A process as /proc shows it. (pid, start) is its for ever; a pid alone may be used again."""

    pid: int
    start: int
    parent: int
    state: str
    command: str

    @property
    def key(self) -> tuple[int, int]:
        """What names it for ever."""
        return self.pid, self.start


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What belongs to this process at one moment."""

    #: All and only the descendants, by (pid, start), but for the resource trackers.
    processes: Mapping[tuple[int, int], Process]
    #: All and only the living threads that Python knows, but for the timers of pytest-timeout; by
    #: object, because an ident may be used again.
    threads: frozenset[threading.Thread]
    #: All and only the open descriptors with their targets, but for those to resource trackers.
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def take(cls) -> "Snapshot":
        """Now."""
        return cls(
            processes={process.key: process for process in descendants(os.getpid())},
            threads=frozenset(
                thread
                for thread in threading.enumerate()
                if not thread.name.startswith("pytest_timeout ")
            ),
            descriptors=frozenset(open_descriptors()),
        )

    def branch(self, process: Process) -> Process:
        """The child of this very process that `process` descends from, or is."""
        by_pid = {each.pid: each for each in self.processes.values()}
        while process.parent in by_pid:
            process = by_pid[process.parent]
        return process


class LeakCheck:
    """Compares before and after. One for a run: it learns what fixtures wider than a test keep."""

    def __init__(self) -> None:
        #: For each child that a test found when it began, so kept by a wider fixture: the most
        #: processes its family had then. It may replace those that die, as a pool does.
        self._allowed: dict[tuple[int, int], int] = {}

    def begin(self) -> Snapshot:
        """What there is now; hand it to `end`."""
        before = Snapshot.take()
        for key, count in _branches(before).items():
            self._allowed[key] = max(count, self._allowed.get(key, 0))
        return before

    def end(self, before: Snapshot, patience: float = PATIENCE) -> list[str]:
        """What was left since `before`, in words. Waits for what is about to go, kills the rest."""
        deadline = time.monotonic() + patience
        # pyzmq keeps a thread and a context for ever once something large was sent without copying.
        if zmq_garbage := sys.modules.get("zmq.utils.garbage"):
            zmq_garbage.gc.stop()
        left = self._left(before)
        while left:
            gc.collect()  # what nobody holds any more is no leak, though its warning is an error
            reap(before)
            left = self._left(before)
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for thing in left:
            if isinstance(thing, Process):
                _kill(thing)
        if left:
            reap(before)
        return [describe(thing) for thing in left]

    def _left(self, before: Snapshot) -> list["Leak"]:
        after = Snapshot.take()
        left: list[Leak] = []
        counts = _branches(after)
        for key, process in after.processes.items():
            if key in before.processes:
                continue
            branch = after.branch(process).key
            kept = branch in before.processes and counts[branch] <= self._allowed.get(branch, 0)
            if not kept:
                left.append(process)
        left += after.threads - before.threads
        left += sorted(after.descriptors - before.descriptors)
        return left


Leak = Process | threading.Thread | tuple[int, str]


def _branches(snapshot: Snapshot) -> dict[tuple[int, int], int]:
    """The size of the family of each child, itself included."""
    counts: dict[tuple[int, int], int] = {}
    for process in snapshot.processes.values():
        key = snapshot.branch(process).key
        counts[key] = counts.get(key, 0) + 1
    return counts


def describe(leak: Leak) -> str:
    """A leak for people."""
    match leak:
        case Process():
            zombie = " (a zombie: it has ended, nobody waited for it)" if leak.state == "Z" else ""
            return f"process {leak.pid}, child of {leak.parent}: {leak.command}{zombie}"
        case threading.Thread():
            return f"thread {leak.name!r}{' (daemon)' if leak.daemon else ''}"
        case (number, target):
            return f"descriptor {number}: {target}"


def become_subreaper(wanted: bool = True) -> None:
    """From now on, orphans among the descendants of this process become its children; or no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def is_subreaper() -> bool:
    """Whether they do."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.c_int(0)
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_GET_CHILD_SUBREAPER) failed")
    return bool(found.value)


def read_process(pid: int) -> Process | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may itself hold some, and spaces.
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return Process(
        pid=pid,
        start=int(fields[19]),
        parent=int(fields[1]),
        state=fields[0].decode(),
        command=name.decode(errors="replace"),
    )


def is_running(pid: int) -> bool:
    """False once it has ended, whether or not its parent has waited for it."""
    process = read_process(pid)
    return process is not None and process.state not in "ZX"


def descendants(root: int) -> list[Process]:
    """All processes below `root`, zombies too, resource trackers not."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := read_process(int(name))):
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    level = children.get(root, [])
    while level:
        named = [process._replace(command=_command(process)) for process in level]
        found += [process for process in named if "resource_tracker" not in process.command]
        level = [child for process in level for child in children.get(process.pid, [])]
    return found


def _command(process: Process) -> str:
    """The command line or, of a zombie, the name."""
    try:
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            line = file.read().rstrip(b"\0").replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        line = b""
    return line.decode(errors="replace") or process.command


def open_descriptors() -> list[tuple[int, str]]:
    """Those of this process with their targets, but for the ones to resource trackers."""
    trackers = set()
    for name in ("multiprocess.resource_tracker", "multiprocessing.resource_tracker"):
        # It is started at most once in a process, on first use, and lives as long: it is no leak.
        tracker = getattr(sys.modules.get(name), "_resource_tracker", None)
        trackers.add(getattr(tracker, "_fd", None))
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed them
        if int(name) not in trackers:
            found.append((int(name), target))
    return found


def reap(before: Snapshot) -> None:
    """Wait for the zombies that are new: orphans that fell to this process.

    Not for children that somebody here has started and may still ask for their status; those of a bare `os.fork`
    can't be told from orphans.
    """
    zombies = [
        process
        for process in descendants(os.getpid())
        if process.state == "Z" and process.parent == os.getpid()
    ]
    new = [process for process in zombies if process.key not in before.processes]
    owned = _owned_children() if new else frozenset()
    for process in new:
        if process.pid in owned:
            continue
        try:
            os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # its owner was faster


def _owned_children() -> frozenset[int]:
    """The children for which there is a living object that has not waited for them yet."""
    names = ("subprocess", "multiprocessing.popen_fork", "multiprocess.popen_fork")
    kinds = tuple(sys.modules[name].Popen for name in names if name in sys.modules)
    # What was collected before its process had ended, subprocess keeps, to wait for it itself.
    collected = set(map(id, getattr(sys.modules.get("subprocess"), "_active", None) or ()))
    return frozenset(
        each.pid
        for each in gc.get_objects()
        if issubclass(type(each), kinds)
        and id(each) not in collected
        and getattr(each, "returncode", None) is None
        and isinstance(getattr(each, "pid", None), int)
    )


def _kill(process: Process) -> None:
    now = read_process(process.pid)
    if now is not None and now.start == process.start:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
