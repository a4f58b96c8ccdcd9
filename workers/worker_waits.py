"""The part of a worker's session that speaks of attempts which wait for other tasks. Telemetry."""

from collections.abc import Iterable

from quiesce.protocol import from_worker
from quiesce.registry.ids import AttemptKey
from quiesce.workers.worker_effects import Control, Effects
from quiesce.workers.worker_state import WorkerState


class WorkerWaits(WorkerState):
    """Threads of one attempt may wait for several tasks, and for one of them more than once."""

    def wait_began(self, key: AttemptKey, other: int) -> Effects:
        """A call of this attempt blocks until that task has ended, and has for long."""
        if key not in self.running:
            return []
        others = self.waiting.setdefault(key, {})
        others[other] = others.get(other, 0) + 1
        return self.say_waits([key]) if others[other] == 1 else []

    def wait_ended(self, key: AttemptKey, other: int) -> Effects:
        """Such a call is over."""
        others = self.waiting.get(key, {})
        if other not in others:
            return []
        others[other] -= 1
        if others[other]:
            return []
        del others[other]
        if not others:
            del self.waiting[key]
        return self.say_waits([key])

    def say_waits(self, keys: Iterable[AttemptKey]) -> Effects:
        """All that each of these waits for."""
        rows: list[tuple[int, int, int]] = [
            (*key, other) for key in keys for other in self.waiting.get(key, (0,))
        ]
        return [Control(from_worker.Waiting(rows))] if rows and self.registered else []
