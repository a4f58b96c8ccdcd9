"""The I/O thread of a client: the only one that touches its sockets and its session machine.

Other threads hand over commands through the mailbox and wait on records; an eventfd wakes the thread, and
only when it sleeps. One turn: take commands, read what has arrived (control first), acknowledge, wake who
waits, sleep.
"""

import atexit
import math
import os
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Final

from quiesce.client import mailbox, outcomes
from quiesce.client.connection import Connection
from quiesce.client.ledger import Ledger
from quiesce.client.mailbox import Listener, Mailbox, records_of
from quiesce.client.records import Reply, SpawnRecord, Trouble, log
from quiesce.client.session import ClientSession
from quiesce.client.session_state import READY
from quiesce.client.steps import (
    DATA,
    Answered,
    Arrived,
    BrokerLeaving,
    Connected,
    Disconnected,
    Effect,
    Event,
    EventArrived,
    EventsMissed,
    HeartbeatDue,
    LeaveWanted,
    ManyWanted,
    Ready,
    Rejected,
    Replied,
    Request,
    RequestAbandoned,
    RequestWanted,
    ResultsGone,
    Send,
    SessionGiven,
    SessionWanted,
    SpawnsUnknown,
    SpawnsWanted,
    TasksEnded,
    TurnEnded,
)
from quiesce.client.waiting import LoopBell, Waitable, wait_for, wait_for_async
from quiesce.errors import ProtocolError, QuiesceError
from quiesce.protocol import from_client, to_client
from quiesce.protocol.addresses import endpoints
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.frames import Payload
from quiesce.registry.rows import SpawnRow
from quiesce.values import Event as PublicEvent

#: Seconds between heartbeats.
HEARTBEAT: Final = 5.0
#: Seconds for which an acknowledgement of results waits for company, and results that do.
_ACK_AFTER: Final = 0.005
_ACK_MANY: Final = 512
#: Commands taken, and messages read from one socket, in one turn.
_TURN: Final = 1024
#: Seconds that a client nobody closed has at most, to send what is pending.
_LAST_WORDS: Final = 1.0
#: Milliseconds for the Goodbye to leave.
_LINGER: Final = 250

_UNAVAILABLE: Final = "BrokerUnavailableError"
_CLOSED_REQUEST: Final = (_UNAVAILABLE, "the client was closed before the broker had answered")
_CLOSED_ANSWERED: Final = (
    _UNAVAILABLE,
    "the client was closed before the end of the task had arrived; that stops no task: ask by its id",
)
_CLOSED_UNANSWERED: Final = (
    _UNAVAILABLE,
    (
        "the client was closed before the broker had answered this spawn; "
        "whether it was registered is unknown"
    ),
)


