"""A timer of the kernel that ends this process, whatever state it is in.

It sends SIGKILL by itself: to a process that is stopped, that blocks all signals, or whose interpreter is
stuck in C code. It counts on CLOCK_BOOTTIME, which goes on while the machine is suspended. Processes that
are forked or executed do not have it. (timer_create(2); Python has no name for it.)
"""

import ctypes
import math
import os
import signal
import time
from typing import Any, Final

_SIGEV_SIGNAL: Final = 0
_TIMER_ABSTIME: Final = 1


class _SigEvent(ctypes.Structure):
    """struct sigevent: 64 bytes on every 64-bit Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        (
            "more",
            ctypes.c_byte * (64 - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int)),
        ),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _ITimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def boottime() -> float:
    """The clock of leases: seconds since the boot of this machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseTimer:
    """Kills this process when it expires. Once armed it always is; it only ever moves later."""

    def __init__(self) -> None:
        """Make the timer, not armed.

        Raises:
            OSError: the kernel has none for us (RLIMIT_SIGPENDING).
        """
        #: When it expires, on `boottime`; None: it is not armed.
        self.until: float | None = None
        self._settime, create = _functions()
        event = _SigEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        self._id = ctypes.c_void_p()
        _check(create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._id)))

    def arm(self, until: float) -> None:
        """Let it expire at this moment of `boottime`; at once if that is past. Never earlier than it would.

        Raises:
            ValueError: `until` is no finite number.
            OSError: the kernel refused; what was armed before still is.
        """
        if not math.isfinite(until):
            raise ValueError(f"a timer needs a finite moment, not {until!r}")
        if self.until is not None and until <= self.until:
            return
        # Rounded down: early is safe. Zero would disarm it.
        seconds, nanoseconds = divmod(max(math.floor(until * 1e9), 1), 10**9)
        spec = _ITimerSpec(value=_TimeSpec(seconds, nanoseconds))
        _check(self._settime(self._id, _TIMER_ABSTIME, ctypes.byref(spec), None))
        self.until = until


def _functions() -> tuple[Any, Any]:
    """timer_settime and timer_create: of libc, or (glibc before 2.34) of librt."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "timer_create"):
        library = ctypes.CDLL("librt.so.1", use_errno=True)
    settime, create = library.timer_settime, library.timer_create
    create.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return settime, create


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the timer of the lease: {os.strerror(code)}")
