"""The part of a worker's session that tells the broker of ends, until it has taken them."""

import math
from collections.abc import Iterable
from typing import Any, Final

from quiesce.protocol import from_worker
from quiesce.protocol.sizes import in_parts
from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import LEASE_OVER, EndedRow
from quiesce.registry.states import Evidence, Outcome
from quiesce.workers.worker_effects import RESEND, RESEND_SLOWEST, Asked, Data, Effects, Held, Ran
from quiesce.workers.worker_state import WorkerState

#: Said of each end: to look up a member of an enumeration, and its value, costs more than all the rest of a row.
_RETURNED: Final = Evidence.RETURNED.value
#: Without the detour over the arguments of a named tuple.
_new: Final[Any] = tuple.__new__


class WorkerEnds(WorkerState):
    """Ends wait in `held`; the oldest that have no answer are said again."""

    def tell_ends(self, ends: list[Ran], now: float) -> Effects:
        """Tell the broker, and keep them until it has taken them."""
        send_at, interval = now, RESEND
        if self.registered:
            send_at, interval = self._again(sum([len(end.result) for end in ends]), RESEND, now)
        else:
            self.unsent += [end.key for end in ends]
        rows: list[EndedRow] = []
        for end in ends:
            key, begun_at, ended_at, outcome, text, result = end
            delivered_at = observed_at = None
            if self.handed.pop(key, None) is None:  # we had been told that it had begun
                asked = self._leave_slot(key)
                if asked is not None:
                    delivered_at, observed_at = asked.delivered_at, asked.observed_at
                    # It may have returned while we heard of the request.
                    ended_at = max(ended_at, delivered_at)
                    if asked.lease:
                        text = f"{LEASE_OVER}{asked.reason}\n{text}".rstrip()
            times = (begun_at, ended_at, delivered_at, observed_at)
            fields = (str(outcome), _RETURNED, *times, text, result, send_at, interval)
            held: Held = _new(Held, fields)
            self.held[key] = held
            rows.append(held.row(key, now))
        return self._said(rows) if self.registered else []

    def _leave_slot(self, key: AttemptKey) -> Asked | None:
        """A running attempt has ended; the request to stop that it had."""
        del self.running[key]
        self.untold.pop(key, None)
        for others in (self.loading, self.waiting, self.lingering, self.progress, self.extending):
            if others:
                others.pop(key, None)
        return self.asked.pop(key, None)

    def hold_unbegun(self, key: AttemptKey, now: float) -> None:
        """One that has not begun, and never will, has ended by that; `send_held` tells."""
        self.unsent.append(key)
        self.held[key] = Held(
            Outcome.CANCELLED.value,
            Evidence.NEVER_RAN.value,
            None,
            now,
            None,
            None,
            "asked to stop before it began",
            b"",
            now,
            RESEND,
        )

    def _again(self, size: int, interval: float, now: float) -> tuple[float, float]:
        """When ends that are sent now are sent again, and how long after that: later if their results are large."""
        send_at = now + interval + size / 8e6
        self.resend_at = min(self.resend_at, send_at)
        return send_at, min(RESEND_SLOWEST, 2 * interval)

    def send_held(self, now: float, *, everything: bool = False) -> Effects:
        """Send the ends that are due."""
        if not self.registered:
            return []
        keys: Iterable[AttemptKey] = self.unsent
        if everything or now >= self.resend_at:
            keys, self.resend_at = self.held, math.inf
        rows: list[EndedRow] = []
        for key in keys:
            held = self.held[key]
            if not everything and held.send_at > now:
                self.resend_at = min(self.resend_at, held.send_at)
                continue
            at, interval = self._again(len(held.result), held.interval, now)
            self.held[key] = held._replace(send_at=at, interval=interval)
            rows.append(held.row(key, now))
        self.unsent = []
        return self._said(rows)

    def _said(self, rows: list[EndedRow]) -> Effects:
        return [Data(from_worker.Ended(part)) for part in in_parts(rows, self.identity.capacity)]
