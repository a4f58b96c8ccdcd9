"""The log of a timeline: numbered records in append-only segments, with a tail that may be torn.

A record is `checksum, lsn, page, length, bytes`; the checksum covers all that follows it. Records
are numbered by their log sequence number (LSN), which only grows. A record of page COMMIT says
that all pages of a version have arrived: its LSN is the version's LSN.

Segments are files named after the LSN that they start behind. Only the last one is written to;
the others are sealed and never change until they are flushed to a layer and removed. A process
that dies while it appends leaves a torn tail in the last segment. It is cut on reopening: what it
held was never acknowledged, and the stream resumes behind the last whole record. Damage in a
sealed segment is something else, and raises.

Nothing is synced to the disk here: the log survives the death of its writer, not of the machine.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

COMMIT = 0xFFFF_FFFF
MAX_DATA = 1 << 20
SUFFIX = ".wal"

_HEADER = struct.Struct(">IQII")
_COMMIT_DATA = struct.Struct(">IQ")


class LogDamagedError(Exception):
    """A sealed segment holds something that is not a record: no torn tail, but damage."""


class LogInUseError(Exception):
    """A second writer came to a log that has one. One connection per timeline was promised."""


class Record(NamedTuple):
    """One page image, or, with page == COMMIT, the end of a version."""

    lsn: int
    page: int
    data: bytes

    @property
    def is_commit(self) -> bool:
        return self.page == COMMIT


class Commit(NamedTuple):
    """What a commit record says: the version and the size in bytes that the timeline has in it."""

    version: int
    size: int


class Scan(NamedTuple):
    """The whole records of a piece of log, the offset behind them, and whether more followed."""

    records: list[Record]
    end: int
    torn: bool


def record_size(data_length: int) -> int:
    """Return how many bytes a record with so much data takes in the log, and its LSN advances."""
    return _HEADER.size + data_length


def encode(record: Record) -> bytes:
    """Return the record as it stands in the log."""
    rest = _HEADER.pack(0, record.lsn, record.page, len(record.data))[4:] + record.data
    return zlib.crc32(rest).to_bytes(4, "big") + rest


def commit_record(lsn: int, version: int, size: int) -> Record:
    """Return the record that ends a version."""
    return Record(lsn, COMMIT, _COMMIT_DATA.pack(version, size))


def parse_commit(record: Record) -> Commit:
    """Return what a commit record says."""
    return Commit(*_COMMIT_DATA.unpack(record.data))


def scan(buffer: bytes, after: int = 0) -> Scan:
    """Read records until the buffer ends, or what follows is no whole record above `after`."""
    records: list[Record] = []
    offset = 0
    while offset + _HEADER.size <= len(buffer):
        checksum, lsn, page, length = _HEADER.unpack_from(buffer, offset)
        end = offset + _HEADER.size + length
        if length > MAX_DATA or end > len(buffer) or lsn <= after:
            break
        if zlib.crc32(memoryview(buffer)[offset + 4 : end]) != checksum:
            break
        records.append(Record(lsn, page, bytes(buffer[offset + _HEADER.size : end])))
        offset, after = end, lsn
    return Scan(records, offset, offset < len(buffer))


def segment_start(path: Path) -> int:
    """Return the LSN that a segment starts behind, from its name."""
    return int(path.name.removesuffix(SUFFIX), 16)


def segments(folder: Path) -> list[Path]:
    """Return the segments in the order of their records; the last one is the one written to."""
    return sorted(folder / name for name in os.listdir(folder) if name.endswith(SUFFIX))


def read_sealed(path: Path) -> list[Record]:
    """Return all records of a sealed segment.

    Raises LogDamagedError if it holds anything else: its writer has gone on, so this is no torn
    tail.
    """
    found = scan(path.read_bytes(), segment_start(path))
    if found.torn:
        raise LogDamagedError(
            f"{path}: no whole record at byte {found.end}, though the segment was sealed. "
            "Remove the timeline and stream it again."
        )
    return found.records


class LogWriter:
    """The one writer of a timeline's log. A context manager.

    `position` is the LSN of the last whole record, or `flushed` if the log holds nothing newer;
    `cut` is the number of bytes of torn tail that opening removed. Raises LogInUseError if the
    log has a writer, and FileNotFoundError if the folder is gone: a writer never makes the
    folder, so nothing comes back after a timeline was removed.
    """

    def __init__(self, folder: Path, flushed: int = 0) -> None:
        self._folder = folder
        self._lock: IO[bytes] = open(folder / "writer", "rb+")  # noqa: SIM115 - lives as long as the writer
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise LogInUseError(f"{folder} already has a writer") from None
        self.cut = 0
        self.position = flushed
        self._file: IO[bytes] | None = None
        try:
            existing = segments(folder)
            if existing:
                self._resume(existing[-1])
            else:
                self._begin()
        except BaseException:
            self.close()
            raise

    def _resume(self, path: Path) -> None:
        start = segment_start(path)
        buffer = path.read_bytes()
        found = scan(buffer, start)
        if found.torn:
            os.truncate(path, found.end)
            self.cut = len(buffer) - found.end
        self.position = max(self.position, found.records[-1].lsn if found.records else start)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self.segment_bytes = found.end

    def _begin(self) -> None:
        path = self._folder / f"{self.position:016x}{SUFFIX}"
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self.segment_bytes = 0

    def append(self, record: Record) -> None:
        """Add one record; its LSN must be above `position`."""
        if record.lsn <= self.position:
            raise ValueError(f"record {record.lsn} comes after {self.position}")
        if self._file is None:
            raise ValueError("the log is closed")
        encoded = encode(record)
        if self._file.write(encoded) != len(encoded):
            raise OSError(f"{self._folder}: a record was cut short; is the disk full?")
        self.position = record.lsn
        self.segment_bytes += len(encoded)

    def roll(self) -> None:
        """Seal the segment and begin the next. Does nothing to an empty one."""
        if self.segment_bytes == 0:
            return
        if self._file is not None:
            self._file.close()
        self._begin()

    def close(self) -> None:
        """Let go of the log. May be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def commits(records: Iterable[Record]) -> dict[int, tuple[int, int]]:
    """Return {version: (lsn, size)} of the versions that end in these records."""
    found: dict[int, tuple[int, int]] = {}
    for record in records:
        if record.is_commit:
            commit = parse_commit(record)
            found[commit.version] = (record.lsn, commit.size)
    return found
