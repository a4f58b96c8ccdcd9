"""Task bodies that begin something in ways that are easily overlooked; each leaves signs in files."""

import _thread
import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import quiesce
from quiesce.testing.worker_bodies import _tick_until, _ticking, nothing, tick, wait_for_file


def start_new(folder: str) -> str:
    """Return while a thread goes on that was started by the old name."""
    _thread.start_new(_tick_until, (folder, "thread"))
    return "returned"


class _Alike(threading.Thread):
    """Equal to all others of its class."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alike)

    def __hash__(self) -> int:
        return 1


def equal_threads(folder: str) -> str:
    """Return while the first of two equal threads goes on, and the other has ended."""
    _Alike(target=_tick_until, args=(folder, "thread")).start()
    other = _Alike(target=nothing)
    other.start()
    other.join()
    return "returned"


def excepthook(folder: str) -> str:
    """Return while the hook of a thread that has failed goes on, and begins another one."""

    def hook(args: Any) -> None:
        threading.excepthook = before
        threading.Thread(target=_tick_until, args=(folder, "thread")).start()
        wait_for_file(f"{folder}/thread-go")

    def fail() -> None:
        raise ValueError("on purpose")

    before, threading.excepthook = threading.excepthook, hook
    threading.Thread(target=fail).start()
    return "returned"


def thread_in_empty_context(folder: str) -> str:
    """Return while a thread goes on that was started by one which was given a context that knows of no task."""

    def start() -> None:
        threading.Thread(target=_tick_until, args=(folder, "thread")).start()

    first = _thread_in(contextvars.Context(), start)
    first.start()
    first.join()
    return "returned"


def thread_in_given_context() -> tuple[list[Any], str, bool]:
    """What a thread sees in the context that it was given; what it has left there, and whether the task is."""
    said: ContextVar[str] = ContextVar("said", default="nothing")
    context, seen = contextvars.Context(), []
    context.run(said.set, "given")

    def work() -> None:
        task = quiesce.current_task()
        seen.extend([said.get(), task is not None and task.name])
        said.set("left")

    thread = _thread_in(context, work)
    thread.start()
    thread.join()
    return seen, context[said], context.run(quiesce.current_task) is not None


def _thread_in(context: contextvars.Context, work: Callable[[], None]) -> threading.Thread:
    """As since Python 3.14."""
    options: dict[str, Any] = {"context": context}
    return threading.Thread(target=work, **options)


_KEPT: list[Any] = []


async def task_in_empty_context(folder: str) -> str:
    """Return while a child task goes on, which was given a context that knows of no task."""
    began = asyncio.Event()

    async def ticking() -> None:
        began.set()
        await asyncio.gather(_ticking(folder))  # what it begins is the task's, too

    _KEPT.append(asyncio.create_task(ticking(), context=contextvars.Context()))
    await began.wait()
    return "returned"


async def timer_in_empty_context(folder: str) -> str:
    """Leave a callback that calls itself again and again, each time in a context that knows of no task."""
    loop = asyncio.get_running_loop()

    def again() -> None:
        tick(folder, "timer-ticks")
        loop.call_later(0.005, again, context=contextvars.Context())

    again()
    return "returned"


# --- trace and profile functions ------------------------------------------------------------------


def _refuse(frame: Any, event: str, argument: object) -> None:
    """Raises in all code but this module's."""
    if frame.f_globals["__name__"] != __name__:
        raise RuntimeError("traced")


def trace_a_thread() -> int:
    """How often functions that are set for threads have seen the call in one."""
    seen: list[str] = []

    def see(frame: Any, event: str, argument: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    threading.settrace(see)
    threading.setprofile(see)
    thread = threading.Thread(target=nothing)
    thread.start()
    thread.join()
    return seen.count("nothing")


def leave_tracers() -> None:
    """Leave functions behind that raise."""
    threading.settrace(_refuse)
    threading.setprofile(_refuse)
    sys.settrace(_refuse)
    sys.setprofile(_refuse)


async def async_leave_tracers() -> None:
    threading.settrace(_refuse)
    await asyncio.sleep(0)
    sys.settrace(_refuse)
    sys.setprofile(_refuse)


async def leave_tracers_in_a_pool() -> None:
    """All threads of the pool of `to_thread` have had one."""

    def leave() -> None:
        sys.settrace(_refuse)

    for call in asyncio.as_completed([asyncio.to_thread(leave) for _ in range(5)]):
        await call


def thread_with_tracers() -> None:
    """Return while a thread begins whose functions raise."""
    threading.settrace(_refuse)
    thread = threading.Thread(target=nothing)
    thread.start()
    _thread.start_new_thread(nothing, ())


def tracers() -> list[str]:
    """The functions of this thread, and of those to come."""
    get = (sys.gettrace, sys.getprofile, threading.gettrace, threading.getprofile)
    return [getattr(each(), "__name__", "none") for each in get]


async def async_tracers() -> list[str]:
    return [*tracers(), *await asyncio.to_thread(tracers)]
