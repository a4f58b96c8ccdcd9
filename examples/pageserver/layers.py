"""Layer files: the immutable home of records, sorted by page and LSN, and found through an index.

A layer covers the LSNs above `start` up to and including `end`. Its file is: a magic, the page
images, the index (page, lsn, offset, length, checksum of each image), and a footer that says
where the index is and carries its checksum. Files are written beside their place and renamed into
it, so a layer is whole or not there.
"""

import contextlib
import hashlib
import os
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from quiesce.examples.pageserver.wal import Record

SUFFIX = ".layer"
_MAGIC = b"QPSLAYR1"
_INDEX = struct.Struct(">IQQII")
_FOOTER = struct.Struct(">QII8s")


class LayerDamagedError(Exception):
    """A layer file is not what was written."""


class LayerInfo(NamedTuple):
    """What the manifest knows of a layer; `sha256` is of the whole file, for copies of it."""

    name: str
    start: int
    end: int
    entries: int
    size: int
    sha256: str


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there. Never makes a folder."""
    beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def merge(runs: Iterable[Iterable[Record]]) -> list[Record]:
    """Return the records of several layers in the order of a layer: by page, then LSN.

    Raises LayerDamagedError where two runs say different things of one page at one LSN.
    """
    merged: list[Record] = []
    for record in sorted((r for run in runs for r in run), key=lambda r: (r.page, r.lsn)):
        if merged and (merged[-1].page, merged[-1].lsn) == (record.page, record.lsn):
            if merged[-1] != record:
                raise LayerDamagedError(f"page {record.page} has two images at {record.lsn}")
            continue
        merged.append(record)
    return merged


def keep_from(records: Iterable[Record], horizon: int) -> list[Record]:
    """Return what reads at the horizon or above it can still need, of records in the order of a
    layer.

    That is, of each page: all images above the horizon, and the newest one that is not above it.
    """
    kept: list[Record] = []
    for record in records:
        if (
            record.lsn <= horizon
            and kept
            and kept[-1].page == record.page
            and kept[-1].lsn <= horizon
        ):
            kept.pop()
        kept.append(record)
    return kept


def write_layer(
    folder: Path, serial: int, start: int, end: int, records: list[Record]
) -> LayerInfo:
    """Write records, already in the order of a layer. `serial` makes the file's name unique."""
    parts = [_MAGIC]
    index = []
    offset = len(_MAGIC)
    for record in records:
        checksum = zlib.crc32(record.data)
        index.append(_INDEX.pack(record.page, record.lsn, offset, len(record.data), checksum))
        parts.append(record.data)
        offset += len(record.data)
    table = b"".join(index)
    footer = _FOOTER.pack(offset, len(records), zlib.crc32(table), _MAGIC)
    content = b"".join([*parts, table, footer])
    name = f"{start:012x}-{end:012x}-{serial:04d}{SUFFIX}"
    write_atomic(folder / name, content)
    return LayerInfo(
        name=name,
        start=start,
        end=end,
        entries=len(records),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


class Layer:
    """An open layer file. It can be read to the end even after its name was removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: page -> its LSNs in growing order, and beside each (offset, length, checksum)
        self._pages: dict[int, tuple[list[int], list[tuple[int, int, int]]]] = {}
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read_index()
        except BaseException:
            self.close()
            raise

    def _read_index(self) -> None:
        size = os.fstat(self._fd).st_size
        raw = os.pread(self._fd, _FOOTER.size, max(0, size - _FOOTER.size))
        if len(raw) != _FOOTER.size:
            raise LayerDamagedError(f"{self.path}: too short for a layer")
        offset, count, checksum, magic = _FOOTER.unpack(raw)
        length = count * _INDEX.size
        # Before it is read: a damaged footer may ask for any amount.
        if magic != _MAGIC or offset + length + _FOOTER.size != size:
            raise LayerDamagedError(f"{self.path}: its footer is not what was written")
        table = os.pread(self._fd, length, offset)
        if zlib.crc32(table) != checksum:
            raise LayerDamagedError(f"{self.path}: its index is not what was written")
        for page, lsn, start, size, crc in _INDEX.iter_unpack(table):
            lsns, places = self._pages.setdefault(page, ([], []))
            lsns.append(lsn)
            places.append((start, size, crc))

    def find(self, page: int, lsn: int) -> bytes | None:
        """Return the newest image of a page that is not above an LSN, or None."""
        lsns, places = self._pages.get(page, ([], []))
        at = bisect_right(lsns, lsn)
        return self._image(page, places[at - 1]) if at else None

    def records(self) -> list[Record]:
        """Return all that the layer holds, in its order."""
        return [
            Record(lsn, page, self._image(page, place))
            for page, (lsns, places) in self._pages.items()
            for lsn, place in zip(lsns, places, strict=True)
        ]

    def _image(self, page: int, place: tuple[int, int, int]) -> bytes:
        offset, length, checksum = place
        data = os.pread(self._fd, length, offset)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise LayerDamagedError(
                f"{self.path}: the image of page {page} is not what was written"
            )
        return data

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_layer(path: Path) -> list[Record]:
    """Return all that a layer file holds."""
    layer = Layer(path)
    try:
        return layer.records()
    finally:
        layer.close()
