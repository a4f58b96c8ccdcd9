"""The control thread of a worker: what must never wait behind a body or a payload.

It owns the control socket, acts on requests to stop and on force, keeps the session's time, watches the lease
of the pool, sees to it that the worker ends with its supervisor, and waits for the child processes of attempts that
close.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import zmq

from quiesce.protocol import from_worker
from quiesce.protocol.sizes import CONTROL_LIMIT
from quiesce.workers import logs
from quiesce.workers.attempt import Attempt
from quiesce.workers.forked import leave_child
from quiesce.workers.hands import Hands
from quiesce.workers.kernel import Wake, die_with_parent
from quiesce.workers.link import Link
from quiesce.workers.scope import CALLBACKS
from quiesce.workers.stacks import stacks_of
from quiesce.workers.sweeper import Sweeper
from quiesce.workers.tracing import apart
from quiesce.workers.worker_effects import AskToStop, ForceAttempt, Look
from quiesce.workers.worker_session import BEGUN_AFTER, WorkerSession

if TYPE_CHECKING:
    from quiesce.workers.worker import Worker

_log: Final = logging.getLogger("quiesce.worker")

#: Seconds between two looks at what closing attempts wait for.
_LOOK_EVERY: Final = 0.25
#: Between two looks at the lease of the pool: so many seconds, or that part of a short lease.
_WATCH_EVERY: Final = 1.0
_WATCH_PART: Final = 1 / 12


class ControlThread:
    """Started once the sockets exist; ends with the worker."""

    def __init__(self, worker: "Worker", link: Link, data: Link) -> None:
        self._worker = worker
        self._link = link
        self._links = {link.monitor: link, data.monitor: data}
        #: The links that were lost and are not back.
        self._lost: set[Link] = set()
        #: The descriptor that tells of the data socket, and whether this thread tends that just now.
        self._data_fd = int(data.socket.getsockopt(zmq.FD))
        self._tends_data = False
        self.wake = Wake()
        self._poller = zmq.Poller()
        self._sweeper = Sweeper(worker.nursery, self._poller, worker.running)
        self._sweep_due = False
        #: With which we end. (Nothing of a task has run yet that could outlive it.)
        self._supervisor = os.getppid()
        #: When to look at what closing attempts wait for; infinite while there are none.
        self._look_at = math.inf
        #: It wakes up to look at the lease of the pool: since there is one.
        self.watches_lease = False
        #: Requests to stop that another thread came to know of, to be made known by this one.
        self._asking: deque[AskToStop] = deque()
        #: Run the callbacks of tasks: this thread must not wait for code of theirs.
        self._hands = Hands("quiesce-callbacks")
        #: Somebody was woken since this thread waited last.
        self._woken = False
        #: Attempts with processes whose body has ended, from any thread.
        self._closing: deque[Attempt] = deque()
        #: The process was asked to end by SIGTERM; set by the signal handler.
        self.terminated = False
        self._retired = False
        #: How many attempts had begun when it last fell asleep.
        self._begun = 0
        #: Until when this thread sleeps at most; infinite while it works that out. Who makes something due
        #: before it wakes the thread.
        self.asleep_until = math.inf
        self.thread = threading.Thread(target=self._run, name="quiesce-control", daemon=True)

    def rouse(self) -> None:
        """Have it look at once. Until it does so nobody else needs to wake it. Any thread."""
        if threading.get_ident() == self.thread.ident:
            return  # it looks by itself before it falls asleep
        self.asleep_until = 0.0
        self.wake.set()

    def retire(self) -> None:
        """This process runs what it has begun, and ends; another one takes its place. Also in a signal handler."""
        self._retired = True
        self.wake.set()

    def close_processes(self, attempt: Attempt) -> None:
        """Wait for this attempt's child processes. Any thread."""
        self._closing.append(attempt)
        self.wake.set()

    def _run(self) -> None:
        try:
            for socket in (self._link.socket, self.wake, *self._links):
                self._poller.register(socket, zmq.POLLIN)
            while not self._worker.quitting:
                self._turn()
            self._link.flush()
            self._link.close(linger=500)
            for link in self._links.values():
                link.close_monitor()
        except BaseException:
            # A worker that can't hear a request to stop must not go on.
            logs.say(_log.exception, "the control thread failed; the worker ends")
            self._worker.fail()

    def _turn(self) -> None:
        woken = self._woken
        if woken:
            # Who was woken needs the interpreter, which this thread leaves to them only while it waits.
            self._woken = False
            timeout = 1
        else:
            timeout = self._timeout(self._link.flush())
        for what, _ in self._poller.poll(timeout):
            if what is self._link.socket:
                for message in self._link.receive():
                    self._worker.hear(message)
            elif what == self.wake.fileno():
                self.wake.clear()
            elif what in self._links:
                self._on_monitor(self._links[what])
            elif what != self._data_fd and self._sweeper.on_readable(what):
                self._sweep_due = True
        if woken and self._hands.is_waiting:
            # Others are before them, and take long.
            self._see_to_callbacks(self._hands.hurry)
        self._on_time()
        if self._worker.main.lending.tend(self._worker.hear) is not self._tends_data:
            self._tends_data = not self._tends_data
            if self._tends_data:
                self._poller.register(self._data_fd, zmq.POLLIN)
            else:
                self._poller.unregister(self._data_fd)

    def _timeout(self, sent: bool) -> int:
        now = time.monotonic()
        self.asleep_until = math.inf
        times = []
        if self._begun != self._worker.begun:
            # One beginning follows another: to look again soon costs less than to be woken for each.
            self._begun = self._worker.begun
            self.asleep_until = now + BEGUN_AFTER
            times.append(self.asleep_until)
        due = self._worker.due()
        if due is not None:
            times.append(due)
        if not sent:
            times.append(now + 0.05)
        if not self._worker.closing():
            self._look_at = math.inf
        else:
            # Not at once: most of what a body leaves behind ends within moments.
            self._look_at = min(self._look_at, now + _LOOK_EVERY)
            times.append(self._look_at)
        lease = self._worker.lease
        if lease:
            self.watches_lease = True
            times.append(now + min(_WATCH_EVERY, lease * _WATCH_PART))
        self.asleep_until = min(times, default=now + 3600)
        return int(max(0.0, self.asleep_until - now) * 1000) + 1

    def _on_monitor(self, link: Link) -> None:
        for connected in link.hear():
            if not connected:
                self._lost.add(link)
                self._worker.say(WorkerSession.connection_lost)
            elif link in self._lost:
                self._lost.discard(link)
                if not self._lost:
                    self._worker.say(WorkerSession.connected)

    def _on_time(self) -> None:
        worker = self._worker
        # Again and again: the kernel forgets it when a task has changed its user or group.
        die_with_parent(self._supervisor)
        worker.look_at_lease()
        while self._asking:
            self.ask_to_stop(self._asking.popleft())
        if self.terminated:
            self.terminated = False
            worker.say(WorkerSession.exit_asking, "the pool is going")
        if self._retired:
            self._retired = False
            logs.say(
                _log.info, "an import was interrupted: this process takes no more tasks, and ends"
            )
            worker.say(WorkerSession.exit)
        while self._closing:
            self._sweeper.close(self._closing.popleft())
            self._sweep_due = True
        now = time.monotonic()
        if self._sweep_due or (self._sweeper.put_off and now >= self._look_at):
            self._sweep_due = False
            self._sweeper.sweep()
            now = time.monotonic()
        due = worker.due()
        if due is not None and due <= now:
            worker.say(WorkerSession.tick)
        if now >= self._look_at:
            for attempt in worker.closing():
                self._tell_lingering(attempt)
            self._look_at = math.inf

    def _tell_lingering(self, attempt: Attempt) -> None:
        key = attempt.key
        what = attempt.scope.words(self._sweeper.words.get(key, ""))
        if what:
            self._worker.say(lambda session, now: session.linger(key, what))

    # --- effects that are this thread's -----------------------------------------------------------

    def ask_to_stop(self, effect: AskToStop) -> None:
        """Wake all that waits for the request, in this thread and no other: whoever else learns of the half lease
        may be in the midst of a task, with that task's locks.
        """
        if threading.get_ident() != self.thread.ident:
            self._asking.append(effect)
            self.wake.set()
            return
        attempt = self._worker.attempts.get((effect.task_id, effect.attempt))
        if attempt is None:
            return
        attempt.task.update(stopping=True, reason=effect.reason)
        if attempt.task.is_awaited:
            # What waits for the task's token is woken now. Said first: it may end at once.
            attempt.task.observe()
        self._woken = True
        # Callbacks are part of the task: it has not ended while one of them runs, and none begins when it has.
        mark = object()
        if not attempt.scope.hold(mark, CALLBACKS):
            return
        callbacks = attempt.task.wake(effect.reason)
        if callbacks is None:
            attempt.scope.release(mark)
            return
        self._see_to_callbacks(
            lambda: self._hands.queue(partial(self._call_back, attempt, callbacks, mark))
        )

    def _see_to_callbacks(self, call_hands: Callable[[], None]) -> None:
        try:
            call_hands()
        except RuntimeError:
            # No thread can be started. It may be these callbacks that make room, so better here than not at all.
            while (work := self._hands.take()) is not None:
                work()

    def _call_back(self, attempt: Attempt, callbacks: Callable[[], None], mark: object) -> None:
        """Run the callbacks of its tokens: code of the task's, which may take for ever, or fork."""
        ident = threading.get_ident()
        error: BaseException | None = None
        attempt.scope.threads[ident] = CALLBACKS
        try:
            apart(attempt.context.copy().run, callbacks)
        except BaseException as raised:
            error = raised
            if not self._worker.nursery.in_child:
                logs.say(_log.exception, "a callback of a token of %s failed", attempt.words())
        if self._worker.nursery.in_child:
            leave_child(error)
        attempt.scope.threads.pop(ident, None)
        attempt.scope.release(mark)

    def force(self, effect: ForceAttempt) -> None:
        """The grace is over."""
        attempt = self._worker.attempts.get((effect.task_id, effect.attempt))
        if attempt is not None:
            attempt.forced = True
            self._worker.runner.force(attempt)
            self._sweeper.force(attempt)

    def look(self, effect: Look) -> None:
        """Answer with stacks."""
        loop = self._worker.runner.loop
        rows: list[tuple[int, int, list[str]]] = []
        room = CONTROL_LIMIT // 8 // max(1, len(effect.keys))
        for task_id, number in effect.keys:
            attempt = self._worker.find(task_id, number)
            if attempt is not None:
                texts: list[Any] = stacks_of(attempt.scope, loop.running, loop.ident, room)
                rows.append((task_id, number, texts))
        self._link.outbox.append(from_worker.Stacks(effect.request, rows))
