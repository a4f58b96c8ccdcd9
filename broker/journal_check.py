"""Examining a journal, and going on with what is left of a damaged one: what `quiesce doctor` does.

Only while the state folder is locked: nobody else may have the journal open.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quiesce.broker.journal import exists, read_epoch, sync_folder
from quiesce.broker.journal_head import NAME as HEAD, Head, HeadFile
from quiesce.broker.journal_open import is_complete
from quiesce.broker.journal_read import NAME, SCHEMA, Found, read_journal
from quiesce.broker.journal_rows import PART, connect
from quiesce.registry.facts import Fact
from quiesce.registry.invariants import check as check_registry
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.machine import Registry

_EVERYTHING: Final = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What the registry that a journal makes holds. `closures`: those that the next start finds closed."""

    live_tasks: int
    open_stops: int
    closures: int
    sessions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """All that can be said of a journal. Sizes in bytes, `rows` and `facts` after the snapshot.

    `trouble`: what is wrong, "" if it is whole; `trouble_from`: the first row that is not good, 0 if none is to
    blame; `newer`: only that a newer quiesce has written it; `beyond`: rows and facts that stand there and after,
    None if nobody can say. `complete`: nothing that was acknowledged can be missing. `counts`: of the good part;
    None if there is no telling.
    """

    folder: str
    exists: bool
    whole: bool
    trouble: str
    trouble_from: int
    mendable: bool
    newer: bool
    beyond: tuple[int, int] | None
    durability: str | None
    epoch: int
    ended_in_order: bool
    complete: bool
    sizes: dict[str, int]
    snapshot_row: int | None
    snapshot_bytes: int
    rows: int
    facts: int
    last_row: int
    expected_row: int | None
    payloads: int
    payload_bytes: int
    counts: Counts | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What a repair did: where the damaged files went, and what was given up, in words."""

    saved: str
    kept: str
    given_up: str


def examine(folder: Path, boot_id: str) -> tuple[Examination, Found]:
    """Read and check everything; nothing is changed.

    Raises:
        AlreadyLockedError: another process has it open.
        OSError: it can't be read.
    """
    found = read_journal(folder, boot_id)
    epoch_trouble = ""
    epoch = 0
    try:
        epoch = read_epoch(folder)
    except ValueError as error:
        epoch_trouble = str(error)
    head = found.head
    epoch = max(epoch, found.last.epoch, head.epoch if head else 0)
    counts = _counts(found)
    if epoch_trouble:
        found.harm(epoch_trouble, 0)
    damage = found.damage
    return Examination(
        folder=str(folder),
        exists=found.exists,
        whole=damage is None,
        trouble=damage.what if damage else "",
        trouble_from=damage.seq if damage else 0,
        mendable=damage.mendable if damage else True,
        newer=damage.newer if damage else False,
        beyond=found.beyond,
        durability=head.mode if head else None,
        epoch=epoch,
        ended_in_order=bool(head and head.clean),
        complete=damage is None and is_complete(found, used=epoch > 0, boot_id=boot_id),
        sizes=_sizes(folder),
        snapshot_row=found.manifest.seq if found.manifest else None,
        snapshot_bytes=found.snapshot_bytes,
        rows=len(found.rows),
        facts=len(found.facts),
        last_row=found.last.seq,
        expected_row=head.seq if head else None,
        payloads=len(found.blobs),
        payload_bytes=sum(map(len, found.blobs.values())),
        counts=counts,
    ), found


def _sizes(folder: Path) -> dict[str, int]:
    names = (NAME, f"{NAME}-wal")
    return {name: (folder / name).stat().st_size for name in names if exists(folder / name)}


# --- what the facts make --------------------------------------------------------------------------


def _counts(found: Found) -> Counts | None:
    """Replay the good part. A fact that can't be applied is damage, from its row on."""
    names: set[str] = set()
    kinds: set[str] = set()
    for fact in found.facts:
        _note_names(fact, names, kinds)
    try:
        registry = _begin(found, names, kinds)
    except Exception as error:  # whatever it stumbles over
        found.harm(f"its snapshot makes no registry: {error!r:.300}", 1, mendable=False)
        return None
    for row in found.rows:
        for fact in row.facts:
            try:
                registry.apply(fact)
            except Exception as error:  # whatever it stumbles over
                what = f"row {row.seq} can't be applied: {type(fact).__name__}: {error!r:.300}"
                later = [each for each in found.rows if each.seq >= row.seq]
                found.beyond = len(later), sum(len(each.facts) for each in later)
                found.harm(what, row.seq)
                return None
    try:
        check_registry(registry, volatile=False)
    except Exception as error:  # whatever rule is broken
        found.harm(f"the registry that it makes breaks a rule: {error!s:.500}", 0, mendable=False)
    state = registry.state
    return Counts(
        live_tasks=len(state.tasks),
        open_stops=len(state.open_stops),
        # What an orderly stop of the system has closed opens when the next begins.
        closures=sum(not closure.system for closure in state.closures.values()),
        sessions=len(state.sessions),
    )


