"""The worker's event loop: one thread, made when the first coroutine comes, shared by all attempts.

asyncio is imported with it, here and in what else a worker needs of it: most workers never run a coroutine, and
it takes as long as all of ZeroMQ.
"""

import contextvars
import logging
import os
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from quiesce.context import TaskContext, _current
from quiesce.errors import ShutdownRequested
from quiesce.workers import logs
from quiesce.workers.forked import leave_child
from quiesce.workers.hands import start_own
from quiesce.workers.loop_state import make_own, own_factory, own_handler
from quiesce.workers.nursery import Nursery
from quiesce.workers.scope import Scope

if TYPE_CHECKING:
    import asyncio

_log: Final = logging.getLogger("quiesce.worker")


class LoopThread:
    """An event loop that outlives whatever its tasks raise."""

    def __init__(self, nursery: Nursery, threads: int) -> None:
        """`threads`: of its default executor, which `asyncio.to_thread` uses."""
        self._nursery = nursery
        self._threads = threads
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The loop's thread, 0 before there is one.
        self.ident = 0

    @property
    def running(self) -> "asyncio.AbstractEventLoop | None":
        """The loop, if there is one yet."""
        return self._loop

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function on the loop's thread, outside of every task. RuntimeError: that can't be started."""
        self._ensure().call_soon_threadsafe(function, *args, context=contextvars.Context())

    def _ensure(self) -> "asyncio.AbstractEventLoop":
        with self._lock:
            if self._loop is None:
                import asyncio

                loop = asyncio.new_event_loop()
                loop.set_task_factory(_make_task)  # type: ignore[arg-type]  # options differ by version
                loop.set_exception_handler(_on_exception)
                pool = ThreadPoolExecutor(self._threads, thread_name_prefix="quiesce-to-thread")
                loop.set_default_executor(pool)
                make_own(loop)  # ours stay
                _watch_timers(loop)
                thread = threading.Thread(
                    target=self._run, args=(loop,), name="quiesce-loop", daemon=True
                )
                try:
                    start_own(thread)
                except RuntimeError:
                    loop.close()
                    raise
                self.ident = thread.ident or 0
                self._loop = loop
                os.register_at_fork(after_in_child=self._forked)
            return self._loop

    def _forked(self) -> None:
        """In a child that a coroutine forks: nothing of its neighbours goes on there.

        Nor does it look at descriptors, which it shares with the worker: to read what wakes the loop would make
        the worker miss that. The private parts are those of `purge`.
        """
        loop: Any = self._loop
        if threading.get_ident() != self.ident or not hasattr(loop, "_selector"):
            return
        import asyncio

        # It has just forgotten it, and since Python 3.14 no task can go on without.
        asyncio._set_running_loop(loop)
        loop._ready.clear()
        loop._scheduled.clear()
        loop._selector = _Blind()
        loop.call_soon(_end_child, loop, context=contextvars.Context())

    def _run(self, loop: "asyncio.AbstractEventLoop") -> None:
        import asyncio

        asyncio.set_event_loop(loop)
        while True:
            # SystemExit and KeyboardInterrupt of one task leave run_forever; its neighbours go on.
            try:
                loop.run_forever()
            except BaseException as escaped:
                if self._nursery.in_child:
                    leave_child(escaped)
                name = type(escaped).__name__
                logs.say(_log.debug, "%s left the event loop; it goes on", name)


class _Blind:
    """The selector of a loop in a forked child."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


def _end_child(loop: Any) -> None:
    """In a forked child: let go on what it began itself; when all of that waits, nothing can wake it any more."""
    if loop._ready:
        loop.call_soon(_end_child, loop, context=contextvars.Context())
    else:
        leave_child(None)


def make_root(
    loop: "asyncio.AbstractEventLoop", coro: Coroutine[Any, Any, Any], context: contextvars.Context
) -> "asyncio.Task[Any]":
    """The task of a body, in the context of its attempt."""
    import asyncio

    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context)
    attempt = context.get(_current)
    if attempt is not None:
        attempt.scope.add_task(task)
    return task


def _make_task(
    loop: "asyncio.AbstractEventLoop", coro: Coroutine[Any, Any, Any], **options: Any
) -> "asyncio.Task[Any]":
    """The task factory: what is made in the context of an attempt belongs to it."""
    import asyncio

    attempt = _owner(options.get("context"))  # first: an eager task begins when it is made
    make = own_factory()
    task: asyncio.Task[Any] = (
        asyncio.Task(coro, loop=loop, **options) if make is None else make(loop, coro, **options)
    )
    if attempt is not None:
        attempt.scope.add_task(task)
    return task


def _watch_timers(loop: Any) -> None:
    """The attempts of timers are found by their contexts, when these attempts have ended (see `purge`)."""
    call_at = loop.call_at  # `call_later` rests on it

    def call_at_of_owner(*args: Any, context: contextvars.Context | None = None) -> Any:
        _owner(context)
        return call_at(*args, context=context)

    loop.call_at = call_at_of_owner


def _owner(context: contextvars.Context | None) -> TaskContext | None:
    """The attempt that something begun in this context belongs to. In one that knows of none: to who begins it."""
    here = _current.get()
    if context is None:
        return here
    attempt = context.get(_current)
    if attempt is None and here is not None:
        with suppress(RuntimeError):  # somebody is in it just now, and nobody can enter it twice
            context.run(_current.set, here)
        return here
    return attempt


def _on_exception(loop: "asyncio.AbstractEventLoop", context: dict[str, Any]) -> None:
    if isinstance(context.get("exception"), ShutdownRequested):
        _log.debug("a coroutine ended by ShutdownRequested, and nobody looked")
    elif (handler := own_handler(context)) is not None:
        handler(loop, context)
    else:
        loop.default_exception_handler(context)


def cancel_children(scope: Scope, root: "asyncio.Task[Any] | None" = None) -> None:
    """Cancel what an attempt has begun on this loop; on the loop's thread."""
    for task in list(scope.tasks):
        if task is not root:
            task.cancel()


def purge(loop: "asyncio.AbstractEventLoop", ended: Collection[TaskContext]) -> None:
    """Cancel the callbacks that these attempts have left in the loop: nothing of them may run any more.

    Timers, callbacks due now, and descriptors that are watched (a server it forgot). These are the
    loop's private parts, the same from Python 3.11 to 3.14; where they are missing there is nothing to do.
    """
    for handle in [*getattr(loop, "_ready", ()), *getattr(loop, "_scheduled", ())]:
        if _belongs(handle, ended):
            handle.cancel()
    selector = getattr(loop, "_selector", None)
    watched = None if selector is None else selector.get_map()
    for key in list((watched or {}).values()):
        reader, writer = key.data if isinstance(key.data, tuple) else (None, None)
        if _belongs(reader, ended):
            loop._remove_reader(key.fd)  # type: ignore[attr-defined]  # see above
        if _belongs(writer, ended):
            loop._remove_writer(key.fd)  # type: ignore[attr-defined]  # see above


def _belongs(handle: Any, ended: Collection[TaskContext]) -> bool:
    context = getattr(handle, "_context", None)
    return context is not None and context.get(_current) in ended
