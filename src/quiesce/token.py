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

Two objects stand behind a token. `_Node` is its place in the tree and its mark; it refers to no
code of the user's, so parents and children can hold each other. `_Watch` has all that waits for the
mark; only token objects hold it, and a node knows it weakly, so callbacks that mention their own
token keep nothing alive. When the last token object goes, so does the watch, and its node leaves
the tree, after handing its children to its parent.
"""

import asyncio
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, TypeVar, final

_T = TypeVar("_T")

_log: Final = logging.getLogger("quiesce")

#: What a lock can wait for, in seconds: about 292 years. An infinite timeout would raise.
_LONGEST_WAIT: Final = threading.TIMEOUT_MAX


class _Node:
    """A place in the tree, and the mark. Compared by identity; refers to no user code."""

    __slots__ = ("cancelled", "children", "gone", "parent", "reasons", "retired", "watch")

    def __init__(self) -> None:
        #: Set once, never cleared; `reasons` is not empty by then.
        self.cancelled = False
        #: The first one counts; more are there only if several cancels raced.
        self.reasons: list[str] = []
        #: The node above, if any. Every node that is not `gone` is among its parent's children, or
        #: is cancelled, or is being attached by a thread that has yet to look.
        self.parent: _Node | None = None
        #: Used as an ordered set. All nodes directly below; emptied after a finished cancel.
        self.children: dict[_Node, None] = {}
        #: No token object is left: nothing may be attached here any more.
        self.retired = False
        #: Retired, and the children are attached above: this node may be forgotten.
        self.gone = False
        #: What waits for the mark; dead once no token object is left.
        self.watch: weakref.ref[_Watch] | None = None

    def cancel(self, reason: str) -> None:
        """Mark this node and all below, wake who waits, then run callbacks.

        Called again, it does what is left of that.
        """
        marked: list[_Node] = []
        watches: list[_Watch] = []
        todo = [(self, reason)]
        while todo:
            node, why = todo.pop()
            if not node.reasons:
                node.reasons.append(why)
            node.cancelled = True  # before the look at the children; see attach()
            marked.append(node)
            why = node.reasons[0]
            # Also below a node that was marked before: whoever marked it may not be done yet.
            todo.extend([(child, why) for child in list(node.children)])
            watch = node.watch() if node.watch is not None else None
            if watch is not None:
                watches.append(watch)
        for watch in watches:
            watch.wake()
        error: BaseException | None = None
        for watch in watches:
            error = watch.fire(error)
        # Last of all: a cancel that was cut short above must find its way again.
        for node in marked:
            node.children.clear()
        if error is not None:
            raise error

    def attach(self, parent: "_Node | None") -> None:
        """Go below `parent`, or, if that has retired, the nearest node above that has not."""
        while parent is not None:
            parent.children[self] = None
            self.parent = parent
            if parent.cancelled:  # after entering its children; see cancel()
                self.cancel(parent.reasons[0])
            if self.gone:  # retire() may have looked at self.parent just before it changed
                parent.children.pop(self, None)
            if not parent.retired:  # else its retire() may have looked at its children just before
                return
            parent = parent.parent
        self.parent = None

    def retire(self) -> None:
        """Leave the tree; called once, when no token object is left. Children go to the parent.

        Until all of them are attached above, this node stays where it is, so that a cancel from
        above reaches each child on one way or the other at every moment.
        """
        self.retired = True
        for child in list(self.children):
            child.attach(self.parent)
        self.gone = True
        parent = self.parent  # once: its own retire() may be changing it
        if parent is not None:
            parent.children.pop(self, None)


class _Callback:
    """One registration of a callback."""

    __slots__ = ("fn", "gate")

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn = fn
        #: Held while it runs, for `remove()` to wait for. An RLock, so that a `remove()` in the
        #: thread that runs it, inside it or in a signal handler on top of it, does not wait.
        self.gate = threading.RLock()


class _Watch:
    """All that waits for one node's mark. Held by token objects only; its end is the node's.

    Snapshots of its dicts are made of keys alone: `list(d.items())` makes tuples, which on Python
    3.11 can start the garbage collector, and so any `__del__`, in the middle of the iteration.
    """

    __slots__ = ("__weakref__", "_baton", "callbacks", "descriptors", "node", "wakers")

    def __init__(self, node: _Node) -> None:
        self.node = node
        #: What wakes each waiter of ours, under a key of the waiter's own. A waker never blocks,
        #: may be called twice, and is taken away by cancel() or by its waiter, whoever is first.
        self.wakers: dict[object, Callable[[], None]] = {}
        #: Used as an ordered set. All and only the callbacks that have not begun; taking one out is
        #: the claim on it.
        self.callbacks: dict[_Callback, object] = {}
        #: Empty, or the one descriptor under `None`.
        self.descriptors: dict[None, _Descriptor] = {}
        #: Held by the thread that runs callbacks. Never waited for: who doesn't get it leaves the
        #: work to the holder, which also keeps callbacks that call cancel() from nesting.
        self._baton = threading.Lock()

    def __del__(self) -> None:
        self.node.retire()

    def wake(self) -> None:
        """Wake all waiters, threads and loops and the descriptor. Never raises an Exception."""
        for key in list(self.wakers):
            waker = self.wakers.get(key)
            if waker is None:
                continue
            try:
                waker()
            except Exception:
                _log.exception("a waiter on a cancelled token could not be woken")
            # After waking: if that was cut short, the next cancel() does it.
            self.wakers.pop(key, None)

    def fire(self, error: BaseException | None = None) -> BaseException | None:
        """Run all callbacks. Returns `error`, or else the first that was no Exception.

        The caller is to raise what is returned.
        """
        # Looks again after giving the baton back: who came meanwhile has relied on us.
        while self.callbacks and self._baton.acquire(blocking=False):
            try:
                for callback in list(self.callbacks):
                    with callback.gate:
                        if self._claim(callback):
                            error = _call(callback.fn, error)
            finally:
                self._baton.release()
        return error

    def remove(self, callback: _Callback) -> None:
        """See `CancellationToken.add_callback`."""
        if not self._claim(callback):
            with callback.gate:
                pass

    def _claim(self, callback: _Callback) -> bool:
        """Take a callback that has not begun, to run it or not; True for one caller only."""
        return self.callbacks.pop(callback, self) is not self


def _call(fn: Callable[[], object], error: BaseException | None = None) -> BaseException | None:
    """Run one callback and log what it raises.

    What is no Exception is returned instead, for the caller to raise, unless there is an `error`.
    """
    try:
        fn()
    except BaseException as raised:
        if error is None and not isinstance(raised, Exception):
            return raised
        _log.exception("a callback of a cancelled token raised: %r", fn)
    return error


class _Descriptor:
    """An eventfd that is readable once woken, however often somebody reads it."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        # As a semaphore, each read takes 1 of the 2**63 that wake() writes.
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)

    def wake(self) -> None:
        try:
            os.eventfd_write(self.fd, 2**63)
        except BlockingIOError:
            pass  # full: woken before

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "fd"):  # not if eventfd() raised
            close(self.fd)


