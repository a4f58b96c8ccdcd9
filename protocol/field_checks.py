"""From the annotations of messages and rows to checks of what msgpack made of them.

Nothing is trusted. How it stays fast: for each row type it is remembered which tuples of types (one for each
field) are right and which fields of these need a closer look. A row of a known signature then costs one look-up in
a dictionary, not one call for each field. Many rows are looked at field by field, each for all of them at once.
That integers fit 64 bits is given by msgpack itself.
"""

import math
import types
from collections.abc import Callable, Sized
from itertools import repeat
from typing import Any, Final, NamedTuple, NewType, Union, get_args, get_origin, get_type_hints

from quiesce.protocol.frames import Frame
from quiesce.protocol.runs import MOST, RUNS
from quiesce.registry.rows import AlikeEnds, AlikeSpawns, EndedRow, SpawnRow

#: How deep lists and dictionaries may nest in a field without a row type: Statistics.body.
MAX_DEPTH: Final = 16
#: From so many rows on all of a list are checked at once.
MANY: Final = 8
#: Signatures remembered for each row type. They are finitely many anyway; this bounds what a peer
#: can make us hold.
MAX_PLANS: Final = 1024

#: A NamedTuple: a message, or a row in one.
Row = tuple[Any, ...]
#: Takes what msgpack made, gives what the field shall hold; raises RefusedError.
Check = Callable[[Any], Any]
#: The same for all of a list; None: not even whether they are what it shall hold is known.
ManyCheck = Callable[[tuple[Any, ...]], list[Any] | None]
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
        #: What `_fields_of` has given.
        self._fields: dict[Any, dict[str, Field]] = {}

    def row(self, row: type[Row], root: str = "") -> Check:
        """`root`: how complaints begin."""
        if row not in self._rows:
            self._rows[row] = array_check(self._fields_of(row), row, root)
        return self._rows[row]

    def _fields_of(self, row: Any) -> dict[str, Field]:
        """Of a NamedTuple, or of an annotation `tuple[...]`; by what complaints call them."""
        if row not in self._fields:
            if get_origin(row) is tuple:
                hints = {f"[{place}]": hint for place, hint in enumerate(get_args(row))}
            else:
                hints = {f".{name}": hint for name, hint in get_type_hints(row).items()}
            self._fields[row] = {name: self.field(hint) for name, hint in hints.items()}
        return self._fields[row]

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
        if origin is list and arguments[0] is EndedRow:
            either = ends_check(self.row(EndedRow))
            many = columns_check(self._fields_of(EndedRow), EndedRow)
            item = Field({tuple: either}, f"an array, a {EndedRow.__name__}")
            return Field({tuple: list_check(item, many)}, "an array")
        if origin is list:
            (item,) = arguments
            together = None
            if _is_row(item):
                together = columns_check(self._fields_of(item), get_origin(item) or item)
            return Field({tuple: list_check(self.field(item), together)}, "an array")
        if _is_row(hint) and origin is tuple:
            expected = f"an array of {len(arguments)}"
            return Field({tuple: array_check(self._fields_of(hint), tuple, "")}, expected)
        if origin is dict and arguments == (str, Any):
            return Field({dict: _plain_field}, "a dictionary")
        if _is_row(hint):
            return Field({tuple: self.row(hint)}, f"an array, a {hint.__name__}")
        raise TypeError(f"no message may have a field of type {hint!r}")  # ours, not a peer's


def _is_row(hint: Any) -> bool:
    """Whether this stands for arrays of a known length."""
    if get_origin(hint) is tuple:
        return Ellipsis not in get_args(hint)
    return isinstance(hint, type) and issubclass(hint, tuple)


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


def columns_check(fields: dict[str, Field], make: type[tuple[Any, ...]]) -> ManyCheck:
    """Checks many arrays of these fields, field by field."""
    new = tuple.__new__
    cases = [field.cases for field in fields.values()]
    width = {len(cases)}

    def check(values: tuple[Any, ...]) -> list[Any] | None:
        if not _ARRAYS.issuperset(map(type, values)) or set(map(len, values)) != width:
            return None
        for column, known in zip(zip(*values, strict=True), cases, strict=True):
            kinds = set(map(type, column))
            if not known.keys() >= kinds:
                return None
            wanted = [kind for kind in kinds if known[kind] is not None]
            if wanted and not (kinds <= _TIMES and _are_plain(column)):
                return None
        return list(values) if make is tuple else list(map(new, repeat(make), values))

    return check


