"""How threads and coroutines wait for what the I/O thread will bring.

What can be waited for has a list of *wakers*: plain callables that the I/O thread calls, outside of all
locks, once the thing is over. A waiter enters its waker under the lock, after it has looked that the thing
is not over yet, so none is missed. A wait inside a task ends with ShutdownRequested when that task is asked
to stop.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from quiesce.client import checks
from quiesce.context import TaskContext, current_context
from quiesce.errors import ShutdownRequested
from quiesce.locks import Lock

Waker = Callable[[], None]

#: Seconds after which a task's wait for another is told to its worker.
LONG: Final = 1.0
#: A wait that ends so many seconds too late stood still, as this whole process may have: what it waited for may
#: have arrived, unread. Then it goes on for as many, which the I/O thread has for reading.
HELD_UP: Final = 0.05
#: What a lock can wait for, in seconds. An infinite timeout would raise.
_LONGEST: Final = threading.TIMEOUT_MAX


class Waitable:
    """Something that is over once, for good. `over` is read without the lock, and written under it."""

    __slots__ = ("over", "wakers")

    def __init__(self) -> None:
        self.over = False
        #: Entered only while not over; emptied when it is.
        self.wakers: list[Waker] | None = None

    def waited_task(self) -> int:
        """The task whose end this is; 0: it is no task's, or its id is not known yet."""
        return 0

    def finish(self, wakers: list[Waker]) -> None:
        """Under the lock: mark as over, hand out who is to be woken after the lock."""
        self.over = True
        if self.wakers:
            wakers.extend(self.wakers)
        self.wakers = None

    def add_waker(self, lock: Lock, waker: Waker) -> bool:
        """Have `waker` called once this is over; False if it is already, and then it won't be called."""
        with lock:
            if self.over:
                return False
            if self.wakers is None:
                self.wakers = [waker]
            else:
                self.wakers.append(waker)
            return True

    def remove_waker(self, lock: Lock, waker: Waker) -> None:
        """Undo `add_waker`. The waker may be running."""
        if self.over:
            return
        with lock:
            if self.wakers is not None:
                with suppress(ValueError):
                    self.wakers.remove(waker)


def _is_over(thing: Waitable) -> bool:
    """Read anew: another thread may have written it since (which a type checker doesn't see)."""
    return thing.over


