"""Arguments of the public verbs, checked at once, and made into what travels."""

import functools
import math
import os
import pwd
import stat
from collections.abc import Callable, Mapping, Sized
from operator import is_
from pathlib import Path
from typing import Any, Final

from quiesce.context import current_context
from quiesce.protocol.callables import Reference, pack_arguments, pack_function, reference_to
from quiesce.protocol.frames import Payload, as_payload
from quiesce.protocol.from_client import ScopeFields
from quiesce.protocol.labels import check_label, check_length, escaped
from quiesce.protocol.sizes import TOGETHER_LIMIT, data_limit
from quiesce.registry.ids import Attempt, SpawnNumber, TaskId
from quiesce.registry.rows import SpawnRow

_LABELS: Final = ("runtime", "kind", "tenant_id", "timeline_id", "name", "unique_key")
#: As far as a broker counts.
MAX_RETRIES: Final = 2**31 - 1
RESTARTS: Final = ("never", "on-failure", "always")
#: Room in one message for all that is not payload.
_REST: Final = 1024 * 1024
#: Bytes around each payload on the wire, at most.
_ROOM: Final = 8
#: So many functions are known at a time.
_ROWS: Final = 256


def seconds(what: str, value: float | None, *, positive: bool = False) -> float | None:
    """As a float. TypeError or ValueError unless None, or a number of at least (or more than) 0."""
    if value is None:
        return None
    number = _number(what, value)
    if math.isnan(number) or number < 0 or (positive and number == 0):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{what} must be {least} seconds or None, not {value!r}")
    return number


def patience(timeout: float | None) -> None:
    """TypeError or ValueError unless a wait can be that long. What is below 0 is over at once."""
    if timeout is not None and math.isnan(_number("timeout", timeout)):
        raise ValueError("timeout must be a number of seconds or None, not nan")


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number of seconds or None, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} has no room for so many seconds; math.inf is for ever") from None


def scope(
    kind: str | None, tenant_id: str | None, timeline_id: str | None, runtime: str | None
) -> ScopeFields:
    """The four fields of a scope, checked."""
    check_label("kind", kind)
    check_label("tenant_id", tenant_id)
    check_label("timeline_id", timeline_id)
    check_label("runtime", runtime)
    fields = (None if kind is None else str(kind), tenant_id, timeline_id, runtime)
    for what, label in zip(("kind", "tenant_id", "timeline_id", "runtime"), fields, strict=True):
        check_length(what, label)
    return fields


def task_id(value: object) -> int:
    """A task id as it travels."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a task id is an int, not {value!r} of type {type(value).__name__}")
    if not 1 <= value < 2**64:
        raise ValueError(f"a task id is from 1 to 2**64 - 1, not {value}")
    return value


#: What is said of spawns that are asked for alike: the arguments of `spawn_row`.
Asked = tuple[Any, ...]


def caller() -> tuple[TaskId, Attempt] | None:
    """The attempt that the calling code belongs to."""
    task = current_context()
    return None if task is None else (task.key[0], Attempt(task.key[1]))


def closed_folder(folder: str) -> str:
    """Which folder on the way into this one, or itself, may not be entered, and whose it is; "" if none."""
    for path in (Path(folder), *Path(folder).parents):
        try:
            there = path.stat()
        except PermissionError:
            continue  # one further up is closed
        except OSError:
            return ""
        if os.access(path, os.X_OK):
            return ""
        if there.st_uid == os.geteuid():
            mode = stat.S_IMODE(there.st_mode)
            return f"You may not enter {path}, which is yours: it has mode {mode:04o}."
        return f"You may not enter {path}: it belongs to {_user(there.st_uid)}, and you are {_user(os.geteuid())}."
    return ""


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def name_of(fn: Callable[..., Any]) -> str:
    """What a task is called that was given no name: the function's qualified name."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)
    return name if name.isascii() else escaped(name)


