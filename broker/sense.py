"""What a message may say beyond the types of its fields: numbers that are possible, words that are known.

The codec has seen to it that an integer is one. Here it is made sure that a pid is no 2**64 and an age not the
end of time: what the registry computes from them must fit what it is sent and journalled as. The bounds are
far from anything that an honest peer says, so who is beyond them is not corrected but dropped. Texts are cut
instead, or refused with words, for somebody may mean them.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from quiesce.protocol import from_client, from_supervisor, from_worker
from quiesce.protocol.sizes import TOGETHER_LIMIT
from quiesce.registry.limits import LABEL_LIMIT
from quiesce.registry.rows import AlikeEnds, AlikeSpawns, EndedRow, SpawnRow
from quiesce.registry.states import Evidence, Outcome

#: Ids, numbers and counts stay below this, and so do sums of them below what travels.
MOST: Final = 2**53
#: A process id; the exit statuses that there are.
MOST_PID: Final = 2**32
MOST_STATUS: Final = 2**31
#: Tasks at once in one process, processes of one pool.
MOST_SLOTS: Final = 2**20
#: Seconds: what is older began before there was a clock.
MOST_SECONDS: Final = 1e10
RESTARTS: Final = frozenset({"never", "on-failure", "always"})
PHASES: Final = frozenset({"begun", "completed", "failed", "cancelled", "crashed"})
#: What a worker can know of the end of its own attempts.
_OUTCOMES: Final = frozenset(map(str, Outcome)) - {str(Outcome.LOST)}
_EVIDENCE: Final = frozenset({str(Evidence.RETURNED), str(Evidence.NEVER_RAN)})

#: Fields that hold the same in whatever message they stand.
_COUNTS: Final = frozenset(
    [
        "request",
        "stop_id",
        "answered_through",
        "last_spawn",
        "incarnation",
        "epoch",
        "last_assign",
        "serial",
        "worker",
    ]
)


class SenseError(Exception):
    """The message makes no sense; the text says why."""


def check(message: Any) -> None:
    """Raise SenseError if what this message says is impossible."""
    look = _LOOKS.get(type(message))
    if look is not None:
        look(message)


def too_long(message: Any) -> str | None:
    """Which label of a client's request is too long, in words; None if none is."""
    labels = [("reason", getattr(message, "reason", None))]
    names = ("kind", "tenant_id", "timeline_id", "runtime")
    labels += zip(names, getattr(message, "scope", ()), strict=False)
    for name, label in labels:
        if label is not None and len(label) > LABEL_LIMIT:
            return f"{name} has {len(label)} characters; the limit is {LABEL_LIMIT}"
    return None


def _fail(what: str, value: object) -> SenseError:
    return SenseError(f"{what} can't be {value!r:.100}")


def _count(what: str, number: int, most: int = MOST) -> None:
    if not 0 <= number < most:
        raise _fail(what, number)


def _age(what: str, seconds: float | None) -> None:
    if seconds is not None and not -MOST_SECONDS < seconds < MOST_SECONDS:
        raise _fail(what, seconds)


def _attempt(task_id: int, attempt: int) -> None:
    if not (0 <= task_id < MOST and 0 <= attempt < MOST):
        raise _fail("an attempt", (task_id, attempt))


def _counts_of(message: Any) -> None:
    """The fields that are numbers of something."""
    for name in _COUNTS.intersection(message._fields):
        number = getattr(message, name)
        if number is not None and not 0 <= number < MOST:
            raise _fail(name, number)


# --- clients --------------------------------------------------------------------------------------


def _client_hello(hello: from_client.Hello) -> None:
    _counts_of(hello)
    _count("pid", hello.pid, MOST_PID)
    _host(hello.host)


def _host(host: str) -> None:
    if len(host) > LABEL_LIMIT:
        raise SenseError(f"a host's name of {len(host)} characters")


def _spawn(message: from_client.Spawn) -> None:
    _count("answered_through", message.answered_through)
    rows: Iterable[SpawnRow | AlikeSpawns] = message.rows
    for row in rows:
        _spawn_row(row.row if isinstance(row, AlikeSpawns) else row)


def _spawn_many(message: from_client.SpawnMany) -> None:
    _count("answered_through", message.answered_through)
    _count("the number of spawns in a message", len(message.arguments), TOGETHER_LIMIT + 1)
    _spawn_row(message.common)


def _spawn_row(row: SpawnRow) -> None:
    if not 1 <= row.number < MOST:
        raise _fail("the number of a spawn", row.number)
    if not 0 <= row.retries < 2**31:
        raise _fail("retries", row.retries)
    if row.restart not in RESTARTS:
        raise _fail("restart", row.restart)
    if row.timeout is not None and row.timeout < 0:
        raise _fail("the timeout of a spawn", row.timeout)
    if row.parent is not None:
        _attempt(*row.parent)


def _stop(message: from_client.Stop) -> None:
    _counts_of(message)
    _count("the number of a request", message.request - 1)
    if message.caller is not None:
        _attempt(*message.caller)


# --- workers --------------------------------------------------------------------------------------


def _worker_hello(hello: from_worker.Hello) -> None:
    _counts_of(hello)
    _count("pid", hello.pid, MOST_PID)
    _count("slots", hello.slots - 1, MOST_SLOTS)
    _host(hello.host)
    for each in (*hello.begun, *hello.received):
        _attempt(*each)


