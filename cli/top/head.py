"""The lines of `quiesce top` around its tables. Each is cut and filled to the width."""

import time
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from quiesce.cli.output import age, clean, counted
from quiesce.cli.top import views
from quiesce.cli.top.filters import Filter
from quiesce.cli.top.source import Snapshot, Trend

#: Stops that stand above the table.
_STOPS: Final = 3


def title(
    address: str, snapshot: Snapshot | None, away: str | None, width: int, *, paused: bool
) -> Text:
    """Which system, and how it is. `away`: for how long no broker has answered."""
    left = Text.assemble((" quiesce ", "bold reverse"), " ")
    right = Text(time.strftime(" %H:%M:%S "))
    if away is not None:
        left.append("● ", "bold red")
        left.append(f"no broker for {away}, asking again", "bold red")
        left.append(f"   {clean(address)}", "dim")
    elif snapshot is not None:
        statistics = snapshot.statistics
        going = statistics["state"] == "running"
        left.append("● ", "bold green" if going else "bold yellow")
        left.append(f"{statistics['state']}   ", "" if going else "bold yellow")
        left.append(clean(address), "dim")
        more = f"epoch {statistics['epoch']}   up {views.up_since(snapshot)}  "
        right = Text.assemble((more, "dim"), right)
    if paused:
        right = Text.assemble((" paused ", "bold reverse yellow"), right)
    return _between(left, right, width)


def summary(snapshot: Snapshot, trend: Trend, width: int) -> Text:
    """The numbers of the whole system, and the line of its throughput where there is room."""
    line = Text.assemble(*((cell.text, cell.style) for cell in views.summary(snapshot, trend)))
    room = width - line.cell_len - 2
    if room >= 8:
        chart = Text(views.spark(trend.ended, min(room, 40)), style="green")
        line = _between(line, chart, width)
    return line


def stops(snapshot: Snapshot, width: int) -> Text:
    """The oldest stops in progress, a line for each, and what they wait for."""
    lines = []
    for stop in snapshot.stops[:_STOPS]:
        line = Text.assemble(
            ("◼ stop ", "bold yellow"),
            (clean(f"[{stop.scope}]"), "bold"),
            f" {age(stop.requested_at, snapshot.at)}, waits for {counted(stop.remaining, 'task')}: ",
            (views.waiting(stop), "yellow"),
        )
        line.truncate(max(10, width), overflow="ellipsis")
        lines.append(line)
    if len(snapshot.stops) > _STOPS:
        more = len(snapshot.stops) - _STOPS
        lines.append(Text(f"  and {more} more (5 shows them all)", style="yellow"))
    return Text("\n").join(lines)


def tabs(
    names: Sequence[str], current: str, wanted: Filter, snapshot: Snapshot, shown: int, width: int
) -> Text:
    """Which tables there are, and what this one leaves out."""
    line = Text(" ")
    for number, name in enumerate(names, 1):
        line.append(f" {number} {name.capitalize()} ", "bold reverse" if name == current else "")
    right = Text()
    if current == "tasks":
        if wanted:
            right.append(clean(wanted), "bold cyan")
            right.append(f"  {shown} of {len(snapshot.tasks)} ", "dim")
        if snapshot.unlisted:
            right.append(f" {snapshot.unlisted} queued are not listed ", "yellow")
    elif current == "tenants" and snapshot.statistics["tenants_total"] > shown:
        right.append(f"the {shown} largest of {snapshot.statistics['tenants_total']} ", "dim")
    return _between(line, right, width)


def _between(left: Text, right: Text, width: int) -> Text:
    """One line: what does not fit is cut on the left."""
    left = left.copy()
    left.truncate(max(0, width - right.cell_len - 1), overflow="ellipsis")
    left.append(" " * max(0, width - left.cell_len - right.cell_len))
    return left + right
