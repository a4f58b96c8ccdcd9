"""A run as tables (Markdown, aligned) and as JSON."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peerlist
import targets
from figures import Figure, Figures
from session import Session
from units import amount

#: Of the JSON: grows with changes that its readers must know of.
FORMAT = 1


# --- JSON -----------------------------------------------------------------------------------------


def as_json(session: Session, command: str, seconds: float) -> dict[str, Any]:
    """All that the tables say, and every single value."""
    figures = session.figures
    return {
        "format": FORMAT,
        "command": command,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "quick": session.quick,
        "rounds": session.rounds,
        "machine": machine(),
        "participants": {
            name: {
                "title": kind.title,
                "version": session.versions.get(name),
                "lacks": kind.lacks,
                "missing": session.missing.get(name),
            }
            for name, kind in peerlist.KINDS.items()
            if name in session.versions or name in session.missing
        },
        "figures": [_figure(figures, figure) for figure in figures.everything()],
        "targets": [verdict.plain() for verdict in targets.judge(figures)],
        "curves": figures.curves,
        "failures": figures.failures,
    }


def _figure(figures: Figures, figure: Figure) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "measure": figure.measure,
        "who": figure.who,
        "unit": figure.unit,
        "n": figure.n,
        "median": figure.median,
        "min": figure.lowest,
        "max": figure.highest,
        "values": figure.values,
    }
    for to in ("pool", "floor"):
        ratio = figures.ratio(figure.measure, figure.who, to)
        plain[f"to_{to}"] = None if ratio is None else vars(ratio)
    return plain


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "processors": len(os.sched_getaffinity(0)),
        "model": model,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


#: A page's latest run stands between these.
MARKS = ("<!-- latest run -->\n", "<!-- end of latest run -->\n")


def into_page(page: str, tables: str, found: dict[str, Any]) -> str:
    """The page with these tables instead of those of an earlier run."""
    before, _, rest = page.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise ValueError(f"the page has not both marks: {MARKS}")
    machine = found["machine"]
    head = (
        f"`{found['command']}`, {found['when'][:10]}, {found['seconds'] / 60:.0f} minutes on "
        f"{machine['processors']} processors ({machine['model']}), Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average {machine['load'][2]:.1f} over the last quarter of an hour."
    )
    return f"{before}{MARKS[0]}{head}\n\n{tables}\n{MARKS[1]}{after}"


# --- tables ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with aligned columns."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(c.ljust(width) for c, width in zip(cells, widths, strict=True)) + " |"
        )

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def spread(figure: Figure | None) -> str:
    """Median and range."""
    if figure is None:
        return "-"
    if figure.lowest == figure.highest:
        return amount(figure.median, figure.unit)
    values = (figure.median, figure.lowest, figure.highest)
    texts = [amount(value, figure.unit) for value in values]
    units = {text.partition(" ")[2] for text in texts}
    if len(units) == 1 and (unit := units.pop()):
        middle, low, high = (text.partition(" ")[0] for text in texts)
        return f"{middle} [{low} - {high}] {unit}"
    return f"{texts[0]} [{texts[1]} - {texts[2]}]"


def short(figure: Figure | None) -> str:
    """The median alone."""
    return "-" if figure is None else amount(figure.median, figure.unit)


def ratio_of(figures: Figures, measure: str, who: str, to: str) -> str:
    """The median alone."""
    ratio = figures.ratio(measure, who, to)
    return "-" if ratio is None else f"{ratio.median:.3g}x"


def as_text(session: Session) -> str:
    """All tables that have something to say."""
    figures = session.figures
    parts = [_core(figures), _peers(session), _rest(figures), _payloads(figures)]
    parts += [_curves(figures), _targets(figures)]
    parts += [_missing(session), _failures(figures)]
    return "\n\n".join(part for part in parts if part)


def _title(name: str) -> str:
    return peerlist.KINDS[name].title


def _core(figures: Figures) -> str:
    names = [
        name
        for name in peerlist.CORE
        if any(
            figures.get(measure, name)
            for measure in ("individual", "batch", "map", "roundtrip-p50")
        )
    ]
    parts = []
    for measure, title in (
        ("individual", "One by one"),
        ("batch", "Handed over together"),
        ("map", "map with chunks of 64"),
        ("roundtrip-p50", "Round trip, median"),
        ("roundtrip-p99", "Round trip, 99th percentile"),
    ):
        rows = [
            [
                _title(name),
                spread(figures.get(measure, name)),
                ratio_of(figures, measure, name, "pool"),
                ratio_of(figures, measure, name, "floor"),
            ]
            for name in names
            if figures.get(measure, name)
        ]
        if rows:
            head = [title, "median [range]", "to Pool", "to the bare parts"]
            parts.append(table(head, rows))
    return "\n\n".join(parts)


def _peers(session: Session) -> str:
    figures = session.figures
    measures = ("peers-individual", "peers-roundtrip-p50", "memory", "asleep-p50", "start")
    rows = []
    for name, kind in peerlist.KINDS.items():
        if name in peerlist.CORE and name not in peerlist.IN_BOTH:
            continue
        if not any(figures.get(measure, name) for measure in measures):
            continue
        rows.append(
            [
                f"{kind.title} {session.versions.get(name, '')}".strip(),
                short(figures.get("peers-individual", name)),
                ratio_of(figures, "peers-individual", name, "pool"),
                short(figures.get("peers-roundtrip-p50", name)),
                short(figures.get("peers-roundtrip-p99", name)),
                short(figures.get("asleep-p50", name)),
                short(figures.get("start", name)),
                short(figures.get("memory", name)),
                kind.lacks,
            ]
        )
    if not rows:
        return ""
    head = [
        "Each started anew", "one by one", "to Pool", "round trip", "p99",
        "sees a stop", "start", "memory", "what it does not do",
    ]  # fmt: skip
    return table(head, rows)


#: What stands in the table of all else, and in which words.
TITLES = {
    "asleep-p50": "a sleeping task sees the stop, p50",
    "asleep-p99": "a sleeping task sees the stop, p99",
    "busy-p50": "a task in a pure-Python loop sees it, p50",
    "busy-p99": "a task in a pure-Python loop sees it, p99",
    "neighbour-p50": "a sleeping task among 16 slots (bare parts: nothing copied) sees it, p50",
    "payload-p50": "the same beside 64 MiB, p50",
    "loaded-base-p50": "round trip before the load, p50",
    "loaded-base-p99": "round trip before the load, p99",
    "loaded-p50": "round trip beside 10,000 queued tasks, p50",
    "loaded-p99": "round trip beside 10,000 queued tasks, p99",
    "stop-200": "stop of 200 running coroutines",
    "stop-500": "stop of 500 queued tasks",
    "stop-500-of-many": "stop of 500 queued tasks among many others",
    "stop-queued": "stop of many queued tasks",
    "stop-queued-wait": "longest round trip of another client meanwhile",
    "is_shutdown_requested": "is_shutdown_requested()",
    "checkpoint": "checkpoint()",
    "system-memory": "memory of up, broker, supervisor, two workers",
    "start-four": "start of four runtimes to the first result",
    "idle": "processor time of four idle runtimes",
    "clients-none-p50": "round trip of one client alone, p50",
    "clients-many-p50": "round trip among many connected clients, p50",
    "clients": "connected clients",
    "sessions": "worker sessions",
    "backlog-shallow": "throughput with few queued",
    "backlog-middle": "throughput with more queued",
    "backlog-deep": "throughput with many queued",
    "backlog-deep-queueing": "how fast they were queued",
    "backlog-deep-bytes": "memory of the broker for each of them",
}


def _rest(figures: Figures) -> str:
    rows = [
        [
            title,
            _title(figure.who),
            spread(figure),
            "-" if figure.n is None else f"{figure.n:,.0f}",
        ]
        for measure, title in TITLES.items()
        for figure in figures.of(measure)
        if figure.who in peerlist.CORE
    ]
    return table(["Measure", "of", "median [range]", "n"], rows) if rows else ""


def _payloads(figures: Figures) -> str:
    sizes = sorted(
        int(figure.measure.split("-")[1])
        for figure in figures.everything()
        if figure.measure.startswith("payload-") and figure.measure.count("-") == 2
    )
    return _by_number(
        "There and back, median",
        {
            amount(size, "B"): {
                figure.who: short(figure) for figure in figures.of(f"payload-{size}-p50")
            }
            for size in sizes
        },
    )


#: What the curves are drawn against.
CURVES = {
    "tasks": "One by one, tasks/s, by tasks",
    "workers": "One by one, tasks/s, by worker processes",
    "clients": "One by one, tasks/s together, by clients at once",
    "backlog": "Tasks/s by tasks queued",
}


def _curves(figures: Figures) -> str:
    parts = []
    for name, title in CURVES.items():
        rows: dict[str, dict[str, str]] = {}
        lines = figures.curves.get(name, {})
        for x, who, y in sorted((x, who, y) for who, line in lines.items() for x, y in line):
            rows.setdefault(f"{x:,.0f}", {})[who] = f"{y:,.0f}"
        parts.append(_by_number(title, rows))
    return "\n\n".join(filter(None, parts))


def _by_number(title: str, rows: dict[str, dict[str, str]]) -> str:
    """One row for each amount, one column for each participant."""
    names = [name for name in peerlist.KINDS if any(name in row for row in rows.values())]
    if not names:
        return ""
    cells = [[number, *(row.get(name, "-") for name in names)] for number, row in rows.items()]
    return table([title, *map(_title, names)], cells)


def _targets(figures: Figures) -> str:
    rows = [
        [verdict.number, verdict.what, verdict.goal, verdict.measured, verdict.verdict]
        for verdict in targets.judge(figures)
        if verdict.value is not None
    ]
    return table(["", "Target", "goal", "measured", "verdict"], rows) if rows else ""


def _missing(session: Session) -> str:
    return "\n".join(
        f"not measured: {_title(name)}: {why}" for name, why in session.missing.items()
    )


def _failures(figures: Figures) -> str:
    return "\n".join(
        f"failed: {each['who']}, {each['measure']}, round {each['round'] + 1}: {each['why']}"
        for each in figures.failures
    )
