"""What a worker's look at its child processes proves, whatever these do in the midst of it."""

import subprocess
import sys
import textwrap

import pytest

HEAD = """
import os, signal
from quiesce.workers import kernel
from quiesce.workers.nursery import Nursery

KEY = (7, 1)
kernel.become_subreaper()
nursery = Nursery()
said, say = os.pipe()

def begin(body):
    '''The pid of a child, once it has been noted that it runs.'''
    pid = os.fork()
    if pid == 0:
        os.write(say, b"%d " % os.getpid())
        body()
        os._exit(0)
    return pid

def hear():
    word = b""
    while not word.endswith(b" "):
        word += os.read(said, 1)
    return int(word)

def end(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break

def found():
    return {process.pid: key for process, key in nursery.find().items()}
"""


def answer(code: str) -> str:
    """What a program prints that plays the worker: it is the parent of what is looked for, and gets its orphans."""
    program = textwrap.dedent(HEAD) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["os.WEXITED", "os.WEXITED | os.WNOWAIT"], ids=["reaped", "dead"])
def test_a_child_that_ends_in_the_midst_of_a_look_hides_nothing(how: str) -> None:
    """A thread waits for it, or not yet: what it leaves behind is younger than the list that is looked through."""
    said = answer(
        f"""
        how = {how}
        """
        """
        go, tell = os.pipe()

        def leave_daemon():
            os.read(go, 1)
            begin(signal.pause)

        with nursery.lock:
            child = begin(leave_daemon)
            nursery.add(child, KEY)
        assert hear() == child
        assert found() == {child: KEY}
        real, daemons = os.listdir, []

        def listdir(path):
            names = real(path)
            if path == "/proc" and not daemons:
                os.write(tell, b"x")
                daemons.append(hear())
                os.waitid(os.P_PID, child, how)
            return names

        os.listdir = listdir
        print(list(found()) == daemons)
        end(*daemons)
        """
    )
    assert said == "True"


def test_what_was_seen_below_a_fork_server_is_whose_it_is_said_to_be() -> None:
    """It was seen before whoever had it started could say so, and so was what it had begun itself."""
    said = answer(
        """
        def serve():
            begin(lambda: (begin(signal.pause), signal.pause()))
            signal.pause()

        with nursery.lock:
            server = begin(serve)
            nursery.add(server, None)
        _, child, grandchild = [hear() for _ in range(3)]
        assert found() == {}
        with nursery.lock:
            nursery.add(child, KEY)
        print(found() == {child: KEY, grandchild: KEY})
        end(server, child, grandchild)
        """
    )
    assert said == "True"


def test_a_process_that_has_lost_its_first_thread_lives() -> None:
    """Its line in /proc is that of a zombie."""
    said = answer(
        """
        import ctypes, threading

        def lose_first_thread():
            threading.Thread(target=signal.pause).start()
            ctypes.CDLL(None).pthread_exit(None)

        with nursery.lock:
            child = begin(lose_first_thread)
            nursery.add(child, KEY)
        assert hear() == child
        while open(f"/proc/{child}/stat").read().split()[2] != "Z":
            pass
        print(found() == {child: KEY})
        end(child)
        """
    )
    assert said == "True"
