"""What a QuiesceExecutor runs in the workers around the user's function. Imports nothing of ours."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, Final, NamedTuple

_lock: Final = threading.Lock()
#: By executor: why its initializer failed here, or None if it didn't.
_done: Final[dict[str, str | None]] = {}


class Initializer(NamedTuple):
    """`function(*args)` is run once in each process, before the first call of executor `key` there."""

    key: str
    function: Callable[..., object]
    args: tuple[Any, ...]


def initialise(initializer: Initializer) -> None:
    """Run it, unless this process has. BrokenExecutor if it fails, or has failed here before."""
    key = initializer.key
    with _lock:
        if key not in _done:
            try:
                initializer.function(*initializer.args)
                _done[key] = None
            except Exception as error:
                _done[key] = f"the initializer failed in process {os.getpid()}: {error!r}"
        trouble = _done[key]
    if trouble is not None:
        raise BrokenExecutor(trouble)


def call(
    initializer: Initializer,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """`fn(*args, **kwargs)`, in a process that is initialised."""
    initialise(initializer)
    return fn(*args, **kwargs)


async def call_async(
    initializer: Initializer,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The same for an `async def`."""
    initialise(initializer)
    return await fn(*args, **kwargs)


def chunk(fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of several calls, for `map` with a chunksize."""
    return [fn(*args) for args in calls]


async def chunk_async(fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The same for an `async def`: one after the other, as in any chunk."""
    return [await fn(*args) for args in calls]
