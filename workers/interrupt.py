"""An interrupt into a body that runs in the main thread: a signal whose handler raises ShutdownRequested.

It must hit the body that it is meant for, and nothing else: not the next body, nor the worker's own code.
"""

import signal
import threading
from types import FrameType
from typing import Final

from quiesce.errors import ShutdownRequested
from quiesce.workers.attempt import Attempt
from quiesce.workers.hooks import Nursery

#: A real-time signal, far from those that programs use.
SIGNAL: Final = signal.SIGRTMAX - 3


class Interrupt:
    """Made in the main thread."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        #: The attempt whose body runs in the main thread now. Written by the main thread alone.
        self._target: Attempt | None = None
        #: The attempt that an interrupt is meant for. Written by the control thread, cleared by the handler.
        self._wanted: Attempt | None = None
        signal.signal(SIGNAL, self._on_signal)

    def arm(self, attempt: Attempt) -> None:
        """From now on an interrupt for this attempt raises, in the main thread."""
        self._target = attempt

    def disarm(self) -> None:
        """From the return of this on, none does."""
        while True:
            try:
                self._target = None
                return
            except ShutdownRequested:
                continue

    def send(self, attempt: Attempt) -> None:
        """Raise ShutdownRequested in the body of this attempt, if it still runs in the main thread."""
        self._wanted = attempt
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, SIGNAL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        wanted, target = self._wanted, self._target
        if wanted is None or wanted is not target or self._nursery.in_child:
            return
        self._wanted = None
        reason = wanted.task.root.reason
        raise ShutdownRequested(f"forced{': ' + reason if reason else ''}")
