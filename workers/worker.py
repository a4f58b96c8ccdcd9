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
from typing import Any, Final, NoReturn

import setproctitle
import zmq

from quiesce.context import TaskContext, set_client_factory
from quiesce.protocol import to_worker, wire
from quiesce.protocol.codec import Decoder
from quiesce.protocol.frames import as_payload
from quiesce.registry.ids import Attempt as AttemptNumber, AttemptKey, TaskId
from quiesce.registry.rows import AssignRow
from quiesce.registry.states import State
from quiesce.task_info import Fence, TaskInfo
from quiesce.workers import births, dumps, hooks, kernel, logs, task_logs
from quiesce.workers.attempt import PHASES, Attempt, Verdict
from quiesce.workers.control import ControlThread
from quiesce.workers.interrupt import Interrupt
from quiesce.workers.lease import half_over
from quiesce.workers.lending import Lending
from quiesce.workers.link import Link
from quiesce.workers.nested import NestedClient
from quiesce.workers.nursery import Nursery
from quiesce.workers.port import Port
from quiesce.workers.runner import Runner
from quiesce.workers.scope import Scope
from quiesce.workers.settings import PoolSettings
from quiesce.workers.table import ENTRIES, Place, PoolTable, flag_key
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
)
from quiesce.workers.worker_session import WorkerSession

_log: Final = logging.getLogger("quiesce.worker")

#: Milliseconds that an attempt may wait for a thread which is busy with another one.
HURRY: Final = 1
#: Seconds for which bodies follow each other in the main thread before it looks what has arrived.
IN_A_ROW: Final = 0.002
#: Seconds by which the control thread may be late.
SOON: Final = 0.003

#: Something that the session is told, at a moment.
Event = Callable[[WorkerSession, float], Effects]


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
        _log.exception("the worker failed; it ends")
    end_process(70)


