"""Reading a page of a timeline at a version, while others append, flush, compact and collect."""

import os
from bisect import bisect_right
from typing import Self

from quiesce.examples.pageserver import layers, versions, wal
from quiesce.examples.pageserver.timeline import Manifest, Timeline


class VersionUnknownError(Exception):
    """The version has not arrived (yet)."""


class VersionCollectedError(Exception):
    """The version is below the horizon: it was here and has been dropped."""


class LayerNotLocalError(Exception):
    """The page is in a layer whose file is not here. Download `name`, then ask again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Segment:
    """What a reader has read of one segment of the log."""

    def __init__(self, start: int) -> None:
        self.offset = 0
        self.last = start
        self.pages: dict[int, list[wal.Record]] = {}
        self.commits: dict[int, tuple[int, int]] = {}

    def extend(self, tail: bytes) -> None:
        found = wal.scan(tail, self.last)
        for record in found.records:
            if not record.is_commit:
                self.pages.setdefault(record.page, []).append(record)
        self.commits |= wal.commits(found.records)
        self.offset += found.end
        if found.records:
            self.last = found.records[-1].lsn


class TimelineReader:
    """Reads pages of one timeline. Keeps layers open and what it has read of the log; not
    thread-safe.

    Needs no lock: it looks at the log first and at the manifest second, and a flush writes the
    manifest before it removes log. So each record is found in one of them, or in both.
    """

    def __init__(self, timeline: Timeline, page_size: int) -> None:
        self._timeline = timeline
        self._page_size = page_size
        self._manifest = Manifest()
        self._manifest_stamp: tuple[int, int] | None = None
        self._segments: dict[str, _Segment] = {}
        self._layers: dict[str, layers.Layer] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take notice of what has arrived and what was dropped.

        Raises FileNotFoundError if all is gone.
        """
        self._read_log()
        self._read_manifest()

    def _read_log(self) -> None:
        names = [name for name in os.listdir(self._timeline.log) if name.endswith(wal.SUFFIX)]
        for gone in self._segments.keys() - set(names):
            del self._segments[gone]
        for name in names:
            path = self._timeline.log / name
            try:
                with open(path, "rb") as file:
                    segment = self._segments.setdefault(name, _Segment(wal.segment_start(path)))
                    if os.fstat(file.fileno()).st_size > segment.offset:
                        file.seek(segment.offset)
                        segment.extend(file.read())
            except FileNotFoundError:
                self._segments.pop(name, None)  # flushed since the names were read

    def _read_manifest(self) -> None:
        state = os.stat(self._timeline.folder / "manifest.json")
        stamp = (state.st_ino, state.st_mtime_ns)
        if stamp == self._manifest_stamp:
            return
        self._manifest, self._manifest_stamp = self._timeline.manifest(), stamp
        for gone in self._layers.keys() - {layer.name for layer in self._manifest.layers}:
            self._layers.pop(gone).close()

    def available(self) -> dict[int, tuple[int, int]]:
        """Return {version: (lsn, size)} of all that can be read."""
        found = dict(self._manifest.commits)
        for segment in self._segments.values():
            found |= segment.commits
        return {v: found[v] for v in sorted(found) if v >= self._manifest.horizon}

    def page_count(self, version: int) -> int:
        """Return the number of pages of a version."""
        return versions.page_count(self._commit(version)[1], self._page_size)

    def _commit(self, version: int) -> tuple[int, int]:
        if version < self._manifest.horizon:
            raise VersionCollectedError(f"version {version} is below {self._manifest.horizon}")
        known = self.available()
        if version not in known:
            raise VersionUnknownError(f"version {version} has not arrived")
        return known[version]

    def read(self, version: int, page: int) -> bytes:
        """Return a page as it was in a version.

        Raises VersionUnknownError, VersionCollectedError, LayerNotLocalError, or IndexError for a
        page that the version does not have.
        """
        while True:
            lsn, size = self._commit(version)
            if not 0 <= page < versions.page_count(size, self._page_size):
                raise IndexError(f"version {version} has no page {page}")
            image = self._from_log(page, lsn)
            if image is not None:
                return image
            stamp = self._manifest_stamp
            try:
                image = self._from_layers(page, lsn)
            except FileNotFoundError as error:
                self.refresh()
                if self._manifest_stamp == stamp:
                    raise LayerNotLocalError(os.path.basename(error.filename)) from None
                continue  # the layer was superseded: what took its place is in the new manifest
            if image is None:
                raise layers.LayerDamagedError(f"no image of page {page} up to {lsn}")
            return image

    def _from_log(self, page: int, lsn: int) -> bytes | None:
        # What is flushed is read from the layers: segments may have come and gone since the log
        # was read, so that of the flushed part the layers alone are sure to have the newest
        # image.
        newest: wal.Record | None = None
        floor = self._manifest.flushed
        for segment in self._segments.values():
            images = segment.pages.get(page, [])
            at = bisect_right(images, lsn, key=lambda record: record.lsn)
            if at and images[at - 1].lsn > floor:
                newest, floor = images[at - 1], images[at - 1].lsn
        return newest.data if newest else None

    def _from_layers(self, page: int, lsn: int) -> bytes | None:
        for info in reversed(self._manifest.layers):
            if info.start >= lsn:
                continue
            if info.name not in self._layers:
                self._layers[info.name] = layers.Layer(self._timeline.layers / info.name)
            image = self._layers[info.name].find(page, lsn)
            if image is not None:
                return image
        return None

    def close(self) -> None:
        """Close the layers."""
        while self._layers:
            self._layers.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
