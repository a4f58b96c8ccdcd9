"""What the registry has decided: the only things that change its state, and what a journal holds.

Recovery is `apply` of all facts in their order. A fact says all that applying it needs; wall times only,
for a monotonic clock does not outlive its machine.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Final, NamedTuple

from quiesce.registry.rows import SpawnRow
from quiesce.registry.scope import Scope
from quiesce.registry.states import Evidence, Outcome


class EpochStarted(NamedTuple):
    """A broker started. `tick`: on CLOCK_BOOTTIME of the boot that `boot_id` names. `run`: see EpochBegan.

    `lease_bound`: that of the leases which it grants.
    """

    epoch: int
    at: float
    tick: float
    boot_id: str
    run: str
    lease_bound: float


class SupervisorRegistered(NamedTuple):
    supervisor: bytes
    incarnation: int
    runtime: str
    pid: int
    host: str
    processes: int
    slots: int
    run: str


class SupervisorReturned(NamedTuple):
    """It has said hello in this epoch, too."""

    supervisor: bytes


class SupervisorArmed(NamedTuple):
    """From now on the kernel kills it when its lease is over."""

    supervisor: bytes


class SupervisorGone(NamedTuple):
    supervisor: bytes


class WorkerRegistered(NamedTuple):
    incarnation: int
    supervisor: bytes
    serial: int
    runtime: str
    pid: int
    host: str
    slots: int


class WorkerReachable(NamedTuple):
    worker: int


class WorkerGone(NamedTuple):
    """Also said of a serial that never registered (`worker` 0): its hello, should it come, is refused.

    `orphans`: tasks that had ended there, by the shared table, as (task, outcome): their Ended may still arrive.
    """

    worker: int
    supervisor: bytes
    serial: int
    status: int
    orphans: list[tuple[int, str]]


class SessionOpened(NamedTuple):
    session: bytes
    pid: int
    host: str
    worker: int


class SessionClosed(NamedTuple):
    session: bytes


class AnswersForgotten(NamedTuple):
    session: bytes
    through: int


class TaskRegistered(NamedTuple):
    """A spawn became a task, QUEUED."""

    task_id: int
    session: bytes
    number: int
    at: float
    row: SpawnRow


class TasksRegistered(NamedTuple):
    """Spawns of one session that are alike became tasks, QUEUED, under consecutive ids. See `singly`.

    `arguments`: those of each, where they differ; else none, and all have those of the row.
    """

    first: int
    last: int
    session: bytes
    number: int
    at: float
    row: SpawnRow
    arguments: list[Sized]


class SpawnRefused(NamedTuple):
    session: bytes
    number: int
    error: str
    text: str


class SpawnJoined(NamedTuple):
    """A spawn whose unique key is held by a live task: it gets that task."""

    session: bytes
    number: int
    task_id: int


class SpawnParked(NamedTuple):
    """A spawn whose unique key is held by a task that is stopping: decided when that one has ended."""

    session: bytes
    holder: int
    row: SpawnRow


class TaskAssigned(NamedTuple):
    task_id: int
    worker: int
    assign_number: int


class TasksAssigned(NamedTuple):
    """Tasks of one tenant and kind, to one worker under consecutive numbers."""

    worker: int
    number: int
    task_ids: list[int]


class TaskBegan(NamedTuple):
    task_id: int
    at: float


class TaskRequeued(NamedTuple):
    """Back in the queue: never begun (same attempt), or for a new attempt with one retry fewer."""

    task_id: int
    attempt: int
    retries: int


class TaskAssociated(NamedTuple):
    task_id: int
    tenant_id: str | None
    timeline_id: str | None


class TaskAsked(NamedTuple):
    """The task is asked to stop; from now on `stopping`. `timed_out`: by its own timeout, not by a stop.

    `force_at`: when its grace is over; None: never.
    """

    task_id: int
    at: float
    reason: str
    force_at: float | None
    timed_out: bool = False


class ForceMoved(NamedTuple):
    """Another stop with a shorter grace, or the task's own wish, which has got it `extended` seconds in all."""

    task_id: int
    force_at: float | None
    extended: float


class StopJoined(NamedTuple):
    """A stop waits for this task too (it came into the closed scope by associate_with)."""

    stop_id: int
    task_id: int


class StopDelivered(NamedTuple):
    task_id: int
    at: float


class StopObserved(NamedTuple):
    task_id: int
    at: float


class TaskLingering(NamedTuple):
    task_id: int
    what: str


class TaskEnded(NamedTuple):
    """The end, with its evidence. `text` and `result` as in rows.EndedRow."""

    task_id: int
    outcome: str
    evidence: str
    exit_status: int | None
    started_at: float | None
    at: float
    text: str
    result: Sized


class TasksCompleted(NamedTuple):
    """Tasks of one worker returned. Nobody had asked them to stop, and no stop waits for one of them."""

    worker: int
    task_ids: list[int]
    started_at: list[float]
    at: list[float]
    results: list[Sized]


