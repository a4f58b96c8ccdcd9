"""The codec: what goes in comes out, and whatever else comes in is refused in words."""

import math
import types
from collections.abc import Sized
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from quiesce.errors import ConfigurationError, ProtocolError
from quiesce.protocol import (
    addresses,
    codec,
    field_checks,
    from_client,
    from_supervisor,
    from_worker,
    runs,
    to_client,
    to_supervisor,
    to_worker,
)
from quiesce.protocol.frames import INLINE_LIMIT, Frame, as_payload, payload_bytes
from quiesce.protocol.runs import PackedRows, as_received
from quiesce.protocol.sizes import FULL, in_parts
from quiesce.registry.ids import Attempt, SpawnNumber, TaskId
from quiesce.registry.rows import (
    Alike,
    AlikeEnds,
    AlikeSpawns,
    AssignRow,
    EndedRow,
    ResultRow,
    SpawnRow,
    StoppedRow,
    one_by_one,
)

EVERYTHING = tuple(codec.CODES)
decoder = codec.Decoder(EVERYTHING)

INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False).filter(lambda value: value != -math.inf)
FRAMES = st.builds(Frame, st.binary(max_size=8))
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ATOMS: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    float: FLOATS,
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
    bool: st.booleans(),
    type(None): st.none(),
    Frame: FRAMES,
    Sized: st.binary(max_size=8) | FRAMES,
    Any: PLAIN,
}


