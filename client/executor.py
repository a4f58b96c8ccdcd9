"""QuiesceExecutor: a concurrent.futures.Executor whose calls are tasks of quiesce."""

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from quiesce.client import mapping, requests
from quiesce.client.calls import ShutDown
from quiesce.client.checks import name_of
from quiesce.client.client import Client
from quiesce.client.engine import Engine
from quiesce.client.private_broker import KIND, RUNTIME
from quiesce.client.progress import Meter, Show, checked, counting
from quiesce.client.waiting import wait_for
from quiesce.errors import QuiesceError, ShutdownRequested
from quiesce.protocol.callables import reference_to
from quiesce.protocol.labels import check_label
from quiesce.values import TaskKind

#: For calls that are to end because of a KeyboardInterrupt: seconds until they are forced.
_GRACE: Final = 1.0

P = ParamSpec("P")
T = TypeVar("T")


def _warn_of_globals(initializer: Callable[..., object]) -> None:
    """What travels by value has globals of its own: nobody else would see those that it sets."""
    code = getattr(initializer, "__code__", None)
    if code is None or reference_to(initializer) is not None:
        return
    import dis  # no executor needs it otherwise

    names = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"}
    if names:
        warnings.warn(
            f"the initializer sets {', '.join(sorted(names))}, which no call will see: a function of "
            "__main__, or one that can't be imported, travels to the workers by value, with globals of its "
            "own. Put it, and what uses these globals, into a module that the workers can import",
            RuntimeWarning,
            stacklevel=3,
        )


