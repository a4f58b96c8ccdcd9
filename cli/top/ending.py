"""Signals that end `quiesce top`: in order, so that the terminal is left as it was found."""

import asyncio
import signal
from functools import partial
from typing import Any, Final

from textual.app import App

_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


def end_by_signals(app: App[Any]) -> None:
    """Called in its loop. The exit status is then that of shells: 128 and the signal's number."""
    loop = asyncio.get_running_loop()
    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as of nohup
            loop.add_signal_handler(number, partial(app.exit, return_code=128 + number))
