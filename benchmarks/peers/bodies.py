"""What the measured tasks run, importable in every environment: only the standard library at the top."""

import os
import time
from pathlib import Path
from typing import Any


def noop() -> None:
    """Return at once."""


def noop_of(_: Any) -> None:
    """The same, for interfaces that map over something."""


def echo(value: Any) -> Any:
    """Return what was given."""
    return value


def swallow(_: bytes) -> None:
    """Its argument is what matters."""


def nap(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def sleep_for_long(path: str) -> None:
    """Say by a file that it runs, and sleep until the process is killed."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def interruptible(path: str) -> float:
    """Say by a file that it runs, sleep until interrupted, and give the time at which that was."""
    Path(path).write_text(str(os.getpid()))
    try:
        while True:
            time.sleep(0.001)
    except KeyboardInterrupt:
        return time.monotonic()