def _are_plain(column: tuple[float | None, ...]) -> bool:
    """Whether all numbers here are such as `_float` lets pass."""
    numbers = [each for each in column if each is not None]
    return min(numbers) > -math.inf and not any(map(math.isnan, numbers))


def list_check(field: Field, together: ManyCheck | None = None) -> Check:
    """`together`: what checks many of them, if it is rows."""
    plain = frozenset(kind for kind, step in field.cases.items() if step is None)

    def check(values: tuple[Any, ...]) -> list[Any]:
        if plain and plain.issuperset(map(type, values)):
            return list(values)
        if together is not None and len(values) >= MANY:
            rows = together(values)
            if rows is not None:
                return rows
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
    """Checks an array of rows of this kind and of runs of them, and gives all rows; but spawns of consecutive
    numbers as an AlikeSpawns.
    """
    new, width, most = tuple.__new__, RUNS[kind], MOST.get(kind, math.inf)

    def expand(run: tuple[Any, ...], found: list[Any], before: int) -> int:
        row = check(run[0])
        numbers = run[1:]
        if not _NUMBERS.issuperset(map(type, numbers)):
            raise RefusedError("expected integers after the first of a run")
        if len(numbers) % width:
            raise RefusedError(f"expected {width} integers for each row of a run")
        if before + len(numbers) > most:
            raise RefusedError(f"expected at most {most} rows in runs")
        if kind is SpawnRow and numbers == tuple(range(row[0] + 1, row[0] + 1 + len(numbers))):
            found.append(AlikeSpawns(row, 1 + len(numbers)))
        else:
            found.append(row)
            fields = [numbers[place::width] for place in range(width)]
            rest = map(repeat, row[width:])
            found.extend(map(new, repeat(kind), zip(*fields, *rest, strict=False)))
        return 1 + len(numbers) // width

    def check_all(values: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = []
        count = 0
        try:
            for value in values:
                if type(value) is not tuple:
                    expected = f"expected an array, a {kind.__name__}"
                    raise RefusedError(f"{expected}, got {_describe(value)}")
                if value and type(value[0]) is tuple:
                    count += expand(value, found, count)
                else:
                    found.append(check(value))
                    count += 1
        except RefusedError as refused:
            refused.path.append(f"[{count}]")
            raise
        return found

    return check_all


def ends_check(check: Check) -> Check:
    """Checks the row of an end by `check`, or many ends that are alike."""

    def check_either(values: tuple[Any, ...]) -> Any:
        if not values or type(values[0]) is not tuple:
            return check(values)
        row, *columns = values
        if len(columns) != 4 or not _ARRAYS.issuperset(map(type, columns)):
            raise RefusedError("expected four arrays after the first of many ends")
        task_ids, begun, ended, results = columns
        if not task_ids or {*map(len, (begun, ended, results or task_ids))} != {len(task_ids)}:
            raise RefusedError("expected as many ages and results as there are tasks")
        if not _NUMBERS.issuperset(map(type, task_ids)):
            raise RefusedError("expected integers for the tasks of many ends")
        if not all(
            _FLOATS.issuperset(map(type, each)) and sum(each) > -math.inf for each in (begun, ended)
        ):
            raise RefusedError("expected numbers for the ages of many ends")
        if not _BYTES.issuperset(map(type, results)):
            raise RefusedError("expected bytes for the results of many ends")
        first = check(row)
        if first.begun_age is None:
            raise RefusedError("expected that each of many ends has begun")
        return AlikeEnds(first, task_ids, begun, ended, results)

    return check_either


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
_FLOATS: Final[frozenset[type]] = frozenset({float})
_BYTES: Final[frozenset[type]] = frozenset({bytes})
_ARRAYS: Final[frozenset[type]] = frozenset({tuple})
_TIMES: Final[frozenset[type]] = frozenset({float, type(None)})
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
