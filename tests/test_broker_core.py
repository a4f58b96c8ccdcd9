"""The broker's core without sockets, clock and disk: what may leave before the journal has it."""

import gc
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from quiesce.broker import queries
from quiesce.broker.core import A_MOMENT, FENCE_LOOK, PATIENCE, RECESS, Core
from quiesce.broker.journal import MemoryJournal, Recovered
from quiesce.broker.outgoing import LATER, MANY, PIECE, Outgoing
from quiesce.broker.peers import Channel, Peer, Peers
from quiesce.broker.settings import BrokerSettings
from quiesce.protocol import PROTOCOL_VERSION, from_client, from_supervisor, to_client, to_worker
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.runs import as_received
from quiesce.registry.effects import AssignTasks, Effect, TakeEnds
from quiesce.registry.events import Instant
from quiesce.registry.facts import Fact
from quiesce.registry.ids import Attempt, Incarnation, StopId, TaskId
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.records import Supervisor
from quiesce.registry.rows import AssignRow
from quiesce.registry.timers import HELD_UP
from registry_helpers import session_id, spawn_row

A = session_id("A")


class StalledJournal(MemoryJournal):
    """Commits when it is told to."""

    durability = "crash"

    def __init__(self) -> None:
        super().__init__()
        self.pending: deque[tuple[list[Fact], list[Effect]]] = deque()

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        if facts or self.pending:
            self.pending.append((facts, effects))
        else:
            super().append(facts, effects)

    def commit(self) -> None:
        while self.pending:
            super().append(*self.pending.popleft())

    @property
    def behind(self) -> bool:
        return bool(self.pending)


class RecordingPeers(Peers):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]  # it has no sockets
        self.sent: list[tuple[Any, Channel, Any]] = []

    def _encode(self, message: Any, whom: object) -> list[Any]:
        return [as_received(message)]

    def _try(self, peer: Peer, channel: Channel, frames: list[Any]) -> bool:
        if peer.routes[channel] is not None:
            self.sent.append((peer.key, channel, frames[0]))
        return True

    def send_to_route(self, channel: Channel, route: bytes, message: Any) -> None:
        self.sent.append((route, channel, message))


class Broker:
    """A core, and a client that speaks to it."""

    def __init__(
        self,
        *,
        patient: bool = False,
        is_clear: Callable[[Supervisor], bool] = lambda supervisor: True,
    ) -> None:
        self.tick = 1.0
        self.peers = RecordingPeers()
        self.journal = StalledJournal()
        settings = BrokerSettings(
            address="nowhere",
            control="",
            data="",
            state="",
            lock_path="",
            runtimes=(RuntimeLimits(name="pool"),),
            kinds=(KindLimits(name="gc"),),
        )
        recovered = Recovered(snapshot=None, facts=[], last_epoch=0, complete=True, words="")
        self.core = Core(
            settings,
            self.peers,
            self.journal,
            recovered,
            1,
            "boot",
            now=lambda: Instant(self.tick, 1000.0),
            patient=patient,
            is_clear=is_clear,
        )
        self.turn(commit=True)

    def turn(self, *, commit: bool, heard: bool = False) -> list[Any]:
        """What leaves at the end of a turn, to whomever, on data."""
        self.core.pass_time()
        if commit:
            self.journal.commit()
        self.core.leave(heard=heard)
        sent, self.peers.sent = self.peers.sent, []
        return [message for _, channel, message in sent if channel == "data"]

    def stop_that_waits(self) -> None:
        """A client asks for a stop, with a timeout of 5 s. It waits for a spawn of before, which has not come."""
        self.hello("control", b"1")
        self.hello("data", b"2")
        scope = (None, "x", None, None)
        stop = from_client.Stop(1, scope, None, None, 5.0, False, False, "", 1, None)
        self.core.hear("control", b"1", stop)

    def spawn_comes(self) -> to_client.StopReport:
        """That spawn is read; gives what the stop says then."""
        self.core.hear("data", b"2", from_client.Spawn(0, [spawn_row(1, tenant_id="x")]))
        self.core.pass_time()
        self.journal.commit()
        self.core.leave()
        (report,) = (said for _, _, said in self.peers.sent if type(said) is to_client.StopReport)
        return report

    def hello(self, channel: Channel, route: bytes, *, resumed: bool = False) -> None:
        hello = from_client.Hello(PROTOCOL_VERSION, A, channel, 1, "here", 0, resumed)
        self.core.hear(channel, route, hello)


