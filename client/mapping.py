"""How `QuiesceExecutor.map` hands out its calls and gives back their results, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, Final, TypeVar

from quiesce.client import remote
from quiesce.client.waiting import deadline_after, remaining
from quiesce.protocol.callables import is_async

T = TypeVar("T")

#: Hands one call to the pool.
Submit = Callable[..., "Future[Any]"]
#: Gives it, or None if nothing more is to be begun.
Begin = Callable[[], Submit | None]

_NONE_LEFT: Final = object()


def check(chunksize: int, buffersize: int | None) -> None:
    """TypeError and ValueError as the standard library has them."""
    if chunksize < 1:
        raise ValueError(f"chunksize must be >= 1, not {chunksize}")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize must be None or > 0, not {buffersize}")


def ordered(
    submit: Begin,
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """The results of `calls`, which are handed over now: all, or `buffersize` at a time.

    `submit` is a weak reference, so that an executor that nobody holds may end with results still to be fetched.
    """
    deadline = deadline_after(timeout)
    begin = submit()
    assert begin is not None, "whoever calls this holds it"
    waiting = deque(begin(fn, *args) for args in islice(calls, buffersize))
    return _results(submit, fn, calls, waiting, deadline)


def _results(
    submit: Begin,
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]],
    waiting: "deque[Future[Any]]",
    deadline: float | None,
) -> Iterator[Any]:
    try:
        while waiting:
            begin = submit()
            args: Any = _NONE_LEFT if begin is None else next(calls, _NONE_LEFT)
            if begin is not None and args is not _NONE_LEFT:
                waiting.append(begin(fn, *args))
            del begin, args
            # Nothing here refers to the future or its result once it is given away.
            yield _take(waiting.popleft(), remaining(deadline))
    finally:
        for future in waiting:
            future.cancel()


def _take(future: "Future[T]", timeout: float | None) -> T:
    """The result. What has not ended is of no use any more. No cycle of a future and a traceback is left."""
    try:
        try:
            return future.result(timeout)
        finally:
            future.cancel()
    finally:
        del future


def chunked(
    submit: Begin,
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """The same with `chunksize` calls in one; `buffersize` counts chunks."""
    run = remote.chunk_async if is_async(fn) else remote.chunk
    parts = ((fn, part) for part in iter(lambda: tuple(islice(calls, chunksize)), ()))
    return _flat(ordered(submit, run, parts, timeout, buffersize))


def _flat(chunks: Iterable[list[Any]]) -> Iterator[Any]:
    for results in chunks:
        results.reverse()
        while results:
            yield results.pop()
