"""Draws a run: its JSON on standard input, the picture's file as argument. Runs where matplotlib is."""

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

#: Axes of the curves: title, what x and y are.
CURVES = {
    "tasks": ("growth with tasks", "tasks", "tasks/s"),
    "workers": ("growth with workers", "worker processes", "tasks/s"),
    "clients": ("growth with clients", "clients at once", "tasks/s together"),
    "backlog": ("growth with the queue", "tasks queued", "tasks/s"),
    "payload": ("growth with payload", "bytes there and back", "seconds"),
}
OURS, OTHERS, FLOOR = "#c0392b", "#7f8c8d", "#2980b9"


def colour(who: str) -> str:
    """By whom it is."""
    return OURS if who.startswith("quiesce") else FLOOR if who.startswith("floor") else OTHERS


def bars(axes: Any, run: dict[str, Any], measure: str, title: str) -> None:
    """Medians with their range, the best on top."""
    figures = [figure for figure in run["figures"] if figure["measure"] == measure]
    figures.sort(
        key=lambda figure: figure["median"], reverse=figures[:1] != [] and figures[0]["unit"] == "s"
    )
    for place, figure in enumerate(figures):
        middle = figure["median"]
        spread = [[middle - figure["min"]], [figure["max"] - middle]]
        axes.barh(place, middle, xerr=spread, color=colour(figure["who"]), ecolor="#2c3e50")
    titles = [
        run["participants"].get(each["who"], {}).get("title", each["who"]) for each in figures
    ]
    axes.set_yticks(range(len(figures)), titles, fontsize=7)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)


def lines(axes: Any, run: dict[str, Any], name: str) -> None:
    """One for each participant."""
    title, x, y = CURVES[name]
    if not any(run["curves"].get(name, {}).values()):
        axes.set_axis_off()
        return
    for who, points in run["curves"].get(name, {}).items():
        if points:
            label = run["participants"].get(who, {}).get("title", who)
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=7)
    axes.set_ylabel(y, fontsize=7)
    axes.tick_params(labelsize=7)
    if axes.lines:
        axes.legend(fontsize=6)


def main() -> None:
    """All pictures on one sheet."""
    run = json.load(sys.stdin)
    figure, grid = plt.subplots(3, 3, figsize=(15, 12))
    places = iter(grid.flat)
    bars(next(places), run, "individual", "one by one, tasks/s, side by side")
    bars(next(places), run, "peers-individual", "one by one, tasks/s, each started anew")
    bars(next(places), run, "roundtrip-p50", "round trip p50, s, side by side")
    bars(next(places), run, "peers-roundtrip-p50", "round trip p50, s, each started anew")
    for name in CURVES:
        lines(next(places), run, name)
    machine = run["machine"]
    figure.suptitle(
        f"{run['when']}, {machine['processors']} processors, Python {machine['python']}; "
        "only ratios within the run mean anything",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=80)


if __name__ == "__main__":
    main()
