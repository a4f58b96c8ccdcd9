"""The thread behind a QuiesceExecutor: hands calls to the client, results to the futures."""

import atexit
import contextvars
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from itertools import chain
from typing import Any, Final

from quiesce.client import outcomes, remote, sharing
from quiesce.client.calls import Call, Ended, Message, PoolEnded, ShutDown, Stopped
from quiesce.client.checks import caller, name_of
from quiesce.client.client import Client
from quiesce.client.handle import failure
from quiesce.client.mailbox import PROCESS
from quiesce.client.private_broker import PrivateBroker
from quiesce.client.records import SpawnRecord, log
from quiesce.client.sharing import Sharing
from quiesce.client.task_future import TaskFuture, original, rebuilt
from quiesce.client.waiting import Waitable, Waker, wait_for
from quiesce.errors import QuiesceError, ScopeClosedError
from quiesce.locks import Lock
from quiesce.protocol.callables import is_async, pack_arguments
from quiesce.registry.scope import Scope

#: At the interpreter's end: seconds without an answer of the broker after which it is not waited for any more.
_SILENCE: Final = 30.0
#: Beyond one per worker, so that none is idle while the next call is on its way; of short chunks more, as many as
#: take so many seconds, and so many at most.
_AHEAD: Final = 1
_AHEAD_SECONDS: Final = 0.004
_AHEAD_MOST: Final = 64

AFTER_SHUTDOWN: Final = "cannot schedule new futures after shutdown"
_AT_EXIT: Final = "cannot schedule new futures after interpreter shutdown"
_ENDED: Final = "cannot schedule new futures: the executor has ended"


