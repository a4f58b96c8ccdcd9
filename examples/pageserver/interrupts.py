"""Signals that end a program, made to arrive where they do no harm."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt: the first one, and only once.

    So whatever is being cleaned up because of it is not interrupted in its turn. Outside of the main
    thread, which alone can handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._held = 0
        self._came = False
        self._raised = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold an interrupt back until this block has ended: for what must be done as a whole."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._raise()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        self._raise()

    def _raise(self) -> None:
        if self._came and not self._raised and self._held == 0:
            self._raised = True
            raise KeyboardInterrupt
