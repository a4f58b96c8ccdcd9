"""Reading a journal back, and looking whether it is whole. Changes nothing.

The tables of `journal.sqlite`, in which everything is checked by digests:

    facts      one row for each commit: the facts of whole turns; its checksum is chained to the row before
    blobs      large payloads, in parts; facts and snapshots name them by id and digest
    chunks     the pieces of the snapshot, chained like facts
    snapshots  one row: which chunks they are, and after which row of `facts` it was taken

Rows of `facts` up to the snapshot, and blobs and chunks that nothing names, are left from a deletion that was
interrupted, and do not matter.
"""

import errno
import os
import shlex
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from quiesce.broker.journal import exists
from quiesce.broker.journal_head import Head, read_head
from quiesce.broker.locks import AlreadyLockedError
from quiesce.protocol.fact_codec import BlobRef, FactError, FactReader, NewerFormatError
from quiesce.protocol.frames import Frame
from quiesce.registry.facts import Fact

NAME: Final = "journal.sqlite"
_COLUMNS: Final = {
    "facts": (
        "seq INTEGER PRIMARY KEY",
        "version INTEGER NOT NULL",
        "epoch INTEGER NOT NULL",
        "mode INTEGER NOT NULL",
        "count INTEGER NOT NULL",
        "body BLOB NOT NULL",
        "checksum BLOB NOT NULL",
    ),
    "blobs": (
        "id INTEGER PRIMARY KEY",
        "part INTEGER NOT NULL",
        "digest BLOB NOT NULL",
        "data BLOB NOT NULL",
    ),
    "chunks": ("id INTEGER PRIMARY KEY", "body BLOB NOT NULL", "checksum BLOB NOT NULL"),
    "snapshots": (
        "seq INTEGER PRIMARY KEY",
        "version INTEGER NOT NULL",
        "epoch INTEGER NOT NULL",
        "first INTEGER NOT NULL",
        "chunks INTEGER NOT NULL",
        "chain BLOB NOT NULL",
        "checksum BLOB NOT NULL",
        "seal BLOB NOT NULL",
    ),
}
SCHEMA: Final = tuple(
    f"CREATE TABLE {table} ({', '.join(columns)})" for table, columns in _COLUMNS.items()
)
DIGEST: Final = 16
#: Bytes of a file that has no tables yet, at most.
_UNMADE: Final = 3 * 4096
#: What helps with a journal that a newer quiesce has written.
NEWER: Final = (
    "start that version of quiesce again, or put back the copy of the state folder "
    "from before the upgrade"
)
_ROW: Final = struct.Struct(">16sQQQBQ")
_SEAL: Final = struct.Struct(">QQQQQ16s16s")


def digest_of(data: bytes) -> bytes:
    """The digest of a payload."""
    return blake2b(data, digest_size=DIGEST).digest()


def chain_row(
    before: bytes, seq: int, version: int, epoch: int, mode: int, count: int, body: bytes
) -> bytes:
    """The checksum of a row of facts."""
    made = blake2b(_ROW.pack(before, seq, version, epoch, mode, count), digest_size=DIGEST)
    made.update(body)
    return made.digest()


def chain_chunk(before: bytes, body: bytes) -> bytes:
    """The checksum of a piece of a snapshot."""
    return blake2b(before + body, digest_size=DIGEST).digest()


class Position(NamedTuple):
    """How far a journal goes: its last row."""

    seq: int = 0
    checksum: bytes = bytes(DIGEST)
    epoch: int = 0


NOWHERE: Final = Position()


class Manifest(NamedTuple):
    """The row of `snapshots`: taken after row `seq`, whose checksum is `chain`."""

    seq: int
    version: int
    epoch: int
    first: int
    chunks: int
    chain: bytes
    checksum: bytes

    def seal(self) -> bytes:
        """The digest of all of it."""
        return digest_of(_SEAL.pack(*self))


class Row(NamedTuple):
    """One commit."""

    seq: int
    epoch: int
    facts: list[Fact]


