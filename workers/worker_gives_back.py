"""The part of a worker's session that gives back what waits for a slot while all are taken."""

from typing import Final

from quiesce.protocol import from_worker
from quiesce.workers.worker_effects import Data, Effects
from quiesce.workers.worker_state import WorkerState

#: Seconds without a free slot after which what waits for one is given back.
GIVE_BACK: Final = 0.008


class WorkerGivesBack(WorkerState):
    """Only what was assigned ahead of a free slot waits here."""

    def give_back(self, now: float) -> Effects:
        """What waits while all slots are taken for long may begin sooner elsewhere."""
        if not self.is_stuck() or now < self.flowed_at + GIVE_BACK:
            return []
        rows: list[tuple[int, int, int]] = [
            (*key, row.assign_number) for key, row in self.received.items()
        ]
        self.received = {}
        self.given_back.update(dict.fromkeys(rows))
        return self.say_given_back(rows)

    def say_given_back(self, rows: list[tuple[int, int, int]]) -> Effects:
        """Until the broker has taken it."""
        return [Data(from_worker.GivenBack(rows))] if rows else []

    def is_stuck(self) -> bool:
        """Whether something waits for a slot that may be given back."""
        return bool(
            self.received
            and self.registered
            and self.exiting_since is None
            and not self.lease_is_over
        )
