"""Whoever serves while the loop's own thread is held up by the disk.

The loop's thread commits small things itself (see `journal_thread`). Should the disk stall meanwhile, leases
must be granted and requests to stop must go out all the same. So the sockets and the registry belong to whoever
has the turn; the loop's thread lends it around each commit, and takes it back after; and a thread that looks
in now and then takes turns in its place once a commit takes long. (ZeroMQ sockets may move between threads
with a full fence in between: the lock is one.)
"""

import threading
import time
from collections.abc import Callable
from typing import Final

#: Seconds between two looks, and of a commit after which it has been too long.
PATIENCE: Final = 0.25
#: Seconds of one turn at most: the loop's own thread may wait for its end.
SHORT: Final = 0.02


class StandIn:
    """Made and closed by the loop's thread, which has the turn from then on, but in `aside`."""

    def __init__(self, turn: Callable[[float], None]) -> None:
        """`turn`: serves once, having waited at most so many seconds for something to do."""
        self._turn = turn
        self._lock = threading.Lock()
        self._lock.acquire()
        #: Since when the loop's thread has been aside; 0.0 while it is not.
        self._since = 0.0
        #: What a turn here has come to, if it failed: the loop's thread raises it.
        self._failure: BaseException | None = None
        #: How many turns were taken here.
        self.turns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quiesce stand-in", daemon=True)
        self._thread.start()

    def aside(self) -> "StandIn":
        """Lend the turn, by `with`: what is in there may take long.

        Raises:
            BaseException: what failed meanwhile in a turn of the stand-in.
        """
        return self

    def __enter__(self) -> None:
        self._since = time.monotonic()
        self._lock.release()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._since = 0.0
        self._lock.acquire()
        if self._failure is not None and kind is None:
            raise self._failure

    def close(self) -> None:
        """The thread ends."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PATIENCE):
            if self._is_wanted(time.monotonic()) and self._lock.acquire(blocking=False):
                try:
                    # Looked at again, for it has come back if somebody else had the turn in between.
                    while self._since and self._failure is None:
                        self.turns += 1
                        self._turn(SHORT)
                except BaseException as error:
                    self._failure = error
                finally:
                    self._lock.release()

    def _is_wanted(self, now: float) -> bool:
        since = self._since
        return bool(since) and now > since + PATIENCE and self._failure is None
