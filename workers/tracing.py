"""Trace and profile functions that code of an attempt sets: its own, and gone when it has ended.

One that is left behind is called for whatever its thread does next, and whatever it raises is raised there: in the
body of somebody else, or in code of ours. What was there before (of a debugger, or of coverage) stays.

What `threading.settrace` and `setprofile` are given in a task is for the threads that this task starts.
"""

import functools
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from quiesce.context import current_context

T = TypeVar("T")

#: What a task has set for the threads that it starts; None if it has set nothing.
_trace: Final[ContextVar[tuple[Any] | None]] = ContextVar("quiesce_trace", default=None)
_profile: Final[ContextVar[tuple[Any] | None]] = ContextVar("quiesce_profile", default=None)


def watch() -> None:
    """For the whole life of this process."""
    threading.settrace, threading.gettrace = _own(threading.settrace, threading.gettrace, _trace)
    threading.setprofile, threading.getprofile = _own(
        threading.setprofile, threading.getprofile, _profile
    )
    for name, own, here in (
        ("settrace_all_threads", _trace, sys.settrace),
        ("setprofile_all_threads", _profile, sys.setprofile),
    ):
        if hasattr(threading, name):  # since Python 3.12
            setattr(threading, name, _own_here(getattr(threading, name), own, here))


def _own(set_for_all: Any, get_of_all: Any, own: ContextVar[tuple[Any] | None]) -> tuple[Any, Any]:
    @functools.wraps(set_for_all)
    def set_for_own(func: Any) -> None:
        if current_context() is None:
            set_for_all(func)
        else:
            own.set((func,))

    @functools.wraps(get_of_all)
    def get() -> Any:
        mine = own.get()
        return get_of_all() if mine is None else mine[0]

    return set_for_own, get


def _own_here(set_for_all: Any, own: ContextVar[tuple[Any] | None], set_here: Any) -> Any:
    """Threads that run already are others', or have begun without it."""

    @functools.wraps(set_for_all)
    def set_for_own(func: Any) -> None:
        if current_context() is None:
            set_for_all(func)
        else:
            own.set((func,))
            set_here(func)

    return set_for_own


def begin_thread() -> None:
    """A thread that a task has started begins, in a context of that task."""
    for mine, set_here in ((_profile.get(), sys.setprofile), (_trace.get(), sys.settrace)):
        if mine is not None:
            set_here(mine[0])


def now() -> tuple[Any, Any]:
    """The functions of this thread, for `put_back`."""
    return sys.gettrace(), sys.getprofile()


def put_back(before: tuple[Any, Any]) -> None:
    """Let this thread have no others. What a function raises that is there still, leaves this: call it again.

    One that raises is gone by that, as the interpreter has it. The caller is the one to catch it: such a function
    is called as this begins, too, before any `try` in here.
    """
    trace, profile = before
    if sys.getprofile() is not profile:  # first: one is called for each of these calls, too
        sys.setprofile(profile)
    if sys.gettrace() is not trace:
        sys.settrace(trace)


def untraced(call: Callable[..., T], *args: Any) -> T:
    """Call code of ours without the functions of this thread: what they raise would leave the midst of it."""
    trace, profile = sys.gettrace(), sys.getprofile()
    if trace is None and profile is None:
        return call(*args)
    sys.setprofile(None)
    sys.settrace(None)
    try:
        return call(*args)
    finally:
        sys.settrace(trace)
        sys.setprofile(profile)


def apart(call: Callable[..., T], *args: Any) -> T:
    """Call it; then the functions of this thread are as before."""
    trace, profile = sys.gettrace(), sys.getprofile()
    try:
        return call(*args)
    finally:
        while True:
            try:
                if sys.getprofile() is not profile or sys.gettrace() is not trace:
                    put_back((trace, profile))
                break
            except BaseException:  # see there
                continue