def _note_names(fact: Fact, runtimes: set[str], kinds: set[str]) -> None:
    row = getattr(fact, "row", None)
    for name in (getattr(fact, "runtime", None), getattr(row, "runtime", None)):
        if name is not None:
            runtimes.add(name)
    kind = getattr(row, "kind", None)
    if kind is not None:
        kinds.add(kind)


def _begin(found: Found, runtimes: set[str], kinds: set[str]) -> Registry:
    """The registry of the snapshot, or an empty one. It knows each name, and no limits."""
    while True:
        configuration = {
            "runtimes": [RuntimeLimits(name=name) for name in sorted(runtimes)],
            "kinds": [KindLimits(name=name) for name in sorted(kinds)],
            "history": _EVERYTHING,
            "payload_limit": _EVERYTHING,
        }
        if found.frozen is None:
            return Registry(**configuration)  # type: ignore[arg-type]  # as it takes them
        try:
            registry = Registry.thaw(found.frozen, **configuration)
        except KeyError as error:  # a runtime that only the snapshot knows
            name = error.args[0]
            if not isinstance(name, str) or name in runtimes:
                raise
            runtimes.add(name)
            continue
        for task in registry.state.tasks.values():
            kind = task.spawn.kind
            registry.state.kinds.setdefault(kind, KindLimits(name=kind))
        return registry


# --- repair ---------------------------------------------------------------------------------------


def repair(found: Found, boot_id: str) -> Repair:
    """Put the files aside, and make a journal of what is good. It counts as incomplete from then on.

    Raises:
        OSError, sqlite3.Error: that can't be done; the damaged files are where they were, or aside.
    """
    assert found.damage is not None
    assert found.damage.mendable
    folder = found.folder
    if found.damage.seq:
        good = [row for row in found.rows if row.seq < found.damage.seq]
        if len(good) < len(found.rows):
            found.rows = good
    saved = _put_aside(folder)
    last, checksum, epoch = _rebuild(found, saved)
    head = found.head or Head(mode="crash")
    try:
        written = read_epoch(folder)
    except ValueError:
        written = 0
    epoch = max(epoch, head.epoch, found.last.epoch)
    if written < epoch:
        (folder / "epoch").write_text(f"{epoch + 1}\n")
    (folder / HEAD).unlink(missing_ok=True)
    file = HeadFile(folder)
    try:
        mended = Head(
            seq=last,
            synced=last,
            checksum=checksum,
            epoch=epoch,
            mode="crash" if head.mode == "none" else head.mode,
            doubtful=True,
            boot=boot_id,
        )
        file.write(mended, sync=True, both=True)
    finally:
        file.close()
    sync_folder(folder)
    kept = f"everything up to row {last}" if last else "nothing"
    return Repair(saved=str(saved), kept=kept, given_up=_given_up(found, last))


