"""From what the broker sends to what users get: refusals and ends to exceptions, rows to values."""

from collections import deque
from itertools import chain, repeat
from typing import Any, Final

from quiesce import errors
from quiesce.errors import (
    QuiesceError,
    TaskCancelledError,
    TaskCrashedError,
    TaskFailedError,
    TaskLostError,
    TaskTimeoutError,
)
from quiesce.protocol import to_client
from quiesce.protocol.callables import unpack_exception, unpack_value
from quiesce.protocol.frames import payload_bytes
from quiesce.registry.ids import TaskId
from quiesce.registry.rows import TIMED_OUT, EndedStopRow, ResultRow, StoppedRow, TaskRow
from quiesce.registry.scope import Scope
from quiesce.registry.states import Evidence, Outcome, State
from quiesce.values import (
    BrokerInfo,
    ClosedScope,
    EndedStop,
    Event,
    Progress,
    ShutdownReport,
    StoppedTask,
    TaskInfo,
    TaskStacks,
    WorkerInfo,
)

#: As rows have it: a plain string, since to look a member of an enumeration up costs as much as to compare.
_COMPLETED: Final = str(Outcome.COMPLETED)
#: From so many rows on they are made into values column by column.
_MANY: Final = 64
#: So many at a time, which the processor's caches hold: each column goes over all of them.
_PART: Final = 256


def refusal(code: str, text: str) -> QuiesceError:
    """The error that a refusal names; a name that this version doesn't know becomes the base class."""
    found = getattr(errors, code, None)
    if isinstance(found, type) and issubclass(found, QuiesceError):
        return found(text)
    return QuiesceError(f"{code}: {text}")


def error_of(row: ResultRow, name: str) -> QuiesceError | None:
    """The exception that stands for this end of the task `name`; None if it completed."""
    if row.outcome == _COMPLETED and len(row.result):
        return None
    what = f"task {row.task_id} ({name})"
    if row.outcome == _COMPLETED:
        text = row.text or "it completed, but its process died before its result had left it"
        return TaskLostError(f"{what}: the result is lost: {text}")
    if row.outcome == Outcome.FAILED:
        if row.text.startswith(TIMED_OUT):
            return TaskTimeoutError(f"{what} timed out: {row.text.removeprefix(TIMED_OUT)}")
        error = TaskFailedError(f"{what} failed\n{row.text}".rstrip())
        error.__cause__ = _rebuilt(row)
        return error
    if row.outcome == Outcome.CRASHED:
        how = row.text or _status_words(row.exit_status)
        crash = TaskCrashedError(f"{what} crashed: {how}", row.exit_status)
        crash.__cause__ = _rebuilt(row)
        return crash
    if row.outcome == Outcome.CANCELLED:
        return TaskCancelledError(f"{what} was stopped: {row.text or _evidence_words(row)}")
    if row.outcome == Outcome.LOST:
        return TaskLostError(f"{what} is lost: {row.text or 'its host is out of reach'}")
    return QuiesceError(f"{what} ended as {row.outcome!r}, which this version doesn't know")


def rebuilt(result: Any, task_id: int, name: str) -> Any:
    """What a task returned, of its packed result, a Payload. QuiesceError if it can't be rebuilt here."""
    try:
        return unpack_value(payload_bytes(result))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # its own code, whatever that raises: none of it is of who asks
        raise QuiesceError(
            f"task {task_id} ({name}) completed, but its result can't be rebuilt here: {error!r}. "
            "Its classes must be importable in this process as well"
        ) from error


def _rebuilt(row: ResultRow) -> BaseException | None:
    result: Any = row.result
    if not len(result):
        return None
    try:
        return unpack_exception(payload_bytes(result))
    except KeyboardInterrupt:
        raise
    except BaseException:  # the traceback in the text says all there is to say
        return None


def _status_words(status: int | None) -> str:
    if status is None:
        return "an exception that ends processes escaped from it"
    if status < 0:
        return f"its process was killed by signal {-status}"
    return f"its process ended with exit status {status}"


def _evidence_words(row: ResultRow) -> str:
    if row.evidence == Evidence.NEVER_RAN:
        return "it had not begun"
    if row.evidence == Evidence.REAPED:
        return "its process was killed"
    return "it was asked to, and returned"


# --- rows to values ------------------------------------------------------------------------------


def task_info(row: TaskRow) -> TaskInfo:
    """As listings show it."""
    values = row._asdict()
    values["state"] = State(row.state)
    values["outcome"] = None if row.outcome is None else Outcome(row.outcome)
    values["evidence"] = None if row.evidence is None else Evidence(row.evidence)
    values["progress"] = None if row.progress is None else Progress(*row.progress)
    return TaskInfo(**values)


def stopped_task(row: StoppedRow) -> StoppedTask:
    """As reports show it."""
    values = row._asdict()
    values["outcome"] = None if row.outcome is None else Outcome(row.outcome)
    values["evidence"] = None if row.evidence is None else Evidence(row.evidence)
    return StoppedTask(**values)


