"""The client session machine: all that a client knows of its conversation with the broker.

Pure: `handle(event) -> effects`, no sockets, no clock, no randomness. One conversation has two
channels, control and data. Control greets first, data once control has been welcomed:

    control   DOWN --Connected--> GREETING --Welcome--> READY
    data      DOWN --Connected--> WAITING --control READY--> GREETING --Welcome--> READY

HelloWanted on either, and a lost connection, lead back to a Hello on control; data waits meanwhile.
So no spawn is ever sent again before the broker has said, on control, that it still knows the session.
Everything that is unanswered goes out (again) on entering READY, and what is wanted later goes out at
once: a channel in another state holds back and loses nothing, since the broker knows spawns by their
number in the session and answers each once.

A broker that has forgotten the session (Welcome says so, where it had welcomed us before) can't tell
what became of the spawns it was sent: they end as unknown, never as failed. What was never sent goes
into a new session.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

from quiesce.client.session_state import DOWN, GREETING, READY, WAITING, SessionState
from quiesce.client.steps import (
    CONTROL,
    DATA,
    Answer,
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
from quiesce.protocol import PROTOCOL_VERSION, from_client, to_client
from quiesce.registry.ids import SpawnNumber
from quiesce.registry.rows import ResultRow, SpawnAnswer, SpawnRow

#: One Spawn message holds at most so many rows, and no more once it holds so many bytes.
MAX_ROWS: Final = 256
MAX_BYTES: Final = 256 * 1024
#: Makes a row or an effect of a tuple: half of what its constructor costs.
_new: Final = tuple.__new__


class ClientSession(SessionState):
    """See the module. `handle` is the only way in."""

    def handle(self, event: Event) -> list[Effect]:
        """Take in one event; what to do about it, in order."""
        if self.left:
            return []
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, effects)
        return effects

    # --- what the client wants ---------------------------------------------------------------

    def on_spawns_wanted(self, event: SpawnsWanted, effects: list[Effect]) -> None:
        first = self.last_key + 1
        rows = [_new(SpawnRow, (key, *row[1:])) for key, row in enumerate(event.rows, first)]
        self.unanswered.update(enumerate(rows, first))
        self.unique.update([row.number for row in rows if row.unique_key is not None])
        self.last_key += len(rows)
        if self.channels[DATA] == READY:
            self._send_rows(rows, effects)
            self.sent_through = self.last_key

    def on_many_wanted(self, event: ManyWanted, effects: list[Effect]) -> None:
        if not event.arguments:
            return
        first = self.last_key + 1
        self.last_key += len(event.arguments)
        common = SpawnRow(SpawnNumber(first), *event.common[1:])
        members = range(first, self.last_key + 1)
        many = self.unanswered[first] = ManyWanted(common, event.arguments)
        self.group_left[first] = set(members)
        self.member_of.update(dict.fromkeys(members, first))
        if common.unique_key is not None:
            self.unique.update(members)
        if self.channels[DATA] == READY:
            self._send_many(many, effects)
            self.sent_through = self.last_key

    def on_request_wanted(self, event: RequestWanted, effects: list[Effect]) -> None:
        self.last_request += 1
        message: Any = event.message
        if type(message) is from_client.Stop:
            message = message._replace(request=self.last_request, last_spawn=self.last_key)
        else:
            message = message._replace(request=self.last_request)
            if type(message) is from_client.Subscribe:
                self.subscribed = True
            elif type(message) is from_client.Unsubscribe:
                self.subscribed = self.cut_off = False
        self.requests[self.last_request] = message
        if self.channels[CONTROL] == READY:
            effects.append(Send(CONTROL, self._numbered(message)))

    def on_request_abandoned(self, event: RequestAbandoned, effects: list[Effect]) -> None:
        self.requests.pop(event.key, None)

    def on_leave_wanted(self, event: LeaveWanted, effects: list[Effect]) -> None:
        self.on_turn_ended(TurnEnded(), effects)
        if self.channels[CONTROL] == READY:
            effects.append(Send(CONTROL, from_client.Goodbye()))
        self.left = True

    # --- time and transport ------------------------------------------------------------------

    def on_connected(self, event: Connected, effects: list[Effect]) -> None:
        if event.channel == CONTROL:
            self._lose_events()
            self._greet(effects)
            return
        self.channels[DATA] = WAITING
        if self.channels[CONTROL] != READY:
            return
        if DATA in self.welcomed:
            self._greet(effects)  # whoever is there now may not know us: ask on control first
        else:
            self._greet_data(effects)

    def on_disconnected(self, event: Disconnected, effects: list[Effect]) -> None:
        self.channels[event.channel] = DOWN
        if event.channel == CONTROL and self.channels[DATA] != DOWN:
            self.channels[DATA] = WAITING

    def on_heartbeat_due(self, event: HeartbeatDue, effects: list[Effect]) -> None:
        """On both channels, since the broker may have lost either. An unanswered Hello is said again."""
        if GREETING in self.channels.values():
            self._greet(effects)
        for channel, state in self.channels.items():
            if state == READY:
                beat = from_client.Heartbeat(self.answered_through - self.base)
                effects.append(Send(channel, beat))

    def on_turn_ended(self, event: TurnEnded, effects: list[Effect]) -> None:
        if self.taken and self.channels[DATA] == READY:
            effects.append(Send(DATA, from_client.ResultsTaken(self.taken)))
            self.taken = []

    def on_session_given(self, event: SessionGiven, effects: list[Effect]) -> None:
        self.session = event.session
        self.channels = {CONTROL: DOWN, DATA: DOWN}
        self.welcomed = set()

    # --- what the broker says ----------------------------------------------------------------

    def on_arrived(self, event: Arrived, effects: list[Effect]) -> None:
        handler = _MESSAGE_HANDLERS.get(type(event.message))
        if handler is not None:
            handler(self, event.channel, event.message, effects)
        else:
            self._on_reply(event.message, effects)

    def _on_welcome(self, channel: str, message: to_client.Welcome, effects: list[Effect]) -> None:
        if abs(message.version - PROTOCOL_VERSION) > 1:
            text = (
                f"the broker speaks version {message.version} of the protocol, this client "
                f"version {PROTOCOL_VERSION}; they understand each other one version apart at most"
            )
            effects.append(Rejected("ProtocolError", text))
            return
        if self.channels[channel] != GREETING:
            return  # the answer to a Hello said twice, or of a transport that is gone
        if not message.known and channel in self.welcomed:
            self._forget_session(effects)
            return
        if channel == DATA and message.epoch != self.epoch:
            self._greet(effects)  # the broker has restarted since it welcomed us on control
            return
        self.epoch = message.epoch
        self.payload_limit = message.payload_limit
        self.welcomed.add(channel)
        self.channels[channel] = READY
        if channel == CONTROL:
            self._resend_requests(effects)
            if self.channels[DATA] == WAITING:
                self._greet_data(effects)
        else:
            self._resend_spawns(effects)
            effects.append(Ready(message.epoch, message.payload_limit))

    def _on_hello_wanted(
        self, channel: str, message: to_client.HelloWanted, effects: list[Effect]
    ) -> None:
        """In other states it answers something sent before our Hello, which has yet to arrive."""
        if self.channels[channel] == READY:
            if channel == CONTROL:
                self._lose_events()
            self._greet(effects)

    def _on_alive(self, channel: str, message: to_client.Alive, effects: list[Effect]) -> None:
        pass

    def _on_spawn_answers(
        self, channel: str, message: to_client.SpawnAnswers, effects: list[Effect]
    ) -> None:
        base, unanswered, member_of = self.base, self.unanswered, self.member_of
        live, late = self.live, self.late
        rows: list[SpawnAnswer] = []
        ends: list[tuple[tuple[int, ...], ResultRow]] = []
        for row in message.rows if base == 0 else map(self._by_key, message.rows):
            key, task_id, _, _ = row
            if key in member_of:
                if not self._take_member(key):
                    continue
            elif unanswered.pop(key, None) is None:
                continue  # answered before
            rows.append(row)
            if task_id and task_id not in late:
                live[task_id] = (*live[task_id], key) if task_id in live else (key,)
                continue
            self.unique.discard(key)
            if task_id:
                ends.append(((key,), late[task_id][1]))
        if rows:
            effects.append(Answered(rows))
        if ends:
            effects.append(TasksEnded(ends))
        through, last = self.answered_through, self.last_key
        while through < last and (through + 1) not in unanswered:
            through += 1
        self.answered_through = through
        while late:
            ended, (last_key, _) = next(iter(late.items()))
            if last_key > through:
                break
            del late[ended]

    def _by_key(self, row: SpawnAnswer) -> SpawnAnswer:
        return row._replace(number=SpawnNumber(row.number + self.base))

    def _take_member(self, key: int) -> bool:
        """This one of a group is answered; whether it wasn't."""
        first = self.member_of[key]
        left = self.group_left[first]
        if key not in left:
            return False
        left.discard(key)
        if not left:
            group = self.unanswered.pop(first)
            assert isinstance(group, ManyWanted)  # ours: group_left names groups only
            for member in range(first, first + len(group.arguments)):
                del self.member_of[member]
            del self.group_left[first]
        return True

    def _on_ended(self, channel: str, message: to_client.Ended, effects: list[Effect]) -> None:
        live, unique = self.live, self.unique
        ends: list[tuple[tuple[int, ...], ResultRow]] = []
        for row in message.rows:
            task_id = row.task_id
            self.taken.append(task_id)
            keys = live.pop(task_id, None)
            if keys is not None:
                ends.append((keys, row))
                if not unique or unique.isdisjoint(keys):
                    continue
                unique.difference_update(keys)
            if self.unanswered:
                self.late.setdefault(task_id, (self.last_key, row))
        if ends:
            effects.append(TasksEnded(ends))

    def _on_event(self, channel: str, message: to_client.Event, effects: list[Effect]) -> None:
        effects.append(EventArrived(message))

    def _on_goodbye(self, channel: str, message: to_client.Goodbye, effects: list[Effect]) -> None:
        effects.append(BrokerLeaving(message.reason))

    def _on_reply(self, message: Any, effects: list[Effect]) -> None:
        answer: Answer = message
        if answer.request == 0 and isinstance(answer, to_client.Refused):
            effects.append(Rejected(answer.error, answer.text))
            return
        key = answer.request + self.request_base
        asked = self.requests.pop(key, None)
        ends: tuple[int, ...] = ()
        if isinstance(answer, to_client.StopReport) and isinstance(asked, from_client.Stop):
            ends = self._ends_to_come(asked, answer)
        effects.append(Replied(key, answer, ends))

    # --- parts -------------------------------------------------------------------------------

    def _greet(self, effects: list[Effect]) -> None:
        """Say Hello on control; data waits for the answer."""
        if self.channels[DATA] != DOWN:
            self.channels[DATA] = WAITING
        self.channels[CONTROL] = GREETING
        effects.append(Send(CONTROL, self._hello(CONTROL)))

    def _greet_data(self, effects: list[Effect]) -> None:
        self.channels[DATA] = GREETING
        effects.append(Send(DATA, self._hello(DATA)))

    def _hello(self, channel: str) -> from_client.Hello:
        return from_client.Hello(
            PROTOCOL_VERSION,
            self.session,
            channel,
            self.pid,
            self.host,
            self.worker,
            channel in self.welcomed,
        )

    def _ends_to_come(
        self, asked: from_client.Stop, report: to_client.StopReport
    ) -> tuple[int, ...]:
        """See Replied. None if it has run out of time: then it promises nothing."""
        if report.timed_out:
            return ()
        keys = [key for row in report.tasks for key in self.live.get(row.id, ())]
        if asked.task_id is None:  # otherwise its spawn has been answered
            for first, kept in self.unanswered.items():
                if first > asked.last_spawn:
                    break
                # One with a unique key may wait for its answer as long as the key's holder lives.
                if first not in self.unique:
                    keys += (
                        [first] if isinstance(kept, SpawnRow) else sorted(self.group_left[first])
                    )
        return tuple(keys)

    def _numbered(self, message: Request) -> Request:
        """As it goes out in this session."""
        if self.request_base:
            message = message._replace(request=message.request - self.request_base)
        if self.base and isinstance(message, from_client.Stop):
            message = message._replace(last_spawn=max(0, message.last_spawn - self.base))
        return message

    def _resend_requests(self, effects: list[Effect]) -> None:
        subscribing = False
        for message in self.requests.values():
            effects.append(Send(CONTROL, self._numbered(message)))
            subscribing = subscribing or isinstance(message, from_client.Subscribe)
        if self.subscribed and not subscribing:  # the broker may have restarted and lost it
            self.on_request_wanted(RequestWanted(from_client.Subscribe(0)), effects)
        if (
            self.cut_off
        ):  # after the Subscribe: who now asks how things stand hears all that comes later
            self.cut_off = False
            effects.append(EventsMissed())

    def _lose_events(self) -> None:
        """Whoever is at the other end of control may have had events for us, and nowhere to send them."""
        self.cut_off = self.cut_off or (self.subscribed and self.epoch > 0)

    def _resend_spawns(self, effects: list[Effect]) -> None:
        rows: list[SpawnRow] = []
        for key, item in self.unanswered.items():
            if rows and key != rows[-1].number + 1:  # some between were answered
                self._send_rows(rows, effects)
                rows = []
            if isinstance(item, ManyWanted):
                self._send_rows(rows, effects)
                rows = []
                self._send_many(item, effects)
            else:
                rows.append(item)
        self._send_rows(rows, effects)
        self.sent_through = self.last_key
        self.on_turn_ended(TurnEnded(), effects)

    def _send_rows(self, rows: list[SpawnRow], effects: list[Effect]) -> None:
        """Single ones, whose numbers are consecutive, packed together."""
        through = self.answered_through - self.base
        if self.base:
            rows = list(map(self._rebased, rows))
        sizes = [len(row.function) + len(row.arguments) for row in rows]
        before = list(accumulate(sizes, initial=0))
        start = 0
        while start < len(rows):
            fitting = bisect_right(before, before[start] + MAX_BYTES) - 1
            end = max(start + 1, min(fitting, start + MAX_ROWS))
            effects.append(Send(DATA, from_client.Spawn(through, rows[start:end])))
            start = end

    def _send_many(self, many: ManyWanted, effects: list[Effect]) -> None:
        through, common = self.answered_through - self.base, self._rebased(many.common)
        effects.append(Send(DATA, from_client.SpawnMany(through, common, many.arguments)))

    def _rebased(self, row: SpawnRow) -> SpawnRow:
        return row._replace(number=SpawnNumber(row.number - self.base)) if self.base else row

    def _forget_session(self, effects: list[Effect]) -> None:
        """Everything that was sent and not answered is unknown; everything else starts anew."""
        lost: list[int] = []
        for first, kept in list(self.unanswered.items()):
            if first > self.sent_through:
                continue
            del self.unanswered[first]
            if isinstance(kept, SpawnRow):
                lost.append(first)
                continue
            lost.extend(sorted(self.group_left.pop(first)))
            for member in range(first, first + len(kept.arguments)):
                del self.member_of[member]
        gone = sorted(key for keys in self.live.values() for key in keys)
        self.live.clear()
        self.late.clear()
        self.taken.clear()
        self.unique.difference_update(lost, gone)
        self.base = self.answered_through = self.sent_through
        self.request_base = min(self.requests, default=self.last_request + 1) - 1
        self.channels = {CONTROL: DOWN, DATA: DOWN}
        if lost:
            effects.append(SpawnsUnknown(tuple(lost)))
        if gone:
            effects.append(ResultsGone(tuple(gone)))
        effects.append(SessionWanted())


