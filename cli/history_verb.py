"""The verb that looks back: history."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quiesce.cli import options
from quiesce.cli.options import Address, Json, Kind, Runtime, Tenant, Timeline
from quiesce.cli.output import add_row, console, counted, duration, print_json, table
from quiesce.values import EndedStop, TaskInfo

if TYPE_CHECKING:
    from rich.table import Table


def history(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    stops: Annotated[bool, typer.Option("--stops", help="Only stops, no tasks.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="The newest N of all.", min=1)] = 100,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show the tasks and the stops that have ended, newest last.

    The broker keeps the newest ten thousand of each, or what `history` is set to.
    """
    scope = options.scope(kind, tenant, timeline, runtime)
    with options.connected(address) as client:
        tasks = [] if stops else client.tasks(*scope, state="ended")
        # A stop that ended with the last of its tasks comes after it: the order is stable.
        ended: list[TaskInfo | EndedStop] = [*tasks, *client.history(*scope)]
    ended.sort(key=_at)
    ended = ended[-limit:]
    if json:
        document: dict[str, Any] = {
            "tasks": [each for each in ended if isinstance(each, TaskInfo)],
            "stops": [each for each in ended if isinstance(each, EndedStop)],
        }
        if stops:
            del document["tasks"]
        print_json(document)
        return
    console().print(_table(ended) if ended else "nothing has ended")


def _at(ended: TaskInfo | EndedStop) -> float:
    return ended.completed_at if isinstance(ended, EndedStop) else ended.ended_at or 0.0


def _table(rows: list[TaskInfo | EndedStop]) -> "Table":
    columns = ("ENDED", "WHAT", "KIND", "NAME", "TENANT", "TIMELINE", "HOW", "TOOK", "REASON", "BY")
    lines = [_stop(each) if isinstance(each, EndedStop) else _task(each) for each in rows]
    used = [number for number in range(len(columns)) if any(line[number] for line in lines)]
    made = table(*(columns[number] for number in used), right=("TOOK",))
    for line in lines:
        add_row(made, *(line[number] for number in used))
    return made


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _task(task: TaskInfo) -> tuple[str, ...]:
    """How long it ran, if it did."""
    how = f"{task.outcome} {task.evidence}"
    if task.exit_status is not None:
        how += f" (exit status {task.exit_status})"
    took = "" if task.started_at is None else duration(_at(task) - task.started_at)
    return (
        _when(_at(task)),
        f"task {task.id}.{task.attempt}",
        task.kind,
        task.name,
        task.tenant_id or "",
        task.timeline_id or "",
        how,
        took,
        task.reason,
        "" if task.worker_pid is None else f"process {task.worker_pid} on {task.host}",
    )


def _stop(stop: EndedStop) -> tuple[str, ...]:
    """Its scope stands under NAME, how its tasks ended under HOW."""
    ended = sum(stop.outcomes.values())
    how = "timed out" if stop.timed_out else "complete"
    how += f": {counted(ended, 'task')} ended"
    if ended:
        how += f" ({', '.join(f'{many} {name}' for name, many in stop.outcomes.items())})"
    if stop.remaining:
        how += f", {stop.remaining} left"
    if stop.keep_closed:
        how += ", kept closed"
    took = duration(stop.completed_at - stop.requested_at)
    when = _when(stop.completed_at)
    return (when, f"stop {stop.id}", "", f"[{stop.scope}]", "", "", how, took, stop.reason, stop.by)
