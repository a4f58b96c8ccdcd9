"""Hostile input, without sockets: every message with any fields, in any role and order, and bytes that are none.

What the broker's core must do with all of it: go on, decide nothing half, count what it drops, say nothing that
nobody can read, journal nothing that recovery would refuse. See `quiesce.testing.fuzz`.
"""

import math
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from quiesce.broker import admission, peers, sense
from quiesce.errors import ProtocolError
from quiesce.protocol import (
    PROTOCOL_VERSION,
    from_client,
    from_supervisor,
    from_worker,
    to_client,
)
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.sizes import TOGETHER_LIMIT
from quiesce.registry.ids import Attempt, SpawnNumber, TaskId
from quiesce.registry.limits import LABEL_LIMIT
from quiesce.registry.machine import HalfDoneError
from quiesce.registry.rows import AlikeEnds, EndedRow, SpawnRow
from quiesce.testing import fuzz
from quiesce.testing.fuzz import Mess
from quiesce.testing.fuzz_values import MESSAGES, RUNTIMES, World, frames, message

#: Reproducible in CI; `python -m quiesce.testing.fuzz` looks further.
FEW = settings(
    deadline=None,
    derandomize=True,
    max_examples=10,
    suppress_health_check=[HealthCheck.too_slow],
)
DECODER = Decoder(MESSAGES)


def names(kind: type[Any]) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def busy(seed: int = 0) -> Mess:
    """A broker with sessions, pools and tasks in all states."""
    mess = Mess(random.Random(seed), hostile=0.0)
    mess.make_busy()
    mess.ears.heard.clear()
    return mess


def sent(mess: Mess, kind: type[Any]) -> list[Any]:
    """What was said of this type since the last look."""
    found = [said for _, said in mess.ears.heard if isinstance(said, kind)]
    mess.ears.heard.clear()
    return found


# --- each message


@pytest.mark.parametrize("kind", MESSAGES, ids=names)
@FEW
@given(seed=st.integers(0, 2**32), place=st.integers(0, 3))
def test_any_fields_from_anybody(kind: type[Any], seed: int, place: int) -> None:
    """Each type of message, its fields right by type and else anything, said by each role on both sockets."""
    mess = busy(place)
    chance = random.Random(seed)
    for channel in ("control", "data"):
        for route in (b"client", b"honest-p", b"whonest-p", b"stranger"):
            mess.tick += 0.01
            made = message(chance, kind, mess.world)
            try:
                said = encode(made)
            except ProtocolError:
                continue  # an integer that is too large
            mess.core.incoming.take(channel, [route, *said])
            mess.core.leave()
            mess.check()
    mess.tick += 1.0
    mess.core.pass_time()
    mess.check()
    mess.replay()


