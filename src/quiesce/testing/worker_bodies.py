"""Task bodies for the tests of the workers: each leaves signs in files, which tests wait for."""

import asyncio
import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import quiesce
from quiesce.context import (
    associate_with,
    checkpoint,
    current_task,
    current_task_id,
    is_shutdown_requested,
    report_progress,
    shutdown_token,
    shutdown_watcher,
    wait_for_shutdown,
)
from quiesce.errors import ShutdownRequested

_SLEEP = 0.005


def mark(folder: str, name: str, text: str = "") -> None:
    """Leave a sign, atomically."""
    path = Path(folder) / name
    path.with_suffix(".new").write_text(text or "x", encoding="utf-8")
    path.with_suffix(".new").rename(path)


def tick(folder: str, name: str) -> None:
    """Add a byte to a file: who still ticks still lives."""
    with (Path(folder) / name).open("ab") as file:
        file.write(b".")


# --- synchronous ----------------------------------------------------------------------------------


def add(left: int, right: int) -> int:
    return left + right


def leave_memory() -> str:
    """Make shared memory with multiprocess, and leave it for its resource tracker to remove. Gives its name."""
    from multiprocess.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=64)
    memory.close()
    return str(memory.name)


class _Thing:
    """Can be referred to weakly."""


_kept: ContextVar[_Thing] = ContextVar("kept")
_left: list[weakref.ref[_Thing]] = []


def keep_in_context() -> None:
    """Leave something behind that only its own context holds, and nothing for the garbage collector to find it."""
    gc.disable()
    thing = _Thing()
    _kept.set(thing)
    _left.append(weakref.ref(thing))


def is_left() -> bool:
    """Whether that is still there."""
    gc.enable()
    return _left.pop()() is not None


def nothing() -> None:
    pass


def identity(value: Any) -> Any:
    return value


def big(size: int) -> bytes:
    return bytes(size)


def who() -> tuple[Any, ...]:
    info = current_task()
    assert info is not None
    return (info.id, info.kind, info.tenant_id, info.timeline_id, info.fence, os.getpid())


def until_asked(folder: str, name: str = "begun") -> str:
    """Check in a loop; end normally."""
    mark(folder, name, str(os.getpid()))
    while not is_shutdown_requested():
        time.sleep(_SLEEP)
    mark(folder, f"{name}-asked")
    return "asked"


def until_checkpoint(folder: str, name: str = "begun") -> None:
    mark(folder, name, str(os.getpid()))
    while True:
        checkpoint()
        time.sleep(_SLEEP)


def busy(folder: str) -> None:
    """Pure Python that never sleeps."""
    mark(folder, "begun")
    while not is_shutdown_requested():
        pass


def wait_for_it(folder: str) -> str:
    mark(folder, "begun")
    wait_for_shutdown()
    return shutdown_token().reason or ""


def deaf(folder: str) -> None:
    """Never looks; only force ends it. Its finally runs."""
    mark(folder, "begun", str(os.getpid()))
    try:
        while True:
            time.sleep(_SLEEP)
            tick(folder, "ticks")
    finally:
        mark(folder, "finally")


def stone_deaf(folder: str) -> None:
    """Swallows even the interrupt."""
    mark(folder, "begun", str(os.getpid()))
    while True:
        try:
            time.sleep(_SLEEP)
        except ShutdownRequested:
            mark(folder, "swallowed")


def callback_thread(folder: str) -> str:
    """Have a callback tell which thread it runs in, while this one checks all the time."""
    told: list[str] = []
    shutdown_token().add_callback(lambda: told.append(threading.current_thread().name))
    mark(folder, "begun")
    while not (is_shutdown_requested() and told):
        time.sleep(_SLEEP)
    return told[0]


def witness(folder: str, name: str) -> None:
    """Write down the moment (CLOCK_BOOTTIME), again and again; never look, never end."""
    path = Path(folder) / name
    path.write_bytes(bytes(8))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as seen:
        while True:
            seen[:] = struct.pack("d", time.clock_gettime(time.CLOCK_BOOTTIME))
            time.sleep(0.0005)


