"""Bodies whose handlers raise, at any moment of what they call."""

import signal
import sys
from typing import Any

from quiesce.context import report_progress


def _on_alarm(number: int, frame: object) -> None:
    raise TimeoutError("my own")


def alarm_while_it_reports(seconds: float) -> None:
    """Say something of its progress until a timer is over whose handler raises; 0: do nothing."""
    if seconds:
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            report_progress(1)


def trace_while_it_reports(moments: int) -> None:
    """Say something of its progress until a trace function has been called so often, and raises; 0: do nothing."""
    left = moments

    def trace(frame: object, event: str, argument: object) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise TimeoutError("my own")
        return trace

    if moments:
        sys.settrace(trace)
        while True:
            report_progress(1)
