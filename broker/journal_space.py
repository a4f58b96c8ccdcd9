"""Room on the disk: a reserve that is given up when it is full, and a look at what is left.

With less than the margin left, or the reserve gone, there is no room for new work; stops and ends still find
some, first in the margin and then where the reserve was.
"""

import errno
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from quiesce.broker.journal import JournalLimits, exists

NAME: Final = "reserve"
#: Bytes that a start and what is under way need: the reserve is not made of the last that there are.
SPARE: Final = 2**20
#: Seconds between two looks at the disk.
PACE: Final = 1.0


class Space:
    """The room of one state folder. Used by the journal's thread; `roomy` may be read by any."""

    def __init__(self, folder: Path, limits: JournalLimits) -> None:
        """Make the reserve, if there is room for it. OSError if the folder can't be written."""
        self._folder = folder
        self._path = folder / NAME
        self._size = limits.reserve
        self._margin = limits.margin
        self._looked = 0.0
        self.roomy = self.held = False
        self.look(now=True)

    def look(self, wanted: int = 0, *, now: bool = False) -> None:
        """See how much is left, at most once in PACE seconds, and make the reserve again if it is gone.

        `wanted`: bytes that are about to be written.
        """
        tick = time.monotonic()
        if not now and tick < self._looked + PACE:
            return
        self._looked = tick
        if not self.held:
            self.held = self._reserve()
        # Twice: in the log, then in the file.
        self.roomy = self.held and room(self._folder) >= self._margin + 2 * wanted

    def _reserve(self) -> bool:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self._size:
                there = os.fstat(fd).st_size
                if there < self._size and room(self._folder) + there < self._size + SPARE:
                    return False
                os.posix_fallocate(fd, 0, self._size)
        except OSError as error:
            if not is_full(error):
                raise
            os.ftruncate(fd, 0)
            return False
        finally:
            os.close(fd)
        return True

    def give_up(self) -> bool:
        """The disk is full: let go of the reserve. Whether there was one."""
        held, self.held, self.roomy = self.held, False, False
        self._looked = time.monotonic()
        if held:
            os.truncate(self._path, 0)
        return held


def room(folder: Path) -> int:
    """Bytes that are left on its disk."""
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize


def make_room(folder: Path) -> bool:
    """Before a start, under the folder's lock: on a full disk, let go of the reserve; whether that was done.

    Otherwise not even the journal could be read: SQLite has to write for that.
    """
    path = folder / NAME
    if room(folder) >= SPARE or not exists(path) or not path.stat().st_size:
        return False
    os.truncate(path, 0)
    return True


def is_full(error: BaseException) -> bool:
    """Whether this says that the disk is full: unlike after an I/O error, the same may be tried again."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno == errno.ENOSPC
