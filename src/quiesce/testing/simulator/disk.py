"""A disk and the journal on it: commits and syncs take time, may stall or fail; a crash takes what was not synced.

A row is a group of turns, whole or not there. The end of an earlier broker may fall into a commit: then its row
may be there, though nobody was told. When the machine goes down, rows that were not synced may be lost, the
last ones first; in power-loss mode every row is synced, else what is to be synced follows its commit, and binding
effects wait for that. A snapshot is the registry as of a row, and replaces
the rows before it once its own record is on the disk.
"""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from quiesce.broker.journal import JournalFailedError, Recovered
from quiesce.broker.journal_head import Head
from quiesce.broker.journal_open import is_complete
from quiesce.broker.journal_rows import SYNCED
from quiesce.registry.effects import BINDING, Effect
from quiesce.registry.facts import Fact
from quiesce.testing.simulator.engine import Engine

#: Turns of one commit, at most.
GROUP: Final = 2000


class Snapshot(NamedTuple):
    """`seq`: it stands for all rows up to this one; `frozen` None: for none. `at`: the last row then."""

    seq: int
    frozen: tuple[Any, ...] | None
    at: int


_NOTHING: Final = Snapshot(0, None, 0)


class Disk:
    """What outlives the broker."""

    def __init__(self, engine: Engine, durability: str) -> None:
        self.engine = engine
        self.durability = durability
        #: All rows after `old.seq`, the last of which has the number `seq`; up to `synced` nothing takes them.
        self.rows: list[list[Fact]] = []
        self.seq = self.synced = 0
        self.old, self.new = _NOTHING, _NOTHING
        self.head: Head | None = None
        self.epoch = 0
        #: Rows that have been lost and the journal's head knows of.
        self.lost = 0
        self.roomy = True
        self.stalled_until = 0.0
        self.failing = False

    # --- writing ----------------------------------------------------------------------------------

    def write(self, facts: list[Fact], *, sync: bool) -> None:
        """One more row."""
        self.seq += 1
        self.rows.append(facts)
        if sync:
            self.sync(self.seq)

    def sync(self, seq: int) -> None:
        """Nothing takes the rows up to this one any more."""
        self.synced = max(self.synced, seq)
        if self.new.frozen is not None and self.synced > self.new.at:
            del self.rows[: self.new.seq - self.old.seq]
            self.old, self.new = self.new, _NOTHING

    def replace(self, snapshot: Snapshot) -> None:
        """A snapshot is written."""
        if snapshot.seq <= self.old.seq or snapshot.seq > self.seq:
            return
        self.new = snapshot

    def set_head(self, boot: str, *, clean: bool = False, doubtful: bool = False) -> None:
        """Note how things stand, as the store does."""
        self.head = Head(mode=self.durability, clean=clean, doubtful=doubtful, boot=boot)

    # --- losing -----------------------------------------------------------------------------------

    def lose(self) -> list[list[Fact]]:
        """The machine has gone down: rows that are lost."""
        random = self.engine.random
        keep = self.synced + random.randrange(self.seq - self.synced + 1)
        if self.new.frozen is not None and (
            keep < self.new.at or (keep == self.new.at and random.random() < 0.5)
        ):
            self.new = _NOTHING
        lost = self.rows[keep - self.old.seq :]
        del self.rows[keep - self.old.seq :]
        self.lost = self.seq - keep if random.random() < 0.5 else 0
        self.seq = keep
        return lost

    def lose_all(self) -> list[list[Fact]]:
        """There was no journal: all that any broker knew is gone."""
        lost, self.rows = self.rows, []
        self.seq = self.synced = 0
        self.old, self.new = _NOTHING, _NOTHING
        return lost

    # --- reading ----------------------------------------------------------------------------------

    def recover(self, boot: str) -> Recovered:
        """What a broker finds, and whether anything may be missing: as the real journal would judge."""
        used = self.epoch > 0
        found: Any = SimpleNamespace(head=self.head, lost=self.lost)
        complete = is_complete(found, used=used, boot_id=boot)
        base = self.new if self.new.frozen is not None else self.old
        facts = [fact for row in self.rows[base.seq - self.old.seq :] for fact in row]
        self.lost = 0
        self.epoch += 1
        self.set_head(boot, doubtful=not complete)
        return Recovered(
            snapshot=base.frozen,
            facts=facts,
            last_epoch=self.epoch - 1,
            complete=complete,
            words="",
        )


class _Mark(NamedTuple):
    """Where a snapshot stands among the turns."""

    frozen: tuple[Any, ...]


_Turn = tuple[list[Fact], list[Effect]]