def stopped_tasks(rows: list[StoppedRow]) -> tuple[StoppedTask, ...]:
    """The same for many: a microsecond for each, where the constructor of a frozen class takes four."""
    if len(rows) < _MANY:
        return tuple(map(stopped_task, rows))
    parts = (rows[start : start + _PART] for start in range(0, len(rows), _PART))
    return tuple(chain.from_iterable(map(_stopped_together, parts)))


def _stopped_together(rows: list[StoppedRow]) -> list[StoppedTask]:
    columns: dict[str, Any] = dict(zip(StoppedRow._fields, zip(*rows, strict=True), strict=True))
    for name, enum in (("outcome", Outcome), ("evidence", Evidence)):
        words = {word: None if word is None else enum(word) for word in set(columns[name])}
        columns[name] = map(words.__getitem__, columns[name])
    tasks = list(map(StoppedTask.__new__, repeat(StoppedTask, len(rows))))
    for name, column in columns.items():
        deque(map(getattr(StoppedTask, name).__set__, tasks, column), maxlen=0)
    return tasks


def shutdown_report(message: to_client.StopReport, scope: str, reason: str) -> ShutdownReport:
    """The certificate of a stop of `scope`."""

    return ShutdownReport(
        tasks=stopped_tasks(message.tasks),
        caller=stopped_tasks(message.caller),
        collateral=stopped_tasks(message.collateral),
        remaining=stopped_tasks(message.remaining),
        scope=scope,
        reason=reason,
        requested_at=message.requested_at,
        completed_at=message.completed_at,
    )


def task_list(message: to_client.Tasks) -> list[TaskInfo]:
    """The answer to ListTasks."""
    return [task_info(row) for row in message.rows]


def only_task(message: to_client.Tasks) -> TaskInfo:
    """The answer to GetTask."""
    return task_info(message.rows[0])


def worker_list(message: to_client.Workers) -> list[WorkerInfo]:
    """The answer to GetWorkers."""
    return [
        WorkerInfo(**{**row._asdict(), "tasks": tuple(TaskId(task) for task in row.tasks)})
        for row in message.rows
    ]


def broker_info(message: to_client.Broker) -> BrokerInfo:
    """The answer to GetBroker."""
    return BrokerInfo(
        pid=message.pid,
        epoch=message.epoch,
        address=message.address,
        version=message.version,
        state=message.state,
        durability=message.durability,
    )


def closed_list(message: to_client.Closed) -> list[ClosedScope]:
    """The answer to GetClosed."""
    return [
        ClosedScope(
            scope=scope_words(row.kind, row.tenant_id, row.timeline_id, row.runtime),
            holder=row.holder,
            reason=row.reason,
            since=row.since,
            waiting_for=row.waiting_for,
            kind=row.kind,
            tenant_id=row.tenant_id,
            timeline_id=row.timeline_id,
            runtime=row.runtime,
        )
        for row in message.rows
    ]


def history_list(message: to_client.History) -> list[EndedStop]:
    """The answer to GetHistory."""
    return [ended_stop(row) for row in message.rows]


def ended_stop(row: EndedStopRow) -> EndedStop:
    """As the history shows it."""
    labels = (row.kind, row.tenant_id, row.timeline_id, row.runtime)
    return EndedStop(
        id=row.id,
        scope=scope_words(*labels) if row.task_id is None else f"task {row.task_id}",
        reason=row.reason,
        requested_at=row.requested_at,
        completed_at=row.completed_at,
        timed_out=row.timed_out,
        outcomes={Outcome(name): count for name, count in row.outcomes},
        evidence={Evidence(name): count for name, count in row.evidence},
        remaining=row.remaining,
        keep_closed=row.keep_closed,
        by=row.by,
    )


def stacks_list(message: to_client.Stacks) -> list[TaskStacks]:
    """The answer to GetStacks."""
    return [
        TaskStacks(
            id=TaskId(row.task_id),
            attempt=row.attempt,
            name=row.name,
            worker_pid=row.worker_pid,
            stacks=tuple(row.stacks),
        )
        for row in message.rows
    ]


def event(message: to_client.Event) -> list[Event]:
    """The event, after a "missed" one that counts those dropped before it."""
    found = []
    if message.missed:
        found.append(missed(message.missed, message.at))
    task_id = None if message.task_id is None else TaskId(message.task_id)
    found.append(Event(type=message.type, at=message.at, task_id=task_id, data=message.data))
    return found


def missed(count: int | None, at: float) -> Event:
    """So many events were dropped before this one; None: the broker was out of reach, and nobody has counted."""
    data: dict[str, Any] = {"count": count}
    if count is None:
        data["text"] = "the broker was out of reach: some events may be missing"
    return Event(type="missed", at=at, data=data)


def scope_words(*scope: str | None) -> str:
    """A scope in words, as `quiesce.registry.scope.Scope` says it."""
    return str(Scope(*scope))
