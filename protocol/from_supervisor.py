"""What a supervisor says to the broker. All of it on the control endpoint."""

from typing import NamedTuple


class AttemptPhase(NamedTuple):
    """What the shared table says of one attempt of a dead worker.

    `phase`: "begun", "completed", "failed", "cancelled" or "crashed" (its body and all it began had ended so).
    """

    task_id: int
    attempt: int
    phase: str


class WorkerExitedRow(NamedTuple):
    """One worker that has been reaped, with its descendants. `status`: negative is the signal.

    `attempts`: all that the table still knows; what the worker held and is not in it never began.
    `table_known` is False when the table could not be read: then anything it held may have begun.
    """

    serial: int
    pid: int
    status: int
    table_known: bool
    attempts: list[AttemptPhase]


class Predecessor(NamedTuple):
    """A supervisor of the same pool that died and was reaped with its workers, by who started this one.

    `fenced`: it was the timer of its own lease that killed it.
    """

    supervisor: bytes
    pid: int
    status: int
    fenced: bool
    workers: list[WorkerExitedRow]


class Hello(NamedTuple):
    """First message, and after each HelloWanted. `incarnation` is 0 at the start, later what Registered gave.

    `supervisor`: 8 random bytes that name this process for its whole life. `run`: names the `quiesce up` that
    started it, "" if none did. `sent_at` and `armed` as in Renew: a Hello asks for the lease, too.
    """

    version: int
    supervisor: bytes
    runtime: str
    pid: int
    host: str
    boot_id: str
    processes: int
    slots: int
    incarnation: int
    epoch: int
    run: str
    sent_at: float
    armed: bool
    predecessor: Predecessor | None


class WorkerExited(NamedTuple):
    """Sent again until ExitTaken names its serial."""

    supervisor: bytes
    row: WorkerExitedRow


class WorkerUsage(NamedTuple):
    """CPU in seconds since its start, resident memory in bytes, and for each running attempt
    (task, attempt, seconds since its last check for shutdown or None if it never checked)."""

    serial: int
    pid: int
    cpu_seconds: float
    memory_bytes: int
    checks: list[tuple[int, int, float | None]]


class Usage(NamedTuple):
    """Telemetry, every other second while something changes. `ended_cpu`: the seconds of ended workers."""

    supervisor: bytes
    cpu_seconds: float
    memory_bytes: int
    ended_cpu: float
    workers: list[WorkerUsage]


class Renew(NamedTuple):
    """Asks for the lease anew; answered by Grant. Sent each sixth of a lease.

    `sent_at`: this moment on the supervisor's CLOCK_BOOTTIME, in seconds; means nothing to anybody else and
    comes back in Grant. `armed`: a timer of the kernel kills this supervisor when its lease is over; from the
    first time on it always will. No task is assigned to its workers before.
    """

    supervisor: bytes
    sent_at: float
    armed: bool


class Goodbye(NamedTuple):
    """All workers are reaped and reported; the supervisor exits."""

    supervisor: bytes


class Dumped(NamedTuple):
    """Answers Dump: the stacks of all threads as faulthandler wrote them, or, with `error`, why there are none."""

    request: int
    serial: int
    text: str
    error: str


MESSAGES = (Hello, WorkerExited, Usage, Renew, Goodbye, Dumped)
