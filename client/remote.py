"""What a QuiesceExecutor runs in the workers around the user's function."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, Final, NamedTuple

from quiesce.client.waiting import raise_if_asked
from quiesce.context import current_context
from quiesce.errors import PayloadTooLargeError, ShutdownRequested
from quiesce.protocol.callables import pack_value, unpack_arguments

#: Of several chunks in one task the next is not begun after so many seconds.
SECONDS: Final = 0.001
#: Bytes around the results of each chunk, at most, and around all of them.
_AROUND: Final = 32
_AROUND_ALL: Final = 256
#: How a task ends that is asked to stop: all of it, whatever chunks it has.
_STOPS: Final = (ShutdownRequested, asyncio.CancelledError)

_lock: Final = threading.Lock()
#: By executor: why its initializer failed here, or None if it didn't.
_done: Final[dict[str, str | None]] = {}


class Initializer(NamedTuple):
    """`function(*args)` is run once in each process, before the first call of executor `key` there."""

    key: str
    function: Callable[..., object]
    args: tuple[Any, ...]


class InitializerFailedError(BrokenExecutor):
    """The initializer of executor `key` has failed, in words.

    A class of its own: a call may raise any BrokenExecutor, of pools that it has itself, and has only failed then.
    """

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.key)


def initialise(initializer: Initializer) -> None:
    """Run it, unless this process has. InitializerFailedError if it fails, or has failed here before."""
    key = initializer.key
    with _lock:
        if key not in _done:
            try:
                initializer.function(*initializer.args)
                _done[key] = None
            except ShutdownRequested:
                raise  # the task is asked to stop: the next one runs it again
            except BaseException as error:
                _done[key] = f"the initializer failed in process {os.getpid()}: {error!r}"
        trouble = _done[key]
    if trouble is not None:
        raise InitializerFailedError(trouble, key)


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


class PartlyDoneError(Exception):
    """A chunk has failed, for the cause of this, behind others of its task: `results` are theirs, packed."""

    def __init__(self, results: list[bytes]) -> None:
        super().__init__(results)
        self.results = results

    def __str__(self) -> str:
        return f"{len(self.results)} chunks of the same task had ended before this one failed"


class Done(NamedTuple):
    """Of the chunks of one task, the results of those that were begun, packed; and what they took."""

    results: list[bytes]
    seconds: float


class _Share:
    """How far a task is with its chunks. A block of it is one chunk.

    None is begun behind `room` bytes of results; all of them must fit into `limit`.
    """

    def __init__(self, chunks: int, room: int, limit: int) -> None:
        self._chunks = chunks
        self._room = room
        self._limit = limit
        self._began = time.monotonic()
        self._results: list[bytes] = []
        self._bytes = 0

    def has_room(self) -> bool:
        """Whether the next chunk may be begun. ShutdownRequested: the task is asked to stop."""
        if not self._results:
            return True
        raise_if_asked(current_context())
        return self._bytes < self._room and time.monotonic() - self._began < SECONDS

    def add(self, result: list[Any]) -> None:
        """What a chunk came to."""
        packed = pack_value(result)
        size = self._bytes + len(packed) + _AROUND
        if self._results and size + _AROUND_ALL > self._limit:
            # It has run, so it must not be begun again; the others must not suffer from it.
            raise PayloadTooLargeError(
                f"the results of a chunk have {len(packed)} bytes, which is too close to the limit of "
                f"{self._limit} bytes for a task that has done other chunks before. Give `map` a smaller "
                "chunksize, or return where the data is (a path, a key)"
            )
        self._results.append(packed)
        self._bytes = size

    def done(self) -> Done:
        """All of it."""
        return Done(self._results, time.monotonic() - self._began)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Also SystemExit and KeyboardInterrupt, which a chunk may raise as any other code does.
        if self._chunks > 1 and error is not None and not isinstance(error, _STOPS):
            raise PartlyDoneError(self._results) from error


def chunks(packed: Sequence[bytes], room: int, limit: int) -> Done:
    """Chunks that share a task: the packed arguments of each. For `room` and `limit` see `_Share`."""
    share = _Share(len(packed), room, limit)
    for each in packed:
        if not share.has_room():
            break
        with share:
            share.add(chunk(*unpack_arguments(each)[0]))
    return share.done()


async def chunks_async(packed: Sequence[bytes], room: int, limit: int) -> Done:
    """The same for an `async def`."""
    share = _Share(len(packed), room, limit)
    for each in packed:
        if not share.has_room():
            break
        with share:
            share.add(await chunk_async(*unpack_arguments(each)[0]))
    return share.done()
