"""The client that a worker process has for its tasks: `quiesce.current_client()`."""

from quiesce.client.client import Client
from quiesce.context import current_context


class NestedClient(Client):
    """Shared by all tasks of a worker; ended by the worker, never by a task."""

    def __init__(self, address: str | None, worker_incarnation: int, timeout: float = 30.0) -> None:
        self._begin(address, None, timeout, worker_incarnation)

    def wait_spawned(self, parent: tuple[int, int], timeout: float) -> bool:
        """Whether all spawns made by this attempt (task id, attempt) are answered within `timeout` seconds."""
        return self._driver.wait_settled(parent, timeout)

    def _end(self, timeout: float, unavailable: str = "") -> bool:
        if current_context() is not None and self._driver.ready.over:
            return False  # a task left its block: the others go on with it
        return super()._end(timeout, unavailable)


def open_client(address: str, worker_incarnation: int) -> NestedClient:
    """For the worker: a client whose spawns count as made by tasks of this worker."""
    return NestedClient(address, worker_incarnation)
