"""What a supervisor has left on this machine: ended before its lease counts as a proof.

When a lease is over the kernel has ended the supervisor and its workers. The processes that their tasks had started
fall to `quiesce up`, which ends them; but that may stand still, or be dead itself. So the broker looks, too, on its
own machine: on another one nobody can.
"""

import logging
import threading
import time
from typing import Final

from quiesce import leftovers
from quiesce.registry.records import Supervisor
from quiesce.seldom import Seldom

log: Final = logging.getLogger("quiesce.broker")
#: Seconds for what was killed to be gone, and until it looks again if that is not, or if it can't look.
PATIENCE: Final = 10.0
AGAIN: Final = 1.0


class Fence:
    """Looks in threads of its own: a look at a machine with many processes takes long."""

    def __init__(self) -> None:
        #: Whether nothing is left of those that were asked for, by their ids; one that has its thread has an entry.
        self._clear: dict[bytes, bool] = {}

    def is_clear(self, supervisor: Supervisor) -> bool:
        """Whether nothing of this one, which is dead, is left. Never blocks: ask until it is."""
        clear = self._clear.get(supervisor.id)
        if clear is None:
            self._begin(supervisor.id, supervisor.runtime)
        elif clear:
            del self._clear[supervisor.id]
        return bool(clear)

    def _begin(self, supervisor: bytes, runtime: str) -> None:
        self._clear[supervisor] = False
        name, args = f"quiesce fence of {runtime}", (supervisor, runtime)
        try:
            threading.Thread(target=self._end, args=args, name=name, daemon=True).start()
        except RuntimeError:  # none can be started now
            del self._clear[supervisor]

    def _end(self, supervisor: bytes, runtime: str) -> None:
        complaints = Seldom()
        while left := self._sweep(supervisor, runtime):
            if complaints.is_time():
                log.warning(
                    "pool %r, whose lease is over, has left behind what does not end: %s",
                    runtime,
                    left,
                )
            time.sleep(AGAIN)
        self._clear[supervisor] = True

    @staticmethod
    def _sweep(supervisor: bytes, runtime: str) -> str:
        """What of it is left, for people."""
        try:
            swept = leftovers.sweep(leftovers.of_supervisor(supervisor.hex()), PATIENCE)
        except Exception as error:  # whatever it is: else all would wait for ever, and not know why
            return f"what can't be looked for: {error!r}"
        if swept.killed:
            killed = ", ".join(swept.killed)
            log.warning("ended what pool %r, whose lease is over, had left: %s", runtime, killed)
        return ", ".join(swept.alive)
