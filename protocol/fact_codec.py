"""Facts and frozen registries to bytes and back, for the journal.

A fact is a msgpack array `[number, field, field, ...]`; numbers are in NUMBERED, for ever. A row of the
journal holds facts one after the other. A frozen registry is a stream of values, its long tuples taken
apart, so that neither packing nor unpacking has to hold all of it in one piece.

Large payloads stand apart: in their place is a BlobRef, as the extension EXT_BLOB.

What may change without a new FORMAT: facts at the end of NUMBERED; fields at the end of a fact or row that
have a default, which is what older journals are taken to hold. Anything else needs a new FORMAT, and a
reader that knows the older ones.
"""

import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import msgpack

from quiesce.protocol.field_checks import (
    Check,
    Compiler,
    Field,
    RefusedError,
    array_check,
    list_check,
)
from quiesce.protocol.frames import Frame, Payload
from quiesce.registry import facts
from quiesce.registry.facts import Fact

#: Of all that is written now. Readers know this one and those before it.
FORMAT: Final = 1
#: Facts by their number, from 1. Journals rely on it: append, never insert, remove or reorder.
NUMBERED: Final[tuple[type[Any], ...]] = (
    facts.EpochStarted,
    facts.SupervisorRegistered,
    facts.SupervisorGone,
    facts.WorkerRegistered,
    facts.WorkerReachable,
    facts.WorkerGone,
    facts.SessionOpened,
    facts.SessionClosed,
    facts.AnswersForgotten,
    facts.TaskRegistered,
    facts.SpawnRefused,
    facts.SpawnJoined,
    facts.SpawnParked,
    facts.TaskAssigned,
    facts.TaskBegan,
    facts.TaskRequeued,
    facts.TaskAssociated,
    facts.TaskAsked,
    facts.StopJoined,
    facts.StopDelivered,
    facts.StopObserved,
    facts.TaskLingering,
    facts.TaskEnded,
    facts.ResultsForgotten,
    facts.StopOpened,
    facts.TaskCollateral,
    facts.StopEnded,
    facts.BlockReleased,
    facts.ScopesReopened,
    facts.SystemStopping,
    facts.SupervisorReturned,
    facts.SupervisorArmed,
    facts.ForceMoved,
    facts.TasksNeverRan,
    facts.TasksRegistered,
    facts.TasksAssigned,
    facts.TasksCompleted,
)
_NUMBERS: Final = {fact: number for number, fact in enumerate(NUMBERED, 1)}

#: Payloads above this many bytes stand apart.
BLOB_ABOVE: Final = 4096
#: Tuples longer than this are taken apart in a frozen registry.
LONG: Final = 64

EXT_BLOB: Final = 1
EXT_OPEN: Final = 2
EXT_CLOSE: Final = 3
_REF: Final = struct.Struct(">QIQ16s")


class BlobRef(NamedTuple):
    """Where a payload stands: `parts` rows from `id` on, `size` bytes in all, of this digest."""

    id: int
    parts: int
    size: int
    digest: bytes


class FactError(Exception):
    """These bytes are no facts, or these facts can't be written; the text says why."""


class NewerFormatError(FactError):
    """Written by a newer version of quiesce."""


# --- packing --------------------------------------------------------------------------------------


