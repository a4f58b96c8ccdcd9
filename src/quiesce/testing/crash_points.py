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
    - Whatever had been acknowledged is there; after a loss of power in mode "crash" whatever had been told as
      lasting, and the rest is there too unless the journal says that it may be incomplete.
    - Its own rules hold. The epoch is higher than any that somebody has heard of.
    - It can be written on, and read again.

Some of the recoveries are noted likewise, and cut off at each of their points.
"""

import argparse
import copy
import json
import os
import random
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
from quiesce.broker.journal import Journal, JournalDamagedError, next_epoch
from quiesce.broker.journal_open import open_journal
from quiesce.registry import facts as fact_types
from quiesce.registry.invariants import check
from quiesce.registry.machine import Registry
from quiesce.testing.arguments import count
from quiesce.testing.crash_work import LIMITS, SETTINGS, Recording, key_of, live, record
from quiesce.testing.disk import SECTOR, Disk, Files, Op, put
from quiesce.testing.recorder import Recorder, can_record

MODES: Final = ("crash", "power-loss")
#: Where a write is cut: in the header of a frame, at a sector, in the middle, one byte before its end.
_CUTS: Final = (1, 24, SECTOR, -1)


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
    #: The last turn that was told as lasting.
    told: int
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

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.variants.items()))
        head = (
            f"crash points: {self.points} points, {sum(self.variants.values())} crashes ({kinds}), "
            f"{self.nested} recoveries cut off in turn, in {self.seconds:.0f} s"
        )
        lines = [
            head,
            *[f"  FAILED {failure}" for failure in self.failures[:20]],
            f"crash points: {len(self.failures) or 'no'} failures",
        ]
        return "\n".join(lines) + "\n"


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
    acked, told, taken = recording.acked, recording.told, _first_turn(recording)
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
            elif word == "told":
                told = int(count)
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
            told=told,
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
            base.promised = recording.past.synced[told]
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


def record_recovery(
    folder: Path, kind: str, made: Made, chance: random.Random, steps: int
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
        live(recorder, folder, mode, made.boot, past, chance, steps, full=False)
    return Recording(
        mode=mode,
        boot=made.boot,
        start=disk,
        past=past,
        ops=recorder.ops,
        epoch=made.epoch,
        doubtful=made.doubtful,
        acked=min(made.least, made.turn),
        told=min(made.told, made.turn),
    )


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
                elif more and chance.random() < (0.2 if kind == "clean" else 0.01):
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
    parser.add_argument("--every", type=count, default=1, help="try every N-th point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=count, default=40, help="of work in each life of the broker"
    )
    chosen = parser.parse_args(arguments)
    if not can_record():
        sys.stderr.write("crash-points: this Python does not let SQLite's functions be reached\n")
        return 1
    folder = scratch()
    try:
        report = explore(folder, seed=chosen.seed, every=chosen.every, steps=chosen.steps)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n" if chosen.json else str(report))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
