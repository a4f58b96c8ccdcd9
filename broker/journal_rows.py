"""The journal's one connection to SQLite: rows of facts, blobs, and SQLite's log kept short.

A group of turns is one row, and one commit. It is synced to the disk always (power-loss), or (crash) when it
holds a fact of SYNCED, unless that is left for later. When the disk is full a commit is tried once more, in the
room of the reserve: that is no I/O error, after which nothing is ever tried again.
"""

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from quiesce.broker.journal import JournalFailedError, JournalLimits, sync_folder
from quiesce.broker.journal_head import MODES, Head, HeadFile
from quiesce.broker.journal_read import (
    NAME,
    SCHEMA,
    Found,
    Position,
    as_os_error,
    chain_row,
    digest_of,
)
from quiesce.broker.journal_space import Space, is_full
from quiesce.protocol.fact_codec import FORMAT, BlobRef, FactPacker
from quiesce.protocol.frames import Frame, Payload
from quiesce.registry import facts as fact_types
from quiesce.registry.facts import Fact, weight as fact_weight

#: Epochs, closures and completed stops are on the disk before anyone is told of them, in every mode.
SYNCED: Final[frozenset[type]] = frozenset(
    {
        fact_types.EpochStarted,
        fact_types.StopOpened,
        fact_types.StopEnded,
        fact_types.BlockReleased,
        fact_types.ScopesReopened,
        fact_types.SystemStopping,
    }
)
#: Bytes of one part of a blob.
PART: Final = 8 * 2**20
#: Roughly what a commit adds to SQLite's log beside what it says: pages, most of them those of the one before.
OVERHEAD: Final = 8192
#: So many times what is to be moved into its file SQLite's log may hold: small commits say little and log much.
_AGAIN_AND_AGAIN: Final = 8
#: While the disk is full the log is made short more often: its room serves the next commits.
_SHORT_LOG: Final = 2**20
_INSERT_ROW: Final = (
    "INSERT INTO facts (seq, version, epoch, mode, count, body, checksum) VALUES (?,?,?,?,?,?,?)"
)
_INSERT_PART: Final = "INSERT INTO blobs (id, part, digest, data) VALUES (?,?,?,?)"

Connect = Callable[[Path], sqlite3.Connection]


def connect(path: Path) -> sqlite3.Connection:
    """A connection that never waits for another one, and begins no transactions by itself."""
    return sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)


