"""Task bodies for tests: small, importable in any worker, each doing one thing.

Those that take a `path` and a `slot` tick into a `Witness` for as long as they run.
"""

import asyncio
import ctypes
import faulthandler
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import quiesce
from quiesce.testing.witness import opened

#: Seconds between two ticks of a body that sleeps.
PAUSE = 0.005


def nothing() -> None:
    """Return."""


def add(left: int, right: int) -> int:
    """Return the sum."""
    return left + right


async def add_async(left: int, right: int) -> int:
    """The same as a coroutine."""
    await asyncio.sleep(0)
    return left + right


def echo(value: Any) -> Any:
    """Return what was given."""
    return value


def who() -> dict[str, Any]:
    """What a task sees of itself."""
    task = quiesce.current_task()
    assert task is not None
    return {
        "id": quiesce.current_task_id(),
        "kind": quiesce.current_task_kind(),
        "tenant_id": task.tenant_id,
        "timeline_id": task.timeline_id,
        "name": task.name,
        "attempt": task.attempt,
        "fence": task.fence,
        "pid": os.getpid(),
        "thread": threading.current_thread() is threading.main_thread(),
    }


def mark(path: str) -> None:
    """Append a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


# --- bodies that run until asked ------------------------------------------------------------------


def half_way(note: str) -> None:
    """Be half done, and wait."""
    quiesce.report_progress(5, 10, note)
    quiesce.wait_for_shutdown()


def spin(path: str, slot: int) -> str:
    """Burn the processor, looking at each turn whether it is asked to stop."""
    witness = opened(path)
    while not quiesce.is_shutdown_requested():
        witness.tick(slot)
    return "asked"


def doze(path: str, slot: int) -> str:
    """Sleep and tick until asked."""
    witness = opened(path)
    while not quiesce.wait_for_shutdown(PAUSE):
        witness.tick(slot)
    return "asked"


async def wander(path: str, slot: int) -> str:
    """The same as a coroutine, by the watcher."""
    witness = opened(path)
    watcher = asyncio.ensure_future(quiesce.shutdown_watcher())
    while not watcher.done():
        witness.tick(slot)
        await asyncio.wait({watcher}, timeout=PAUSE)
    return "asked"


def in_thread(path: str, slot: int) -> None:
    """A thread does the ticking and the looking."""
    thread = threading.Thread(target=spin_gently, args=(path, slot))
    thread.start()
    thread.join()


def spin_gently(path: str, slot: int) -> None:
    """Tick, look, sleep a little."""
    witness = opened(path)
    while not quiesce.is_shutdown_requested():
        witness.tick(slot)
        time.sleep(PAUSE)


async def by_token(path: str, slot: int) -> None:
    """Tick until the task's token is cancelled."""

    async def tick() -> None:
        while True:
            opened(path).tick(slot)
            await asyncio.sleep(PAUSE)

    await quiesce.shutdown_token().run_until_cancelled(tick())


def by_select(path: str, slot: int) -> None:
    """Tick until the token's descriptor is readable."""
    token = quiesce.shutdown_token()
    while not select.select([token.fileno()], [], [], PAUSE)[0]:
        opened(path).tick(slot)


async def in_child_tasks(path: str, slot: int) -> None:
    """Two child tasks tick; one in `to_thread`."""

    async def child() -> None:
        while not quiesce.is_shutdown_requested():
            opened(path).tick(slot)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(child(), asyncio.to_thread(spin_gently, path, slot + 1))


def until_checkpoint(path: str, slot: int) -> None:
    """End by ShutdownRequested."""
    while True:
        opened(path).tick(slot)
        quiesce.checkpoint()
        time.sleep(PAUSE)


def stubborn(path: str, slot: int) -> None:
    """Tick for ever, whoever asks, and whatever is raised in here."""
    while True:
        try:
            while True:
                opened(path).tick(slot)
                time.sleep(PAUSE)
        except BaseException:  # only a kill ends it
            continue


def tick_once(path: str, slot: int) -> int:
    """Tick, and give how often this slot has ticked by now."""
    opened(path).tick(slot)
    return opened(path).read(slot).ticks


# --- bodies that leave something running ----------------------------------------------------------


def leave_thread(path: str, slot: int, seconds: float) -> str:
    """Return while a thread goes on ticking for a while, whoever asks."""

    def go_on() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            opened(path).tick(slot)
            time.sleep(PAUSE)

    threading.Thread(target=go_on).start()
    return "returned"


async def leave_to_thread(path: str, slot: int, seconds: float) -> None:
    """Be cancelled out of `to_thread`, which goes on for a while."""

    def go_on() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            opened(path).tick(slot)
            time.sleep(PAUSE)

    call = asyncio.ensure_future(asyncio.to_thread(go_on))
    await quiesce.shutdown_watcher()
    call.cancel()


async def leave_coroutine(path: str, slot: int) -> str:
    """Return while a child task goes on ticking."""

    async def go_on() -> None:
        while True:
            opened(path).tick(slot)
            await asyncio.sleep(PAUSE)

    task = asyncio.ensure_future(go_on())
    await asyncio.sleep(PAUSE)
    return f"returned, {task.done()}"


