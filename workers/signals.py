"""What a body in the main thread does to the signals of its process: undone when it has ended.

A handler that it left behind would be called in the midst of what has the main thread next: the body of somebody
else, or the worker itself.
"""

import functools
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

_set_timer: Final = signal.setitimer
_set_handler: Final = signal.signal
_set_mask: Final = signal.pthread_sigmask
_set_wakeup: Final = signal.set_wakeup_fd


class Signals:
    """Changed by bodies, restored by the main thread."""

    def __init__(self) -> None:
        #: Whether there may be something to restore. Asked after each body, so that most need no system call.
        self.changed = False
        #: By signal: the handlers as they were before the body. None: one that Python can't set.
        self._handlers: dict[int, Any] = {}
        #: The signals that were blocked before the body, if it has changed that.
        self._mask: set[int] | None = None
        #: What tells of signals, and how, outside of bodies; whether a body has changed it.
        self._wakeup: tuple[tuple[Any, ...], dict[str, Any]] = ((-1,), {})
        self._wakeup_changed = False

    def watch(self, in_body: Callable[[], bool], before: Callable[[], None]) -> None:
        """Note what bodies do, for the whole life of this process. `in_body`: the main thread runs one now.

        `before` a body has a handler or a timer: from then on code of ours that it calls may be left at any moment.
        """
        main = threading.main_thread().ident

        def noted(set_timer: Any) -> Any:
            @functools.wraps(set_timer)
            def set_noted(*args: Any, **kwargs: Any) -> Any:
                if in_body():
                    before()
                self.changed = True
                return set_timer(*args, **kwargs)

            return set_noted

        @functools.wraps(_set_handler)
        def set_handler(signalnum: Any, handler: Any) -> Any:
            if in_body():
                before()
                self._handlers.setdefault(signalnum, signal.getsignal(signalnum))
                self.changed = True
            return _set_handler(signalnum, handler)

        @functools.wraps(_set_mask)
        def set_mask(how: Any, mask: Any, /) -> Any:
            if in_body() and self._mask is None and threading.get_ident() == main:
                self._mask = set(_set_mask(signal.SIG_BLOCK, ()))
                self.changed = True
            return _set_mask(how, mask)

        @functools.wraps(_set_wakeup)
        def set_wakeup(*args: Any, **kwargs: Any) -> int:
            if in_body():
                self._wakeup_changed = self.changed = True
                return _set_wakeup(*args, **kwargs)
            old = _set_wakeup(*args, **kwargs)
            self._wakeup = args, kwargs
            return old

        signal.setitimer, signal.alarm = noted(signal.setitimer), noted(signal.alarm)
        signal.signal = set_handler
        signal.pthread_sigmask = set_mask  # type: ignore[assignment]  # the door
        signal.set_wakeup_fd = set_wakeup

    def restore(self) -> None:
        """All as it was before the body. What its handlers raise meanwhile leaves this: then call it again."""
        # First: the descriptor of the body's may be that of somebody's file by now.
        if self._wakeup_changed:
            args, kwargs = self._wakeup
            try:
                _set_wakeup(*args, **kwargs)
            except (OSError, ValueError):  # it was closed meanwhile
                _set_wakeup(-1)
            self._wakeup_changed = False
        for timer in _TIMERS:
            _set_timer(timer, 0)
        # Before the handlers: what was blocked is for the body's own.
        if self._mask is not None:
            _set_mask(signal.SIG_SETMASK, self._mask)
            self._mask = None
        for number, handler in list(self._handlers.items()):
            if handler is not None:
                with suppress(OSError, TypeError, ValueError):  # nobody can set that one, nor has
                    _set_handler(number, handler)
            self._handlers.pop(number)
        self.changed = False
