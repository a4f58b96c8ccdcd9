"""The timer that ends a process: in every state that a process can be in, at its time and not before."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce import processes
from quiesce.workers.lease_timer import LeaseTimer, boottime
from system import until as wait_until

PREAMBLE = """
import ctypes, os, signal, subprocess, sys, threading
from quiesce.workers.lease_timer import LeaseTimer, boottime

def say(*words):
    print(*words, flush=True)

def arm(seconds):
    timer = LeaseTimer()
    timer.arm(boottime() + seconds)
    say(timer.until)
    return timer

def wait(seconds=60):
    threading.Event().wait(seconds)
"""

Child = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def child() -> Iterator[Child]:
    """Runs code in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PREAMBLE + code]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def assert_killed(process: "subprocess.Popen[str]", until: float) -> None:
    """By the timer: not before its time, and soon after."""
    assert process.wait(timeout=20) == -signal.SIGKILL
    assert until <= boottime() < until + 5


STATES = {
    "sleeps": "arm(0.3); wait()",
    "blocks all signals": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
threading.Thread(target=wait, daemon=True).start()
arm(0.3)
wait()
""",
    "ignores what can be ignored": """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
arm(0.3)
wait()
""",
    "sleeps in C with the interpreter lock": "arm(0.3); ctypes.PyDLL(None).sleep(60)",
    "computes in C with the interpreter lock": "arm(0.3); sum(range(10**12))",
    "its timer is forgotten": "arm(0.3); import gc; gc.collect(); wait()",
    "its main thread has ended": """
threading.Thread(target=wait).start()
arm(0.3)
ctypes.CDLL(None).pthread_exit(None)
""",
    "waits for a child": "arm(0.3); subprocess.run(['sleep', '1'])",
    "armed by another thread that has ended": """
thread = threading.Thread(target=arm, args=(0.3,))
thread.start()
thread.join()
wait()
""",
}


@pytest.mark.parametrize("code", STATES.values(), ids=STATES)
def test_it_kills_a_process_that(child: Child, code: str) -> None:
    process = child(code)
    assert_killed(process, float(line(process)))


def test_it_kills_a_stopped_process(child: Child) -> None:
    process = child("arm(2.5); wait()")
    until = float(line(process))
    process.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    seen = processes.look(process.pid)
    assert seen is not None
    assert seen.state == "T"
    assert boottime() < until
    assert_killed(process, until)


@pytest.mark.parametrize("seconds", [0, -1, -1e9], ids=["now", "past", "before the boot"])
def test_armed_in_the_past_it_kills_at_once(child: Child, seconds: float) -> None:
    process = child(
        f"say(boottime()); LeaseTimer().arm(boottime() + {seconds}); say('lives'); wait()"
    )
    assert_killed(process, float(line(process)))
    assert line(process) == ""


def test_armed_again_it_waits_longer(child: Child) -> None:
    process = child(
        "timer = arm(3)\n"
        "for _ in range(5):\n"
        "    wait(0.1)\n"
        "    timer.arm(boottime() + 3)\n"
        "say(timer.until)\n"
        "wait()\n"
    )
    first, last = float(line(process)), float(line(process))
    assert last >= first + 0.4
    assert_killed(process, last)


def test_it_never_moves_back(child: Child) -> None:
    process = child(
        "timer = arm(60)\n"
        "until = timer.until\n"
        "timer.arm(boottime() + 0.1)\n"
        "timer.arm(until)\n"
        "timer.arm(-1.0)\n"
        "wait(0.3)\n"
        "say(timer.until == until)\n"
    )
    line(process)
    assert line(process) == "True\n"
    assert process.wait(timeout=20) == 0


def test_one_that_is_not_armed_does_nothing(child: Child) -> None:
    process = child("timer = LeaseTimer(); wait(0.2); say(timer.until)")
    assert line(process) == "None\n"
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("moment", ["nan", "inf", "-inf"])
def test_a_moment_that_is_none_is_refused(moment: str) -> None:
    """Nothing is armed, or this process would be gone."""
    timer = LeaseTimer()
    with pytest.raises(ValueError, match="a finite moment"):
        timer.arm(float(moment))
    assert timer.until is None


def test_a_kernel_that_has_no_timer_says_so(child: Child) -> None:
    process = child(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))\n"
        "try:\n"
        "    LeaseTimer()\n"
        "except OSError as error:\n"
        "    say(error)\n"
    )
    assert "the timer of the lease: Resource temporarily unavailable" in line(process)


BIRTHS = {
    "fork": "pid = os.fork()\nif pid == 0:\n    wait()\n    os._exit(0)\n",
    "exec": "pid = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid\n",
    "fork in a thread": (
        "pids = []\n"
        "def fork():\n"
        "    pids.append(os.fork())\n"
        "    if pids[0] == 0:\n"
        "        wait()\n"
        "thread = threading.Thread(target=fork)\n"
        "thread.start()\n"
        "while not pids:\n"
        "    wait(0.01)\n"
        "pid = pids[0]\n"
    ),
}


@pytest.mark.parametrize("code", BIRTHS.values(), ids=BIRTHS)
def test_no_child_has_it(child: Child, code: str) -> None:
    process = child(f"timer = arm(2.5)\n{code}\nsay(pid)\nwait()\n")
    until, pid = float(line(process)), int(line(process))
    try:
        assert processes.look(pid) is not None
        assert timers_of(pid) in ([], None)
        assert_killed(process, until)
        wait_until(lambda: boottime() > until + 0.3)
        seen = processes.look(pid)
        assert seen is not None
        assert not seen.is_zombie
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_exec_drops_it(child: Child) -> None:
    """Who has a lease must not replace its own program."""
    process = child("timer = arm(0.3); os.execvp('sleep', ['sleep', '1'])")
    line(process)
    assert process.wait(timeout=20) == 0


def test_nothing_is_left(child: Child) -> None:
    """No thread, no descriptor, and one timer, however often it is armed."""
    process = child(
        "def count():\n"
        "    return [len(os.listdir(f'/proc/self/{what}')) for what in ('task', 'fd')]\n"
        "before = count()\n"
        "timer = arm(60)\n"
        "for n in range(100):\n"
        "    timer.arm(boottime() + 60 + n)\n"
        "say(before == count())\n"
        "wait()\n"
    )
    line(process)
    assert line(process) == "True\n"
    timers = timers_of(process.pid)
    if timers is None:
        pytest.skip("this kernel does not list timers")
    assert timers == ["signal: 9", "notify: signal", "ClockID: 7"]


def timers_of(pid: int) -> list[str] | None:
    """What the kernel lists of the timers of a process, without what differs; None: it lists none."""
    try:
        lines = Path(f"/proc/{pid}/timers").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    return [each.partition("/")[0] for each in lines if not each.startswith("ID")]