class Damage(NamedTuple):
    """What is wrong, and from which row on. `mendable`: a repair would be right.

    `newer`: nothing is, but a newer quiesce has written it, and this one can't read it.
    """

    what: str
    seq: int
    mendable: bool = True
    newer: bool = False


@dataclass
class Found:
    """What a state folder holds. With `damage`, the rest is what is good, up to it."""

    folder: Path
    head: Head | None = None
    #: There is a journal that counts (not one that a broker without journal has outlived).
    exists: bool = False
    manifest: Manifest | None = None
    frozen: tuple[Any, ...] | None = None
    rows: list[Row] = field(default_factory=list)
    last: Position = NOWHERE
    #: The payloads that something names, by id, and how many rows each takes.
    blobs: dict[int, Frame] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    #: Of them, those that the snapshot names.
    snapshot_blobs: frozenset[int] = frozenset()
    snapshot_bytes: int = 0
    tail_bytes: int = 0
    damage: Damage | None = None
    #: Rows and facts that stand after the damage; None: nobody can say.
    beyond: tuple[int, int] | None = None
    #: The machine has been restarted, and has lost rows that the journal did not promise to keep.
    lost: int = 0

    @property
    def facts(self) -> list[Fact]:
        """All facts after the snapshot."""
        return [fact for row in self.rows for fact in row.facts]

    def harm(self, what: str, seq: int, *, mendable: bool = True, newer: bool = False) -> None:
        """The first damage counts."""
        if self.damage is None:
            self.damage = Damage(what, seq, mendable and not newer, newer)

    def verdict(self) -> str:
        """The damage in words, with the way on."""
        assert self.damage is not None
        if self.damage.newer:
            return (
                f"the journal in {self.folder} is of a newer quiesce: {self.damage.what}. "
                f"Nothing was changed: {NEWER}"
            )
        if self.damage.mendable:
            # With the folder: that of the configuration in the shell where this is typed may be another.
            examine = shlex.join(("quiesce", "doctor", str(self.folder.absolute())))
            advice = f"`{examine}` shows what is left, and `{examine} --repair` goes on with that"
        else:
            advice = "Nothing is to be repaired"
        return f"the journal in {self.folder} is damaged: {self.damage.what}. Nothing was changed. {advice}"


def read_journal(folder: Path, boot_id: str) -> Found:
    """All of it.

    Not in a process that has the journal open: closing any descriptor of a file lets go of all the locks
    that a process has on it.

    Raises:
        AlreadyLockedError: somebody has it open.
        OSError: it can't be read.
    """
    found = Found(folder)
    try:
        found.head = read_head(folder)
    except ValueError as error:
        found.harm(f"{error}, so nobody can say where the journal should end", 0)
    if found.head is not None and found.head.mode == "none":
        return found  # what was written before that broker no longer holds
    path = folder / NAME
    expected = found.head is not None and found.head.seq > 0
    if not exists(path) or path.stat().st_size == 0:
        if expected or found.damage:
            what = "is missing" if not exists(path) else "is empty"
            found.harm(f"{path} {what}, but {_words(found.head)}", 1)
        return found
    with path.open("rb") as file:
        header = file.read(100)
    in_order = header[:16] == b"SQLite format 3\0" and header[18:20] == b"\2\2"
    unmade = found.head is None and not found.damage and path.stat().st_size <= _UNMADE
    if unmade and (not in_order or exists(Path(f"{path}-journal"))):
        return found  # its making was interrupted: the head is made later
    if not in_order:
        found.harm(f"{path} is no journal: its first bytes are wrong", 1)
        return found
    # Reading makes these if they are not there.
    made = [more for name in ("-shm", "-wal") if not exists(more := Path(f"{path}{name}"))]
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA busy_timeout = 0")
            _Reading(found, connection).read()
    except sqlite3.Error as error:
        raise as_os_error(error, path) from error
    for more in made:  # not after an error: they may be somebody else's
        more.unlink(missing_ok=True)
    _compare(found, boot_id)
    return found


