"""`quiesce top` in a real terminal: how it is left, and how it leaves that."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from system import System

#: How a terminal is told to show again what it showed before.
RESTORED = b"\x1b[?1049l"


class Terminal:
    """A `top` in one."""

    def __init__(self, system: System) -> None:
        self.fd, theirs = pty.openpty()
        self.text = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quiesce", "top", "--address", system.address],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
            preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509 - no other thread runs here
        )
        os.close(theirs)

    def read(self, until: Callable[[bytes], bool] = lambda _: False) -> bytes:
        """What it writes, until the end of it or that."""
        deadline = time.monotonic() + 30
        while not until(self.text):
            assert time.monotonic() < deadline, self.text
            try:
                self.text += os.read(self.fd, 65536)
            except OSError:  # nobody has the other end any more
                break
        return self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.fd >= 0:
            os.close(self.fd)


@pytest.fixture
def terminal(system: System) -> Iterator[Terminal]:
    made = Terminal(system)
    try:
        made.read(until=lambda text: b"compute-request" in text)
        yield made
    finally:
        made.close()


def test_ctrl_c_quits(terminal: Terminal) -> None:
    os.write(terminal.fd, b"\x03")
    assert RESTORED in terminal.read()
    assert terminal.process.wait(30) == 0


def test_ctrl_c_quits_from_a_question_too(terminal: Terminal) -> None:
    os.write(terminal.fd, b"/")
    terminal.read(until=lambda text: b"tenant=" in text)
    os.write(terminal.fd, b"\x03")
    assert RESTORED in terminal.read()
    assert terminal.process.wait(30) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, signum: int) -> None:
    terminal.process.send_signal(signum)
    assert RESTORED in terminal.read()
    assert terminal.process.wait(30) == 128 + signum


def test_a_terminal_that_is_closed_ends_it(terminal: Terminal) -> None:
    os.close(terminal.fd)
    terminal.fd = -1
    assert terminal.process.wait(30) == 128 + signal.SIGHUP
