"""What a client says to the broker.

Control requests carry a `request` number of their session, from 1; each is answered once, by a message of
`to_client` with the same number. A request that is sent again (after a reconnection) keeps its number.
"""

from typing import NamedTuple

from quiesce.protocol.frames import Payload
from quiesce.registry.rows import SpawnRow

ScopeFields = tuple[str | None, str | None, str | None, str | None]


class Hello(NamedTuple):
    """First message on either endpoint (`channel` is "control" or "data"), and after each HelloWanted.

    `worker`: the incarnation of the worker process that this client lives in, 0 if in none.
    `resumed`: this session was welcomed before. A broker that does not know it must say so again and again,
    and not open it anew: one lost Welcome, and spawns of it would run twice.
    """

    version: int
    session: bytes
    channel: str
    pid: int
    host: str
    worker: int
    resumed: bool


class Spawn(NamedTuple):
    """Data: spawns, each for itself, their numbers consecutive. `answered_through`: see Heartbeat."""

    answered_through: int
    rows: list[SpawnRow]


class SpawnMany(NamedTuple):
    """Data: all or none. Row i is `common` with number `common.number + i` and `arguments[i]`."""

    answered_through: int
    common: SpawnRow
    arguments: list[Payload]


class Heartbeat(NamedTuple):
    """Either: keeps the session. All spawn answers up to `answered_through` have arrived and may be forgotten."""

    answered_through: int


class ResultsTaken(NamedTuple):
    """Either: these tasks' results have arrived and may be forgotten."""

    task_ids: list[int]


class Stop(NamedTuple):
    """Control: shutdown_tasks. With `task_id`, that task alone, and no scope is closed.

    `last_spawn`: the last spawn number this session has sent; the stop is complete only when all up to it
    have arrived. `hold`: keep the scope closed after the report, until Release (a `stopped()` block).
    `caller`: the attempt inside which the call was made. `grace` None: as configured; inf: never force.
    """

    request: int
    scope: ScopeFields
    task_id: int | None
    grace: float | None
    timeout: float | None
    keep_closed: bool
    hold: bool
    reason: str
    last_spawn: int
    caller: tuple[int, int] | None


class Release(NamedTuple):
    """Control: the `stopped()` block of this stop has ended. Answered by Done."""

    request: int
    stop_id: int


class Reopen(NamedTuple):
    """Control: forget kept and timed-out closures within the scope. Answered by Done."""

    request: int
    scope: ScopeFields


class ListTasks(NamedTuple):
    """Control: answered by Tasks. `state` None: all live ones; "ended": from the bounded history."""

    request: int
    scope: ScopeFields
    state: str | None


class GetTask(NamedTuple):
    """Control: answered by Tasks with one row, or Refused with TaskNotFoundError."""

    request: int
    task_id: int


class GetStatistics(NamedTuple):
    """Control: answered by Statistics."""

    request: int


class GetWorkers(NamedTuple):
    """Control: answered by Workers."""

    request: int


class GetBroker(NamedTuple):
    """Control: answered by Broker."""

    request: int


class GetClosed(NamedTuple):
    """Control: answered by Closed."""

    request: int


class GetStops(NamedTuple):
    """Control: answered by Stops: every stop in progress and what it waits for."""

    request: int


class GetStacks(NamedTuple):
    """Control: answered by Stacks, after at most two seconds with what has come by then.

    `task_ids`: of these tasks of the scope alone; empty: of all.
    """

    request: int
    scope: ScopeFields
    task_ids: list[int]


class GetHistory(NamedTuple):
    """Control: answered by History: the ended stops that may have matched a task of this scope."""

    request: int
    scope: ScopeFields


class Subscribe(NamedTuple):
    """Control: from now on Event messages come, until Unsubscribe or the session's end. Answered by Done."""

    request: int


class Unsubscribe(NamedTuple):
    """Control: answered by Done."""

    request: int


class Goodbye(NamedTuple):
    """Control: the session ends; its tasks go on, its results are dropped."""


MESSAGES = (
    Hello,
    Spawn,
    SpawnMany,
    Heartbeat,
    ResultsTaken,
    Stop,
    Release,
    Reopen,
    ListTasks,
    GetTask,
    GetStatistics,
    GetWorkers,
    GetBroker,
    GetClosed,
    GetStops,
    GetStacks,
    Subscribe,
    Unsubscribe,
    Goodbye,
    GetHistory,
)
