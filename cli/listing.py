"""The tables of `ps` and of a stop in progress."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from quiesce.cli.output import add_row, age, clean, counted, duration, size, table
from quiesce.values import ClosedScope, Progress, TaskInfo

if TYPE_CHECKING:
    from rich.table import Table

    from quiesce.registry.rows import StopRow


def state_text(task: TaskInfo) -> str:
    """The state with its marks: "running stopping lingering"; of an ended one also how."""
    words: list[str] = [str(task.state)]
    if task.outcome is not None:
        words = [str(task.outcome), str(task.evidence or "")]
        if task.exit_status is not None:
            words.append(f"({task.exit_status})")
    elif task.stopping:
        words.append("stopping")
    if task.lingering:
        words.append("lingering")
    return " ".join(word for word in words if word)


def progress_text(progress: Progress | None) -> str:
    """3/10 note, or 3 note."""
    if progress is None:
        return ""
    done, total, note = progress
    count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    return f"{count} {note}".strip()


#: What `ps` shows of a task, and what is enough in a stop. Those that would be empty are left out.
_ALL: Final = (
    "ID",
    "ATT",
    "RUNTIME",
    "KIND",
    "NAME",
    "TENANT",
    "TIMELINE",
    "STATE",
    "AGE",
    "CHECKED",
    "PROGRESS",
    "WAITING FOR",
    "REASON",
    "PID",
)
_OF_A_STOP: Final = ("ID", "KIND", "NAME", "AGE", "CHECKED", "PROGRESS", "WAITING FOR", "PID")
#: Stops named in one line.
_NAMED: Final = 3
_ALWAYS: Final = ("ID", "RUNTIME", "KIND", "NAME", "STATE", "AGE")
_RIGHT: Final = ("ID", "ATT", "AGE", "CHECKED", "PID")
_WRAPPED: Final = ("NAME", "STATE", "PROGRESS", "WAITING FOR", "REASON")


def tasks(rows: Iterable[TaskInfo], *, of_a_stop: bool = False) -> "Table":
    """One line for each task."""
    now = time.time()
    lines = [_cells(task, now) for task in rows]
    columns = [
        name
        for name in (_OF_A_STOP if of_a_stop else _ALL)
        if name in _ALWAYS or any(line[name] for line in lines)
    ]
    made = table(*columns, right=_RIGHT, wrapped=_WRAPPED)
    for line in lines:
        add_row(made, *(line[name] for name in columns))
    return made


def _cells(task: TaskInfo, now: float) -> dict[str, str]:
    return {
        "ID": str(task.id),
        "ATT": str(task.attempt),
        "RUNTIME": task.runtime,
        "KIND": task.kind,
        "NAME": task.name,
        "TENANT": task.tenant_id or "",
        "TIMELINE": task.timeline_id or "",
        "STATE": state_text(task),
        "AGE": age(task.created_at, task.ended_at or now),
        "CHECKED": age(task.last_check_at, now),
        "PROGRESS": progress_text(task.progress),
        "WAITING FOR": task.waiting_for,
        "REASON": task.reason,
        "PID": "" if task.worker_pid is None else str(task.worker_pid),
    }


def runtimes(statistics: Mapping[str, Mapping[str, Any]]) -> "Table":
    """One line for each runtime, from `Client.statistics()`."""
    names = ("RUNTIME", "WORKERS", "SLOTS", "QUEUED", "RUNNING", "STOPPING", "CPU", "MEMORY")
    made = table(*names, right=names[1:])
    for name, row in statistics.items():
        add_row(
            made,
            name,
            row.get("processes", 0),
            row.get("slots", ""),
            row.get("queued", 0),
            row.get("running", 0),
            row.get("stopping", 0),
            duration(float(row.get("cpu_seconds", 0.0))),
            size(float(row.get("memory_bytes", 0))),
        )
    return made


def closed(scopes: Iterable[ClosedScope]) -> "Table":
    """One line for each closed scope, and what has to end before it opens."""
    made = table("CLOSED SCOPE", "BY", "SINCE", "WAITING FOR", "REASON", right=("SINCE",))
    for scope in scopes:
        add_row(made, scope.scope, scope.holder, age(scope.since), scope.waiting_for, scope.reason)
    return made


def stops(rows: "list[StopRow]") -> str:
    """One line for all stops in progress: "2 stops in progress: 3 of [tenant_id=x] waits for 4 tasks, …"."""
    named = ", ".join(
        f"{row.stop_id} of [{row.scope}] waits for {counted(row.remaining, 'task')} "
        f"since {age(row.requested_at)}"
        for row in rows[:_NAMED]
    )
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return clean(f"{counted(len(rows), 'stop')} in progress: {named}{more}")
