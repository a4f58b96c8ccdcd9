"""Supervisors and workers as data, and what can happen to them next."""

from typing import Any, NamedTuple

from quiesce.protocol import from_supervisor
from quiesce.registry.ids import AttemptKey
from quiesce.registry.states import Outcome
from quiesce.workers.supervisor_effects import Identity as PoolIdentity
from quiesce.workers.worker_effects import Identity


class Result(NamedTuple):
    """`sent`: (channel, message). `caused`: what happens elsewhere, by name."""

    state: int
    sent: tuple[tuple[int, int], ...]
    caused: tuple[tuple[Any, ...], ...]


class Body(NamedTuple):
    """A running attempt that does something: its place in its spawn's body, and the request that it waits for."""

    key: AttemptKey
    place: int
    request: int


class Worker(NamedTuple):
    """A living worker process. `pool`: the actor that is its supervisor. `flags`: attempts whose flag is set.

    `current`: what its main thread has begun, and `over`: has begun and ended, of which the session was not told.
    """

    identity: Identity
    pool: int
    frozen: tuple[Any, ...]
    flags: tuple[AttemptKey, ...]
    bodies: tuple[Body, ...]
    current: AttemptKey | None = None
    over: tuple[tuple[AttemptKey, Outcome], ...] = ()


class DeadWorker(NamedTuple):
    """One that has not been reaped. `row`: what its supervisor will report."""

    pool: int
    serial: int
    row: from_supervisor.WorkerExitedRow


class Pool(NamedTuple):
    """A living supervisor process."""

    identity: PoolIdentity
    frozen: tuple[Any, ...]


class DeadPool(NamedTuple):
    """One that was not buried yet; its workers died with it."""

    identity: PoolIdentity
    fenced: bool
    rows: tuple[from_supervisor.WorkerExitedRow, ...]


class WorkerView(NamedTuple):
    """What a worker can do next, as far as it depends on itself. Attempts with the names of their spawns.

    `behind`: its session has something to be told. `ends_untold`: what would end without a word to it.
    """

    handed: tuple[tuple[AttemptKey, str], ...]
    behind: bool
    ends_untold: AttemptKey | None
    running: tuple[tuple[AttemptKey, bool], ...]
    hello_due: bool
    ends_due: bool
    leaving: bool
    stuck: bool


class PoolView(NamedTuple):
    """What a supervisor can do next, as far as it depends on itself."""

    hello_due: bool
    reports_due: bool
    ending: bool
    due: float
    dies_at: float
