"""The rows that travel: what a spawn says, how an attempt ended, what a listing shows.

Rows are NamedTuples: cheap in batches, arrays on the wire. The registry takes and gives them as they
are, so that no task is translated on its way through the broker. Payloads (functions, arguments,
results) are opaque here: anything with a length in bytes.
"""

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple

from quiesce.registry.ids import Attempt, SpawnNumber, TaskId

#: How the text of a task that ran longer than its own timeout begins; its outcome is failed.
TIMED_OUT: Final = "TaskTimeoutError: "
#: How the text of an attempt begins, whatever its outcome, that its own pool asked to stop because the lease of
#: the pool was half over, and nobody else did; the reason follows, and after a line break what else it came to.
LEASE_OVER: Final = "LeaseHalfOver: "
#: What code a refusal carries: the name of a class in `quiesce.errors`.
ErrorCode = str


#: How many rows at least are worth being told as one.
RUN: Final = 4
_new: Final = tuple.__new__


class Alike:
    """Stands for rows, in a list of them: `count` in all, that differ by their first fields alone, which are
    numbers.

    Nobody makes the others until somebody looks at single ones (see `one_by_one`): on the wire it is one row, too.
    """

    __slots__ = ("count", "numbers", "row")

    def __init__(self, row: tuple[Any, ...], numbers: list[int], count: int) -> None:
        self.row = row
        #: The first fields of the other rows, each row's after the other's.
        self.numbers = numbers
        self.count = count

    @property
    def width(self) -> int:
        """How many fields differ."""
        return len(self.numbers) // (self.count - 1)

    def cut(self, most: int) -> "Iterator[Alike | tuple[Any, ...]]":
        """The same in pieces of at most so many rows."""
        if self.count <= most:
            yield self
            return
        width, row = self.width, self.row
        numbers = [*row[:width], *self.numbers]
        for start in range(0, len(numbers), most * width):
            first = _new(type(row), (*numbers[start : start + width], *row[width:]))
            others = numbers[start + width : start + most * width]
            yield Alike(first, others, 1 + len(others) // width) if others else first


def one_by_one(rows: Iterable[Any]) -> Iterator[Any]:
    """All these rows, one by one."""
    for row in rows:
        if isinstance(row, (AlikeEnds, AlikeSpawns)):
            yield from row.one_by_one()
            continue
        if type(row) is not Alike:
            yield row
            continue
        yield row.row
        width, numbers = row.width, row.numbers
        fields = [numbers[place::width] for place in range(width)]
        rest = map(repeat, row.row[width:])
        yield from map(_new, repeat(type(row.row)), zip(*fields, *rest, strict=False))


class SpawnRow(NamedTuple):
    """One spawn as a client asked for it. `parent` is the attempt that spawned it, if one did."""

    number: SpawnNumber
    runtime: str
    kind: str
    tenant_id: str | None
    timeline_id: str | None
    name: str
    shutdown_process_on_error: bool
    retries: int
    restart: str
    timeout: float | None
    unique_key: str | None
    parent: tuple[TaskId, Attempt] | None
    function: Sized
    arguments: Sized


class AlikeSpawns(NamedTuple):
    """Stands for spawns, in a list of them: so many, with the number of `row` and those after it. `arguments`:
    those of each, where they differ; else none, and all have those of the row.
    """

    row: SpawnRow
    many: int
    arguments: Sequence[Sized] = ()

    def one_by_one(self) -> Iterator[SpawnRow]:
        """All these spawns."""
        first, *same, arguments = self.row
        numbers = range(first, first + self.many)
        rest = zip(numbers, *map(repeat, same), self.arguments or repeat(arguments), strict=False)
        return map(_new, repeat(SpawnRow), rest)

    def largest(self) -> SpawnRow:
        """One with the most arguments."""
        if not self.arguments:
            return self.row
        return self.row._replace(arguments=max(self.arguments, key=len))


def alike_spawns(rows: Sequence[SpawnRow | AlikeSpawns]) -> list[AlikeSpawns]:
    """The same, those as one that follow each other, by their numbers too, and differ in their arguments alone."""
    found: list[AlikeSpawns] = []
    start, following = 0, 0
    rest: tuple[Any, ...] = ()
    for place, row in enumerate(rows):
        if isinstance(row, AlikeSpawns):
            found += _as_run(rows[start:place])
            found.append(row)
            start, rest = place + 1, ()
        elif row[1:-1] != rest or row.number != following:
            found += _as_run(rows[start:place])
            start, rest, following = place, row[1:-1], row.number
        following += 1
    return found + _as_run(rows[start:])


def _as_run(rows: Sequence[Any]) -> list[AlikeSpawns]:
    if len(rows) < 2:
        return [AlikeSpawns(row, 1) for row in rows]
    return spawns_with(rows[0], [row.arguments for row in rows])


def spawns_with(row: SpawnRow, arguments: Sequence[Sized]) -> list[AlikeSpawns]:
    """Those like this one, from its number on, with these arguments; one AlikeSpawns, if there are any."""
    if not arguments:
        return []
    own = arguments if arguments.count(arguments[0]) < len(arguments) else ()
    return [AlikeSpawns(row._replace(arguments=arguments[0]), len(arguments), own)]


class SpawnAnswer(NamedTuple):
    """What became of one spawn: a task id, or (task_id 0) a refusal."""

    number: SpawnNumber
    task_id: TaskId
    error: ErrorCode | None
    text: str


class AssignRow(NamedTuple):
    """One attempt handed to a worker. Times are seconds since the epoch."""

    assign_number: int
    task_id: TaskId
    attempt: Attempt
    kind: str
    name: str
    tenant_id: str | None
    timeline_id: str | None
    shutdown_process_on_error: bool
    created_at: float
    function: Sized
    arguments: Sized


class EndedRow(NamedTuple):
    """How one attempt ended, as its worker tells it.

    `begun_age` is how many seconds before the sending it began, None if it never did; `ended_age` likewise.
    `result` is the pickled value (completed) or the pickled exception (else; empty if there is none or it
    can't be pickled). `text` is the traceback or the explanation. `delivered_age` and `observed_age`: since
    when the request to stop had been there, and seen by the task itself; None if it never was.
    """

    task_id: TaskId
    attempt: Attempt
    outcome: str
    evidence: str
    begun_age: float | None
    ended_age: float
    delivered_age: float | None
    observed_age: float | None
    text: str
    result: Sized


class AlikeEnds(NamedTuple):
    """Stands for ends, in a list of them: that of `row`, and others that differ from it by their tasks, their ages
    (which are there) and their results alone. `results`: none, if all have that of the row.
    """

    row: EndedRow
    task_ids: Sequence[TaskId]
    begun_ages: Sequence[float]
    ended_ages: Sequence[float]
    results: Sequence[Sized]

    def one_by_one(self) -> list[EndedRow]:
        """All these ends."""
        _, attempt, outcome, evidence, _, _, delivered, observed, text, result = self.row
        ends = [self.row]
        for task_id, begun, ended, own in zip(
            *self[1:4], self.results or repeat(result), strict=False
        ):
            fields = (task_id, attempt, outcome, evidence, begun, ended, delivered, observed, text)
            ends.append(EndedRow(*fields, own))
        return ends


_PLACES: Final = (1, 2, 3, 6, 7, 8)
_alike_in: Final = itemgetter(*_PLACES)
_FLOATS: Final = frozenset({float})
_BYTES: Final = frozenset({bytes})


def alike_ends(rows: Sequence[EndedRow]) -> list[EndedRow | AlikeEnds]:
    """The same, those that follow each other and are alike as one."""
    whole = _as_one(rows)
    if whole is not None:
        return [whole]
    found: list[EndedRow | AlikeEnds] = []
    for _, each in groupby(rows, _alike_in):
        together = list(each)
        one = _as_one(together)
        found += together if one is None else [one]
    return found


def _as_one(rows: Sequence[EndedRow]) -> AlikeEnds | None:
    """These, if they are alike, and enough."""
    many = len(rows)
    if many < RUN:
        return None
    columns = list(zip(*rows, strict=True))
    if any(columns[place].count(columns[place][0]) < many for place in _PLACES):
        return None
    task_ids, _, _, _, begun, ended, _, _, _, results = columns
    if not (_FLOATS.issuperset(map(type, begun)) and _FLOATS.issuperset(map(type, ended))):
        return None
    if not _BYTES.issuperset(map(type, results)):
        return None
    own = () if results.count(results[0]) == many else results[1:]
    return AlikeEnds(rows[0], task_ids[1:], begun[1:], ended[1:], own)


class ResultRow(NamedTuple):
    """How a task ended, as its client learns it. `result` and `text` as in EndedRow."""

    task_id: TaskId
    attempt: Attempt
    outcome: str
    evidence: str
    exit_status: int | None
    text: str
    result: Sized


class TaskRow(NamedTuple):
    """All that a listing shows of a task; the fields of `quiesce.TaskInfo`, in its order, without the fence."""

    id: TaskId
    attempt: Attempt
    kind: str
    name: str
    runtime: str
    tenant_id: str | None
    timeline_id: str | None
    state: str
    stopping: bool
    lingering: bool
    outcome: str | None
    evidence: str | None
    exit_status: int | None
    reason: str
    created_at: float | None
    started_at: float | None
    ended_at: float | None
    last_check_at: float | None
    progress: tuple[float, float | None, str] | None
    host: str
    worker_pid: int | None
    waiting_for: str


class StoppedRow(NamedTuple):
    """One row of a report; the fields of `quiesce.StoppedTask`, in its order."""

    id: TaskId
    attempt: Attempt
    kind: str
    name: str
    runtime: str
    tenant_id: str | None
    timeline_id: str | None
    outcome: str | None
    evidence: str | None
    exit_status: int | None
    requested_at: float | None
    delivered_at: float | None
    observed_at: float | None
    stopped_at: float | None
    waiting_for: str


class WorkerRow(NamedTuple):
    """One worker; the fields of `quiesce.WorkerInfo`, in its order."""

    runtime: str
    host: str
    pid: int
    supervisor_pid: int
    incarnation: int
    state: str
    tasks: list[int]
    cpu_seconds: float
    memory_bytes: int


class ClosedRow(NamedTuple):
    """One closed scope: its four fields. `holder` is "stop", "block", "kept" or "timed-out"; `waiting_for`: what
    has to end before it opens, in words.
    """

    kind: str | None
    tenant_id: str | None
    timeline_id: str | None
    runtime: str | None
    holder: str
    reason: str
    since: float
    waiting_for: str = ""


class StopRow(NamedTuple):
    """One stop in progress: how many tasks it still waits for, and the first of them."""

    stop_id: int
    scope: str
    reason: str
    requested_at: float
    remaining: int
    tasks: list[TaskRow]


class EndedStopRow(NamedTuple):
    """One ended stop; the fields of `quiesce.EndedStop`. `task_id`: it was of that task alone, which has the
    labels that stand where else those of the scope do.
    """

    id: int
    kind: str | None
    tenant_id: str | None
    timeline_id: str | None
    runtime: str | None
    task_id: int | None
    reason: str
    requested_at: float
    completed_at: float
    timed_out: bool
    outcomes: list[tuple[str, int]]
    evidence: list[tuple[str, int]]
    remaining: int
    keep_closed: bool
    by: str
