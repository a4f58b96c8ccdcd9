"""What running attempts ask of the broker: the part of a worker's session that passes it on."""

from collections.abc import Iterable
from typing import Final

from quiesce.protocol import from_worker, to_worker
from quiesce.protocol.sizes import NOTE_LIMIT, cut
from quiesce.registry.ids import AttemptKey
from quiesce.workers.worker_effects import Control, Effects, Settle
from quiesce.workers.worker_state import WorkerState

#: Seconds between two Progress messages.
PROGRESS_EVERY: Final = 1.0


class WorkerAsks(WorkerState):
    """Its words for tasks."""

    def linger(self, key: AttemptKey, what: str) -> Effects:
        """The body has ended; this is what it waits for."""
        what = cut(what, NOTE_LIMIT)
        if key not in self.running or self.lingering.get(key, "") == what:
            return []
        self.lingering[key] = what
        return [Control(from_worker.Lingering(*key, what))] if self.registered else []

    def associate(
        self, key: AttemptKey, tenant_id: str | None, timeline_id: str | None
    ) -> tuple[int, Effects]:
        """Send the wish; `Settle` with the number that this gives follows."""
        self.last_request += 1
        message = from_worker.Associate(self.last_request, *key, tenant_id, timeline_id)
        self.associating[self.last_request] = message
        return self.last_request, [Control(message)] if self.registered else []

    def give_up(self, request: int) -> None:
        """Nobody waits for this answer any longer."""
        self.associating.pop(request, None)

    def _on_associated(self, message: to_worker.Associated) -> Effects:
        asked = self.associating.pop(message.request, None)
        if asked is None:
            return []
        return [
            Settle(message.request, asked.tenant_id, asked.timeline_id, message.error, message.text)
        ]

    def report_progress(
        self, key: AttemptKey, done: float, total: float | None, note: str, now: float
    ) -> Effects:
        """Keep the newest; at most one message a second leaves."""
        if key in self.running:
            self.progress[key] = (done, total, note)
        return self._send_progress(now)

    def _send_progress(self, now: float) -> Effects:
        if not self.progress or not self.registered or now < self.progress_at:
            return []
        self.progress_at = now + PROGRESS_EVERY
        rows: list[tuple[int, int, float, float | None, str]] = [
            (task, attempt, *said) for (task, attempt), said in self.progress.items()
        ]
        self.progress = {}
        return [Control(from_worker.Progress(rows))]

    def extend_grace(self, key: AttemptKey, seconds: float) -> Effects:
        """A stopping attempt asks for more time. One that is not asked to stop has no grace yet."""
        if key not in self.asked:
            return []
        self.extending[key] = self.extending.get(key, 0.0) + seconds
        return self.say_extended([key])

    def say_extended(self, keys: Iterable[AttemptKey]) -> Effects:
        """What each of these has asked for in all: so it may be said again, and makes up for what was lost."""
        if not self.registered:
            return []
        return [
            Control(from_worker.ExtendGrace(*key, self.extending[key]))
            for key in keys
            if key in self.extending
        ]
