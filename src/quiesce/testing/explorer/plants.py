"""Bugs to plant: the explorer must find each. Small mutations of the real machines, taken back at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from quiesce.registry import pools, stopping
from quiesce.registry.turn import Turn
from quiesce.workers.worker_session import WorkerSession

Plant = Callable[[], tuple[Any, str, Any]]


def _no_tombstone() -> tuple[Any, str, Any]:
    """A request to stop that overtakes its task is forgotten."""
    bury = WorkerSession._bury

    def without(self: WorkerSession, key: Any, last_assign: int, now: float) -> Any:
        effects = bury(self, key, last_assign, now)
        self.tombstones.pop(key, None)
        return effects

    return WorkerSession, "_bury", without


def _silence_is_death() -> tuple[Any, str, Any]:
    """A worker that says hello again is taken for a new one: what it had is queued again."""
    hello = pools.on_worker_hello

    def eager(turn: Turn, event: Any) -> None:
        hello(turn, event)

    return pools, "on_worker_hello", eager


def _asked_is_ended() -> tuple[Any, str, Any]:
    """A stop is complete once all have been asked."""

    def check(turn: Turn, stop_id: Any) -> None:
        stop = turn.state.open_stops.get(stop_id)
        if stop is not None and all(
            turn.state.tasks[member].ask is not None for member in stop.remaining
        ):
            stop.remaining.clear()
            stopping._end(turn, stop, timed_out=False)

    return stopping, "check", check


PLANTS: Final[dict[str, Plant]] = {
    "no-tombstone": _no_tombstone,
    "asked-is-ended": _asked_is_ended,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """With this bug planted; with none if the name is empty."""
    if not name:
        yield
        return
    owner, attribute, mutant = PLANTS[name]()
    sound = getattr(owner, attribute)
    setattr(owner, attribute, mutant)
    try:
        yield
    finally:
        setattr(owner, attribute, sound)
