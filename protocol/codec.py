"""Messages to frames and back, strictly. The only importer of msgpack.

Frame 0 is a msgpack array `[code, field, field, ...]`; rows are arrays within it. A `Frame` travels
as the extension `EXT_FRAME` that holds its index, and its bytes are the frame of that index: 1, 2,
... in the order in which they appear.

Rows that are alike may travel as one: see `runs`.

Decoding trusts nothing. How it stays fast: for each row type it remembers which tuples of types
(one for each field) are right and which fields of these need a closer look. A row of a known
signature then costs one look-up in a dictionary, not one call for each field. That integers fit
64 bits is given by msgpack itself.
"""

import math
import types
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import repeat
from typing import Any, Final, NamedTuple, NewType, Union, get_args, get_origin, get_type_hints

import msgpack

from quiesce.errors import ProtocolError
from quiesce.protocol import (
    from_client,
    from_supervisor,
    from_worker,
    to_client,
    to_supervisor,
    to_worker,
)
from quiesce.protocol.frames import Frame
from quiesce.protocol.labels import escaped
from quiesce.protocol.runs import MOST, ROWS_IN, RUN, RUNS, pack_with_runs
from quiesce.protocol.sizes import CONTROL_LIMIT, LARGEST_PAYLOAD

#: A message: a NamedTuple of one of the six direction modules.
Message = tuple[Any, ...]

#: A code is the base of its direction plus the place in MESSAGES. Versions must agree on them:
#: append to MESSAGES, never insert, and leave each Hello where it is.
DIRECTIONS: Final[tuple[tuple[int, tuple[type[Message], ...]], ...]] = (
    (0, from_client.MESSAGES),
    (32, to_client.MESSAGES),
    (64, from_worker.MESSAGES),
    (80, to_worker.MESSAGES),
    (96, from_supervisor.MESSAGES),
    (112, to_supervisor.MESSAGES),
)
CODES: Final[dict[type[Message], int]] = {
    message: base + index for base, messages in DIRECTIONS for index, message in enumerate(messages)
}
#: The first of each direction is Hello or what answers it: its first field is the sender's version.
HELLO_CODES: Final[frozenset[int]] = frozenset(base for base, _ in DIRECTIONS)

#: The msgpack extension that stands for a Frame: its index, four bytes, big-endian.
EXT_FRAME: Final = 1
#: For a whole message with its frames, unless a Decoder is told otherwise: what one row may hold, and room.
MAX_BYTES: Final = LARGEST_PAYLOAD + CONTROL_LIMIT
#: How deep lists and dictionaries may nest in a field without a row type: Statistics.body.
MAX_DEPTH: Final = 16
#: Above this size the lengths that a message announces are checked before anything is built:
#: msgpack may allocate an array as long as announced, up to the size of the message, at
#: each level of nesting.
CHECK_ABOVE: Final = 4096
#: Signatures remembered for each row type. They are finitely many anyway; this bounds what a peer
#: can make us hold.
MAX_PLANS: Final = 1024


def encode(message: Message, *, escape: bool = False) -> list[bytes]:
    """The frames of `message`. The bytes of a Frame are not copied.

    ProtocolError: it is no message of this protocol, or holds what can't travel (an integer beyond
    64 bits, a string with lone surrogates, an object). Types of fields are left to the receiver.
    `escape`: lone surrogates travel as what Python would print for them: the text is for people.
    """
    code = CODES.get(type(message))
    if code is None:
        raise ProtocolError(f"{type(message).__qualname__} is not a message of this protocol")
    frames: list[bytes] = [b""]

    def beside(value: object) -> msgpack.ExtType:
        if type(value) is not Frame:
            raise TypeError(f"{value!r:.80} can't travel")
        frames.append(value.data)
        return msgpack.ExtType(EXT_FRAME, (len(frames) - 1).to_bytes(4, "big"))

    try:
        place = ROWS_IN.get(type(message))
        if place is not None and len(message[place]) >= RUN:
            frames[0] = pack_with_runs(code, message, place, beside)
        else:
            frames[0] = msgpack.packb((code, *message), default=beside)
    except UnicodeEncodeError as error:
        if escape:
            return encode(_escaped(message))
        raise ProtocolError(f"{_name(type(message))} can't be encoded: {error}") from error
    except Exception as error:
        raise ProtocolError(f"{_name(type(message))} can't be encoded: {error}") from error
    return frames


