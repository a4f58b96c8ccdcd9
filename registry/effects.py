"""What the broker must do: the outputs of `Registry.handle`, most of them messages.

`HASTY` effects do not wait for the journal: a stalled disk must not hold up a request to stop.
All others leave only when the facts of their turn are committed; `BINDING` ones when these are on the disk.
"""

from typing import Final, NamedTuple

from quiesce.registry.ids import Incarnation, RequestNumber, SessionId, StopId, TaskId
from quiesce.registry.rows import Alike, AssignRow, ResultRow, SpawnAnswer, StoppedRow


class WelcomeSession(NamedTuple):
    session: SessionId
    known: bool


class WantHello(NamedTuple):
    """A session's spawns have a gap: it must say hello and send again what is unanswered."""

    session: SessionId


class AnswerSpawns(NamedTuple):
    session: SessionId
    rows: list[SpawnAnswer | Alike]


class SendResults(NamedTuple):
    session: SessionId
    rows: list[ResultRow | Alike]


class Report(NamedTuple):
    """The rows of a stop's report."""

    tasks: list[StoppedRow]
    caller: list[StoppedRow]
    collateral: list[StoppedRow]
    remaining: list[StoppedRow]


class AnswerStop(NamedTuple):
    session: SessionId
    request: RequestNumber
    stop_id: StopId
    timed_out: bool
    requested_at: float
    completed_at: float
    report: Report


class AnswerDone(NamedTuple):
    session: SessionId
    request: RequestNumber


class RefuseRequest(NamedTuple):
    session: SessionId
    request: RequestNumber
    error: str
    text: str


class WelcomeSupervisor(NamedTuple):
    """Its lease is granted, too."""

    supervisor: bytes
    incarnation: Incarnation
    sent_at: float
    lease: float


class GrantLease(NamedTuple):
    """The supervisor may live until `sent_at`, on its own clock, plus `lease` seconds."""

    supervisor: bytes
    sent_at: float
    lease: float


class WantSupervisor(NamedTuple):
    """A supervisor that is not registered in this epoch must say hello."""

    supervisor: bytes


class RefuseSupervisor(NamedTuple):
    """`grace`: seconds that its tasks get to stop."""

    supervisor: bytes
    text: str
    grace: float


class WelcomeWorker(NamedTuple):
    supervisor: bytes
    serial: int
    incarnation: Incarnation


class RefuseWorker(NamedTuple):
    supervisor: bytes
    serial: int
    text: str


class AssignTasks(NamedTuple):
    worker: Incarnation
    rows: list[AssignRow | Alike]


class TakeEnds(NamedTuple):
    """The worker may forget these ends: (task, attempt)."""

    worker: Incarnation
    rows: list[tuple[int, int]]


class TakeGivenBack(NamedTuple):
    """The worker may forget that it gave these back: (task, attempt, assign number)."""

    worker: Incarnation
    rows: list[tuple[int, int, int]]


class AskStops(NamedTuple):
    """(task, attempt, last assign number, reason)."""

    worker: Incarnation
    rows: list[tuple[int, int, int, str]]


class RaiseFlags(NamedTuple):
    """(serial, task, attempt)."""

    supervisor: bytes
    rows: list[tuple[int, int, int]]


class ForceTask(NamedTuple):
    worker: Incarnation
    task_id: int
    attempt: int


class KillWorker(NamedTuple):
    """`spared`: (task, attempt) of those there that have not begun, as far as the registry knows."""

    supervisor: bytes
    serial: int
    task_id: int
    attempt: int
    spared: list[tuple[int, int]]


class AnswerAssociate(NamedTuple):
    worker: Incarnation
    request: int
    error: str | None
    text: str


class TakeExit(NamedTuple):
    supervisor: bytes
    serial: int


class ExitWorker(NamedTuple):
    worker: Incarnation


class ExitSupervisor(NamedTuple):
    supervisor: bytes
    grace: float


class Log(NamedTuple):
    """`level` is a level name of `logging`."""

    level: str
    text: str


class StillWaiting(NamedTuple):
    """Say in the log where these tasks, which a stop waits for, are: their stacks."""

    stop_id: StopId
    task_ids: list[TaskId]


class Again(NamedTuple):
    """Give the registry `Continue(of)` in a later turn, after what waits in the inbox."""

    of: StopId | SessionId


class SystemStopped(NamedTuple):
    """All is over: the broker exits. `failed`: a task marked shutdown_process_on_error was the cause."""

    failed: bool


Effect = (
    WelcomeSession
    | WantHello
    | AnswerSpawns
    | SendResults
    | AnswerStop
    | AnswerDone
    | RefuseRequest
    | WelcomeSupervisor
    | GrantLease
    | WantSupervisor
    | RefuseSupervisor
    | WelcomeWorker
    | RefuseWorker
    | AssignTasks
    | TakeEnds
    | TakeGivenBack
    | AskStops
    | RaiseFlags
    | ForceTask
    | KillWorker
    | AnswerAssociate
    | TakeExit
    | ExitWorker
    | ExitSupervisor
    | Log
    | StillWaiting
    | Again
    | SystemStopped
)

#: Effects that leave at once, whatever the journal does.
HASTY: Final = frozenset(
    {AskStops, RaiseFlags, ForceTask, GrantLease, KillWorker, Log, StillWaiting, Again}
)

#: Effects that say that a stop has ended, or that a closure stands or is over: that must outlive the machine, too.
BINDING: Final = frozenset({AnswerStop, AnswerDone, SystemStopped})
