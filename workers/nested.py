"""The client of a worker, for tasks that spawn and stop others: opened when the first one asks for it."""

import contextvars
import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from quiesce.registry.ids import AttemptKey
from quiesce.workers import logs

_log: Final = logging.getLogger("quiesce.worker")

#: Seconds between two looks at whether an attempt's spawns are acknowledged.
_PATIENCE: Final = 5.0


class NestedClient:
    """Workers import no client: it comes by name, from the settings."""

    def __init__(self, factory: str, address: str, incarnation: Callable[[], int]) -> None:
        """`factory`: "module:function", called as function(address, worker_incarnation)."""
        self._factory = factory
        self._address = address
        self._incarnation = incarnation
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self) -> Any:
        """The client; made outside of every task, so that its threads belong to none."""
        with self._lock:
            if self._client is None:
                module, _, function = self._factory.partition(":")
                open_client = getattr(importlib.import_module(module), function)
                self._client = contextvars.Context().run(
                    open_client, self._address, self._incarnation()
                )
            return self._client

    @property
    def is_unused(self) -> bool:
        """Whether no task of this process has ever asked for the client."""
        return self._client is None

    def wait_spawned(self, parent: AttemptKey) -> None:
        """Return once the broker has acknowledged all that this attempt has spawned."""
        client = self._client
        if client is None:
            return
        try:
            while not client.wait_spawned(parent, _PATIENCE):
                said = "the end of task %d.%d waits for its spawns to be acknowledged"
                logs.say(_log.info, said, *parent)
        except Exception:
            said = "it is unknown whether the spawns of task %d.%d have arrived"
            logs.say(_log.exception, said, *parent)
