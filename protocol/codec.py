"""Messages to frames and back, strictly. The only importer of msgpack.

Frame 0 is a msgpack array `[code, field, field, ...]`; rows are arrays within it. A `Frame` travels
as the extension `EXT_FRAME` that holds its index, and its bytes are the frame of that index: 1, 2,
... in the order in which they appear.

Rows that are alike may travel as one: see `runs`.

Decoding trusts nothing: see `field_checks`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

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
from quiesce.protocol.field_checks import Check, Compiler, RefusedError
from quiesce.protocol.frames import Frame
from quiesce.protocol.labels import escaped
from quiesce.protocol.runs import ROWS_IN, pack_with_runs
from quiesce.protocol.sizes import CONTROL_LIMIT, LARGEST_PAYLOAD
from quiesce.registry.rows import RUN, Alike

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
#: Above this size the lengths that a message announces are checked before anything is built:
#: msgpack may allocate an array as long as announced, up to the size of the message, at
#: each level of nesting.
CHECK_ABOVE: Final = 4096


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
        rows = () if place is None else message[place]
        if place is not None and (len(rows) >= RUN or Alike in map(type, rows)):
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
            CODES[message]: compiler.row(message, _name(message)) for message in messages
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


def _name(message: type) -> str:
    """As in `from_client.Hello`."""
    return f"{message.__module__.rpartition('.')[2]}.{message.__name__}"
