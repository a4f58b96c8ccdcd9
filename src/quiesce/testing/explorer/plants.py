"""Bugs to plant: the explorer must find each. Small mutations of the real machines, taken back at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from quiesce.registry import effects, events, leasing, pools, stopping
from quiesce.registry.records import Supervisor
from quiesce.registry.turn import Turn
from quiesce.workers.worker_session import WorkerSession


class Plant(NamedTuple):
    """A bug. `scenario`: where it shows. `make` gives what is replaced (owner, attribute), and by what."""

    words: str
    scenario: str
    make: Callable[[], tuple[Any, str, Any]]


def _no_tombstone() -> tuple[Any, str, Any]:
    bury = WorkerSession._bury

    def forgetful(self: WorkerSession, key: Any, last_assign: int, now: float) -> Any:
        done = bury(self, key, last_assign, now)
        self.tombstones.pop(key, None)
        return done

    return WorkerSession, "_bury", forgetful


def _stop_trails() -> tuple[Any, str, Any]:
    return stopping, "seen_all", lambda session, last_spawn: True


def _table_ignored() -> tuple[Any, str, Any]:
    died = pools._worker_died

    def blind(turn: Turn, supervisor: Supervisor, row: events.ExitRow, *, fenced: bool) -> None:
        died(turn, supervisor, row._replace(attempts=[]), fenced=fenced)

    return pools, "_worker_died", blind


def _hasty_results() -> tuple[Any, str, Any]:
    return effects, "HASTY", effects.HASTY | {effects.SendResults}


def _hasty_answers() -> tuple[Any, str, Any]:
    return effects, "HASTY", effects.HASTY | {effects.AnswerSpawns}


def _short_bound() -> tuple[Any, str, Any]:
    renew = leasing.renew

    def hurried(turn: Turn, supervisor: Supervisor, armed: bool) -> None:
        renew(turn, supervisor, armed)
        turn.timers.set(("lease", supervisor.id), turn.now.tick + turn.state.lease / 2)

    return leasing, "renew", hurried


PLANTS: Final = {
    "no-tombstone": Plant(
        "a worker forgets a request to stop that has overtaken its task", "one-stop", _no_tombstone
    ),
    "stop-trails": Plant(
        "a stop is complete though spawns before it have not arrived", "one-stop", _stop_trails
    ),
    "table-ignored": Plant(
        "what had begun in a dead worker is queued again", "one-stop", _table_ignored
    ),
    "hasty-results": Plant(
        "a client is told of an end that the journal does not hold",
        "broker-restart",
        _hasty_results,
    ),
    "hasty-answers": Plant(
        "a client is told of a task that the journal does not hold",
        "broker-restart",
        _hasty_answers,
    ),
    "short-bound": Plant(
        "a supervisor is declared dead before its lease is over", "lease", _short_bound
    ),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """With this bug planted; with none if the name is empty."""
    if not name:
        yield
        return
    owner, attribute, mutant = PLANTS[name].make()
    sound = getattr(owner, attribute)
    setattr(owner, attribute, mutant)
    try:
        yield
    finally:
        setattr(owner, attribute, sound)
