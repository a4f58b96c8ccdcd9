"""The memory that a pool's supervisor, its workers, and whoever buries them share.

One region for each pool, of 64-bit words, with one writer for each word and no locks: a process that is
killed while it writes can't harm or block another.

    region   header (whose it is, how many places, its lease), then the places
    place    header (serial, pid by the supervisor; readiness and the descriptor of the file for its
             stacks, plus one, by the worker), then ENTRIES entries
    entry    task | attempt << 8 | phase | stop flag | check counter
             the flag is the supervisor's, the others the worker's

The worker writes an entry's phase word last when it begins an attempt and first when it frees it, so the
other words of an entry with a phase always belong to that attempt. The stop flag is never cleared: it
names the attempt it is meant for (`flag_key`), so what is left of an older one says nothing to a newer.
"""

import math
import mmap
import os
from enum import IntEnum
from typing import Final, NamedTuple

from quiesce.registry.ids import Attempt as AttemptNumber, AttemptKey, TaskId

ENTRIES: Final = 512
_ENTRY_WORDS: Final = 4
_HEADER_WORDS: Final = 8
_PLACE_WORDS: Final = _HEADER_WORDS + ENTRIES * _ENTRY_WORDS
#: Where in an entry the stop flag is, and the check counter.
FLAG: Final = 2
CHECKS: Final = 3
_MAGIC: Final = 0x3145435345495551  # "QUIESCE1", read as one word
_MASK: Final = 2**64 - 1
#: Words of the region's header that are about the lease of the pool; all of them the supervisor's.
_ARMED_UNTIL: Final = 4
LEASE_TURNS: Final = 5
_LEASE: Final = 6


class Phase(IntEnum):
    """How far an attempt is. What is in no entry never began, or its end is known to the broker."""

    FREE = 0
    BEGUN = 1
    COMPLETED = 2
    FAILED = 3
    CANCELLED = 4
    CRASHED = 5


#: `Phase.BEGUN` as a plain number.
_BEGUN: Final = int(Phase.BEGUN)


class PhaseRow(NamedTuple):
    """One entry in use."""

    task_id: TaskId
    attempt: AttemptNumber
    phase: Phase


class PlaceAccount(NamedTuple):
    """What the table says of one place that a worker has had. `pid` 0: it died before that was noted."""

    serial: int
    pid: int
    ready: bool
    phases: list[PhaseRow]


def flag_key(task_id: int, attempt: int) -> int:
    """What the stop flag of an attempt holds once it is asked to stop. Never 0.

    No two attempts share a key while ids stay below 2**48 and attempts below 2**16.
    """
    return ((task_id << 16) | (attempt & 0xFFFF)) & _MASK or 1


