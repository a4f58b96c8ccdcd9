"""Every point at which a broker's journal can be cut off, tried: is everything there that somebody was told?

    python -m quiesce.testing.crash_points [--json] [--every N] [--seed SEED]

A broker's core works on a real journal, in a folder where each write and each sync is noted (see `disk`). Then,
for every note, the folder is made as it would be

    clean   after kill -9 at this point;
    torn    after a kill in the midst of the write that comes next;
    lost    after a loss of power: what is not synced has arrived or not, as far as it pleases,

and a journal is opened on it. What must be true then:

    - It is opened; a loss that was not promised away is never silent.
    - The registry is the one after some turn: whole turns, in order, and none that never was.
    - Whatever had been acknowledged is there; after a loss of power in mode "crash" all that had been synced,
      and the rest is there too unless the journal says that it may be incomplete.
    - Its own rules hold. The epoch is higher than any that somebody has heard of.
    - It can be written on, and read again.

Some of the recoveries are noted likewise, and cut off at each of their points.
"""

import argparse
import copy
import json
import os
import random
import select
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from quiesce.broker.core import recover
from quiesce.broker.journal import (
    Journal,
    JournalDamagedError,
    JournalFailedError,
    JournalLimits,
    next_epoch,
)
from quiesce.broker.journal_open import open_journal
from quiesce.broker.journal_store import SYNCED
from quiesce.registry import effects, facts as fact_types
from quiesce.registry.effects import Effect
from quiesce.registry.facts import Fact
from quiesce.registry.invariants import check
from quiesce.registry.machine import Registry
from quiesce.testing.disk import SECTOR, Disk, Files, Op, Recorder, can_record, put
from quiesce.testing.fuzz import NOTHING, Mess, plain, settings

MODES: Final = ("crash", "power-loss")
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
#: Where a write is cut: in the header of a frame, at a sector, in the middle, one byte before its end.
_CUTS: Final = (1, 24, SECTOR, -1)


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
        self.acked = self._taken = len(past.keys) - 1
        #: The effect by which each turn is known when it comes out again.
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
            marker = effects.Log("DEBUG", f"turn {self._taken}")
            self._kept.append(marker)
            self._markers[id(marker)] = self._taken
            more.append(marker)
        self._journal.append(facts, more)

    def committed(self) -> list[Effect]:
        """What came out, but for the marks."""
        ready = self._journal.committed()
        for effect in ready:
            self.acked = max(self.acked, self._markers.get(id(effect), 0))
        if ready:
            self._recorder.mark(f"acked {self.acked}")
        return [effect for effect in ready if id(effect) not in self._markers]

    def settle(self, core: Any, patience: float = 30.0) -> None:
        """Wait until all that was taken has come out."""
        deadline = time.monotonic() + patience
        core.leave()
        while self.acked < self._taken:
            assert time.monotonic() < deadline, f"turn {self._taken} is not committed"
            select.select([self._journal.fileno()], [], [], 1.0)
            core.leave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


# --- the work -------------------------------------------------------------------------------------


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
            _live(recorder, folder, mode, "boot-1", past, chance, steps, full=life == lives - 1)
    return Recording(mode, "boot-1", Disk(), past, recorder.ops)


def record_recovery(
    folder: Path, kind: str, made: "Made", chance: random.Random, steps: int
) -> Recording:
    """The life after a crash, on the files that it has left."""
    put(made.files, folder)
    disk = _settled(made.files)
    if kind == "clean":  # what was on its way to the disk still is
        disk = copy.deepcopy(made.recording.start)
        for op in made.recording.ops[: made.played]:
            disk.play(op)
    recorder = Recorder(folder)
    mode, past = made.recording.mode, made.recording.past.upto(made.turn)
    with recorder.recording():
        _live(recorder, folder, mode, made.boot, past, chance, steps, full=False)
    return Recording(mode, made.boot, disk, past, recorder.ops, made.epoch, made.doubtful)