class Worker:
    """The wiring. Made and run in the main thread."""

    def __init__(self, settings: PoolSettings, identity: Identity, place: Place) -> None:
        self._settings = settings
        self._place = place
        #: Guards the session, the table, `attempts`, and the order of what is queued.
        self._lock = threading.Lock()
        self._session = WorkerSession(identity)
        #: The thread that has the lock and tells the session something; 0 for none.
        self._speaker = 0
        self._deferred: deque[Event] = deque()
        #: The turns of the pool's lease that the session has been told.
        self._lease_turns = 0
        self._main = threading.get_ident()
        #: All and only what `session.handed` and `.running` hold, while nobody has the lock.
        self.attempts: dict[AttemptKey, Attempt] = {}
        #: Handed over by the session; the main thread starts them.
        self._to_start: deque[Attempt] = deque()
        #: How many attempts have begun here.
        self.begun = 0
        #: Set once: nothing runs any more, and the process ends with this status.
        self.quitting: Quit | None = None

        self._loaded = False
        self.nursery = Nursery()
        self._interrupt = Interrupt(self.nursery)
        hooks.install(self.nursery, self._interrupt.shield)
        self.runner = Runner(
            identity.slots,
            self.nursery,
            self._interrupt,
            self,
            finish=self._finish,
            on_linger=self._on_linger,
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
        #: With one slot that link is lent while the main thread runs a body.
        self.lending = Lending(self._data)
        #: The function of the last body, if that was quick: then the next call of it is expected to be, too.
        self._quick: object = None
        self._wake = kernel.Wake()
        self._control_link = Link(self._context, settings.control, decoder, wire.CONTROL_IO)
        self._control = ControlThread(self, self._control_link, self._data)
        signal.signal(signal.SIGTERM, self._on_terminate)

    # --- the main thread --------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Say hello, load what is to be loaded, and serve until Quit."""
        self.say(lambda session, now: session.start(now))
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
        self._serve()
        self._data.flush()
        self._control.thread.join(timeout=2.0)
        if not self._control.thread.is_alive():
            self._data.close(linger=500)
            self._context.term()
        quitting = self.quitting
        end_process(0 if quitting is None else quitting.status)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._data.socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        inline = self._settings.slots == 1
        while not self.quitting:
            patience = None if self._data.flush() else 50
            if self._to_start and inline:
                self._run_inline()
                patience = 0
            while self._to_start and not inline:
                self.runner.start(self._to_start.popleft())
            if self.runner.is_waiting:
                patience = HURRY
            ready = poller.poll(patience)
            if not ready and self.runner.is_waiting:
                self.runner.hurry()
            for what, _ in ready:
                if what is self._data.socket:
                    for message in self._data.receive():
                        self.hear(message)
                else:
                    self._wake.clear()

    def _run_inline(self) -> None:
        """Bodies, one after the other. What has ended before one that may take long has left."""
        now = time.monotonic()
        enough = now + IN_A_ROW
        while self._to_start and now < enough and not self.quitting:
            attempt = self._to_start.popleft()
            function = attempt.row.function
            if function != self._quick:
                self._data.flush()
            self.lending.lend(now)
            self.runner.start(attempt)
            self.lending.take_back()
            began, now = now, time.monotonic()
            self._quick = function if now < began + IN_A_ROW else None

    def fail(self) -> NoReturn:
        """The control thread has failed, and said so."""
        end_process(70)

    def _on_terminate(self, number: int, frame: object) -> None:
        self._control.terminated = True
        self._control.wake.set()

    def _on_linger(self) -> None:
        self._control.wake.set()

    # --- the session ------------------------------------------------------------------------------

    def hear(self, message: Any) -> None:
        """A message of the broker."""
        self.say(lambda session, now: session.receive(message, now))

    def say(self, event: Event) -> None:
        """Tell the session something, and do what it wants done. Any thread."""
        if self._speaker == threading.get_ident():
            # User code that the garbage collector ran in the midst of `_say`.
            self._deferred.append(event)
            return
        with self._interrupt.shield:
            later = self._say(event)
        for effect in later:
            self._do(effect)
        if self.quitting and self.quitting.status:
            _log.error("%s", self.quitting.text)
            end_process(self.quitting.status)

    def _say(self, event: Event) -> Effects:
        later: Effects = []
        me = threading.get_ident()
        deferred, queue, control = self._deferred, self._queue, self._control
        with self._lock:
            self._speaker = me
            if self._place.lease_turns != self._lease_turns:
                self._tell_lease()  # first: what has ended or begins is judged by it
            deferred.append(event)
            try:
                while deferred:
                    now = time.monotonic()
                    for effect in deferred.popleft()(self._session, now):
                        if not queue(effect):
                            later.append(effect)
            finally:
                self._speaker = 0
            is_sooner = self._is_sooner(now)
        if (self._data.outbox or self._to_start or self.quitting) and me != self._main:
            (control.wake if self.lending.since else self._wake).set()
        if (
            self._control_link.outbox
            or is_sooner
            or self.quitting
            or not (control.watches_lease or self._place.lease <= 0)
        ):
            control.rouse()
        return later

    def _is_sooner(self, now: float) -> bool:
        """Under the lock: whether something is due before the control thread looks, and that is not soon."""
        looks_at = self._control.asleep_until
        if looks_at <= now + SOON:
            return False
        due = self._session.due()
        return due is not None and due < looks_at

    def _tell_lease(self) -> None:
        """Under the lock: each turn is told, since in each half lease the flags of all that ran were set."""
        reason = half_over(self._place.lease)
        while self._lease_turns < self._place.lease_turns:
            self._lease_turns += 1
            if self._lease_turns % 2:
                self._deferred.append(lambda session, now: session.lease_half_over(reason, now))
            else:
                self._deferred.append(lambda session, now: session.lease_is_back(now))

    def _queue(self, effect: Any) -> bool:
        """Under the lock: what must keep its order. False: it is to be done after the lock."""
        kind = type(effect)
        if kind is Data:
            self._data.outbox.append(effect.message)
        elif kind is Hand:
            self._hand(effect.row)
        elif kind is Forget:
            self._place.free(effect.task_id, effect.attempt)
            self.attempts.pop((effect.task_id, effect.attempt), None)
        elif kind is Control:
            self._control_link.outbox.append(effect.message)
        elif kind is Quit:
            self.quitting = effect
        else:
            return False
        return True

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
        if self._place.lease_turns != self._lease_turns:
            self.say(lambda session, now: [])

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
        with self._lock:
            return [each for each in self.attempts.values() if each.scope.body_over]

    def find(self, task_id: int, number: int) -> Attempt | None:
        """An attempt that was handed over and has not ended."""
        return self.attempts.get((TaskId(task_id), AttemptNumber(number)))

    # --- attempts ---------------------------------------------------------------------------------

    def _hand(self, row: AssignRow) -> None:
        """Under the lock: make the attempt; nothing of it has begun."""
        entry = self._place.reserve(row.task_id, row.attempt)
        session, place = self._session, self._place
        identity = session.identity
        fence = (session.epoch, session.incarnation, row.attempt)
        attempt: Attempt
        scope = Scope(
            on_empty=lambda: self.runner.on_empty(attempt),
            on_processes=lambda: self._control.close_processes(attempt),
        )
        task = TaskContext(
            key=(row.task_id, row.attempt),
            describe=lambda: describe(row, identity, Fence(*fence)),
            port=self._port,
            words=place.words,
            flag_index=place.flag_index(entry),
            check_index=place.check_index(entry),
            flag_key=flag_key(row.task_id, row.attempt),
            scope=scope,
        )
        attempt = Attempt(row, task, scope)
        self.attempts[attempt.key] = attempt
        self._to_start.append(attempt)

    # The gate. All of it is one step each under the lock, so an attempt either is stopped or begins. That it
    # has begun is in the table before its first instruction can run.

    def may_load(self, attempt: Attempt) -> bool:
        """See Gate."""
        return self._pass(attempt, lambda session, now: session.load(attempt.key, now))

    def may_run(self, attempt: Attempt) -> bool:
        """See Gate."""
        return self._pass(attempt, lambda session, now: session.begin(attempt.key, now))

    def runs(self, attempt: Attempt) -> None:
        """See Gate. It began when it was loaded: nothing can come of it but a sooner word to the broker."""
        with self._interrupt.shield, self._lock:
            now = time.monotonic()
            self._session.begin(attempt.key, now)
            is_sooner = self._is_sooner(now)
        if is_sooner:
            self._control.rouse()

    def _pass(self, attempt: Attempt, begin: Event) -> bool:
        is_ours = False

        def event(session: WorkerSession, now: float) -> Effects:
            nonlocal is_ours
            # Not by its key alone: it may have been stopped, and be assigned to us again.
            is_ours = self.attempts.get(attempt.key) is attempt
            if not is_ours:
                return []
            if attempt.key in session.handed:
                self.begun += 1
                self._place.begin(*attempt.key)
                attempt.task.update(started_at=time.time())
            return begin(session, now)

        self.say(event)
        return is_ours

    def may_wait(self, attempt: Attempt) -> bool:
        """See Gate. What has left a thread or a process behind has begun, and stays so."""
        asked = None

        def event(session: WorkerSession, now: float) -> Effects:
            nonlocal asked
            asked = session.asked.get(attempt.key)
            effects = session.put_off(attempt.key) if attempt.scope.is_bare else []
            if attempt.key in session.handed:
                self._place.put_off(*attempt.key)
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

        def ended(session: WorkerSession, now: float) -> Effects:
            self._place.end(*attempt.key, PHASES[verdict.outcome])
            del self.attempts[attempt.key]
            result = as_payload(verdict.result)
            return session.ended(attempt.key, verdict.outcome, verdict.text, result, now)

        self.say(ended)


def describe(row: AssignRow, identity: Identity, fence: Fence) -> TaskInfo:
    """An attempt as it sees itself when it begins; when that was, the worker tells it then."""
    return TaskInfo(
        id=row.task_id,
        attempt=row.attempt,
        kind=row.kind,
        name=row.name,
        runtime=identity.runtime,
        tenant_id=row.tenant_id,
        timeline_id=row.timeline_id,
        state=State.RUNNING,
        created_at=row.created_at,
        host=identity.host,
        worker_pid=identity.pid,
        fence=fence,
    )


def end_process(status: int) -> NoReturn:
    """Threads of tasks do not keep the process alive, and nothing that runs at exit can hold it up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)