class SimulatedJournal:
    """One broker's journal; see `quiesce.broker.journal.Journal`."""

    def __init__(
        self,
        disk: Disk,
        boot: str,
        wake: Callable[[], None],
        committed: Callable[[list[Fact]], None],
    ) -> None:
        """`wake`: something is safe. `committed`: told of each row that is there for good."""
        self.durability = disk.durability
        self._disk = disk
        self._engine = disk.engine
        self._boot = boot
        self._wake = wake
        self._committed = committed
        self._turns: list[_Turn | _Mark] = []
        self._group: list[_Turn] = []
        self._busy = False
        #: What waits for a sync, by the last row that is to be on the disk then; the first is being synced.
        self._binding: deque[tuple[int, list[Effect]]] = deque()
        self._ready: list[Effect] = []
        self._failure = ""
        self._closed = False
        self._snapshotting = False
        self._tail = sum(map(len, disk.rows))
        self._limit = self._draw_limit()

    def _draw_limit(self) -> int:
        return int(2000 + self._engine.random.random() * 20000)

    @property
    def idle(self) -> bool:
        """Whether all that was taken is committed; or never will be."""
        return bool(self._failure) or not (self._busy or self._turns or self._binding)

    @property
    def failed(self) -> bool:
        """Whether it can't be written any more."""
        return bool(self._failure)

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""
        if not facts and not (self._busy or self._turns or self._binding):
            self._ready += effects
            return
        self._turns.append((facts, effects))
        if not self._busy:
            self._busy = True
            self._engine.after(0.00001, self._begin)

    def _begin(self) -> None:
        """Begin the next commit: all that is there, up to a snapshot."""
        if self._closed or self._failure:
            return
        while self._turns and type(self._turns[0]) is _Mark:
            self._begin_snapshot(self._turns.pop(0))  # type: ignore[arg-type]  # narrowed by type()
        group: list[Any] = []
        for turn in self._turns[:GROUP]:
            if type(turn) is _Mark:
                break
            group.append(turn)
        if not group:
            self._busy = False
            return
        del self._turns[: len(group)]
        self._group = group
        facts = [fact for turn in group for fact in turn[0]]
        sync = self.durability == "power-loss"
        self._engine.at(self._when(sync), self._finish, facts, sync)

    def _when(self, sync: bool) -> float:
        """A commit or sync that begins now is done."""
        takes = (0.0005 if sync else 0.00005) * (0.5 + self._engine.random.random())
        return max(self._engine.now + takes, self._disk.stalled_until)

    def _has_failed(self) -> bool:
        if self._disk.failing:
            self._disk.failing = False
            self._failure = "the disk has failed"
            self._leave_group()
            self._wake()
        return bool(self._failure)

    def _finish(self, facts: list[Fact], sync: bool) -> None:
        if self._closed or self._has_failed():
            return
        group, self._group = self._group, []
        if facts:
            self._write(facts, sync)
        effects = [effect for turn in group for effect in turn[1]]
        if not sync and (self._binding or not SYNCED.isdisjoint(map(type, facts))):
            binding = [effect for effect in effects if type(effect) in BINDING]
            effects = [effect for effect in effects if type(effect) not in BINDING]
            self._binding.append((self._disk.seq, binding))
            if len(self._binding) == 1:
                self._engine.at(self._when(True), self._bind)
        self._ready += effects
        if self._turns:
            self._begin()
        else:
            self._busy = False
        self._wake()

    def _write(self, facts: list[Fact], sync: bool) -> None:
        self._disk.write(facts, sync=sync)
        self._tail += len(facts)
        self._committed(facts)

    def _bind(self) -> None:
        if self._closed or self._failure or self._has_failed():
            return
        seq, effects = self._binding.popleft()
        self._disk.sync(seq)
        self._ready += effects
        if self._binding:
            self._engine.at(self._when(True), self._bind)
        self._wake()

    def _leave_group(self) -> None:
        """The end has come in the midst of a commit: it may have been done."""
        facts = [fact for turn in self._group for fact in turn[0]]
        if facts and self._engine.random.random() < 0.5:
            self._engine.counts["commits nobody was told of"] += 1
            self._write(facts, self.durability == "power-loss")
        self._group = []

    def committed(self) -> list[Effect]:
        """What is safe by now."""
        ready, self._ready = self._ready, []
        if not ready and self._failure:
            raise JournalFailedError(self._failure)
        return ready

    @property
    def behind(self) -> bool:
        """Nobody asks here."""
        return False

    def fileno(self) -> int:
        """Nobody polls here."""
        return -1

    def clear_wakeup(self) -> None:
        """Nobody polls here."""

    def wants_snapshot(self) -> bool:
        """Now and then."""
        return self._tail > self._limit and not self._snapshotting and self._disk.roomy

    def snapshot(self, frozen: tuple[Any, ...]) -> None:
        """Have it written."""
        self._snapshotting = True
        self._turns.append(_Mark(frozen))
        if not self._busy:
            self._busy = True
            self._engine.after(0.00001, self._begin)

    def _begin_snapshot(self, mark: _Mark) -> None:
        self._tail = 0
        takes = self._engine.random.random() * 0.02
        self._engine.after(takes, self._end_snapshot, self._disk.seq, mark.frozen)

    def _end_snapshot(self, seq: int, frozen: tuple[Any, ...]) -> None:
        if self._closed or self._failure:
            return
        self._snapshotting = False
        self._limit = self._draw_limit()
        self._disk.replace(Snapshot(seq, frozen, self._disk.seq))
        self._engine.counts["snapshots"] += 1

    def room(self) -> bool:
        """Whether the disk has room."""
        return self._disk.roomy

    def vouch(self) -> None:
        """Note it."""
        self._disk.set_head(self._boot)

    def close(self) -> None:
        """An orderly end."""
        facts = [fact for turn in self._group for fact in turn[0]]
        for turn in self._turns:
            if type(turn) is not _Mark:
                facts += turn[0]
        if facts:
            self._write(facts, sync=True)
        self._closed = True
        self._disk.set_head(self._boot, clean=True)

    def kill(self) -> None:
        """The broker's process is gone."""
        if not self._closed:
            if not self._failure:
                self._leave_group()
            self._closed = True
