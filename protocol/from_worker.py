"""What a worker says to the broker.

A worker is named by the (supervisor, serial) that its supervisor gave it, until the broker
has given it an incarnation of its own.
"""

from typing import NamedTuple

from quiesce.registry.rows import EndedRow


class Hello(NamedTuple):
    """Control: first message. `incarnation` and `epoch` are 0 at the start, later what Registered gave.

    `last_assign`: the number of the last assignment that has arrived, 0 for none. `begun`: the attempts
    that have begun and whose end the broker has not yet taken; `received`: those not begun.
    """

    version: int
    runtime: str
    supervisor: bytes
    serial: int
    pid: int
    host: str
    slots: int
    incarnation: int
    epoch: int
    last_assign: int
    begun: list[tuple[int, int]]
    received: list[tuple[int, int]]


class Attach(NamedTuple):
    """Data: first message there, after Registered. From now on tasks may be assigned."""

    incarnation: int
    epoch: int


class Begun(NamedTuple):
    """Data: these attempts have begun: (task, attempt, seconds ago)."""

    rows: list[tuple[int, int, float]]


class Ended(NamedTuple):
    """Data: these attempts have ended, with all that they began. Sent again until EndedTaken names them.

    Where it arrives, an `AlikeEnds` may stand for many of the rows.
    """

    rows: list[EndedRow]


class StopSeenRow(NamedTuple):
    """What became of one request to stop.

    `state`: "running" (delivered to it), "never-began" (it will never run here: a tombstone stands until
    the task socket has passed the assignment), or "over" (it has ended; Ended says how).
    Ages are seconds before the sending. `observed_age` None: the task has not looked yet.
    """

    task_id: int
    attempt: int
    state: str
    delivered_age: float
    observed_age: float | None


class StopSeen(NamedTuple):
    """Control: acknowledges Stop; sent again for a task when it has observed the request."""

    rows: list[StopSeenRow]


class Lingering(NamedTuple):
    """Control: the body has ended, but what it began has not; `what` names it. Empty `what`: no longer."""

    task_id: int
    attempt: int
    what: str


class Associate(NamedTuple):
    """Control: associate_with; answered by Associated with the same request number."""

    request: int
    task_id: int
    attempt: int
    tenant_id: str | None
    timeline_id: str | None


class Progress(NamedTuple):
    """Control: (task, attempt, done, total, note), at most one message a second."""

    rows: list[tuple[int, int, float, float | None, str]]


class ExtendGrace(NamedTuple):
    """Control: this stopping task has asked for so many seconds more in all before it is forced: the highest that
    was said counts. Said again after Registered, and after Stop.
    """

    task_id: int
    attempt: int
    seconds: float


class Stacks(NamedTuple):
    """Control: answers StacksWanted: (task, attempt, texts)."""

    request: int
    rows: list[tuple[int, int, list[str]]]


class Waiting(NamedTuple):
    """Control: (task, attempt, other): the attempt blocks until task `other` has ended. Telemetry, said of waits
    that last, and all again after Registered.

    The rows of an attempt are all that it waits for, and replace what was said of it before; `other` 0: nothing.
    """

    rows: list[tuple[int, int, int]]


class GivenBack(NamedTuple):
    """Data: (task, attempt, assign number): these have not begun, and by this word never will under that number.

    Sent again until GivenBackTaken names them.
    """

    rows: list[tuple[int, int, int]]


MESSAGES = (
    Hello,
    Attach,
    Begun,
    Ended,
    StopSeen,
    Lingering,
    Associate,
    Progress,
    ExtendGrace,
    Stacks,
    Waiting,
    GivenBack,
)
