"""The remote store: a folder here, an object store elsewhere. What is in it outlives a detach."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from quiesce.examples.pageserver.layers import LayerDamagedError, write_atomic
from quiesce.examples.pageserver.timeline import Manifest, Timeline

_CHUNK = 64 * 1024


def index(remote: Path) -> Manifest:
    """Return the manifest that the remote copy was last brought to; an empty one without a copy."""
    try:
        return Manifest.from_json((remote / "index.json").read_bytes())
    except FileNotFoundError:
        return Manifest()


def is_settled(timeline: Timeline, remote: Path) -> bool:
    """Tell whether the remote copy has exactly the layers of the timeline."""
    return index(remote).layers == timeline.manifest().layers


def upload(timeline: Timeline, remote: Path, checkpoint: Callable[[], None]) -> int:
    """Bring the remote copy to the timeline's manifest. Returns the number of layers copied.

    Layers go first, then the index that names them, then what it names no more is removed: a
    reader of the remote copy never misses a layer. `checkpoint` may raise between two layers; the
    next upload goes on from there.
    """
    copied = 0
    while True:
        checkpoint()
        manifest = timeline.manifest()
        # Not before the timeline was found to be there: a removed tenant gets no remote folder
        # either.
        remote.mkdir(parents=True, exist_ok=True)
        try:
            for layer in manifest.layers:
                if not (remote / layer.name).exists():
                    write_atomic(remote / layer.name, (timeline.layers / layer.name).read_bytes())
                    copied += 1
                    checkpoint()
        except FileNotFoundError:
            if timeline.manifest() == manifest:
                raise
            continue  # superseded while it was on its way
        with timeline.locked():
            if timeline.manifest().layers != manifest.layers:
                continue
            write_atomic(remote / "index.json", manifest.to_json())
        named = {layer.name for layer in manifest.layers}
        for path in remote.glob("*.layer"):
            if path.name not in named:
                path.unlink(missing_ok=True)
        return copied


def drop_local(timeline: Timeline, remote: Path) -> int:
    """Remove the local files of all layers that the remote index names. Returns how many."""
    dropped = 0
    with timeline.locked():
        kept_remotely = {layer.name for layer in index(remote).layers}
        for layer in timeline.manifest().layers:
            if layer.name in kept_remotely and timeline.is_local(layer.name):
                (timeline.layers / layer.name).unlink()
                dropped += 1
    return dropped


def download(timeline: Timeline, remote: Path, name: str, checkpoint: Callable[[], None]) -> int:
    """Fetch one layer. Returns its size, or 0 if it is here already or the timeline has it no
    more.

    Raises LayerDamagedError if the copy is not what the manifest says.
    """
    info = timeline.manifest().layer(name)
    if info is None or timeline.is_local(name):
        return 0
    beside = timeline.layers / f"{name}.download.tmp"
    digest = hashlib.sha256()
    try:
        with open(remote / name, "rb") as source, open(beside, "wb") as target:
            while chunk := source.read(_CHUNK):
                checkpoint()
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != info.sha256:
            raise LayerDamagedError(f"{remote / name}: not what was uploaded")
        with timeline.locked():
            if timeline.manifest().layer(name) is None:
                return 0
            beside.replace(timeline.layers / name)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return info.size
