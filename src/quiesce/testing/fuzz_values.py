"""What hostile peers say: messages made from their own types, nearly right, and bytes that are none.

`message` makes one, `frames` spoils one, `garbage` is what a connection begins with that speaks something else.
Each takes its chances from the generator that it is given.
"""

import math
import random
import types
from collections.abc import Callable, Sequence
from typing import Any, Final, NewType, Union, cast, get_args, get_origin, get_type_hints

from quiesce.protocol import PROTOCOL_VERSION, from_client, from_supervisor, from_worker
from quiesce.protocol.codec import Message
from quiesce.protocol.frames import Frame, Payload
from quiesce.registry.rows import SpawnRow
from quiesce.registry.state import State

#: All that a broker listens to.
MESSAGES: Final[tuple[type[Message], ...]] = (
    *from_client.MESSAGES,
    *from_worker.MESSAGES,
    *from_supervisor.MESSAGES,
)
RUNTIMES: Final = ("pool", "solo")
KINDS: Final = ("gc", "flush")
_INTEGERS: Final = (0, 1, 2, 3, -1, 5, 17, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
_FLOATS: Final = (
    *(0.0, 0.001, 1.0, 30.0, -1.0, -0.0, 5e-324, 1e9, 1e18, -1e18, 1.7e308, -1.7e308),
    *(math.inf, -math.inf, math.nan),
)
_WORDS: Final = (
    *(
        "",
        "x",
        "\0",
        "a" * 300,
        "é" * 70,
        "\U0001f600",
        "%s %d {0}",
        "../../etc/passwd",
        "\n\r\x1b[2J",
    ),
    *(
        "completed",
        "failed",
        "cancelled",
        "crashed",
        "lost",
        "begun",
        "RETURNED",
        "NEVER_RAN",
        "REAPED",
    ),
    *("never", "always", "on-failure", "queued", "ended", "control", "data", "running", "FENCED"),
)


class World:
    """What a hostile peer may know or guess: the ids of what really is."""

    def __init__(self, state: State | None = None) -> None:
        self._state = state

    def integers(self) -> list[int]:
        """Ids and numbers that mean something just now."""
        state = self._state
        if state is None:
            return [1, 2, 3]
        return [
            *list(state.tasks)[:8],
            *list(state.workers)[:4],
            *list(state.stops)[:4],
            state.last_task_id,
            state.last_task_id + 1,
            state.epoch,
            *[session.spawned + 1 for session in list(state.sessions.values())[:4]],
        ]

    def names(self) -> list[bytes]:
        """Sessions and supervisors, the living and the dead."""
        state = self._state
        if state is None:
            return [b"s" * 16, b"v" * 8]
        return [
            *list(state.sessions)[:4],
            *list(state.supervisors)[:4],
            *sorted(state.gone_supervisors)[:2],
        ]

    def attempts(self) -> list[tuple[int, int]]:
        """Attempts that live."""
        state = self._state
        if state is None:
            return [(1, 1)]
        return [(task.id, task.attempt) for task in list(state.tasks.values())[:8]] or [(1, 1)]


# --- values from annotations ----------------------------------------------------------------------


def value(chance: random.Random, hint: Any, world: World) -> Any:
    """Something that a field of this type could hold, often something that makes sense."""
    while isinstance(hint, NewType):
        hint = hint.__supertype__
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if hint == Payload:
            return payload(chance)
        return value(chance, chance.choice(arguments), world)
    if origin is list:
        return [value(chance, arguments[0], world) for _ in range(chance.choice((0, 1, 1, 2, 5)))]
    if origin is tuple:
        if arguments[:2] == (int, int) and chance.random() < 0.6:
            more = [value(chance, each, world) for each in arguments[2:]]
            return (*chance.choice(world.attempts()), *more)
        return tuple([value(chance, each, world) for each in arguments])
    if isinstance(hint, type) and issubclass(hint, tuple):
        return message(chance, hint, world)
    return _PLAIN[hint](chance, world)


def _integer(chance: random.Random, world: World) -> int:
    roll = chance.random()
    if roll < 0.6:
        return chance.choice(world.integers())
    return chance.choice(_INTEGERS) if roll < 0.9 else chance.randrange(-(2**63), 2**64)


def _float(chance: random.Random, world: World) -> float:
    del world
    return chance.choice(_FLOATS)


def _text(chance: random.Random, world: World) -> str:
    del world
    if chance.random() < 0.5:
        return chance.choice((*RUNTIMES, *KINDS, "tenant", "line"))
    return chance.choice(_WORDS) if chance.random() < 0.97 else "y" * 70_000


def _bytes(chance: random.Random, world: World) -> bytes:
    known = world.names()
    if known and chance.random() < 0.7:
        return chance.choice(known)
    return chance.choice((b"", b"s" * 16, b"v" * 8, chance.randbytes(16), chance.randbytes(8)))


def payload(chance: random.Random) -> Payload:
    """A payload, inline or beside."""
    data = chance.choice((b"", b"p", b"p" * 100, b"q" * 5000))
    return Frame(data) if chance.random() < 0.2 else data


_PLAIN: Final[dict[Any, Callable[[random.Random, World], Any]]] = {
    int: _integer,
    float: _float,
    str: _text,
    bytes: _bytes,
    bool: lambda chance, world: chance.random() < 0.5,
    type(None): lambda chance, world: None,
    Frame: lambda chance, world: payload(chance),
}
#: `Sized` stands for payloads in rows.
_PLAIN[get_type_hints(SpawnRow)["function"]] = lambda chance, world: payload(chance)


def message(chance: random.Random, kind: type[Message], world: World) -> Message:
    """A message (or a row) of this type, its fields of the right types."""
    made: Message = kind(*[value(chance, hint, world) for hint in get_type_hints(kind).values()])
    if kind in (from_client.Hello, from_worker.Hello, from_supervisor.Hello):
        return cast("Message", _hello(chance, made))
    return made


def _hello(chance: random.Random, made: Any) -> Any:
    """Mostly one that is let in."""
    if chance.random() < 0.9:
        made = made._replace(version=PROTOCOL_VERSION)
    if isinstance(made, from_client.Hello) and chance.random() < 0.9:
        made = made._replace(channel=chance.choice(("control", "data")))
    if isinstance(made, (from_worker.Hello, from_supervisor.Hello)) and chance.random() < 0.7:
        made = made._replace(runtime=chance.choice(RUNTIMES), incarnation=0)
    return made


# --- bytes ----------------------------------------------------------------------------------------

#: What msgpack might stumble over: lengths that are not there, depth, extensions, strings that are none.
_POISON: Final = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 600,
    b"\x81\xc0" * 300,
    b"\xd4\x01\x00",
    b"\xd6\x01\x00\x00\x00\x01",
    b"\xd6\x01\xff\xff\xff\xff",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xa3\xed\xa0\x80",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcb\xff\xf0\x00\x00\x00\x00\x00\x00",
    b"\xc1",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\xcf" + b"\xff" * 8,
    b"",
)


