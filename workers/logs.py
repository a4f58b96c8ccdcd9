"""Logging of supervisors and workers: every record, whoever logs, says which task it belongs to."""

import contextlib
import logging
import traceback
from collections.abc import Callable
from typing import Any, Final

from quiesce import logs
from quiesce.registry.printable import printable

#: The attributes that every record carries; "" outside of a task, and for a task without them.
ATTRIBUTES: Final = (
    "quiesce_task_id",
    "quiesce_attempt",
    "quiesce_kind",
    "quiesce_tenant_id",
    "quiesce_timeline_id",
)
_NOTHING: Final = ("",) * len(ATTRIBUTES)


def say(log: Callable[..., None], *said: object) -> None:
    """Log, and go on if that fails: filters, handlers and what is formatted are a program's own.

    What they raise is shown on standard error.
    """
    try:
        log(*said)
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()


def no_task() -> None:
    """Of a process that runs none."""


def configure(
    level: str,
    runtime: str,
    log_format: str = logs.CONSOLE,
    role: str = "worker",
    file: str = "",
    task: Callable[[], tuple[Any, ...] | None] = no_task,
) -> None:
    """Log to standard error, in this process and for its whole life; our own records to `file`, if there is one.

    `task` gives the values of ATTRIBUTES for the task whose code logs, None outside of one.
    """
    make = logging.getLogRecordFactory()

    def make_with_task(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        values = task()
        said = ""
        if values is None:
            values = _NOTHING
        else:
            said = f" [task={values[0]} kind={values[2]} tenant={values[3]} timeline={values[4]}]"
            said = printable(said)
        for name, value in zip(ATTRIBUTES, values, strict=True):
            setattr(record, name, value)
        record.quiesce = said
        return record

    logging.setLogRecordFactory(make_with_task)
    console = f"%(asctime)s %(levelname)s {runtime}[%(process)d] %(name)s%(quiesce)s: %(message)s"
    handler = logs.handler(log_format, f"{role} of {runtime}", console)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if file:
        ours = logging.getLogger("quiesce")
        ours.handlers[:] = [logs.handler(log_format, f"{role} of {runtime}", console, file)]
        ours.propagate = False
