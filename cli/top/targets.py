"""What the stop key could mean: the scopes that a marked row suggests, and what each would stop."""

from typing import TYPE_CHECKING, Final, NamedTuple

from quiesce.cli.options import ScopeOptions
from quiesce.cli.output import clean, counted
from quiesce.cli.top.filters import Filter
from quiesce.cli.top.source import Snapshot
from quiesce.cli.top.views import Row
from quiesce.registry.scope import Scope
from quiesce.values import TaskInfo, WorkerInfo

if TYPE_CHECKING:
    from quiesce.client import Client
    from quiesce.values import ShutdownReport

#: Tasks that a question names.
_NAMED: Final = 5


class Target(NamedTuple):
    """A task (by its id) or a scope to stop."""

    scope: ScopeOptions
    task_id: int | None = None

    def __str__(self) -> str:
        return f"task {self.task_id}" if self.task_id is not None else f"[{Scope(*self.scope)}]"

    def tasks(self, snapshot: Snapshot) -> list[TaskInfo]:
        """What it would stop, as far as it is listed."""
        if self.task_id is not None:
            return [task for task in snapshot.tasks if task.id == self.task_id]
        scope = Scope(*self.scope)
        return [
            task
            for task in snapshot.tasks
            if scope.matches(task.kind, task.tenant_id, task.timeline_id, task.runtime)
        ]

    def line(self, snapshot: Snapshot) -> str:
        """One line of a choice."""
        tasks = self.tasks(snapshot)
        if self.task_id is not None:
            return clean(f"{self} alone ({tasks[0].name})" if tasks else f"{self} alone")
        return clean(f"{self}: {_counts(tasks, snapshot)}")

    def question(self, snapshot: Snapshot) -> str:
        """What exactly will happen."""
        tasks = self.tasks(snapshot)
        lines = [f"{self}, as of now {_counts(tasks, snapshot)}:"] if self.task_id is None else []
        for task in tasks[:_NAMED]:
            labels = "/".join(x for x in (task.tenant_id, task.timeline_id) if x is not None)
            lines.append(f"  {task.id} {task.kind} {task.name} {labels} ({task.state})")
        if len(tasks) > _NAMED:
            lines.append(f"  and {len(tasks) - _NAMED} more")
        lines.append("")
        if self.task_id is None:
            lines.append("The scope is closed until all of them have ended: spawns are refused.")
        lines.append("After its grace a task is forced.")
        return "\n".join(map(clean, lines))

    def stop(self, client: "Client", *, kept: bool, reason: str) -> "ShutdownReport":
        """Do it; returns when all have ended."""
        from quiesce.client import requests

        if self.task_id is None:
            return client.shutdown_tasks(*self.scope, keep_closed=kept, reason=reason)
        return client._stop(requests.stop_task(self.task_id, None, None, reason), None).report


def _counts(tasks: list[TaskInfo], snapshot: Snapshot) -> str:
    queued = sum(task.state == "queued" for task in tasks)
    words = counted(len(tasks), "task")
    if queued:
        words += f", {queued} of them queued"
    if snapshot.unlisted:
        words += f"; and what of the {snapshot.unlisted} queued tasks matches"
    return words


def of_row(view: str, row: Row | None, wanted: Filter) -> list[Target]:
    """What may be meant, the narrowest first."""
    targets: list[Target] = []

    def add(
        kind: str | None = None,
        tenant: str | None = None,
        timeline: str | None = None,
        runtime: str | None = None,
    ) -> None:
        targets.append(Target(ScopeOptions(kind, tenant, timeline, runtime)))

    of = None if row is None else row.of
    if isinstance(of, TaskInfo):
        labels = ScopeOptions(of.kind, of.tenant_id, of.timeline_id, of.runtime)
        targets.append(Target(labels, of.id))
        if of.tenant_id is not None:
            if of.timeline_id is not None:
                add(None, of.tenant_id, of.timeline_id)
            add(of.kind, of.tenant_id)
            add(None, of.tenant_id)
        add(of.kind)
        add(runtime=of.runtime)
    elif view == "tenants" and isinstance(of, str):
        add(None, of)
    elif view == "kinds" and isinstance(of, tuple):
        add(of[0], runtime=of[1])
        add(of[0])
    elif isinstance(of, WorkerInfo):
        add(runtime=of.runtime)
    shown = wanted.scope() if wanted else None
    if view == "tasks" and shown is not None and Target(shown) not in targets:
        targets.append(Target(shown))
    return targets
