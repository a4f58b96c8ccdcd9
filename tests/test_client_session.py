"""The client session machine: by table, and against a model of the broker over a transport that fails."""

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from client_fakes import ended, stop_report
from quiesce.client.session import MAX_BYTES, MAX_ROWS, ClientSession
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
    EventsMissed,
    HeartbeatDue,
    LeaveWanted,
    ManyWanted,
    Ready,
    Rejected,
    Replied,
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
from quiesce.registry.ids import SpawnNumber, TaskId
from quiesce.registry.rows import SpawnAnswer, SpawnRow

SESSION = b"s" * 16
LIMIT = 1000


def row(number: int = 0, *, key: str | None = None, arguments: bytes = b"") -> SpawnRow:
    return SpawnRow(
        SpawnNumber(number), "background", "compaction", None, None, "work", False, 0, "never",
        None, key, None, b"f", arguments,
    )  # fmt: skip


def answer(number: int, task_id: int, error: str | None = None) -> SpawnAnswer:
    return SpawnAnswer(SpawnNumber(number), TaskId(task_id), error, "")


def answers(*rows: SpawnAnswer) -> Arrived:
    return Arrived(DATA, to_client.SpawnAnswers(list(rows)))


def answered(*rows: SpawnAnswer) -> Answered:
    return Answered(list(rows))


def hello(channel: str, session: bytes = SESSION, *, resumed: bool = False) -> Send:
    message = from_client.Hello(PROTOCOL_VERSION, session, channel, 5, "here", 0, resumed)
    return Send(channel, message)


def welcome(channel: str, *, known: bool = True, epoch: int = 1) -> Arrived:
    return Arrived(channel, to_client.Welcome(PROTOCOL_VERSION, epoch, known, LIMIT))


def stop() -> from_client.Stop:
    return from_client.Stop(
        0, (None, None, None, None), None, None, None, False, False, "", 0, None
    )


def sent(*numbers: int, through: int = 0) -> Send:
    return Send(DATA, from_client.Spawn(through, [row(number) for number in numbers]))


class Script:
    """A machine, and what it did for each event. Freezes and thaws it between any two."""

    def __init__(self) -> None:
        self.machine = ClientSession(session=SESSION, pid=5, host="here")

    def __call__(self, event: Event) -> list[Effect]:
        frozen = self.machine.freeze()
        hash(frozen)
        self.machine = ClientSession.thaw(frozen)
        assert self.machine.freeze() == frozen
        return self.machine.handle(event)

    def connect(self) -> "Script":
        for event in (Connected(CONTROL), Connected(DATA)):
            self(event)
        self(welcome(CONTROL, known=False))
        self(welcome(DATA))
        return self


def test_greeting_control_first() -> None:
    say = Script()
    assert say(Connected(DATA)) == []
    assert say(Connected(CONTROL)) == [hello(CONTROL)]
    assert say(SpawnsWanted([row()])) == []
    assert say(RequestWanted(from_client.GetBroker(0))) == []
    assert say(welcome(CONTROL, known=False)) == [
        Send(CONTROL, from_client.GetBroker(1)),
        hello(DATA),
    ]
    assert say(welcome(DATA)) == [sent(1), Ready(1, LIMIT)]
    assert say(SpawnsWanted([row(), row()])) == [sent(2, 3)]


def test_data_that_connects_last_is_greeted_at_once() -> None:
    say = Script()
    say(Connected(CONTROL))
    say(welcome(CONTROL, known=False))
    assert say(Connected(DATA)) == [hello(DATA)]


