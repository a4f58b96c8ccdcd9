"""What the broker says to a worker. Messages of an older epoch than the newest seen are ignored."""

from typing import NamedTuple

from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import AssignRow


class Registered(NamedTuple):
    """Control: answers Hello. The worker then sends Attach on the data endpoint."""

    version: int
    epoch: int
    incarnation: int
    payload_limit: int


class Refused(NamedTuple):
    """Control: answers Hello: this worker must end (another version, or its end was already reported)."""

    text: str


class HelloWanted(NamedTuple):
    """Either: the broker does not know who sent the last message: say Hello (control) again."""

    epoch: int


class Assign(NamedTuple):
    """Data: attempts to run, numbered per incarnation."""

    epoch: int
    rows: list[AssignRow]


class EndedTaken(NamedTuple):
    """Data: the broker has these ends for good: (task, attempt). They need not be held any longer."""

    rows: list[AttemptKey]


class StopOrder(NamedTuple):
    """Ask one attempt to stop. `last_assign`: the number of the last assignment sent to this worker before it."""

    task_id: int
    attempt: int
    last_assign: int
    reason: str


class Stop(NamedTuple):
    """Control: sent again until StopSeen acknowledges each row."""

    epoch: int
    rows: list[StopOrder]


class Force(NamedTuple):
    """Control: the grace of this attempt is over: CancelledError into a coroutine, an interrupt into
    synchronous code that has its process to itself, SIGKILL to child processes that linger."""

    epoch: int
    task_id: int
    attempt: int


class Associated(NamedTuple):
    """Control: answers Associate: the registry has it. `error` (a class of `quiesce.errors`) if refused."""

    request: int
    error: str | None
    text: str


class StacksWanted(NamedTuple):
    """Control: send the stacks of these attempts."""

    request: int
    rows: list[tuple[int, int]]


class Exit(NamedTuple):
    """Control: the pool is going: end when nothing runs any more."""

    epoch: int


class GivenBackTaken(NamedTuple):
    """Data: the broker has these back for good: (task, attempt, assign number)."""

    rows: list[tuple[int, int, int]]


MESSAGES = (
    Registered,
    Refused,
    HelloWanted,
    Assign,
    EndedTaken,
    Stop,
    Force,
    Associated,
    StacksWanted,
    Exit,
    GivenBackTaken,
)
