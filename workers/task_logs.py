"""The task whose code logs, for what is logged: as records of logging carry it, and as structlog does."""

import logging
import sys
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from quiesce import logs
from quiesce.context import TaskContext, current_context, enter
from quiesce.registry.rows import AssignRow
from quiesce.task_info import TaskInfo
from quiesce.workers.logs import ATTRIBUTES

#: structlog's `merge_contextvars` takes up every context variable whose name begins like these: no need to load
#: it for tasks that don't.
_FOR_STRUCTLOG: Final = tuple(
    ContextVar[Any](name.replace("quiesce_", "structlog_", 1)) for name in ATTRIBUTES
)


def current_values() -> tuple[Any, ...] | None:
    """The attributes of the task that the calling code belongs to; None outside of one."""
    task = current_context()
    return None if task is None else _values(task.info)


def _values(info: TaskInfo) -> tuple[Any, ...]:
    return (info.id, info.attempt, info.kind, info.tenant_id or "", info.timeline_id or "")


# --- structlog, if the tasks use it ---------------------------------------------------------------


@cache
def has_structlog() -> bool:
    """Whether it can be imported here."""
    return find_spec("structlog") is not None


def enter_task(task: TaskContext, row: AssignRow) -> None:
    """Make it the current one in this context, also for structlog."""
    enter(task)
    if has_structlog():
        _bind((row.task_id, row.attempt, row.kind, row.tenant_id or "", row.timeline_id or ""))


def bind_again(info: TaskInfo) -> None:
    """The task has changed."""
    if has_structlog():
        _bind(_values(info))


def _bind(values: tuple[Any, ...]) -> None:
    """What structlog says of the task from now on, in this context."""
    for variable, value in zip(_FOR_STRUCTLOG, values, strict=True):
        # `...` is structlog's own mark of what is not bound.
        variable.set(... if value == "" else value)


def adopt_structlog() -> None:
    """With JSON, what structlog says goes where all other records go, unless the tasks have configured it.

    Called before each body: any of them may be the first whose module imports it.
    """
    if "structlog" not in sys.modules:
        return
    import structlog

    ours = (isinstance(each.formatter, logs.JsonFormatter) for each in logging.getLogger().handlers)
    if structlog.is_configured() or not any(ours):
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _to_logging,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _to_logging(logger: object, method: str, event: Any) -> Any:
    """As a call of logging: the event is the message, the rest are fields."""
    fields = dict(event)
    message = str(fields.pop("event", ""))
    known = {
        name: fields.pop(name)
        for name in ("exc_info", "stack_info", "stacklevel")
        if name in fields
    }
    return (message,), {**known, "extra": {logs.FIELDS: fields}}
