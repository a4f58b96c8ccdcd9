"""What the Linux kernel does for us and Python has no name for."""

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: The number of tgkill(2), for which not every libc has a function; arm64 and riscv64 have the generic one.
_SYS_TGKILL: Final = {"x86_64": 234, "i686": 270, "ppc64le": 250, "s390x": 241, "armv7l": 268}
_SYS_TGKILL_GENERIC: Final = 131
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL to this process when the parent's *thread* that started it ends; at once if it has.

    The comparison closes the gap between our start and this call: who has lost its parent by then is the
    child of somebody else, and would never be told.

    Each thread of this process has a setting of its own, any of which is enough; a thread's is forgotten when its
    credentials change (`os.seteuid` does that to all threads).
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def become_subreaper() -> None:
    """From now on descendants that lose their parent become our children, not those of process 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def signal_thread(pid: int, thread: int, number: int) -> None:
    """Send a signal to one thread of another process. ProcessLookupError: there is none such (any more)."""
    call = _SYS_TGKILL.get(os.uname().machine, _SYS_TGKILL_GENERIC)
    if _libc.syscall(call, pid, thread, number) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"tgkill({pid}, {thread}): {os.strerror(code)}")


def boot_id() -> str:
    """Names this boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class Wake:
    """Wakes a thread that polls: an eventfd. `set` is safe in any thread and in signal handlers."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable once set."""
        return self._fd

    def set(self) -> None:
        """Wake the thread, now or when it polls next."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Undo `set`; call it before looking at what there is to do."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