class FactPacker:
    """Packs facts and frozen registries. `place` puts a payload where blobs are, and says where that is."""

    def __init__(self, place: Callable[[Payload], BlobRef]) -> None:
        self._place = place
        self._packer = msgpack.Packer(default=self._beside)
        #: The kinds of facts, by the types of their fields, that were read back once; see `fact`.
        self._proved: set[tuple[type, ...]] = set()
        self._reader = FactReader(lambda ref: Frame(b""))

    def fact(self, fact: Fact) -> bytes:
        """One fact.

        Of a kind that was never seen before it is tried at once whether it can be read again: nobody
        must be told of a fact that recovery would refuse.

        Raises:
            FactError: it can't be written, or not read.
        """
        kind = type(fact)
        number = _NUMBERS.get(kind)
        if number is None:
            raise FactError(f"{kind.__name__} has no number in fact_codec.NUMBERED")
        body = self._pack((number, *fact))
        signature = (kind, *map(type, fact))
        if signature not in self._proved:
            self._reader.facts(FORMAT, body, 1)
            self._proved.add(signature)
        return body

    def frozen(self, frozen: tuple[Any, ...]) -> Iterator[bytes]:
        """The pieces of a frozen registry, in order; each a small one.

        What is packed is let go, if nobody else has it: to free all of it at once takes long.
        """
        if not _is_long(frozen):
            yield self._pack(frozen)
            return
        yield _OPEN
        left = [*reversed(frozen)]
        del frozen
        while left:
            if _is_long(left[-1]):
                yield from self.frozen(left.pop())
            else:
                yield self._pack(left.pop())
        yield _CLOSE

    def _pack(self, value: Any) -> bytes:
        try:
            body: bytes = self._packer.pack(value)
            if len(body) > BLOB_ABOVE:  # else it can't hold a large payload
                body = self._packer.pack(self._apart(value))
        except FactError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            self._packer.reset()
            raise FactError(f"{value!r:.200} can't be written: {error}") from error
        return body

    def _apart(self, value: Any) -> Any:
        """The same with its large payloads put apart."""
        if isinstance(value, bytes):
            return self._beside(value) if len(value) > BLOB_ABOVE else value
        if isinstance(value, (tuple, list)):
            if _FLAT.issuperset(map(type, value)):
                return value  # the members of a stop may be very many
            return [self._apart(item) if type(item) not in _FLAT else item for item in value]
        return value

    def _beside(self, value: object) -> Any:
        if type(value) is Frame:
            if len(value.data) <= BLOB_ABOVE:
                return value.data
        elif type(value) is not bytes:
            raise TypeError(f"a {type(value).__name__} has no place in a journal")
        return msgpack.ExtType(EXT_BLOB, _REF.pack(*self._place(value)))


_FLAT: Final = frozenset({str, int, float, bool, type(None), Frame})
_OPEN: Final[bytes] = msgpack.packb(msgpack.ExtType(EXT_OPEN, b""))
_CLOSE: Final[bytes] = msgpack.packb(msgpack.ExtType(EXT_CLOSE, b""))


def _is_long(value: object) -> bool:
    """Whether this is a long tuple, or a tuple with such in it."""
    if not isinstance(value, tuple):
        return False
    if len(value) > LONG:
        return True
    # Most rows are flat: then no item needs a look of its own.
    return not _FLAT.issuperset(map(type, value)) and any(map(_is_long, value))


# --- reading --------------------------------------------------------------------------------------