def samples(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field with this annotation may hold."""
    while isinstance(hint, NewType):
        hint = hint.__supertype__
    if hint in ATOMS:
        return ATOMS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([samples(argument) for argument in arguments])
    if origin is list:
        return st.lists(samples(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*[samples(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), PLAIN, max_size=3)
    return st.builds(hint, **{name: samples(each) for name, each in get_type_hints(hint).items()})


messages = st.one_of([samples(message) for message in EVERYTHING])


def spelled_out(value: Any) -> Any:
    """For comparison: with the type of each row, and the bytes of each frame."""
    if isinstance(value, Frame):
        return "Frame", value.data
    if isinstance(value, dict):
        return {key: spelled_out(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [spelled_out(each) for each in value]
    return type(value).__name__, value


def name_of(message: type) -> str:
    return f"{message.__module__.rpartition('.')[2]}.{message.__name__}"


def row(**changes: Any) -> SpawnRow:
    plain: dict[str, Any] = {
        "number": 7,
        "runtime": "compute-request",
        "kind": "page-request-handler",
        "tenant_id": "tenant",
        "timeline_id": None,
        "name": "",
        "shutdown_process_on_error": False,
        "retries": 0,
        "restart": "never",
        "timeout": None,
        "unique_key": None,
        "parent": None,
        "function": b"f",
        "arguments": b"a",
    }
    return SpawnRow(**(plain | changes))


def refusal(frames: list[bytes], **options: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        codec.Decoder(EVERYTHING, **options).decode(frames)
    return str(caught.value)


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("message", EVERYTHING, ids=name_of)
def test_every_message_comes_out_as_it_went_in(message: type) -> None:
    @settings(max_examples=30, deadline=None)
    @given(sample=samples(message))
    def round_trip(sample: Any) -> None:
        frames = codec.encode(sample)
        assert spelled_out(decoder.decode(frames)) == spelled_out(sample)
        views = [memoryview(frame) for frame in frames]
        assert spelled_out(decoder.decode(views)) == spelled_out(sample)

    round_trip()


def test_integers_become_floats_where_the_field_is_one() -> None:
    code = codec.CODES[from_worker.ExtendGrace]
    message = decoder.decode([msgpack.packb([code, 1, 2, 3])])
    assert spelled_out(message) == spelled_out(from_worker.ExtendGrace(1, 2, 3.0))


def test_infinity_travels() -> None:
    message = to_supervisor.Exit(1, math.inf)
    assert decoder.decode(codec.encode(message)) == message


def test_large_payloads_are_frames_of_their_own_and_are_not_copied_on_the_way_out() -> None:
    large, larger = bytes(INLINE_LIMIT + 1), b"x" * (10 * 1024 * 1024)
    message = from_client.Spawn(
        0,
        [
            row(arguments=as_payload(large)),
            row(function=as_payload(b"small"), arguments=as_payload(larger)),
        ],
    )
    frames = codec.encode(message)
    assert len(frames[0]) < 1000
    assert frames[1] is large
    assert frames[2] is larger

    decoded = decoder.decode(frames)

    assert isinstance(decoded, from_client.Spawn)
    first, second = decoded.rows
    assert isinstance(first.arguments, Frame)
    assert first.arguments.data is large
    assert second.function == b"small"
    assert isinstance(second.arguments, Frame)
    assert payload_bytes(second.arguments) is larger


def test_many_rows_of_many_signatures() -> None:
    """More signatures than are remembered: still right."""
    numbers = range(3 * field_checks.MAX_PLANS)

    def various(number: int) -> SpawnRow:
        return row(
            number=number,
            tenant_id="t" if number & 1 else None,
            timeline_id="l" if number & 2 else None,
            timeout=float(number) if number & 4 else None,
            unique_key="k" if number & 8 else None,
            parent=(1, 2) if number & 16 else None,
        )

    message = from_client.Spawn(1, [various(number) for number in numbers])
    assert spelled_out(decoder.decode(codec.encode(message))) == spelled_out(message)


# --- what versions have to agree on --------------------------------------------------------------


def test_codes_are_unique_and_each_direction_has_room() -> None:
    assert len(set(codec.CODES.values())) == sum(len(each) for _, each in codec.DIRECTIONS)
    ends = [base for base, _ in codec.DIRECTIONS[1:]] + [128]
    for (base, direction), end in zip(codec.DIRECTIONS, ends, strict=True):
        assert base + len(direction) <= end


def test_codes_never_change() -> None:
    """Append to MESSAGES; whoever inserts breaks the talk with neighbours of the last version."""
    pinned = {
        from_client.Hello: 0,
        from_client.Stop: 5,
        from_client.Goodbye: 18,
        to_client.Welcome: 32,
        to_client.StopReport: 37,
        to_client.Goodbye: 48,
        from_worker.Hello: 64,
        from_worker.Stacks: 73,
        to_worker.Registered: 80,
        to_worker.Exit: 89,
        from_supervisor.Hello: 96,
        from_supervisor.Goodbye: 100,
        to_supervisor.Registered: 112,
        to_supervisor.Exit: 119,
    }
    assert {message: codec.CODES[message] for message in pinned} == pinned


def test_each_direction_begins_with_a_message_that_begins_with_the_version() -> None:
    for _, direction in codec.DIRECTIONS:
        assert next(iter(get_type_hints(direction[0]).items())) == ("version", int)


def test_the_version_of_a_hello_with_other_fields_can_still_be_read() -> None:
    for code in codec.HELLO_CODES:
        frame = msgpack.packb([code, 9, {"of": ["another", msgpack.ExtType(5, b"time")]}, None])
        assert codec.peek_version([frame, b"more"]) == 9
        assert codec.peek_version([memoryview(frame)]) == 9
        refusal([frame, b"more"])


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [msgpack.packb("text")],
        [msgpack.packb([0])],
        [msgpack.packb([0, "1"])],
        [msgpack.packb([0, True])],
        [msgpack.packb([1, 1])],
        [msgpack.packb([[], 1])],
        [b"\xdd\xff\xff\xff\xff\x00"],
    ],
)
def test_what_is_no_hello_has_no_version(frames: list[bytes]) -> None:
    assert codec.peek_version(frames) is None


# --- strictness ----------------------------------------------------------------------------------

SPAWN = codec.CODES[from_client.Spawn]
STATISTICS = codec.CODES[to_client.Statistics]
HEARTBEAT = codec.CODES[from_client.Heartbeat]
PROGRESS = codec.CODES[from_worker.Progress]
NESTED: Any = 1
for _ in range(field_checks.MAX_DEPTH + 1):
    NESTED = [NESTED]


def frame_mark(index: int) -> msgpack.ExtType:
    return msgpack.ExtType(codec.EXT_FRAME, index.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("text", "not an array that begins with the code"),
        ([], "not an array that begins with the code"),
        ([True, 1], "not an array that begins with the code"),
        ([-1], "no message has the code -1"),
        ([127], "no message has the code 127"),
        ([HEARTBEAT], "from_client.Heartbeat: expected 1 fields, got 0"),
        ([HEARTBEAT, 1, 2], "from_client.Heartbeat: expected 1 fields, got 2"),
        ([HEARTBEAT, True], "Heartbeat.answered_through: expected an integer, got True"),
        ([HEARTBEAT, 1.0], "Heartbeat.answered_through: expected an integer, got 1.0"),
        ([HEARTBEAT, None], "Heartbeat.answered_through: expected an integer, got None"),
        ([HEARTBEAT, "1"], "expected an integer, got a string of length 1"),
        ([SPAWN, 1, {}], "Spawn.rows: expected an array, got a dictionary of length 0"),
        ([SPAWN, 1, [None]], "Spawn.rows[0]: expected an array, a SpawnRow, got None"),
        ([SPAWN, 1, [row(), row()[:-1]]], "Spawn.rows[1]: expected 14 fields, got 13"),
        ([SPAWN, 1, [row(), (*row(), 1)]], "Spawn.rows[1]: expected 14 fields, got 15"),
        (
            [SPAWN, 1, [row(tenant_id=b"t")]],
            "Spawn.rows[0].tenant_id: expected a string or None, got bytes of length 1",
        ),
        ([SPAWN, 1, [row(timeout=math.nan)]], "Spawn.rows[0].timeout: expected a number"),
        ([SPAWN, 1, [row(timeout=-math.inf)]], "Spawn.rows[0].timeout: expected a number"),
        ([SPAWN, 1, [row(timeout=True)]], "timeout: expected a number or None, got True"),
        ([SPAWN, 1, [row(parent=(1,))]], "Spawn.rows[0].parent: expected 2 fields, got 1"),
        ([SPAWN, 1, [row(parent=(1, "2"))]], "Spawn.rows[0].parent[1]: expected an integer"),
        ([SPAWN, 1, [row(function="f")]], "function: expected bytes or a frame, got a string"),
        ([SPAWN, 1, [row(shutdown_process_on_error=1)]], "expected a bool, got 1"),
        ([PROGRESS, [(1, 1, 1.0, None, "")] * 2 + [3]], "Progress.rows[2]: expected an array"),
        ([PROGRESS, [(1, 1, 1.0, math.nan, "")]], "Progress.rows[0][3]: expected a number"),
        ([STATISTICS, 1, []], "Statistics.body: expected a dictionary, got an array"),
        ([STATISTICS, 1, {"a": [1, math.nan]}], "Statistics.body['a'][1]: expected a number"),
        ([STATISTICS, 1, {b"a": 1}], "expected keys that are strings"),
        ([STATISTICS, 1, {"a": NESTED}], f"nested deeper than {field_checks.MAX_DEPTH}"),
        ([STATISTICS, 1, {"a": msgpack.Timestamp(1)}], "expected a plain value"),
        ([STATISTICS, 1, {"a": msgpack.ExtType(2, b"1234")}], "unknown extension: type 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(message: Any, expected: str) -> None:
    assert expected in refusal([msgpack.packb(message)])


ENDED = codec.CODES[from_worker.Ended]
TAKEN = codec.CODES[to_worker.EndedTaken]
PLAIN_END: Any = (7, 1, "completed", "RETURNED", 0.5, 0.25, None, None, "", b"r")


def changed(place: int, value: Any) -> tuple[Any, ...]:
    return (*PLAIN_END[:place], value, *PLAIN_END[place + 1 :])


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (None, ": expected an array, a EndedRow, got None"),
        (PLAIN_END[:-1], ": expected 10 fields, got 9"),
        ((*PLAIN_END, 1), ": expected 10 fields, got 11"),
        (changed(0, True), ".task_id: expected an integer, got True"),
        (changed(0, 7.0), ".task_id: expected an integer, got 7.0"),
        (changed(3, b"RETURNED"), ".evidence: expected a string, got bytes of length 8"),
        (changed(4, math.nan), ".begun_age: expected a number"),
        (changed(5, -math.inf), ".ended_age: expected a number"),
        (changed(5, None), ".ended_age: expected a number, got None"),
        (changed(9, "r"), ".result: expected bytes or a frame, got a string of length 1"),
    ],
)
@pytest.mark.parametrize("place", [0, 13, 19])
def test_one_of_many_rows_is_refused_as_one_alone(bad: Any, expected: str, place: int) -> None:
    rows: list[Any] = [PLAIN_END] * 20
    rows[place] = bad
    text = refusal([msgpack.packb([ENDED, rows])])
    assert text.startswith(f"from_worker.Ended.rows[{place}]{expected}")


LIKE_IT = ([8, 9, 10], [0.5, 0.25, 0.125], [0.25, 0.125, 0.0])


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ((changed(0, "7"), *LIKE_IT, []), ".task_id: expected an integer, got "),
        ((PLAIN_END, *LIKE_IT), ": expected four arrays after the first"),
        ((PLAIN_END, *LIKE_IT, [], []), ": expected four arrays after the first"),
        ((PLAIN_END, *LIKE_IT, b""), ": expected four arrays after the first"),
        ((PLAIN_END, [], [], [], []), ": expected as many ages and results as there are tasks"),
        ((PLAIN_END, [8], *LIKE_IT[1:], []), ": expected as many ages and results"),
        ((PLAIN_END, *LIKE_IT, [b""]), ": expected as many ages and results"),
        ((PLAIN_END, [8, 9, True], *LIKE_IT[1:], []), ": expected integers for the tasks"),
        ((PLAIN_END, *LIKE_IT[:2], [0.25, 0.125, None], []), ": expected numbers for the ages"),
        ((PLAIN_END, LIKE_IT[0], [0.5, math.nan, 0.5], LIKE_IT[2], []), ": expected numbers"),
        ((PLAIN_END, LIKE_IT[0], [0.5, -math.inf, math.inf], LIKE_IT[2], []), ": expected numbers"),
        ((PLAIN_END, *LIKE_IT, [b"", b"", "r"]), ": expected bytes for the results"),
        ((changed(4, None), *LIKE_IT, []), ": expected that each of many ends has begun"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_ends_that_are_alike_are_refused_as_one_alone(bad: Any, expected: str, place: int) -> None:
    rows: list[Any] = [PLAIN_END]
    rows.insert(place, bad)
    text = refusal([msgpack.packb([ENDED, rows])])
    assert text.startswith(f"from_worker.Ended.rows[{place}]{expected}")


@st.composite
def likely_ends(draw: st.DrawFn) -> list[EndedRow]:
    """Of which many are alike."""
    rows = []
    for task_id in draw(st.lists(INTEGERS)):
        outcome = draw(st.sampled_from(["completed", "failed"]))
        begun = draw(st.sampled_from([None, 1.5, 2.5, 2.5]))
        result = draw(st.sampled_from([b"", b"r", Frame(b"frame")]))
        fields: Any = (task_id, 1, outcome, "RETURNED", begun, 0.25, None, None, "", result)
        rows.append(EndedRow._make(fields))
    return rows


@given(likely_ends())
def test_ends_arrive_however_many_are_alike(rows: Any) -> None:
    (found,) = decoder.decode(codec.encode(from_worker.Ended(rows)))
    got = [(*row[:-1], payload_bytes(row.result)) for row in one_by_one(found)]
    assert got == [(*row[:-1], payload_bytes(row.result)) for row in rows]


def test_ends_that_are_alike_travel_as_one() -> None:
    rows = [EndedRow(*PLAIN_END)._replace(task_id=TaskId(n), begun_age=n / 2) for n in range(7)]
    (found,) = decoder.decode(codec.encode(from_worker.Ended(rows)))
    assert [type(each) for each in found] == [AlikeEnds]
    assert found[0].results == ()
    rows[5] = rows[5]._replace(result=b"own")
    (found,) = decoder.decode(codec.encode(from_worker.Ended(rows)))
    assert found[0].results == (b"r", b"r", b"r", b"r", b"own", b"r")


def test_many_rows_are_what_each_alone_is() -> None:
    """Integers where numbers are wanted, infinity, None among numbers."""
    rows = [PLAIN_END] * 20
    rows[3] = changed(4, None)
    rows[4] = changed(4, math.inf)
    for more in ([], [changed(5, 3)]):
        decoded = decoder.decode([msgpack.packb([ENDED, rows + more])])
        assert isinstance(decoded, from_worker.Ended)
        assert decoded.rows == rows + more
        assert {type(each) for each in decoded.rows} == {EndedRow}
        assert {type(each.ended_age) for each in decoded.rows} == {float}


@pytest.mark.parametrize("bad", [3, (1,), (1, 2, 3), (1, 2.0), (True, 1)])
def test_one_of_many_pairs_is_refused(bad: Any) -> None:
    pairs = [(n, 1) for n in range(20)]
    decoded = decoder.decode([msgpack.packb([TAKEN, pairs])])
    assert isinstance(decoded, to_worker.EndedTaken)
    assert decoded.rows == pairs
    pairs[11] = bad
    assert "to_worker.EndedTaken.rows[11]" in refusal([msgpack.packb([TAKEN, pairs])])


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], "without frames"),
        ([b""], "can't be unpacked"),
        ([b"\xc1"], "can't be unpacked"),
        ([b"\x92\x03"], "can't be unpacked"),
        ([msgpack.packb([HEARTBEAT, 1]) + b"\x00"], "ExtraData"),
        ([b"\x92\x03\xa2\xff\xff"], "UnicodeDecodeError"),
        ([b"\x81" * 600 + b"\x01" * 601], "can't be unpacked"),
        ([b"\x91" * 5000 + b"\x01"], "can't be unpacked"),
        ([bytes([0x93, STATISTICS, 1, 0x82, 0xA1, 97, 1, 0xA1, 97, 1])], "the same key twice"),
        ([bytes([0x93, STATISTICS, 1, 0x81, 1, 1])], "can't be unpacked"),
        ([b"\xdd\x00\x00\x20\x00" * 100 + bytes(8192)], "announces more than it holds"),
        ([msgpack.packb([HEARTBEAT, 1]), b""], "2 frames, but frame 0 speaks of 1"),
    ],
)
def test_what_is_not_even_a_message(frames: list[bytes], expected: str) -> None:
    assert expected in refusal(frames)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, OverflowError, TypeError])
def test_whatever_msgpack_raises_is_a_protocol_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error("so")

    monkeypatch.setattr(msgpack, "unpackb", fail)
    assert f"{error.__name__}: so" in refusal([b"\x90"])


@pytest.mark.parametrize(
    ("marks", "beside", "expected"),
    [
        ((1,), [], "frame 1 is missing: there are 1"),
        ((1,), [b"", b""], "3 frames, but frame 0 speaks of 2"),
        ((1, 1), [b"", b""], "frame 2 was to come next, not frame 1"),
        ((2, 1), [b"", b""], "frame 1 was to come next, not frame 2"),
        ((1, 3), [b"", b"", b""], "frame 2 was to come next, not frame 3"),
        ((0,), [], "frame 1 was to come next, not frame 0"),
        ((2**32 - 1,), [b""], "frame 1 was to come next, not frame 4294967295"),
    ],
)
def test_each_frame_once_and_in_order(
    marks: tuple[int, ...], beside: list[bytes], expected: str
) -> None:
    rows = [row(arguments=frame_mark(index)) for index in marks]
    assert expected in refusal([msgpack.packb([SPAWN, 1, rows]), *beside])


def test_frames_only_where_payloads_are_expected() -> None:
    for message, place in (
        ([HEARTBEAT, frame_mark(1)], "answered_through"),
        ([STATISTICS, 1, {"a": frame_mark(1)}], "Statistics.body['a']"),
        ([SPAWN, 1, [frame_mark(1)]], "Spawn.rows[0]"),
    ):
        assert place in (text := refusal([msgpack.packb(message), b"data"]))
        assert "got a frame of length 4" in text


def test_a_message_over_the_limit_is_refused_whole() -> None:
    frames = codec.encode(from_client.Spawn(0, [row(arguments=Frame(bytes(1000)))]))
    size = sum(map(len, frames))
    assert f"{size} bytes; the limit is 1000" in refusal(frames, max_bytes=1000)
    assert codec.Decoder(EVERYTHING, max_bytes=size).decode(frames)


def test_a_side_accepts_only_what_is_meant_for_it() -> None:
    broker = codec.Decoder(from_client.MESSAGES + from_worker.MESSAGES + from_supervisor.MESSAGES)
    assert broker.decode(codec.encode(from_worker.Begun([]))) == from_worker.Begun([])
    with pytest.raises(ProtocolError, match=r"to_worker\.Exit is not a message for this side"):
        broker.decode(codec.encode(to_worker.Exit(1)))


@pytest.mark.parametrize(
    "message",
    [
        SpawnRow,
        row(),
        (1, 2),
        from_client.Heartbeat(2**64),
        from_client.Heartbeat(-(2**63) - 1),
        from_worker.Lingering(1, 1, "\ud800"),
        to_client.Statistics(1, {"a": object()}),
        to_client.Statistics(1, {"a": {1}}),
    ],
)
def test_what_cannot_travel_is_refused_at_the_start(message: Any) -> None:
    with pytest.raises(ProtocolError):
        codec.encode(message)


# --- fuzz ----------------------------------------------------------------------------------------

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | INTEGERS
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.builds(frame_mark, st.integers(0, 3))
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=15)
        | st.dictionaries(st.text(max_size=2) | st.binary(max_size=2), inner, max_size=2)
    ),
    max_leaves=15,
)


def accepted_or_refused(frames: list[bytes]) -> None:
    """No other error; and what is accepted is a message that can be sent on."""
    codec.peek_version(frames)
    try:
        message = decoder.decode(frames)
    except ProtocolError as error:
        text = str(error)
    else:
        text = ""
        again = decoder.decode(codec.encode(message))
        assert spelled_out(again) == spelled_out(message)
    assert len(text) < 1000  # what a peer sent does not fill the log


def replaced(structure: Any, at: int, value: Any) -> tuple[Any, int]:
    """`structure` with the node number `at` replaced, and that number less the nodes seen."""
    if at == 0:
        return value, -1
    at -= 1
    if isinstance(structure, list):
        items = []
        for item in structure:
            changed, at = replaced(item, at, value) if at >= 0 else (item, at)
            items.append(changed)
        return items, at
    return structure, at


@settings(max_examples=500, deadline=None)
@given(sample=messages, at=st.integers(0, 60), value=ANYTHING)
def test_one_value_of_a_message_replaced(sample: Any, at: int, value: Any) -> None:
    first, *beside = codec.encode(sample)
    structure = msgpack.unpackb(first)
    changed, _ = replaced(structure, at, value)
    accepted_or_refused([msgpack.packb(changed), *beside])


@settings(max_examples=300, deadline=None)
@given(code=st.sampled_from(sorted(codec.CODES.values())), fields=st.lists(ANYTHING, max_size=5))
def test_any_fields_after_a_true_code(code: int, fields: list[Any]) -> None:
    accepted_or_refused([msgpack.packb([code, *fields])])


@settings(max_examples=500, deadline=None)
@given(sample=messages, data=st.data())
def test_bytes_of_a_message_changed(sample: Any, data: st.DataObject) -> None:
    frames = codec.encode(sample)
    first = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(first)))
        first[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    accepted_or_refused([bytes(first), *frames[1:]])


@settings(max_examples=300, deadline=None)
@given(sample=messages, data=st.data())
def test_frames_of_a_message_lost_doubled_or_swapped(sample: Any, data: st.DataObject) -> None:
    frames = codec.encode(sample)
    chosen = st.lists(st.sampled_from([*frames, b"", b"\xc0"]), max_size=len(frames) + 2)
    accepted_or_refused(data.draw(chosen))


@settings(max_examples=500, deadline=None)
@given(frames=st.lists(st.binary(max_size=64), max_size=3))
def test_any_bytes(frames: list[bytes]) -> None:
    accepted_or_refused(frames)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ipc:///run/q", ("ipc:///run/q/control", "ipc:///run/q/data", "/run/q")),
        ("ipc:///run/q/", ("ipc:///run/q/control", "ipc:///run/q/data", "/run/q")),
        ("tcp://127.0.0.1:7000", ("tcp://127.0.0.1:7000", "tcp://127.0.0.1:7001", None)),
        ("tcp://example.org:65534", ("tcp://example.org:65534", "tcp://example.org:65535", None)),
    ],
)
def test_endpoints(address: str, expected: tuple[str, str, str | None]) -> None:
    assert addresses.endpoints(address) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "expected ipc:///an/absolute/folder or tcp://host:port"),
        ("localhost:7000", "expected ipc:///an/absolute/folder or tcp://host:port"),
        ("udp://localhost:7000", "expected ipc:///an/absolute/folder or tcp://host:port"),
        ("ipc://relative", "the folder must be absolute"),
        ("ipc:///", "not the root"),
        ("ipc:///a\0b", "the folder must be absolute"),
        ("ipc:///a\udcff", "the folder's name must be UTF-8"),
        ("tcp://localhost", "expected ipc"),
        ("tcp://:7000", "expected ipc"),
        ("tcp://::1:7000", "IPv6 is not built yet: use tcp://127.0.0.1:port"),
        ("tcp://[::1]:7000", "IPv6 is not built yet: use tcp://127.0.0.1:port"),
        ("tcp://[::1]", "IPv6 is not built yet: use tcp://127.0.0.1:port"),
        ("tcp://host/path:7000", "expected ipc"),
        ("tcp://localhost:0", "a port from 1 to 65534"),
        ("tcp://localhost:65535", "a port from 1 to 65534"),
        ("tcp://localhost:-1", "a port from 1 to 65534"),
        ("tcp://localhost:" + "9" * 5000, "a port from 1 to 65534"),
        ("tcp://localhost:http", "a port from 1 to 65534"),
    ],
)
def test_other_addresses_are_refused_in_words(address: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        addresses.endpoints(address)
    assert expected in str(caught.value)


def test_the_longest_folder_of_an_ipc_address() -> None:
    fits = "/" + "f" * (107 - 1 - len("/control"))
    assert addresses.endpoints(f"ipc://{fits}").folder == fits
    with pytest.raises(ConfigurationError, match=r"108 bytes.*107\. Choose a shorter folder"):
        addresses.endpoints(f"ipc://{fits}f")
    with pytest.raises(ConfigurationError, match=r"bytes; the limit"):
        addresses.endpoints(f"ipc://{fits[:-1]}ü")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("ipc:///run/q", True),
        ("tcp://127.0.0.1:7000", True),
        ("tcp://127.9.9.9:7000", True),
        ("tcp://localhost:7000", True),
        ("tcp://0.0.0.0:7000", False),
        ("tcp://*:7000", False),
        ("tcp://10.0.0.1:7000", False),
        ("tcp://example.org:7000", False),
    ],
)
def test_what_others_could_reach_is_refused(address: str, loopback: bool) -> None:
    assert addresses.is_loopback(address) == loopback
    if loopback:
        addresses.refuse_unsafe(address)
    else:
        with pytest.raises(ConfigurationError, match="CURVE, which is not built yet"):
            addresses.refuse_unsafe(address)


def test_the_address_is_the_argument_or_the_variable_or_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("QUIESCE_ADDRESS", "ipc:///from/variable")
    assert addresses.resolve("ipc:///argument") == "ipc:///argument"
    assert addresses.resolve(None) == "ipc:///from/variable"
    monkeypatch.delenv("QUIESCE_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert addresses.resolve(None) == f"ipc://{tmp_path}/quiesce"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert addresses.resolve(None).startswith("ipc:///tmp/quiesce-")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert addresses.resolve(None).startswith("ipc:///tmp/quiesce-")


# --- rows that are alike --------------------------------------------------------------------------

ALIKE = st.sampled_from(
    [(1, "cancelled", "NEVER_RAN", None, "t", b""), (2, "lost", "", 1, "", b"r")]
)
ENDS = st.lists(st.builds(lambda number, rest: ResultRow(number, *rest), INTEGERS, ALIKE))


def stopped(number: int, name: str = "n") -> StoppedRow:
    labels = ("gc", name, "pool", "x", None)
    return StoppedRow(
        TaskId(number),
        Attempt(1),
        *labels,
        "cancelled",
        "NEVER_RAN",
        None,
        1.0,
        None,
        None,
        2.0,
        "",
    )


@given(ENDS)
def test_all_rows_come_out_however_many_are_alike(rows: list[ResultRow]) -> None:
    (found,) = decoder.decode(codec.encode(to_client.Ended(rows)))
    assert found == rows
    assert all(type(row) is ResultRow for row in found)


ASSIGNED = st.sampled_from(
    [
        (1, "gc", "n", None, "x", False, 1.5, b"f", b"a"),
        (1, "gc", "n", "T", None, True, 2.5, b"", b""),
    ]
)


@given(
    st.lists(
        st.builds(lambda one, two, rest: AssignRow(one, two, *rest), INTEGERS, INTEGERS, ASSIGNED)
    )
)
def test_rows_may_differ_by_two_numbers(rows: list[AssignRow]) -> None:
    epoch, found = decoder.decode(codec.encode(to_worker.Assign(7, rows)))
    assert (epoch, found) == (7, rows)
    assert all(type(row) is AssignRow for row in found)


PIECES = st.lists(
    st.tuples(st.lists(st.tuples(INTEGERS, INTEGERS), min_size=1, max_size=6), ASSIGNED)
)


def as_given(pieces: list[tuple[list[tuple[int, int]], Any]]) -> list[Any]:
    """What has two rows or more as what is alike, the rest as rows."""
    given: list[Any] = []
    for (first, *others), rest in pieces:
        one, two = first
        row = AssignRow(one, TaskId(two), *rest)
        numbers = [number for pair in others for number in pair]
        given.append(Alike(row, numbers, 1 + len(others)) if others else row)
    return given


@given(PIECES)
def test_what_is_given_as_alike_arrives_as_rows(pieces: Any) -> None:
    rows = [AssignRow(one, two, *rest) for pairs, rest in pieces for one, two in pairs]
    message = to_worker.Assign(7, as_given(pieces))
    assert decoder.decode(codec.encode(message)) == (7, rows)
    assert as_received(message) == (7, rows)


@given(PIECES, st.integers(1, 7))
def test_rows_that_are_alike_are_parted_like_others(pieces: Any, most: int) -> None:
    rows = [AssignRow(one, two, *rest) for pairs, rest in pieces for one, two in pairs]
    parts = [list(one_by_one(part)) for part in in_parts(as_given(pieces), most)]
    assert [row for part in parts for row in part] == rows
    assert all(0 < len(part) <= most for part in parts)


def test_of_rows_that_are_alike_one_weighs() -> None:
    row = AssignRow(1, TaskId(1), Attempt(1), "gc", "n", None, None, False, 1.0, b"f", b"a" * FULL)
    alike = Alike(row, [2, 2, 3, 3], 3)
    assert list(in_parts([alike, alike], 100)) == [[alike], [alike]]


def test_a_message_makes_only_so_many_spawns() -> None:
    row = SpawnRow(
        SpawnNumber(1), "r", "k", None, None, "n", False, 0, "never", None, None, None, b"", b""
    )
    code = codec.CODES[from_client.Spawn]
    most = runs.MOST[SpawnRow]
    (_, found) = decoder.decode([msgpack.packb([code, 0, [[row, *range(2, most)]]])])
    assert len([*one_by_one(found)]) == most - 1
    assert [type(each) for each in found] == [AlikeSpawns]
    with pytest.raises(ProtocolError, match="at most 10000 rows"):
        decoder.decode([msgpack.packb([code, 0, [[row, *range(2, most)], [row, *range(9)]]])])


def test_spawns_that_do_not_follow_each_other_are_told_as_they_are() -> None:
    row = SpawnRow(
        SpawnNumber(1), "r", "k", None, None, "n", False, 0, "never", None, None, None, b"", b""
    )
    rows = [row._replace(number=SpawnNumber(n)) for n in (1, 2, 3, 5, 6)]
    (_, found) = decoder.decode(codec.encode(from_client.Spawn(0, rows)))
    assert found == rows


def test_a_run_costs_a_number_for_each_row() -> None:
    end = (Attempt(1), "cancelled", "NEVER_RAN", None, "t" * 99, b"")
    rows = [ResultRow(TaskId(n), *end) for n in range(100)]
    (frame,) = codec.encode(to_client.Ended(rows))
    assert len(frame) < 350


def test_runs_share_a_large_result() -> None:
    result = Frame(b"r" * INLINE_LIMIT)
    end = (Attempt(1), "completed", "RETURNED", None, "", result)
    rows = [ResultRow(TaskId(n), *end) for n in range(9)]
    frames = codec.encode(to_client.Ended(rows))
    assert len(frames) == 2
    (found,) = decoder.decode(frames)
    assert [payload_bytes(row.result) for row in found] == [result.data] * 9


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_a_long_report_may_be_packed_in_pieces(piece: int) -> None:
    rows = [stopped(n, "even" if n % 20 < 10 else f"{n}") for n in range(100)]
    packed = PackedRows(rows)
    assert packed == rows
    while not packed.pack(piece):
        pass
    report = to_client.StopReport(1, 2, False, 1.0, 2.0, packed, [rows[0]], [], [])
    assert decoder.decode(codec.encode(report)) == report


def test_a_row_that_cannot_travel_is_said_when_its_report_is_sent() -> None:
    packed = PackedRows([stopped(n, "\ud800") for n in range(9)])
    assert packed.pack(3)
    with pytest.raises(ProtocolError, match="StopReport can't be encoded"):
        codec.encode(to_client.StopReport(1, 2, False, 1.0, 2.0, packed, [], [], []))


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([7], r"Ended.rows\[0\]: expected an array, a ResultRow, got 7"),
        ([[]], r"Ended.rows\[0\]: expected 7 fields, got 0"),
        ([[[1]]], r"Ended.rows\[0\]: expected 7 fields, got 1"),
        ([[[1, 1, "", "", None, "", b""], "2"]], r"rows\[0\]: expected integers"),
        ([[[1, 1, "", "", None, "", b""], True]], r"rows\[0\]: expected integers"),
        (
            [[[1, 1, "", "", None, "", b""], 2], [1, 1, 1, "", None, "", b""]],
            r"rows\[2\].outcome: ",
        ),
    ],
)
def test_what_is_no_run(items: list[Any], expected: str) -> None:
    with pytest.raises(ProtocolError, match=expected):
        decoder.decode([msgpack.packb([codec.CODES[to_client.Ended], items])])


def test_a_run_has_all_numbers_of_each_row() -> None:
    code = codec.CODES[to_client.SpawnAnswers]
    with pytest.raises(ProtocolError, match="2 integers for each row"):
        decoder.decode([msgpack.packb([code, [[[1, 1, None, ""], 2, 2, 3]]])])
