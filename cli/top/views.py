"""Snapshots as rows of tables: one function for each view. Nothing here draws."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from quiesce.cli.listing import state_text
from quiesce.cli.output import age, clean, duration, size
from quiesce.cli.top.filters import Filter
from quiesce.cli.top.source import Snapshot, Trend

if TYPE_CHECKING:
    from quiesce.registry.rows import StopRow
    from quiesce.values import Progress, TaskInfo

#: Characters of a bar of progress.
_BAR: Final = 8
#: Seconds without a look after which a running task is marked.
_LATE: Final = 30.0


class Column(NamedTuple):
    """Up to `most` characters wide, cut to no less than `least`; of the lowest `rank` is left out first."""

    title: str
    least: int
    most: int
    rank: int
    right: bool = False
    #: Gets what room is left.
    stretch: bool = False


class Cell(NamedTuple):
    """A text without control characters, and a style of Rich's."""

    text: str
    style: str = ""


class Row(NamedTuple):
    """`key` tells it from all others of its view; `order` has a value for each column, to sort by."""

    key: object
    cells: tuple[Cell, ...]
    order: tuple[Any, ...]
    #: What the row is about.
    of: Any = None


TASKS: Final = (
    Column("ID", 3, 8, 10, right=True),
    Column("STATE", 7, 18, 9),
    Column("KIND", 14, 26, 7),
    Column("NAME", 8, 30, 8),
    Column("TENANT", 8, 20, 8),
    Column("TIMELINE", 8, 16, 2),
    Column("RUNTIME", 10, 16, 4),
    Column("AGE", 4, 6, 8, right=True),
    Column("LOOKED", 6, 6, 6, right=True),
    Column("PROGRESS", 9, 30, 5),
    Column("PID", 6, 7, 1, right=True),
    Column("WAITING FOR", 11, 200, 3, stretch=True),
)
TENANTS: Final = (
    Column("TENANT", 6, 40, 9),
    Column("TASKS", 5, 8, 9, right=True),
    Column("RUNNING", 7, 8, 8, right=True),
    Column("QUEUED", 6, 8, 8, right=True),
    Column("STOPPING", 8, 8, 7, right=True),
    Column("SHARE", 12, 30, 3, stretch=True),
)
KINDS: Final = (
    Column("KIND", 8, 34, 9),
    Column("RUNTIME", 7, 20, 8),
    Column("RUNNING", 7, 8, 8, right=True),
    Column("QUEUED", 6, 8, 8, right=True),
    Column("STOPPING", 8, 8, 7, right=True),
    Column("SPAWNED/S", 9, 9, 4, right=True),
    Column("ENDED/S", 7, 8, 6, right=True),
    Column("ENDED", 5, 10, 5, right=True),
    Column("NOT WELL", 8, 30, 5, stretch=True),
)
WORKERS: Final = (
    Column("PID", 5, 8, 9, right=True),
    Column("RUNTIME", 7, 24, 9),
    Column("STATE", 6, 8, 7),
    Column("CPU", 5, 6, 8, right=True),
    Column("MEMORY", 7, 9, 8, right=True),
    Column("TASKS", 5, 6, 8, right=True),
    Column("HOST", 6, 24, 2),
    Column("FIRST TASKS", 11, 200, 3, stretch=True),
)
STOPS: Final = (
    Column("STOP", 4, 7, 9, right=True),
    Column("SCOPE", 10, 40, 9),
    Column("SINCE", 5, 6, 8, right=True),
    Column("LEFT", 4, 7, 8, right=True),
    Column("REASON", 6, 24, 3),
    Column("WAITING FOR", 16, 200, 6, stretch=True),
)
RUNTIMES: Final = (
    Column("RUNTIME", 12, 24, 9),
    Column("WORKERS", 7, 7, 5, right=True),
    Column("CPU", 5, 6, 8, right=True),
    Column("MEMORY", 7, 9, 8, right=True),
    Column("RUNNING", 7, 8, 8, right=True),
    Column("QUEUED", 6, 8, 8, right=True),
    Column("STOPPING", 8, 8, 7, right=True),
    Column("ENDED/S", 7, 8, 6, right=True),
    Column("BUSY", 8, 24, 2, stretch=True),
)


def _number(value: float, style: str = "") -> Cell:
    """0 is quiet."""
    return Cell(f"{value:g}", style if value else "dim")


def _rate(value: float) -> Cell:
    text = "0" if value < 0.05 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return Cell(text, "" if value >= 0.05 else "dim")


def _percent(share: float) -> Cell:
    style = "bold red" if share >= 0.9 else "yellow" if share >= 0.5 else "" if share else "dim"
    return Cell(f"{share:.0%}", style)


def bar(share: float, width: int) -> str:
    """A share of 1 as so many characters."""
    full, half = divmod(round(max(0.0, min(share, 1.0)) * width * 2), 2)
    return ("━" * full + "╸" * half).ljust(width)


