"""What can happen to the registry: the inputs of `Registry.handle`.

Events are said by sessions (clients), workers and supervisors, by the broker itself, and by time.
"""

from collections.abc import Sequence
from typing import NamedTuple

from quiesce.registry.ids import Incarnation, RequestNumber, SessionId, StopId, TaskId
from quiesce.registry.rows import AlikeEnds, AlikeSpawns, EndedRow, SpawnRow
from quiesce.registry.scope import Scope

SupervisorId = bytes


class Instant(NamedTuple):
    """A moment: `tick` on a clock that never jumps (seconds), `wall` in seconds since the epoch."""

    tick: float
    wall: float


# --- sessions -------------------------------------------------------------------------------------


class SessionHello(NamedTuple):
    """A client is there, for the first time or again. `resumed`: it was welcomed in this session before."""

    session: SessionId
    pid: int
    host: str
    worker: int
    resumed: bool = False


class SessionAttached(NamedTuple):
    """A client can be reached on the data endpoint, perhaps again: what it has not taken is sent again."""

    session: SessionId


class SessionHeard(NamedTuple):
    """A client is alive and has all spawn answers up to `answered_through`."""

    session: SessionId
    answered_through: int


class SessionGoodbye(NamedTuple):
    """A client leaves."""

    session: SessionId


class SpawnsAsked(NamedTuple):
    """Spawns of one session, numbers consecutive. `atomic`: all or none. `answered_through` as in SessionHeard."""

    session: SessionId
    rows: Sequence[SpawnRow | AlikeSpawns]
    atomic: bool
    answered_through: int = 0


class ResultsTaken(NamedTuple):
    """A client has these results."""

    session: SessionId
    task_ids: list[int]


class StopAsked(NamedTuple):
    """shutdown_tasks; the fields of `from_client.Stop`."""

    session: SessionId
    request: RequestNumber
    scope: Scope
    task_id: TaskId | None
    grace: float | None
    timeout: float | None
    keep_closed: bool
    hold: bool
    reason: str
    last_spawn: int
    caller: tuple[int, int] | None


class ReleaseAsked(NamedTuple):
    """A `stopped()` block has ended."""

    session: SessionId
    request: RequestNumber
    stop_id: StopId


class ReopenAsked(NamedTuple):
    """Forget kept and timed-out closures within the scope."""

    session: SessionId
    request: RequestNumber
    scope: Scope


# --- pools ----------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """What the shared table of a dead worker says of one attempt; see `from_supervisor.AttemptPhase`."""

    task_id: int
    attempt: int
    phase: str


class ExitRow(NamedTuple):
    """One reaped worker; see `from_supervisor.WorkerExitedRow`."""

    serial: int
    pid: int
    status: int
    table_known: bool
    attempts: list[Phase]


class Predecessor(NamedTuple):
    """A supervisor that was reaped with its workers. `fenced`: the timer of its own lease killed it."""

    supervisor: SupervisorId
    pid: int
    status: int
    fenced: bool
    workers: list[ExitRow]


class SupervisorHello(NamedTuple):
    """A supervisor is there, for the first time (`incarnation` 0) or again; it asks for its lease, too.

    `run`: the `quiesce up` that started it. `sent_at`, `armed`: see LeaseRenewed.
    """

    supervisor: SupervisorId
    runtime: str
    pid: int
    host: str
    processes: int
    slots: int
    incarnation: int
    run: str
    sent_at: float
    armed: bool
    predecessor: Predecessor | None


class LeaseRenewed(NamedTuple):
    """A supervisor asks for its lease anew. `sent_at` is its own and goes back to it; `armed`: a timer of the
    kernel kills it when its lease is over.
    """

    supervisor: SupervisorId
    sent_at: float
    armed: bool


class SupervisorGoodbye(NamedTuple):
    """A supervisor has reaped all its workers and exits."""

    supervisor: SupervisorId


class WorkerExited(NamedTuple):
    """A worker has been reaped, with its descendants."""

    supervisor: SupervisorId
    row: ExitRow


class WorkerHello(NamedTuple):
    """A worker is there; the fields of `from_worker.Hello`."""

    supervisor: SupervisorId
    serial: int
    runtime: str
    pid: int
    host: str
    slots: int
    incarnation: int
    last_assign: int
    begun: list[tuple[int, int]]
    received: list[tuple[int, int]]


