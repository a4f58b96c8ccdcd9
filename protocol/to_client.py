"""What the broker says to a client."""

from typing import Any, NamedTuple

from quiesce.registry.rows import (
    ClosedRow,
    EndedStopRow,
    ResultRow,
    SpawnAnswer,
    StoppedRow,
    StopRow,
    TaskRow,
    WorkerRow,
)


class Welcome(NamedTuple):
    """Answers Hello, on the endpoint it came by. `known`: the broker had this session already.

    `payload_limit` in bytes, for the function and the arguments of one spawn together.
    """

    version: int
    epoch: int
    known: bool
    payload_limit: int


class HelloWanted(NamedTuple):
    """The broker doesn't know who sent the last message on this endpoint: say Hello, then send it again."""

    epoch: int


class Alive(NamedTuple):
    """Answers Heartbeat."""

    epoch: int


class SpawnAnswers(NamedTuple):
    """Data: what became of spawns."""

    rows: list[SpawnAnswer]


class Ended(NamedTuple):
    """Data: tasks of this session have ended, in any order. Sent again until ResultsTaken names them."""

    rows: list[ResultRow]


class StopReport(NamedTuple):
    """Control: answers Stop. With `timed_out`, `remaining` says what is left, and the scope stays closed."""

    request: int
    stop_id: int
    timed_out: bool
    requested_at: float
    completed_at: float
    tasks: list[StoppedRow]
    caller: list[StoppedRow]
    collateral: list[StoppedRow]
    remaining: list[StoppedRow]


class Tasks(NamedTuple):
    """Control: answers ListTasks and GetTask."""

    request: int
    rows: list[TaskRow]


class Statistics(NamedTuple):
    """Control: answers GetStatistics. `body` is what `Client.statistics()` returns."""

    request: int
    body: dict[str, Any]


class Workers(NamedTuple):
    """Control: answers GetWorkers."""

    request: int
    rows: list[WorkerRow]


class Broker(NamedTuple):
    """Control: answers GetBroker; the fields of `quiesce.BrokerInfo`."""

    request: int
    pid: int
    epoch: int
    address: str
    version: str
    state: str
    durability: str


class Closed(NamedTuple):
    """Control: answers GetClosed."""

    request: int
    rows: list[ClosedRow]


class Stops(NamedTuple):
    """Control: answers GetStops."""

    request: int
    rows: list[StopRow]


class History(NamedTuple):
    """Control: answers GetHistory, in the order of their ends."""

    request: int
    rows: list[EndedStopRow]


class StacksRow(NamedTuple):
    """The stacks of one running task: one text for each thread and coroutine."""

    task_id: int
    attempt: int
    name: str
    worker_pid: int
    stacks: list[str]


class Stacks(NamedTuple):
    """Control: answers GetStacks."""

    request: int
    rows: list[StacksRow]


class Done(NamedTuple):
    """Control: the request is done."""

    request: int


class Refused(NamedTuple):
    """Control: the request is refused; `error` names a class of `quiesce.errors`."""

    request: int
    error: str
    text: str


class Event(NamedTuple):
    """Control: one thing that happened, for subscribers. `missed` events before it were dropped."""

    type: str
    at: float
    task_id: int | None
    data: dict[str, Any]
    missed: int


class Goodbye(NamedTuple):
    """Control: the broker is going away, for this reason."""

    reason: str


MESSAGES = (
    Welcome,
    HelloWanted,
    Alive,
    SpawnAnswers,
    Ended,
    StopReport,
    Tasks,
    Statistics,
    Workers,
    Broker,
    Closed,
    Stops,
    Stacks,
    Done,
    Refused,
    Event,
    Goodbye,
    History,
)