def fail(text: str = "no good") -> None:
    raise ValueError(text)


def raise_it(kind: type[BaseException]) -> None:
    raise kind()


def raise_group() -> None:
    raise BaseExceptionGroup("both", [ShutdownRequested(), ValueError("one")])


def unpicklable() -> Any:
    return (number for number in range(3))


def leave_by_exit(status: int) -> None:
    os._exit(status)


def segfault() -> None:
    ctypes.string_at(0)


def wait_for_file(path: str) -> str:
    """Until a file exists."""
    while not Path(path).exists():
        time.sleep(_SLEEP)
    return path


def gate_file(folder: str, name: str) -> None:
    mark(folder, f"{name}-begun", str(os.getpid()))
    wait_for_file(f"{folder}/{name}-go")


def associate(tenant: str | None, timeline: str | None) -> tuple[str | None, str | None]:
    associate_with(tenant, timeline)
    info = current_task()
    assert info is not None
    return info.tenant_id, info.timeline_id


def asked_and_associated(folder: str) -> list[tuple[bool, str, str | None]]:
    """What it sees of itself: before it is asked to stop, after that, and once it has moved."""
    seen = []

    def look() -> None:
        info = current_task()
        assert info is not None
        seen.append((info.stopping, info.reason, info.tenant_id))

    look()
    mark(folder, "begun")
    wait_for_shutdown()
    look()
    associate_with("other", None)
    look()
    return seen


def progress(folder: str) -> None:
    for done in range(1000):
        report_progress(done, 1000, "counting")
    mark(folder, "reported")
    wait_for_file(f"{folder}/go")


def log_something(text: str) -> None:
    import logging

    logging.getLogger("some.library").warning("%s", text)


def fork_and_return() -> str:
    """The child comes back into the worker's code."""
    if os.fork() == 0:
        return "child"
    return "parent"


def nested(folder: str) -> str:
    client: Any = quiesce.current_client()
    client.spawned(current_task_id())
    mark(folder, "begun")
    return "spawned"


# --- what bodies begin ----------------------------------------------------------------------------


def _tick_until(folder: str, name: str) -> None:
    while not (Path(folder) / f"{name}-go").exists():
        tick(folder, f"{name}-ticks")
        time.sleep(_SLEEP)


def leave_thread(folder: str, daemon: bool = True) -> str:
    """Return while a thread goes on."""
    threading.Thread(target=_tick_until, args=(folder, "thread"), daemon=daemon).start()
    return "returned"


def leave_aware_thread(folder: str) -> str:
    """Return while a thread goes on that checks for shutdown."""
    threading.Thread(target=until_asked, args=(folder, "thread")).start()
    return "returned"


def leave_executor_call(folder: str) -> str:
    pool = ThreadPoolExecutor(1)
    pool.submit(_tick_until, folder, "thread")
    pool.shutdown(wait=False)
    return "returned"


def idle_executor() -> str:
    """Leave a pool whose threads are idle: nothing goes on."""
    pool = ThreadPoolExecutor(1)
    pool.submit(nothing).result()
    _KEPT.append(pool)
    return "returned"


_KEPT: list[Any] = []


def leave_process(folder: str, env: dict[str, str] | None = None) -> str:
    """Return while a child process goes on."""
    code = f"import quiesce.testing.worker_bodies as b; b._tick_until({folder!r}, 'process')"
    environment = {**env, "PYTHONPATH": os.pathsep.join(sys.path)} if env is not None else None
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    mark(folder, "child", str(child.pid))
    _KEPT.append(child)
    return "returned"


def leave_daemon(folder: str) -> str:
    """Return while a grandchild goes on, whose parent has ended, in a session of its own."""
    code = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    import quiesce.testing.worker_bodies as b; b._tick_until({folder!r}, 'process')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return "returned"


