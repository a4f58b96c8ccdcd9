"""What the broker says to a supervisor. All of it on the control endpoint."""

from typing import NamedTuple


class Registered(NamedTuple):
    """Answers Hello. `sent_at` and `lease` as in Grant, which this is too."""

    version: int
    epoch: int
    incarnation: int
    sent_at: float
    lease: float


class Refused(NamedTuple):
    """Answers Hello: this supervisor must end; the text says why. `grace`: seconds that its tasks get to stop."""

    text: str
    grace: float


class HelloWanted(NamedTuple):
    """The broker does not know who sent the last message: say Hello again."""

    epoch: int


class Grant(NamedTuple):
    """Answers Renew. The supervisor lives until `sent_at`, which is Renew's own, plus `lease` seconds."""

    epoch: int
    sent_at: float
    lease: float


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


class Dump(NamedTuple):
    """Have this worker write the stacks of its threads without its interpreter, and send them in Dumped."""

    epoch: int
    request: int
    serial: int


MESSAGES = (Registered, Refused, HelloWanted, Grant, Flag, Kill, ExitTaken, Exit, Dump)
