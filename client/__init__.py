"""The client side: `Client` for threads, `AsyncClient` for asyncio, and what they hand out.

Imported on first use (PEP 562), so that a worker which only unpickles a function from here loads no sockets.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quiesce.client.async_client import AsyncClient as AsyncClient
    from quiesce.client.async_handle import AsyncTaskHandle as AsyncTaskHandle
    from quiesce.client.client import Client as Client
    from quiesce.client.executor import QuiesceExecutor as QuiesceExecutor
    from quiesce.client.handle import TaskHandle as TaskHandle

_WHERE = {
    "AsyncClient": "quiesce.client.async_client",
    "AsyncTaskHandle": "quiesce.client.async_handle",
    "Client": "quiesce.client.client",
    "QuiesceExecutor": "quiesce.client.executor",
    "TaskHandle": "quiesce.client.handle",
}
__all__ = ["AsyncClient", "AsyncTaskHandle", "Client", "QuiesceExecutor", "TaskHandle"]


def __getattr__(name: str) -> Any:
    home = _WHERE.get(name)
    if home is None:
        raise AttributeError(f"module 'quiesce.client' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
