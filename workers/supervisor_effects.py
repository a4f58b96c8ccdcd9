"""What a supervisor session is told once, what it remembers, and what it wants done."""

from typing import Any, Final, NamedTuple

from quiesce.protocol import from_supervisor
from quiesce.workers.lease import ArmLease, AskForLease, LeaseIsBack

#: Seconds until an exit report or a Hello without an answer is sent again.
RESEND: Final = 0.5


class Identity(NamedTuple):
    """What does not change while the process lives. `places`: of the table; `run`: as in PoolSettings."""

    supervisor: bytes
    runtime: str
    pid: int
    host: str
    boot_id: str
    processes: int
    slots: int
    places: int
    run: str = ""
    predecessor: from_supervisor.Predecessor | None = None


# --- effects --------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send this to the broker."""

    message: Any


class StartWorker(NamedTuple):
    """Start a worker process in this place of the table."""

    place: int
    serial: int


class SetFlags(NamedTuple):
    """Set the stop flags of these attempts in this place."""

    place: int
    keys: list[tuple[int, int]]


class KillFor(NamedTuple):
    """SIGKILL to this worker if the table says that the attempt runs and none of `spared` does."""

    serial: int
    place: int
    task_id: int
    attempt: int
    spared: list[tuple[int, int]]


class DumpWorker(NamedTuple):
    """Have this worker write its stacks without its interpreter, and answer with them."""

    request: int
    serial: int


class FreePlace(NamedTuple):
    """The account of this place is settled."""

    place: int


class AskToEnd(NamedTuple):
    """Ask every worker to end when nothing runs any more."""


class KillAll(NamedTuple):
    """SIGKILL to every worker."""


class Quit(NamedTuple):
    """The process ends, with this status."""

    status: int
    text: str


Effect = (
    Send
    | StartWorker
    | SetFlags
    | KillFor
    | DumpWorker
    | FreePlace
    | AskToEnd
    | KillAll
    | Quit
    | ArmLease
    | AskForLease
    | LeaseIsBack
)
Effects = list[Effect]


# --- records --------------------------------------------------------------------------------------


class Report(NamedTuple):
    """An exit that the broker has not taken."""

    row: from_supervisor.WorkerExitedRow
    place: int
    send_at: float