def remaining(deadline: float | None) -> float | None:
    """Seconds to a monotonic deadline, at least 0; None for none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def deadline_after(timeout: float | None) -> float | None:
    """The monotonic deadline of a wait that begins now."""
    return None if timeout is None else time.monotonic() + timeout


def _stood_still(thing: Waitable, deadline: float | None) -> bool:
    """Whether a wait that is over in vain is so much too late that it shall go on for a moment."""
    return not (thing.over or deadline is None) and time.monotonic() - deadline > HELD_UP


def is_asked(task: TaskContext | None) -> bool:
    """Whether this task has been asked to stop; that the task itself has seen it is not noted."""
    return task is not None and (task.is_asked)


def raise_if_asked(task: TaskContext | None) -> None:
    """ShutdownRequested if this task has been asked to stop; notes that it has seen it."""
    if task is not None and task.is_shutdown_requested():
        task.observe()
        raise ShutdownRequested(task.root.reason or "asked to stop")


def wait_for(
    thing: Waitable, lock: Lock, timeout: float | None, *, interruptible: bool = True
) -> bool:
    """Block this thread until the thing is over, at most `timeout` seconds; whether it is.

    ShutdownRequested: inside a task that is asked to stop (unless not `interruptible`). A thing that is
    over already is given at once even then.
    """
    if thing.over:
        return True
    if timeout is not None:
        checks.patience(timeout)
    deadline = deadline_after(None if timeout is None else max(timeout, 0.0))
    task = current_context() if interruptible else None
    gate = threading.Lock()
    gate.acquire()
    wake: Waker = gate.release
    if task is not None:  # then there may be two reasons to wake at once
        raise_if_asked(task)
        wake = partial(_open, gate)
    if not thing.add_waker(lock, wake):
        return True
    forget = None if task is None else task.root.add_callback(wake)
    try:
        if task is None:
            gate.acquire(timeout=_bounded(timeout))
        else:
            _acquire_in_task(gate, thing, task, deadline)
        if _stood_still(thing, deadline):
            gate.acquire(timeout=HELD_UP)
        if _is_over(thing):
            return True
        raise_if_asked(task)
        return False
    finally:
        thing.remove_waker(lock, wake)
        if forget is not None:
            forget()


def _open(gate: threading.Lock) -> None:
    with suppress(RuntimeError):  # released already
        gate.release()


def _bounded(timeout: float | None) -> float:
    """As a lock takes it: -1 is for ever."""
    return -1.0 if timeout is None else min(max(timeout, 0.0), _LONGEST)


def _acquire_in_task(
    gate: threading.Lock, thing: Waitable, task: TaskContext, deadline: float | None
) -> None:
    """A wait for another task that lasts is shown to whoever looks at this one."""
    other = 0
    try:
        while not other:
            left = remaining(deadline)
            if left is not None and left <= LONG:
                break
            if gate.acquire(timeout=LONG):
                return
            other = thing.waited_task()
            if other:
                task.port.wait_began(task, other)
        gate.acquire(timeout=_bounded(remaining(deadline)))
    finally:
        if other:
            task.port.wait_ended(task, other)


class _Teller:
    """The same for a coroutine: a call of the loop's when the wait has become long."""

    __slots__ = ("_loop", "_other", "_task", "_thing", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, thing: Waitable, task: TaskContext) -> None:
        self._loop = loop
        self._thing = thing
        self._task = task
        self._other = 0
        self._timer = loop.call_later(LONG, self._tell)

    def _tell(self) -> None:
        self._other = self._thing.waited_task()
        if self._other:
            self._task.port.wait_began(self._task, self._other)
        else:
            self._timer = self._loop.call_later(LONG, self._tell)

    def close(self) -> None:
        """The wait is over."""
        self._timer.cancel()
        if self._other:
            self._task.port.wait_ended(self._task, self._other)


class LoopBell:
    """Wakes coroutines of one event loop from other threads: one call into the loop for many at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._rung: deque[asyncio.Future[None]] = deque()
        #: A call of `_answer` is on its way that will see all that was rung before this was read.
        self._called = False

    def check_loop(self) -> None:
        """RuntimeError unless this is called in that loop: nobody else's coroutines could be woken."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                "this AsyncClient, or handle of one, belongs to another event loop: the one in which the "
                "client was entered. Enter an AsyncClient of its own in each loop; a Client serves all loops, "
                "and its handles can be awaited in any"
            )

    def ring(self, future: asyncio.Future[None]) -> None:
        """From any thread: complete `future` soon. A loop that is closed has nobody to wake."""
        self._rung.append(future)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._called = False  # before the look at the futures
        while self._rung:
            future = self._rung.popleft()
            if not future.done():
                future.set_result(None)


async def wait_for_async(
    thing: Waitable,
    lock: Lock,
    timeout: float | None,  # noqa: ASYNC109 - a wait that runs out answers False, it doesn't raise
    bell: LoopBell,
    *,
    interruptible: bool = True,
) -> bool:
    """`wait_for`, for a coroutine. Cancelling it only ends the wait."""
    if thing.over:
        return True
    checks.patience(timeout)
    bell.check_loop()
    task = current_context() if interruptible else None
    raise_if_asked(task)
    future: asyncio.Future[None] = bell.loop.create_future()
    wake = partial(bell.ring, future)
    if not thing.add_waker(lock, wake):
        return True
    forget = None if task is None else task.root.add_callback(wake)
    teller = None if task is None else _Teller(bell.loop, thing, task)
    try:
        if timeout is None:
            await future
        else:
            deadline = deadline_after(max(timeout, 0.0))
            await asyncio.wait([future], timeout=min(max(timeout, 0.0), _LONGEST))
            if _stood_still(thing, deadline):
                await asyncio.wait([future], timeout=HELD_UP)
        if _is_over(thing):
            return True
        raise_if_asked(task)
        return False
    finally:
        thing.remove_waker(lock, wake)
        if forget is not None:
            forget()
        if teller is not None:
            teller.close()