class WorkerAttached(NamedTuple):
    """A worker can be reached on the data endpoint."""

    worker: Incarnation


class TasksBegun(NamedTuple):
    """(task, attempt, seconds ago)."""

    worker: Incarnation
    rows: list[tuple[int, int, float]]


class TasksGivenBack(NamedTuple):
    """(task, attempt, assign number): handed to this worker under that number, and never to begin under it."""

    worker: Incarnation
    rows: list[tuple[int, int, int]]


class TasksEnded(NamedTuple):
    """Attempts have ended, with all that they began."""

    worker: Incarnation
    rows: Sequence[EndedRow | AlikeEnds]


class StopsSeen(NamedTuple):
    """(task, attempt, state, delivered_age, observed_age); see `from_worker.StopSeenRow`."""

    worker: Incarnation
    rows: list[tuple[int, int, str, float, float | None]]


class TaskLingers(NamedTuple):
    """The body has ended, but `what` that it began has not."""

    worker: Incarnation
    task_id: int
    attempt: int
    what: str


class AssociateAsked(NamedTuple):
    """associate_with."""

    worker: Incarnation
    request: int
    task_id: int
    attempt: int
    tenant_id: str | None
    timeline_id: str | None


class GraceAsked(NamedTuple):
    """extend_grace: so many `seconds` in all. The same may come again."""

    worker: Incarnation
    task_id: int
    attempt: int
    seconds: float


class ProgressSaid(NamedTuple):
    """(task, attempt, done, total, note). Telemetry: makes no fact."""

    worker: Incarnation
    rows: list[tuple[int, int, float, float | None, str]]


class WaitsSaid(NamedTuple):
    """(task, attempt, other): what each of these attempts waits for; see `from_worker.Waiting`. Telemetry."""

    worker: Incarnation
    rows: list[tuple[int, int, int]]


class UsageSaid(NamedTuple):
    """What a pool uses: (serial, pid, cpu seconds, bytes, [(task, attempt, check age)]). Telemetry."""

    supervisor: SupervisorId
    cpu_seconds: float
    memory_bytes: int
    ended_cpu: float
    workers: list[tuple[int, int, float, int, list[tuple[int, int, float | None]]]]


# --- the broker and time --------------------------------------------------------------------------


class EpochBegan(NamedTuple):
    """The broker starts; the first event of its life, said to what was recovered of the lives before.

    Args:
        epoch: higher than any before.
        boot_id: names this boot of the broker's machine.
        run: names the `quiesce up` that started the broker; another one than before: a stop of the whole
            system that was going on is over.
        swept: runs that are over: of what they started, nothing lives any more.
        complete: nothing that was ever acknowledged can be missing from what was recovered.
    """

    epoch: int
    boot_id: str = ""
    run: str = ""
    swept: tuple[str, ...] = ()
    complete: bool = True


class SystemStopAsked(NamedTuple):
    """Stop everything in order; said again: faster."""

    reason: str


class RoomSaid(NamedTuple):
    """Whether the journal has room for more tasks. Makes no fact."""

    room: bool


class Continue(NamedTuple):
    """The driver hands back an `Again` effect: the next slice of a long stop, or of the results of a session."""

    of: StopId | SessionId


class Tick(NamedTuple):
    """Time has passed; said no later than `Registry.next_deadline()`."""


Event = (
    SessionHello
    | SessionAttached
    | SessionHeard
    | SessionGoodbye
    | SpawnsAsked
    | ResultsTaken
    | StopAsked
    | ReleaseAsked
    | ReopenAsked
    | SupervisorHello
    | LeaseRenewed
    | SupervisorGoodbye
    | WorkerExited
    | WorkerHello
    | WorkerAttached
    | TasksBegun
    | TasksGivenBack
    | TasksEnded
    | StopsSeen
    | TaskLingers
    | AssociateAsked
    | GraceAsked
    | ProgressSaid
    | WaitsSaid
    | UsageSaid
    | EpochBegan
    | SystemStopAsked
    | RoomSaid
    | Continue
    | Tick
)
