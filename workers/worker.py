"""A worker process: two sockets, two threads, one session, and the attempts that run.

The main thread owns the data socket and, with one slot, runs synchronous bodies itself: should one take long,
the control thread (`control`) tends that socket meanwhile, besides its own, the control socket. All that either
hears, and all that attempts have to say, goes through the session under one lock; what the session wants done
is queued in its order under the same lock.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

import setproctitle
import zmq

from quiesce.context import TaskContext, set_client_factory
from quiesce.locks import Lock
from quiesce.protocol import to_worker, wire
from quiesce.protocol.codec import Decoder
from quiesce.protocol.frames import as_payload
from quiesce.registry.ids import Attempt as AttemptNumber, AttemptKey, TaskId
from quiesce.registry.rows import AssignRow
from quiesce.workers import births, dumps, hooks, kernel, logs, task_logs, tracing
from quiesce.workers.attempt import Attempt, Verdict, info_of, phase_of
from quiesce.workers.control import ControlThread
from quiesce.workers.interrupt import Interrupt
from quiesce.workers.lease import half_over
from quiesce.workers.link import Link
from quiesce.workers.main_thread import MainThread, nothing_new
from quiesce.workers.nested import NestedClient
from quiesce.workers.nursery import Nursery
from quiesce.workers.port import Port
from quiesce.workers.runner import Runner
from quiesce.workers.scope import Scope
from quiesce.workers.settings import PoolSettings
from quiesce.workers.table import CHECKS, ENTRIES, FLAG, LEASE_TURNS, Place, PoolTable, flag_key
from quiesce.workers.worker_effects import (
    AskToStop,
    Control,
    Data,
    Effects,
    ForceAttempt,
    Forget,
    Hand,
    Identity,
    Limit,
    Look,
    Quit,
    Settle,
    Withdraw,
)
from quiesce.workers.worker_session import WorkerSession

_log: Final = logging.getLogger("quiesce.worker")

#: Seconds by which the control thread may be late.
SOON: Final = 0.003

#: Something that the session is told: called with the session, what else it is given, and last the moment.
Event = Callable[..., Effects]


def worker_main(
    settings_json: str, supervisor: bytes, serial: int, place: int, table: str
) -> NoReturn:
    """The whole life of a worker process, from when it will end with its supervisor (see `work`).

    `table`: the path by which the pool's shared memory is opened; `place`: which part of it is ours.
    """
    kernel.become_subreaper()  # orphans of a task fall to us, where we can tell whose they are
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by who started us
    faulthandler.enable()
    settings = PoolSettings.from_json(settings_json)
    setproctitle.setproctitle(settings.title or f"{settings.runtime} worker")
    logs.configure(
        settings.log_level,
        settings.runtime,
        settings.log_format,
        file=settings.log_file,
        task=task_logs.current_values,
    )
    if settings.app_dir:
        sys.path.insert(0, settings.app_dir)
    identity = Identity(
        settings.runtime,
        supervisor,
        serial,
        os.getpid(),
        socket.gethostname(),
        settings.slots,
        ENTRIES,
    )
    try:
        own = PoolTable.open(table).place(place)
        dumps.register(own)
        Worker(settings, identity, own).run()
    except BaseException:
        logs.say(_log.exception, "the worker failed; it ends")
    end_process(70)


class Worker:
    """The wiring. Made and run in the main thread."""

    def __init__(self, settings: PoolSettings, identity: Identity, place: Place) -> None:
        self._settings = settings
        self._place = place
        #: Guards the session, the table, `attempts`, and the order of what is queued.
        self._lock = Lock()
        self._session = WorkerSession(identity)
        #: The thread that has the lock and tells the session something; 0 for none.
        self._speaker = 0
        self._deferred: deque[tuple[Event, tuple[Any, ...]]] = deque()
        #: The turns of the pool's lease that the session has been told.
        self.lease_turns = 0
        self._main = threading.get_ident()
        #: All and only what `session.handed` and `.running` hold, but for what waits in the streak, while nobody
        #: has the lock.
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.inline: Final = settings.slots == 1
        #: How many attempts have begun here.
        self.begun = 0
        #: Set once: nothing runs any more, and the process ends with this status.
        self.quitting: Quit | None = None

        self._loaded = False
        self.nursery = Nursery()
        self._interrupt = Interrupt(self.nursery, lambda: self._control.retire())  # noqa: PLW0108 - it is made later
        hooks.install(self.nursery, self._interrupt.shield)
        self._interrupt.signals.watch(
            lambda: self._interrupt.target is not None, self._before_signals
        )
        self.runner = Runner(
            identity.slots,
            self.nursery,
            self._interrupt,
            self,
            finish=self._finish,
            on_linger=self._on_linger,
            on_shortage=lambda: self.main.wake.set(),  # noqa: PLW0108 - as above
            ends_at_once=lambda attempt: self._client.is_unused and not attempt.scope.forks,
        )
        self._port = Port(self.say, self.nursery)
        self._client = NestedClient(
            settings.client_factory, settings.address, lambda: self._session.incarnation
        )
        set_client_factory(self._client.get)

        decoder = Decoder(to_worker.MESSAGES)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=wire.IO_THREADS)
        self._data = Link(self._context, settings.data, decoder, wire.DATA_IO)
        self.main: Final = MainThread(self, place, self._data)
        self._control_link = Link(self._context, settings.control, decoder, wire.CONTROL_IO)
        self._control = ControlThread(self, self._control_link, self._data)
        signal.signal(signal.SIGTERM, self._on_terminate)

    # --- the main thread --------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Say hello, load what is to be loaded, and serve until Quit."""
        self.say(WorkerSession.start)
        self._control.thread.start()
        try:
            for module in self._settings.preload:
                __import__(module)
        except BaseException:
            _log.exception("a module of `preload` can't be imported; the worker ends")
            end_process(1)
        self._loaded = True
        if self._session.registered:
            self._place.set_ready()
        self.main.serve()
        self._data.flush()
        self._control.thread.join(timeout=2.0)
        if not self._control.thread.is_alive():
            self._data.close(linger=500)
            self._context.term()
        quitting = self.quitting
        end_process(0 if quitting is None else quitting.status)

    def fail(self) -> NoReturn:
        """The control thread has failed, and said so."""
        end_process(70)

    def _on_terminate(self, number: int, frame: object) -> None:
        self._control.terminated = True
        self._control.wake.set()

    def _before_signals(self) -> None:
        """What a handler raises in the midst of `_say` may undo what its own task says, and nothing of its
        neighbours': what is known of those the session learns now.
        """
        if not self.nursery.in_child:
            self.say(nothing_new)

    def _on_linger(self) -> None:
        self._control.wake.set()

    # --- the session ------------------------------------------------------------------------------

    def hear(self, message: Any) -> None:
        """A message of the broker."""
        self.say(WorkerSession.receive, message)

    def say(self, event: Event, *args: Any) -> None:
        """Tell the session something, and do what it wants done. Any thread."""
        me = threading.get_ident()
        if self._speaker == me:
            # User code that the garbage collector ran in the midst of `_say`.
            self._deferred.append((event, args))
            return
        if me == self._main and self._interrupt.target is not None:
            with self._interrupt.shield:
                later = tracing.untraced(self._say, me, event, args)
        else:
            later = tracing.untraced(self._say, me, event, args)  # no interrupt can raise in here
        for effect in later:
            self._do(effect)
        if self.quitting and self.quitting.status:
            logs.say(_log.error, "%s", self.quitting.text)
            end_process(self.quitting.status)

    def _say(self, me: int, event: Event, args: tuple[Any, ...]) -> Effects:
        later: Effects = []
        session, deferred = self._session, self._deferred
        control, main, streak = self._control, self.main, self.main.streak
        with self._lock:
            self._speaker = me
            streak.turn += 1
            try:
                if streak.current is not None or streak.over:
                    later += self._queue(self._catch_up())
                if self._place.words[LEASE_TURNS] != self.lease_turns:
                    self._tell_lease()  # first: what ends or begins now is judged by it
                    deferred.append((event, args))
                    event, args = deferred.popleft()
                while True:
                    now = time.monotonic()
                    effects = event(session, *args, now)
                    if effects:
                        later += self._queue(effects)
                    is_sooner = control.asleep_until > now + SOON and self._is_sooner()
                    if not deferred:
                        break
                    event, args = deferred.popleft()
            finally:
                streak.turn += 1
                self._speaker = 0
        if me != self._main and main.is_needed():
            (control.wake if main.lending.since else main.wake).set()
        if (
            self._control_link.outbox
            or is_sooner
            or self.quitting
            or not (control.watches_lease or self._place.lease <= 0)
        ):
            control.rouse()
        return later

    def _catch_up(self) -> Effects:
        """Under the lock, before all else: tell the session what has begun and ended without it."""
        streak, session = self.main.streak, self._session
        current = streak.current  # first: what is over by then is in the list
        over = streak.over[:]
        del streak.over[: len(over)]
        for ran in over:
            del self.attempts[ran.key]
        effects = session.ran(over, time.monotonic()) if over else []
        if current is not None and self._is_handed(current):
            effects += session.begin(current.key, current.begun_at)
        return effects

    def _is_handed(self, attempt: Attempt) -> bool:
        """Under the lock. Not by its key alone: it may have been stopped, and be assigned to us again."""
        key = attempt.key
        return self.attempts.get(key) is attempt and self._session.handed.get(key) is attempt.row

    def _is_sooner(self) -> bool:
        """Under the lock: whether something is due before the control thread looks."""
        due = self._session.due()
        return due is not None and due < self._control.asleep_until

    def _tell_lease(self) -> None:
        """Under the lock: each turn is told, since in each half lease the flags of all that ran were set."""
        reason = half_over(self._place.lease)
        while self.lease_turns < self._place.lease_turns:
            self.lease_turns += 1
            if self.lease_turns % 2:
                self._deferred.append((WorkerSession.lease_half_over, (reason,)))
            else:
                self._deferred.append((WorkerSession.lease_is_back, ()))

    def _queue(self, effects: list[Any]) -> Effects:
        """Under the lock: what must keep its order. The others, which are to be done after the lock."""
        later: Effects = []
        for effect in effects:
            kind = type(effect)
            if kind is Data:
                self._data.outbox.append(effect.message)
            elif kind is Hand:
                if self.inline:
                    self.main.streak.rows.extend(effect.rows)
                else:
                    self.main.to_start.extend(map(self.make, effect.rows))
            elif kind is Forget:
                for key in effect.keys:
                    self._place.free(key)
            elif kind is Withdraw:
                for key in effect.keys:
                    # None: not made yet. Or the main thread is making it, and has an entry for it, which it frees
                    # when it asks, or keeps if it is handed over anew by then.
                    if self.attempts.pop(key, None) is not None:
                        self._place.free(key)
                self.main.streak.withdraw(effect.keys)
            elif kind is Control:
                self._control_link.outbox.append(effect.message)
            elif kind is Quit:
                self.quitting = effect
            else:
                later.append(effect)
        return later

    def _do(self, effect: Any) -> None:
        match effect:
            case AskToStop():
                self._control.ask_to_stop(effect)
            case ForceAttempt():
                self._control.force(effect)
            case Settle():
                self._port.settle(effect)
            case Look():
                self._control.look(effect)
            case Limit(limit):
                self.runner.limit = limit
                if self._loaded:
                    self._place.set_ready()

    @property
    def lease(self) -> float:
        """Seconds of the pool's lease, 0.0 before there is one."""
        return self._place.lease

    def look_at_lease(self) -> None:
        """Tell the session if the lease of the pool is half over, or back."""
        if self._place.lease_turns != self.lease_turns:
            self.say(nothing_new)

    def due(self) -> float | None:
        """When the session wants its tick."""
        with self._lock:
            return self._session.due()

    def running(self) -> list[Attempt]:
        """All attempts that were handed over and have not ended."""
        with self._lock:
            return list(self.attempts.values())

    def closing(self) -> list[Attempt]:
        """The attempts whose body has ended, and not all that it began."""
        # A copy: with one slot the main thread adds to them without the lock.
        return [each for each in self.running() if each.scope.body_over]

    def find(self, task_id: int, number: int) -> Attempt | None:
        """An attempt that was handed over and has not ended."""
        return self.attempts.get((TaskId(task_id), AttemptNumber(number)))

    # --- attempts ---------------------------------------------------------------------------------

    def make(self, row: AssignRow) -> Attempt:
        """Make an attempt of which nothing has begun: under the lock, or by the main thread with one slot."""
        key = (row.task_id, row.attempt)
        at = self._place.reserve(key)
        session = self._session
        scope = Scope(key, self)
        task = TaskContext(
            key,
            self._port,
            self._place.words,
            at + FLAG,
            at + CHECKS,
            flag_key(row.task_id, row.attempt),
            info_of,
            (row, session.identity, session.epoch, session.incarnation),
            scope,
        )
        attempt = self.attempts[key] = Attempt(key, row, task, scope)
        return attempt

    def on_empty(self, key: AttemptKey) -> None:
        """See Owner."""
        if not self.nursery.in_child:  # whatever is released there, the attempt is not its own
            self.runner.on_empty(self.attempts[key])

    def on_processes(self, key: AttemptKey) -> None:
        """See Owner."""
        attempt = self.attempts.get(key)
        # None: it has ended, and somebody has kept its context and used it.
        if attempt is not None:
            self._control.close_processes(attempt)

    # The gate. All of it is one step each under the lock, so an attempt either is stopped or begins. That it
    # has begun is in the table before its first instruction can run.

    def may_load(self, attempt: Attempt) -> bool:
        """See Gate."""
        self.say(self._pass, attempt, WorkerSession.load)
        return attempt.has_passed

    def may_run(self, attempt: Attempt) -> bool:
        """See Gate."""
        self.say(self._pass, attempt, WorkerSession.begin)
        return attempt.has_passed

    def runs(self, attempt: Attempt) -> None:
        """See Gate. It began when it was loaded: nothing can come of it but a sooner word to the broker."""
        self.say(WorkerSession.begin, attempt.key)

    def _pass(
        self,
        session: WorkerSession,
        attempt: Attempt,
        begin: Callable[[WorkerSession, AttemptKey, float], Effects],
        now: float,
    ) -> Effects:
        """Under the lock."""
        key = attempt.key
        is_known, is_handed = self.attempts.get(key) is attempt, self._is_handed(attempt)
        attempt.has_passed = is_handed or (is_known and key in session.running)
        if not attempt.has_passed:
            if is_known:  # made of a row that was withdrawn before
                del self.attempts[key]
                self._place.free(key)
            return []
        if is_handed or attempt.where is None:
            attempt.begun_at = now
            self.note_beginning(attempt)
        # What follows it is withdrawn. It may be there itself, if it was handed over anew when we had it already.
        self.main.streak.rows.clear()
        return begin(session, key, now)

    def note_beginning(self, attempt: Attempt) -> None:
        """Before the first instruction of an attempt: it is in the table from now on."""
        self.begun += 1
        self._place.begin(attempt.key)
        attempt.task.began(time.time())

    def may_wait(self, attempt: Attempt) -> bool:
        """See Gate. What has left a thread or a process behind has begun, and stays so."""
        asked = None

        def event(session: WorkerSession, now: float) -> Effects:
            nonlocal asked
            asked = session.asked.get(attempt.key)
            effects = session.put_off(attempt.key) if attempt.scope.is_bare else []
            if attempt.key in session.handed:
                self._place.put_off(attempt.key)
            return effects

        self.say(event)
        if asked is not None:
            # The control thread is about to, but its end is judged here.
            attempt.task.root.cancel(asked.reason)
        return asked is None

    def _finish(self, attempt: Attempt, verdict: Verdict) -> None:
        """All that the attempt began has ended: say so, once its spawns are acknowledged."""
        self._client.wait_spawned(attempt.key)
        if attempt.scope.forks:
            births.bury(self.nursery, attempt.key)
        if not self.main.ends(attempt, verdict):
            self.say(self._end, attempt.key, verdict)

    def _end(
        self, session: WorkerSession, key: AttemptKey, verdict: Verdict, now: float
    ) -> Effects:
        """Under the lock."""
        outcome, text, result = verdict
        self._place.end(key, phase_of(outcome))
        del self.attempts[key]
        return session.ended(key, outcome, text, as_payload(result), now)


def end_process(status: int) -> NoReturn:
    """Threads of tasks do not keep the process alive, nor does anything that is to be done at its end."""
    try:
        for what, last in ((logging, "shutdown"), (sys.stdout, "flush"), (sys.stderr, "flush")):
            with suppress(BaseException):  # a task may have put anything in their place
                getattr(what, last)()
    finally:
        os._exit(status)
