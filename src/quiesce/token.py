"""CancellationToken: one request to stop, seen by threads, event loops, selectors and callbacks.

How it is built, and why. `cancel()` has to work in a signal handler and in a `__del__` that the
garbage collector runs, that is, between any two steps of anything else in this file, in the same
thread. A lock that is waited for would deadlock there, and an RLock would let the second caller see
what the first has half done. So there is no lock to wait for. Each step is one operation on a list,
a dict or an attribute, which no thread sees half done, and after each step the tree is valid:

- A write that others must not miss comes *before* the look that makes up for it: a child enters
  its parent's `children` and then looks whether the parent is cancelled, while `cancel()` marks the
  parent and then looks at its `children`. At least one of the two sees the other.
- What two threads might do twice is harmless twice. A `cancel()` that finds another one at work, or
  one that an exception from a signal handler cut short, does itself what is left. So, whoever was
  first, all descendants are cancelled once any `cancel()` has returned.

Two objects stand behind a token. `Node` is its place in the tree and its mark; it refers to no
code of the user's, so parents and children can hold each other. `Watch` has all that waits for the
mark; only token objects hold it, and a node knows it weakly, so callbacks that mention their own
token keep nothing alive. When the last token object goes, so does the watch, and its node leaves
the tree, after handing its children to its parent.
"""

import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, final

from quiesce.token_tree import Callback, Descriptor, Node, Watch, call

if TYPE_CHECKING:
    # Elsewhere imported by the first coroutine that waits: most processes never have one, and it takes as
    # long as all that a worker needs of ZeroMQ.
    import asyncio

_T = TypeVar("_T")

#: What a lock can wait for, in seconds: about 292 years. An infinite timeout would raise.
_LONGEST_WAIT: Final = threading.TIMEOUT_MAX


def _release(latch: threading.Lock) -> None:
    try:
        latch.release()
    except RuntimeError:
        pass  # released before, by a cancel() in another thread


