"""Signals as a sequence of numbers that one loop reads. Nothing is done in a signal handler."""

import os
import select
import signal
from typing import Final

WANTED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

#: Seconds before a signal says anything new. Several may come of one occasion: GNU `timeout` sends one to
#: its child and one to the group of that. Whoever presses Ctrl-C twice, and means it, takes longer.
AGAIN_AFTER: Final = 0.3


class Requests:
    """How often the user has asked for the stop. No clock: `now` is an argument, in seconds."""

    def __init__(self, again_after: float = AGAIN_AFTER) -> None:
        #: How many have counted.
        self.count = 0
        self._again_after = again_after
        self._last = 0.0

    def counts(self, signum: int, now: float) -> bool:
        """Whether this one does: the first, and each that comes long enough after the last one that did.

        SIGHUP only as the first. A terminal that is closed sends it more than once, the kernel to who is in
        its foreground and the shell to its jobs; and nobody closes one to say "faster".
        """
        if self.count and (signum == signal.SIGHUP or now - self._last < self._again_after):
            return False
        self.count += 1
        self._last = now
        return True


class Signals:
    """Signals as numbers to be read, in the order in which they came."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def __enter__(self) -> "Signals":
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in (*WANTED, signal.SIGCHLD):
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            signal.signal(signum, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        # Everything has ended, and so will we: one more signal must not change our exit status now.
        for signum in WANTED:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout: float | None) -> bytes:
        """The signals that came, at the latest after `timeout` seconds; perhaps none."""
        # Rounded up, so that it does not spin through the last millisecond.
        if self._poll.poll(None if timeout is None else int(timeout * 1000) + 1):
            return os.read(self._read, 4096)
        return b""