def _escaped(value: Any) -> Any:
    """The same without lone surrogates."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, (tuple, list)):
        items = map(_escaped, value)
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


class Decoder:
    """Decodes the messages that one role accepts, and no others.

    `messages`: the MESSAGES of the directions it listens to. `max_bytes` bounds a whole message.
    Needs no lock: threads may share one.
    """

    def __init__(self, messages: Iterable[type[Message]], *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        compiler = Compiler()
        #: By code: how to check the fields of each accepted message.
        self._checks: dict[int, Check] = {
            CODES[message]: compiler.row(message) for message in messages
        }

    def decode(self, frames: Sequence[bytes | memoryview]) -> Message:
        """The message in these frames. ProtocolError, never another error, if they are not one."""
        try:
            return self._decode(frames)
        except ProtocolError:
            raise
        except RefusedError as refused:
            raise ProtocolError(str(refused)) from None
        except Exception as error:
            # Without the cause: it may hold all that was unpacked.
            text = f"frame 0 can't be unpacked: {type(error).__name__}: {str(error)[:200]}"
            raise ProtocolError(text) from None

    def _decode(self, frames: Sequence[bytes | memoryview]) -> Message:
        if not frames:
            raise ProtocolError("a message without frames")
        first = frames[0]
        size = len(first)
        if len(frames) > 1:
            size = sum(map(len, frames))
        if size > self._max_bytes:
            raise ProtocolError(f"a message of {size} bytes; the limit is {self._max_bytes}")
        if len(first) > CHECK_ABOVE:
            _check_lengths(first)

        if len(frames) == 1:
            fields = msgpack.unpackb(
                first, use_list=False, ext_hook=_no_frames, object_pairs_hook=_unique_keys
            )
        else:
            hook = _FrameHook(frames)
            fields = msgpack.unpackb(
                first, use_list=False, ext_hook=hook, object_pairs_hook=_unique_keys
            )
            if hook.used != len(frames) - 1:
                raise ProtocolError(f"{len(frames)} frames, but frame 0 speaks of {hook.used + 1}")

        if type(fields) is not tuple or not fields or type(fields[0]) is not int:
            raise ProtocolError("frame 0 is not an array that begins with the code of a message")
        check = self._checks.get(fields[0])
        if check is None:
            name = next((_name(each) for each, code in CODES.items() if code == fields[0]), None)
            if name is None:
                raise ProtocolError(f"no message has the code {fields[0]}")
            raise ProtocolError(f"{name} is not a message for this side")
        message: Message = check(fields[1:])
        return message


def peek_version(frames: Sequence[bytes | memoryview]) -> int | None:
    """The protocol version that a Hello, Welcome or Registered names; None if this is none of them.

    Lenient about all else, so that a peer of another version, whose Hello may have other fields,
    gets an answer in words.
    """
    try:
        unpacker = _unpacker(frames[0])
        if unpacker.read_array_header() < 2:
            return None
        code, version = unpacker.unpack(), unpacker.unpack()
    except Exception:  # whatever it is, it is no hello
        return None
    is_hello = type(code) is int and code in HELLO_CODES and type(version) is int
    return version if is_hello else None


# --- msgpack -------------------------------------------------------------------------------------


class _FrameHook:
    """Resolves the extensions of one message to its frames, each once and in order."""

    __slots__ = ("_frames", "used")

    def __init__(self, frames: Sequence[bytes | memoryview]) -> None:
        self._frames = frames
        self.used = 0

    def __call__(self, code: int, data: bytes) -> Frame:
        if code != EXT_FRAME or len(data) != 4:
            raise ProtocolError(f"an unknown extension: type {code} of {len(data)} bytes")
        index = int.from_bytes(data, "big")
        if index != self.used + 1:
            raise ProtocolError(f"frame {self.used + 1} was to come next, not frame {index}")
        if index >= len(self._frames):
            raise ProtocolError(f"frame {index} is missing: there are {len(self._frames)}")
        self.used = index
        return Frame(self._frames[index])  # type: ignore[arg-type]  # a view will do, see Frame


_no_frames: Final = _FrameHook((b"",))


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("a dictionary has the same key twice")
    return found


def _unpacker(data: bytes | memoryview) -> Any:
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    return unpacker


def _check_lengths(data: bytes | memoryview) -> None:
    """Raises unless everything that is announced is there. Builds no objects."""
    try:
        _unpacker(data).skip()
    except msgpack.OutOfData:
        raise ProtocolError("frame 0 announces more than it holds") from None


# --- from annotations to checks ------------------------------------------------------------------

#: Takes what msgpack made, gives what the field shall hold; raises RefusedError.
Check = Callable[[Any], Any]
#: For each type that msgpack may have made, the closer look it needs, or None.
_Cases = dict[type, Check | None]


class RefusedError(Exception):
    """A value is not what its field holds. The path grows from the inside out."""

    def __init__(self, text: str, *path: str) -> None:
        super().__init__(text)
        self.path = list(path)

    def __str__(self) -> str:
        return f"{''.join(reversed(self.path))}: {self.args[0]}"


class Field(NamedTuple):
    cases: _Cases
    expected: str


class Compiler:
    """Makes the checks of one Decoder, each row type once. What is stored has one of its own: see `facts`."""

    def __init__(self) -> None:
        self._rows: dict[type, Check] = {}

    def row(self, row: type[Message]) -> Check:
        if row not in self._rows:
            fields = {f".{name}": self.field(hint) for name, hint in get_type_hints(row).items()}
            self._rows[row] = array_check(fields, row, _name(row) if row in CODES else "")
        return self._rows[row]

    def field(self, hint: Any) -> Field:
        while isinstance(hint, NewType):
            hint = hint.__supertype__
        if hint in _PLAIN:
            return _PLAIN[hint]
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return _union([self.field(argument) for argument in arguments])
        if origin is list and arguments[0] in RUNS:
            return Field({tuple: runs_check(self.row(arguments[0]), arguments[0])}, "an array")
        if origin is list:
            return Field({tuple: list_check(self.field(arguments[0]))}, "an array")
        if origin is tuple and Ellipsis not in arguments:
            fields = {f"[{i}]": self.field(argument) for i, argument in enumerate(arguments)}
            expected = f"an array of {len(arguments)}"
            return Field({tuple: array_check(fields, tuple, "")}, expected)
        if origin is dict and arguments == (str, Any):
            return Field({dict: _plain_field}, "a dictionary")
        if isinstance(hint, type) and issubclass(hint, tuple):
            return Field({tuple: self.row(hint)}, f"an array, a {hint.__name__}")
        raise TypeError(f"no message may have a field of type {hint!r}")  # ours, not a peer's


def _union(fields: list[Field]) -> Field:
    cases: _Cases = {}
    for field in fields:
        if cases.keys() & field.cases.keys():
            raise TypeError("a union whose members look the same on the wire")
        cases.update(field.cases)
    return Field(cases, " or ".join(dict.fromkeys(field.expected for field in fields)))


def array_check(fields: dict[str, Field], make: type[tuple[Any, ...]], root: str) -> Check:
    """Checks an array of exactly these fields and makes a `make` of it."""
    places = list(fields)
    new = tuple.__new__
    #: For each known signature, the fields that need a closer look, and which.
    plans: dict[tuple[type, ...], tuple[tuple[int, Check], ...]] = {}

    def learn(values: tuple[Any, ...]) -> tuple[tuple[int, Check], ...]:
        if len(values) != len(fields):
            raise RefusedError(f"expected {len(fields)} fields, got {len(values)}", root)
        steps: list[tuple[int, Check]] = []
        for index, (place, field) in enumerate(fields.items()):
            step = _step(field, values[index], place, root)
            if step is not None:
                steps.append((index, step))
        plan = tuple(steps)
        if len(plans) < MAX_PLANS:
            plans[tuple(map(type, values))] = plan
        return plan

    def check(values: tuple[Any, ...]) -> Any:
        plan = plans.get(tuple(map(type, values)))
        if plan is None:
            plan = learn(values)
        if not plan:
            return new(make, values)
        items = list(values)
        index = 0
        try:
            for index, step in plan:
                items[index] = step(items[index])
        except RefusedError as refused:
            refused.path += (places[index], root)
            raise
        return new(make, items)

    return check


def list_check(field: Field) -> Check:
    plain = frozenset(kind for kind, step in field.cases.items() if step is None)

    def check(values: tuple[Any, ...]) -> list[Any]:
        if plain and plain.issuperset(map(type, values)):
            return list(values)
        found: list[Any] = []
        try:
            for value in values:
                step = _step(field, value)
                found.append(value if step is None else step(value))
        except RefusedError as refused:
            refused.path.append(f"[{len(found)}]")
            raise
        return found

    return check


def runs_check(check: Check, kind: type[tuple[Any, ...]]) -> Check:
    """Checks an array of rows of this kind and of runs of them, and gives all rows."""
    new, width, most = tuple.__new__, RUNS[kind], MOST.get(kind, math.inf)

    def expand(run: tuple[Any, ...], found: list[Any]) -> None:
        row = check(run[0])
        numbers = run[1:]
        if not _NUMBERS.issuperset(map(type, numbers)):
            raise RefusedError("expected integers after the first of a run")
        if len(numbers) % width:
            raise RefusedError(f"expected {width} integers for each row of a run")
        if len(found) + len(numbers) > most:
            raise RefusedError(f"expected at most {most} rows in runs")
        found.append(row)
        fields = [numbers[place::width] for place in range(width)]
        rest = map(repeat, row[width:])
        found.extend(map(new, repeat(kind), zip(*fields, *rest, strict=False)))

    def check_all(values: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = []
        try:
            for value in values:
                if type(value) is not tuple:
                    expected = f"expected an array, a {kind.__name__}"
                    raise RefusedError(f"{expected}, got {_describe(value)}")
                if value and type(value[0]) is tuple:
                    expand(value, found)
                else:
                    found.append(check(value))
        except RefusedError as refused:
            refused.path.append(f"[{len(found)}]")
            raise
        return found

    return check_all


def _step(field: Field, value: Any, *path: str) -> Check | None:
    try:
        return field.cases[type(value)]
    except KeyError:
        text = f"expected {field.expected}, got {_describe(value)}"
        raise RefusedError(text, *path) from None


def _float(value: float) -> float:
    if value != value or value == -math.inf:  # noqa: PLR0124 - faster than isnan
        raise RefusedError(f"expected a number or infinity, got {value}")
    return value


def _plain(value: Any, depth: int) -> Any:
    """None, bools, numbers, strings, bytes, and lists and dictionaries of them."""
    kind = type(value)
    if kind is float:
        return _float(value)
    if kind in _ATOMS:
        return value
    if depth == MAX_DEPTH:
        raise RefusedError(f"nested deeper than {MAX_DEPTH}")
    if kind is tuple:
        return [_plain_item(index, item, depth) for index, item in enumerate(value)]
    if kind is dict:
        return {key: _plain_item(key, item, depth) for key, item in value.items()}
    raise RefusedError(f"expected a plain value, got {_describe(value)}")


def _plain_item(place: Any, item: Any, depth: int) -> Any:
    """`place` is a key or an index; msgpack lets keys be bytes."""
    try:
        if type(place) is bytes:
            raise RefusedError("expected keys that are strings")
        return _plain(item, depth + 1)
    except RefusedError as refused:
        refused.path.append(f"[{place!r:.80}]")
        raise


def _plain_field(value: Any) -> Any:
    return _plain(value, 0)


_NUMBERS: Final[frozenset[type]] = frozenset({int})
_ATOMS: Final[frozenset[type]] = frozenset({type(None), bool, int, str, bytes})
_PAYLOAD: Final = Field({bytes: None, Frame: None}, "bytes or a frame")

#: Annotations that stand for themselves.
_PLAIN: Final[dict[Any, Field]] = {
    int: Field({int: None}, "an integer"),
    float: Field({float: _float, int: float}, "a number"),
    str: Field({str: None}, "a string"),
    bytes: Field({bytes: None}, "bytes"),
    bool: Field({bool: None}, "a bool"),
    type(None): Field({type(None): None}, "None"),
    bytes | Frame: _PAYLOAD,
    Sized: _PAYLOAD,
    Any: Field(
        {**dict.fromkeys(_ATOMS), float: _float, tuple: _plain_field, dict: _plain_field},
        "a plain value",
    ),
}


def _name(message: type) -> str:
    """As in `from_client.Hello`."""
    return f"{message.__module__.rpartition('.')[2]}.{message.__name__}"


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, dict, str, bytes, Frame)):
        return f"{_KINDS[type(value)]} of length {len(value)}"
    return f"{value!r:.80}"


_KINDS: Final[dict[type, str]] = {
    tuple: "an array",
    dict: "a dictionary",
    str: "a string",
    bytes: "bytes",
    Frame: "a frame",
}
