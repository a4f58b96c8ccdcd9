"""The data link of a worker, which its control thread tends while a body has the main thread for long."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from quiesce.workers.link import Link

#: Seconds of a body after which the link is tended.
LENT_AFTER: Final = 0.002


class Lending:
    """Whose turn it is to use the link: the main thread's, which makes this, but while it lends it.

    (ZeroMQ sockets may move between threads with a full fence in between: the lock is one.)
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._turn = threading.Lock()
        self._turn.acquire()
        #: Since when it is lent, or the last body has begun since; 0.0 while it is not lent.
        self.since = 0.0

    def lend(self, now: float) -> None:
        """The main thread begins a body, and maybe others after it."""
        self.since = now
        self._turn.release()

    def take_back(self) -> None:
        """The main thread goes on."""
        self._turn.acquire()
        self.since = 0.0

    def tend(self, hear: Callable[[Any], None]) -> bool:
        """For the control thread: if a body has taken long, hear what has arrived and send what waits.

        Whether it was so.
        """
        since, link = self.since, self._link
        if not since or time.monotonic() < since + LENT_AFTER:
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            while True:
                for message in link.receive():
                    hear(message)
                # Sending may take in what has arrived, and say so to nobody.
                if not (link.is_readable or (link.outbox and link.flush())):
                    return True
        finally:
            self._turn.release()
