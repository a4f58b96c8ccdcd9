"""Threads of the worker's own: no attempt waits for them, and none of them keeps the process alive."""

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from quiesce.workers import logs
from quiesce.workers.hooks import start_thread

_log: Final = logging.getLogger("quiesce.worker")

Work = Callable[[], None]


def start_own(thread: threading.Thread) -> None:
    """Start a thread outside of every task, wherever this is called."""
    contextvars.Context().run(start_thread, thread)


class Hands:
    """Threads that are made when all others are busy, and kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        #: What nobody has begun yet, oldest first.
        self._work: deque[Work] = deque()
        #: The locks on which idle threads sleep; the last to have fallen asleep is woken first.
        self._idle: list[threading.Lock] = []
        #: How many threads are awake: each takes what there is before it falls asleep.
        self._awake = 0
        self._made = 0

    def give(self, work: Work) -> None:
        """Have `work` done in another thread, at once: nothing that is given waits for anything."""
        with self._lock:
            self._work.append(work)
            self._call_one()

    def queue(self, work: Work) -> None:
        """Have `work` done by a thread that is awake, after what it has: to wake another one costs more than most
        work takes. Who queues must `hurry` soon, as long as `is_waiting`.
        """
        with self._lock:
            self._work.append(work)
            if not self._awake:
                self._call_one()

    @property
    def is_waiting(self) -> bool:
        """Whether there is work that nobody has begun."""
        return bool(self._work)

    def hurry(self) -> None:
        """Whoever was expected to take what waits has been busy for long: a thread for each."""
        with self._lock:
            for _ in range(len(self._work)):
                self._call_one()

    def take(self) -> Work | None:
        """Something that nobody has begun, to be done by the caller: for who can't get a thread for it."""
        with self._lock:
            return self._work.popleft() if self._work else None

    def _call_one(self) -> None:
        """Under the lock: one more thread is awake. RuntimeError: none can be started; what waits, waits on."""
        if self._idle:
            self._idle.pop().release()
        else:
            name = f"{self._name}-{self._made + 1}"
            start_own(threading.Thread(target=self._run, name=name, daemon=True))
            self._made += 1
        self._awake += 1

    def _run(self) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        while True:
            with self._lock:
                work = self._work.popleft() if self._work else None
                if work is None:
                    self._awake -= 1
                    self._idle.append(asleep)
            if work is None:
                asleep.acquire()
                continue
            try:
                work()
            except BaseException:
                logs.say(_log.exception, "a thread of the worker caught what nobody else did")
            del work  # holds an attempt, and with it a result
