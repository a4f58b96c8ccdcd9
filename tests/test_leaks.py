"""The leak check finds what it is there for: every other test relies on it."""

import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from quiesce.testing.leaks import LeakCheck, is_running

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

#: Starts a sleeper, says its pid and, when told, kills it and starts the next: a small pool.
POOL = f"""
import subprocess, sys
for line in sys.stdin:
    sleeper = subprocess.Popen({SLEEP!r})
    print(sleeper.pid, flush=True)
    sys.stdin.readline()
    sleeper.kill()
    sleeper.wait()
"""

#: Starts a sleeper and dies, so that the sleeper is an orphan.
ORPHAN = f"import subprocess; print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL).pid)"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.001)


def test_nothing_left_is_found_at_once() -> None:
    check = LeakCheck()
    before = check.begin()
    started = time.monotonic()
    assert check.end(before, patience=60) == []
    assert time.monotonic() - started < 30


def test_a_process_is_found_and_killed() -> None:
    check = LeakCheck()
    before = check.begin()
    with subprocess.Popen(SLEEP) as process:
        (found,) = check.end(before, patience=0)
        assert found == f"process {process.pid}, child of {os.getpid()}: {' '.join(SLEEP)}"
        until(lambda: not is_running(process.pid), "the process has ended")


def test_a_child_that_nobody_waited_for_is_found_and_keeps_its_status() -> None:
    check = LeakCheck()
    before = check.begin()
    process = subprocess.Popen(["sh", "-c", "exit 3"])
    other = multiprocessing.get_context("spawn").Process(target=os._exit, args=(4,))
    other.start()
    assert other.pid is not None
    pids = [process.pid, other.pid]
    until(lambda: not any(map(is_running, pids)), "both have ended")
    found = [leak for leak in check.end(before, patience=0.1) if leak.startswith("process ")]
    assert {int(re.findall(r"\d+", leak)[0]) for leak in found} == set(pids)
    assert all(leak.endswith("(a zombie: it has ended, nobody waited for it)") for leak in found)
    assert process.wait(10) == 3
    other.join(10)
    assert other.exitcode == 4
    other.close()
    assert check.end(before) == []


def test_an_orphan_is_found() -> None:
    check = LeakCheck()
    before = check.begin()
    done = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, check=True)
    pid = int(done.stdout)
    (found,) = check.end(before, patience=0)
    assert found.startswith(f"process {pid}, child of {os.getpid()}: ")
    until(lambda: not is_running(pid), "the orphan has ended")


def test_a_process_that_is_about_to_end_is_waited_for() -> None:
    check = LeakCheck()
    before = check.begin()
    code = "import subprocess; subprocess.Popen(['sleep', '0.2'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert check.end(before) == []


def test_a_kept_pool_may_replace_its_processes_but_not_have_more() -> None:
    check = LeakCheck()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", POOL], stdin=pipe, stdout=pipe, text=True) as pool:
        assert pool.stdin is not None
        assert pool.stdout is not None

        def tell() -> None:
            print(file=pool.stdin, flush=True)

        empty = check.begin()
        tell()
        first = int(pool.stdout.readline())
        full = check.begin()
        tell()
        tell()
        second = int(pool.stdout.readline())
        assert second != first
        assert check.end(full, patience=0) == []

        check = LeakCheck()
        check._allowed = dict.fromkeys(empty.processes, 1)
        (found,) = check.end(empty, patience=0)
        assert found.startswith(f"process {second}, child of {pool.pid}: ")
        tell()


def test_a_thread_is_found() -> None:
    check = LeakCheck()
    before = check.begin()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left", daemon=True)
    thread.start()
    assert check.end(before, patience=0) == ["thread 'left' (daemon)"]
    end.set()
    thread.join()


def test_a_descriptor_is_found() -> None:
    check = LeakCheck()
    before = check.begin()
    with ExitStack() as stack:
        file = stack.enter_context(open("/dev/zero", "rb"))
        assert check.end(before, patience=0) == [f"descriptor {file.fileno()}: /dev/zero"]