def frames(chance: random.Random, good: Sequence[bytes]) -> list[bytes]:
    """These frames with something wrong: bytes, lengths, or how many they are."""
    made = list(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(made)) if made else 0
        what = chance.randrange(8)
        if not made or what == 0:
            made.insert(place, chance.choice((b"", b"\xc0", chance.randbytes(20))))
        elif what == 1:
            del made[place]
        elif what == 2:
            made.append(made[place])
        else:
            made[place] = _spoilt(chance, made[place])
    return made


def _spoilt(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    what = chance.randrange(6)
    if what == 0:
        return data[:at]
    if what == 1 and data:
        at %= len(data)
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if what == 2:
        return data[:at] + chance.choice(_POISON) + data[at:]
    if what == 3:
        return data[:at] + chance.choice(_POISON) + data[at + 1 :]
    if what == 4:
        return data + data[at:]
    return chance.randbytes(chance.randrange(64))


def garbage(chance: random.Random) -> bytes:
    """What a connection may begin with that is no ZMTP, or only its beginning."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    return chance.choice(
        (
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            chance.randbytes(chance.randrange(1, 3000)),
            greeting[: chance.randrange(len(greeting))],
            greeting + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
            greeting + b"\x06\xff\xff\xff\xff\xff\xff\xff\xff" + chance.randbytes(50),
            greeting + chance.randbytes(200),
            b"\xff" * 500,
        )
    )