def leave_forked_daemon(folder: str) -> str:
    """As `leave_daemon`, without any exec: nothing names the grandchild."""
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            os.setsid()
            _tick_until(folder, "process")
        os._exit(0)
    os.waitpid(pid, 0)
    return "returned"


def leave_multiprocessing(folder: str, method: str) -> str:
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=_tick_until, args=(folder, "process"))
    child.start()
    mark(folder, "child", str(child.pid))
    _KEPT.append(child)
    return "returned"


def run_process(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def shell(command: str) -> int:
    return os.waitstatus_to_exitcode(os.system(command))


def wait_status() -> int:
    """The status of a child is its parent's, however long that waits."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ)
    time.sleep(_SLEEP)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children_then_die(folder: str) -> None:
    leave_process(folder)
    leave_daemon(folder)
    os.kill(os.getpid(), signal.SIGKILL)


# --- coroutines -----------------------------------------------------------------------------------


async def async_add(left: int, right: int) -> int:
    await asyncio.sleep(0)
    return left + right


async def watcher(folder: str, name: str = "begun") -> str:
    mark(folder, name)
    await shutdown_watcher()
    return "watched"


async def async_deaf(folder: str) -> None:
    mark(folder, "begun")
    try:
        await asyncio.Event().wait()
    finally:
        mark(folder, "finally")


async def async_stubborn(folder: str) -> None:
    """Swallows the first cancellation."""
    mark(folder, "begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        mark(folder, "swallowed")
    await asyncio.Event().wait()


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def _ticking(folder: str) -> None:
    try:
        while True:
            tick(folder, "task-ticks")
            await asyncio.sleep(_SLEEP)
    finally:
        mark(folder, "task-finally")


async def leave_task(folder: str) -> str:
    """Return while a child task goes on: it is cancelled."""
    _KEPT.append(asyncio.create_task(_ticking(folder)))
    while not (Path(folder) / "task-ticks").exists():  # noqa: ASYNC110 - a file is no event
        await asyncio.sleep(_SLEEP)
    return "returned"


async def leave_to_thread(folder: str) -> str:
    """Be cancelled out of to_thread, whose function goes on."""
    call = asyncio.create_task(asyncio.to_thread(_tick_until, folder, "thread"))
    while not (Path(folder) / "thread-ticks").exists():  # noqa: ASYNC110 - a file is no event
        await asyncio.sleep(_SLEEP)
    call.cancel()
    return "returned"


async def in_to_thread(folder: str) -> str:
    return await asyncio.to_thread(until_asked, folder, "begun")


async def leave_timer(folder: str) -> str:
    """Leave a callback that calls itself again and again."""
    loop = asyncio.get_running_loop()

    def again() -> None:
        tick(folder, "timer-ticks")
        loop.call_later(_SLEEP, again)

    again()
    return "returned"


async def exit_in_child(folder: str) -> str:
    """A child task raises SystemExit; nobody looks."""

    async def leave() -> None:
        raise SystemExit(3)

    task = asyncio.create_task(leave())
    await asyncio.wait([task])
    mark(folder, "raised")
    del task
    return "went on"


async def async_raise(kind: type[BaseException]) -> None:
    raise kind()


async def async_process(code: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    return await process.wait()


async def spin_loop(folder: str) -> None:
    """Compute, and give the loop to nobody."""
    mark(folder, "spinning")
    while not (Path(folder) / "go").exists():
        pass


class LoadSign:
    """An argument that leaves a sign when a worker loads it."""

    def __init__(self, folder: str, name: str) -> None:
        self.state = (folder, name)

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        mark(self.state[0], f"loaded-{self.state[1]}")


async def tick_and_wait(sign: LoadSign) -> None:
    tick(*sign.state)
    await shutdown_watcher()


async def block_loop(folder: str) -> None:
    mark(folder, "begun")
    wait_for_file(f"{folder}/go")