def test_a_result_waits_for_the_journal_also_when_its_client_comes_back() -> None:
    """Else a broker that dies then has told of an end that its successor knows nothing of."""
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    broker.core.hear("data", b"2", from_client.Spawn(0, [spawn_row(1, tenant_id="x")]))
    broker.turn(commit=True)
    stop = from_client.Stop(1, (None, "x", None, None), None, None, None, False, False, "", 1, None)
    broker.core.hear("control", b"1", stop)
    assert broker.turn(commit=False) == []
    broker.hello("control", b"3", resumed=True)
    broker.hello("data", b"4", resumed=True)
    assert [type(each) for each in broker.turn(commit=False)] == [to_client.Welcome]
    (ended,) = broker.turn(commit=True)
    assert {row.task_id for row in ended.rows} == {1}


def test_results_of_a_client_that_comes_back_are_sent_a_slice_in_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quiesce.registry.sessions.SLICE", 2)
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    broker.core.hear("data", b"2", from_client.SpawnMany(0, spawn_row(1), [b""] * 5))
    stop = from_client.Stop(1, (None,) * 4, None, None, None, False, False, "", 5, None)
    broker.core.hear("control", b"1", stop)
    broker.turn(commit=True)
    broker.hello("data", b"3", resumed=True)
    told: list[list[int]] = []
    while not told or broker.core.busy:
        ended = [each for each in broker.turn(commit=True) if isinstance(each, to_client.Ended)]
        told.append([row.task_id for each in ended for row in each.rows])
    assert told == [[1, 2], [3, 4], [5]]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its collector counts otherwise")
def test_the_collector_comes_by_and_by_while_a_stop_frees_as_much_as_it_makes() -> None:
    broker = Broker(patient=True)
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    many = from_client.SpawnMany(0, spawn_row(1), [b""] * 60_000)
    broker.core.hear("data", b"2", many)
    stop = from_client.Stop(1, (None,) * 4, None, None, None, False, False, "", 5, None)
    before, looks = gc.get_threshold(), [0]

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looks.append(len(gc.get_objects(0)))

    gc.collect()
    gc.set_threshold(5_000, 400, 20)  # as `serve` does
    gc.callbacks.append(note)
    try:
        broker.core.hear("control", b"1", stop)
        broker.turn(commit=True)
        while broker.core.busy:
            broker.tick += RECESS
            broker.turn(commit=True)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before)
    assert max(looks) < 7_500, "new objects that it looked at in one go"


def test_a_long_report_holds_nobody_up() -> None:
    """It is packed a piece in each turn; what others are told meanwhile leaves before it."""
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    common, many = spawn_row(1, tenant_id="x"), PIECE + 1
    broker.core.hear("data", b"2", from_client.SpawnMany(0, common, [b""] * many))
    stop = from_client.Stop(
        1, (None, "x", None, None), None, None, None, False, False, "", many, None
    )
    broker.core.hear("control", b"1", stop)
    while broker.core.outgoing.again:
        broker.turn(commit=True)
    broker.core.hear("control", b"1", from_client.Reopen(2, (None, "x", None, None)))
    while broker.core.busy:
        broker.core.pass_time()
        broker.journal.commit()
        broker.core.leave()
    answers = [message for _, channel, message in broker.peers.sent if channel == "control"]
    done, report = answers[-2:]
    assert done == to_client.Done(2)
    assert [row.id for row in report.tasks] == list(range(1, many + 1))


def test_a_long_list_holds_nobody_up() -> None:
    """It is made a piece in each turn, of those that were there when it was asked for and still are."""
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    many = 2 * queries.PIECE + 1
    common = spawn_row(1, tenant_id="x")
    broker.core.hear("data", b"2", from_client.SpawnMany(0, common, [b""] * many))
    broker.turn(commit=True)
    broker.core.hear("control", b"1", from_client.ListTasks(1, (None, "x", None, None), "queued"))
    stop = from_client.Stop(2, (None,) * 4, many, None, None, False, False, "", many, None)
    broker.core.hear("control", b"1", stop)
    later = spawn_row(many + 1, tenant_id="x")
    broker.core.hear("data", b"2", from_client.Spawn(0, [later]))
    turns = 0
    while broker.core.busy:
        broker.core.pass_time()
        broker.journal.commit()
        broker.core.leave()
        turns += 1
    answers = [message for _, channel, message in broker.peers.sent if channel == "control"]
    report, tasks = answers[-2:]
    assert (report.stop_id, tasks.request, turns >= 3) == (1, 1, True)
    read: Any = Decoder(to_client.MESSAGES).decode(encode(tasks))
    assert [row.id for row in read.rows] == list(range(1, many))
    assert {row.state for row in read.rows} == {"queued"}


