"""The I/O thread of a client: the only one that touches its sockets and its session machine.

Other threads hand over commands through a queue and wait on records; an eventfd wakes the thread, and only
when it sleeps. One turn: take commands, read what has arrived (control first), acknowledge, sleep.
"""

import atexit
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from quiesce.client import outcomes
from quiesce.client.connection import Connection
from quiesce.client.records import Reply, SpawnRecord, Trouble, log
from quiesce.client.session import ClientSession
from quiesce.client.steps import (
    CONTROL,
    DATA,
    Answered,
    Arrived,
    BrokerLeaving,
    Connected,
    Disconnected,
    Effect,
    Event,
    EventArrived,
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
    TaskEnded,
    TurnEnded,
)
from quiesce.client.waiting import Waitable, Waker, wait_for
from quiesce.errors import ProtocolError
from quiesce.protocol import from_client, to_client
from quiesce.protocol.addresses import endpoints
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.frames import Payload
from quiesce.registry.rows import SpawnRow
from quiesce.values import Event as PublicEvent

#: Seconds between heartbeats.
HEARTBEAT: Final = 5.0
#: Commands taken, and messages read from one socket, in one turn.
_TURN: Final = 1024
#: Seconds that a client nobody closed has at most, to send what is pending.
_LAST_WORDS: Final = 1.0
#: Milliseconds for the Goodbye to leave.
_LINGER: Final = 250

_CLOSED_REQUEST: Final = (
    "BrokerUnavailableError",
    "the client was closed before the broker had answered",
)
_CLOSED: Final = (
    "BrokerUnavailableError",
    "the client was closed before the end of the task had arrived; the task itself goes on",
)
_CLOSED_UNANSWERED: Final = (
    "BrokerUnavailableError",
    "the client was closed before the broker had answered this spawn; whether it was registered is unknown",
)


class _Spawn(NamedTuple):
    row: SpawnRow
    record: SpawnRecord


class _Many(NamedTuple):
    common: SpawnRow
    arguments: list[Payload]
    records: list[SpawnRecord]


class _Ask(NamedTuple):
    message: Request
    reply: Reply


class _Abandon(NamedTuple):
    reply: Reply


#: Takes events, or None for the end; answers whether it wants more.
Listener = Callable[[list[PublicEvent] | None], bool]
_Command = _Spawn | _Many | _Ask | _Abandon


def _ask(message: Request, orphan: bool) -> _Ask:
    reply = Reply()
    reply.orphan = orphan
    reply.holds = isinstance(message, from_client.Stop) and message.hold
    return _Ask(message, reply)