def _call_on(loop: "asyncio.AbstractEventLoop", fn: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(fn)
    except RuntimeError:
        if not loop.is_closed():
            raise
        # Nothing of a closed loop can wait any more.


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass


async def _dismiss(awaitable: Awaitable[object]) -> None:
    """End an awaitable that is not to start."""
    import asyncio

    if asyncio.isfuture(awaitable):
        awaitable.cancel()
        await asyncio.wait([awaitable])
        error = None if awaitable.cancelled() else awaitable.exception()
        if error is not None:
            raise error
    elif isinstance(awaitable, Coroutine):
        awaitable.close()


@final
class DropGuard:
    """Cancels a token when its `with` block is left, in whichever way.

    Made by `CancellationToken.drop_guard`. The idea is that of tokio_util's `DropGuard`. Here the
    end of the block counts: a guard that is never entered, or that is garbage collected, cancels
    nothing.
    """

    __slots__ = ("_armed", "_reason", "_token")

    def __init__(self, token: "CancellationToken", reason: str = "") -> None:
        self._token = token
        self._reason = reason
        self._armed = True

    def disarm(self) -> "CancellationToken":
        """Let the end of the block cancel nothing. Returns the token; may be called again."""
        self._armed = False
        return self._token

    def __enter__(self) -> "DropGuard":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._armed:
            self._token.cancel(self._reason)


@final
class CancellationToken:
    """One request to stop, that any number of threads, event loops and selectors can wait for.

    A new token stands alone; `child_token()` makes one below it. Cancelling goes down to all
    descendants and never up, and is final. Every method may be called from any thread, `cancel()`
    also from a signal handler or a `__del__`.

    Token objects are handles: `clone()` gives a second object of the same node, and tokens are
    equal, with the same hash, if and only if they are of the same node. A token is true for `if`
    whether cancelled or not; ask `is_cancelled()`.

    Dropping tokens cancels nothing and leaks nothing: a parent does not grow by children that came
    and went. A node's callbacks and its descriptor last as long as a token object of it does (a
    `remove` from `add_callback`, and a wait that is going on, count as one), and then go without
    having run; its descendants hear from its ancestors all the same.

    Tokens live in one process and can't be pickled. In a task, `quiesce.shutdown_token()` gives the
    one that a stop of the task cancels.

    The model is tokio_util's `CancellationToken`; `add_callback` follows C++'s
    `std::stop_callback`.
    """

    __slots__ = ("__weakref__", "_node", "_watch")

    def __init__(self) -> None:
        node = Node()
        self._node = node
        self._watch = Watch(node)
        node.watch = weakref.ref(self._watch)

    def is_cancelled(self) -> bool:
        """Whether this token or an ancestor was cancelled. Never goes back to False.

        As cheap as a call that reads an attribute, so that a loop can ask on every turn.
        """
        return self._node.cancelled

    @property
    def reason(self) -> str | None:
        """What was given to the first `cancel()` that reached this token; None while not cancelled.

        "" if no reason was given.
        """
        return self._node.reasons[0] if self._node.cancelled else None

    def cancel(self, reason: str = "") -> None:
        """Cancel this token and all its descendants. Their ancestors and siblings stay as they are.

        The first reason wins, for each token; to cancel again changes nothing. On return all
        descendants are cancelled, whether by this call or by another, and everyone who waited is
        woken. First all are marked, then the waiting threads, loops and descriptors are woken, then
        the callbacks run, in this thread: an ancestor's before its descendants', those of one token
        in the order in which they were added. If another thread is already running a token's
        callbacks, or this one is, further up the stack, then they are left to it, and this call
        doesn't wait.

        Waits for no lock, so it may be called from a signal handler, from `__del__`, or from a
        callback.

        Raises TypeError if `reason` is no str, and has done nothing then. What callbacks raise is
        logged to the logger "quiesce", except what is no `Exception` (as KeyboardInterrupt): of
        these the first is raised here, once all the others have run.
        """
        if not isinstance(reason, str):
            raise TypeError(
                f"the reason of a cancel is a str, not {type(reason).__name__}: {reason!r}"
                " (as a callback that is given arguments, use `lambda *_: token.cancel()`)"
            )
        self._node.cancel(reason)

    def child_token(self) -> "CancellationToken":
        """A new token that is cancelled with this one, and can be cancelled alone.

        The child of a cancelled token is born cancelled, with its reason. It hears of what happens
        above for as long as it lives, even when the tokens between have been dropped.
        """
        child = CancellationToken()
        child._node.attach(self._node)
        return child

    def clone(self) -> "CancellationToken":
        """A second token object of the same node, equal to this one.

        Unlike a child, it is cancelled both ways.
        """
        twin = object.__new__(CancellationToken)
        twin._node = self._node
        twin._watch = self._watch
        return twin

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until cancelled, or for `timeout` seconds; returns is_cancelled().

        None waits for ever; zero or less only looks. Not for the thread of an event loop, which
        would stand still: there, await `cancelled()`.
        """
        if self._node.cancelled or (timeout is not None and timeout <= 0):
            return self._node.cancelled
        # A bare lock and no Event: an Event has a lock of its own, and deadlocks if it is set by a
        # signal handler in the thread that is just about to wait for it.
        latch = threading.Lock()
        latch.acquire()
        key = object()
        self._watch.wakers[key] = partial(_release, latch)
        try:
            if not self.is_cancelled():  # after entering the wakers; see Node.cancel()
                latch.acquire(timeout=-1 if timeout is None else min(timeout, _LONGEST_WAIT))
            return self._node.cancelled
        finally:
            self._watch.wakers.pop(key, None)

    async def cancelled(self) -> None:
        """Return once cancelled; at once, without a turn of the loop, if it is already.

        For any event loop of asyncio's interface, and any number of loops in any threads at once.
        To cancel the waiting leaves nothing behind. A loop that is closed before the token is
        cancelled is passed over. As with all waiting in asyncio, somebody has to hold the waiting
        task. Elsewhere, await `fileno()`: in trio, `trio.lowlevel.wait_readable(token.fileno())`.

        Raises RuntimeError if it has to wait and no asyncio loop is running.
        """
        if self._node.cancelled:
            return
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        key = object()
        self._watch.wakers[key] = partial(_call_on, loop, partial(_resolve, future))
        try:
            if not self.is_cancelled():  # after entering the wakers; see Node.cancel()
                await future
        finally:
            self._watch.wakers.pop(key, None)

    async def run_until_cancelled(self, awaitable: Awaitable[_T]) -> _T | None:
        """Await `awaitable` and return its result, or None if this token was cancelled first.

        Then the awaitable is cancelled as by `Task.cancel()`, and this returns once it has ended,
        even if that takes long because it has something to finish. If it refuses and returns a
        value, that is dropped; an exception other than CancelledError is raised.

        If the token is cancelled at the call, nothing starts: a coroutine is closed, a task or
        future is cancelled and awaited.

        It runs in the calling task, as under `asyncio.timeout()`, so a cancel of that task from
        elsewhere ends both with CancelledError, as ever. The idea is that of tokio_util's method of
        this name, where the future is dropped.

        Raises TypeError if `awaitable` is none; RuntimeError outside of an asyncio task.
        """
        if not inspect.isawaitable(awaitable):
            raise TypeError(
                f"run_until_cancelled() takes an awaitable, not {type(awaitable).__name__}"
                " (was a coroutine function passed without calling it?)"
            )
        if self._node.cancelled:
            await _dismiss(awaitable)
            return None
        import asyncio

        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("run_until_cancelled() has to be awaited in an asyncio task")
        running, interrupted = True, False

        def interrupt() -> None:
            nonlocal interrupted
            if running and not interrupted:
                interrupted = True
                task.cancel()

        requests_before = task.cancelling()
        key = object()
        self._watch.wakers[key] = partial(_call_on, loop, interrupt)
        try:
            if self.is_cancelled():  # after entering the wakers; see Node.cancel()
                running = False
                await _dismiss(awaitable)
                return None
            result = await awaitable
        except asyncio.CancelledError:
            if interrupted and task.uncancel() <= requests_before:
                return None
            raise
        except BaseException:
            if interrupted:
                task.uncancel()
            raise
        else:
            if not interrupted:
                return result
            task.uncancel()
            return None
        finally:
            running = False
            self._watch.wakers.pop(key, None)

    def add_callback(self, fn: Callable[[], object]) -> Callable[[], None]:
        """Have `fn()` called once when this token is cancelled; returns what takes that back.

        It runs in the thread that cancels, so it should be short (when a task is asked to stop, in a
        thread for its callbacks alone: see `quiesce.shutdown_token`); if the token is cancelled
        already, at once in this thread, before `add_callback` returns. It runs under no lock of the
        token, and may use the token in any way. What it raises is logged; see `cancel`.

        After `remove()` has returned, `fn` does not start any more. If it is running in another
        thread, `remove()` waits until it has returned, as in C++ and .NET, so don't call it while
        holding what `fn` waits for. In the thread that runs `fn`, it returns at once: inside `fn`,
        or in a signal handler or `__del__` that interrupts that thread, even just before the
        start. Calling it again, or too late, does nothing.

        Someone has to hold the token or `remove` for as long as `fn` is to be called.

        Raises TypeError if `fn` can't be called.
        """
        if not callable(fn):
            raise TypeError(f"add_callback() takes a function without arguments, not {fn!r}")
        error: BaseException | None
        if self._node.cancelled:
            error = call(fn)
            remove: Callable[[], None] = _nothing
        else:
            callback = Callback(fn)
            self._watch.callbacks[callback] = None
            remove = partial(self._watch.remove, callback)
            # After entering the callbacks; see Node.cancel().
            error = self._watch.fire() if self.is_cancelled() else None
        if error is not None:
            raise error
        return remove

    def fileno(self) -> int:
        """A file descriptor that is readable once cancelled, for `select`, `poll` and selectors.

        Made at the first use, the same one from then on, and closed with the last token object of
        this node: hold one while you wait. It stays readable, even if you read from it. Don't write
        to it and don't close it. It is not inherited by programs that this process starts.

        Raises OSError if the process has no descriptor left.
        """
        watch = self._watch
        descriptor = watch.descriptors.get(None)
        if descriptor is None:
            # Of two threads that get here, one keeps its descriptor, and the other's is dropped.
            descriptor = watch.descriptors.setdefault(None, Descriptor())
        # Each time: the thread that made it may not have come to this line yet.
        watch.wakers[descriptor] = descriptor.wake
        if self.is_cancelled():  # after entering the wakers; see Node.cancel()
            descriptor.wake()
        return descriptor.fd

    def is_awaited(self) -> bool:
        """Whether something waits for this very node: a thread, a coroutine, a callback or a descriptor.

        The answer is about one moment; it is meant for diagnosis.
        """
        return bool(self._watch.wakers or self._watch.callbacks)

    def drop_guard(self, reason: str = "") -> DropGuard:
        """A context manager that cancels this token at the end of its block, unless disarmed.

        So that what was started for the block stops with it, even when the block raises::

            with token.drop_guard() as guard:
                ...  # an exception here cancels the token
                guard.disarm()  # this far: all went well, let it go on
        """
        return DropGuard(self, reason)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CancellationToken):
            return NotImplemented
        return self._node is other._node

    def __hash__(self) -> int:
        return hash(self._node)

    def __repr__(self) -> str:
        state = f"cancelled, reason={self.reason!r}" if self.is_cancelled() else "not cancelled"
        return f"<CancellationToken {id(self._node):#x}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a CancellationToken can't leave its process, so it can't be pickled. Don't pass it to"
            " a task: in the task, call quiesce.shutdown_token(), which is cancelled when that is"
            " asked to stop; and ask with TaskHandle.shutdown() or Client.shutdown_tasks()."
            " (Within the process, clone() makes a second object of the same token.)"
        )


__all__ = ["CancellationToken", "DropGuard"]