def test_who_talks_to_the_broker_does_not_wait_for_one_slice_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But the slices of a stop don't wait for ever, whoever talks."""
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 1)
    broker = Broker(patient=True)
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    many = from_client.SpawnMany(0, spawn_row(1, tenant_id="x"), [b""] * 9)
    broker.core.hear("data", b"2", many)
    stop = from_client.Stop(1, (None, "x", None, None), None, None, None, False, False, "", 9, None)
    broker.core.hear("control", b"1", stop)

    def slices(*, commit: bool = True, heard: bool = False) -> int:
        state = broker.core.registry.state
        before = state.left_of(state.stops[StopId(1)])
        broker.turn(commit=commit, heard=heard)
        return before - state.left_of(state.stops[StopId(1)])

    assert slices(heard=True) == 1  # nothing was done for long
    assert slices(heard=True) == 0
    assert broker.core.talking
    assert slices() == 1
    broker.tick += RECESS
    assert slices(heard=True) == 1
    # What leaves by now is talk, too: somebody may answer.
    broker.tick += RECESS / 2
    assert slices() == 0
    # And what somebody waits for is to be written before anything else is done.
    broker.core.hear("data", b"2", from_client.Spawn(0, [spawn_row(10)]))
    broker.tick += RECESS
    assert slices(commit=False) == 0
    broker.tick += PATIENCE
    assert slices(commit=False) == 1
    assert broker.core.busy


def test_what_another_thread_has_decided_meanwhile_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk stalls, and who stands in begins a slice of a stop: it must not be slept on."""
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    common, many = spawn_row(1, tenant_id="x"), 600
    broker.core.hear("data", b"2", from_client.SpawnMany(0, common, [b""] * many))
    broker.turn(commit=True)
    stop = from_client.Stop(
        1, (None, "x", None, None), None, None, None, False, False, "", many, None
    )
    broker.core.hear("control", b"1", stop)
    committed = broker.journal.committed
    stands_in = iter([broker.core.leave])

    def stalled() -> list[Effect]:
        for turn in stands_in:
            while broker.core.outgoing.again:
                broker.journal.commit()
                turn()
        return committed()

    monkeypatch.setattr(broker.journal, "committed", stalled)
    broker.journal.commit()
    broker.core.leave()
    assert not broker.core.outgoing.again
    assert broker.journal.pending
    assert broker.core.busy


def test_a_snapshot_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is frozen in slices, a turn each; and given up when the journal has no room for it any more."""
    monkeypatch.setattr("quiesce.registry.ahead.SLICE", 2)
    broker = Broker()
    taken: list[Any] = []
    monkeypatch.setattr(broker.journal, "wants_snapshot", lambda: True)
    monkeypatch.setattr(broker.journal, "snapshot", taken.append)
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    common = spawn_row(1, tenant_id="x")
    broker.core.hear("data", b"2", from_client.SpawnMany(0, common, [b""] * 4))
    broker.turn(commit=True)
    assert broker.core.busy
    monkeypatch.setattr(broker.journal, "wants_snapshot", lambda: False)
    broker.turn(commit=True)
    assert not broker.core.registry.ahead.begun
    monkeypatch.setattr(broker.journal, "wants_snapshot", lambda: True)
    for _ in range(3):
        assert not taken
        broker.turn(commit=True)
    assert taken == [broker.core.registry.freeze(volatile=False, payloads=True)]


def test_what_many_subscribers_are_told_is_packed_once() -> None:
    broker = Broker()
    for name in "BCD":
        session, route = session_id(name), name.encode()
        hello = from_client.Hello(PROTOCOL_VERSION, session, "control", 1, "here", 0, False)
        broker.core.hear("control", route, hello)
        broker.core.hear("control", route, from_client.Subscribe(1))
    broker.hello("control", b"1")
    broker.hello("data", b"data")
    broker.turn(commit=True)
    broker.core.hear("data", b"data", from_client.Spawn(0, [spawn_row(1)]))
    told = [message for _, _, message in broker.peers.sent if type(message) is to_client.Event]
    assert [event.type for event in told] == ["task-registered"] * 3
    assert len({id(event) for event in told}) == 1


