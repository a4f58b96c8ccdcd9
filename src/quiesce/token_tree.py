"""What stands behind a cancellation token: its place in the tree, and what waits for the mark.

`quiesce.token` says how it is built and why, in its first lines; the public class is there.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger("quiesce")


class Node:
    """A place in the tree, and the mark. Compared by identity; refers to no user code."""

    __slots__ = ("cancelled", "children", "gone", "parent", "reasons", "retired", "watch")

    def __init__(self) -> None:
        #: Set once, never cleared; `reasons` is not empty by then.
        self.cancelled = False
        #: The first one counts; more are there only if several cancels raced.
        self.reasons: list[str] = []
        #: The node above, if any. Every node that is not `gone` is among its parent's children, or
        #: is cancelled, or is being attached by a thread that has yet to look.
        self.parent: Node | None = None
        #: Used as an ordered set. All nodes directly below; emptied after a finished cancel.
        self.children: dict[Node, None] = {}
        #: No token object is left: nothing may be attached here any more.
        self.retired = False
        #: Retired, and the children are attached above: this node may be forgotten.
        self.gone = False
        #: What waits for the mark; dead once no token object is left.
        self.watch: weakref.ref[Watch] | None = None

    def cancel(self, reason: str) -> None:
        """Mark this node and all below, wake who waits, then run callbacks.

        Called again, it does what is left of that.
        """
        run_callbacks(*self.mark(reason))

    def mark(self, reason: str) -> "tuple[list[Node], list[Watch]]":
        """All of `cancel` that no code of the user's can hold up. What is given is for `run_callbacks`.

        It holds the callbacks: who drops their token from now on is too late.
        """
        marked: list[Node] = []
        watches: list[Watch] = []
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
        return marked, watches

    def attach(self, parent: "Node | None") -> None:
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


def run_callbacks(marked: list[Node], watches: "list[Watch]") -> None:
    """The rest of a `Node.cancel`, which may take as long as the callbacks like."""
    error: BaseException | None = None
    for watch in watches:
        error = watch.fire(error)
    # Last of all: a cancel that was cut short above must find its way again.
    for node in marked:
        node.children.clear()
    if error is not None:
        raise error


class Callback:
    """One registration of a callback."""

    __slots__ = ("fn", "gate")

    def __init__(self, fn: Callable[[], object]) -> None:
        self.fn = fn
        #: Held while it runs, for `remove()` to wait for. An RLock, so that a `remove()` in the
        #: thread that runs it, inside it or in a signal handler on top of it, does not wait.
        self.gate = threading.RLock()


class Watch:
    """All that waits for one node's mark. Held by token objects only; its end is the node's.

    Snapshots of its dicts are made of keys alone: `list(d.items())` makes tuples, which on Python
    3.11 can start the garbage collector, and so any `__del__`, in the middle of the iteration.
    """

    __slots__ = ("__weakref__", "_baton", "callbacks", "descriptors", "node", "wakers")

    def __init__(self, node: Node) -> None:
        self.node = node
        #: What wakes each waiter of ours, under a key of the waiter's own. A waker never blocks,
        #: may be called twice, and is taken away by cancel() or by its waiter, whoever is first.
        self.wakers: dict[object, Callable[[], None]] = {}
        #: Used as an ordered set. All and only the callbacks that have not begun; taking one out is
        #: the claim on it.
        self.callbacks: dict[Callback, object] = {}
        #: Empty, or the one descriptor under `None`.
        self.descriptors: dict[None, Descriptor] = {}
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
                            error = call(callback.fn, error)
            finally:
                self._baton.release()
        return error

    def remove(self, callback: Callback) -> None:
        """See `CancellationToken.add_callback`."""
        if not self._claim(callback):
            with callback.gate:
                pass

    def _claim(self, callback: Callback) -> bool:
        """Take a callback that has not begun, to run it or not; True for one caller only."""
        return self.callbacks.pop(callback, self) is not self


def call(fn: Callable[[], object], error: BaseException | None = None) -> BaseException | None:
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


class Descriptor:
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
