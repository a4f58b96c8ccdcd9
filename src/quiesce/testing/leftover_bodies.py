"""Task bodies that leave callbacks, timers and the like behind; each leaves signs in files."""

import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from quiesce.context import (
    associate_with,
    current_client,
    current_task_id,
    is_shutdown_requested,
    shutdown_token,
    wait_for_shutdown,
)
from quiesce.testing.bodies import ignore_until_file
from quiesce.testing.witness import opened
from quiesce.testing.worker_bodies import gate_file, mark, wait_for_file
from quiesce.workers import hands

#: Seconds that a callback takes.
_LONG = 0.5


def token_callback(folder: str) -> None:
    """End when asked, while a callback of the token goes on, which begins a thread."""

    def goes_on() -> None:
        time.sleep(_LONG)
        mark(folder, "thread-over")

    def callback() -> None:
        time.sleep(_LONG)
        mark(folder, "callback-over", str(current_task_id()))
        threading.Thread(target=goes_on).start()

    shutdown_token().add_callback(callback)
    mark(folder, "begun")
    while not is_shutdown_requested():
        time.sleep(0.005)


def long_callback(folder: str) -> None:
    """End when asked; the second of three callbacks of its token waits for a file."""
    said: list[str] = []

    def callback(name: str) -> None:
        if name == "second":
            mark(folder, "in-callback")
            wait_for_file(f"{folder}/go")
        said.append(name)
        mark(folder, f"{name}-said", " ".join(said))

    for name in ("first", "second", "third"):
        shutdown_token().add_callback(partial(callback, name))
    mark(folder, "begun")
    wait_for_shutdown()
    mark(folder, "woken")


def associate_in_callback(folder: str) -> None:
    """Move when asked."""
    shutdown_token().add_callback(lambda: associate_with("elsewhere", None))
    mark(folder, "begun")
    wait_for_shutdown()


def fork_in_callback(folder: str) -> None:
    """A callback forks, and its child comes back out of it."""

    def callback() -> None:
        child = os.fork()
        if child:
            mark(folder, "status", str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))

    shutdown_token().add_callback(callback)
    mark(folder, "begun")
    wait_for_shutdown()


def callback_without_threads(folder: str) -> str:
    """Be asked while its worker can start no thread; gives the name of the one that its callback ran in."""
    told: list[str] = []
    called = threading.Event()

    def callback() -> None:
        told.append(threading.current_thread().name)
        called.set()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    shutdown_token().add_callback(callback)
    doors: Any = hands
    before, doors.start_thread = doors.start_thread, start
    try:
        mark(folder, "begun")
        called.wait()
    finally:
        doors.start_thread = before
    return told[0]


def done_callback(folder: str) -> None:
    """Return while a call in a pool goes on; its callback takes long, and submits another call."""
    pool = ThreadPoolExecutor(1)

    def last() -> None:
        time.sleep(_LONG)
        mark(folder, "last-over", str(current_task_id()))

    def callback(future: Future[bool]) -> None:
        time.sleep(_LONG)
        mark(folder, "callback-over", str(current_task_id()))
        pool.submit(last)

    pool.submit(wait_for_shutdown).add_done_callback(callback)
    mark(folder, "begun")


def initializer(folder: str) -> None:
    """Return while a pool makes its second thread, for a call that the first one has already taken."""
    first = threading.Lock()

    def initialize(text: str) -> None:
        if not first.acquire(blocking=False):
            time.sleep(_LONG)
            mark(folder, "initializer-over", f"{text} {current_task_id()}")

    pool = ThreadPoolExecutor(2, initializer=initialize, initargs=("of",))
    calls = [pool.submit(time.sleep, 0.05) for _ in range(2)]
    for call in calls:
        call.result()


def cancelled_call(folder: str) -> str:
    """Cancel a call before it has run: its callbacks run in here, and nothing is left."""
    said: list[str] = []
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        call = pool.submit(mark, folder, "ran")
        call.add_done_callback(lambda _: said.append(str(current_task_id())))
        call.cancel()
        go.set()
    return ",".join(said)


