"""Logging of a worker: every record, whoever logs, says which task it belongs to."""

import logging
import sys
from typing import Any, Final

from quiesce.context import current_context

#: The attributes that every record carries; "" outside of a task, and for a task without them.
ATTRIBUTES: Final = ("quiesce_task_id", "quiesce_kind", "quiesce_tenant_id", "quiesce_timeline_id")


def configure(level: str, runtime: str, file: str = "") -> None:
    """Log to standard error, in this process and for its whole life; our own records to `file`, if there is one."""
    make = logging.getLogRecordFactory()

    def make_with_task(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        task = current_context()
        info = None if task is None else task.info
        # The names have a prefix: logging refuses an `extra` of the user's that is there already.
        if info is None:
            values: tuple[Any, ...] = ("", "", "", "")
            said = ""
        else:
            values = (info.id, info.kind, info.tenant_id or "", info.timeline_id or "")
            said = f" [task={info.id} kind={info.kind} tenant={values[2]} timeline={values[3]}]"
        for name, value in zip(ATTRIBUTES, values, strict=True):
            setattr(record, name, value)
        record.quiesce = said
        return record

    logging.setLogRecordFactory(make_with_task)
    handler = logging.StreamHandler(sys.stderr)
    form = f"%(asctime)s %(levelname)s {runtime}[%(process)d] %(name)s%(quiesce)s: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if file:
        own = logging.FileHandler(file)
        own.setFormatter(logging.Formatter(form))
        ours = logging.getLogger("quiesce")
        ours.handlers[:] = [own]
        ours.propagate = False