def test_answers_results_and_acknowledgements() -> None:
    say = Script().connect()
    say(SpawnsWanted([row(), row(), row()]))
    assert say(answers(answer(2, 12))) == [answered(answer(2, 12))]
    assert say(SpawnsWanted([row()])) == [sent(4)]
    assert say(answers(answer(2, 12), answer(1, 0, "QueueFullError"))) == [
        answered(answer(1, 0, "QueueFullError"))
    ]
    assert say(SpawnsWanted([row()])) == [sent(5, through=2)]
    end = ended(12, result=b"r")
    assert say(Arrived(DATA, to_client.Ended([end]))) == [TasksEnded([((2,), end)])]
    assert say(TurnEnded()) == [Send(DATA, from_client.ResultsTaken([12]))]
    assert say(TurnEnded()) == []
    # Sent again because our acknowledgement was late: taken again, told once.
    assert say(Arrived(DATA, to_client.Ended([end]))) == []
    assert say(TurnEnded()) == [Send(DATA, from_client.ResultsTaken([12]))]
    assert say(HeartbeatDue()) == [
        Send(CONTROL, from_client.Heartbeat(2)),
        Send(DATA, from_client.Heartbeat(2)),
    ]


def test_an_end_before_its_answer_is_kept_for_it() -> None:
    say = Script().connect()
    say(SpawnsWanted([row()]))
    end = ended(12)
    assert say(Arrived(DATA, to_client.Ended([end]))) == []
    assert say(answers(answer(1, 12))) == [answered(answer(1, 12)), TasksEnded([((1,), end)])]
    assert not say.machine.late


def test_spawns_that_share_a_unique_key_share_the_end() -> None:
    say = Script().connect()
    say(SpawnsWanted([row(key="k"), row(key="k"), row(key="k")]))
    say(answers(answer(1, 12), answer(2, 12)))
    end = ended(12)
    assert say(Arrived(DATA, to_client.Ended([end]))) == [TasksEnded([((1, 2), end)])]
    assert say(answers(answer(3, 12))) == [answered(answer(3, 12)), TasksEnded([((3,), end)])]
    assert not say.machine.late
    assert not say.machine.unique


def test_many_is_one_message_and_is_resent_whole() -> None:
    say = Script().connect()
    many = ManyWanted(row(), [b"a", b"b", b"c"])
    message = from_client.SpawnMany(0, row(1), [b"a", b"b", b"c"])
    assert say(many) == [Send(DATA, message)]
    assert say(SpawnsWanted([row()])) == [sent(4)]
    say(answers(answer(1, 11), answer(2, 12)))
    say(Disconnected(DATA))
    say(Connected(DATA))
    say(welcome(CONTROL))
    assert say(welcome(DATA)) == [Send(DATA, message), sent(4), Ready(1, LIMIT)]
    assert say(answers(answer(2, 12), answer(3, 13))) == [answered(answer(3, 13))]
    assert say(SpawnsWanted([row()])) == [sent(5, through=3)]
    assert say(ManyWanted(row(), [])) == []


