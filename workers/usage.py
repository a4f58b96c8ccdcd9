"""What a pool uses, and when its tasks last checked for a request to stop: telemetry, by sampling."""

import math
from collections.abc import Mapping
from typing import Final

from quiesce import processes
from quiesce.protocol import from_supervisor
from quiesce.registry.ids import AttemptKey
from quiesce.workers.table import Place

#: Seconds between two samples, and between two messages.
SAMPLE_EVERY: Final = 1.0
SEND_EVERY: Final = 2.0


class Usage:
    """Counters are sampled, so that a check costs its task no clock: an age may be SAMPLE_EVERY too high."""

    def __init__(self, supervisor: bytes, pid: int) -> None:
        self._supervisor = supervisor
        self._pid = pid
        #: CPU seconds of the workers that have ended.
        self.ended_cpu = 0.0
        #: By serial and attempt: the counter, and when it last changed.
        self._checks: dict[tuple[int, AttemptKey], tuple[int, float]] = {}
        self._sent: object = None
        self._send_at = 0.0
        self.sample_at = 0.0

    def say_again(self) -> None:
        """The broker is another one: it knows nothing of what was said."""
        self._sent = None

    def sample(
        self, workers: Mapping[int, tuple[int, Place]], now: float
    ) -> from_supervisor.Usage | None:
        """`workers`: pid and place by serial. A message if it is time for one and something has changed."""
        self.sample_at = now + SAMPLE_EVERY
        checks: dict[tuple[int, AttemptKey], tuple[int, float]] = {}
        for serial, (_, place) in workers.items():
            for key, count in place.checks().items():
                known = self._checks.get((serial, key), (0, -math.inf))
                checks[(serial, key)] = known if known[0] == count else (count, now)
        self._checks = checks
        if now < self._send_at:
            return None
        self._send_at = now + SEND_EVERY
        return self._message(workers, now)

    def _message(
        self, workers: Mapping[int, tuple[int, Place]], now: float
    ) -> from_supervisor.Usage | None:
        rows = []
        for serial, (pid, _) in workers.items():
            seen = processes.look(pid)
            if seen is None or seen.is_zombie:
                continue
            ages: list[tuple[int, int, float | None]] = [
                (*key, None if at == -math.inf else now - at)
                for (of, key), (_, at) in self._checks.items()
                if of == serial
            ]
            rows.append(
                from_supervisor.WorkerUsage(serial, pid, seen.cpu_seconds, seen.memory_bytes, ages)
            )
        own = processes.look(self._pid)
        # The supervisor's own CPU grows by looking at it: it alone is no change.
        shown = [row[:4] for row in rows]
        if shown == self._sent and not self._checks:
            return None
        self._sent = shown
        return from_supervisor.Usage(
            self._supervisor,
            0.0 if own is None else own.cpu_seconds,
            0 if own is None else own.memory_bytes,
            self.ended_cpu,
            rows,
        )
