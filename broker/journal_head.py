"""The head: an independent record of what was committed last, in the file `head`.

SQLite silently forgets a damaged or cut end of its log; with the head, that can't be taken for the truth. It
is written after each commit, but synced only with commits that are synced; so it may be older than the
journal, and after a power loss the journal may be older than it. What it says is in `Head`.

Two slots are written in turn, each with a digest of itself: a torn write leaves the older one.
"""

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from quiesce.broker.journal import exists

NAME: Final = "head"
MODES: Final = ("none", "crash", "power-loss")
_MAGIC: Final = b"QSH1"
_BODY: Final = struct.Struct(">4sQQQQ16sBBB36s")
_DIGEST: Final = 16
#: Slots lie in sectors of their own.
_APART: Final = 512


class Head(NamedTuple):
    """`seq`, `checksum`: the last committed row. `synced`: the last row that has been on the disk, whatever
    happens to the machine. `epoch`: of the last row. `mode`: the durability of who wrote this; `boot`: when.
    `clean`: the end was in order. `doubtful`: something may be missing, and nobody has vouched for it since.
    """

    seq: int = 0
    synced: int = 0
    checksum: bytes = bytes(16)
    epoch: int = 0
    mode: str = "crash"
    clean: bool = False
    doubtful: bool = False
    boot: str = ""


class HeadFile:
    """Writes heads. The file is made with all its blocks, so that a full disk does not matter later; and under
    another name until its first head stands in it, for a head that says nothing is a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make it. OSError if that can't be done."""
        self._path = path = folder / NAME
        self._fresh = None if exists(path) else folder / f"{NAME}.new"
        self._counter = max((counter for counter, _ in _slots(path)), default=0)
        self._fd = os.open(self._fresh or path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < 2 * _APART or self._fresh is not None:
            os.pwrite(self._fd, bytes(2 * _APART), 0)

    def write(self, head: Head, *, sync: bool, both: bool = False) -> None:
        """Record a head; in `both` slots if the one before must not be fallen back to."""
        for _ in range(1 + both):
            self._counter += 1
            body = _BODY.pack(
                _MAGIC,
                self._counter,
                head.seq,
                head.synced,
                head.epoch,
                head.checksum,
                MODES.index(head.mode),
                head.clean,
                head.doubtful,
                head.boot.encode()[:36],
            )
            os.pwrite(self._fd, body + _digest(body), self._counter % 2 * _APART)
            if sync or self._fresh is not None:
                self.sync()
        if self._fresh is not None:
            os.replace(self._fresh, self._path)
            self._fresh = None

    def sync(self) -> None:
        """Have what was recorded on the disk; more may be recorded meanwhile."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file. Who writes all the same gets an OSError."""
        os.close(self._fd)
        self._fd = -1


def read_head(folder: Path) -> Head | None:
    """The newest head, None if there is no such file.

    Raises:
        ValueError: both slots are damaged.
        OSError: the file can't be read.
    """
    path = folder / NAME
    if not exists(path):
        return None
    found = _slots(path)
    if not found:
        raise ValueError(f"{path} holds nothing that was written there")
    return max(found, key=lambda each: each[0])[1]


def _slots(path: Path) -> list[tuple[int, Head]]:
    """(counter, head) of each good slot."""
    if not exists(path):
        return []
    data = path.read_bytes()
    found = []
    for place in (0, _APART):
        body = data[place : place + _BODY.size]
        if data[place + _BODY.size :][:_DIGEST] != _digest(body) or body[:4] != _MAGIC:
            continue
        _, counter, seq, synced, epoch, checksum, mode, clean, doubtful, boot = _BODY.unpack(body)
        head = Head(
            seq=seq,
            synced=synced,
            checksum=checksum,
            epoch=epoch,
            mode=MODES[mode],
            clean=bool(clean),
            doubtful=bool(doubtful),
            boot=boot.rstrip(b"\0").decode(),
        )
        found.append((counter, head))
    return found


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=_DIGEST).digest()
