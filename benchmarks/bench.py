"""The benchmark's command line; `scripts/bench` calls it."""

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import drivers
import environments
import measure
import measure_system
import peerlist
import report
from session import Phase, Session, phase

#: What they are called, which measures are in them, and how they are run.
PHASES: list[tuple[str, tuple[str, ...], Phase]] = [
    ("side by side: quiesce, the bare parts, the standard library", measure.CORE, measure.core),
    ("round trips under load", ("loaded",), measure_system.loaded),
    ("when a running task sees a stop", ("stop-seen",), measure_system.stop_seen),
    ("stops of many tasks", ("stop-many",), measure_system.stop_many),
    ("looks for a request to stop", ("checks",), measure_system.checks),
    ("start, memory and rest", ("start", "rest"), measure_system.rest),
    ("payloads", ("payload",), measure_system.payload),
    ("growth", ("growth",), measure_system.growth),
    ("many workers", ("workers",), measure_system.workers),
    ("many clients", ("clients",), measure_system.clients),
    ("many queued tasks", ("backlog",), measure_system.backlog),
    ("peers, each started anew", measure.PEERS, measure.peers),
]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures quiesce, other pools and bare parts, interleaved in one run. Only ratios within "
        "one run mean anything: machines differ, and so do their moods.",
        epilog="measures: "
        + "; ".join(f"{name} ({what})" for name, what in measure.MEASURES.items())
        + f". peers: {', '.join(peerlist.KINDS)}.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="little of everything, under two minutes"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5; with --quick 2")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        choices=list(measure.MEASURES),
        help="measures",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="NAME",
        choices=list(peerlist.KINDS),
        help="who is measured",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything there, - for stdout"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it (PNG or SVG, by its ending)"
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="put the tables into this page, between its marks"
    )
    parser.add_argument(
        "--no-install", action="store_true", help="leave out what is not installed yet"
    )
    options = parser.parse_args(words)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.page and not options.page.exists():
        parser.error(f"--page: there is no {options.page}")
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        parser.error("--plot needs a file that ends in .png or .svg")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """0: it ran, whatever the figures say. 1: nothing could be measured."""
    options = parse(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    print(f"quiesce: {quiesce_folder()}", file=sys.stderr)
    session = Session(
        quick=options.quick,
        rounds=options.rounds or (2 if options.quick else 5),
        only=options.only,
        peers=options.peers,
        install=not options.no_install,
    )
    began = time.monotonic()
    with drivers.nothing_left_behind():
        for title, measures, run in PHASES:
            if session.wants(*measures):
                with phase(title):
                    run(session)
    found = report.as_json(session, command_of(options), time.monotonic() - began)
    if str(options.json) == "-":
        print(json.dumps(found))
    else:
        print(report.as_text(session))
        if options.page:
            text = options.page.read_text()
            options.page.write_text(report.into_page(text, report.as_text(session), found))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot, install=not options.no_install)
    return 0 if session.figures.everything() else 1


def command_of(options: argparse.Namespace) -> str:
    """What to call for a run like this one; where its output went is left out."""
    words = ["scripts/bench"]
    words += ["--quick"] * options.quick
    words += ["--rounds", str(options.rounds)] if options.rounds else []
    words += ["--only", *options.only] if options.only else []
    words += ["--peers", *options.peers] if options.peers else []
    return " ".join(words)


def quiesce_folder() -> str:
    """Which quiesce is measured: the tree's, or an installed one."""
    spec = importlib.util.find_spec("quiesce")
    return str(Path(spec.origin).parent) if spec and spec.origin else "not installed"


def plot(found: dict[str, object], target: Path, *, install: bool) -> None:
    """Draw, in an environment that has matplotlib."""
    try:
        python = environments.environment("plot", ("matplotlib",), install=install)
    except environments.MissingError as missing:
        print(f"no plot: {missing}", file=sys.stderr)
        return
    script = Path(__file__).with_name("plots.py")
    subprocess.run(
        [python, str(script), str(target)], input=json.dumps(found), text=True, check=True
    )


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
