"""One broker for one state folder and one address: the second refuses to start.

A file is locked before anything is bound, for a second bind to an ipc path succeeds silently.
"""

import errno
import fcntl
import os
from pathlib import Path


class AlreadyLockedError(Exception):
    """Another process holds the lock; the text names it."""


class Lock:
    """A locked file, removed on release."""

    def __init__(self, path: Path, what: str) -> None:
        """Lock `path`, made if missing; `what` says in the error what it guards.

        Raises:
            AlreadyLockedError: somebody else holds it.
            OSError: the file can't be made.
        """
        self.path = path
        while True:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._fd, 32).decode(errors="replace").strip()
                os.close(self._fd)
                raise AlreadyLockedError(
                    f"another broker (pid {holder or 'unknown'}) uses {what}: stop it first, or "
                    "choose another address and state folder"
                ) from None
            if self._still_there():
                break
            os.close(self._fd)  # removed by its last holder between our open and our lock
        os.truncate(self._fd, 0)
        try:
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            # On a full disk it is a lock without a name. The journal has a reserve, this has none.
            if error.errno != errno.ENOSPC:
                self.release()
                raise

    def _still_there(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Remove the file and let go."""
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
