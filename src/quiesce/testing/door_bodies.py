"""Task bodies that begin something in ways that are easily overlooked; each leaves signs in files."""

import _thread
import asyncio
import contextvars
import threading
from typing import Any

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