class Rows:
    """Where facts are written: the part of a `Store` that writes no snapshots.

    Made in the main thread, then used by whoever has the journal's lock; `bind` by its thread at any time.
    """

    def __init__(
        self,
        found: Found,
        *,
        durability: str,
        boot_id: str,
        doubtful: bool,
        limits: JournalLimits,
        connect: Connect = connect,
    ) -> None:
        """Go on with what was found, or begin.

        Raises:
            AlreadyLockedError: another process has it open.
            OSError: it can't be written.
        """
        self._folder = found.folder
        self._path = found.folder / NAME
        self._limits = limits
        self._mode = MODES.index(durability)
        self._always = durability == "power-loss"
        self._boot = boot_id
        self._doubtful = doubtful
        self.last = found.last
        self._epoch = max(found.last.epoch, found.head.epoch if found.head else 0)
        #: All rows up to here are on the disk, whatever happens to the machine; see `_sync_found`.
        self._synced = found.last.seq
        #: All and only the blobs that something may name, by digest; those that were found are verified.
        self._known = {
            frame.digest or b"": BlobRef(key, found.parts[key], len(frame), frame.digest or b"")
            for key, frame in found.blobs.items()
        }
        #: The blobs that facts since the cut of the last snapshot name; and the set that is being added to.
        self._since_cut: set[int] = set()
        self._naming = self._since_cut
        self._fresh: list[tuple[BlobRef, Payload]] = []
        self._packer = FactPacker(self._place)
        self.tail_facts = sum(fact_weight(fact) for row in found.rows for fact in row.facts)
        self.tail_bytes = found.tail_bytes
        #: Since SQLite's log was made short: bytes to be moved into its file, and bytes in the log.
        self._to_move = self._logged = 0
        self._sync: bool | None = None
        #: Guards the head and `_synced`, which `bind` uses in the midst of a commit.
        self._head_lock = threading.Lock()
        self.space = Space(self._folder, limits)
        try:
            self._connection = connect(self._path)
            try:
                self._prepare(found)
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise as_os_error(error, self._path) from error
        try:
            self._sync_found()
            self._head = HeadFile(self._folder)
            self._write_head(sync=True, both=True)
            sync_folder(self._folder)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, found: Found) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        if not found.exists:
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise OSError(f"{self._path}: SQLite can't keep its log here (journal mode {mode})")
        execute("PRAGMA wal_autocheckpoint = 0")
        execute(f"PRAGMA journal_size_limit = {2 * _AGAIN_AND_AGAIN * self._limits.checkpoint}")
        execute("PRAGMA secure_delete = OFF")
        self._set_sync(True)
        execute("BEGIN EXCLUSIVE")
        if not found.exists:
            for statement in SCHEMA:
                execute(statement)
        self._delete_leftovers(found)
        execute("COMMIT")
        (highest,) = execute("SELECT coalesce(max(id), 0) FROM blobs").fetchone()
        self._next_blob = highest + 1

    def _sync_found(self) -> None:
        """What was read may be in the machine's memory alone, if a broker was killed before its sync: from now on
        others are told of it, and the head says that it is there.
        """
        self.sync_log()

    def sync_log(self) -> None:
        """Have what is in SQLite's log on the disk. Commits may go on meanwhile, unlike while SQLite does so before
        it moves its log. (It locks its file, not its log.)
        """
        try:
            fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _delete_leftovers(self, found: Found) -> None:
        """What an interrupted snapshot has left, and blobs that nothing names (so: that nobody verified)."""
        execute = self._connection.execute
        seq, first, end = 0, 0, 0
        if found.manifest is not None:
            seq, first = found.manifest.seq, found.manifest.first
            end = first + found.manifest.chunks
        execute("DELETE FROM facts WHERE seq <= ?", (seq,))
        execute("DELETE FROM snapshots WHERE seq <> ?", (seq,))
        execute("DELETE FROM chunks WHERE id < ? OR id >= ?", (first, end))
        kept = {key + part for key, parts in found.parts.items() for part in range(parts)}
        for (key,) in execute("SELECT id FROM blobs").fetchall():
            if key not in kept:
                execute("DELETE FROM blobs WHERE id = ?", (key,))

    # --- commits ----------------------------------------------------------------------------------

    def commit(self, facts: list[Fact], *, later: bool = False) -> None:
        """Make these facts safe, as one row. `later`: not from what happens to the machine, see `bind`.

        Raises:
            JournalFailedError: they can't be: an epoch that goes back.
            FactError: they can't be written down.
            sqlite3.Error, OSError: the disk.
        """
        sync, epoch = self._always, self._epoch
        self._naming = self._since_cut
        pieces = []
        for fact in facts:
            if type(fact) in SYNCED:
                sync = sync or not later
                if type(fact) is fact_types.EpochStarted:
                    if fact.epoch < epoch:
                        raise JournalFailedError(f"epoch {fact.epoch} after epoch {epoch}")
                    epoch = fact.epoch
            pieces.append(self._packer.fact(fact))
        body = b"".join(pieces)
        seq = self.last.seq + 1
        head = (seq, FORMAT, epoch, self._mode, len(facts))
        checksum = chain_row(self.last.checksum, *head, body)
        size = len(body) + self._fresh_size()
        if size > 2**20:
            self.space.look(size, now=True)
        self._set_sync(sync)
        self._write(_INSERT_ROW, (*head, body, checksum))
        self.last = Position(seq, checksum, epoch)
        self._epoch = epoch
        if sync:
            self._synced = seq
        self._persist(self._write_head, sync)
        self.tail_facts += sum(map(fact_weight, facts))
        self.tail_bytes += size
        self._has_logged(size)

    def bind(self, seq: int) -> None:
        """Have all rows up to this one on the disk, and in the head that they are. While commits go on."""
        if self._synced < seq:
            last = self.last.seq
            self.sync_log()
            self._write_head(sync=False, synced=last)
            self._head.sync()

    def keep_short(self) -> None:
        """Move SQLite's log into its file, if it has grown long; look at the disk now and then."""
        self.space.look()
        if self.is_long:
            self._checkpoint("RESTART")

    @property
    def is_long(self) -> bool:
        """Whether SQLite's log has grown long."""
        limit = self._limits.checkpoint
        if not self.space.roomy:
            return self._logged >= min(limit, _SHORT_LOG)
        return self._to_move >= limit or self._logged >= _AGAIN_AND_AGAIN * limit

    def _has_logged(self, size: int) -> None:
        self._to_move += size
        self._logged += size + OVERHEAD

    def vouch(self) -> None:
        """Nothing that is missing matters any more."""
        self._doubtful = False
        self._persist(lambda: self._write_head(sync=True, both=True))

    def close(self) -> None:
        """Mark the end as an orderly one."""
        self._checkpoint("TRUNCATE")
        self._connection.close()
        self._write_head(sync=True, both=True, clean=True)
        self._close_head()

    def abandon(self) -> None:
        """Close what is open, after a failure."""
        self._connection.close()
        self._close_head()

    def _close_head(self) -> None:
        with self._head_lock:
            self._head.close()

    def _write(self, statement: str, values: tuple[Any, ...], *, reserved: bool = True) -> None:
        """One row, with the blobs that it was the first to name; if need be where the reserve was."""
        if not self._fresh:
            self._persist(self._connection.execute, statement, values, reserved=reserved)
            return
        blobs, self._fresh = self._fresh, []

        def write() -> None:
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            for ref, payload in blobs:
                view = memoryview(payload.data if isinstance(payload, Frame) else payload)
                for part in range(ref.parts):
                    piece = view[part * PART : (part + 1) * PART]
                    execute(_INSERT_PART, (ref.id + part, part, ref.digest, piece))
            execute(statement, values)
            execute("COMMIT")

        try:
            self._persist(write, reserved=reserved)
        except (sqlite3.Error, OSError):
            for ref, _ in blobs:
                del self._known[ref.digest]  # it stands nowhere
            raise

    def _persist(
        self, write: Callable[..., object], *arguments: Any, reserved: bool = True
    ) -> None:
        """Write; once more where the reserve was, if the disk is full."""
        try:
            write(*arguments)
        except (sqlite3.Error, OSError) as error:
            if not is_full(error):
                raise
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if not reserved or not self.space.give_up():
                raise
            write(*arguments)

    def _write_head(
        self, sync: bool, both: bool = False, clean: bool = False, synced: int = 0
    ) -> None:
        """`synced`: this row is on the disk now, too."""
        with self._head_lock:
            self._synced = max(self._synced, synced)
            last = self.last
            head = Head(
                last.seq,
                self._synced,
                last.checksum,
                self._epoch,
                MODES[self._mode],
                clean,
                self._doubtful,
                self._boot,
            )
            self._head.write(head, sync=sync, both=both)

    def _set_sync(self, sync: bool) -> None:
        if sync is not self._sync:
            self._sync = sync
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")

    def _checkpoint(self, how: str) -> None:
        """Without room on the disk it stays undone, and does no harm: the log holds all."""
        self._to_move = self._logged = 0
        try:
            busy, logged, moved = self._connection.execute(
                f"PRAGMA wal_checkpoint({how})"
            ).fetchone()
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            self.space.give_up()
            return
        if not busy and logged == moved:
            self._synced = self.last.seq  # a checkpoint syncs the log, then the file

    # --- blobs ------------------------------------------------------------------------------------

    def _place(self, payload: Payload) -> BlobRef:
        """Where this payload stands: where it stood before, or with the next row."""
        data = payload.data if isinstance(payload, Frame) else payload
        digest = payload.digest if isinstance(payload, Frame) else None
        if digest is None:
            digest = digest_of(data)
            if isinstance(payload, Frame):
                payload.digest = digest
        ref = self._known.get(digest)
        if ref is None:
            parts = max(1, -(-len(data) // PART))
            ref = BlobRef(self._next_blob, parts, len(data), digest)
            self._next_blob += parts
            self._known[digest] = ref
            self._fresh.append((ref, payload))
        self._naming.add(ref.id)
        return ref

    def _fresh_size(self) -> int:
        return sum(ref.size for ref, _ in self._fresh) if self._fresh else 0
