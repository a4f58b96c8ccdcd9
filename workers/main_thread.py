"""The main thread of a worker: it owns the data socket and, with one slot, runs bodies, one after the other.

The rule by which it begins them without a word to the session is that of `streak`.
"""

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import zmq

from quiesce.protocol.callables import Loaded, known_function
from quiesce.protocol.frames import as_payload
from quiesce.workers.attempt import Attempt, Verdict, phase_of
from quiesce.workers.kernel import Wake
from quiesce.workers.lending import Lending
from quiesce.workers.link import Link
from quiesce.workers.streak import Streak
from quiesce.workers.table import LEASE_TURNS, Place
from quiesce.workers.worker_effects import Effects, Ran
from quiesce.workers.worker_session import WorkerSession

if TYPE_CHECKING:
    from quiesce.workers.worker import Worker

#: Milliseconds between two looks at what waits for a thread.
_WATCH: Final = 1
#: Ends that may wait for it to look, with several slots.
_TOGETHER: Final = 32
#: Seconds for which bodies follow each other before it looks what has arrived.
_IN_A_ROW: Final = 0.002
#: Without the detour over the arguments of a named tuple.
_new: Final[Any] = tuple.__new__


def nothing_new(session: WorkerSession, now: float) -> Effects:
    """An event that is none: but whatever is said, the session learns first of what is known already."""
    del session, now
    return []


class MainThread:
    """What it does from when the worker has said hello."""

    def __init__(self, worker: "Worker", place: Place, link: Link) -> None:
        self._ident = threading.get_ident()
        self._worker = worker
        self._place = place
        self._link = link
        #: With one slot that link is lent while this thread runs a body.
        self.lending: Final = Lending(link)
        self.wake: Final = Wake()
        #: What is handed over with several slots, and what is with one.
        self.to_start: Final[deque[Attempt]] = deque()
        self.streak: Final = Streak()
        #: With several slots: it looks in each millisecond at what waits for a thread, and sends what has ended.
        self.watches = False
        #: What is known of the function of the last body, if that was quick: then its next call is expected to be.
        self._quick: Loaded | None = None

    @property
    def has_work(self) -> bool:
        """Whether something was handed over that nobody has taken."""
        waits = not self._worker.inline and self._worker.runner.is_waiting
        return bool(waits or self.to_start or self.streak.rows)

    def serve(self) -> None:
        """Hear, and begin what is handed over, until the worker quits."""
        worker, link, streak = self._worker, self._link, self.streak
        rows = streak.rows
        runner, to_start = worker.runner, self.to_start
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(self.wake, zmq.POLLIN)
        while not worker.quitting:
            if streak.over:
                worker.say(nothing_new)
            patience = None if link.flush() else 50
            if rows:
                self.run_in_a_row()
                if not rows:
                    continue  # first of all, what has ended leaves
                patience = 0
            with suppress(IndexError):  # another thread passes them on
                while to_start:
                    runner.start(to_start.popleft())
            if runner.look():
                patience = _WATCH
            self.watches = patience == _WATCH and not worker.inline
            if patience is None and (link.outbox or streak.over or self.has_work):
                continue  # who has left that saw that it watched, still
            for what, _ in poller.poll(patience):
                if what is link.socket:
                    for message in link.receive():
                        worker.hear(message)
                else:
                    self.wake.clear()

    def run_in_a_row(self) -> None:
        """Bodies, one after the other. What has ended before one that may take long has left."""
        now = time.monotonic()
        enough = now + _IN_A_ROW
        worker, streak, lending = self._worker, self.streak, self.lending
        outbox, rows = self._link.outbox, streak.rows
        lending.lend(now)
        while now < enough and not worker.quitting:
            turn = streak.turn
            try:
                known = known_function(rows[0].function)
                if (outbox or streak.over) and (known is None or known is not self._quick):
                    worker.say(nothing_new)
                    lending.take_back()
                    self._link.flush()
                    lending.lend(now)
                    turn = streak.turn
                row = rows.popleft()
            except IndexError:
                if not streak.over:
                    break
                worker.say(nothing_new)  # what waits may follow
                continue
            lending.since = now
            self._run(worker.make(row), turn, now)
            began, now = now, time.monotonic()
            self._quick = known if now < began + _IN_A_ROW else None
        if streak.over:
            worker.say(nothing_new)
        lending.take_back()

    def _run(self, attempt: Attempt, turn: int, now: float) -> None:
        """`turn`: of the streak, before the row of this attempt was taken from it."""
        worker, streak = self._worker, self.streak
        known = known_function(attempt.row.function)
        if known is None or known[1]:
            worker.runner.start(attempt)
            return
        attempt.begun_at = now
        streak.current = attempt
        if turn % 2 or turn != streak.turn or self._place.words[LEASE_TURNS] != worker.lease_turns:
            streak.current = None
            worker.runner.start(attempt)
            return
        worker.note_beginning(attempt)
        worker.runner.run(attempt, known)
        if streak.current is attempt:
            worker.say(nothing_new)  # it goes on, elsewhere; or the session was told its end
            streak.current = None

    def ends(self, attempt: Attempt, verdict: Verdict) -> bool:
        """An attempt has ended, in this thread or, with several slots, in any. False: the session must be told,
        for it knows something of it, or nobody would tell it soon.

        So it is if it was asked to stop, by the table's flag at least.
        """
        streak = self.streak
        # Another thread may end what this one has just run, and that has left something behind.
        is_current = streak.current is attempt and threading.get_ident() == self._ident
        if attempt.is_asked or not (is_current or self.goes_on):
            return False
        key, (outcome, text, result) = attempt.key, verdict
        self._place.end(key, phase_of(outcome))
        ran = (key, attempt.begun_at, time.monotonic(), outcome, text, as_payload(result))
        streak.over.append(_new(Ran, ran))
        if is_current:
            streak.current = None
        elif not self.goes_on:
            self.wake.set()
        return True

    def is_needed(self) -> bool:
        """For others, who have just told the session something: whether what follows can't wait until it looks.

        With several slots what was handed over goes on without it, to a thread that is awake.
        """
        if self.to_start:
            self._pass_on()
        if self._worker.quitting:
            return True
        outbox = self._link.outbox
        if self.goes_on and len(outbox) < _TOGETHER:
            return False
        return bool(outbox or self.has_work)

    def _pass_on(self) -> None:
        with suppress(IndexError):  # another thread does the same
            while True:
                attempt = self.to_start.popleft()
                if not self._worker.runner.start_soon(attempt):
                    self.to_start.appendleft(attempt)
                    return

    @property
    def goes_on(self) -> bool:
        """With several slots: a thread takes what waits, and before it begins that, the session is told what has
        ended. Should that last, the main thread tells it, within a millisecond.
        """
        return self.watches and self._worker.runner.is_waiting