def _begun(message: from_worker.Begun) -> None:
    for task_id, attempt, age in message.rows:
        _attempt(task_id, attempt)
        _age("an age", age)


def _ended(message: from_worker.Ended) -> None:
    rows: Iterable[EndedRow | AlikeEnds] = message.rows
    for row in rows:
        if isinstance(row, AlikeEnds):
            _alike_ends(row)
            continue
        task_id, attempt, outcome, evidence, begun, ended, delivered, observed, _, _ = row
        if not (
            0 <= task_id < MOST
            and 0 <= attempt < MOST
            and outcome in _OUTCOMES
            and evidence in _EVIDENCE
            and -MOST_SECONDS < ended < MOST_SECONDS
            and (begun is None or -MOST_SECONDS < begun < MOST_SECONDS)
            and delivered is observed is None
        ):
            _ended_row(row)  # most are not even asked


def _alike_ends(ends: AlikeEnds) -> None:
    _ended_row(ends.row)
    for task_id in (min(ends.task_ids), max(ends.task_ids)):
        _attempt(task_id, ends.row.attempt)
    for ages in (ends.begun_ages, ends.ended_ages):
        _age("an age", min(ages))
        _age("an age", max(ages))


def _ended_row(row: EndedRow) -> None:
    _attempt(row.task_id, row.attempt)
    if row.outcome not in _OUTCOMES:
        raise _fail("an outcome", row.outcome)
    if row.evidence not in _EVIDENCE:
        raise _fail("evidence", row.evidence)
    for age in (row.begun_age, row.ended_age, row.delivered_age, row.observed_age):
        _age("an age", age)


def _given_back(message: from_worker.GivenBack) -> None:
    for task_id, attempt, number in message.rows:
        _attempt(task_id, attempt)
        _count("the number of an assignment", number)


def _stop_seen(message: from_worker.StopSeen) -> None:
    for row in message.rows:
        _attempt(row.task_id, row.attempt)
        _age("an age", row.delivered_age)
        _age("an age", row.observed_age)


def _of_an_attempt(message: Any) -> None:
    _counts_of(message)
    _attempt(message.task_id, message.attempt)


def _progress(message: from_worker.Progress) -> None:
    for task_id, attempt, *_ in message.rows:
        _attempt(task_id, attempt)


def _waiting(message: from_worker.Waiting) -> None:
    for task_id, attempt, other in message.rows:
        _attempt(task_id, attempt)
        _count("a task that is waited for", other)


# --- supervisors ----------------------------------------------------------------------------------


def _supervisor_hello(hello: from_supervisor.Hello) -> None:
    _counts_of(hello)
    _count("pid", hello.pid, MOST_PID)
    _count("processes", hello.processes, MOST_SLOTS)
    _count("slots", hello.slots, MOST_SLOTS)
    _host(hello.host)
    _host(hello.run)
    before = hello.predecessor
    if before is not None:
        _count("pid", before.pid, MOST_PID)
        _status(before.status)
        for row in before.workers:
            _exit_row(row)


def _worker_exited(message: from_supervisor.WorkerExited) -> None:
    _exit_row(message.row)


def _exit_row(row: from_supervisor.WorkerExitedRow) -> None:
    _counts_of(row)
    _count("pid", row.pid, MOST_PID)
    _status(row.status)
    for phase in row.attempts:
        _attempt(phase.task_id, phase.attempt)
        if phase.phase not in PHASES:
            raise _fail("a phase", phase.phase)


def _status(status: int) -> None:
    if not -MOST_STATUS <= status < MOST_STATUS:
        raise _fail("an exit status", status)


def _usage(message: from_supervisor.Usage) -> None:
    _count("memory", message.memory_bytes)
    _seconds(message.cpu_seconds)
    _seconds(message.ended_cpu)
    for worker in message.workers:
        _counts_of(worker)
        _count("memory", worker.memory_bytes)
        _seconds(worker.cpu_seconds)
        for task_id, attempt, age in worker.checks:
            _attempt(task_id, attempt)
            _age("an age", age)


def _seconds(cpu: float) -> None:
    if not 0 <= cpu < MOST_SECONDS:
        raise _fail("CPU seconds", cpu)


_LOOKS: Final[dict[type, Callable[[Any], None]]] = {
    from_client.Hello: _client_hello,
    from_client.Spawn: _spawn,
    from_client.SpawnMany: _spawn_many,
    from_client.Heartbeat: _counts_of,
    from_client.Stop: _stop,
    from_client.Release: _counts_of,
    from_client.Reopen: _counts_of,
    from_client.ListTasks: _counts_of,
    from_client.GetTask: _counts_of,  # of a task with any number
    from_client.GetStacks: _counts_of,
    from_client.GetHistory: _counts_of,
    from_worker.Hello: _worker_hello,
    from_worker.Attach: _counts_of,
    from_worker.Begun: _begun,
    from_worker.Ended: _ended,
    from_worker.GivenBack: _given_back,
    from_worker.StopSeen: _stop_seen,
    from_worker.Lingering: _of_an_attempt,
    from_worker.Associate: _of_an_attempt,
    from_worker.Progress: _progress,
    from_worker.Waiting: _waiting,
    from_worker.ExtendGrace: _of_an_attempt,
    from_supervisor.Hello: _supervisor_hello,
    from_supervisor.WorkerExited: _worker_exited,
    from_supervisor.Usage: _usage,
}