CHILD = """
import sys, time
from quiesce.testing.witness import Witness
witness = Witness(sys.argv[1])
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    witness.tick(int(sys.argv[2]))
    time.sleep(0.005)
"""


def leave_process(path: str, slot: int, seconds: float) -> int:
    """Return while a child process goes on ticking; gives its pid."""
    command = [sys.executable, "-c", CHILD, path, str(slot), str(seconds)]
    return subprocess.Popen(command).pid


def with_process(path: str, slot: int) -> None:
    """Run a child process that ticks for a long time, and wait until asked; then leave it behind."""
    command = [sys.executable, "-c", CHILD, path, str(slot), "600"]
    subprocess.Popen(command)
    quiesce.wait_for_shutdown()


def with_bare_process(path: str, slot: int) -> None:
    """The same, and the child is given an environment that the task made up."""
    command = [sys.executable, "-c", CHILD, path, str(slot), "600"]
    subprocess.Popen(command, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    quiesce.wait_for_shutdown()


def with_fork(path: str, slot: int) -> None:
    """The same, and the child is a copy of the worker."""
    if os.fork() == 0:
        witness = opened(path)
        end = time.monotonic() + 600
        while time.monotonic() < end:
            witness.tick(slot)
            time.sleep(0.005)
        os._exit(0)
    quiesce.wait_for_shutdown()


# --- bodies that go wrong -------------------------------------------------------------------------


class UnpicklableError(Exception):
    """An exception that can't be sent."""

    def __init__(self) -> None:
        super().__init__("can't be sent")
        self.lock = threading.Lock()


def fail(text: str = "on purpose") -> None:
    """Raise ValueError."""
    raise ValueError(text)


def fail_unpicklably() -> None:
    """Raise what can't be pickled."""
    raise UnpicklableError


def unpicklable() -> Any:
    """Return what can't be pickled."""
    return threading.Lock()


def large(size: int) -> bytes:
    """Return so many bytes."""
    return bytes(size)


def leave_by(how: str) -> None:
    """End the process, or try to, in one of many ways."""
    if how == "os._exit(0)":
        os._exit(0)
    if how == "os._exit(7)":
        os._exit(7)
    if how == "sys.exit":
        sys.exit(3)
    if how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if how == "segfault":
        ctypes.string_at(0)
    if how == "sigkill":
        os.kill(os.getpid(), 9)
    raise ValueError(how)


async def leave_loop_by(how: str) -> None:
    """The same, from a child asyncio task."""

    async def child() -> None:
        leave_by(how)

    await asyncio.gather(child())


# --- bodies that are stuck ------------------------------------------------------------------------


def hold_interpreter(fifo: str) -> str:
    """Sit in C code that keeps the interpreter to itself, until a byte is written to the named pipe.

    So no thread of the process runs any Python. (A read goes on after a signal, which a sleep in C does not.)
    """
    fd = os.open(fifo, os.O_RDWR)
    ctypes.PyDLL(None).read(fd, ctypes.create_string_buffer(1), 1)
    os.close(fd)
    return "let go"


def meddle_with_signals(fifo: str, how: str) -> None:
    """Do to signals and faulthandler what programs may do, then hold the interpreter; the process ends with it."""
    if how == "own faulthandler":
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, chain=False)
        faulthandler.dump_traceback_later(600)
        signal.signal(signal.SIGUSR2, lambda *_: None)
    elif how == "unregister":
        faulthandler.unregister(signal.SIGRTMAX - 4)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    try:
        hold_interpreter(fifo)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)  # nobody else shall have this process


# --- bodies that use the client -------------------------------------------------------------------


def spawn_and_wait(runtime: str, kind: str) -> int:
    """Wait for a task of another runtime."""
    handle = quiesce.current_client().spawn(runtime, kind, add, 1, 2)
    return int(handle.result(timeout=30))


def stop_own_tenant(path: str, slot: int) -> list[int]:
    """Stop the scope that this task is in; give the ids of those that the report calls the caller."""
    opened(path).tick(slot)
    task = quiesce.current_task()
    assert task is not None
    report = quiesce.current_client().shutdown_tasks(tenant_id=task.tenant_id, timeout=30)
    return [row.id for row in report.caller]


def associate_then_doze(
    tenant_id: str | None, timeline_id: str | None, path: str, slot: int
) -> str:
    """Associate, then tick until asked."""
    quiesce.associate_with(tenant_id, timeline_id)
    return doze(path, slot)


def wait_for_file_then_associate(trigger: str, tenant_id: str, path: str, slot: int) -> str:
    """Tick until a file is there, then come into the tenant, and go on until asked."""
    while not Path(trigger).exists():
        opened(path).tick(slot)
        time.sleep(PAUSE)
    quiesce.associate_with(tenant_id, None)
    return doze(path, slot)


def ignore_until_file(trigger: str, path: str, slot: int) -> str:
    """Tick, whoever asks, until a file is there."""
    while not Path(trigger).exists():
        opened(path).tick(slot)
        time.sleep(PAUSE)
    return "let go"
