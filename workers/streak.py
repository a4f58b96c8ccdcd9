"""Short bodies that follow each other in the main thread, with no word to the session in between.

To take the lock and tell the session of each beginning and each end costs more than a short body. So a worker of
one slot is handed what waits in a row. Its main thread takes one after the other by itself; what it has begun and
ended the session is told by whoever next has the lock, before anything else is decided.

All must agree on what has begun: of what has not, a stop may say that it never ran, and of nothing else.

    main thread                          whoever has the lock
    1. reads `turn`, which is even       1. makes `turn` odd
    2. takes a row                       2. looks at `current`: what is announced there has begun
    3. announces it in `current`         3. decides; withdraws rows, maybe
    4. has `turn` changed?               4. makes `turn` even
       Then it takes that back,
       and asks under the lock

An announcement that comes before the look at `current` is seen. After one that comes later the main thread sees
another `turn`. (A sequence lock, as in Linux; all threads see all writes in one order, for they share the
interpreter's lock. Without that this does not hold.)
"""

from collections import deque
from collections.abc import Collection
from contextlib import suppress

from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import AssignRow
from quiesce.workers.attempt import Attempt
from quiesce.workers.worker_effects import Ran


class Streak:
    """What the main thread and whoever has the lock share."""

    def __init__(self) -> None:
        #: Handed over and not taken yet, oldest first. Who has the lock adds and withdraws.
        self.rows: deque[AssignRow] = deque()
        #: Odd while somebody has the lock.
        self.turn = 0
        #: What the main thread has begun last, once it has taken it.
        self.current: Attempt | None = None
        #: What it has begun and ended, in that order; with several slots, what has ended in any thread.
        self.over: list[Ran] = []

    def withdraw(self, keys: Collection[AttemptKey]) -> None:
        """Under the lock: these must not begin. The main thread may take one in the midst of this: then it asks."""
        for row in list(self.rows):
            if (row.task_id, row.attempt) in keys:
                with suppress(ValueError):
                    self.rows.remove(row)
