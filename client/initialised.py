"""Runs in the workers of a QuiesceExecutor with an initializer: once in each process, before its first task."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any, Final

_lock: Final = threading.Lock()
#: By executor: why its initializer failed here, or None if it didn't.
_done: Final[dict[str, str | None]] = {}


def call(
    key: str,
    initializer: Callable[..., object],
    initargs: tuple[Any, ...],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """`fn(*args, **kwargs)`, after `initializer(*initargs)` has run in this process for this executor.

    BrokenExecutor if that has failed.
    """
    with _lock:
        if key not in _done:
            try:
                initializer(*initargs)
                _done[key] = None
            except Exception as error:
                _done[key] = f"the initializer failed in process {os.getpid()}: {error!r}"
        trouble = _done[key]
    if trouble is not None:
        raise BrokenExecutor(trouble)
    return fn(*args, **kwargs)