class Place:
    """One worker's part of the table. The worker and the supervisor each have a view of their own."""

    def __init__(self, words: "memoryview[int]", index: int) -> None:
        #: The whole region; `task_words` and the like index it.
        self.words = words
        self.index = index
        self._base = _HEADER_WORDS + index * _PLACE_WORDS
        self._entries = self._base + _HEADER_WORDS
        #: All and only the entries that no attempt has or will have, by their first words. The worker's alone.
        self._free = [self._entries + entry * _ENTRY_WORDS for entry in range(ENTRIES)][::-1]
        #: Where each attempt is. The worker's alone.
        self._where: dict[AttemptKey, int] = {}

    # the worker writes

    def set_ready(self) -> None:
        """This worker is registered and has loaded what it should: from now on its death is no failed start."""
        self.words[self._base + 2] = 1

    def set_dump(self, fd: int) -> None:
        """Name this worker's descriptor of the file into which it writes its stacks."""
        self.words[self._base + 3] = fd + 1

    def reserve(self, key: AttemptKey) -> int:
        """Keep an entry for an attempt that has not begun: nobody else sees that. Gives the entry's first word.

        Raises:
            IndexError: all entries are in use; the session never hands over that many.
        """
        at = self._where[key] = self._free.pop()
        self.words[at] = key[0]
        self.words[at + CHECKS] = 0
        return at

    def begin(self, key: AttemptKey) -> int:
        """Note that an attempt begins, before its first instruction. Gives what `reserve` did or would."""
        at = self._where.get(key)
        if at is None:
            at = self.reserve(key)
        self.words[at + 1] = key[1] << 8 | _BEGUN
        return at

    def put_off(self, key: AttemptKey) -> None:
        """Nothing of this attempt runs any more or has to end: as before `begin`, its entry is reserved."""
        self.words[self._where[key] + 1] = 0

    def end(self, key: AttemptKey, phase: Phase) -> None:
        """Note how an attempt ended, after all that it began has ended."""
        self.words[self._where[key] + 1] = key[1] << 8 | phase

    def free(self, key: AttemptKey) -> None:
        """The broker knows the end of this attempt: its entry is not needed any longer. Twice is harmless."""
        at = self._where.pop(key, None)
        if at is not None:
            self.words[at + 1] = 0
            self._free.append(at)

    # the supervisor writes

    def assign(self, serial: int) -> None:
        """Clear the place for a new worker; its last one is dead and its account settled."""
        self.words[self._base] = 0
        for at in range(self._base + 1, self._base + _PLACE_WORDS):
            self.words[at] = 0
        self.words[self._base] = serial

    def set_pid(self, pid: int) -> None:
        """Note the process, once it is started."""
        self.words[self._base + 1] = pid

    def clear(self) -> None:
        """The account of this place is settled: nobody needs to read it again."""
        self.words[self._base] = 0

    def flag(self, keys: set[tuple[int, int]]) -> None:
        """Ask these attempts to stop, where they have begun here."""
        for at, row in self._rows():
            if row.phase is Phase.BEGUN and (row.task_id, row.attempt) in keys:
                self.words[at + FLAG] = flag_key(row.task_id, row.attempt)

    def flag_all(self) -> None:
        """Ask all attempts to stop that have begun here and not ended."""
        self.flag({(row.task_id, row.attempt) for row in self.phases()})

    # anyone reads

    @property
    def lease(self) -> float:
        """Seconds of the pool's lease; 0.0 before the first. No task is assigned before there is one."""
        return self.words[_LEASE] / 1000

    @property
    def lease_turns(self) -> int:
        """How often the pool's lease was half over, and was back: odd while nothing may begin."""
        return self.words[LEASE_TURNS]

    @property
    def serial(self) -> int:
        """Which worker this place belongs to, 0 for none."""
        return self.words[self._base]

    @property
    def pid(self) -> int:
        """Its process, 0 while it is being started."""
        return self.words[self._base + 1]

    @property
    def ready(self) -> bool:
        """Whether it has been registered."""
        return self.words[self._base + 2] != 0

    @property
    def dump(self) -> int:
        """The worker's descriptor of the file for its stacks, -1 while there is none."""
        return self.words[self._base + 3] - 1

    def phases(self) -> list[PhaseRow]:
        """Every attempt that the table knows here."""
        return [row for _, row in self._rows()]

    def phase(self, task_id: int, attempt: int) -> Phase:
        """How far one attempt is; FREE if the table does not know it."""
        for _, row in self._rows():
            if (row.task_id, row.attempt) == (task_id, attempt):
                return row.phase
        return Phase.FREE

    def checks(self) -> dict[AttemptKey, int]:
        """The check counters of the attempts that have begun and not ended."""
        return {
            (row.task_id, row.attempt): self.words[at + CHECKS]
            for at, row in self._rows()
            if row.phase is Phase.BEGUN
        }

    def _rows(self) -> list[tuple[int, PhaseRow]]:
        """Each with its first word."""
        words = self.words
        found = []
        # All phases in one go: a request to stop is on its way to a task while the supervisor looks for it here.
        phases = words[self._entries + 1 : self._entries + ENTRIES * _ENTRY_WORDS : _ENTRY_WORDS]
        for entry, word in enumerate(phases.tolist()):
            if word and word & 0xFF <= Phase.CRASHED:
                # The phase again after the task: the worker may have freed and reused the entry in between.
                at = self._entries + entry * _ENTRY_WORDS
                task_id = words[at]
                if words[at + 1] == word:
                    row = PhaseRow(TaskId(task_id), AttemptNumber(word >> 8), Phase(word & 0xFF))
                    found.append((at, row))
        return found