def _live(
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
    watched = Watched(journal, recorder, past, replica)
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


# --- the points -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Made:
    """The folder as a crash would have left it, and what must be true of it."""

    recording: Recording
    #: The notes that had been played.
    played: int
    boot: str
    #: At least and at most so many turns; and how many even if the journal says that some may be missing.
    least: int
    most: int
    promised: int
    epoch: int
    files: Files = field(default_factory=dict)
    what: str = ""
    #: Which turn it was, and whether the journal was in doubt, once recovered.
    turn: int = -1
    doubtful: bool = False


@dataclass
class Report:
    """What was tried, and what was found."""

    points: int = 0
    variants: Counter[str] = field(default_factory=Counter)
    #: Recoveries of recoveries.
    nested: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "points": self.points,
            "variants": dict(self.variants),
            "nested_recordings": self.nested,
            "seconds": round(self.seconds, 1),
            "failures": self.failures,
        }


def crashes(
    recording: Recording,
    chance: random.Random,
    *,
    every: int = 1,
    first: int = 0,
    some: int = 2,
) -> Iterator[tuple[str, Made]]:
    """All crashes at every so-many-th note, and at each of the first ones."""
    disk = copy.deepcopy(recording.start)
    acked = taken = _first_turn(recording)
    epoch = recording.epoch
    offset = chance.randrange(every)
    noted = 0
    for number, op in enumerate(recording.ops):
        if op.kind == "mark":
            word, _, count = op.to.partition(" ")
            if word == "taken":
                taken = int(count)
            elif word == "acked":
                acked = int(count)
            else:
                epoch = int(count)
        noted += op.kind != "mark"
        chosen = number % every == offset or noted <= first
        where = f"{recording.mode}, note {number} ({op.kind} {op.name}{op.to})"

        base = Made(
            recording=recording,
            played=number,
            boot=recording.boot,
            least=acked,
            most=taken,
            promised=acked,
            epoch=epoch,
        )
        if chosen and op.kind == "write" and len(op.data) > 1:
            for cut in _CUTS:
                if -1 <= cut < len(op.data):
                    kept = cut % len(op.data)
                    what = f"torn at {where}: {kept} of {len(op.data)} bytes"
                    yield "torn", replace(base, files=disk.torn(op, kept), what=what)
        disk.play(op)
        if not chosen:
            continue
        base.played = number + 1
        what = f"clean at {where}: killed"
        yield "clean", replace(base, files=disk.after_kill(), what=what)
        base.boot += "'"
        if recording.mode == "crash":
            base.promised = recording.past.synced[acked]
        for said, files in disk.losses(chance, some):
            yield "lost", replace(base, files=files, what=f"lost at {where}: {said}")


def _first_turn(recording: Recording) -> int:
    """The turn that stood when the recording began."""
    for op in recording.ops:
        if op.kind == "mark" and op.to.startswith("taken"):
            return int(op.to.split()[1]) - 1
    return len(recording.past.keys) - 1


def judge(kind: str, made: Made, folder: Path, *, deep: bool) -> str | None:
    """What is wrong with the recovery of this crash; None if nothing is. Notes which turn it came to."""
    put(made.files, folder)
    try:
        journal, recovered = open_journal(
            folder, made.recording.mode, boot_id=made.boot, limits=LIMITS
        )
    except JournalDamagedError as error:
        return f"it was refused: {error}"
    except (OSError, ValueError) as error:
        return f"it could not be opened: {error!r}"
    with closing(cast("Any", journal)):
        registry = recover(SETTINGS, recovered)
        check(registry, volatile=False)
        key = key_of(registry)
        past = made.recording.past
        turns = [turn for turn, each in enumerate(past.keys[: made.most + 1]) if each == key]
        if not turns:
            return "the registry that it makes never was"
        made.turn = turns[-1]
        if made.turn < made.promised:
            return f"turn {made.promised} was promised, and turn {made.turn} is the last"
        if made.turn < made.least and recovered.complete:
            return (
                f"turn {made.least} was acknowledged, turn {made.turn} is the last, and the journal says "
                "that nothing is missing"
            )
        if kind != "lost" and not made.recording.doubtful and not recovered.complete:
            return "it says that something may be missing, where nothing can"
        made.doubtful = not recovered.complete
        epoch = next_epoch(folder, recovered.last_epoch)
        if epoch <= made.epoch:
            return f"epoch {epoch} comes after epoch {made.epoch}"
        return _go_on(journal, registry, made, folder, epoch) if deep else None


