"""Facts and frozen registries to bytes and back."""

import sys
from collections.abc import Sized
from typing import Any, NamedTuple, get_args

import pytest

from journal_helpers import plain, told
from quiesce.protocol import fact_codec
from quiesce.protocol.fact_codec import (
    BLOB_ABOVE,
    FORMAT,
    NUMBERED,
    BlobRef,
    FactError,
    FactPacker,
    FactReader,
    NewerFormatError,
)
from quiesce.protocol.frames import Frame, Payload
from quiesce.registry import facts
from quiesce.registry.facts import Fact
from quiesce.registry.machine import Registry
from quiesce.registry.states import Evidence, Outcome
from registry_helpers import spawn_row


class Blobs:
    """Payloads in memory."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.packer = FactPacker(self.place)
        self.reader = FactReader(lambda ref: Frame(self.held[ref.id], ref.digest))

    def place(self, payload: Payload) -> BlobRef:
        data = payload.data if isinstance(payload, Frame) else payload
        self.held[len(self.held)] = data
        return BlobRef(len(self.held) - 1, 1, len(data), bytes(16))

    def through(self, *given: Fact) -> list[Fact]:
        body = b"".join(map(self.packer.fact, given))
        return self.reader.facts(FORMAT, body, len(given))


def test_every_fact_has_a_number() -> None:
    assert set(NUMBERED) == set(get_args(Fact)), "append what is new to fact_codec.NUMBERED"
    assert len(NUMBERED) == len(set(NUMBERED))


def test_numbers_stay() -> None:
    """They are written in journals. What is new comes at the end; nothing else may ever change here."""
    assert [fact.__name__ for fact in NUMBERED[:30]] == [
        "EpochStarted", "SupervisorRegistered", "SupervisorGone", "WorkerRegistered",
        "WorkerReachable", "WorkerGone", "SessionOpened", "SessionClosed", "AnswersForgotten",
        "TaskRegistered", "SpawnRefused", "SpawnJoined", "SpawnParked", "TaskAssigned", "TaskBegan",
        "TaskRequeued", "TaskAssociated", "TaskAsked", "StopJoined", "StopDelivered",
        "StopObserved", "TaskLingering", "TaskEnded", "ResultsForgotten", "StopOpened",
        "TaskCollateral", "StopEnded", "BlockReleased", "ScopesReopened", "SystemStopping",
    ]  # fmt: skip


def test_what_a_registry_decides_comes_back_as_it_was() -> None:
    desk = told(rounds=3)
    given = [fact for turn in desk.turns for fact in turn]
    found = Blobs().through(*given)
    assert found == given
    assert [type(fact) for fact in found] == [type(fact) for fact in given]
    rows = [(one, other) for one, other in zip(found, given, strict=True) if hasattr(one, "row")]
    assert rows
    assert all(type(one.row) is type(other.row) for one, other in rows)  # type: ignore[union-attr]  # has one


def test_enums_travel_as_their_texts() -> None:
    ended = facts.TaskEnded(1, Outcome.LOST, Evidence.FENCED, None, None, 2.0, "", b"")
    (found,) = Blobs().through(ended)
    assert found == ended
    assert type(found[1]) is str


def test_any_number_comes_back() -> None:
    (found,) = Blobs().through(facts.TaskBegan(2**64 - 1, float("-inf")))
    assert found == facts.TaskBegan(2**64 - 1, float("-inf"))


@pytest.mark.parametrize(
    ("function", "arguments", "blobs"),
    [
        (b"f", b"a", 0),
        (b"f" * BLOB_ABOVE, b"a", 0),
        (b"f" * (BLOB_ABOVE + 1), b"a", 1),
        (Frame(b"f" * 50_000), b"a" * 5000, 2),
        (Frame(b"small"), b"a", 0),
    ],
)
def test_large_payloads_stand_apart(function: Sized, arguments: Sized, blobs: int) -> None:
    at = Blobs()
    row = spawn_row(function=function, arguments=arguments)
    fact = facts.TaskRegistered(1, b"s", 1, 1.0, row)
    body = at.packer.fact(fact)
    assert len(set(at.held.values())) == blobs
    assert len(body) < BLOB_ABOVE * 3
    assert plain(at.reader.facts(FORMAT, body, 1)) == plain([fact])


def test_a_frozen_registry_comes_back_and_thaws() -> None:
    desk = told(rounds=5)
    frozen = desk.registry.freeze(volatile=False)
    at = Blobs()
    pieces = list(at.packer.frozen(frozen))
    # However the pieces are spread over chunks.
    found = at.reader.frozen(FORMAT, [b"".join(pieces[:3]), b"".join(pieces[3:])])
    assert found == frozen
    thawed = Registry.thaw(found, **desk.configuration)
    assert thawed.freeze(volatile=False) == frozen


def test_long_tuples_are_taken_apart_at_any_depth() -> None:
    frozen = ((1, tuple(range(1000)), ()), (("x", (tuple((n,) for n in range(200)),)),), 7, ())
    at = Blobs()
    pieces = list(at.packer.frozen(frozen))
    assert max(map(len, pieces)) < 50
    assert at.reader.frozen(FORMAT, [b"".join(pieces)]) == frozen


def test_what_is_packed_is_let_go() -> None:
    """One after the other: to free all of a large registry at once would hold up whoever needs the interpreter."""
    rows = [(number, "row") for number in range(1000)]
    before = sys.getrefcount(rows[0])
    pieces = Blobs().packer.frozen((tuple(rows), 1))
    for _ in range(500):
        next(pieces)
    packed, to_come = sys.getrefcount(rows[0]), sys.getrefcount(rows[-1])
    assert packed == before < to_come


def test_a_piece_that_is_missing_is_noticed() -> None:
    at = Blobs()
    pieces = list(at.packer.frozen((tuple(range(100)), 1)))
    for without in (0, len(pieces) - 1):
        with pytest.raises(FactError):
            at.reader.frozen(FORMAT, [b"".join(pieces[:without] + pieces[without + 1 :])])


def test_damaged_bytes_are_one_error() -> None:
    at = Blobs()
    given: list[Fact] = [facts.TaskBegan(7, 1.0), facts.SessionClosed(b"s")]
    body = b"".join(map(at.packer.fact, given))
    for place in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[place] ^= 1 << bit
            try:
                at.reader.facts(FORMAT, bytes(flipped), 2)
            except FactError as error:
                assert "of 2" in str(error) or "2 were written" in str(error)  # noqa: PT017 - none need come
    with pytest.raises(FactError, match="1 facts, where 2 were written"):
        at.reader.facts(FORMAT, body[: len(at.packer.fact(facts.TaskBegan(7, 1.0)))], 2)


def test_what_is_newer_says_so() -> None:
    at = Blobs()
    with pytest.raises(NewerFormatError, match=f"format {FORMAT + 1}"):
        at.reader.facts(FORMAT + 1, b"", 0)
    with pytest.raises(NewerFormatError, match="has number 127"):
        at.reader.facts(FORMAT, b"\x91\x7f", 1)


def test_what_could_not_be_read_is_not_written() -> None:
    at = Blobs()
    at.packer.fact(facts.TaskBegan(1, 1.0))
    wrong: Any = facts.TaskBegan("1", 1.0)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(FactError, match=r"TaskBegan\.task_id: expected an integer"):
        at.packer.fact(wrong)
    wrong = facts.TaskBegan(1, object())  # type: ignore[arg-type]  # on purpose
    with pytest.raises(FactError, match="a object has no place in a journal"):
        at.packer.fact(wrong)
    assert at.through(facts.TaskBegan(1, 1.0)) == [facts.TaskBegan(1, 1.0)]


def test_fields_that_came_later_get_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(NamedTuple):
        task_id: int

    class New(NamedTuple):
        task_id: int
        why: str = "unknown"
        times: tuple[float, ...] = ()
        outcome: Outcome = Outcome.LOST

    number = NUMBERED.index(facts.TaskBegan)

    def numbered(fact: type[Any]) -> None:
        table = (*NUMBERED[:number], fact, *NUMBERED[number + 1 :])
        monkeypatch.setattr(fact_codec, "NUMBERED", table)
        monkeypatch.setattr(fact_codec, "_NUMBERS", {one: n for n, one in enumerate(table, 1)})

    numbered(Old)
    old: Any = Old(7)
    body = Blobs().packer.fact(old)
    numbered(New)
    at = Blobs()
    found: list[Any] = at.reader.facts(FORMAT, body, 1)
    assert found == [New(7)]
    new: Any = New(7, "y", (1.0, 2.0), Outcome.FAILED)
    found = at.through(new)
    assert found == [new]
    assert type(found[0].outcome) is Outcome