def test_resending_packs_and_keeps_numbers_consecutive() -> None:
    say = Script().connect()
    say(SpawnsWanted([row() for _ in range(MAX_ROWS)]))
    say(SpawnsWanted([row(), row()]))
    say(answers(answer(3, 3)))
    say(Connected(DATA))
    say(welcome(CONTROL))
    *spawns, ready = say(welcome(DATA))
    assert ready == Ready(1, LIMIT)
    numbers = [[r.number for r in s.message.rows] for s in spawns if isinstance(s, Send)]  # type: ignore[attr-defined]  # all are Spawn
    assert numbers == [[1, 2], list(range(4, MAX_ROWS + 3))[:MAX_ROWS]]


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [
        ([150_000] * 3, [1, 1, 1]),
        ([MAX_BYTES * 2, 1, MAX_BYTES * 2, 1, 1], [1, 1, 1, 2]),
        ([MAX_BYTES // 2 - 1] * 4, [2, 2]),  # a function of one byte each: they fill it
        ([MAX_BYTES // 2 - 1, MAX_BYTES // 2] * 2, [1, 1, 1, 1]),
        ([1] * (2 * MAX_ROWS + 1), [MAX_ROWS, MAX_ROWS, 1]),
        ([], []),
    ],
)
def test_a_large_batch_is_split(sizes: list[int], messages: list[int]) -> None:
    say = Script().connect()
    effects = say(SpawnsWanted([row(arguments=bytes(size)) for size in sizes]))
    found = [each.message.rows for each in effects if isinstance(each, Send)]  # type: ignore[attr-defined]  # all are Spawn
    assert [len(rows) for rows in found] == messages
    numbers = [each.number for rows in found for each in rows]
    assert numbers == list(range(1, len(sizes) + 1))


def test_requests_are_resent_under_their_numbers() -> None:
    say = Script().connect()
    say(SpawnsWanted([row(), row()]))
    first = stop()._replace(request=1, last_spawn=2)
    assert say(RequestWanted(stop())) == [Send(CONTROL, first)]
    assert say(RequestWanted(from_client.GetBroker(0))) == [Send(CONTROL, from_client.GetBroker(2))]
    say(RequestWanted(from_client.GetStops(0)))
    say(SpawnsWanted([row()]))
    assert say(RequestAbandoned(3)) == []
    assert say(Arrived(CONTROL, to_client.Done(2))) == [Replied(2, to_client.Done(2))]
    say(Disconnected(CONTROL))
    say(Connected(CONTROL))
    assert say(welcome(CONTROL, epoch=2))[0] == Send(CONTROL, first)
    report = stop_report(1)
    assert say(Arrived(CONTROL, report)) == [Replied(1, report, (1, 2))]  # may be of its tasks
    late = to_client.Done(3)
    assert say(Arrived(CONTROL, late)) == [Replied(3, late)]


def test_a_report_says_whose_ends_have_yet_to_arrive() -> None:
    """All and only those of which it tells, or may tell: spawns made before it, without an answer."""
    say = Script().connect()
    say(SpawnsWanted([row(), row(), row(), row(), row(key="k")]))
    say(ManyWanted(row(), [b"a", b"b"]))
    say(answers(answer(1, 11), answer(2, 12), answer(3, 13), answer(6, 16)))
    say(Arrived(DATA, to_client.Ended([ended(12)])))
    for _ in range(3):
        say(RequestWanted(stop()))
    say(RequestWanted(stop()._replace(task_id=TaskId(11))))
    say(SpawnsWanted([row()]))

    report = stop_report(1, tasks=[11, 12, 99], remaining=[13])
    # What died with its process may be run again, and then go on for long: it is not waited for.
    report = report._replace(collateral=stop_report(1, tasks=[13]).tasks)
    assert say(Arrived(CONTROL, report)) == [Replied(1, report, (1, 4, 7))]
    report = stop_report(2, tasks=[11], remaining=[13], timed_out=True)
    assert say(Arrived(CONTROL, report)) == [Replied(2, report)]
    say(RequestAbandoned(3))
    assert say(Arrived(CONTROL, stop_report(3))) == [Replied(3, stop_report(3))]
    report = stop_report(4, tasks=[11])
    assert say(Arrived(CONTROL, report)) == [Replied(4, report, (1,))]


def test_a_subscription_is_renewed() -> None:
    say = Script().connect()
    say(RequestWanted(from_client.Subscribe(0)))
    say(Arrived(CONTROL, to_client.Done(1)))
    event = to_client.Event("x", 1.0, None, {}, 0)
    assert say(Arrived(CONTROL, event)) == [EventArrived(event)]
    say(Connected(CONTROL))
    assert say(welcome(CONTROL)) == [
        Send(CONTROL, from_client.Subscribe(2)),
        EventsMissed(),
        hello(DATA, resumed=True),
    ]
    say(RequestWanted(from_client.Unsubscribe(0)))
    say(Connected(CONTROL))
    assert say(welcome(CONTROL)) == [
        Send(CONTROL, from_client.Subscribe(2)),
        Send(CONTROL, from_client.Unsubscribe(3)),
        hello(DATA, resumed=True),
    ]


def test_subscribers_are_told_once_of_each_time_without_a_broker() -> None:
    """Whether it has restarted or not, and in whatever order its channels come back."""
    say = Script()

    def told(*events: Event) -> int:
        return [effect for event in events for effect in say(event)].count(EventsMissed())

    say(RequestWanted(from_client.Subscribe(0)))
    assert told(Connected(CONTROL), welcome(CONTROL, known=False), Connected(DATA)) == 0
    say(Arrived(CONTROL, to_client.Done(1)))
    for epoch in (1, 2):
        assert told(Disconnected(DATA), Disconnected(CONTROL), Connected(CONTROL)) == 0
        assert told(welcome(CONTROL, epoch=epoch)) == 1
        assert told(Connected(DATA), welcome(CONTROL, epoch=epoch)) == 0  # it brings no events
    say(Arrived(CONTROL, to_client.HelloWanted(2)))
    assert told(welcome(CONTROL, epoch=2)) == 1

    say(Arrived(CONTROL, to_client.HelloWanted(2)))
    assert SessionWanted() in say(welcome(CONTROL, known=False, epoch=3))
    assert told(SessionGiven(b"t" * 16), Connected(CONTROL)) == 0
    assert told(welcome(CONTROL, known=False, epoch=3)) == 1

    say(Connected(CONTROL))
    say(RequestWanted(from_client.Unsubscribe(0)))
    say(RequestWanted(from_client.Subscribe(0)))
    assert told(welcome(CONTROL, epoch=3)) == 0  # that one has begun since


@pytest.mark.parametrize("channel", [CONTROL, DATA])
def test_hello_wanted_leads_back_to_control(channel: str) -> None:
    say = Script().connect()
    say(SpawnsWanted([row()]))
    wanted = Arrived(channel, to_client.HelloWanted(2))
    assert say(wanted) == [hello(CONTROL, resumed=True)]
    assert say(wanted) == []  # each message that was under way is answered with one
    assert say(welcome(CONTROL, epoch=2)) == [hello(DATA, resumed=True)]
    assert say(welcome(DATA, epoch=2)) == [sent(1), Ready(2, LIMIT)]


def test_data_welcomed_by_a_newer_broker_than_control_asks_on_control_again() -> None:
    say = Script().connect()
    say(SpawnsWanted([row()]))
    assert say(Connected(DATA)) == [hello(CONTROL, resumed=True)]
    say(welcome(CONTROL, epoch=1))
    assert say(welcome(DATA, epoch=2)) == [hello(CONTROL, resumed=True)]
    assert say(welcome(CONTROL, epoch=2)) == [hello(DATA, resumed=True)]
    assert say(welcome(DATA, epoch=2)) == [sent(1), Ready(2, LIMIT)]


def test_a_hello_without_an_answer_is_said_again() -> None:
    say = Script()
    say(Connected(CONTROL))
    assert say(HeartbeatDue()) == [hello(CONTROL)]
    say(welcome(CONTROL, known=False))
    assert say(welcome(CONTROL)) == []
    say(Connected(DATA))
    assert say(HeartbeatDue()) == [hello(CONTROL, resumed=True)]


def test_a_forgotten_session() -> None:
    say = Script().connect()
    say(SpawnsWanted([row(), row()]))
    say(ManyWanted(row(), [b"a", b"b"]))
    say(answers(answer(1, 11), answer(3, 13)))
    say(RequestWanted(stop()))
    say(Disconnected(DATA))
    say(SpawnsWanted([row()]))  # key 5: held back
    say(RequestWanted(stop()))
    say(Disconnected(CONTROL))
    say(Connected(CONTROL))
    assert say(welcome(CONTROL, known=False, epoch=2)) == [
        SpawnsUnknown((2, 4)),
        ResultsGone((1, 3)),
        SessionWanted(),
    ]
    other = b"t" * 16
    assert say(SessionGiven(other)) == []
    assert say(Connected(CONTROL)) == [hello(CONTROL, other)]
    assert say(welcome(CONTROL, known=False, epoch=2)) == [
        Send(CONTROL, stop()._replace(request=1, last_spawn=0)),
        Send(CONTROL, stop()._replace(request=2, last_spawn=1)),
    ]
    assert say(Connected(DATA)) == [hello(DATA, other)]
    assert say(welcome(DATA, epoch=2)) == [sent(1), Ready(2, LIMIT)]
    assert say(answers(answer(1, 21))) == [answered(answer(5, 21))]
    assert say(Arrived(CONTROL, stop_report(2))) == [Replied(2, stop_report(2))]
    assert say(HeartbeatDue())[0] == Send(CONTROL, from_client.Heartbeat(1))


def test_leaving_acknowledges_and_is_the_last_word() -> None:
    say = Script().connect()
    say(SpawnsWanted([row()]))
    say(answers(answer(1, 11)))
    say(Arrived(DATA, to_client.Ended([ended(11)])))
    assert say(LeaveWanted()) == [
        Send(DATA, from_client.ResultsTaken([11])),
        Send(CONTROL, from_client.Goodbye()),
    ]
    assert say(HeartbeatDue()) == []


def test_what_the_broker_says_of_itself() -> None:
    say = Script().connect()
    assert say(Arrived(CONTROL, to_client.Alive(1))) == []
    assert say(Arrived(CONTROL, to_client.Goodbye("why"))) == [BrokerLeaving("why")]
    refused = to_client.Refused(0, "ProtocolError", "no")
    assert say(Arrived(CONTROL, refused)) == [Rejected("ProtocolError", "no")]


# --- against a model -----------------------------------------------------------------------------


class Model:
    """Broker and transport: what each session has spawned, and the messages under way on each channel."""

    def __init__(self) -> None:
        self.machine = ClientSession(session=b"0", pid=1, host="h")
        self.sessions: dict[bytes, dict[int, SpawnAnswer]] = {}
        self.greeted: dict[str, bytes | None] = {CONTROL: None, DATA: None}
        self.epoch = 1
        self.up = {CONTROL: False, DATA: False}
        self.to_broker: dict[str, deque[Any]] = {CONTROL: deque(), DATA: deque()}
        self.to_client: dict[str, deque[Any]] = {CONTROL: deque(), DATA: deque()}
        #: Task ids by the payload that names the spawn: a spawn that ran twice has two.
        self.ran: dict[bytes, list[int]] = {}
        self.told: dict[int, int | str] = {}
        #: Payloads that the machine has sent at least once.
        self.sent: set[bytes] = set()
        self.names = 0
        self.tasks = 0

    def handle(self, event: Event) -> None:
        frozen = self.machine.freeze()
        self.machine = ClientSession.thaw(frozen)
        for effect in self.machine.handle(event):
            if isinstance(effect, Send):
                message = effect.message
                if isinstance(message, from_client.Spawn):
                    self.sent.update(bytes(each.arguments) for each in message.rows)  # type: ignore[call-overload]  # bytes here
                elif isinstance(message, from_client.SpawnMany):
                    self.sent.update(bytes(each) for each in message.arguments)  # type: ignore[arg-type]  # bytes here
                if self.up[effect.channel]:
                    self.to_broker[effect.channel].append(message)
            elif isinstance(effect, Answered):
                for row in effect.rows:
                    assert row.number not in self.told
                    self.told[row.number] = row.task_id
            elif isinstance(effect, SpawnsUnknown):
                for key in effect.keys:
                    assert key not in self.told
                    assert str(key).encode() in self.sent, "never sent, so not unknown"
                    self.told[key] = "unknown"
            elif isinstance(effect, SessionWanted):
                for channel in (CONTROL, DATA):
                    self.cut(channel, tell=False)
                self.handle(SessionGiven(self.machine.session + b"+"))
                return

    def name(self) -> bytes:
        self.names += 1
        return str(self.names).encode()

    def cut(self, channel: str, *, tell: bool = True) -> None:
        self.up[channel] = False
        self.to_broker[channel].clear()
        self.to_client[channel].clear()
        self.greeted[channel] = None
        if tell:
            self.handle(Disconnected(channel))

    def connect(self, channel: str) -> None:
        if not self.up[channel]:
            self.up[channel] = True
            self.handle(Connected(channel))

    def deliver_to_client(self, channel: str) -> None:
        if self.to_client[channel]:
            self.handle(Arrived(channel, self.to_client[channel].popleft()))

    def deliver_to_broker(self, channel: str) -> None:
        if not self.to_broker[channel]:
            return
        message = self.to_broker[channel].popleft()
        say = self.to_client[channel].append
        if isinstance(message, from_client.Hello):
            self.greeted[channel] = message.session
            known = True  # on data the real broker doesn't look
            if channel == CONTROL:
                known = message.session in self.sessions
                if not message.resumed:
                    self.sessions.setdefault(message.session, {})
            say(to_client.Welcome(PROTOCOL_VERSION, self.epoch, known, LIMIT))
            return
        session = self.greeted[channel]
        if session is None or session not in self.sessions:
            say(to_client.HelloWanted(self.epoch))
            return
        if isinstance(message, from_client.SpawnMany):
            first = message.common.number
            rows = [
                message.common._replace(number=SpawnNumber(first + i), arguments=arguments)
                for i, arguments in enumerate(message.arguments)
            ]
        elif isinstance(message, from_client.Spawn):
            rows = message.rows
        else:
            return
        decided = self.sessions[session]
        if rows[0].number > len(decided) + 1:
            # A gap: sent before the session was forgotten. A gap of the machine's own never settles.
            say(to_client.HelloWanted(self.epoch))
            return
        for each in rows:
            if each.number not in decided:
                self.tasks += 1
                self.ran.setdefault(bytes(each.arguments), []).append(self.tasks)  # type: ignore[call-overload]  # bytes here
                decided[each.number] = answer(each.number, self.tasks)
            if each.number > message.answered_through:
                say(to_client.SpawnAnswers([decided[each.number]]))

    def restart(self, *, forget: bool) -> None:
        self.epoch += 1
        if forget:
            self.sessions.clear()
        for channel in (CONTROL, DATA):
            if self.up[channel]:
                self.cut(channel)

    def expire(self) -> None:
        """The broker has not heard from the client for long: the connections stand."""
        self.sessions.clear()

    def pump(self, rounds: int) -> None:
        """Let the messages under way take a few steps, on both channels."""
        for _ in range(rounds):
            for channel in (CONTROL, DATA):
                self.connect(channel)
                self.deliver_to_broker(channel)
                self.deliver_to_client(channel)

    def settle(self) -> None:
        for _ in range(1000):
            if not any((*self.to_broker.values(), *self.to_client.values())):
                if not self.machine.unanswered:
                    return
                self.handle(HeartbeatDue())
            self.pump(1)
        raise AssertionError("it does not settle")


STEPS = st.one_of(
    st.tuples(st.sampled_from(["spawn", "pump", "pump"]), st.integers(1, 3)),
    st.tuples(st.just("many"), st.integers(1, 3)),
    st.tuples(
        st.sampled_from(["connect", "broker", "client", "broker", "client", "cut"]),
        st.sampled_from([CONTROL, DATA]),
    ),
    st.tuples(st.sampled_from(["restart", "forget", "expire", "beat"]), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_no_spawn_is_lost_or_runs_twice(steps: list[tuple[str, Any]]) -> None:
    model = Model()
    model.pump(4)
    for what, value in steps:
        if what == "spawn":
            rows = [row(arguments=model.name()) for _ in range(value)]
            model.handle(SpawnsWanted(rows))
        elif what == "many":
            model.handle(ManyWanted(row(), [model.name() for _ in range(value)]))
        elif what == "pump":
            model.pump(value)
        elif what == "connect":
            model.connect(value)
        elif what == "broker":
            model.deliver_to_broker(value)
        elif what == "client":
            model.deliver_to_client(value)
        elif what == "cut" and model.up[value]:
            model.cut(value)
        elif what in ("restart", "forget"):
            model.restart(forget=what == "forget")
        elif what == "expire":
            model.expire()
        elif what == "beat":
            model.handle(HeartbeatDue())
    model.settle()
    assert sorted(model.told) == list(range(1, model.names + 1))
    for name, tasks in model.ran.items():
        assert len(tasks) == 1, f"spawn {name!r} ran as {tasks}"
    for key, told in model.told.items():
        tasks = model.ran.get(str(key).encode(), [])
        assert told == "unknown" or tasks == [told]
    assert model.machine.answered_through == model.names