class QuiesceExecutor(Executor):
    """A `concurrent.futures.Executor` on a broker's pool, or on a private one.

        with QuiesceExecutor(4) as executor:
            print(list(executor.map(parse, paths)))

    With `client` or `address` it uses that broker. With neither it starts a private `quiesce up` with one
    pool of `max_workers` processes, one call at a time in each, and ends both with itself. A future raises
    the exception that its call raised, as this interface promises (a TaskHandle raises TaskFailedError from
    it); TaskCrashedError if the call's process died. One dead worker process loses its own call and no other; if
    the private `quiesce up` itself is killed, all calls end with BrokenExecutor, and no more are taken.
    Made inside a task, a private pool is part of it: the task ends when the pool has.
    A KeyboardInterrupt that leaves the block of a private pool stops the calls that run, and cancels the others.
    `Future.cancel` works until a call is handed to the pool, which at most `max_workers` + 1 are at a time;
    it never stops a running call. A call that has not been handed over when `client` is asked to stop its scope
    raises ScopeClosedError; through `current_client()`, TaskCancelledError when the task that made it has ended.
    Inside a task that is asked to stop, `result`, `exception`, `map` and `shutdown` end with ShutdownRequested;
    `concurrent.futures.wait` and `as_completed` know nothing of tasks.

    Args:
        max_workers: calls at a time; None: the number of processors.
        client: an open Client to use; it is not closed.
        address: of a broker to connect to.
        runtime, kind: of the tasks. None: "background" and `TaskKind.CALCULATE_SYNTHETIC_SIZE` of that
            broker; a private one has its own.
        tenant_id: of the tasks, so that `client.shutdown_tasks(tenant_id=...)` stops the running calls, and those
            that wait are not begun; None: none.
        env: variables for the processes of a private pool, besides those of this process.
        initializer, initargs: `initializer(*initargs)` is run in each worker process before its first
            call. If it fails, also by SystemExit, this executor is broken. It must be importable for the calls
            to see globals that it sets; a RuntimeWarning says so where it isn't.

    Raises:
        BrokerUnavailableError: no broker answered, or the private one could not start.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        client: Client | None = None,
        address: str | None = None,
        runtime: str | None = None,
        kind: str | None = None,
        tenant_id: str | None = None,
        env: Mapping[str, str] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0))
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int or None, not {max_workers!r}")
        if max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        if client is not None and address is not None:
            raise ValueError("give client or address, not both: the client has its own address")
        if client is not None and not isinstance(client, Client):
            raise TypeError(f"client must be a quiesce.Client or None, not {client!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None, not {initializer!r}")
        if initializer is not None:
            _warn_of_globals(initializer)
        private = client is None and address is None
        if private and (runtime is not None or kind is not None):
            raise ValueError(
                "runtime and kind are those of a broker: give its client or address too "
                "(a private broker has one of each)"
            )
        if env is not None and not private:
            raise ValueError("env is for a private pool: the processes of another run already")
        check_label("tenant_id", tenant_id)
        self._engine = Engine(
            client=client,
            address=address,
            max_workers=max_workers,
            runtime=RUNTIME if private else runtime or "background",
            kind=KIND if private else str(kind or TaskKind.CALCULATE_SYNTHETIC_SIZE),
            tenant_id=tenant_id,
            env=dict(env or {}),
            initializer=initializer,
            initargs=tuple(initargs),
        )
        self._private = private
        #: As the standard library's executors call it; dask reads it.
        self._max_workers = max_workers
        # Without the lock: a garbage collection comes between any two steps of anything.
        self._finalizer = weakref.finalize(self, self._engine.inbox.put, ShutDown(False))
        self._finalizer.atexit = False

    @property
    def client(self) -> Client:
        """The client that the calls go through, to look at their tasks and to stop them."""
        return self._engine.client

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, **kwargs)` in a worker; an `async def` is awaited there.

        Raises:
            RuntimeError: the executor has been shut down, or the interpreter ends.
            BrokenExecutor: its initializer has failed, or its private pool has ended by itself.
        """
        return self._engine.submit(fn, args, kwargs)

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: Show = None,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: Show = None,
    ) -> Iterator[T]: ...

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: Show = None,
    ) -> Iterator[Any]:
        """The results of `fn(a, b, ...)` for the items of the iterables, in order, as the builtin `map` ends.

        Args:
            timeout: seconds from this call for each result to come.
            chunksize: calls that are handed over together; more than 1 pays for many short ones. If one raises,
                its whole chunk does. Chunks that take far less than a millisecond share a task, and what ends
                that from outside: the death of its process, a stop.
            buffersize: how many chunks are on their way at most before a result is fetched; None: all are handed
                over at once, so the iterables must end. (As in Python 3.14, here in every version.)
            progress: True: a bar of how many calls have ended, if standard error is a terminal; a callable is
                given a `Progress`, in a thread of its own. The iterables must end, and are read at once.

        Raises:
            TimeoutError, and what the call raised: from the iterator, and the rest is cancelled.
            ValueError, TypeError: chunksize or buffersize is none.
        """
        mapping.check(chunksize, buffersize)
        checked(progress)
        submit: mapping.Begin = weakref.WeakMethod(self.submit)
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        meter = None
        if progress:
            listed = list(calls)
            calls, meter = iter(listed), Meter(len(listed), progress, name_of(fn))
            submit = counting(submit, meter, _one if chunksize == 1 else _part)
        if chunksize == 1:
            results = mapping.ordered(submit, fn, calls, timeout, buffersize)
        else:
            results = mapping.chunked(submit, fn, calls, timeout, chunksize, buffersize)
        if meter is not None and buffersize is not None:
            weakref.finalize(results, meter.stop)  # the rest is never handed over
        return results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when all have been run and everything has ended.

        Without `wait` they are run all the same, also when the interpreter ends meanwhile. In a forked copy of the
        process, whose calls they aren't, it does nothing.

        `cancel_futures`: cancel those that have not been handed to the pool.

        Raises:
            ShutdownRequested: `wait`, inside a task that is asked to stop. The calls that have not been handed to
                the pool are cancelled then, the others go on.
        """
        engine = self._engine
        if engine.forked:
            return
        engine.close(cancel_futures=cancel_futures)
        if wait and threading.current_thread() is not engine.thread:
            try:
                wait_for(engine.ended, engine.lock, None)
            except ShutdownRequested:
                engine.close(cancel_futures=True)
                raise
            engine.thread.join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        # Ctrl-C reaches the workers of the standard library, too, and ends their calls. Ours it does not.
        if self._private and isinstance(error, KeyboardInterrupt):
            self._stop_calls()
        self.shutdown()
        return False

    def _stop_calls(self) -> None:
        """Of a private pool: cancel those that wait, stop those that run. Does not wait for it."""
        self._engine.close(cancel_futures=True)
        # Kept closed: a call that is just being handed over is refused.
        stop = requests.stop(
            *(None, None, None, None),
            grace=_GRACE,
            timeout=None,
            keep_closed=True,
            reason="KeyboardInterrupt in the program",
        )
        with suppress(RuntimeError, QuiesceError):  # all have ended, and the client with them
            self.client._driver.ask(stop.message, orphan=True)


def _one(*_: Any) -> int:
    """The calls of a task: itself."""
    return 1


def _part(run: Any, fn: Any, part: tuple[Any, ...]) -> int:
    """Those of a chunk."""
    return len(part)
