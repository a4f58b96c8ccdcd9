"""QuiesceExecutor: a concurrent.futures.Executor whose calls are tasks of quiesce."""

import atexit
import os
import queue
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from quiesce.client import initialised
from quiesce.client.checks import name_of
from quiesce.client.client import Client
from quiesce.client.handle import conclude
from quiesce.client.private_broker import KIND, RUNTIME, PrivateBroker
from quiesce.client.records import SpawnRecord, log
from quiesce.client.waiting import Waitable, Waker, wait_for
from quiesce.context import current_context
from quiesce.errors import (
    BrokerUnavailableError,
    QuiesceError,
    ShutdownRequested,
    TaskCrashedError,
    TaskFailedError,
    TaskTimeoutError,
)
from quiesce.values import TaskKind

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds for a private broker to answer.
_START_TIMEOUT: Final = 60.0
#: Seconds at the interpreter's end for what is still to be run, when nobody has shut the executor down.
_AT_EXIT: Final = 30.0
#: Beyond one per worker, so that none is idle while the next call is on its way.
_AHEAD: Final = 1


class _TaskFuture(Future[T]):
    """A future whose blocking calls end with ShutdownRequested inside a task that is asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = Waitable()
        self._ended_lock = threading.Lock()
        self._watched = False

    def result(self, timeout: float | None = None) -> T:
        """As concurrent.futures has it."""
        return super().result(self._wait_in_task(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As concurrent.futures has it."""
        return super().exception(self._wait_in_task(timeout))

    def _wait_in_task(self, timeout: float | None) -> float | None:
        """What is left to be waited for: nothing, if this has waited already."""
        if self.done() or current_context() is None:
            return timeout
        with self._ended_lock:
            watched, self._watched = self._watched, True
        if not watched:
            self.add_done_callback(self._on_done)
        wait_for(self._ended, self._ended_lock, timeout)
        return 0.0

    def _on_done(self, _: Future[T]) -> None:
        wakers: list[Waker] = []
        with self._ended_lock:
            self._ended.finish(wakers)
        for waker in wakers:
            waker()


class _Call(NamedTuple):
    future: "Future[Any]"
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Ended(NamedTuple):
    call: _Call
    record: SpawnRecord


class _ShutDown(NamedTuple):
    cancel_futures: bool