def spark(values: Iterable[float], width: int) -> str:
    """A line of throughput."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    steps = "▁▂▃▄▅▆▇█"
    return "".join(steps[min(7, int(value / top * 7.99))] if top else steps[0] for value in shown)


# --- tasks ----------------------------------------------------------------------------------------


def tasks(snapshot: Snapshot, wanted: Filter) -> list[Row]:
    """The tasks that match."""
    return [_task(task, snapshot.at) for task in snapshot.tasks if wanted.matches(task)]


def _task(task: "TaskInfo", now: float) -> Row:
    since = task.started_at if task.started_at is not None else task.created_at
    unseen = None if task.state != "running" else now - (task.last_check_at or since or now)
    looked = age(task.last_check_at, now) or ("never" if unseen is not None else "")
    late = unseen is not None and unseen > _LATE
    cells = (
        Cell(str(task.id)),
        Cell(_state(task), _state_style(task)),
        Cell(clean(task.kind)),
        Cell(clean(task.name), "bold"),
        Cell(clean(task.tenant_id or ""), "cyan"),
        Cell(clean(task.timeline_id or ""), "cyan"),
        Cell(clean(task.runtime), "dim"),
        Cell(age(task.created_at, now)),
        Cell(looked, "yellow" if late else "dim" if looked == "never" else ""),
        Cell(_progress(task.progress), "green"),
        Cell("" if task.worker_pid is None else str(task.worker_pid), "dim"),
        Cell(clean(task.waiting_for), "yellow" if task.stopping else "dim"),
    )
    order = (
        task.id,
        (task.stopping, task.lingering, task.state),
        task.kind,
        task.name,
        task.tenant_id or "",
        task.timeline_id or "",
        task.runtime,
        -(task.created_at or now),
        -1.0 if unseen is None else unseen,
        _share(task.progress),
        task.worker_pid or 0,
        task.waiting_for,
    )
    return Row(task.id, cells, order, task)


def _state(task: "TaskInfo") -> str:
    """What matters most of it, in one word where it can be."""
    if task.lingering:
        return "lingering"
    if task.stopping:
        return "stopping" if task.state == "running" else f"stopping ({task.state})"
    return state_text(task)


def _state_style(task: "TaskInfo") -> str:
    if task.lingering:
        return "bold red"
    if task.stopping:
        return "bold yellow"
    return "green" if task.state == "running" else "dim"


def _share(progress: "Progress | None") -> float:
    if progress is None:
        return -1.0
    return progress.done / progress.total if progress.total else 0.0


def _progress(progress: "Progress | None") -> str:
    """A bar where the whole is known, else how much is done; and the note."""
    if progress is None:
        return ""
    if progress.total:
        share = _share(progress)
        text = f"{share:4.0%} {bar(share, _BAR)}"  # what counts first: the end may be cut off
    else:
        text = f"{progress.done:g}"
    return clean(f"{text} {progress.note}".rstrip())


# --- the other views ------------------------------------------------------------------------------


def tenants(snapshot: Snapshot) -> list[Row]:
    """By tenant, as far as the broker names them."""
    found = snapshot.statistics["tenants"]
    most = max((each["queued"] + each["held"] for each in found), default=0)
    rows = []
    for each in found:
        name, total = each["tenant_id"], each["queued"] + each["held"]
        cells = (
            Cell("(no tenant)", "dim") if name is None else Cell(clean(name), "bold cyan"),
            _number(total),
            _number(each["running"], "green"),
            _number(each["queued"]),
            _number(each["stopping"], "bold yellow"),
            Cell(bar(total / most, 24) if most else "", "blue"),
        )
        order = (name or "", total, each["running"], each["queued"], each["stopping"], total)
        rows.append(Row(("tenant", name), cells, order, name))
    return rows


def kinds(snapshot: Snapshot, trend: Trend) -> list[Row]:
    """By kind and runtime: those that have, or had, any task."""
    rows = []
    for runtime, of in snapshot.runtimes.items():
        for kind, each in of["kinds"].items():
            rate = trend.rate(("kind", runtime, kind))
            ended = sum(each["ended"].values())
            bad = {name: each["ended"].get(name, 0) for name in ("failed", "crashed", "lost")}
            words = ", ".join(f"{count} {name}" for name, count in bad.items() if count)
            cells = (
                Cell(clean(kind), "bold"),
                Cell(clean(runtime), "dim"),
                _number(each["running"], "green"),
                _number(each["queued"]),
                _number(each["stopping"], "bold yellow"),
                _rate(rate.spawned),
                _rate(rate.ended),
                _number(ended),
                Cell(words, "red"),
            )
            order = (
                kind,
                runtime,
                each["running"],
                each["queued"],
                each["stopping"],
                rate.spawned,
                rate.ended,
                ended,
                sum(bad.values()),
            )
            rows.append(Row((runtime, kind), cells, order, (kind, runtime)))
    return rows


def workers(snapshot: Snapshot, trend: Trend) -> list[Row]:
    """The worker processes."""
    names = {task.id: task.name for task in snapshot.tasks}
    rows = []
    for worker in snapshot.workers:
        cpu = trend.rate(("worker", worker.incarnation)).cpu
        first = ", ".join(f"{each} {names.get(each, '')}".strip() for each in worker.tasks[:4])
        cells = (
            Cell(str(worker.pid), "bold"),
            Cell(clean(worker.runtime)),
            Cell(worker.state, "green" if worker.state == "ready" else "yellow"),
            _percent(cpu),
            Cell(size(worker.memory_bytes)),
            _number(len(worker.tasks), "green"),
            Cell(clean(worker.host), "dim"),
            Cell(clean(first), "dim"),
        )
        order = (
            worker.pid,
            worker.runtime,
            worker.state,
            cpu,
            worker.memory_bytes,
            len(worker.tasks),
            worker.host,
            first,
        )
        rows.append(Row(worker.incarnation, cells, order, worker))
    return rows


def runtimes(snapshot: Snapshot, trend: Trend) -> list[Row]:
    """One row for each pool."""
    rows = []
    for name, each in snapshot.runtimes.items():
        rate = trend.rate(("runtime", name))
        room = each["processes"] * each["slots"]
        busy = each["running"] / room if room else 0.0
        cells = (
            Cell(clean(name), "bold"),
            _number(each["processes"]) if each["processes"] else Cell("none", "bold red"),
            _percent(rate.cpu),
            Cell(size(each["memory_bytes"])),
            _number(each["running"], "green"),
            _number(each["queued"], "yellow" if busy >= 1 else ""),
            _number(each["stopping"], "bold yellow"),
            _rate(rate.ended),
            Cell(f"{bar(busy, 10)} {busy:.0%}", "yellow" if busy >= 1 else "green"),
        )
        rows.append(Row(name, cells, (), name))
    return rows


def waiting(stop: "StopRow") -> str:
    """The first of what a stop waits for, and why it takes so long."""
    words = [
        f"{task.id} {task.name}: {task.waiting_for or task.state}" for task in stop.tasks[:3]
    ] or ["spawns that its caller sent before it"]
    more = stop.remaining - min(3, len(stop.tasks))
    return clean("; ".join(words) + (f"; and {more} more" if more > 0 else ""))


def stops(snapshot: Snapshot) -> list[Row]:
    """The stops in progress; scopes that stay closed after one."""
    rows = []
    for stop in snapshot.stops:
        cells = (
            Cell(str(stop.stop_id), "bold"),
            Cell(clean(f"[{stop.scope}]"), "bold yellow"),
            Cell(age(stop.requested_at, snapshot.at)),
            _number(stop.remaining, "bold"),
            Cell(clean(stop.reason)),
            Cell(waiting(stop), "yellow"),
        )
        order = (
            stop.stop_id,
            stop.scope,
            -stop.requested_at,
            stop.remaining,
            stop.reason,
            waiting(stop),
        )
        rows.append(Row(("stop", stop.stop_id), cells, order, stop))
    for number, each in enumerate(snapshot.closed):
        if each.holder == "stop":
            continue  # shown above
        cells = (
            Cell("closed", "dim"),
            Cell(clean(f"[{each.scope}]"), "cyan"),
            Cell(age(each.since, snapshot.at)),
            Cell(""),
            Cell(clean(each.reason)),
            Cell(clean(each.waiting_for or f"reopen ({each.holder})"), "dim"),
        )
        order = (-1, each.scope, -each.since, 0, each.reason, each.waiting_for)
        rows.append(Row(("closed", number, each.scope), cells, order, each))
    return rows


# --- the head -------------------------------------------------------------------------------------


def summary(snapshot: Snapshot, trend: Trend) -> list[Cell]:
    """The numbers of the whole system, for one line."""
    statistics, rate, broker = snapshot.statistics, trend.rate(), trend.rate("broker")
    stopping = statistics["stopping"]
    return [
        Cell(f"{statistics['tasks']}", "bold"),
        Cell(" tasks  "),
        Cell(f"{statistics['running']}", "bold green"),
        Cell(" running  "),
        Cell(f"{statistics['queued']}", "bold"),
        Cell(" queued  "),
        Cell(f"{stopping}", "bold yellow" if stopping else "bold dim"),
        Cell(" stopping  ", "" if stopping else "dim"),
        Cell(_rate(rate.ended).text, "bold"),
        Cell(" ended/s  "),
        Cell("broker ", "dim"),
        Cell(f"{broker.cpu:.0%} {size(statistics['broker']['memory_bytes'])}", "dim"),
    ]


def up_since(snapshot: Snapshot) -> str:
    """How long this broker has run."""
    return duration(snapshot.at - snapshot.statistics["started_at"])
