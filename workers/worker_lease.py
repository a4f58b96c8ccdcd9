"""The part of a worker's session that is about the lease of its pool."""

from quiesce.workers.worker_effects import Asked, AskToStop, Effects, Withdraw
from quiesce.workers.worker_state import WorkerState


class WorkerLease(WorkerState):
    """While half of the lease is over nothing may begin."""

    def lease_half_over(self, reason: str, now: float) -> Effects:
        """Ask what runs to stop, and let nothing begin until `lease_is_back`. No way to the broker is needed.

        What comes of it is the broker's to say: an attempt that only this has asked ends with LEASE_OVER in
        its text; a Stop that comes later is acknowledged as any other.
        """
        self.lease_is_over = True
        effects = self.take_back()
        for key in self.running:
            asked = self.asked.get(key, Asked("", now, None, False))
            if not (asked.told or asked.lease):
                self.asked[key] = asked._replace(reason=reason, lease=True)
                effects.append(AskToStop(*key, reason))
        return effects

    def take_back(self) -> Effects:
        """What was handed over and has not begun is received, as before."""
        if not self.handed:
            return []
        withdrawn = list(self.handed)
        self.received = {**self.handed, **self.received}
        self.handed = {}
        return [Withdraw(withdrawn)]
