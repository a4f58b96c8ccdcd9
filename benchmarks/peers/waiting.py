"""Small waits of the drivers."""

import os
import select
import time
from pathlib import Path


def until_written(path: str, timeout: float = 20.0) -> str:
    """The content of a file that somebody else writes."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if text := Path(path).read_text():
                return text
        except OSError:
            pass
        time.sleep(0.002)
    raise TimeoutError(f"nobody wrote {path}")


def until_dead(pid: int, timeout: float = 20.0) -> float:
    """The time at which a process had ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.monotonic()
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise TimeoutError(f"process {pid} lives")
        return time.monotonic()
    finally:
        os.close(fd)