def shared_call(folder: str, name: str) -> None:
    """Return while a call goes on in a process that a module of `preload` has started."""
    call = importlib.import_module("shared").calls.submit(gate_file, folder, name)
    call.add_done_callback(lambda _: mark(folder, "called-back", str(current_task_id())))


async def async_shared_call(folder: str, name: str) -> None:
    """Wait for such a call."""
    calls = importlib.import_module("shared").calls
    await asyncio.get_running_loop().run_in_executor(calls, gate_file, folder, name)


# --- what is raised at the end --------------------------------------------------------------------


class UnspeakableError(Exception):
    """Can't be pickled, formatted, shown or asked for its truth."""

    def __reduce__(self) -> str:
        raise KeyboardInterrupt

    def __str__(self) -> str:
        raise SystemExit

    def __repr__(self) -> str:
        raise ValueError

    def __bool__(self) -> bool:
        raise RuntimeError


class ClasslessError(Exception):
    """Won't say what it is."""

    @property  # type: ignore[misc]  # on purpose
    def __class__(self) -> Any:
        raise RuntimeError


class _Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # on purpose
        raise RuntimeError


class NamelessError(UnspeakableError, metaclass=_Nameless):
    """Not even its type has a name."""


def raise_classless() -> None:
    raise ClasslessError


def raise_nameless() -> None:
    raise NamelessError


def raise_deep() -> None:
    """A group in a group in a group..."""
    error: Exception = ValueError("deep down")
    for _ in range(3000):
        error = ExceptionGroup("group", [error])
    raise error


def raise_unspeakable() -> None:
    raise UnspeakableError


async def async_raise_unspeakable() -> None:
    raise UnspeakableError


def convert(folder: str) -> None:
    """Make an error of one's own out of what ends it."""
    mark(folder, "begun")
    try:
        while True:
            time.sleep(0.005)
    except BaseException as ending:
        raise RuntimeError("can't clean up") from ending


def leave(folder: str) -> None:
    """Leave by sys.exit, whatever ends it."""
    mark(folder, "begun")
    try:
        while True:
            time.sleep(0.005)
    finally:
        sys.exit("can't clean up")


async def async_convert(folder: str) -> None:
    mark(folder, "begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as ending:
        raise RuntimeError("can't clean up") from ending


# --- streams that are gone ------------------------------------------------------------------------


class _Spoilt(logging.Handler):
    def flush(self) -> None:
        raise RuntimeError("no more")


def spoil_the_end() -> None:
    """Leave nothing that can be flushed or shut down."""
    sys.stdout = None  # a daemon's habit
    sys.stderr = object()  # a poor imitation
    logging.getLogger("spoilt").addHandler(_Spoilt())


# --- logging that fails ---------------------------------------------------------------------------


class _Picky(logging.Filter):
    """Takes for granted that each record has a field of the program's own."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or bool(record.request_id)  # type: ignore[attr-defined]  # the mistake


_picky = _Picky()


def _loggers() -> list[logging.Filterer]:
    return [logging.getLogger("quiesce.task"), *logging.getLogger().handlers]


def filter_badly() -> None:
    for each in _loggers():
        each.addFilter(_picky)


def filter_no_more() -> None:
    for each in _loggers():
        each.removeFilter(_picky)


def fail_in_callback(folder: str) -> None:
    """A callback of its token raises."""

    def callback() -> None:
        raise ValueError("on purpose")

    shutdown_token().add_callback(callback)
    mark(folder, "begun")
    wait_for_shutdown()


# --- signals --------------------------------------------------------------------------------------


def signals() -> list[Any]:
    """What there is of timers, handlers and blocked signals, and the descriptor that tells of them."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return [
        [signal.getitimer(timer) for timer in timers],
        [repr(signal.getsignal(n)) for n in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM)],
        sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        wakeup,
    ]


_KEPT: list[Any] = []


def _on_alarm(number: int, frame: object) -> None:
    raise TimeoutError("my own")