class TasksNeverRan(NamedTuple):
    """A slice of a stop: these queued tasks are asked to stop, and end unbegun. See `singly` for what that says of
    each.
    """

    task_ids: list[int]
    asked_at: float
    reason: str
    at: float
    text: str


class ResultsForgotten(NamedTuple):
    session: bytes
    task_ids: list[int]


class StopOpened(NamedTuple):
    """A stop begins: the scope is closed (unless `task_id`).

    `members`: what it waits for and workers hold. Beside these it waits for all queued tasks that match, so many
    as `queued` says; which they are follows from the state. (None, in older journals: `members` are all.)
    `session` is empty for the system's own stops.
    """

    stop_id: int
    session: bytes
    request: int
    scope: Scope
    task_id: int | None
    grace: float | None
    timeout: float | None
    keep_closed: bool
    hold: bool
    reason: str
    last_spawn: int
    caller: int | None
    members: list[int]
    at: float
    queued: int | None = None


class TaskCollateral(NamedTuple):
    """This task, outside of the scope, died in a process that the stop had killed."""

    stop_id: int
    task_id: int
    exit_status: int
    at: float


class StopEnded(NamedTuple):
    """The report is made. `timed_out`: not all have ended; the scope stays closed.

    `waiting`: what each task that is left waits for, in the order of their ids.
    """

    stop_id: int
    timed_out: bool
    at: float
    waiting: list[str]


class BlockReleased(NamedTuple):
    """The `stopped()` block of this stop is over. `kept`: nobody said so, so its scope stays closed."""

    stop_id: int
    kept: bool


class ScopesReopened(NamedTuple):
    """Kept and timed-out closures within the scope are gone. A stop that succeeds clears only timed-out ones.

    `session`, `request`: where somebody has asked for it.
    """

    scope: Scope
    timed_out_only: bool
    session: bytes = b""
    request: int = 0


class SystemStopping(NamedTuple):
    reason: str
    failed: bool
    fast: bool


Fact = (
    EpochStarted
    | SupervisorRegistered
    | SupervisorReturned
    | SupervisorArmed
    | SupervisorGone
    | WorkerRegistered
    | WorkerReachable
    | WorkerGone
    | SessionOpened
    | SessionClosed
    | AnswersForgotten
    | TaskRegistered
    | TasksRegistered
    | SpawnRefused
    | SpawnJoined
    | SpawnParked
    | TaskAssigned
    | TasksAssigned
    | TaskBegan
    | TaskRequeued
    | TaskAssociated
    | TaskAsked
    | ForceMoved
    | StopJoined
    | StopDelivered
    | StopObserved
    | TaskLingering
    | TaskEnded
    | TasksCompleted
    | TasksNeverRan
    | ResultsForgotten
    | StopOpened
    | TaskCollateral
    | StopEnded
    | BlockReleased
    | ScopesReopened
    | SystemStopping
)


def singly(happened: Iterable[Fact]) -> Iterator[Fact]:
    """The same, what is said of many tasks at once said of one after the other: for who follows single tasks."""
    for fact in happened:
        taken_apart = _APART.get(type(fact))
        if taken_apart is None:
            yield fact
        else:
            yield from taken_apart(fact)


def weight(fact: Fact) -> int:
    """How many facts of single tasks take as long to write and to replay."""
    if type(fact) not in _APART:
        return 1
    if isinstance(fact, TasksRegistered):
        return 1 + (fact.last - fact.first) // 4
    return 1 + len(fact.task_ids) // 4  # type: ignore[union-attr]  # narrowed by kind


def _registered(fact: TasksRegistered) -> Iterator[Fact]:
    for place, task_id in enumerate(range(fact.first, fact.last + 1)):
        row = fact.row
        if fact.arguments:
            row = row._replace(arguments=fact.arguments[place])
        yield TaskRegistered(task_id, fact.session, fact.number + place, fact.at, row)


def _assigned(fact: TasksAssigned) -> Iterator[Fact]:
    for number, task_id in enumerate(fact.task_ids, fact.number):
        yield TaskAssigned(task_id, fact.worker, number)


def _completed(fact: TasksCompleted) -> Iterator[Fact]:
    outcome, evidence = str(Outcome.COMPLETED), str(Evidence.RETURNED)
    rows = zip(fact.task_ids, fact.started_at, fact.at, fact.results, strict=True)
    for task_id, started_at, at, result in rows:
        yield TaskEnded(task_id, outcome, evidence, None, started_at, at, "", result)


def _never_ran(fact: TasksNeverRan) -> Iterator[Fact]:
    outcome, evidence = str(Outcome.CANCELLED), str(Evidence.NEVER_RAN)
    for task_id in fact.task_ids:
        yield TaskAsked(task_id, fact.asked_at, fact.reason, None)
        yield TaskEnded(task_id, outcome, evidence, None, None, fact.at, fact.text, b"")


_APART: Final[dict[type, Callable[[Any], Iterator[Fact]]]] = {
    TasksRegistered: _registered,
    TasksAssigned: _assigned,
    TasksCompleted: _completed,
    TasksNeverRan: _never_ran,
}
