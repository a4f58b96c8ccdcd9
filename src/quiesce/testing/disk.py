"""A folder as it would be after any moment of its life, by the notes of a `Recorder`.

`Disk` plays the notes: at each of them it knows what the files hold (a process was killed), what of that is safe
from a loss of power, and what is only on its way there, of which any part may arrive (`after_power_loss`).
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: Bytes that a disk writes whole or not at all.
SECTOR: Final = 512
#: The name of the folder itself.
FOLDER: Final = ""


class Op(NamedTuple):
    """One note. `kind`: "write" (`data` at `at`), "truncate" (to `at`), "syncing" (a sync begins, others may write
    meanwhile), "sync" (it is done), "rename" (to `to`), "unlink", "make", "folder" (its names are synced), or
    "mark" (`to` says what).
    """

    kind: str
    name: str = ""
    at: int = 0
    data: bytes = b""
    to: str = ""


class _File:
    """What it holds, what of that is safe, and the notes since."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.safe = b""
        self.pending: list[Op] = []
        #: What the sync that goes on will make safe, and how many of the pending notes.
        self.syncing: tuple[bytes, int] | None = None

    def take(self, op: Op) -> None:
        apply(self.live, op)
        self.pending.append(op)

    def begin_sync(self) -> None:
        self.syncing = bytes(self.live), len(self.pending)

    def sync(self) -> None:
        if self.pending:
            self.safe, count = self.syncing or (bytes(self.live), len(self.pending))
            self.pending = self.pending[count:]
        self.syncing = None


def apply(data: bytearray, op: Op) -> None:
    """One write or truncation."""
    if op.kind == "write":
        if len(data) < op.at:
            data.extend(bytes(op.at - len(data)))
        data[op.at : op.at + len(op.data)] = op.data
    elif op.at <= len(data):
        del data[op.at :]
    else:
        data.extend(bytes(op.at - len(data)))


Files = dict[str, bytes]


class Disk:
    """The folder after some of the notes."""

    def __init__(self) -> None:
        self._live: dict[str, _File] = {}
        self._safe: dict[str, _File] = {}

    def play(self, op: Op) -> None:
        """The next note."""
        if op.kind in ("write", "truncate"):
            self._file(op.name).take(op)
        elif op.kind == "syncing":
            self._file(op.name).begin_sync()
        elif op.kind == "sync":
            self._file(op.name).sync()
        elif op.kind == "make":
            self._file(op.name)
        elif op.kind == "rename":
            self._live[op.to] = self._live.pop(op.name)
        elif op.kind == "unlink":
            self._live.pop(op.name, None)
        elif op.kind == "folder":
            self._safe = dict(self._live)

    def _file(self, name: str) -> _File:
        if name not in self._live:
            self._live[name] = _File()
        return self._live[name]

    def after_kill(self) -> Files:
        """The process is gone, the machine is not: all that was written."""
        return {name: bytes(file.live) for name, file in self._live.items()}

    def torn(self, op: Op, kept: int) -> Files:
        """Killed in the midst of the write `op`, which was not played: only so many bytes of it are there."""
        files = {name: file.live for name, file in self._live.items()}
        data = bytearray(files.get(op.name, b""))
        apply(data, op._replace(data=op.data[:kept]))
        return {**{name: bytes(each) for name, each in files.items()}, op.name: bytes(data)}

    @property
    def unsafe(self) -> list[str]:
        """The files with writes that a loss of power may lose; "" stands for the names of the folder."""
        found = [name for name, file in self._live.items() if file.pending]
        return [*found, *([FOLDER] if self._live != self._safe else [])]

    def after_power_loss(self, keep: Callable[[str, int, int], bool], *, names: bool) -> Files:
        """What is safe, and of what is not, that which `keep` keeps: asked by file, note and sector of that.

        `names`: the folder's names are as they were last, else as they were when it was last synced.
        """
        files: Files = {}
        for name, file in (self._live if names else self._safe).items():
            data = bytearray(file.safe)
            for number, op in enumerate(file.pending):
                if op.kind == "truncate":
                    if keep(name, number, 0):
                        apply(data, op)
                    continue
                first = op.at // SECTOR
                for sector in range(first, (op.at + len(op.data) - 1) // SECTOR + 1):
                    if keep(name, number, sector - first):
                        start = max(op.at, sector * SECTOR)
                        end = min(op.at + len(op.data), (sector + 1) * SECTOR)
                        piece = op.data[start - op.at : end - op.at]
                        apply(data, Op("write", name, start, piece))
            files[name] = bytes(data)
        return files

    def losses(self, chance: random.Random, some: int) -> Iterator[tuple[str, Files]]:
        """Ways to lose power now: nothing arrives, all does, one file's does, beginnings, any sectors."""
        unsafe = self.unsafe
        # A file whose removal is not safe either may be there again.
        counts = {
            name: len(file.pending)
            for names in (self._safe, self._live)
            for name, file in names.items()
        }
        yield "nothing arrived", self.after_power_loss(lambda *_: False, names=False)
        if not unsafe:
            return
        yield "all arrived", self.after_power_loss(lambda *_: True, names=True)
        for only in unsafe if len(unsafe) > 1 else []:
            keep = _only(only)
            files = self.after_power_loss(keep, names=only == FOLDER)
            yield f"only {only or 'names'} arrived", files
        for _ in range(some):
            ends = {name: chance.randrange(count + 1) for name, count in counts.items()}
            files = self.after_power_loss(_beginnings(ends), names=chance.random() < 0.5)
            yield f"of each file the first {ends} writes arrived", files
            share = chance.random()
            files = self.after_power_loss(
                _some(random.Random(chance.random()), share), names=chance.random() < 0.5
            )
            yield f"{share:.0%} of all sectors arrived", files


#: Which sector of which unsafe write of which file arrives.
Keep = Callable[[str, int, int], bool]


def _only(file: str) -> Keep:
    return lambda name, number, sector: name == file


def _beginnings(ends: dict[str, int]) -> Keep:
    return lambda name, number, sector: number < ends[name]


def _some(coin: random.Random, share: float) -> Keep:
    return lambda name, number, sector: coin.random() < share


def put(files: Files, folder: Path) -> Path:
    """These files, in a folder that holds nothing else."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