_HANDLERS: Final[dict[type, Callable[[ClientSession, Any, list[Effect]], None]]] = {
    Connected: ClientSession.on_connected,
    Disconnected: ClientSession.on_disconnected,
    Arrived: ClientSession.on_arrived,
    SpawnsWanted: ClientSession.on_spawns_wanted,
    ManyWanted: ClientSession.on_many_wanted,
    RequestWanted: ClientSession.on_request_wanted,
    RequestAbandoned: ClientSession.on_request_abandoned,
    TurnEnded: ClientSession.on_turn_ended,
    HeartbeatDue: ClientSession.on_heartbeat_due,
    SessionGiven: ClientSession.on_session_given,
    LeaveWanted: ClientSession.on_leave_wanted,
}
_MESSAGE_HANDLERS: Final[dict[type, Callable[[ClientSession, str, Any, list[Effect]], None]]] = {
    to_client.Welcome: ClientSession._on_welcome,
    to_client.HelloWanted: ClientSession._on_hello_wanted,
    to_client.Alive: ClientSession._on_alive,
    to_client.SpawnAnswers: ClientSession._on_spawn_answers,
    to_client.Ended: ClientSession._on_ended,
    to_client.Event: ClientSession._on_event,
    to_client.Goodbye: ClientSession._on_goodbye,
}
