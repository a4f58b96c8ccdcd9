"""What the demo shows while it runs: a live table on a terminal, a line now and then elsewhere."""

import time
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_LINE_EVERY = 3.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tenant, as the metrics task measured it and the registry knows it."""

    tenant: str
    state: str
    timelines: int = 0
    versions: int = 0
    versions_expected: int = 0
    layers: int = 0
    not_local: int = 0
    collected: int = 0
    tasks: int = 0
    pages: int = 0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The whole at one moment. `runtimes` is {name: (worker processes, tasks)}."""

    phase: str = "starting"
    elapsed: float = 0.0
    rows: tuple[Row, ...] = ()
    runtimes: dict[str, tuple[int, int]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is; outside a terminal each of its lines stays one."""
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


class View:
    """Shows pictures and sentences on a console; on none, nothing. A context manager."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._live: Live | None = None
        if console is not None and console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._last_line = 0.0
        self._picture = Picture()

    def say(self, text: str, style: str = "") -> None:
        """Print a sentence above the table."""
        if self._console is not None:
            print_text(self._console, text, style)

    def show(self, picture: Picture) -> None:
        """Show how things are."""
        self._picture = picture
        if self._live is not None:
            self._live.update(Group(_headline(picture), _table(picture)))
        elif self._console is not None and time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            print_text(self._console, _line(picture))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _runtimes(picture: Picture) -> str:
    return "   ".join(
        f"{name} {tasks} tasks/{workers} processes"
        for name, (workers, tasks) in picture.runtimes.items()
    )


def _headline(picture: Picture) -> Text:
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(picture.statuses.items()))
    text = Text(f"{picture.elapsed:5.1f} s  ")
    text.append(picture.phase, style="bold")
    text.append(f"\n{_runtimes(picture)}")
    text.append(f"\npage requests: {statuses or 'none yet'}")
    return text


def _table(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tenant")
    table.add_column("state")
    for heading in (
        "timelines",
        "versions",
        "layers",
        "remote only",
        "collected",
        "tasks",
        "pages",
    ):
        table.add_column(heading, justify="right")
    for row in picture.rows:
        style = {"detached": "dim", "attaching": "yellow"}.get(row.state, "")
        table.add_row(
            Text(row.tenant),
            row.state,
            str(row.timelines),
            f"{row.versions}/{row.versions_expected}",
            str(row.layers),
            str(row.not_local),
            str(row.collected),
            str(row.tasks),
            str(row.pages),
            style=style,
        )
    return table


def _line(picture: Picture) -> str:
    attached = sum(row.state == "active" for row in picture.rows)
    versions = sum(row.versions for row in picture.rows)
    expected = sum(row.versions_expected for row in picture.rows)
    served = picture.statuses.get("ok", 0)
    tasks = sum(tasks for _, tasks in picture.runtimes.values())
    return (
        f"{picture.elapsed:5.1f} s  {picture.phase}: {attached} tenants active, "
        f"{versions}/{expected} versions, {served} pages served, {tasks} tasks"
    )
