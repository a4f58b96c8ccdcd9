"""Processes as /proc shows them.

A (pid, start) pair names a process for ever; a pid alone is used again. What a scan proves: every process that
existed when it began is seen alive or as a zombie, unless its parent reaped it. So if the scanner is a
subreaper and reaps what falls to it, a scan that sees no descendant, alive or zombie, means that there is
none: whoever might have been born behind the scan's back left a parent to be seen. Children of the scanner that
others reap prove nothing by their death: only a scan in which none of them has died or is gone proves it.
"""

import errno
import os
import signal
from typing import Final, NamedTuple

#: Who waits until there are none of some processes needs no descriptors of more than so many at a time: when one
#: of these has ended it looks again.
ENOUGH: Final = 64
#: Why a process can't be killed (`kill`), for people.
NOT_OURS: Final = "it runs as another user"

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK: Final = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One line of /proc/<pid>/stat. `start` in clock ticks since boot."""

    pid: int
    parent: int
    start: int
    state: str
    cpu_seconds: float
    memory_bytes: int
    threads: int

    @property
    def who(self) -> tuple[int, int]:
        """What names it for ever: its (pid, start)."""
        return self.pid, self.start

    @property
    def is_zombie(self) -> bool:
        """Dead, and its parent has not waited for it. Who has lost its first thread alone looks like it."""
        return self.state in "ZX" and self.threads <= 1


def look(pid: int) -> Process | None:
    """The process with this pid, or None if there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        line = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The command may hold spaces and parentheses; what follows its last one is plain.
    fields = line[line.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        start=int(fields[19]),
        state=fields[0].decode(),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICK,
        memory_bytes=int(fields[21]) * _PAGE,
        threads=int(fields[17]),
    )


def everything() -> list[Process]:
    """All processes."""
    seen = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in seen if process is not None]


def children(pid: int) -> list[Process]:
    """The children of a process, zombies included."""
    return [process for process in everything() if process.parent == pid]


def descendants(pid: int) -> dict[int, Process]:
    """By pid: all that descend from a process, zombies included."""
    by_pid = {process.pid: process for process in everything()}
    below: dict[int, Process] = {}
    for process in by_pid.values():
        path, at = [], process
        while at.pid not in below and at.parent != pid and at.parent in by_pid:
            path.append(at)
            at = by_pid[at.parent]
        if at.pid in below or at.parent == pid:
            below[at.pid] = at
            below.update((each.pid, each) for each in path)
    return below


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it can't be read (dead, or not ours)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read()
    except OSError:
        return {}
    pairs = (os.fsdecode(each).partition("=") for each in data.split(b"\0") if each)
    return {name: value for name, _, value in pairs}


def command(pid: int) -> str:
    """The command line of a process, for people; empty if it can't be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read()
    except OSError:
        return ""
    return os.fsdecode(data.replace(b"\0", b" ")).strip()


def open_pidfd(process: Process) -> int | None:
    """A descriptor of exactly this process (readable once it is dead), or None if it is gone.

    OSError: it may live, and no descriptor is to be had, see `is_shortage`.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):  # EINVAL: it was reaped during the call
            return None
        raise
    try:
        now = look(process.pid)
    except OSError:
        os.close(fd)
        raise
    if now is None or now.start != process.start:
        os.close(fd)
        return None
    return fd


def is_shortage(error: OSError) -> bool:
    """Whether descriptors or memory were used up: looking at processes needs some, and may succeed later."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def kill(process: Process) -> bool:
    """SIGKILL to exactly this process; nothing if it is gone. False: it lives, and we may not signal it.

    That is one with another user, as `sudo` starts them. Its end can be waited for all the same.
    OSError as of `open_pidfd`.
    """
    fd = open_pidfd(process)
    if fd is None:
        return True
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def reap(pid: int) -> bool:
    """Wait for a dead child of ours without blocking; whether it was there to be reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return False
