"""Threads of the worker's own: no attempt waits for them, and none of them keeps the process alive."""

import contextvars
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from quiesce.workers.hooks import start_thread

_log = logging.getLogger("quiesce.worker")


def start_own(thread: threading.Thread) -> None:
    """Start a thread outside of every task, wherever this is called."""
    contextvars.Context().run(start_thread, thread)


class Hands:
    """Threads that are made when all others are busy, and kept. Nothing that is given ever waits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        #: How many threads wait for work that is not in the queue yet.
        self._idle = 0
        self._made = 0

    def give(self, work: Callable[[], None]) -> None:
        """Have `work` done in another thread, at once."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._work.put(work)
                return
            self._made += 1
            name = f"{self._name}-{self._made}"
        start_own(threading.Thread(target=self._run, args=(work,), name=name, daemon=True))

    def _run(self, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except BaseException:
                _log.exception("a thread of the worker caught what nobody else did")
            del work  # holds an attempt, and with it a result
            with self._lock:
                self._idle += 1
            work = self._work.get()
