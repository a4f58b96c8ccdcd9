"""A witness: what really ran, by memory that the tasks write themselves, whatever any broker says.

Each task has a slot and ticks into it: a count and the instant of the last tick. The file is mapped into
every process, so a tick needs no message, and a killed process leaves its last one behind.
"""

import mmap
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from quiesce.testing.failures import WitnessError

#: A slot is two unsigned 64-bit words: how many ticks, and the instant of the last.
SLOT_BYTES: Final = 16


class Tick(NamedTuple):
    """How often a slot ticked, and when last, on the clock of `time.monotonic_ns()` (0: never)."""

    ticks: int
    at_ns: int


class Witness:
    """The file and its slots. Make it once with `slots`; tasks open it by its path, with `Witness.at(path)`.

    A slot is a number. `new_slot` hands them out, and remembers (in the process that calls it) what they are for.
    One writer at a time has a slot; two would lose ticks of each other's count, never the instant.
    """

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
        self._lock = threading.Lock()
        #: What the slots that were handed out are for, by number from 0 on.
        self._labels: list[tuple[str, ...]] = []

    @staticmethod
    def at(path: str | Path) -> "Witness":
        """The witness at `path`, opened once in each process: for task bodies."""
        return opened(str(path))

    # --- for tasks

    def tick(self, slot: int) -> None:
        """Say: I run."""
        self._words[2 * slot + 1] = time.monotonic_ns()
        self._words[2 * slot] += 1

    # --- for tests

    def new_slot(self, *labels: str, width: int = 1) -> int:
        """A slot that nobody has; with `width`, the first of so many. `labels` say what for: a tenant, a name.

        Raises:
            ValueError: all slots are taken.
        """
        with self._lock:
            first = len(self._labels)
            if first + width > self.slots:
                raise ValueError(
                    f"the witness {self.path} has {self.slots} slots, all of them taken: make it with more"
                )
            self._labels += [labels] * width
        return first

    def slots_of(self, *labels: str) -> list[int]:
        """The slots that `new_slot` handed out with all of these labels; without any, all it handed out."""
        wanted = set(labels)
        with self._lock:
            return [slot for slot, given in enumerate(self._labels) if wanted.issubset(given)]

    def name_of(self, slot: int) -> str:
        """A slot for people: its number and labels."""
        labels = self._labels[slot] if slot < len(self._labels) else ()
        return f"slot {slot}" + (f" ({', '.join(labels)})" if labels else "")

    def read(self, slot: int) -> Tick:
        """What a slot holds now."""
        return Tick(self._words[2 * slot], self._words[2 * slot + 1])

    @staticmethod
    def now() -> int:
        """This instant on the clock of the ticks, for `ticked_after` and `assert_nothing_after`."""
        return time.monotonic_ns()

    def ticked_after(self, instant_ns: int, slots: Iterable[int] | None = None) -> list[int]:
        """The slots (of these, or of all) whose last tick is after this instant of `time.monotonic_ns()`."""
        among = range(self.slots) if slots is None else slots
        return [slot for slot in among if self.read(slot).at_ns > instant_ns]

    def assert_nothing_after(
        self, instant_ns: int, slots: Iterable[int] | None = None, *, watch: float = 0.0
    ) -> None:
        """None of these slots (or of all) has ticked since this instant, nor does within `watch` seconds.

        Take the instant right after the stop has returned; watch for some of what the tasks pause between ticks.

        Raises:
            WitnessError: names those that have, and how long after.
        """
        among = None if slots is None else list(slots)
        deadline = time.monotonic() + watch
        while True:
            late = self.ticked_after(instant_ns, among)
            if late:
                rows = (
                    f"{self.name_of(slot)}: {(self.read(slot).at_ns - instant_ns) / 1e6:.3f} ms after, "
                    f"its tick {self.read(slot).ticks}"
                    for slot in late
                )
                raise WitnessError("these ran on:\n  " + "\n  ".join(rows))
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(remaining, 0.01))

    def close(self) -> None:
        """Unmap the file, also where `at` has opened it in this process. More than once does nothing."""
        other = _opened.pop(self.path, None)
        if other is not None and other is not self:
            other.close()
        self._words.release()
        self._map.close()

    def __enter__(self) -> "Witness":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


#: What `opened` has given in this process, by path.
_opened: Final[dict[str, Witness]] = {}


def opened(path: str) -> Witness:
    """The witness at `path`, opened once in each process: for task bodies."""
    found = _opened.get(path)
    # Of two threads that get here at once both have one, of the same memory.
    return _opened.setdefault(path, Witness(path)) if found is None else found
