"""What is larger than its receiver takes is never sent: messages are begun anew in time, and texts are cut."""

import asyncio
import math
import os
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import zmq

import quiesce
from quiesce.broker.outgoing import ROWS, Outgoing
from quiesce.broker.peers import Channel, Peer, Peers
from quiesce.client import checks
from quiesce.errors import PayloadTooLargeError, TaskFailedError
from quiesce.protocol import from_worker, to_worker
from quiesce.protocol.codec import MAX_BYTES, Decoder, encode
from quiesce.protocol.frames import Frame
from quiesce.protocol.labels import check_label
from quiesce.protocol.sizes import (
    CONTROL_LIMIT,
    FULL,
    LARGEST_PAYLOAD,
    TEXT_LIMIT,
    cut_within,
    data_limit,
    held,
    in_parts,
)
from quiesce.registry import effects
from quiesce.registry.ids import Attempt, Incarnation, SessionId, TaskId
from quiesce.registry.rows import AssignRow, EndedRow, ResultRow
from quiesce.testing import Cluster, bodies
from quiesce.workers.attempt import describe
from quiesce.workers.link import Link
from quiesce.workers.scope import Scope
from quiesce.workers.stacks import stacks_of

LARGE = Frame(bytes(FULL // 3))


class Row(NamedTuple):
    number: int
    one: bytes
    other: bytes


def ended(task_id: int, text: str = "", result: Any = b"") -> EndedRow:
    return EndedRow(
        TaskId(task_id),
        Attempt(1),
        "failed",
        "RETURNED",
        1.0,
        0.0,
        None,
        None,
        text,
        result,
    )


def test_rows_are_parted_by_their_number_and_by_their_bytes() -> None:
    rows = [Row(number, b"", b"") for number in range(7)]
    assert list(in_parts(rows, 7)) == [rows]
    assert list(in_parts(rows, 3)) == [rows[:3], rows[3:6], rows[6:]]
    assert list(in_parts([], 3)) == []
    heavy = [Row(0, b"x" * FULL, b"yyy"), Row(1, b"", b""), Row(2, b"x", b"y" * FULL), *rows]
    assert held(heavy[:1]) == FULL + 3
    assert list(in_parts(heavy, 100)) == [heavy[:1], heavy[1:2], heavy[2:3], rows]


class Told(Peers):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]  # it has no sockets
        self.sent: list[Any] = []

    def send(self, peer: Peer | None, channel: Channel, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("kind", ["assign", "ended"])
def test_what_a_broker_sends_at_once_is_no_more_than_its_receiver_takes(kind: str) -> None:
    """However much there is: when a worker attaches, when a client comes back, when many end together."""
    effect: effects.Effect
    if kind == "assign":
        row = AssignRow(1, TaskId(1), Attempt(1), "gc", "name", None, None, False, 1.0, b"f", LARGE)
        effect = effects.AssignTasks(Incarnation(1), [row] * 8)
    else:
        result = ResultRow(TaskId(1), Attempt(1), "completed", "RETURNED", None, "", LARGE)
        effect = effects.SendResults(SessionId(b"s"), [result] * 8)
    peers = Told()
    outgoing = Outgoing(peers, payload_limit=2**20)
    outgoing.carry_out(effect)
    outgoing.flush(0.0)
    # (A function and its arguments do not fit in three times.)
    expected = [2, 2, 2, 2] if kind == "assign" else [3, 3, 2]
    assert [len(message.rows) for message in peers.sent] == expected


def test_light_rows_are_parted_by_their_number_alone() -> None:
    peers = Told()
    outgoing = Outgoing(peers, payload_limit=2**20)
    outgoing.carry_out(effects.TakeEnds(Incarnation(1), [(1, 1)] * (ROWS + 1)))
    outgoing.flush(0.0)
    assert [len(message.rows) for message in peers.sent] == [ROWS, 1]


def test_ends_travel_together_only_as_long_as_they_are_small() -> None:
    with zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.bind("inproc://s")
        link = Link(context, "inproc://s", Decoder(to_worker.MESSAGES))
        decoder = Decoder(from_worker.MESSAGES)
        try:
            rows = [
                ended(1),
                ended(2),
                ended(3, result=LARGE),
                ended(4, "x" * (FULL + 1)),
                ended(5),
            ]
            link.outbox.extend(from_worker.Ended([row]) for row in rows)
            assert link.flush()
            router.rcvtimeo = 10_000
            found = [decoder.decode(router.recv_multipart()[1:]) for _ in range(3)]
            tasks = [[row.task_id for row in message.rows] for message in found]  # type: ignore[attr-defined]  # an Ended
            assert tasks == [[1, 2, 3], [4], [5]]
        finally:
            link.close_monitor()
            link.close(0)
            router.close(0)


def test_a_text_with_lone_surrogates_travels_escaped() -> None:
    """A file's name that is no text in its coding has them."""
    name = os.fsdecode(b"caf\xe9")
    message = from_worker.Ended([ended(1, f"no such file: {name}")])
    with pytest.raises(quiesce.ProtocolError):
        encode(message)
    (row,) = Decoder(from_worker.MESSAGES).decode(encode(message, escape=True))[0]
    assert row == ended(1, r"no such file: caf\udce9")


def test_of_a_long_traceback_the_beginning_and_the_end_are_told() -> None:
    text = describe(ValueError(f"begins {'x' * 2 * TEXT_LIMIT} ends"))
    assert text.startswith("ValueError: begins x")
    assert text.endswith("x ends\n")
    assert TEXT_LIMIT - 40 < len(text) <= TEXT_LIMIT
    assert cut_within("short") == "short"


def test_of_very_many_stacks_some_are_told() -> None:
    async def look() -> list[str]:
        scope = Scope((TaskId(1), Attempt(1)), Mock())
        for _ in range(50):
            scope.add_task(asyncio.create_task(asyncio.sleep(100)))
        await asyncio.sleep(0)
        try:
            return stacks_of(scope, asyncio.get_running_loop(), threading.get_ident(), 1000)
        finally:
            for task in scope.tasks:
                task.cancel()

    *texts, more = asyncio.run(look())
    assert 1000 <= sum(map(len, texts)) < 2000
    assert more == f"and {50 - len(texts)} more\n"


def test_whatever_may_be_configured_is_taken() -> None:
    assert MAX_BYTES >= LARGEST_PAYLOAD + FULL
    assert CONTROL_LIMIT > 2 * TEXT_LIMIT


def test_a_batch_is_refused_where_it_is_made_if_its_broker_would_not_take_it() -> None:
    row = checks.spawn_row(
        "pool", "gc", bodies.nothing, None, None, None, False, 0, "never", None, None
    )
    limit = 2**20
    most = data_limit(limit) // limit
    assert checks.batch_too_large(row, [bytes(limit - 100)] * (most - 2), limit) is None
    trouble = checks.batch_too_large(row, [bytes(limit - 100)] * most, limit)
    assert trouble is not None
    assert "Make several calls" in trouble


@pytest.mark.parametrize("value", [5, b"x", "\udce9"])
def test_what_is_no_label(value: object) -> None:
    check_label("tenant_id", None)
    check_label("tenant_id", "é")
    with pytest.raises((TypeError, ValueError), match="tenant_id"):
        check_label("tenant_id", value)


# --- all of it


def unreadable() -> None:
    raise ValueError(f"can't read {os.fsdecode(bytes([99, 233]))}")


def long_text(size: int) -> None:
    raise ValueError("x" * size)


def ask_nonsense() -> list[str]:
    """What is said at once of arguments that can't travel."""
    said: list[str] = []
    calls: list[Any] = [
        lambda: quiesce.associate_with(5, None),  # type: ignore[arg-type]  # on purpose
        lambda: quiesce.associate_with(None, "\udce9"),
        lambda: quiesce.associate_with("x" * 5000, None),
        lambda: quiesce.report_progress(1, note=5),  # type: ignore[arg-type]  # on purpose
        lambda: quiesce.report_progress(float("nan")),
        lambda: quiesce.extend_grace(float("nan")),
    ]
    for call in calls:
        try:
            call()
        except Exception as error:
            said.append(type(error).__name__)
    quiesce.report_progress(1, note="\udce9")
    return said


def ask_for_no_number() -> list[str]:
    """What is said of what is no number; nothing of what is one."""
    said: list[str] = []
    values: list[Any] = ["3", None, True, 10**400, 10**5000, -5, -0.5, math.nan, -math.inf]
    for value in values:
        for ask in (quiesce.extend_grace, quiesce.report_progress):
            try:
                ask(value)
            except (TypeError, ValueError) as error:
                said.append(f"{type(error).__name__}: {error}")
            else:
                said.append(f"{ask.__name__} took {value}")
    for number in (0, 2.5, 3, Decimal(3), Fraction(1, 2), math.inf):
        quiesce.extend_grace(number)  # type: ignore[arg-type]  # some are no floats, but made into one
        quiesce.report_progress(number)  # type: ignore[arg-type]  # as above
    return said


def give_after(path: str, size: int) -> bytes:
    while not os.path.exists(path):
        time.sleep(0.005)
    return bytes(size)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    runtimes = {"alone": {"processes": 1, "slots": 1}, "shared": {"processes": 1, "slots": 32}}
    with Cluster(runtimes=runtimes, payload_limit=2**20) as cluster:
        yield cluster


def test_what_is_no_number_is_refused_with_words(cluster: Cluster) -> None:
    with cluster.client() as client:
        said = client.spawn("shared", "compaction", ask_for_no_number).result(timeout=20)
    small = "seconds must be 0 or more, not {}: a grace is not shortened"
    assert said == [
        *(f"TypeError: {what} must be a number, not '3'" for what in ("seconds", "done")),
        *(f"TypeError: {what} must be a number, not None" for what in ("seconds", "done")),
        *(f"TypeError: {what} must be a number, not True" for what in ("seconds", "done")),
        *[
            f"ValueError: {what} must be a number that a float has room for"
            for what in ("seconds", "done") * 2
        ],
        f"ValueError: {small.format(-5)}",
        "report_progress took -5",
        f"ValueError: {small.format(-0.5)}",
        "report_progress took -0.5",
        *(f"ValueError: {what} must be a number, not nan" for what in ("seconds", "done")),
        *(f"ValueError: {what} must be a number, not -inf" for what in ("seconds", "done")),
    ]


@pytest.mark.parametrize("runtime", ["alone", "shared"])
def test_an_end_arrives_whatever_its_text_is(cluster: Cluster, runtime: str) -> None:
    with cluster.client() as client:
        with pytest.raises(TaskFailedError, match=r"can't read c\\udce9"):
            client.spawn(runtime, "compaction", unreadable).result(20)
        with pytest.raises(TaskFailedError, match="xxx"):
            client.spawn(runtime, "compaction", long_text, 20_000_000).result(20)
        assert client.spawn(runtime, "compaction", bodies.add, 1, 2).result(20) == 3


def test_arguments_in_a_task_are_checked_at_once(cluster: Cluster) -> None:
    wrong = ["TypeError", "ValueError", "PayloadTooLargeError", "TypeError", *["ValueError"] * 2]
    with cluster.client() as client:
        said = client.spawn("shared", "compaction", ask_nonsense).result(20)
    assert said == wrong


def test_a_batch_that_is_too_large_harms_no_other_spawn(cluster: Cluster) -> None:
    with cluster.client() as client:
        with pytest.raises(PayloadTooLargeError, match="Make several calls"):
            client.spawn_many("shared", "compaction", len, [(bytes(2**20 - 100),)] * 20)[0].result(
                20
            )
        assert client.spawn("shared", "compaction", bodies.add, 1, 2).result(20) == 3


def test_many_large_ends_arrive_once_the_broker_is_back(cluster: Cluster, tmp_path: Path) -> None:
    """Together they are more than it takes in one message."""
    many, size = data_limit(2**20) // 900_000 + 2, 900_000
    with cluster.client() as client:
        gate = tmp_path / "gate"
        calls = [(str(gate), size)] * many
        tasks = client.spawn_many("shared", "compaction", give_after, calls)
        cluster.wait_until(lambda: all(task.status().state == "running" for task in tasks))
        cluster.kill("broker")
        gate.touch()
        assert [len(task.result(30)) for task in tasks] == [size] * many
