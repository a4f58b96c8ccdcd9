"""Opening a journal: read what is there, judge it, go on with it.

Before the broker's epoch is raised: a state folder without an epoch is one that nobody has used.
"""

from pathlib import Path
from typing import Final

from quiesce.broker.journal import (
    Journal,
    JournalDamagedError,
    JournalLimits,
    MemoryJournal,
    Recovered,
    read_epoch,
    sync_folder,
)
from quiesce.broker.journal_head import NAME as HEAD, Head, HeadFile
from quiesce.broker.journal_read import NAME, Found, read_journal
from quiesce.broker.journal_rows import Connect, connect as plain_connect
from quiesce.broker.journal_space import NAME as RESERVE, make_room
from quiesce.broker.journal_store import Store
from quiesce.broker.journal_thread import DiskJournal

#: A rollback journal is there only while the file is being made.
_SQLITE: Final = (NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}-journal")
_FILES: Final = (*_SQLITE, RESERVE, HEAD, f"{HEAD}.new")


def open_journal(
    state: Path,
    durability: str,
    *,
    boot_id: str,
    limits: JournalLimits | None = None,
    connect: Connect = plain_connect,
) -> tuple[Journal, Recovered]:
    """The journal of this state folder, and what it holds. Call it before `next_epoch`.

    With durability "none" what an earlier broker has journalled is recovered once; it no longer counts as
    soon as the first fact is decided without a journal.

    Raises:
        JournalDamagedError: it does not hold what was written; nothing was changed.
        AlreadyLockedError: another process has it open.
        OSError: the folder or a file in it can't be read or written.
        ValueError: the file `epoch` holds no number.
    """
    used = read_epoch(state) > 0
    make_room(state)
    found = read_journal(state, boot_id)
    if found.damage is not None:
        raise JournalDamagedError(found.verdict())
    complete = is_complete(found, used=used, boot_id=boot_id)
    recovered = Recovered(
        snapshot=found.frozen,
        facts=found.facts,
        last_epoch=max(found.last.epoch, found.head.epoch if found.head else 0),
        complete=complete,
        words=describe(found, complete),
    )
    if durability == "none":
        mark = _Mark(state, found, boot_id=boot_id, doubtful=not complete)
        return MemoryJournal(mark), recovered
    limits = limits or JournalLimits()
    if not found.exists:  # what is there does not count, or its making was interrupted
        for name in _SQLITE:
            (state / name).unlink(missing_ok=True)
    store = Store(
        found,
        durability=durability,
        boot_id=boot_id,
        doubtful=not complete,
        limits=limits,
        connect=connect,
    )
    return DiskJournal(store, durability, limits), recovered


def discard_journal(state: Path) -> None:
    """Remove the files of a journal that was never used, of a broker that could not start.

    Raises:
        OSError: they can't be removed.
    """
    for name in _FILES:
        (state / name).unlink(missing_ok=True)


def is_complete(found: Found, *, used: bool, boot_id: str) -> bool:
    """Whether nothing that was acknowledged can be missing. `used`: there was a broker here before."""
    head = found.head
    if head is None:
        return not used
    if head.doubtful or found.lost:
        return False
    if head.clean:
        return True
    if head.mode == "none":
        return False
    return head.mode == "power-loss" or head.boot == boot_id


def describe(found: Found, complete: bool) -> str:
    """What was found, for the log."""
    if not found.exists:
        words = "no journal"
    else:
        words = f"{len(found.facts)} facts in {len(found.rows)} rows, up to row {found.last.seq}"
        if found.manifest is not None:
            words = f"a snapshot as of row {found.manifest.seq}, then {words}"
    if found.lost:
        words += (
            f"; {found.lost} rows before it were lost with the machine's memory, as durability"
            ' "crash" allows'
        )
    if not complete:
        words += "; what was acknowledged before may be missing from it"
    return words


class _Mark:
    """Notes in the head what became of a broker without journal: from its first fact on, and at its end."""

    def __init__(self, state: Path, found: Found, *, boot_id: str, doubtful: bool) -> None:
        self._state = state
        self._head = found.head or Head()
        self._boot = boot_id
        self._doubtful = doubtful
        self._began = False

    def __call__(self, what: str) -> None:
        if what == "began":
            self._began = True
        elif what == "vouched":
            self._doubtful = False
        if not self._began:
            return
        head = Head(
            epoch=self._head.epoch,
            mode="none",
            clean=what == "clean",
            doubtful=self._doubtful,
            boot=self._boot,
        )
        file = HeadFile(self._state)
        try:
            file.write(head, sync=True, both=True)
        finally:
            file.close()
        sync_folder(self._state)