def spawn_row(
    runtime: str,
    kind: str,
    fn: Callable[..., Any],
    tenant_id: str | None,
    timeline_id: str | None,
    name: str | None,
    shutdown_process_on_error: bool,
    retries: int,
    restart: str,
    timeout: float | None,
    unique_key: str | None,
) -> SpawnRow:
    """The row of a spawn, without number and arguments. TypeError and ValueError say what is wrong with it."""
    check_label("runtime", runtime, optional=False)
    check_label("kind", kind, optional=False)
    if not callable(fn):
        raise TypeError(
            f"fn must be callable, not {fn!r:.80}: pass the function itself and its arguments apart"
        )
    check_label("tenant_id", tenant_id)
    check_label("timeline_id", timeline_id)
    check_label("name", name)
    check_label("unique_key", unique_key)
    if not isinstance(shutdown_process_on_error, bool):
        raise TypeError(
            f"shutdown_process_on_error must be True or False, not {shutdown_process_on_error!r}"
        )
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an int, not {retries!r}")
    if not 0 <= retries <= MAX_RETRIES:
        raise ValueError(f"retries must be a whole number from 0 to {MAX_RETRIES}, not {retries}")
    if restart not in RESTARTS:
        raise ValueError(f"restart must be one of {', '.join(RESTARTS)}, not {restart!r}")
    name = name_of(fn) if name is None else name
    labels = (runtime, kind, tenant_id, timeline_id, name, unique_key)
    for what, label in zip(_LABELS, labels, strict=True):
        check_length(what, label)
    return SpawnRow(
        SpawnNumber(0),
        str(runtime),
        str(kind),
        tenant_id,
        timeline_id,
        name,
        shutdown_process_on_error,
        retries,
        restart,
        seconds("timeout", timeout, positive=True),
        unique_key,
        caller(),
        as_payload(pack_function(fn)),
        b"",
    )


class Rows:
    """What `spawn_row` gives, for one client; kept for functions that are importable, as long as they stay so."""

    def __init__(self) -> None:
        #: By the identity of the function. Any thread reads and writes it, each time in one step.
        self._known: dict[int, tuple[Asked, Reference, SpawnRow]] = {}

    def get(self, asked: Asked) -> SpawnRow:
        """See `spawn_row`."""
        fn = asked[2]
        known = self._known.get(id(fn))
        if known is None or not all(map(is_, known[0], asked)) or not known[1].leads_to(fn):
            return self._make(asked)
        row = known[2]
        return row if current_context() is None else row._replace(parent=caller())

    def _make(self, asked: Asked) -> SpawnRow:
        row = spawn_row(*asked)
        reference = reference_to(asked[2])
        if reference is not None:
            if len(self._known) >= _ROWS:
                self._known.clear()
            self._known[id(asked[2])] = (asked, reference, row._replace(parent=None))
        return row


def packed_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Payload:
    """The arguments of one call."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping or None, not {kwargs!r}")
    return as_payload(pack_arguments(args, kwargs))


def too_large(row: SpawnRow, arguments: Sized, limit: int) -> str:
    """Why these payloads, larger than the limit, can't go together to the broker."""
    size = len(row.function) + len(arguments)
    return (
        f"function and arguments of {row.name} have {len(row.function)} + {len(arguments)} = {size} bytes; "
        f"the limit is {limit} bytes. Hand over where the data is (a path, a key) instead of the data"
    )


def batch_too_large(row: SpawnRow, arguments: list[Payload], limit: int) -> str | None:
    """Why none of these spawns can go to the broker; None if they can."""
    if len(arguments) > TOGETHER_LIMIT:
        return (
            f"{len(arguments)} spawns of {row.name} were asked for in one call; the limit is {TOGETHER_LIMIT}, "
            "since all or none of them are registered. Make several calls"
        )
    sizes = list(map(len, arguments))
    largest = max(sizes)
    if len(row.function) + largest > limit:
        index = next(i for i, size in enumerate(sizes) if len(row.function) + size > limit)
        trouble = too_large(row, arguments[index], limit)
        return f"item {index} of {len(arguments)}: {trouble}. None of them was spawned"
    total = sum(sizes) + _ROOM * len(sizes)
    most = data_limit(limit) - _REST
    if total <= most:
        return None
    return (
        f"the arguments of {len(arguments)} spawns of {row.name} have {total} bytes together; the limit is "
        f"{most} bytes, since all or none of them are registered. Make several calls"
    )
