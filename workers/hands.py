"""Threads of the worker's own: no attempt waits for them, and none of them keeps the process alive."""

import contextvars
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from quiesce.locks import Lock
from quiesce.workers import logs
from quiesce.workers.hooks import start_thread

_log: Final = logging.getLogger("quiesce.worker")

Work = Callable[[], None]

#: Seconds that work may wait for a thread which is busy with other work.
PATIENCE: Final = 0.001
#: Seconds until another thread is tried, once none could be started.
_TRY_AGAIN: Final = 0.1


def start_own(thread: threading.Thread) -> None:
    """Start a thread outside of every task, wherever this is called."""
    contextvars.Context().run(start_thread, thread)


class Hands:
    """Threads that are made when all others are busy, and kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: Reentrant: the garbage collector may run code of a task's in here, which gives or leaves something.
        self._lock = Lock()
        #: What nobody has begun yet, oldest first.
        self._work: deque[Work] = deque()
        #: The locks on which idle threads sleep; the last to have fallen asleep is woken first.
        self._idle: list[threading.Lock] = []
        #: How many threads are awake: each takes what there is before it falls asleep.
        self._awake = 0
        self._made = 0
        #: How much was taken; and how much will have been once all is taken that waited at the last look.
        self._taken = self._waited = 0
        #: Who has taken something since that look, and whether one of them may fall asleep.
        self._takers: set[int] = set()
        self._too_many = False
        #: When the next look counts; infinite while nothing waits.
        self._look_at = math.inf
        self._was_late = False

    def give(self, work: Work) -> None:
        """Have `work` done in another thread, at once: nothing that is given waits for anything."""
        with self._lock:
            self._work.append(work)
            self._call_one()

    def queue(self, work: Work) -> None:
        """Have `work` done by a thread that is awake, after what it has: to wake another one costs more than most
        work takes. Somebody must `look` in each millisecond, as long as something waits.
        """
        with self._lock:
            self._work.append(work)
            if not self._awake:
                self._call_one()

    def leave(self, work: Work) -> bool:
        """`queue` it if a thread is awake and nobody calls others just now, which takes long. Whether it is."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._awake:
                self._work.append(work)
            return bool(self._awake)
        finally:
            self._lock.release()

    @property
    def is_waiting(self) -> bool:
        """Whether there is work that nobody has begun."""
        return bool(self._work)

    def look(self) -> bool:
        """See to it that nothing waits for long. Whether something waits.

        If what waited a millisecond ago waits still, those who were to take it are busy: a thread for each. Else
        one of several who have taken something falls asleep: all who are awake compete for the interpreter.

        Raises:
            RuntimeError: no thread can be started. What waits, waits on, for one that is there.
        """
        if not self._work:
            self._look_at = math.inf
            return False
        now = time.monotonic()
        if self._look_at == math.inf:
            self._was_late = False
            self._waited = self._taken + len(self._work)
            self._look_at = now + PATIENCE
        elif now >= self._look_at:
            # We are late for want of a processor, or of the interpreter: so may others be. That is told once.
            self._was_late = now > self._look_at + PATIENCE and not self._was_late
            self._look_at = now + _TRY_AGAIN  # unless this goes well
            if not self._was_late:
                self._judge()
            self._look_at = now + PATIENCE
        return True

    def _judge(self) -> None:
        with self._lock:
            is_stuck = self._taken < self._waited
            if is_stuck:
                self._call_all()
            self._too_many = not is_stuck and len(self._takers) > 1
            self._takers.clear()
            self._waited = self._taken + len(self._work)

    def hurry(self) -> None:
        """Whoever was expected to take what waits has been busy for long: a thread for each."""
        with self._lock:
            self._call_all()

    def take(self) -> Work | None:
        """Something that nobody has begun, to be done by the caller: for who can't get a thread for it."""
        with self._lock:
            return self._next()

    def _next(self) -> Work | None:
        """Under the lock: the oldest of what waits, for who does it now."""
        if not self._work:
            return None
        self._taken += 1
        self._takers.add(threading.get_ident())
        return self._work.popleft()

    def _call_all(self) -> None:
        for _ in range(len(self._work)):
            self._call_one()

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
        #: It has done something since it was called: who was called takes what there is.
        has_worked = False
        while True:
            with self._lock:
                work = None if self._too_many and has_worked else self._next()
                if work is None:
                    self._too_many = False
                    self._awake -= 1
                    self._idle.append(asleep)
            if work is None:
                asleep.acquire()
                has_worked = False
                continue
            try:
                work()
            except BaseException:
                logs.say(_log.exception, "a thread of the worker caught what nobody else did")
            del work  # holds an attempt, and with it a result
            has_worked = True