class FactReader:
    """Reads what a FactPacker wrote. `fetch` gives the payload that stands at a place."""

    def __init__(self, fetch: Callable[[BlobRef], Payload]) -> None:
        self._fetch = fetch
        self._checks = _checks(NUMBERED)

    def facts(self, version: int, body: bytes, count: int) -> list[Fact]:
        """The facts in a row of the journal, `count` of them.

        Raises:
            NewerFormatError: `version` is newer than FORMAT.
            FactError: they are not what was to be written; the text says which and why.
        """
        _refuse_newer(version)
        found: list[Fact] = []
        checks = self._checks
        try:
            for fields in self._unpacked(body):
                if type(fields) is not tuple or not fields or type(fields[0]) is not int:
                    raise FactError("not an array that begins with the number of a fact")
                number = fields[0]
                if not 0 < number <= len(checks):
                    raise NewerFormatError(f"no fact that this version knows has number {number}")
                found.append(checks[number - 1](fields[1:]))
        except FactError as error:
            raise type(error)(f"fact {len(found) + 1} of {count}: {error}") from None
        except RefusedError as refused:
            name = NUMBERED[fields[0] - 1].__name__
            raise FactError(f"fact {len(found) + 1} of {count}: {name}{refused}") from None
        except Exception as error:  # what msgpack makes of damaged bytes
            raise FactError(f"fact {len(found) + 1} of {count}: {error!r:.200}") from None
        if len(found) != count:
            raise FactError(f"{len(found)} facts, where {count} were written")
        return found

    def frozen(self, version: int, chunks: Iterable[bytes]) -> tuple[Any, ...]:
        """The frozen registry whose pieces stand in these chunks; its rows are plain tuples.

        Raises:
            NewerFormatError, FactError: as `facts`.
        """
        _refuse_newer(version)
        whole: list[Any] = []
        stack = [whole]
        try:
            for chunk in chunks:
                for value in self._unpacked(chunk):
                    if value is _OPENS:
                        stack.append([])
                    elif value is _CLOSES:
                        closed = tuple(stack.pop())
                        stack[-1].append(closed)
                    else:
                        stack[-1].append(value)
        except FactError:
            raise
        except Exception as error:  # what msgpack makes of damaged bytes
            raise FactError(f"{error!r:.200}") from None
        if len(stack) != 1 or len(whole) != 1 or type(whole[0]) is not tuple:
            raise FactError("the pieces do not make a whole")
        frozen: tuple[Any, ...] = whole[0]
        return frozen

    def _unpacked(self, body: bytes) -> Any:
        unpacker = msgpack.Unpacker(
            use_list=False, ext_hook=self._beside, max_buffer_size=len(body) or 1
        )
        unpacker.feed(body)
        return unpacker

    def _beside(self, code: int, data: bytes) -> object:
        if code == EXT_BLOB:
            return self._fetch(BlobRef._make(_REF.unpack(data)))
        if code == EXT_OPEN:
            return _OPENS
        if code == EXT_CLOSE:
            return _CLOSES
        raise FactError(f"an unknown extension {code}")


_OPENS: Final = object()
_CLOSES: Final = object()


def _refuse_newer(version: int) -> None:
    if version > FORMAT:
        raise NewerFormatError(f"it has format {version}; this version of quiesce reads {FORMAT}")


class _FactCompiler(Compiler):
    """Like that of messages, but for what we wrote ourselves: any float, and fields that came later."""

    def row(self, row: type[Any], root: str = "") -> Check:
        check = super().row(row, root)
        count, least = len(row._fields), len(row._fields) - len(row._field_defaults)
        older: dict[int, Check] = {}

        def lenient(values: tuple[Any, ...]) -> Any:
            size = len(values)
            if not least <= size < count:
                return check(values)
            if size not in older:
                hints = list(get_type_hints(row).items())[:size]
                fields = {f".{name}": self.field(hint) for name, hint in hints}
                older[size] = array_check(fields, tuple, "")
            return row(*older[size](values))

        return lenient if least < count else check

    def field(self, hint: Any) -> Field:
        if hint is float:
            return Field({float: None, int: float}, "a number")
        if get_origin(hint) is tuple and Ellipsis in get_args(hint):
            item = list_check(self.field(get_args(hint)[0]))
            return Field({tuple: lambda values: tuple(item(values))}, "an array")
        if isinstance(hint, type) and issubclass(hint, Enum):
            return Field({str: _member_of(hint)}, f"a {hint.__name__}")
        return super().field(hint)


@functools.cache
def _checks(numbered: tuple[type[Any], ...]) -> list[Check]:
    """How to check the fields of each fact. Made once, since that takes milliseconds."""
    compiler = _FactCompiler()
    return [compiler.row(fact) for fact in numbered]


def _member_of(members: type[Enum]) -> Check:
    def check(value: Any) -> Any:
        try:
            return members(value)
        except ValueError as error:
            raise RefusedError(str(error)) from None

    return check
