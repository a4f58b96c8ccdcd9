"""A witness: what really ran, by memory that the tasks write themselves, whatever any broker says.

Each task has a slot and ticks into it: a count and the instant of the last tick. The file is mapped into
every process, so a tick needs no message, and a killed process leaves its last one behind.
"""

import mmap
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

#: A slot is two unsigned 64-bit words: how many ticks, and the instant of the last.
SLOT_BYTES: Final = 16


class Tick(NamedTuple):
    """How often a slot ticked, and when last, on the clock of `time.monotonic_ns()` (0: never)."""

    ticks: int
    at_ns: int


class Witness:
    """The file and its slots. Make it once with `slots`; tasks open it by its path."""

    def __init__(self, path: str | Path, slots: int | None = None) -> None:
        """Open the file at `path`; with `slots`, make it anew with so many, all zero."""
        self.path = str(path)
        flags = os.O_RDWR | (0 if slots is None else os.O_CREAT | os.O_TRUNC)
        descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            if slots is not None:
                os.ftruncate(descriptor, slots * SLOT_BYTES)
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")
        self.slots = len(self._words) // 2

    def tick(self, slot: int) -> None:
        """Say: I run."""
        self._words[2 * slot + 1] = time.monotonic_ns()
        self._words[2 * slot] += 1

    def read(self, slot: int) -> Tick:
        """What a slot holds now."""
        return Tick(self._words[2 * slot], self._words[2 * slot + 1])

    def ticked_after(self, instant_ns: int) -> list[int]:
        """The slots whose last tick is after this instant of `time.monotonic_ns()`."""
        return [slot for slot in range(self.slots) if self.read(slot).at_ns > instant_ns]

    def close(self) -> None:
        """Unmap the file."""
        self._words.release()
        self._map.close()


@lru_cache(maxsize=64)
def opened(path: str) -> Witness:
    """The witness at `path`, opened once in each process: for task bodies."""
    return Witness(path)