def test_a_slice_is_told_as_what_it_means_for_each_task() -> None:
    broker = Broker()
    broker.hello("control", b"1")
    broker.hello("data", b"2")
    broker.core.hear("control", b"1", from_client.Subscribe(1))
    common = spawn_row(1, tenant_id="x")
    broker.core.hear("data", b"2", from_client.SpawnMany(0, common, [b""] * 2))
    stop = from_client.Stop(
        2, (None, "x", None, None), None, None, None, False, False, "w", 2, None
    )
    broker.core.hear("control", b"1", stop)
    events = [message for _, _, message in broker.peers.sent if type(message) is to_client.Event]
    assert [(event.type, event.task_id) for event in events if event.task_id] == [
        ("task-registered", 1),
        ("task-registered", 2),
        ("task-asked-to-stop", 1),
        ("task-ended", 1),
        ("task-asked-to-stop", 2),
        ("task-ended", 2),
    ]
    ended = next(event.data for event in events if event.type == "task-ended")
    assert (ended["outcome"], ended["evidence"], ended["tenant_id"]) == (
        "cancelled",
        "NEVER_RAN",
        "x",
    )
    (row,) = broker.core.queries.times()["stop"]["rows"]
    assert (row["kind"], sum(row["counts"])) == ("gc", 2)


def test_acknowledgements_of_ends_wait_for_company() -> None:
    """A task that goes to the worker meanwhile takes none along: that would be a message for each."""
    peers = RecordingPeers()
    peers.is_worker(peers.introduce(("worker", (b"s", 1)), "data", b"1"), 7)
    worker = Incarnation(7)
    outgoing = Outgoing(peers, payload_limit=1, patience=LATER)

    def leaves(*effects: Effect, tick: float) -> list[Any]:
        for effect in effects:
            outgoing.carry_out(effect)
        outgoing.flush(tick)
        sent, peers.sent = peers.sent, []
        return [message for _, _, message in sent]

    row = AssignRow(1, TaskId(3), Attempt(1), "gc", "name", None, None, False, 1.0, b"", b"")
    assert leaves(TakeEnds(worker, [(1, 1)]), tick=1.0) == []
    (assigned,) = leaves(
        AssignTasks(worker, [row]), TakeEnds(worker, [(2, 1)]), tick=1.0 + LATER / 2
    )
    assert type(assigned) is to_worker.Assign
    assert outgoing.later_at == 1.0 + LATER
    assert leaves(tick=1.0 + LATER) == [([(1, 1), (2, 1)],)]
    many = [(task, 1) for task in range(MANY)]
    assert leaves(TakeEnds(worker, many), tick=2.0) == [(many,)]


def test_a_broker_that_was_held_up_hears_its_inbox_before_it_judges() -> None:
    """The last spawn that a stop waits for has come meanwhile, but nobody has looked: no reason to time out."""
    broker = Broker()
    broker.stop_that_waits()
    broker.turn(commit=True)
    broker.tick += 30.0
    broker.turn(commit=True)
    assert broker.core.due() == broker.tick + HELD_UP
    assert not broker.spawn_comes().timed_out


def test_a_lease_that_is_over_waits_until_nothing_is_left() -> None:
    left = ["a child of a task"]
    broker = Broker(is_clear=lambda supervisor: not left)
    hello = from_supervisor.Hello(
        *(PROTOCOL_VERSION, b"12345678", "pool", 41, "here", "boot", 1, 1, 0, 0, "", 1.0, True),
        None,
    )
    broker.core.hear("control", b"s", hello)
    broker.turn(commit=True)
    due = broker.core.registry.timers.when(("lease", b"12345678"))
    assert due is not None
    broker.tick = due
    for _ in range(3):
        broker.turn(commit=True)
        assert broker.core.registry.state.supervisors
        again = broker.core.due()
        assert again is not None
        assert broker.tick < again <= broker.tick + FENCE_LOOK
        broker.tick = again
    left.clear()
    broker.turn(commit=True)
    assert not broker.core.registry.state.supervisors


def test_a_broker_that_is_late_by_a_moment_listens_for_one() -> None:
    """After it was stopped its thread may be there before that of ZeroMQ which reads its inbox."""
    broker = Broker()
    broker.stop_that_waits()
    ends = broker.tick + 5.0
    broker.turn(commit=True)
    while (due := broker.core.due()) is not None and due < ends:
        broker.tick = due
        broker.turn(commit=True)
    broker.tick = ends + 2 * A_MOMENT
    broker.turn(commit=True)
    assert broker.core.due() == broker.tick + A_MOMENT
    broker.tick += A_MOMENT / 2
    assert not broker.spawn_comes().timed_out


def test_what_is_due_comes_after_that_whoever_talks() -> None:
    broker = Broker()
    broker.stop_that_waits()
    broker.turn(commit=True)
    broker.tick += 30.0
    broker.turn(commit=True)
    broker.tick += 30.0  # held up again
    broker.core.pass_time()
    broker.journal.commit()
    broker.core.leave()
    (report,) = (said for _, _, said in broker.peers.sent if type(said) is to_client.StopReport)
    assert report.timed_out
