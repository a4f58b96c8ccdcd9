"""Task bodies that leave child processes behind, in all ways that there are; each leaves signs in files."""

import _thread
import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from quiesce.testing.worker_bodies import mark, wait_for_file

# --- processes ------------------------------------------------------------------------------------


def start_slowly(folder: str) -> None:
    """Begin a process by a fork server, and hear late that it runs."""
    read = forkserver.read_signed

    def read_late(fd: int) -> int:
        pid: int = read(fd)
        mark(folder, "begun", str(pid))
        wait_for_file(f"{folder}/go")
        return pid

    forkserver.read_signed = read_late
    try:
        context = multiprocessing.get_context("forkserver")
        context.Process(target=signal.pause).start()
    finally:
        forkserver.read_signed = read


def leave_foreign(folder: str) -> None:
    """Return while a child process of another user goes on, as `sudo` starts them."""
    child = subprocess.Popen(["sleep", "1000"], user=65534, group=65534)
    mark(folder, "foreign", str(child.pid))
    _kept.append(child)


def had_a_child(folder: str) -> None:
    """Run a child process, and then go on until there is a file."""
    subprocess.run(["true"], check=True)
    mark(folder, "had")
    wait_for_file(f"{folder}/go")


def leave_sleeping(count: int = 1) -> None:
    """Return while child processes go on. Needs no descriptor."""
    for _ in range(count):
        os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ)


_kept: list[Any] = []


def use_up_descriptors(folder: str) -> None:
    """Leave none for anybody in this process, until there is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    Path(folder, "eating").touch()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    eaten: list[int] = []
    try:
        while True:
            eaten.append(os.dup(0))
    except OSError:
        os.rename(f"{folder}/eating", f"{folder}/eaten")
        wait_for_file(f"{folder}/sick-of-it")
    finally:
        for fd in eaten:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def use_up_threads(folder: str) -> None:
    """None can be started in this process, until there is a file: no stack of that size can be had."""
    before = threading.stack_size(2**46)
    try:
        Path(folder, "no-threads").touch()
        wait_for_file(f"{folder}/sick-of-it")
    finally:
        threading.stack_size(before)


# --- forked children that come back ---------------------------------------------------------------


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(how: str) -> int:
    """The child's pid; the child comes back from here, in one way or another."""
    pid = os.fork()
    if pid == 0 and how == "leaves":
        sys.exit(3)
    if pid == 0 and how == "raises":
        raise ValueError("in the child")
    return pid


async def fork_in_coroutine(how: str) -> int:
    """The status of the child."""
    pid = _fork(how)
    if pid == 0:
        return 0
    return await asyncio.to_thread(_status, pid)


async def fork_in_child_task(how: str) -> int:
    async def fork() -> int:
        return _fork(how)

    never = asyncio.get_running_loop().create_future()
    pid = await asyncio.create_task(fork())
    if pid == 0 and how == "waits":
        await never
    return 0 if pid == 0 else await asyncio.to_thread(_status, pid)


async def fork_in_to_thread(how: str) -> int:
    return await asyncio.to_thread(_status, await asyncio.to_thread(_fork, how))


def fork_in_thread(how: str) -> int:
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(_fork(how)))
    thread.start()
    thread.join()
    return _status(pids[0])


def fork_in_plain_thread(how: str) -> int:
    pids: SimpleQueue[int] = SimpleQueue()
    _thread.start_new_thread(lambda: pids.put(_fork(how)), ())
    return _status(pids.get())


# --- credentials ----------------------------------------------------------------------------------


def change_user(folder: str) -> None:
    """Be another user for a moment; then go on."""
    os.seteuid(65534)
    os.seteuid(0)
    mark(folder, "changed")
    wait_for_file(f"{folder}/go")


def outlive_parent(folder: str) -> None:
    """As far as this thread knows, the process may outlive its parent; then go on."""
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
    mark(folder, "changed")
    wait_for_file(f"{folder}/go")
