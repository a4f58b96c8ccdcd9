"""One timeline on disk: its manifest, log and layers, and what the background does to them.

The manifest names the layers that count, and is replaced as a whole; a file that it does not name
is a leftover. Whoever changes it holds the timeline's lock, which the kernel drops when a process
dies, so a killed task leaves either the old state or the new one.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from quiesce.examples.pageserver import layers, wal
from quiesce.examples.pageserver.layers import LayerInfo


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a timeline consists of, besides its log.

    `layers` are in the order of their LSNs and do not overlap. `commits` is {version: (lsn,
    size)} of the versions that are in them and still kept; `horizon` is the lowest version that
    may be read.
    """

    layers: tuple[LayerInfo, ...] = ()
    flushed: int = 0
    commits: dict[int, tuple[int, int]] = field(default_factory=dict)
    horizon: int = 1
    serial: int = 0
    compactions: int = 0
    collected_versions: int = 0
    collected_records: int = 0

    def to_json(self) -> bytes:
        document = {**self.__dict__, "layers": [list(layer) for layer in self.layers]}
        return json.dumps(document).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        document = json.loads(content)
        document["layers"] = tuple(LayerInfo(*layer) for layer in document["layers"])
        document["commits"] = {
            int(v): (lsn, size) for v, (lsn, size) in document["commits"].items()
        }
        return cls(**document)

    def layer(self, name: str) -> LayerInfo | None:
        """Return what is known of a layer, or None if the timeline does not have it (any more)."""
        return next((layer for layer in self.layers if layer.name == name), None)


@dataclass(frozen=True)
class Timeline:
    """The folder of one timeline. All but `create` need it to be there, and raise
    FileNotFoundError if not.
    """

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def layers(self) -> Path:
        return self.folder / "layers"

    @property
    def size_file(self) -> Path:
        return self.folder / "logical-size.json"

    def create(self, manifest: Manifest | None = None) -> None:
        """Make the folder; for `attach` alone. One that is there already is left as it is."""
        self.log.mkdir(parents=True, exist_ok=True)
        self.layers.mkdir(exist_ok=True)
        (self.log / "writer").touch()
        (self.folder / "lock").touch()
        if not (self.folder / "manifest.json").exists():
            self.write_manifest(manifest or Manifest())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one to change the manifest, across threads and processes."""
        # "r+" does not make the file: a timeline that was removed stays removed.
        with open(self.folder / "lock", "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def manifest(self) -> Manifest:
        return Manifest.from_json((self.folder / "manifest.json").read_bytes())

    def write_manifest(self, manifest: Manifest) -> None:
        layers.write_atomic(self.folder / "manifest.json", manifest.to_json())

    def open_log(self) -> wal.LogWriter:
        """Open the log to write behind what it holds; a torn tail is cut."""
        return wal.LogWriter(self.log, self.manifest().flushed)

    def is_local(self, name: str) -> bool:
        return (self.layers / name).exists()

    def missing(self) -> list[str]:
        """Return the layers whose file is not here: they were dropped, and can be downloaded."""
        return [layer.name for layer in self.manifest().layers if not self.is_local(layer.name)]

    def sealed(self) -> list[Path]:
        """Return the segments that no one writes to any more, which a flush would take."""
        return wal.segments(self.log)[:-1]

    def flush(self) -> int:
        """Move the sealed segments of the log to a layer. Returns the number of records moved."""
        with self.locked():
            manifest = self.manifest()
            sealed = self.sealed()
            records = [
                record
                for segment in sealed
                for record in wal.read_sealed(segment)
                if record.lsn > manifest.flushed
            ]
            if records:
                end = records[-1].lsn
                pages = layers.merge([[r for r in records if not r.is_commit]])
                layer = layers.write_layer(
                    self.layers, manifest.serial, manifest.flushed, end, pages
                )
                manifest = replace(
                    manifest,
                    layers=(*manifest.layers, layer),
                    flushed=end,
                    commits={**manifest.commits, **wal.commits(records)},
                    serial=manifest.serial + 1,
                )
                self.write_manifest(manifest)
            # Only now: a reader finds each record in the log or in a layer that the manifest
            # names.
            for segment in sealed:
                segment.unlink()
            return len(records)

    def compact(self, at_least: int = 3) -> int:
        """Merge all layers into one, if there are so many and all are here.

        Returns how many it took.
        """
        with self.locked():
            manifest = self.manifest()
            if len(manifest.layers) < at_least or self.missing():
                return 0
            merged = layers.merge(
                layers.read_layer(self.layers / layer.name) for layer in manifest.layers
            )
            self._replace_all(
                replace(manifest, compactions=manifest.compactions + 1),
                len(manifest.layers),
                merged,
            )
            return len(manifest.layers)

    def collect(self, retained: int) -> int:
        """Drop what only versions below the newest `retained` ones need. Returns the records
        dropped.

        Only versions in layers count, so the log keeps more than is asked for, never less. Does
        nothing while a layer that it would have to read is not here.
        """
        with self.locked():
            manifest = self.manifest()
            versions = sorted(manifest.commits)
            if len(versions) <= retained:
                return 0
            horizon = versions[-retained]
            lsn, _ = manifest.commits[horizon]
            old = [layer for layer in manifest.layers if layer.start < lsn]
            if any(not self.is_local(layer.name) for layer in old):
                return 0
            merged = layers.merge(layers.read_layer(self.layers / layer.name) for layer in old)
            kept = layers.keep_from(merged, lsn)
            dropped = len(merged) - len(kept)
            self._replace_all(
                replace(
                    manifest,
                    horizon=horizon,
                    commits={v: manifest.commits[v] for v in versions if v >= horizon},
                    collected_versions=manifest.collected_versions + len(versions) - retained,
                    collected_records=manifest.collected_records + dropped,
                ),
                len(old),
                kept,
            )
            return dropped

    def _replace_all(self, manifest: Manifest, count: int, records: list[wal.Record]) -> None:
        """Put one new layer in the place of the first `count`; the lock is held."""
        old, rest = manifest.layers[:count], manifest.layers[count:]
        layer = layers.write_layer(self.layers, manifest.serial, old[0].start, old[-1].end, records)
        self.write_manifest(replace(manifest, layers=(layer, *rest), serial=manifest.serial + 1))
        for superseded in old:
            (self.layers / superseded.name).unlink(missing_ok=True)

    def remove_leftovers(self) -> int:
        """Remove what a killed task left unfinished.

        Only while nothing else works here. Returns how many.
        """
        with self.locked():
            named = {layer.name for layer in self.manifest().layers}
            stray = [path for path in self.layers.iterdir() if path.name not in named]
            stray += self.folder.glob("*.tmp")
            for path in stray:
                path.unlink(missing_ok=True)
            return len(stray)