def _release(latch: threading.Lock) -> None:
    try:
        latch.release()
    except RuntimeError:
        pass  # released before, by a cancel() in another thread


def _call_on(loop: asyncio.AbstractEventLoop, fn: Callable[[], object]) -> None:
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
        node = _Node()
        self._node = node
        self._watch = _Watch(node)
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
            if not self.is_cancelled():  # after entering the wakers; see _Node.cancel()
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
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        key = object()
        self._watch.wakers[key] = partial(_call_on, loop, partial(_resolve, future))
        try:
            if not self.is_cancelled():  # after entering the wakers; see _Node.cancel()
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
            if self.is_cancelled():  # after entering the wakers; see _Node.cancel()
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

        It runs in the thread that cancels, so it should be short; if the token is cancelled
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
            error = _call(fn)
            remove: Callable[[], None] = _nothing
        else:
            callback = _Callback(fn)
            self._watch.callbacks[callback] = None
            remove = partial(self._watch.remove, callback)
            # After entering the callbacks; see _Node.cancel().
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
            descriptor = watch.descriptors.setdefault(None, _Descriptor())
        # Each time: the thread that made it may not have come to this line yet.
        watch.wakers[descriptor] = descriptor.wake
        if self.is_cancelled():  # after entering the wakers; see _Node.cancel()
            descriptor.wake()
        return descriptor.fd

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