def meddle_with_all_signals() -> list[Any]:
    """Leave timers, handlers, a mask and a descriptor behind; a blocked signal waits for its handler."""
    told = socket.socketpair()
    told[0].setblocking(False)
    _KEPT.append(told)
    signal.set_wakeup_fd(told[0].fileno())
    for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, _on_alarm)
    try:
        signal.signal(signal.SIGKILL, _on_alarm)
    except OSError:
        pass
    signal.setitimer(signal.ITIMER_REAL, 600, 0.001)
    signal.setitimer(signal.ITIMER_PROF, 600)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])
    signal.raise_signal(signal.SIGUSR1)
    return signals()


def leave_alarm(seconds: float) -> None:
    """Return before a timer is over whose handler raises, or not."""
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)


# --- the loop -------------------------------------------------------------------------------------


async def set_task_factory(folder: str) -> list[str]:
    """Give the loop a factory that takes no options; gives what it has made. One that it made is left behind."""
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any) -> "asyncio.Task[Any]":
        made.append(coro.__qualname__)
        mark(folder, f"made-{len(made)}")
        return asyncio.Task(coro, loop=loop)

    async def left_behind() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            mark(folder, "cancelled")

    asyncio.get_running_loop().set_task_factory(factory)
    left = asyncio.create_task(left_behind())
    await asyncio.sleep(0)
    assert not left.done()
    return made


async def gather_some() -> list[int]:
    """Child tasks of its own."""
    return await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3)))


async def set_default_executor() -> list[str]:
    """Give the loop an executor, and close it; gives the names of threads."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        loop.set_default_executor(pool)
        name = await asyncio.to_thread(_thread_name)
        (child,) = await asyncio.gather(asyncio.to_thread(_thread_name))
        named = await loop.run_in_executor(None, _thread_name)
        await loop.shutdown_default_executor()
        try:
            await asyncio.to_thread(_thread_name)
        except RuntimeError as closed:
            return [name, child, named, str(closed)]
    return []


def _thread_name() -> str:
    return threading.current_thread().name


async def in_default_executor() -> str:
    return await asyncio.to_thread(_thread_name)


async def shut_down_what_is_shared() -> list[str]:
    """Close executor and generators, as at the end of a loop of one's own. Gives what is said to that."""
    loop, said = asyncio.get_running_loop(), []
    for close in (loop.shutdown_default_executor, loop.shutdown_asyncgens):
        try:
            await close()
        except RuntimeError as refused:
            said.append(str(refused))
    return said


async def set_exception_handler() -> list[str]:
    """Give the loop an exception handler; gives what it hears of two callbacks."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []
    both = asyncio.Event()

    def handler(loop: asyncio.AbstractEventLoop, said: dict[str, Any]) -> None:
        heard.append(repr(said["exception"]))
        if len(heard) > 1:
            both.set()

    def fail(text: str) -> None:
        raise ValueError(text)

    loop.set_exception_handler(handler)
    loop.call_soon(fail, "soon")
    loop.call_later(0.001, fail, "later")
    await both.wait()
    return heard


async def fail_in_a_loop_callback() -> bool:
    """Fail where nobody but the loop's handler hears; whether that is one's own."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def fail() -> None:
        over.set()
        raise ValueError("on purpose, in a callback")

    loop.call_soon(fail)
    await over.wait()
    return loop.get_exception_handler() is not None


# --- modules --------------------------------------------------------------------------------------


def import_names(folder: str, package: str) -> Any:
    """What a package of that folder has as its `names`."""
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(package).names
    finally:
        sys.path.remove(folder)


# --- progress -------------------------------------------------------------------------------------


def show_progress(path: str, runtime: str, triggers: list[str]) -> None:
    """Spawn a task for each trigger, and tick in slot 0 whenever one has ended; until asked."""

    def show(progress: object) -> None:
        assert current_task_id() is not None
        opened(path).tick(0)

    arguments = [(trigger, path, n) for n, trigger in enumerate(triggers, 1)]
    current_client().spawn_many(
        runtime, "attach", ignore_until_file, arguments, tenant_id="others", progress=show
    )
    wait_for_shutdown()
