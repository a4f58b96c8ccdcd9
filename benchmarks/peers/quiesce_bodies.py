"""What the tasks of quiesce's own measurements run: the ways to look for a request to stop."""

import time
from pathlib import Path

import quiesce


def asleep(path: str) -> float:
    """Sleep until asked to stop; gives the time at which it saw that."""
    Path(path).write_text("running")
    quiesce.wait_for_shutdown()
    return time.monotonic()


def busy(path: str) -> float:
    """The same in a pure-Python loop."""
    Path(path).write_text("running")
    asked = quiesce.is_shutdown_requested
    while not asked():
        pass
    return time.monotonic()


async def coroutine() -> None:
    """Until asked to stop."""
    await quiesce.shutdown_watcher()


def blocker() -> None:
    """Hold a worker until asked to stop."""
    quiesce.wait_for_shutdown()


def checks(n: int) -> dict[str, float]:
    """Seconds that one look for a request to stop costs, the loop around it taken off."""
    asked, checkpoint = quiesce.is_shutdown_requested, quiesce.checkpoint
    numbers = range(n)
    began = time.perf_counter()
    for _ in numbers:
        pass
    bare = time.perf_counter()
    for _ in numbers:
        asked()
    looked = time.perf_counter()
    for _ in numbers:
        checkpoint()
    ended = time.perf_counter()
    loop = bare - began
    return {
        "is_shutdown_requested": (looked - bare - loop) / n,
        "checkpoint": (ended - looked - loop) / n,
    }
