"""The tables of `ps` and of a stop in progress."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from quiesce.cli.output import add_row, age, duration, size, table
from quiesce.values import ClosedScope, Progress, TaskInfo

if TYPE_CHECKING:
    from rich.table import Table


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


def tasks(rows: Iterable[TaskInfo]) -> "Table":
    """One line for each task. Columns that would be empty are left out."""
    now = time.time()
    columns: dict[str, list[str]] = {
        name: []
        for name in (
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
            "PID",
        )
    }
    always = ("ID", "RUNTIME", "KIND", "NAME", "STATE", "AGE")
    for task in rows:
        reason = f" ({task.reason})" if task.reason and task.stopping else ""
        cells = (
            str(task.id),
            str(task.attempt),
            task.runtime,
            task.kind,
            task.name,
            task.tenant_id or "",
            task.timeline_id or "",
            state_text(task) + reason,
            age(task.created_at, task.ended_at or now),
            age(task.last_check_at, now),
            progress_text(task.progress),
            task.waiting_for,
            "" if task.worker_pid is None else str(task.worker_pid),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    shown = {name: cells for name, cells in columns.items() if name in always or any(cells)}
    made = table(*shown, right=("ID", "ATT", "AGE", "CHECKED", "PID"))
    for cells in zip(*shown.values(), strict=True):
        add_row(made, *cells)
    return made


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
    """One line for each closed scope."""
    made = table("CLOSED SCOPE", "BY", "SINCE", "REASON", right=("SINCE",))
    for scope in scopes:
        add_row(made, scope.scope, scope.holder, age(scope.since), scope.reason)
    return made