def _go_on(
    journal: Journal, registry: Registry, made: Made, folder: Path, epoch: int
) -> str | None:
    """Write on it, and read it again."""
    fact = fact_types.EpochStarted(epoch, 1.0, 1.0, made.boot, "", 1.0)
    registry.apply(fact)
    journal.append([fact], [])
    journal.close()
    journal, recovered = open_journal(folder, made.recording.mode, boot_id=made.boot, limits=LIMITS)
    with closing(cast("Any", journal)):
        if key_of(recover(SETTINGS, recovered)) != key_of(registry):
            return "read again after one more turn, it is another registry"
    return None


def explore(
    folder: Path,
    *,
    seed: int = 0,
    modes: tuple[str, ...] = MODES,
    every: int = 1,
    first: int = 0,
    steps: int = 40,
    nested: int = 6,
) -> Report:
    """Record, crash, recover, judge: for each mode.

    Args:
        folder: where all of it is done.
        seed: of what is chosen at random.
        modes: of durability.
        every: only so-many-th notes are points,
        first: and so many first ones.
        steps: of work in each life of the broker.
        nested: so many recoveries are noted, and cut off in turn.
    """
    report = Report()
    began = time.monotonic()
    chance = random.Random(seed)
    for mode in modes:
        live, scratch = folder / f"live-{mode}", folder / "scratch"
        live.mkdir()
        queue = [(record(live, mode, chance, steps=steps), every, nested)]
        while queue:
            recording, pace, more = queue.pop()
            seen: set[int] = set()
            chosen: list[tuple[str, Made]] = []
            for number, (kind, made) in enumerate(
                crashes(recording, chance, every=pace, first=first)
            ):
                seen.add(made.played)
                report.variants[kind] += 1
                try:
                    trouble = judge(kind, made, scratch, deep=number % 5 == 0)
                except Exception as error:  # whatever it is, it is what was looked for
                    trouble = f"it failed: {error!r}"
                if trouble is not None:
                    report.failures.append(f"{made.what}: {trouble}")
                elif more and chance.random() < 0.02:
                    chosen.append((kind, made))
            report.points += len(seen)
            for kind, made in chance.sample(chosen, min(more, len(chosen))):
                report.nested += 1
                again = folder / f"again-{report.nested}"
                try:
                    inner = record_recovery(again, kind, made, chance, steps // 8)
                except Exception as error:  # as above
                    report.failures.append(f"{made.what}: the life after it failed: {error!r}")
                    continue
                queue.append((inner, 3 * pace, 0))
    report.seconds = time.monotonic() - began
    return report


def _settled(files: Files) -> Disk:
    """A disk on which these files have long been."""
    disk = Disk()
    for name, data in files.items():
        disk.play(Op("write", name, 0, data))
        disk.play(Op("sync", name))
    disk.play(Op("folder"))
    return disk


def scratch() -> Path:
    """A new folder, in memory if there is such a place: syncs cost nothing there."""
    shared = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix="q-", dir=shared if os.access(shared, os.W_OK) else None))


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="crash-points", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--every", type=int, default=1, help="try every N-th point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="of work in each life of the broker")
    chosen = parser.parse_args(arguments)
    if not can_record():
        print(
            "crash-points: this Python does not let SQLite's functions be reached", file=sys.stderr
        )
        return 1
    folder = scratch()
    try:
        report = explore(folder, seed=chosen.seed, every=chosen.every, steps=chosen.steps)
    finally:
        shutil.rmtree(folder)
    if chosen.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        tried = ", ".join(f"{count} {kind}" for kind, count in sorted(report.variants.items()))
        print(
            f"crash points: {report.points} points, {sum(report.variants.values())} crashes ({tried}), "
            f"{report.nested} recoveries cut off in turn, in {report.seconds:.0f} s"
        )
        for failure in report.failures[:20]:
            print(f"  FAILED {failure}")
        print(f"crash points: {len(report.failures) or 'no'} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