class Engine:
    """See the module.

    It holds back all but a few calls, so that a future which has not begun can be cancelled for sure; of the
    chunks of a `map` a few more, as long as they are short. Such chunks share a task, too, by what the last ones
    took; what a task gives back is handed over again. It does not refer to the executor, so that the executor
    can go without being shut down; and of a call it keeps nothing once it is on its way (a chunk until it ends).
    What is held back when its client is asked to stop the scope is never handed over: else it would trail the stop.
    """

    def __init__(
        self,
        *,
        client: Client | None,
        address: str | None,
        max_workers: int,
        runtime: str,
        kind: str,
        tenant_id: str | None,
        env: Mapping[str, str],
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        started = threading.Event()
        self._trouble: BaseException | None = None
        self._client = client
        self._address = address
        self._own_client = client is None
        self._workers = max_workers
        self._ahead = _AHEAD
        #: When the last call ended, and seconds from one end to the next: slow ones count at once.
        self._ended_at = 0.0
        self._pace = 1.0
        self._sharing = Sharing(max_workers)
        self._runtime = runtime
        self._kind = kind
        self._tenant_id = tenant_id
        self._env = env
        self._initializer = (
            None
            if initializer is None
            else remote.Initializer(uuid.uuid4().hex, initializer, initargs)
        )
        self._pending: deque[Call] = deque()
        self._running: set[tuple[Future[Any], ...]] = set()
        #: Those that are just being begun or resolved, and so may be in neither.
        self._at: Sequence[Future[Any]] = ()
        self._broken: str | None = None
        #: Why no more calls are taken; "" while they are. Guarded by `lock`, as is the putting of calls.
        self._closed = ""
        #: Guarded by `lock`: calls taken; those up to which a stop has overtaken what was held back, and its words.
        self._taken = 0
        self._stopped_through = 0
        self._stopped_by = ""
        #: Over once the thread has nothing left to do; guarded by `lock`.
        self.ended = Waitable()
        self.lock = Lock()
        self._pid = PROCESS.pid
        self.thread = threading.Thread(
            target=self._main,
            args=(started, contextvars.copy_context()),
            name="quiesce-executor",
            daemon=True,
        )
        try:
            self.thread.start()
            started.wait()
            self._raise_trouble()
            # After the client's own: run before it.
            atexit.register(self.at_exit)
        except BaseException:  # a KeyboardInterrupt, too: nobody will ever have this
            self.inbox.put(ShutDown(False))
            raise

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            self.thread.join()
            raise self._trouble

    @property
    def client(self) -> Client:
        """What the calls go through."""
        assert self._client is not None, "made before the constructor returned"
        return self._client

    # --- from any thread ---------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Nothing more can be run: its private pool has ended, its initializer has failed, or it has itself."""
        return self._broken is not None

    @property
    def forked(self) -> bool:
        """This is a copy in a forked process, where the thread does not exist."""
        # Asked before the lock is taken, which a thread that didn't survive may have held.
        return PROCESS.pid != self._pid

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "Future[Any]":
        """Take a call. RuntimeError: it is shut down, or has ended. BrokenExecutor: nothing more can be run."""
        if self.forked:
            raise RuntimeError(
                f"this executor was made in process {self._pid} and does not survive a fork: make a new one in "
                f"process {PROCESS.pid}"
            )
        future = TaskFuture()
        # Through another client it may be another broker, which knows nothing of this attempt.
        parent = caller() if self.client._is_of_worker else None
        with self.lock:
            if self._broken is not None:
                raise BrokenExecutor(self._broken)
            if self._closed:
                raise RuntimeError(self._closed)
            self._taken += 1
            shared = sharing.together(fn)
            self.inbox.put(Call(self._taken, parent, future, fn, args, kwargs, shared))
        return future

    def on_stop(self, scope: Scope) -> None:
        """The client is about to be asked for this stop. No call of before is handed over after it.

        It waits for nothing that this thread does: a callback of a future may wait for whoever asks.
        """
        if self.forked or not scope.matches(self._kind, self._tenant_id, None, self._runtime):
            return
        with self.lock:
            self._stopped_through = self._taken
            self._stopped_by = str(scope)
            self.inbox.put(Stopped())

    def close(self, *, cancel_futures: bool, why: str = AFTER_SHUTDOWN) -> None:
        """Take no more calls."""
        if self.forked:
            return
        with self.lock:
            self._closed = self._closed or why
            self.inbox.put(ShutDown(cancel_futures))

    def at_exit(self) -> None:
        """The interpreter ends: what was submitted is still run, as long as there is a broker to run it."""
        self.close(cancel_futures=False, why=_AT_EXIT)
        # Not by `is_alive`: a KeyboardInterrupt in one of these takes a thread that lives for one that has ended.
        while not (self.forked or wait_for(self.ended, self.lock, _SILENCE / 6)):
            silence = None if self._client is None else self._client._driver.silence()
            if silence is not None and silence > _SILENCE:
                log.warning("a QuiesceExecutor gives up its calls: no broker for %.0f s", silence)
                return

    # --- the thread --------------------------------------------------------------------------

    def _main(self, started: threading.Event, maker: contextvars.Context) -> None:
        private: PrivateBroker | None = None
        try:
            try:
                if self._client is None and self._address is None:
                    # This thread belongs to no task. What it starts here belongs to the one that wanted it, if any,
                    # which so ends only when all of it has.
                    private = maker.run(PrivateBroker, self._workers, self._env)
                    self._client = private.connect()
                    private.watch(lambda why: self.inbox.put(PoolEnded(why)))
                elif self._client is None:
                    self._client = Client(self._address)
                self._client._before_stop.add(self.on_stop)
            except BaseException as error:  # for the constructor, which waits for it
                self._trouble = error
                return
            finally:
                del maker
                started.set()
            self._serve(self._client)
        except Exception as error:
            log.exception("a QuiesceExecutor has failed")
            self._break(f"the executor has failed inside: {error!r}")
        finally:
            self._end(private)

    def _end(self, private: PrivateBroker | None) -> None:
        try:
            self._give_up()
            if self._client is not None:
                self._client._before_stop.discard(self.on_stop)
            if private is not None and self._client is not None and private.failure() is not None:
                # Nobody is there to answer. Others may have the client, too, who have not closed it.
                self._client._end(0, private.obituary())
            elif self._own_client and self._client is not None:
                self._client.close()
        except QuiesceError as error:
            log.warning("a QuiesceExecutor could not close its client: %s", error)
        finally:
            if private is not None:
                private.stop()
            if self._closed != _AT_EXIT:
                atexit.unregister(self.at_exit)
            wakers: list[Waker] = []
            with self.lock:
                self.ended.finish(wakers)
            for waker in wakers:
                waker()

    def _serve(self, client: Client) -> None:
        shut_down = False
        while not (shut_down and not self._pending and not self._running):
            message = self.inbox.get()
            if isinstance(message, Call):
                self._pending.append(message)
            elif isinstance(message, Ended):
                self._at = message.futures
                self._running.discard(message.futures)
                self._adapt()
                if message.chunks:
                    self._resolve_chunks(message.chunks, message.record)
                else:
                    self._resolve(message.futures[0], message.record)
            elif isinstance(message, Stopped):
                self._refuse_stopped()
            elif isinstance(message, PoolEnded):
                self._break(message.why)
                return
            else:
                shut_down = True
                if message.cancel_futures:
                    self._cancel_pending()
            del message  # nothing of it may live through the next wait
            while self._pending and self._has_room(self._pending[0]):
                self._begin_next(client)
            self._at = ()

    def _adapt(self) -> None:
        """A call has ended: by the pace of the last ones, how many chunks may be handed over ahead."""
        now = time.monotonic()
        self._pace = max(now - self._ended_at, self._pace / 2)
        self._ended_at = now
        self._ahead = _AHEAD
        if self._pace < _AHEAD_SECONDS:
            self._ahead = min(_AHEAD_MOST, _AHEAD + int(_AHEAD_SECONDS / max(self._pace, 1e-6)))

    def _has_room(self, call: Call) -> bool:
        """Whether this call may be handed over now. Nobody but `map` has the futures of its chunks.

        More than a few are only if their task is full: those that wait a little travel together.
        """
        waiting = len(self._pending)
        full = call.together is not None and waiting >= self._sharing.share_for(call, waiting)
        return len(self._running) < self._workers + (self._ahead if full else _AHEAD)

    def _begin_next(self, client: Client) -> None:
        call = self._pending[0]
        if call.together is not None:
            self._begin_chunks(client, call.together)
            return
        self._at = (call.future,)
        self._pending.popleft()
        if self._takes(call.future):
            self._begin(client, call, call.fn, call.args, call.kwargs, call.fn)

    def _begin_chunks(self, client: Client, together: Callable[..., Any]) -> None:
        """The next chunk, and those behind it that may share its task."""
        first, limit = self._pending[0], client._driver.payload_limit
        fn = first.args[0]
        share = self._sharing.share_for(first, len(self._pending))
        room = sharing.argument_room(limit)
        self._at = futures = list[Future[Any]]()
        chunks: list[Call] = []
        packed: list[bytes] = []
        while len(chunks) < share and self._pending:
            call = self._pending[0]
            alike = call.together is together and call.args[0] is fn
            if not alike or call.parent != first.parent:
                break
            futures.append(call.future)
            try:
                data = pack_arguments(call.args) if self._takes(call.future) else b""
            except BaseException as error:  # of this chunk alone: unpicklable
                call.future.set_exception(error.with_traceback(None))
                data = b""
            if chunks and len(data) > room:
                break
            self._pending.popleft()
            if data:
                chunks.append(call)
                packed.append(data)
                room -= len(data)
        if chunks:
            args = (packed, sharing.result_room(limit), limit)
            self._begin(client, chunks[0], together, args, {}, fn, tuple(chunks))

    def _takes(self, future: "Future[Any]") -> bool:
        """Whether it is to be run: it was not cancelled, nor is the executor broken."""
        if not (future.running() or future.set_running_or_notify_cancel()):
            return False
        if self._broken is not None:
            future.set_exception(BrokenExecutor(self._broken))
            return False
        return True

    def _begin(
        self,
        client: Client,
        call: Call,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        named: Callable[..., Any],
        chunks: tuple[Call, ...] = (),
    ) -> None:
        """`call`: the only one of this task, or the first of its chunks. `named`: what the task is called after."""
        futures = tuple(each.future for each in chunks) or (call.future,)
        try:
            name = name_of(named)
            if self._initializer is not None:
                args, kwargs = (self._initializer, fn, args, kwargs), {}
                fn = remote.call_async if is_async(fn) else remote.call
            asked = (
                self._runtime,
                self._kind,
                fn,
                self._tenant_id,
                None,  # timeline_id
                name,
                False,  # shutdown_process_on_error
                0,  # retries
                "never",  # restart
                None,  # timeout
                None,  # unique_key
            )
            record = client._prepared(args, kwargs, asked, call.parent)
            for future in futures if call.parent else ():
                assert isinstance(future, TaskFuture), "see `submit`"
                future.spawned = (client, record)
            with self.lock:
                overtaken = call.number <= self._stopped_through
                if not overtaken:
                    client._hand_over(record)
        except BaseException as error:  # of these alone: unpicklable, odd, the client closed
            for future in futures:
                future.set_exception(error.with_traceback(None))
            return
        if overtaken:
            self._pending.extendleft(reversed(chunks or (call,)))
            self._refuse_stopped()
            return
        self._running.add(futures)
        ended = Ended(futures, chunks, record)
        if not record.add_waker(client._driver.lock, partial(self.inbox.put, ended)):
            self.inbox.put(ended)

    def _resolve(self, future: "Future[Any]", record: SpawnRecord) -> None:
        error = _failure(record)
        if error is None:
            assert record.result is not None
            try:
                packed = record.result.result
                future.set_result(rebuilt(outcomes.rebuilt, packed, record.task_id, record.name))
                return
            except QuiesceError as unreadable:
                error = unreadable.with_traceback(None)
        self._fail(future, error)

    def _resolve_chunks(self, chunks: tuple[Call, ...], record: SpawnRecord) -> None:
        """Each gets what is its own; those that were not begun go first in the next tasks."""
        error = _failure(record)
        if error is None:
            assert record.result is not None
            packed = record.result.result
            done: remote.Done = outcomes.rebuilt(packed, record.task_id, record.name)
            results, rest = done.results, list(chunks[len(done.results) :])
            self._sharing.learn(chunks[0], done)
        elif isinstance(error.__cause__, remote.PartlyDoneError):
            results = error.__cause__.results
            failed, *rest = chunks[len(results) :]
            error.__cause__ = error.__cause__.__cause__
            self._fail(failed.future, error)
        else:
            for call in chunks:
                self._fail(call.future, _failure(record) or error)
            return
        for call, result in zip(chunks, results, strict=False):
            try:
                value = rebuilt(outcomes.rebuilt, result, record.task_id, record.name)
                call.future.set_result(value)
            except QuiesceError as unreadable:
                self._fail(call.future, unreadable.with_traceback(None))
        self._pending.extendleft(reversed(rest))

    def _fail(self, future: "Future[Any]", error: BaseException) -> None:
        error = original(error)
        own = self._initializer
        if isinstance(error, remote.InitializerFailedError) and own and error.key == own.key:
            self._break(str(error))
        future.set_exception(error)

    def _cancel_pending(self) -> None:
        pending, self._pending = self._pending, deque()
        for call in pending:
            if call.future.cancel():
                call.future.set_running_or_notify_cancel()
            else:  # a chunk that a task has given back undone
                self._pending.append(call)

    def _refuse_stopped(self) -> None:
        """What a stop has overtaken fails as a spawn into its closed scope does."""
        with self.lock:
            through, by = self._stopped_through, self._stopped_by
        pending, self._pending = self._pending, deque()
        for call in pending:
            if call.number > through:
                self._pending.append(call)
            elif self._takes(call.future):
                text = f"nothing was started: the stop of [{by}] came before the pool had room for this call"
                call.future.set_exception(ScopeClosedError(text))

    def _break(self, why: str) -> None:
        """Nothing more can be run."""
        with self.lock:
            self._broken = why
        while self._pending:
            self._takes(self._pending.popleft().future)

    def _give_up(self) -> None:
        """The thread ends: no future is left that nobody will ever complete."""
        with self.lock:
            self._closed = self._closed or _ENDED
        while not self.inbox.empty():
            message = self.inbox.get()
            if isinstance(message, Call):
                self._pending.append(message)
        left = [*chain(self._at, *self._running)]
        if self._pending or left:
            why = self._broken or "the executor has ended"
            self._break(why)
            for future in left:
                if not future.done():
                    future.set_exception(BrokenExecutor(why))
            self._running.clear()


def _failure(record: SpawnRecord) -> QuiesceError | None:
    """As `failure`; if what the task raised can't be rebuilt, that."""
    try:
        return rebuilt(failure, record)
    except QuiesceError as unreadable:
        return unreadable.with_traceback(None)