class _Engine:
    """The thread behind an executor: hands calls to the client, results to the futures.

    It holds back all but a few calls, so that a future which has not begun can be cancelled for sure. It
    does not refer to the executor, so that the executor can go without being shut down.
    """

    def __init__(
        self,
        *,
        client: Client | None,
        address: str | None,
        max_workers: int,
        runtime: str,
        kind: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self.inbox: queue.SimpleQueue[_Call | _Ended | _ShutDown] = queue.SimpleQueue()
        self.started = threading.Event()
        self.trouble: BaseException | None = None
        self._client = client
        self._address = address
        self._own_client = client is None
        self._workers = max_workers
        self._room = max_workers + _AHEAD
        self._runtime = runtime
        self._kind = kind
        self._initializer = initializer
        self._initargs = initargs
        self._key = uuid.uuid4().hex
        self._pending: deque[_Call] = deque()
        self._running: set[Future[Any]] = set()
        self.broken: str | None = None
        #: Over once the thread has nothing left to do; guarded by `lock`.
        self.ended = Waitable()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._main, name="quiesce-executor", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        private: PrivateBroker | None = None
        try:
            try:
                if self._client is None and self._address is None:
                    private = PrivateBroker(self._workers)
                    self._client = _connect(private)
                elif self._client is None:
                    self._client = Client(self._address)
            except BaseException as error:  # for the constructor, which waits for it
                self.trouble = error
                return
            finally:
                self.started.set()
            self._serve(self._client)
        except Exception as error:
            log.exception("a QuiesceExecutor has failed")
            self._break(f"the executor has failed inside: {error!r}")
        finally:
            self._end(private)

    def _end(self, private: PrivateBroker | None) -> None:
        try:
            if self._own_client and self._client is not None:
                self._client.close()
        except QuiesceError as error:
            log.warning("a QuiesceExecutor could not close its client: %s", error)
        finally:
            if private is not None:
                private.stop()
            wakers: list[Waker] = []
            with self.lock:
                self.ended.finish(wakers)
            for waker in wakers:
                waker()

    def _serve(self, client: Client) -> None:
        shut_down = False
        while not (shut_down and not self._pending and not self._running):
            message = self.inbox.get()
            if isinstance(message, _Call):
                self._pending.append(message)
            elif isinstance(message, _Ended):
                self._running.discard(message.call.future)
                self._resolve(message)
            else:
                shut_down = True
                if message.cancel_futures:
                    self._cancel_pending()
            while self._pending and len(self._running) < self._room:
                self._begin(client, self._pending.popleft())

    def _begin(self, client: Client, call: _Call) -> None:
        future = call.future
        if not future.set_running_or_notify_cancel():
            return
        if self.broken is not None:
            future.set_exception(BrokenExecutor(self.broken))
            return
        try:
            if self._initializer is None:
                fn, args, kwargs = call.fn, call.args, call.kwargs
            else:
                fn, kwargs = initialised.call, {}
                args = (
                    self._key,
                    self._initializer,
                    self._initargs,
                    call.fn,
                    call.args,
                    call.kwargs,
                )
            record = client._spawn(self._runtime, self._kind, fn, args, kwargs, **_options(call.fn))
        except BaseException as error:  # of this call alone: unpicklable, the client closed
            future.set_exception(error)
            return
        self._running.add(future)
        ended = _Ended(call, record)
        if not record.add_waker(client._driver.lock, partial(self.inbox.put, ended)):
            self.inbox.put(ended)

    def _resolve(self, ended: _Ended) -> None:
        future, record = ended.call.future, ended.record
        try:
            value = conclude(record)
        except BaseException as error:
            original = _original(error)
            if self._initializer is not None and isinstance(original, BrokenExecutor):
                self._break(str(original))
            future.set_exception(original)
        else:
            future.set_result(value)

    def _cancel_pending(self) -> None:
        for call in self._pending:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        self._pending.clear()

    def _break(self, why: str) -> None:
        """Nothing more can be run."""
        self.broken = why
        for call in self._pending:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(BrokenExecutor(why))
        self._pending.clear()

    def at_exit(self) -> None:
        """The interpreter ends: what was submitted is still run, for a while."""
        self.inbox.put(_ShutDown(False))
        self.thread.join(_AT_EXIT)


class QuiesceExecutor(Executor):
    """A `concurrent.futures.Executor` on a broker's pool, or on a private one.

        with QuiesceExecutor(4) as executor:
            print(list(executor.map(parse, paths)))

    With `client` or `address` it uses that broker. With neither it starts a private `quiesce up` with one
    pool of `max_workers` processes, one call at a time in each, and ends both with itself. A future raises
    the exception that its call raised, as this interface promises (a TaskHandle raises TaskFailedError from
    it); TaskCrashedError if the call's process died. One dead process loses its own call and no other.
    `Future.cancel` works until a call is handed to the pool, which at most `max_workers` + 1 are at a time;
    it never stops a running call. Inside a task that is asked to stop, `result`, `exception`, `map` and `shutdown`
    end with ShutdownRequested; `concurrent.futures.wait` and `as_completed` know nothing of tasks.

    Args:
        max_workers: calls at a time; None: the number of processors.
        client: an open Client to use; it is not closed.
        address: of a broker to connect to.
        runtime, kind: of the tasks. None: "background" and `TaskKind.CALCULATE_SYNTHETIC_SIZE` of that
            broker; a private one has its own.
        initializer, initargs: `initializer(*initargs)` is run in each worker process before its first
            call. If it fails, this executor is broken.

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
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0))
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int or None, not {max_workers!r}")
        if max_workers <= 0:
            raise ValueError(f"max_workers must be more than 0, not {max_workers}")
        if client is not None and address is not None:
            raise ValueError("give client or address, not both: the client has its own address")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None, not {initializer!r}")
        private = client is None and address is None
        if private and (runtime is not None or kind is not None):
            raise ValueError(
                "runtime and kind are those of a broker: give its client or address too "
                "(a private broker has one of each)"
            )
        self._engine = _Engine(
            client=client,
            address=address,
            max_workers=max_workers,
            runtime=RUNTIME if private else runtime or "background",
            kind=KIND if private else str(kind or TaskKind.CALCULATE_SYNTHETIC_SIZE),
            initializer=initializer,
            initargs=tuple(initargs),
        )
        self._max_workers = max_workers
        self._lock = threading.Lock()
        self._shut_down = False
        self._engine.started.wait()
        if self._engine.trouble is not None:
            self._engine.thread.join()
            raise self._engine.trouble
        # After the client's own: run before it.
        atexit.register(self._engine.at_exit)
        self._finalizer = weakref.finalize(self, self._engine.inbox.put, _ShutDown(False))
        self._finalizer.atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `fn(*args, **kwargs)` in a worker.

        Raises:
            RuntimeError: the executor has been shut down.
            BrokenExecutor: its initializer has failed.
        """
        with self._lock:
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._engine.broken is not None:
                raise BrokenExecutor(self._engine.broken)
            if not self._engine.thread.is_alive():
                raise RuntimeError("the executor has ended")
            future: Future[T] = _TaskFuture()
            self._engine.inbox.put(_Call(future, fn, args, kwargs))
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when all have been run and everything has ended.

        `cancel_futures`: cancel those that have not been handed to the pool.

        Raises:
            ShutdownRequested: `wait`, inside a task that is asked to stop. The calls that have not been handed to
                the pool are cancelled then, the others go on.
        """
        with self._lock:
            self._shut_down = True
            self._engine.inbox.put(_ShutDown(cancel_futures))
        if wait and threading.current_thread() is not self._engine.thread:
            try:
                wait_for(self._engine.ended, self._engine.lock, None)
            except ShutdownRequested:
                self._engine.inbox.put(_ShutDown(True))
                raise
            self._engine.thread.join()
            atexit.unregister(self._engine.at_exit)


def _connect(private: PrivateBroker) -> Client:
    """A client of it, as soon as it answers; at once the reason if it ends instead."""
    waited = 0.0
    while True:
        try:
            return Client(private.address, timeout=1.0)
        except BrokerUnavailableError:
            ended = private.unavailable()
            if ended is not None:
                raise ended from None
            waited += 1.0
            if waited >= _START_TIMEOUT:
                raise


def _options(fn: Callable[..., Any]) -> dict[str, Any]:
    """What a call leaves open of a spawn; its name is that of the user's function."""
    return {
        "tenant_id": None,
        "timeline_id": None,
        "name": name_of(fn),
        "shutdown_process_on_error": False,
        "retries": 0,
        "restart": "never",
        "timeout": None,
        "unique_key": None,
    }


def _original(error: BaseException) -> BaseException:
    """What the call raised, with the remote traceback as its cause."""
    cause = error.__cause__
    if isinstance(error, TaskFailedError | TaskCrashedError | TaskTimeoutError) and cause:
        error.__cause__ = None
        if cause.__cause__ is None:
            cause.__cause__ = error
        return cause
    return error