def as_os_error(error: sqlite3.Error, path: Path) -> Exception:
    """What SQLite's error means to who opens a journal."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return AlreadyLockedError(
            f"another process has {path} open: end it first, or choose another state folder"
        )
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    number = errno.EIO if code == sqlite3.SQLITE_IOERR else errno.EACCES
    return OSError(number, str(error), str(path))


def _words(head: Head | None) -> str:
    if head is None:
        return "there is no record of its end"
    return (
        f"the record `head` says that {head.seq} rows were written, the last in epoch {head.epoch}"
    )


def _compare(found: Found, boot_id: str) -> None:
    """Whether the journal goes as far as the head says."""
    head, last = found.head, found.last
    if head is None:
        if found.exists and last.seq and not found.damage:
            found.harm("the record `head` is missing, so nobody can say where it should end", 0)
        return
    if found.damage is not None:
        return
    if last.seq < head.seq:
        if last.seq >= head.synced and head.boot != boot_id and head.mode == "crash":
            found.lost = head.seq - last.seq
            return
        found.harm(
            f"it ends with row {last.seq}, but {_words(head)}: its end was cut off", last.seq + 1
        )
        return
    known = {found.manifest.seq: found.manifest.chain} if found.manifest else {}
    known[last.seq] = last.checksum
    if known.get(head.seq, head.checksum) != head.checksum:
        found.harm(f"its row {head.seq} is not the one that was written last", head.seq)


_ENDS: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_FULL,
)


class _BadError(Exception):
    """What stands there is not what was written."""


class _Reading:
    """One pass over all tables."""

    def __init__(self, found: Found, connection: sqlite3.Connection) -> None:
        self._found = found
        self._connection = connection
        self._reader = FactReader(self._fetch)

    def read(self) -> None:
        """Everything into `found`."""
        found = self._found
        at = 1
        try:
            schema = self._connection.execute(
                "SELECT sql FROM sqlite_master ORDER BY rowid"
            ).fetchall()
            if not schema and (found.head is None or found.head.seq == 0) and not found.damage:
                return  # its making was interrupted
            found.exists = True
            if [sql for (sql,) in schema] != list(SCHEMA):
                raise _BadError("its tables are not those of a journal")
            self._read_snapshot()
            at = found.last.seq + 1
            for row in self._read_rows():
                found.rows.append(row)
                at = row.seq + 1
            found.tail_bytes += sum(
                len(frame) for key, frame in found.blobs.items() if key not in found.snapshot_blobs
            )
            (said,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                found.harm(f"its file is not in order: {said}".replace("\n", " "), at)
        except NewerFormatError as error:
            found.harm(f"row {at} was written by a newer quiesce: {error}", at, newer=True)
        except (_BadError, FactError) as error:
            found.harm(str(error), at)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _ENDS:
                raise
            found.harm(f"at row {at} SQLite says: {error}", at)
        if found.damage is not None and found.damage.seq:
            self._look_beyond(found.damage.seq)

    def _look_beyond(self, seq: int) -> None:
        try:
            rows, facts = self._connection.execute(
                "SELECT count(*), total(count) FROM facts WHERE seq >= ?", (seq,)
            ).fetchone()
            self._found.beyond = int(rows), int(facts)
        except sqlite3.Error:
            self._found.beyond = None

    def _read_snapshot(self) -> None:
        found = self._found
        kinds = (int, int, int, int, int, bytes, bytes, bytes)
        for values in self._connection.execute(
            "SELECT seq, version, epoch, first, chunks, chain, checksum, seal FROM snapshots"
            " ORDER BY seq DESC LIMIT 1"
        ):
            if tuple(map(type, values)) != kinds:
                raise _BadError("what it says of its snapshot is damaged")
            manifest = Manifest._make(values[:-1])
            try:
                sealed = manifest.seal() == values[-1]
            except struct.error:
                sealed = False
            if not sealed:
                raise _BadError("what it says of its snapshot is damaged")
            try:
                found.frozen = self._reader.frozen(manifest.version, self._read_chunks(manifest))
            except NewerFormatError as error:
                text = f"its snapshot was written by a newer quiesce: {error}"
                found.harm(text, manifest.seq, newer=True)
                raise _BadError(text) from None
            except FactError as error:
                raise _BadError(f"its snapshot as of row {manifest.seq}: {error}") from None
            found.manifest = manifest
            found.last = Position(manifest.seq, manifest.chain, manifest.epoch)
            found.snapshot_blobs = frozenset(found.blobs)
            found.snapshot_bytes += sum(map(len, found.blobs.values()))

    def _read_chunks(self, manifest: Manifest) -> Iterator[bytes]:
        checksum = manifest.chain
        number = 0
        for key, body, said in self._connection.execute(
            "SELECT id, body, checksum FROM chunks WHERE id >= ? AND id < ? ORDER BY id",
            (manifest.first, manifest.first + manifest.chunks),
        ):
            if type(body) is not bytes or key != manifest.first + number:
                raise FactError(f"piece {number + 1} of {manifest.chunks} is missing")
            checksum = chain_chunk(checksum, body)
            if checksum != said:
                raise FactError(f"piece {number + 1} of {manifest.chunks} has a wrong checksum")
            number += 1
            self._found.snapshot_bytes += len(body)
            yield body
        if number != manifest.chunks or checksum != manifest.checksum:
            raise FactError(f"piece {number + 1} of {manifest.chunks} is missing")

    def _read_rows(self) -> Iterator[Row]:
        found = self._found
        kinds = (int, int, int, int, int, bytes, bytes)
        for values in self._connection.execute(
            "SELECT seq, version, epoch, mode, count, body, checksum FROM facts WHERE seq > ?"
            " ORDER BY seq",
            (found.last.seq,),
        ):
            if tuple(map(type, values)) != kinds:
                raise _BadError(f"row {found.last.seq + 1} is damaged")
            seq, version, epoch, mode, count, body, said = values
            if seq != found.last.seq + 1:
                missing = f"row {found.last.seq + 1} is"
                if seq > found.last.seq + 2:
                    missing = f"rows {found.last.seq + 1} to {seq - 1} are"
                raise _BadError(f"{missing} missing, but row {seq} is there")
            try:
                checksum = chain_row(found.last.checksum, seq, version, epoch, mode, count, body)
            except struct.error:
                checksum = b""
            if checksum != said:
                raise _BadError(f"row {seq} has a wrong checksum")
            if epoch < found.last.epoch:
                raise _BadError(f"row {seq} is of epoch {epoch}, after epoch {found.last.epoch}")
            try:
                facts = self._reader.facts(version, body, count)
            except NewerFormatError:
                raise
            except FactError as error:
                raise _BadError(f"row {seq}: {error}") from None
            found.last = Position(seq, checksum, epoch)
            found.tail_bytes += len(body)
            yield Row(seq, epoch, facts)

    def _fetch(self, ref: BlobRef) -> Frame:
        known = self._found.blobs.get(ref.id)
        if known is not None and known.digest == ref.digest:
            return known
        pieces: list[bytes] = []
        for part, digest, data in self._connection.execute(
            "SELECT part, digest, data FROM blobs WHERE id >= ? AND id < ? ORDER BY id",
            (ref.id, ref.id + ref.parts),
        ):
            if part != len(pieces) or digest != ref.digest or type(data) is not bytes:
                raise FactError(f"payload {ref.id} is damaged")
            pieces.append(data)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(pieces) != ref.parts or len(data) != ref.size:
            raise FactError(f"payload {ref.id} of {ref.size} bytes is missing, or a part of it")
        if digest_of(data) != ref.digest:
            raise FactError(f"payload {ref.id} of {ref.size} bytes has a wrong checksum")
        frame = Frame(data, ref.digest)
        self._found.blobs[ref.id] = frame
        self._found.parts[ref.id] = ref.parts
        return frame
