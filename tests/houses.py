"""What the houses have in common: a worker in this process, without a broker, and its tasks."""

import os
import threading
from collections.abc import Callable
from typing import Final

from quiesce.protocol import PROTOCOL_VERSION, to_worker
from quiesce.protocol.callables import pack_arguments, pack_function
from quiesce.registry.ids import Attempt, TaskId
from quiesce.registry.rows import AssignRow
from quiesce.testing import streak_bodies
from quiesce.workers.settings import PoolSettings
from quiesce.workers.table import ENTRIES, Place, PoolTable
from quiesce.workers.worker import Worker
from quiesce.workers.worker_effects import Identity
from quiesce.workers.worker_session import WorkerSession

FUNCTION: Final = pack_function(streak_bodies.note)


class Lock:
    """As a lock, and says when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.on_wait: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.on_wait()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def new_worker(slots: int) -> tuple[Worker, Place]:
    """One that is registered, and its place in the table."""
    place = PoolTable.create(1).place(0)
    place.assign(1)
    nowhere = f"ipc:///tmp/quiesce-house-{os.getpid()}"
    settings = PoolSettings(
        runtime="r", address=nowhere, control=f"{nowhere}.c", data=f"{nowhere}.d", slots=slots
    )
    worker = Worker(settings, Identity("r", b"s" * 8, 1, os.getpid(), "h", slots, ENTRIES), place)
    worker.say(WorkerSession.start)
    worker.hear(to_worker.Registered(PROTOCOL_VERSION, 1, 1, 2**20))
    return worker, place


def row(number: int) -> AssignRow:
    """The assignment of this number, of the task with this id, which notes that."""
    arguments = pack_arguments((number,), {})
    task = TaskId(number)
    return AssignRow(
        number, task, Attempt(1), "k", "n", None, None, False, 1.0, FUNCTION, arguments
    )
