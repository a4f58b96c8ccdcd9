"""What the registry knows of each thing. Plain slotted records, changed by `apply` alone.

Telemetry (progress, checks, usage) is the exception: it is never decided on, so it is written directly.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from quiesce.registry.answers import Answers
from quiesce.registry.ids import (
    AssignNumber,
    Attempt,
    Incarnation,
    RequestNumber,
    SessionId,
    StopId,
    TaskId,
)
from quiesce.registry.rows import ResultRow, SpawnRow, StoppedRow
from quiesce.registry.scope import Scope
from quiesce.registry.serials import Serials
from quiesce.registry.states import State


class Ask:
    """The request to stop that a task is under."""

    __slots__ = (
        "answered",
        "at",
        "delivered_at",
        "extended",
        "force_at",
        "forced",
        "heard",
        "killed",
        "observed_at",
        "reason",
        "stopped",
        "timed_out",
    )

    def __init__(self, at: float, reason: str, force_at: float | None = None) -> None:
        self.at = at
        self.reason = reason
        #: When its grace is over; None: never.
        self.force_at = force_at
        #: It ran longer than its own timeout, and will have failed.
        self.timed_out = False
        #: A stop has waited for the task since; it may have given up.
        self.stopped = False
        self.delivered_at: float | None = None
        self.observed_at: float | None = None
        #: How often it has been forced, counted up to `forcing.KILL_STEP + 1`. Like the next three it is
        #: volatile: kept beside the timers, not in facts.
        self.forced = 0
        #: Its worker has answered since it was last forced.
        self.answered = True
        #: Its worker has been silent since this tick, at most: when it was asked, last answered, was reached anew,
        #: or was forced after it had answered all.
        self.heard = 0.0
        #: Its process has been sent a kill because of it.
        self.killed = False
        #: Seconds of grace that the task has asked for beyond its own.
        self.extended = 0.0


#: Of nearly all tasks; never written to.
_NONE_PARKED: Final[dict[tuple[SessionId, int], SpawnRow]] = {}
#: Of all tasks at first. (A type of ids is a call, and a member of an enumeration a look into it.)
_FIRST: Final = Attempt(1)
_QUEUED: Final = State.QUEUED
_NOBODY: Final = Incarnation(0)
_NOT_ASSIGNED: Final = AssignNumber(0)


class Task:
    """One live task."""

    __slots__ = (
        "ask",
        "assign_number",
        "attempt",
        "created_at",
        "id",
        "last_check_at",
        "lingering",
        "parked",
        "progress",
        "restarts",
        "retries",
        "spawn",
        "started_at",
        "state",
        "tenant_id",
        "timeline_id",
        "waits_on",
        "watchers",
        "worker",
    )

    def __init__(self, task_id: TaskId, spawn: SpawnRow, created_at: float) -> None:
        self.id = task_id
        #: What was asked for; tenant and timeline may have changed since, see below.
        self.spawn = spawn
        self.tenant_id = spawn.tenant_id
        self.timeline_id = spawn.timeline_id
        self.attempt = _FIRST
        self.retries = spawn.retries
        self.state = _QUEUED
        self.created_at = created_at
        self.started_at: float | None = None
        #: The worker that holds it, 0 while QUEUED.
        self.worker = _NOBODY
        self.assign_number = _NOT_ASSIGNED
        #: None, or the request to stop that it is under: the mark `stopping`.
        self.ask: Ask | None = None
        self.lingering = ""
        #: The sessions that get its result, each once; those that are gone by then get nothing.
        self.watchers: tuple[SessionId, ...] = ()
        #: Spawns with its unique key that came while it was stopping, in their order, by session and number.
        #: None of a session that is gone, none that lies in a closed scope. Changed by `Parked` alone.
        self.parked: dict[tuple[SessionId, int], SpawnRow] = _NONE_PARKED
        #: When it was restarted by its policy, lately; volatile, what is decided by it is a fact.
        self.restarts: tuple[float, ...] = ()
        self.last_check_at: float | None = None
        self.progress: tuple[float, float | None, str] | None = None
        #: The tasks whose end its attempt waits for, as its worker last said; some may have ended since.
        self.waits_on: tuple[TaskId, ...] = ()

    @property
    def unique(self) -> tuple[str, str | None, str | None, str] | None:
        """The name under which it is the only live task, as it was spawned."""
        spawn = self.spawn
        if spawn.unique_key is None:
            return None
        return (spawn.kind, spawn.tenant_id, spawn.timeline_id, spawn.unique_key)

    def park(self, session: SessionId, row: SpawnRow) -> None:
        """This spawn waits for its end."""
        if not self.parked:
            self.parked = {}
        self.parked[session, row.number] = row

    def unpark(self, session: SessionId, number: int) -> SpawnRow:
        """That one does so no longer."""
        return self.parked.pop((session, number))


class Worker:
    """One registered worker process."""

    __slots__ = (
        "arrived",
        "attached",
        "cpu_seconds",
        "exiting",
        "host",
        "incarnation",
        "last_assign",
        "memory_bytes",
        "orphans",
        "pace",
        "pid",
        "quick",
        "runtime",
        "serial",
        "slots",
        "status",
        "supervisor",
        "tasks",
    )

    def __init__(
        self,
        incarnation: Incarnation,
        supervisor: bytes,
        serial: int,
        runtime: str,
        pid: int,
        host: str,
        slots: int,
    ) -> None:
        self.incarnation = incarnation
        self.supervisor = supervisor
        self.serial = serial
        self.runtime = runtime
        self.pid = pid
        self.host = host
        self.slots = slots
        #: It can be reached on the data endpoint. Volatile, like the next two: a fact says that it could
        #: be reached once, none that it can't any more.
        self.attached = False
        #: The last assignment that had arrived there when it last said hello.
        self.arrived = 0
        #: It has been told to exit: gets no more tasks.
        self.exiting = False
        #: Seconds that its tasks lately took, at least; and the functions whose last call was short, as they were
        #: spawned. Volatile; see `scheduling.room`.
        self.pace = 1.0
        self.quick: tuple[bytes, ...] = ()
        #: None while it lives; its exit status once its supervisor has reaped it.
        self.status: int | None = None
        #: All and only the live tasks that it holds, ASSIGNED or RUNNING.
        self.tasks: dict[TaskId, None] = {}
        self.last_assign = AssignNumber(0)
        #: After its death: tasks that had ended, by the shared table, and whose Ended may still arrive.
        self.orphans: dict[TaskId, str] = {}
        self.cpu_seconds = 0.0
        self.memory_bytes = 0


class Supervisor:
    """One registered supervisor process."""

    __slots__ = (
        "armed",
        "bound",
        "cpu_seconds",
        "dead_serials",
        "disowned",
        "ended_cpu",
        "exiting",
        "host",
        "id",
        "incarnation",
        "memory_bytes",
        "pid",
        "processes",
        "run",
        "runtime",
        "silent_since",
        "slots",
        "workers",
    )

    def __init__(
        self,
        supervisor: bytes,
        incarnation: Incarnation,
        runtime: str,
        pid: int,
        host: str,
        processes: int,
        slots: int,
        run: str,
        bound: float,
    ) -> None:
        self.id = supervisor
        self.incarnation = incarnation
        self.runtime = runtime
        self.pid = pid
        self.host = host
        self.processes = processes
        self.slots = slots
        #: The `quiesce up` that started it; "" if none did.
        self.run = run
        #: The kernel kills it when its lease is over. Until then its workers get no task.
        self.armed = False
        #: The longest lease bound of all brokers that it may have a lease of: a timer never moves back.
        self.bound = bound
        #: None once it has said hello in this epoch; else the tick at which the first epoch began in which it
        #: has not, on the present boot: all its leases were granted before.
        self.silent_since: float | None = None
        #: It has been told to exit. Volatile, like the next.
        self.exiting = False
        #: Its workers may have been given tasks that the journal has lost: it is not taken back, and ends.
        self.disowned = False
        #: serial -> incarnation of its living registered workers.
        self.workers: dict[int, Incarnation] = {}
        #: Serials whose exit was reported: a hello that comes later is refused.
        self.dead_serials = Serials()
        self.cpu_seconds = 0.0
        self.ended_cpu = 0.0
        self.memory_bytes = 0


class Session:
    """One client session."""

    __slots__ = (
        "alone",
        "answers",
        "blocks",
        "forgotten",
        "host",
        "id",
        "last_heard",
        "parked",
        "pid",
        "reopened",
        "reports",
        "requests",
        "results",
        "spawned",
        "untold",
        "worker",
    )

    def __init__(self, session: SessionId, pid: int, host: str, worker: int) -> None:
        self.id = session
        #: What its tasks have as their watchers, as long as it alone watches them: one for all.
        self.alone = (session,)
        self.pid = pid
        self.host = host
        self.worker = worker
        #: All spawns up to this number have arrived.
        self.spawned = 0
        #: Answers that the client may not have yet.
        self.answers = Answers()
        #: All and only its spawns in a `Task.parked`: spawn number -> that task.
        self.parked: dict[int, TaskId] = {}
        #: Results that the client has not yet taken. Those of tasks that ended together and alike are one row, that
        #: of any of them.
        self.results: dict[TaskId, ResultRow] = {}
        #: Those that are still to be sent again, in slices; some may have been taken since. Volatile.
        self.untold: list[TaskId] = []
        #: Its open stops, by request number: a request that comes again is recognised.
        self.requests: dict[RequestNumber, StopId] = {}
        #: Its stops whose scope stays closed for a `stopped()` block.
        self.blocks: set[StopId] = set()
        #: Its ended stops, the last few, oldest first, by request number, for a request that comes again.
        self.reports: dict[RequestNumber, StopId] = {}
        #: No report of a request above this number has been dropped.
        self.forgotten = RequestNumber(0)
        #: The last of its requests to reopen a scope that was done: they come in their order, and perhaps again.
        self.reopened = 0
        #: Tick of the last sign of life. Volatile.
        self.last_heard = 0.0


class Stop:
    """One shutdown_tasks, open or ended with its report still wanted."""

    __slots__ = (
        "asked_by",
        "at",
        "by",
        "caller",
        "closes",
        "collateral",
        "completed_at",
        "cycle_told",
        "done",
        "ends",
        "grace",
        "held",
        "hold",
        "id",
        "keep_closed",
        "last_spawn",
        "left",
        "open",
        "reason",
        "request",
        "rows",
        "scope",
        "session",
        "task_id",
        "timed_out",
        "timeout",
    )

    def __init__(
        self,
        stop_id: StopId,
        *,
        session: SessionId,
        request: RequestNumber,
        scope: Scope,
        task_id: TaskId | None,
        grace: float | None,
        timeout: float | None,
        keep_closed: bool,
        hold: bool,
        reason: str,
        last_spawn: int,
        caller: StoppedRow | None,
        held: Iterable[TaskId],
        at: float,
    ) -> None:
        self.id = stop_id
        self.session = session
        self.request = request
        self.scope = scope
        self.task_id = task_id
        self.grace = grace
        self.timeout = timeout
        self.keep_closed = keep_closed
        self.hold = hold
        self.reason = reason
        self.last_spawn = last_spawn
        self.caller = caller
        #: While open: all and only the tasks without evidence of their end that it waits for and workers hold.
        #: (The queued ones are in `State.marked`.) Then empty.
        self.held: set[TaskId] = set(held)
        #: What remained when it timed out.
        self.left: list[StoppedRow] = []
        self.rows: list[StoppedRow] = []
        #: How many of them have which outcome and evidence.
        self.ends: Counter[tuple[str, str]] = Counter()
        self.collateral: list[StoppedRow] = []
        self.at = at
        self.open = True
        self.timed_out = False
        self.completed_at: float | None = None
        self.closes = task_id is None
        #: Who asked for it, in words that outlive the session.
        self.by = ""
        #: The attempt inside which the call was made, if one was. Volatile, like the next.
        self.asked_by: tuple[TaskId, Attempt] | None = None
        #: That a cycle of waits holds it up has been said.
        self.cycle_told = False

    def report(self, rows: list[StoppedRow], outcome: str, evidence: str) -> None:
        """These have ended, all like that; those that it waited for, it does no more."""
        self.held.difference_update([row.id for row in rows])
        self.rows += rows
        self.ends[outcome, evidence] += len(rows)


class Closure:
    """One stop's reason why a scope is closed."""

    __slots__ = ("caller", "holder", "keep", "left", "reason", "scope", "since", "system")

    def __init__(
        self,
        scope: Scope,
        reason: str,
        since: float,
        *,
        keep: bool,
        caller: TaskId | None,
        system: bool = False,
    ) -> None:
        self.scope = scope
        #: "stop", "block", "kept" or "timed-out".
        self.holder = "stop"
        self.reason = reason
        self.since = since
        #: keep_closed was asked for: when it holds for nothing else, it is kept.
        self.keep = keep
        #: The task that made the call, if one did: it is not asked to stop because of it.
        self.caller = caller
        #: It belongs to the stop of the whole system, and is over with the run that is stopped.
        self.system = system
        #: What remained when the stop timed out; some of it may have ended since.
        self.left: tuple[TaskId, ...] = ()


class Blob:
    """Stands in, in frozen states, for a payload of so many bytes. (Machines never look inside payloads.)"""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def stopped_row(
    task: Task,
    outcome: str | None = None,
    evidence: str | None = None,
    exit_status: int | None = None,
    stopped_at: float | None = None,
) -> StoppedRow:
    """A task as a row of a report."""
    ask = task.ask
    requested = delivered = observed = None
    if ask is not None:
        requested, delivered, observed = ask.at, ask.delivered_at, ask.observed_at
    return StoppedRow(
        task.id,
        task.attempt,
        task.spawn.kind,
        task.spawn.name,
        task.spawn.runtime,
        task.tenant_id,
        task.timeline_id,
        outcome,
        evidence,
        exit_status,
        requested,
        delivered,
        observed,
        stopped_at,
        "",
    )
