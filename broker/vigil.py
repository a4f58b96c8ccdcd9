"""Waiting awake for a moment before falling asleep, when that is likely to be enough.

A thread that sleeps takes long to wake up: its processor has halted, and its caches hold what others do. Of a round
trip alone that is a third. So who is told of things shortly one after the other looks again and again for so long
before it sleeps: what KVM does when a guest halts (`halt_poll_ns`), and Linux at sockets (`SO_BUSY_POLL`).

It must not be at the cost of others. It waits awake only if that would have sufficed the last time, gives way to
whoever wants the processor at each look, and stops once it sees by the kernel's account that somebody does.
"""

import os
import select
import threading
import time
from typing import Final

#: Seconds between two looks at the account.
LOOK_EVERY: Final = 0.05
#: Of the time that the thread ran or could have run: the part for which others had its processor, above which they
#: are in need of it.
CROWDED: Final = 0.15


class Vigil:
    """Waits at a poll object, for the thread that makes it."""

    def __init__(self, poll: select.poll, longest: float) -> None:
        """`longest`: seconds awake in a row; 0 for never."""
        self._poll = poll
        self._longest = longest if len(os.sched_getaffinity(0)) > 1 else 0.0
        #: The last wait was so short that it could be spent awake.
        self._short = False
        self._crowded = False
        self._look_at = 0.0
        #: Nanoseconds that the thread has run, and that it has waited for a processor.
        self._account = (0, 0)
        self._file = -1
        if self._longest:
            self._open()

    def close(self) -> None:
        """Let go of the account."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def wait(self, timeout: int) -> list[tuple[int, int]]:
        """As `poll`: what has something to say, at the latest after so many milliseconds."""
        if not timeout or not self._longest:
            return self._poll.poll(timeout)
        began = time.monotonic()
        enough = began + self._longest
        ready: list[tuple[int, int]] = []
        if self._short and not self._is_crowded(began):
            ready = self.look(self._longest)
        if not ready:
            ready = self._poll.poll(timeout)
        self._short = bool(ready) and time.monotonic() <= enough
        return ready

    def look(self, seconds: float) -> list[tuple[int, int]]:
        """What has something to say within a moment, too short to sleep."""
        enough = time.monotonic() + seconds
        while not (ready := self._poll.poll(0)) and time.monotonic() < enough:
            os.sched_yield()
        return ready

    def _is_crowded(self, now: float) -> bool:
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            ran, waited = self._account
            self._account = self._read()
            ran, waited = self._account[0] - ran, self._account[1] - waited
            self._crowded = waited > CROWDED * (ran + waited)
        return self._crowded

    def _open(self) -> None:
        try:
            self._file = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
            self._account = self._read()
        except (OSError, ValueError):
            self._longest = 0.0  # without it nobody could tell whom it costs

    def _read(self) -> tuple[int, int]:
        ran, waited, *_ = os.pread(self._file, 128, 0).split()
        return int(ran), int(waited)