def _put_aside(folder: Path) -> Path:
    number = 1
    while exists(folder / f"journal.damaged-{number}"):
        number += 1
    saved = folder / f"journal.damaged-{number}"
    saved.mkdir(mode=0o700)
    for name in (NAME, f"{NAME}-wal", HEAD, "epoch"):
        if exists(folder / name):
            shutil.copy2(folder / name, saved / name)
            with (saved / name).open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(saved)
    return saved


def _rebuild(found: Found, saved: Path) -> tuple[int, bytes, int]:
    """A new file with what is good, in the place of the old one: its last row, checksum and epoch."""
    path = found.folder / NAME
    fresh = found.folder / f"{NAME}.new"
    fresh.unlink(missing_ok=True)
    last, checksum, epoch = 0, bytes(16), 0
    with closing(connect(fresh)) as new:
        new.execute("PRAGMA locking_mode = EXCLUSIVE")
        new.execute("PRAGMA auto_vacuum = INCREMENTAL")
        new.execute("PRAGMA journal_mode = WAL")
        new.execute("PRAGMA synchronous = FULL")
        new.execute("BEGIN")
        for statement in SCHEMA:
            new.execute(statement)
        if found.exists:
            last, checksum, epoch = _copy_good(found, saved / NAME, new)
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    for more in ("-wal", "-shm"):
        Path(f"{fresh}{more}").unlink(missing_ok=True)
        Path(f"{path}{more}").unlink(missing_ok=True)
    fresh.replace(path)
    return last, checksum, epoch


def _copy_good(found: Found, old_path: Path, new: sqlite3.Connection) -> tuple[int, bytes, int]:
    last, checksum, epoch = 0, bytes(16), 0
    for key, frame in found.blobs.items():
        for part in range(found.parts[key]):
            piece = memoryview(frame.data)[part * PART : (part + 1) * PART]
            new.execute(
                "INSERT INTO blobs VALUES (?,?,?,?)", (key + part, part, frame.digest, piece)
            )
    with closing(connect(old_path)) as old:
        if found.manifest is not None:
            first, end = found.manifest.first, found.manifest.first + found.manifest.chunks
            new.execute(
                "INSERT INTO snapshots VALUES (?,?,?,?,?,?,?,?)",
                (*found.manifest, found.manifest.seal()),
            )
            new.executemany(
                "INSERT INTO chunks VALUES (?,?,?)",
                old.execute("SELECT * FROM chunks WHERE id >= ? AND id < ?", (first, end)),
            )
            last, checksum, epoch = (
                found.manifest.seq,
                found.manifest.chain,
                found.manifest.epoch,
            )
        if found.rows:
            new.executemany(
                "INSERT INTO facts VALUES (?,?,?,?,?,?,?)",
                old.execute(
                    "SELECT * FROM facts WHERE seq > ? AND seq <= ? ORDER BY seq",
                    (last, found.rows[-1].seq),
                ),
            )
            last, epoch, checksum = new.execute(
                "SELECT seq, epoch, checksum FROM facts ORDER BY seq DESC LIMIT 1"
            ).fetchone()
    return last, checksum, epoch


def _given_up(found: Found, last: int) -> str:
    """What is missing from now on, as exactly as can be said."""
    assert found.damage is not None
    rows, facts = found.beyond or (None, None)
    until = max(last + (rows or 0), found.head.seq if found.head else 0)
    if until <= last:
        if found.head is not None:
            return "nothing that is known of"
        return f"whatever came after row {last}: nobody can say whether anything did"
    what = f"row {until}" if until == last + 1 else f"rows {last + 1} to {until}"
    if facts and rows == until - last:
        return f"{what}, which held {facts} fact{'s' * (facts != 1)}"
    return f"{what}; how many facts they held is not known"