@pytest.mark.parametrize("kind", MESSAGES, ids=names)
@FEW
@given(seed=st.integers(0, 2**32))
def test_spoilt_frames_are_refused_or_read_but_never_more(kind: type[Any], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(5):
        try:
            good = encode(message(chance, kind, World()))
        except ProtocolError:
            continue
        try:
            read = DECODER.decode(frames(chance, good))
        except ProtocolError:
            continue
        assert type(read) in MESSAGES


@FEW
@given(data=st.lists(st.binary(max_size=200), max_size=4))
def test_bytes_that_are_no_message(data: list[bytes]) -> None:
    mess = busy()
    before = mess.core.incoming.malformed
    mess.core.incoming.take("control", [b"client", *data])
    mess.core.leave()
    mess.check()
    assert mess.core.incoming.malformed in (before, before + 1)


@settings(FEW, max_examples=60)
@given(seed=st.integers(0, 2**32), hostile=st.sampled_from((0.3, 0.6, 0.9)))
def test_many_messages_in_any_order(seed: int, hostile: float) -> None:
    Mess(random.Random(seed), hostile=hostile).run(60)


def test_the_long_run_tells_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.main(0.0, 1, steps=20) == 0
    assert "1 rounds of 20 steps, all in order" in capsys.readouterr().out
    monkeypatch.setattr(sense, "check", lambda message: 1 / 0)
    assert fuzz.main(0.0, 1) == 1
    assert "FAILED in the round of seed" in capsys.readouterr().out


# --- what the fuzzers found


def test_who_was_not_let_in_holds_no_task() -> None:
    """A worker that was never given an incarnation: queued tasks have the worker 0, as it has."""
    mess = busy()
    task = next(task for task in mess.core.registry.state.tasks.values() if not task.worker)
    tenant = task.tenant_id
    hello = from_worker.Hello(PROTOCOL_VERSION, "solo", b"nobody!!", 1, 1, "h", 1, 0, 0, 0, [], [])
    mess._hear("control", b"ghost", hello)
    for said in (
        from_worker.Associate(1, task.id, task.attempt, "elsewhere", None),
        from_worker.Lingering(task.id, task.attempt, "what"),
        from_worker.Waiting([(task.id, task.attempt, 1)]),
    ):
        mess._hear("control", b"ghost", said)
        mess.check()
    assert (task.tenant_id, task.lingering, task.waits_on) == (tenant, "", ())


@pytest.mark.parametrize(
    "said",
    [
        from_supervisor.Usage(b"honest-p", 1.0, 2**64 - 1, 1.0, []),
        from_supervisor.Usage(b"honest-p", math.inf, 1, 1.0, []),
        from_supervisor.Usage(
            b"honest-p",
            1.0,
            1,
            1.0,
            [from_supervisor.WorkerUsage(1, 1, 1.0, 1, [(1, 1, math.inf)])],
        ),
        from_supervisor.WorkerExited(
            b"honest-p", from_supervisor.WorkerExitedRow(1, 2**63, 0, True, [])
        ),
    ],
    ids=["memory", "cpu", "age", "pid"],
)
def test_numbers_that_can_not_be(said: Any) -> None:
    """They would have come back in answers to others that nobody could read, or could not even be packed."""
    mess = busy()
    before = mess.core.incoming.malformed
    mess._hear("control", b"honest-p", said)
    assert mess.core.incoming.malformed == before + 1
    mess._hear("control", b"client", from_client.GetStatistics(1))
    mess._hear("control", b"client", from_client.ListTasks(2, (None,) * 4, None))
    mess.check()
    body = sent(mess, to_client.Statistics)[-1].body
    assert body["broker"]["malformed_messages"] == before + 1


@pytest.mark.parametrize("row", [(2**53, 1, 1), (1, -1, 1), (1, 1, -1), (1, 1, 2**63)])
def test_what_can_not_have_been_given_back(row: tuple[int, int, int]) -> None:
    mess = busy()
    before = mess.core.incoming.malformed
    (worker, *_) = mess.core.incoming._peers.by_worker.values()
    route = worker.routes["data"]
    assert route is not None
    mess._hear("data", route, from_worker.GivenBack([row]))
    assert mess.core.incoming.malformed == before + 1
    mess._hear("data", route, from_worker.GivenBack([(1, 1, 2**53 - 1)]))  # possible, if not true
    assert mess.core.incoming.malformed == before + 1
    mess.check()


def test_more_spawns_than_are_registered_together() -> None:
    """A few bytes for each: the broker would have heard nobody else for as long as a lease."""
    mess = busy()
    before, last = mess.core.incoming.malformed, mess.core.registry.state.last_task_id
    common = SpawnRow(
        SpawnNumber(1),
        "solo",
        "gc",
        None,
        None,
        "n",
        False,
        0,
        "never",
        None,
        None,
        None,
        b"f",
        b"",
    )
    said = from_client.SpawnMany(0, common, [b""] * (TOGETHER_LIMIT + 1))
    mess._hear("data", b"client", said)
    assert mess.core.incoming.malformed == before + 1
    assert mess.core.registry.state.last_task_id == last


def test_a_deadline_after_the_end_of_time_is_one() -> None:
    mess = busy()
    stop = from_client.Stop(
        500, (None, "t", None, None), None, 1e308, 1e308, False, False, "", 10**6, None
    )
    mess._hear("control", b"client", stop)
    mess.check()


def test_a_worker_has_a_slot() -> None:
    mess = busy()
    before = mess.core.incoming.malformed
    for slots in (0, -1, 2**40):
        hello = from_worker.Hello(
            PROTOCOL_VERSION, "pool", b"honest-p", 9, 1, "h", slots, 0, 0, 0, [], []
        )
        mess._hear("control", b"new", hello)
    assert mess.core.incoming.malformed == before + 3


# --- what is too long


def test_long_labels_are_refused_with_words() -> None:
    mess = busy()
    long = "x" * (LABEL_LIMIT + 1)
    mess.spawned = mess.core.registry.state.sessions[mess.session].spawned  # type: ignore[index]  # plain bytes
    row = SpawnRow(
        *(mess.spawned + 1, "pool", "gc", None, None, long, False, 0, "never", None, None),  # type: ignore[arg-type]  # a plain number
        *(None, b"f", b"a"),
    )
    sent(mess, object)
    mess._hear("data", b"client", from_client.Spawn(0, [row]))
    mess._hear("control", b"client", from_client.Stop(900, (None, long, None, None), *_STOP))
    mess._hear("control", b"client", from_client.Reopen(901, (None, None, long, None)))
    mess.core.leave()
    mess.check()
    heard = [said for _, said in mess.ears.heard]
    errors = [said.error for said in heard if isinstance(said, to_client.Refused)]
    errors += [
        row.error or ""
        for said in heard
        if isinstance(said, to_client.SpawnAnswers)
        for row in said.rows
    ]
    assert errors == ["PayloadTooLargeError"] * 3


_STOP: Any = (None, None, None, False, False, "", 0, None)


def test_long_texts_of_workers_are_cut() -> None:
    mess = busy()
    task = next(task for task in mess.core.registry.state.tasks.values() if task.worker)
    name = task.spawn.runtime
    route = b"w" + mess.supervisors[name]
    attempt = (task.id, task.attempt)
    mess._hear("control", route, from_worker.Lingering(*attempt, "l" * 10_000))
    mess._hear("control", route, from_worker.Progress([(*attempt, 1.0, None, "n" * 10_000)]))
    assert (len(task.lingering), len(task.progress[2])) == (4096, 4096)  # type: ignore[index]  # it was told
    row = EndedRow(*attempt, "completed", "RETURNED", 0.0, 0.0, None, None, "t" * 2**21, b"")
    mess._hear("data", route, from_worker.Ended([row]))
    mess.core.leave()
    mess.check()
    assert len(sent(mess, to_client.Ended)[-1].rows[-1].text) == 2**20


@pytest.mark.parametrize(
    "bad",
    [
        {"task_id": -1},
        {"task_id": 2**53},
        {"begun_age": 1e11},
        {"begun_age": -1e11},
        {"ended_age": -1e11},
        {"outcome": "lost"},
        {"evidence": "REAPED"},
    ],
)
@pytest.mark.parametrize("many", [3, 5])
def test_of_many_ends_none_may_be_impossible(bad: dict[str, Any], many: int) -> None:
    row = EndedRow(TaskId(1), Attempt(1), "completed", "RETURNED", 0.5, 0.0, None, None, "", b"")
    rows = [row] * many
    sense.check(from_worker.Ended(rows))
    (same,) = Decoder(from_worker.MESSAGES).decode(encode(from_worker.Ended(rows)))
    sense.check(from_worker.Ended(same))
    rows[many - 2] = row._replace(**bad)
    if bad.keys() & {"outcome", "evidence"}:
        rows = [row._replace(**bad)] * many
    (same,) = Decoder(from_worker.MESSAGES).decode(encode(from_worker.Ended(rows)))
    assert (type(same[0]) is AlikeEnds) is (many > 3)
    with pytest.raises(sense.SenseError):
        sense.check(from_worker.Ended(same))


# --- what must stay bounded


def test_one_connection_is_one_peer() -> None:
    mess = busy()
    for number in range(50):
        hello = from_client.Hello(
            PROTOCOL_VERSION, number.to_bytes(16, "big"), "control", 1, "h", 0, resumed=False
        )
        mess._hear("control", b"one", hello)
    here = mess.ears.at("control", b"one")
    assert here is not None
    assert here.key == ("session", (49).to_bytes(16, "big"))
    routed = [peer.key for peer in mess.ears.by_key.values() if peer.routes["control"] == b"one"]
    assert routed == [here.key]


def test_sessions_without_end() -> None:
    """Empty ones that are silent make room; those in use stay; and beyond that it is said why."""
    mess = busy()
    mess.core.admission.limit = 40
    for number in range(60):
        _hello(mess, number)
    sessions = mess.core.registry.state.sessions
    assert len(sessions) == 40
    assert mess.core.admission.refused == 21
    mess.tick += admission.SILENT + admission.PACE
    mess._hear("control", b"client", from_client.Heartbeat(0))
    for number in range(100, 160):
        _hello(mess, number)
        assert len(sessions) <= 40
    assert mess.session in sessions
    assert mess.core.admission.dropped > 0
    assert (159).to_bytes(16, "big") in sessions or mess.core.admission.refused > 21
    mess.check()


def _hello(mess: Mess, number: int, *, resumed: bool = False) -> None:
    hello = from_client.Hello(
        PROTOCOL_VERSION, number.to_bytes(16, "big"), "control", 1, "h", 0, resumed
    )
    mess._hear("control", b"r%d" % number, hello)


def test_peers_that_nobody_knows_are_forgotten() -> None:
    mess = busy()
    known = set(mess.ears.by_key)
    for number in range(30):
        _hello(mess, number, resumed=True)
        hello = from_worker.Hello(
            PROTOCOL_VERSION, "pool", b"nobody!!", number, 1, "h", 1, 0, 0, 0, [], []
        )
        mess._hear("control", b"w%d" % number, hello)
        stranger = mess._supervisor_hello("pool")._replace(
            supervisor=number.to_bytes(8, "big"), runtime="no such"
        )
        mess._hear("control", b"s%d" % number, stranger)
    assert len(mess.ears.by_key) == len(known) + 90
    for _ in range(3):
        mess.tick += admission.SWEEP
        for runtime in RUNTIMES:
            mess._hear("control", mess.supervisors[runtime], mess._supervisor_hello(runtime))
        mess.core.pass_time()
    assert set(mess.ears.by_key) == known


def test_who_never_reads_must_say_hello_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LIMIT", 100)
    mess = busy()
    key = ("session", mess.session)
    mess.ears.deaf = {key}
    for number in range(101):
        mess._hear("control", b"client", from_client.GetBroker(1000 + number))
    peer = mess.ears.by_key[key]
    assert (len(peer.backlog), peer.waiting, mess.ears.overfull) == (0, 0, 1)
    assert mess.ears.at("control", b"client") is None
    assert key not in mess.ears.full
    mess.ears.deaf.clear()
    hello = from_client.Hello(PROTOCOL_VERSION, mess.session, "control", 7, "h", 0, resumed=True)
    mess._hear("control", b"client", hello)
    mess.core.leave()
    assert sent(mess, to_client.Welcome)[-1].known


def test_what_is_said_to_a_peer_that_was_forgotten_waits_for_nobody() -> None:
    """Whoever waits for stacks holds the peer that asked: it may be gone by then, with a backlog."""
    mess = busy()
    key = ("session", mess.session)
    mess.ears.deaf = {key}
    mess._hear("control", b"client", from_client.GetBroker(1))
    peer = mess.ears.by_key[key]
    assert peer.backlog
    mess._hear("control", b"client", from_client.Goodbye())
    assert key not in mess.ears.by_key
    mess.ears.send(peer, "control", to_client.Done(1))
    assert not mess.ears.full
    mess.core.leave()
    mess.check()


def test_large_answers_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LIMIT_BYTES", 10_000)
    mess = busy()
    mess.ears.deaf = {("session", mess.session)}
    for number in range(50):
        mess._hear("control", b"client", from_client.GetStatistics(1000 + number))
        peer = mess.ears.by_key[("session", mess.session)]
        assert peer.waiting == sum(len(frame) for _, frames in peer.backlog for frame in frames)
        assert peer.waiting <= 10_000
    assert mess.ears.overfull >= 1


def test_questions_for_stacks_without_end() -> None:
    mess = busy()
    sent(mess, object)
    for number in range(1000):
        mess._hear("control", b"client", from_client.GetStacks(2000 + number, (None,) * 4, []))
    assert len(sent(mess, to_client.Refused)) == 1000 - 256
    mess.check()


# --- what fails all the same


def test_a_handler_that_fails_is_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mess = busy()
    monkeypatch.setattr(
        "quiesce.broker.incoming._HANDLERS",
        {from_client.GetBroker: lambda *_: 1 / 0},
    )
    mess._hear("control", b"client", from_client.GetBroker(1))
    assert mess.core.incoming.failed == 1
    assert "from_client.GetBroker" in mess.complaints[-1]
    mess.core.registry.check()


def test_what_was_decided_in_part_ends_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal holds nothing of it, and what is in memory is neither the one nor the other."""
    mess = busy()
    mess.tick += 1

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mess.core.registry, "_settle", fail)
    with pytest.raises(HalfDoneError, match="SessionHello"):
        _hello(mess, 7)


def test_an_answer_that_can_not_be_packed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    mess = busy()
    monkeypatch.setattr(mess.core.queries, "counters", lambda: {"x": 2**70})
    mess._hear("control", b"client", from_client.GetStatistics(1))
    assert mess.ears.unsaid == 1
    assert mess.core.incoming.failed == 0
