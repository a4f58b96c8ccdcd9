"""The work of a broker on a real journal whose every write is noted: what `crash_points` cuts off."""

import contextlib
import random
import select
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from quiesce.broker.core import recover
from quiesce.broker.journal import Journal, JournalFailedError, JournalLimits, next_epoch
from quiesce.broker.journal_open import open_journal
from quiesce.broker.journal_rows import SYNCED
from quiesce.broker.journal_thread import DiskJournal
from quiesce.registry import effects
from quiesce.registry.effects import Effect
from quiesce.registry.facts import Fact
from quiesce.registry.ids import RequestNumber, SessionId
from quiesce.registry.machine import Registry
from quiesce.testing.disk import Disk, Op
from quiesce.testing.fuzz import NOTHING, Mess, plain, settings
from quiesce.testing.recorder import Recorder

#: So that snapshots, checkpoints and groups come often.
LIMITS: Final = JournalLimits(
    snapshot_facts=60,
    snapshot_bytes=60_000,
    group=40,
    checkpoint=40_000,
    reserve=512 * 1024,
    margin=0,
)
SETTINGS: Final = settings()


@dataclass
class Past:
    """The turns that there were, and the registry after each; `keys[0]` before the first."""

    keys: list[int] = field(default_factory=list)
    #: The last turn, up to each, that is synced in every mode.
    synced: list[int] = field(default_factory=list)

    def add(self, registry: Registry, turn: list[Fact]) -> None:
        """One more turn has made this of it."""
        self.keys.append(key_of(registry))
        new = len(self.keys) - 1
        if any(type(fact) in SYNCED for fact in turn):
            self.synced.append(new)
        else:
            self.synced.append(self.synced[-1] if self.synced else 0)

    def upto(self, turn: int) -> "Past":
        """The same, without what came later."""
        return Past(self.keys[: turn + 1], self.synced[: turn + 1])


def key_of(registry: Registry) -> int:
    """Equal for registries that are equal but for what no fact speaks of."""
    return hash(plain(registry.freeze(volatile=False, payloads=True)))


class Watched:
    """A journal of which it is noted what goes in and what has come out."""

    def __init__(
        self, journal: Journal, recorder: Recorder, past: Past, registry: Registry
    ) -> None:
        self.durability = journal.durability
        self._journal = journal
        self._recorder = recorder
        self._past = past
        #: Another registry, to which each turn is applied.
        self._replica = registry
        #: The last turns of which an effect has come out, and a binding one.
        self.acked = self.told = self._taken = len(past.keys) - 1
        #: The effects by which each turn is known when it comes out again.
        self._markers: dict[int, int] = {}
        self._kept: list[Effect] = []

    def append(self, facts: list[Fact], effects_: list[Effect]) -> None:
        """Take one turn."""
        more = list(effects_)
        if facts:
            for fact in facts:
                self._replica.apply(fact)
            self._past.add(self._replica, facts)
            self._taken += 1
            self._recorder.mark(f"taken {self._taken}")
            markers: list[Effect] = [
                effects.Log("DEBUG", f"turn {self._taken}"),
                effects.AnswerDone(SessionId(b""), RequestNumber(self._taken)),
            ]
            self._kept += markers
            self._markers.update((id(each), self._taken) for each in markers)
            more += markers
        self._journal.append(facts, more)

    def committed(self) -> list[Effect]:
        """What came out, but for the marks."""
        ready = self._journal.committed()
        for effect in ready:
            turn = self._markers.get(id(effect), 0)
            self.acked = max(self.acked, turn)
            if type(effect) in effects.BINDING:
                self.told = max(self.told, turn)
        if ready:
            self._recorder.mark(f"acked {self.acked}")
            self._recorder.mark(f"told {self.told}")
        return [effect for effect in ready if id(effect) not in self._markers]

    def settle(self, core: Any, patience: float = 30.0) -> None:
        """Wait until all that was taken has come out."""
        deadline = time.monotonic() + patience
        core.leave()
        while self.told < self._taken:
            assert time.monotonic() < deadline, f"turn {self._taken} is not committed"
            select.select([self._journal.fileno()], [], [], 1.0)
            core.leave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


@dataclass
class Recording:
    """One life of a broker, or several: from `start` on, by these notes."""

    mode: str
    boot: str
    start: Disk
    past: Past
    ops: list[Op]
    #: The epochs that somebody had heard of before.
    epoch: int = 0
    #: The journal said from the start that something may be missing.
    doubtful: bool = False
    #: The turn that somebody had heard of before, and the one that was told as lasting.
    acked: int = 0
    told: int = 0


def record(
    folder: Path, mode: str, chance: random.Random, *, lives: int = 3, steps: int = 40
) -> Recording:
    """A broker that works, is ended in order and started again; in its last life the disk is full for a while."""
    recorder = Recorder(folder)
    past = Past()
    past.keys.append(key_of(recover(SETTINGS, NOTHING)))
    past.synced.append(0)
    with recorder.recording():
        for life in range(lives):
            live(recorder, folder, mode, "boot-1", past, chance, steps, full=life == lives - 1)
    return Recording(mode, "boot-1", Disk(), past, recorder.ops)


def live(
    recorder: Recorder,
    folder: Path,
    mode: str,
    boot: str,
    past: Past,
    chance: random.Random,
    steps: int,
    *,
    full: bool,
) -> None:
    """One life: start, work, an orderly end."""
    journal, recovered = open_journal(
        folder, mode, boot_id=boot, limits=LIMITS, connect=recorder.connect
    )
    replica = recover(SETTINGS, recovered)
    assert key_of(replica) == past.keys[-1], "a life begins with another registry"
    for what in ("acked", "told"):
        recorder.mark(f"{what} {len(past.keys) - 1}")  # from here on it acts on what it has read
    watched = Watched(journal, recorder, past, replica)
    assert isinstance(journal, DiskJournal)
    try:
        epoch = next_epoch(folder, recovered.last_epoch)
        recorder.mark(f"epoch {epoch}")
        mess = Mess(
            chance,
            hostile=0.0,
            journal=cast("Journal", watched),
            recovered=recovered,
            epoch=epoch,
        )
        mess.jumps = (0.01, 0.6, 3.0)
        watched.settle(mess.core)  # nobody hears of an epoch before
        journal.commit_here(contextlib.nullcontext)
        mess.make_busy()
        for step in range(steps):
            if full and step == steps // 3:
                recorder.fill()
            if full and step == 2 * steps // 3:
                recorder.capacity, recorder.given_up = None, 0
            mess.step()
            if step % 4 or full:
                watched.settle(mess.core)
        watched.settle(mess.core)
    except JournalFailedError:
        if not full:  # else its reserve is used up, and the next life goes on from what stands
            raise
    finally:
        journal.close()
