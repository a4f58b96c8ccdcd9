"""The values that quiesce hands to its users: frozen, hashable, and the same from every verb.

Times are seconds since the epoch (float), None where the thing did not happen. `outcome`, `evidence`
and `state` are the StrEnums of `quiesce.registry.states`; they compare equal to their plain strings.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from quiesce.registry.ids import TaskId
from quiesce.registry.printable import printable
from quiesce.registry.states import Evidence, Outcome
from quiesce.task_info import Fence, Progress, TaskInfo, TaskKind


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedTask:
    """One row of a ShutdownReport. The four times are ordered.

    `waiting_for` says, of a task that has not ended, what it waits for and why it could not be forced.
    """

    id: TaskId
    attempt: int
    kind: str
    name: str
    runtime: str
    tenant_id: str | None = None
    timeline_id: str | None = None
    outcome: Outcome | None = None
    evidence: Evidence | None = None
    exit_status: int | None = None
    requested_at: float | None = None
    delivered_at: float | None = None
    observed_at: float | None = None
    stopped_at: float | None = None
    waiting_for: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShutdownReport:
    """The certificate of a stop.

    `tasks`: every task that the stop matched and that has ended, with the evidence of its end.
    `caller`: the task that made the call, where the scope covered it: it was left out.
    `collateral`: tasks outside the scope that died because their process had to be killed.
    `remaining`: matched tasks without evidence of an end: empty unless the stop timed out.
    """

    tasks: tuple[StoppedTask, ...] = ()
    caller: tuple[StoppedTask, ...] = ()
    collateral: tuple[StoppedTask, ...] = ()
    remaining: tuple[StoppedTask, ...] = ()
    scope: str = "everything"
    reason: str = ""
    requested_at: float | None = None
    completed_at: float | None = None

    def __str__(self) -> str:
        """Made for people: a headline, then a line for each task; of many, the slowest.

        What users have named is shown without control characters, so that the lines are those of quiesce alone.
        """
        count = len(self.tasks)
        total = count + len(self.remaining)
        of_one = self.scope.startswith("task ")  # a handle's own stop closes no scope
        scope = printable(self.scope)
        tasks = scope if of_one else f"{total} task{'s' * (total != 1)} of {scope}"
        if count == total:
            head = f"stopped {tasks}"
        else:
            head = f"not stopped: {tasks}" if of_one else f"stopped {count} of {tasks}"
        if self.requested_at is not None and self.completed_at is not None:
            head += f" in {max(0.0, self.completed_at - self.requested_at):.2f} s"
        outcomes = Counter(str(task.outcome) for task in self.tasks)
        if outcomes:
            head += ": " + ", ".join(f"{many} {outcome}" for outcome, many in outcomes.items())
        if self.remaining:
            head += f"; {len(self.remaining)} not ended"
            head += "" if of_one else ", the scope stays closed"
        lines = [head]
        if self.reason:
            lines.append(f"reason: {printable(self.reason)}")
        lines += _table(self.tasks)
        for title, rows in (
            ("not ended:", self.remaining),
            ("the caller, left out because it asked for the stop:", self.caller),
            ("outside the scope, died because their process had to be killed:", self.collateral),
        ):
            if rows:
                lines += [title, *_table(rows, asked=rows is not self.caller)]
        return "\n".join(lines)


#: A report shows so many tasks in each of its parts.
_SHOWN = 20


def _table(tasks: tuple[StoppedTask, ...], *, asked: bool = True) -> list[str]:
    """Aligned lines; if there are too many, those that took longest. Not `asked`: the stop left them alone."""

    def took(task: StoppedTask) -> float:
        if task.stopped_at is None or task.requested_at is None:
            return math.inf
        return task.stopped_at - task.requested_at

    hidden = len(tasks) - _SHOWN
    shown = sorted(tasks, key=took, reverse=True)[:_SHOWN] if hidden > 0 else list(tasks)
    rows = [_cells(task, asked=asked) for task in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*lines, f"  … and {hidden} more, none slower"] if hidden > 0 else lines


def _cells(task: StoppedTask, *, asked: bool) -> tuple[str, ...]:
    end = " ".join(str(each) for each in (task.outcome, task.evidence) if each is not None)
    if task.exit_status is not None:
        end += f" (exit status {task.exit_status})"
    cells = (
        f"{task.id}.{task.attempt}",
        task.kind,
        task.name,
        "/".join(each for each in (task.tenant_id, task.timeline_id) if each is not None),
        end or ("no end" if asked else "goes on"),
        *(_times(task) if asked else ("", "", "")),
        f"waiting for {task.waiting_for}" if task.waiting_for else "",
    )
    return tuple(map(printable, cells))


def _times(task: StoppedTask) -> tuple[str, str, str]:
    """Relative to the request. What did not happen is said: a broken link is not a task that does not look."""

    def since(at: float | None) -> str:
        if at is None:
            return ""
        return f"+{max(0.0, at - (task.requested_at or at)):.3f} s"

    if task.evidence is Evidence.NEVER_RAN:
        return "", "", f"stopped {since(task.stopped_at)}"
    delivered, observed = since(task.delivered_at), since(task.observed_at)
    return (
        f"delivered {delivered}" if delivered else "never delivered",
        f"observed {observed}" if observed else "never observed" if delivered else "",
        f"stopped {since(task.stopped_at)}" if task.stopped_at is not None else "",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerInfo:
    """One worker process. `tasks` are the ids that it holds, begun or not. CPU in seconds, memory in bytes."""

    runtime: str
    host: str
    pid: int
    supervisor_pid: int
    incarnation: int
    state: str
    tasks: tuple[TaskId, ...] = ()
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerInfo:
    """The broker that a client talks to. `state` is "running" or "stopping"."""

    pid: int
    epoch: int
    address: str
    version: str
    state: str
    durability: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedScope:
    """A closed scope: by whom ("stop", "block", "kept", "timed-out"), why and since when.

    `scope` is in words; the last four fields are the same one by one. `waiting_for`: what has to end before it
    opens, in words; "" for what only `reopen` opens.
    """

    scope: str
    holder: str
    reason: str
    since: float
    waiting_for: str = ""
    kind: str | None = None
    tenant_id: str | None = None
    timeline_id: str | None = None
    runtime: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedStop:
    """One stop of the bounded history, without its tasks.

    `outcomes` and `evidence` count how its tasks ended; `remaining`, how many had not when it timed out. `by`:
    who asked, "process 123 on some-host" or "the system".
    """

    id: int
    scope: str
    reason: str
    requested_at: float
    completed_at: float
    timed_out: bool = False
    outcomes: dict[Outcome, int] = field(default_factory=dict, hash=False)  # a dict has no hash
    evidence: dict[Evidence, int] = field(default_factory=dict, hash=False)
    remaining: int = 0
    keep_closed: bool = False
    by: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStacks:
    """The Python stacks of one running task: one text for each of its threads and coroutines."""

    id: TaskId
    attempt: int
    name: str
    worker_pid: int
    stacks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened in the registry. `type` is like "task-ended", `data` holds plain values."""

    type: str
    at: float
    task_id: TaskId | None = None
    data: dict[str, Any] = field(default_factory=dict, hash=False)  # a dict has no hash


__all__ = [
    "BrokerInfo",
    "ClosedScope",
    "EndedStop",
    "Event",
    "Fence",
    "Progress",
    "ShutdownReport",
    "StoppedTask",
    "TaskInfo",
    "TaskKind",
    "TaskStacks",
    "WorkerInfo",
]
