"""What the broker says to a supervisor. All of it on the control endpoint."""

from typing import NamedTuple


class Registered(NamedTuple):
    """Answers Hello."""

    version: int
    epoch: int
    incarnation: int


class Refused(NamedTuple):
    """Answers Hello: this supervisor must end; the text says why."""

    text: str


class HelloWanted(NamedTuple):
    """The broker does not know who sent the last message: say Hello again."""

    epoch: int


class Alive(NamedTuple):
    """Answers Heartbeat."""

    epoch: int


class FlagRow(NamedTuple):
    """Set the stop flag of this attempt in the table of the worker with this serial."""

    serial: int
    task_id: int
    attempt: int


class Flag(NamedTuple):
    """Needs no acknowledgement: the worker's own Stop is the one that counts; this one is faster."""

    epoch: int
    rows: list[FlagRow]


class Kill(NamedTuple):
    """SIGKILL and reap this worker, if the table says that it has begun the attempt and not ended it.

    `spared`: attempts that the worker holds and that, as far as the broker knows, have not begun. If the
    table says that one of these has, the worker is not killed: the broker will hear of it and ask again.
    """

    epoch: int
    serial: int
    task_id: int
    attempt: int
    spared: list[tuple[int, int]]


class ExitTaken(NamedTuple):
    """The broker has the exit of this worker for good."""

    serial: int


class Exit(NamedTuple):
    """The system stops: end the workers (killing what is left after `grace` seconds), say Goodbye, exit."""

    epoch: int
    grace: float


MESSAGES = (Registered, Refused, HelloWanted, Alive, Flag, Kill, ExitTaken, Exit)