class PoolTable:
    """One pool's region: an anonymous file that lives as long as someone has it open."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, a region made by `create`."""
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words: memoryview[int] = memoryview(self._map).cast("Q")
        if self._words[0] != _MAGIC:
            raise ValueError(f"descriptor {fd} is no pool table of this version")

    @classmethod
    def create(cls, processes: int) -> "PoolTable":
        """A new region with places for `processes` workers and as many replacements."""
        fd = os.memfd_create("quiesce-pool", os.MFD_CLOEXEC)
        places = 2 * processes
        os.ftruncate(fd, 8 * (_HEADER_WORDS + places * _PLACE_WORDS))
        with mmap.mmap(fd, 0) as region, memoryview(region).cast("Q") as words:
            words[2], words[3] = processes, places
            words[0] = _MAGIC
        return cls(fd)

    @classmethod
    def open(cls, where: int | str) -> "PoolTable":
        """By a descriptor (which then belongs to the table) or by a path like /proc/<pid>/fd/<fd>."""
        fd = where if isinstance(where, int) else os.open(where, os.O_RDWR | os.O_CLOEXEC)
        return cls(fd)

    @property
    def supervisor(self) -> bytes:
        """Who this region belongs to: eight bytes, zeros while no supervisor has taken it."""
        return self._words[1].to_bytes(8, "big")

    def adopt(self, supervisor: bytes) -> None:
        """Note the supervisor; forget its predecessor's lease and its workers, whose account is settled."""
        for index in range(self.places):
            self.place(index).clear()
        for at in (_ARMED_UNTIL, LEASE_TURNS, _LEASE):
            self._words[at] = 0
        self._words[1] = int.from_bytes(supervisor, "big")

    # the lease of the pool; the supervisor writes

    @property
    def armed_until(self) -> float:
        """When the supervisor's own timer ends it, and its workers with it, in seconds of CLOCK_BOOTTIME.

        Never earlier than it does; 0.0 before the first lease.
        """
        return self._words[_ARMED_UNTIL] / 1000

    def note_lease(self, until: float, lease: float) -> None:
        """Note a moment, before the timer is armed to it, and the length of the lease."""
        self._words[_ARMED_UNTIL] = math.ceil(until * 1000)
        self._words[_LEASE] = math.ceil(lease * 1000)

    def ask_all(self) -> None:
        """The lease is half over: nothing may begin (said first), and all that has begun is asked to stop."""
        if not self._words[LEASE_TURNS] % 2:
            self._words[LEASE_TURNS] += 1
        for index in range(self.places):
            self.place(index).flag_all()

    def lease_is_back(self) -> None:
        """What begins from now on may run."""
        if self._words[LEASE_TURNS] % 2:
            self._words[LEASE_TURNS] += 1

    # anyone reads

    @property
    def places(self) -> int:
        """How many places there are."""
        return self._words[3]

    def place(self, index: int) -> Place:
        """A view of one place."""
        return Place(self._words, index)

    def account(self) -> list[PlaceAccount]:
        """What is known of every worker whose place has not been cleared."""
        views = (self.place(index) for index in range(self.places))
        return [
            PlaceAccount(place.serial, place.pid, place.ready, place.phases())
            for place in views
            if place.serial
        ]

    def close(self) -> None:
        """Give the memory and the descriptor back. No place of this table may be used any more."""
        self._words.release()
        self._map.close()
        os.close(self.fd)
