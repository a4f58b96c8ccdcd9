"""An interrupt into a body that runs in the main thread: a signal whose handler raises ShutdownRequested.

It must hit the body that it is meant for, and nothing else: not the next body, nor the worker's own code.
"""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from quiesce.errors import ShutdownRequested
from quiesce.workers.attempt import Attempt
from quiesce.workers.nursery import Nursery
from quiesce.workers.signals import Signals

#: A real-time signal, far from those that programs use.
SIGNAL: Final = signal.SIGRTMAX - 3


class Shield:
    """Around code of ours that bodies call: it runs to its end. In other threads it does nothing."""

    __slots__ = ("_interrupt", "_main", "depth")

    def __init__(self, interrupt: "Interrupt") -> None:
        self._interrupt = interrupt
        self._main = threading.main_thread().ident
        #: How many shields the main thread is in.
        self.depth = 0

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self.depth -= 1
            # Asked with the depth at zero: an interrupt that comes after this raises by itself.
            if not self.depth and self._interrupt.wanted is not None:
                self._interrupt.look()


class Interrupt:
    """Made in the main thread."""

    def __init__(self, nursery: Nursery, on_spoilt: Callable[[], None]) -> None:
        """`on_spoilt`: an import is interrupted. What it has loaded so far stays, and may be no use to any later
        import in this process: a package whose submodules are there already is not put together again.
        """
        self._nursery = nursery
        self._on_spoilt = on_spoilt
        #: The attempt whose body runs in the main thread now. Written by the main thread alone.
        self.target: Attempt | None = None
        #: The attempt that an interrupt is meant for. Written by the control thread, cleared by the handler.
        self.wanted: Attempt | None = None
        #: `with interrupt.shield:` no interrupt raises in here; one that comes raises at the end.
        self.shield: Final = Shield(self)
        #: What bodies in the main thread do to signals.
        self.signals: Final = Signals()
        signal.signal(SIGNAL, self._on_signal)

    def arm(self, attempt: Attempt) -> None:
        """From now on an interrupt for this attempt raises, in the main thread."""
        self.target = attempt

    def disarm(self) -> None:
        """From the return of this on, none does, and no handler of the body's raises either."""
        while True:
            try:
                self.target = None
                if self.signals.changed:
                    self.signals.restore()
                return
            except BaseException:  # an interrupt, or a handler of the body's
                continue

    def send(self, attempt: Attempt) -> None:
        """Raise ShutdownRequested in the body of this attempt, if it still runs in the main thread."""
        self.wanted = attempt
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, SIGNAL)

    def look(self) -> None:
        """Raise now what a shield has kept away; in the main thread."""
        self._on_signal(SIGNAL, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        wanted, target = self.wanted, self.target
        if wanted is None or wanted is not target or self._nursery.in_child:
            return
        if self.shield.depth:
            return  # `wanted` stays: leaving the shield looks at it
        self.wanted = None
        if _is_importing(frame or sys._getframe()):
            self._on_spoilt()
        reason = wanted.task.root.reason
        raise ShutdownRequested(f"forced{': ' + reason if reason else ''}")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
