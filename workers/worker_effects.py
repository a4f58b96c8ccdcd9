"""What a worker session is told once, what it remembers, and what it wants done."""

from typing import Any, Final, NamedTuple

from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.rows import AssignRow, EndedRow
from quiesce.registry.states import Outcome

#: Without the detour over the arguments of a named tuple.
_new: Final[Any] = tuple.__new__
#: Seconds until a message without an answer is sent again; doubles, up to the second.
RESEND: Final = 1.0
RESEND_SLOWEST: Final = 8.0


class Identity(NamedTuple):
    """What does not change while the process lives. `capacity`: attempts begun or held at once."""

    runtime: str
    supervisor: bytes
    serial: int
    pid: int
    host: str
    slots: int
    capacity: int = 256


class Control(NamedTuple):
    """Send this on the control endpoint."""

    message: Any


class Data(NamedTuple):
    """Send this on the data endpoint."""

    message: Any


class Hand(NamedTuple):
    """Give these attempts to whoever is to run them, who asks before anything of one begins."""

    rows: list[AssignRow]


class AskToStop(NamedTuple):
    """Let this running attempt know that it is asked to stop.

    Comes at most twice for each attempt: for the lease of its pool, and by the broker's word.
    """

    task_id: TaskId
    attempt: Attempt
    reason: str


class ForceAttempt(NamedTuple):
    """The grace of this running attempt is over. May come again."""

    task_id: TaskId
    attempt: Attempt


class Withdraw(NamedTuple):
    """These attempts were handed over and must not begin, or not now: whoever has one learns that when it asks."""

    keys: list[AttemptKey]


class Forget(NamedTuple):
    """The broker has the ends of these attempts: done with them."""

    keys: list[AttemptKey]


class Settle(NamedTuple):
    """The call of associate_with with this number is answered."""

    request: int
    tenant_id: str | None
    timeline_id: str | None
    error: str | None
    text: str


class Look(NamedTuple):
    """Answer with the stacks of these attempts."""

    request: int
    keys: list[tuple[int, int]]


class Limit(NamedTuple):
    """No result may be larger than this, in bytes."""

    payload_limit: int


class Quit(NamedTuple):
    """The process ends now, with this status."""

    status: int
    text: str


Effect = (
    Control
    | Data
    | Hand
    | Withdraw
    | AskToStop
    | ForceAttempt
    | Forget
    | Settle
    | Look
    | Limit
    | Quit
)
Effects = list[Effect]


# --- records --------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """An attempt that has begun and ended, with all that it began."""

    key: AttemptKey
    begun_at: float
    ended_at: float
    outcome: Outcome
    text: str
    result: Any


class Asked(NamedTuple):
    """A running attempt that knows of its request to stop.

    `told`: by the broker (or the pool that ends), not by the flag alone. `lease`: by nobody else than its own
    pool, whose lease was half over.
    """

    reason: str
    delivered_at: float
    observed_at: float | None
    told: bool
    lease: bool = False


class Held(NamedTuple):
    """An end that the broker has not yet taken. `send_at` is when it is sent again, after `interval`."""

    outcome: str
    evidence: str
    begun_at: float | None
    ended_at: float
    delivered_at: float | None
    observed_at: float | None
    text: str
    result: Any
    send_at: float
    interval: float

    def row(self, key: AttemptKey, now: float) -> EndedRow:
        """How it is told: what happened when, in seconds before now."""
        outcome, evidence, begun_at, ended_at, delivered_at, observed_at, text, result, _, _ = self
        row: EndedRow = _new(
            EndedRow,
            (
                key[0],
                key[1],
                outcome,
                evidence,
                None if begun_at is None else now - begun_at,
                now - ended_at,
                None if delivered_at is None else now - delivered_at,
                None if observed_at is None else now - observed_at,
                text,
                result,
            ),
        )
        return row