class Driver:
    """See the module. `lock` guards all records of this client; wakers run outside of it."""

    def __init__(self, address: str, worker: int = 0) -> None:
        self.address = address
        self._endpoints = endpoints(address)
        self._mail = Mailbox()
        self.lock = self._mail.lock
        self._ledger = Ledger(self.lock)
        self._session = ClientSession(
            session=os.urandom(16), pid=os.getpid(), host=socket.gethostname(), worker=worker
        )
        self._decoder = Decoder(to_client.MESSAGES)
        #: Over once the broker has welcomed us; its `trouble`, if it won't or the thread has ended.
        self.ready = Reply()
        #: Over once the thread has closed everything.
        self.ended = Waitable()
        #: Spawns whose answer had not come when it ended.
        self.unanswered_at_end = 0
        self.payload_limit = 0
        #: What the broker said last of itself, for error texts.
        self.leaving = ""
        #: When a message of the broker was last read; monotonic.
        self._heard_at = time.monotonic()
        #: Guarded by the lock.
        self._listeners: list[Listener] = []
        self._thread = threading.Thread(target=self._main, name="quiesce-client", daemon=True)

    def start(self) -> None:
        """Begin to connect. Once, before all else."""
        try:
            self._thread.start()
            atexit.register(self._at_exit)
        except BaseException:  # a KeyboardInterrupt, too: nobody will ever have this
            self._mail.close(0)
            raise

    # --- from any thread ---------------------------------------------------------------------

    def spawn(self, record: SpawnRecord) -> None:
        """Hand over one spawn. It is in the order of all spawns and requests of this client."""
        parent = record.parent
        self._mail.put(record, None if parent is None else partial(self._ledger.expect, parent, 1))

    def spawn_many(
        self, common: SpawnRow, arguments: list[Payload], records: list[SpawnRecord]
    ) -> None:
        """Hand over spawns of which all or none are to be registered."""
        parent, count = common.parent, len(records)
        self._mail.put(
            mailbox.Many(common, arguments, records),
            None if parent is None else partial(self._ledger.expect, parent, count),
        )

    def refuse(self, records: list[SpawnRecord], trouble: Trouble) -> None:
        """These spawns are not handed over, for this reason; it is told as a refusal of the broker is."""
        self._mail.check_process()
        with self.lock:
            self._mail.check_open()
            self._ledger.refuse_here(records, trouble)

    def ask(self, message: Request, reply: Reply | None = None, *, orphan: bool = False) -> Reply:
        """Hand over a request. `orphan`: nobody waits for its answer.

        `reply`: of `mailbox.reply_to`, for who must be able to abandon it even if this call is interrupted.
        """
        if reply is None:
            reply = mailbox.reply_to(message, orphan=orphan)
        self._mail.put(mailbox.Ask(message, reply))
        return reply

    def answer(self, record: SpawnRecord) -> Waitable:
        """What is over once the broker has answered this spawn."""
        self._mail.check_process()
        return record.answer(self.lock)

    def abandon(self, reply: Reply) -> None:
        """Nobody waits for this answer any more. A held scope whose report came, or still comes, is released.

        Of a request that may never have been handed over, too; and any number of times.
        """
        if self.forked:
            return
        with self.lock:
            if reply.orphan:
                return
            reply.orphan = True
            if not reply.over:
                if not self.ended.over:
                    self._mail.post(mailbox.Abandon(reply))
                return
        self._release_orphan(reply)

    def listen(self, listener: Listener) -> Reply:
        """Call `listener` with events, in the I/O thread, until it answers False; the reply to Subscribe."""
        command = mailbox.ask(from_client.Subscribe(0))
        self._mail.put(command, partial(self._listeners.append, listener))
        return command.reply

    def unlisten(self, listener: Listener) -> None:
        """No more events for this one; none from the broker once nobody listens."""
        if self.forked:
            return
        with self.lock:
            if listener not in self._listeners:
                return
            self._listeners.remove(listener)
            if not self._listeners and not self.closing:
                self._mail.post(mailbox.ask(from_client.Unsubscribe(0), orphan=True))

    def wait(self, thing: Waitable, timeout: float | None, *, interruptible: bool = True) -> bool:
        """`wait_for`, of something of this client."""
        if not thing.over:
            self._mail.check_process()
        return wait_for(thing, self.lock, timeout, interruptible=interruptible)

    async def wait_async(
        self,
        thing: Waitable,
        timeout: float | None,  # noqa: ASYNC109 - as `wait_for_async`
        bell: LoopBell,
        *,
        interruptible: bool = True,
    ) -> bool:
        """`wait_for_async`, of something of this client."""
        if not thing.over:
            self._mail.check_process()
        return await wait_for_async(thing, self.lock, timeout, bell, interruptible=interruptible)

    def wait_settled(self, parent: tuple[int, int], timeout: float) -> bool:
        """Whether all spawns made by this attempt are answered within `timeout` seconds."""
        return self._ledger.wait_settled(parent, timeout)

    def silence(self) -> float | None:
        """Seconds since the broker was last heard, if it may be gone; None while it answers.

        It may be gone when a connection is down, or not welcomed (again) yet, or two heartbeats were in vain.
        """
        silent = time.monotonic() - self._heard_at
        up = all(state == READY for state in self._session.channels.values())
        return None if up and silent <= 2 * HEARTBEAT else silent

    def close(self, timeout: float, unavailable: str = "") -> None:
        """Begin to end: send what is pending, have up to `timeout` seconds for answers, say goodbye.

        Returns at once; `ended` tells when it is done. `unavailable`: why there is no broker any more.
        """
        self._mail.close(timeout, (_UNAVAILABLE, unavailable) if unavailable else None)

    @property
    def closing(self) -> bool:
        """No more commands are taken."""
        return self._mail.deadline is not None

    def check_process(self) -> None:
        """See Mailbox."""
        self._mail.check_process()

    @property
    def forked(self) -> bool:
        """See Mailbox."""
        return self._mail.forked

    def retire(self) -> None:
        """As `close`, from a garbage collection: between any two steps of anything, so without the lock."""
        self._mail.retire()

    def join(self, timeout: float) -> None:
        """Wait until the thread is gone."""
        if threading.current_thread() is not self._thread and not self.forked:
            self._thread.join(timeout)

    def _at_exit(self) -> None:
        """The interpreter ends with this client open: what is pending has a moment to leave."""
        self.close(_LAST_WORDS)
        self.join(2 * _LAST_WORDS)

    # --- the I/O thread ----------------------------------------------------------------------

    def _main(self) -> None:
        trouble: Trouble | None = None
        connection: Connection | None = None
        try:
            connection = Connection(self._endpoints, self._mail.wake_fd)
            self._connection = connection
            self._loop()
        except Exception as error:
            log.exception("the I/O thread of a quiesce client has failed")
            trouble = (_UNAVAILABLE, f"the client has failed inside: {error!r}")
        finally:
            if connection is not None:
                connection.close(_LINGER if trouble is None else 0)
            self._finish(trouble)

    def _loop(self) -> None:
        beat_at = time.monotonic() + HEARTBEAT
        #: By when results are acknowledged that wait for others.
        taken_at = math.inf
        mail, session, connection = self._mail, self._session, self._connection
        while True:
            if mail.commands:
                self._take_commands()
            self._read()
            now = time.monotonic()
            if not session.taken or session.channels[DATA] != READY:
                taken_at = math.inf
            else:
                taken_at = min(taken_at, now + _ACK_AFTER)
                if now >= taken_at or len(session.taken) >= _ACK_MANY:
                    self._handle(TurnEnded())
                    taken_at = math.inf
            if now >= beat_at:
                beat_at = now + HEARTBEAT
                self._handle(HeartbeatDue())
            connection.flush()
            # Before the look: `may_sleep` tells if it has changed since.
            deadline = mail.deadline
            if (deadline is not None or mail.retired) and self._may_leave(now):
                self._ledger.ring()
                return
            until = min(beat_at, taken_at) if deadline is None else min(beat_at, taken_at, deadline)
            asleep = mail.may_sleep(deadline)
            # Last of all: who is woken needs the interpreter, which this thread lets go of when it polls.
            self._ledger.ring()
            mail.awake(rung=connection.poll(until - now if asleep else 0))

    def _may_leave(self, now: float) -> bool:
        """Whether it is time to end; says goodbye then."""
        if self._mail.retired and self._mail.deadline is None:
            self._mail.close(_LAST_WORDS)
        deadline = self._mail.deadline
        if deadline is None or self._mail.commands:
            return False
        if self._session.unanswered and now < deadline:
            return False
        self._handle(LeaveWanted())
        self._connection.flush()
        return True

    def _take_commands(self) -> None:
        """Spawns that wait together travel together; none waits for another to come."""
        for kind, commands in groupby(self._mail.take(_TURN), type):
            if kind is SpawnRecord:
                self._take_spawns(list(commands))  # type: ignore[arg-type]  # they are of this type
            else:
                for command in commands:
                    self._take(command)

    def _take_spawns(self, records: list[SpawnRecord]) -> None:
        rows: list[Any] = [record.row for record in records]
        for record in records:
            record.row = None
        self._ledger.enter_spawns(self._session.last_key + 1, records)
        self._handle(SpawnsWanted(rows))

    def _take(self, command: mailbox.Command) -> None:
        if type(command) is mailbox.Many:
            self._ledger.enter_spawns(self._session.last_key + 1, command.records)
            self._handle(ManyWanted(command.common, command.arguments))
        elif type(command) is mailbox.Ask:
            self._ledger.enter_reply(self._session.last_request + 1, command.reply)
            self._handle(RequestWanted(command.message))
        elif type(command) is mailbox.Abandon and not command.reply.over and command.reply.key:
            self._handle(RequestAbandoned(command.reply.key))
            self._ledger.forget_reply(command.reply)

    def _read(self) -> None:
        """All that has arrived, control first."""
        for channel, up in self._connection.changes():
            self._handle(Connected(channel) if up else Disconnected(channel))
        arrived = self._connection.receive(_TURN)
        if arrived:
            self._heard_at = time.monotonic()
        session = self._session.session
        for channel, frames in arrived:
            if self._mail.broken is not None:
                return  # all have been told that nothing more will come
            try:
                message = self._decoder.decode(frames)
            except ProtocolError as error:
                log.warning("dropped a message of the broker at %s: %s", self.address, error)
                continue
            self._handle(Arrived(channel, message))
            if self._session.session is not session:
                return  # what else was read came from sockets that are gone

    def _handle(self, event: Event) -> None:
        for effect in self._session.handle(event):
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._connection.send(effect.channel, encode(effect.message))
            case Answered():
                self._ledger.on_answered(effect)
            case TasksEnded():
                self._ledger.on_ended(effect)
            case Replied():
                orphan = self._ledger.on_replied(effect)
                if orphan is not None:
                    self._release_orphan(orphan)
            case EventArrived():
                self._publish(outcomes.event(effect.message))
            case EventsMissed():
                self._publish([outcomes.missed(None, time.time())])
            case Ready():
                self.payload_limit = effect.payload_limit
                self.leaving = ""
                self._ledger.finish(self.ready)
            case BrokerLeaving():
                self.leaving = effect.reason
            case SessionWanted():
                self._connection.reopen()
                self._handle(SessionGiven(os.urandom(16)))
            case SpawnsUnknown():
                self._ledger.give_up(
                    effect.keys,
                    self._forgotten(
                        "whether this spawn was registered, and may have run, is unknown"
                    ),
                )
            case ResultsGone():
                self._ledger.give_up(
                    effect.keys,
                    self._forgotten(
                        "the result of this task won't come; ask for the task by its id"
                    ),
                )
            case Rejected():
                self._reject((effect.error, effect.text))

    def _forgotten(self, so: str) -> Trouble:
        text = f"the broker at {self.address} no longer knows this client's session, so {so}"
        return (_UNAVAILABLE, text)

    def _publish(self, events: list[PublicEvent]) -> None:
        with self.lock:
            listeners = list(self._listeners)
        for listener in listeners:
            self._ledger.call_soon(partial(self._tell, listener, events))

    def _tell(self, listener: Listener, events: list[PublicEvent] | None) -> None:
        if not listener(events):
            self.unlisten(listener)

    def _release_orphan(self, reply: Reply) -> None:
        """A stop that holds its scope for a block which nobody will enter: open it again."""
        report = reply.answer
        if isinstance(report, to_client.StopReport) and reply.holds and not report.timed_out:
            with suppress(RuntimeError, QuiesceError):  # closed: too late
                self.ask(from_client.Release(0, report.stop_id), orphan=True)

    def _reject(self, trouble: Trouble) -> None:
        """Nothing will ever come of this client: everyone who waits or asks learns why."""
        self._mail.close(0, trouble)
        self._ledger.fail_replies([self.ready], trouble)
        self._ledger.fail_spawns([], trouble, trouble)

    def _finish(self, trouble: Trouble | None) -> None:
        """The last thing: nobody may be left waiting."""
        if trouble is not None:
            self._mail.broken = trouble
        trouble = self._mail.broken
        left = self._mail.end()
        replies = [command.reply for command in left if isinstance(command, mailbox.Ask)]
        self._ledger.fail_replies([self.ready, *replies], trouble or _CLOSED_REQUEST)
        self.unanswered_at_end = self._ledger.fail_spawns(
            records_of(left), trouble or _CLOSED_UNANSWERED, trouble or _CLOSED_ANSWERED
        )
        self._ledger.log_unseen()
        with self.lock:
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._ledger.call_soon(partial(self._tell, listener, None))
        self._ledger.finish(self.ended)
        self._ledger.ring()
        atexit.unregister(self._at_exit)