class Driver:
    """See the module. `lock` guards all records of this client; wakers run outside of it."""

    def __init__(self, address: str, worker: int = 0) -> None:
        self.address = address
        self.lock = threading.Lock()
        self._endpoints = endpoints(address)
        self._pid = os.getpid()
        self._session = ClientSession(
            session=os.urandom(16), pid=self._pid, host=socket.gethostname(), worker=worker
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
        # Guarded by the lock: commands in order, whether the thread sleeps, until when it may still go on.
        self._commands: deque[_Command] = deque()
        self._asleep = False
        self._deadline: float | None = None
        self._retired = False
        self._broken: Trouble | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: By key: all and only the spawns that are not over; the requests whose answer is still of use.
        self._spawns: dict[int, SpawnRecord] = {}
        self._replies: dict[int, Reply] = {}
        #: The last refused spawns; what nobody has looked at by the end is logged.
        self._refused: deque[SpawnRecord] = deque(maxlen=1000)
        #: By attempt: its nested spawns without an answer, and who waits for there to be none.
        self._open: Counter[tuple[int, int]] = Counter()
        self._settled: dict[tuple[int, int], Waitable] = {}
        self._listeners: list[Listener] = []
        self._wakers: list[Waker] = []
        self._thread = threading.Thread(target=self._main, name="quiesce-client", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    # --- from any thread ---------------------------------------------------------------------

    def spawn(self, row: SpawnRow, record: SpawnRecord) -> None:
        """Hand over one spawn. It is in the order of all spawns and requests of this client."""
        self._post(_Spawn(row, record), record.parent, 1)

    def spawn_many(
        self, common: SpawnRow, arguments: list[Payload], records: list[SpawnRecord]
    ) -> None:
        """Hand over spawns of which all or none are to be registered."""
        self._post(_Many(common, arguments, records), common.parent, len(records))

    def refuse(self, records: list[SpawnRecord], trouble: Trouble) -> None:
        """These spawns are not handed over, for this reason; it is told as a refusal of the broker is."""
        with self.lock:
            self._check_open()
            self._refused.extend(records[:1])  # they share what has been seen
            for record in records:
                record.give_up(trouble, [])

    def ask(self, message: Request, *, orphan: bool = False) -> Reply:
        """Hand over a request. `orphan`: nobody waits for its answer."""
        command = _ask(message, orphan)
        self._post(command, None, 0)
        return command.reply

    def abandon(self, reply: Reply) -> None:
        """Nobody waits for this answer any more. A held scope whose report still comes is released."""
        with self.lock:
            if not reply.over:
                reply.orphan = True
                self._commands.append(_Abandon(reply))
                self._wake()
                return
        self._release_orphan(reply)

    def listen(self, listener: Listener) -> Reply:
        """Call `listener` with events, in the I/O thread, until it answers False; the reply to Subscribe."""
        command = _ask(from_client.Subscribe(0), orphan=False)
        with self.lock:
            self._check_open()
            self._listeners.append(listener)
            self._commands.append(command)
            self._wake()
        return command.reply

    def unlisten(self, listener: Listener) -> None:
        """No more events for this one; none from the broker once nobody listens."""
        with self.lock:
            if listener not in self._listeners:
                return
            self._listeners.remove(listener)
            if not self._listeners and self._deadline is None:
                self._commands.append(_ask(from_client.Unsubscribe(0), orphan=True))
                self._wake()

    def wait_settled(self, parent: tuple[int, int], timeout: float) -> bool:
        """Whether all spawns made by this attempt are answered within `timeout` seconds."""
        with self.lock:
            if not self._open[parent]:
                del self._open[parent]
                return True
            settled = self._settled.setdefault(parent, Waitable())
        return wait_for(settled, self.lock, timeout, interruptible=False)

    def close(self, timeout: float) -> None:
        """Begin to end: send what is pending, have up to `timeout` seconds for answers, say goodbye.

        Returns at once; `ended` tells when it is done.
        """
        if os.getpid() != self._pid:
            return  # a forked copy: the sockets are the parent's
        deadline = time.monotonic() + timeout
        with self.lock:
            if self._deadline is None or deadline < self._deadline:
                self._deadline = deadline
                self._wake()

    @property
    def closing(self) -> bool:
        """No more commands are taken."""
        return self._deadline is not None

    def retire(self) -> None:
        """As `close`, from a garbage collection: between any two steps of anything, so without the lock."""
        self._retired = True
        if os.getpid() == self._pid and self._wake_fd >= 0:
            with suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)

    def in_io_thread(self) -> bool:
        """Whether the caller is the I/O thread, which must never wait for itself."""
        return threading.current_thread() is self._thread

    def _at_exit(self) -> None:
        """The interpreter ends with this client open: what is pending has a moment to leave."""
        self.close(_LAST_WORDS)
        if os.getpid() == self._pid:
            self.join(2 * _LAST_WORDS)

    def join(self, timeout: float) -> None:
        """Wait until the thread is gone."""
        if not self.in_io_thread() and os.getpid() == self._pid:
            self._thread.join(timeout)

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this client was made in process {self._pid} and does not survive a fork: make a new one "
                f"in process {os.getpid()}"
            )
        if self._broken is not None:
            raise outcomes.refusal(*self._broken)
        if self._deadline is not None:
            raise RuntimeError("this client is closed; make a new one")

    def _post(self, command: _Command, parent: tuple[int, int] | None, count: int) -> None:
        with self.lock:
            self._check_open()
            if parent is not None:
                self._open[parent] += count
            self._commands.append(command)
            self._wake()

    def _wake(self) -> None:
        """Under the lock."""
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake_fd, 1)

    # --- the I/O thread ----------------------------------------------------------------------

    def _main(self) -> None:
        trouble: Trouble | None = None
        connection: Connection | None = None
        try:
            connection = Connection(self._endpoints, self._wake_fd)
            self._connection = connection
            self._loop()
        except Exception as error:
            log.exception("the I/O thread of a quiesce client has failed")
            trouble = ("BrokerUnavailableError", f"the client has failed inside: {error!r}")
        finally:
            if connection is not None:
                connection.close(_LINGER if trouble is None else 0)
            self._finish(trouble)

    def _loop(self) -> None:
        beat_at = time.monotonic() + HEARTBEAT
        while True:
            self._take_commands()
            more = self._read()
            self._handle(TurnEnded())
            self._connection.flush()
            self._ring()
            now = time.monotonic()
            if self._may_leave(now):
                return
            if now >= beat_at:
                beat_at = now + HEARTBEAT
                self._handle(HeartbeatDue())
            until = beat_at if self._deadline is None else min(beat_at, self._deadline)
            with self.lock:
                self._asleep = not (more or self._commands or self._retired)
            self._connection.poll(until - now if self._asleep else 0)
            if not self._asleep or self._retired:  # somebody has rung
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            self._asleep = False

    def _may_leave(self, now: float) -> bool:
        """Whether it is time to end; says goodbye then."""
        if self._retired and self._deadline is None:
            with self.lock:
                self._deadline = now + _LAST_WORDS
        deadline = self._deadline
        if deadline is None or self._commands:
            return False
        if self._session.unanswered and now < deadline and self.ready.trouble is None:
            return False
        self._handle(LeaveWanted())
        self._connection.flush()
        return True

    def _take_commands(self) -> None:
        """Spawns that wait together travel together; none waits for another to come."""
        spawns: list[_Spawn] = []
        for _ in range(_TURN):
            try:
                command = self._commands.popleft()
            except IndexError:
                break
            if type(command) is _Spawn:
                spawns.append(command)
                continue
            if spawns:
                self._take_spawns(spawns)
                spawns = []
            if type(command) is _Many:
                self._take_many(command)
            elif type(command) is _Ask:
                command.reply.key = self._session.last_request + 1
                self._replies[command.reply.key] = command.reply
                self._handle(RequestWanted(command.message))
            elif type(command) is _Abandon and not command.reply.over:
                self._handle(RequestAbandoned(command.reply.key))
                if not command.reply.holds:
                    self._replies.pop(command.reply.key, None)
        if spawns:
            self._take_spawns(spawns)

    def _take_spawns(self, spawns: list[_Spawn]) -> None:
        key = self._session.last_key
        for key, spawn in enumerate(spawns, key + 1):  # noqa: B020 - it goes on from there
            self._spawns[key] = spawn.record
        self._handle(SpawnsWanted([spawn.row for spawn in spawns]))

    def _take_many(self, many: _Many) -> None:
        for key, record in enumerate(many.records, self._session.last_key + 1):
            self._spawns[key] = record
        self._handle(ManyWanted(many.common, many.arguments))

    def _read(self) -> bool:
        """All that has arrived, control first; whether there may be more."""
        more = False
        for channel, up in self._connection.changes():
            self._handle(Connected(channel) if up else Disconnected(channel))
        for channel in (CONTROL, DATA):
            messages = self._connection.receive(channel, _TURN)
            more = more or len(messages) == _TURN
            session = self._session.session
            for frames in messages:
                try:
                    message = self._decoder.decode(frames)
                except ProtocolError as error:
                    log.warning("dropped a message of the broker at %s: %s", self.address, error)
                    continue
                self._handle(Arrived(channel, message))
                if self._session.session is not session:
                    return True  # what else was read came from sockets that are gone
        return more

    def _handle(self, event: Event) -> None:
        for effect in self._session.handle(event):
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._connection.send(effect.channel, encode(effect.message))
            case Answered():
                self._on_answered(effect)
            case TaskEnded():
                for key in effect.keys:
                    record = self._spawns.pop(key)
                    with self.lock:
                        record.end(effect.row, self._wakers)
            case Replied():
                self._on_replied(effect)
            case EventArrived():
                events = outcomes.event(effect.message)
                with self.lock:
                    listeners = list(self._listeners)
                self._wakers.extend(partial(self._tell, each, events) for each in listeners)
            case Ready():
                self.payload_limit = effect.payload_limit
                self.leaving = ""
                with self.lock:
                    if not self.ready.over:
                        self.ready.finish(self._wakers)
            case BrokerLeaving():
                self.leaving = effect.reason
            case SessionWanted():
                self._connection.reopen()
                self._handle(SessionGiven(os.urandom(16)))
            case SpawnsUnknown():
                text = (
                    f"the broker at {self.address} no longer knows this client's session, so whether this "
                    "spawn was registered, and may have run, is unknown"
                )
                self._give_up(effect.keys, ("BrokerUnavailableError", text))
            case ResultsGone():
                text = (
                    f"the broker at {self.address} no longer knows this client's session, so the result of "
                    "this task won't come; ask for the task by its id"
                )
                self._give_up(effect.keys, ("BrokerUnavailableError", text))
            case Rejected():
                self._fail((effect.error, effect.text))

    def _on_answered(self, effect: Answered) -> None:
        record = self._spawns[effect.key]
        if effect.task_id:
            with self.lock:
                record.accept(effect.task_id, self._wakers)
                self._settle(record)
        else:
            self._give_up((effect.key,), (effect.error or "QuiesceError", effect.text))

    def _give_up(self, keys: tuple[int, ...], trouble: Trouble) -> None:
        for key in keys:
            record = self._spawns.pop(key)
            with self.lock:
                if not record.answered.over:
                    self._settle(record)
                record.give_up(trouble, self._wakers)
            if record.dropped:
                record.log_unseen()
            else:
                self._refused.append(record)

    def _settle(self, record: SpawnRecord) -> None:
        """Under the lock: one spawn fewer of its parent is unanswered."""
        parent = record.parent
        if parent is None:
            return
        self._open[parent] -= 1
        if not self._open[parent]:
            del self._open[parent]
            settled = self._settled.pop(parent, None)
            if settled is not None:
                settled.finish(self._wakers)

    def _on_replied(self, effect: Replied) -> None:
        reply = self._replies.pop(effect.key, None)
        if reply is None:
            return
        with self.lock:
            message = effect.message
            if isinstance(message, to_client.Refused):
                reply.trouble = (message.error, message.text)
            else:
                reply.answer = message
            reply.finish(self._wakers)
            orphan = reply.orphan
        if orphan:
            self._release_orphan(reply)

    def _release_orphan(self, reply: Reply) -> None:
        """A stop that holds its scope for a block which nobody will enter: open it again."""
        report = reply.answer
        if isinstance(report, to_client.StopReport) and reply.holds and not report.timed_out:
            with suppress(RuntimeError):  # closed: the session's end releases it as well
                self.ask(from_client.Release(0, report.stop_id), orphan=True)

    def _fail(self, trouble: Trouble) -> None:
        """Nothing will ever come of this client: everyone who waits learns why, and everyone who asks."""
        self._broken = trouble
        self._fail_replies(trouble)
        self._give_up(tuple(self._spawns), trouble)

    def _fail_replies(self, trouble: Trouble) -> None:
        with self.lock:
            for reply in (self.ready, *self._replies.values()):
                if not reply.over:
                    reply.trouble = trouble
                    reply.finish(self._wakers)
            self._replies.clear()
            self._deadline = 0.0

    def _finish(self, trouble: Trouble | None) -> None:
        """The last thing: nobody may be left waiting."""
        if trouble is not None:
            self._broken = trouble
        with self.lock:
            self._deadline = 0.0
            commands, self._commands = list(self._commands), deque()
            for command in commands:
                if type(command) is _Ask:
                    self._replies[-id(command)] = command.reply
            os.close(self._wake_fd)
            self._wake_fd = -1
            self._asleep = False
        unanswered = [record for record in self._spawns.values() if not record.answered.over]
        for command in commands:
            if type(command) is _Spawn:
                unanswered.append(command.record)
            elif type(command) is _Many:
                unanswered.extend(command.records)
        self.unanswered_at_end = len(unanswered)
        self._fail_replies(trouble or _CLOSED_REQUEST)
        with self.lock:
            for record in unanswered:
                self._settle(record)
                record.give_up(trouble or _CLOSED_UNANSWERED, self._wakers)
        self._give_up(tuple(self._spawns), trouble or _CLOSED)
        for record in (*self._refused, *unanswered):
            record.log_unseen()
        self._refused.clear()
        with self.lock:
            self.ended.finish(self._wakers)
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._wakers.append(partial(self._tell, listener, None))
        self._ring()
        atexit.unregister(self._at_exit)

    def _tell(self, listener: Listener, events: list[PublicEvent] | None) -> None:
        if not listener(events):
            self.unlisten(listener)

    def _ring(self) -> None:
        """Wake who waits, outside of the lock."""
        while self._wakers:
            wakers, self._wakers = self._wakers, []
            for waker in wakers:
                try:
                    waker()
                except Exception:
                    log.exception("a callback of a quiesce client has failed")
