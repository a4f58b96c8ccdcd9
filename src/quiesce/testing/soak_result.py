"""What a soak found, on one page."""

import json
from collections import Counter
from dataclasses import dataclass, field

#: Of each thing that is wrong, so many lines are shown; JSON has all of them.
_LINES = 40


@dataclass(kw_only=True)
class SoakResult:
    """What was done, and what must be empty. `ok` says whether it is."""

    seed: int
    seconds: float = 0.0
    network: bool = False
    disk: bool = False
    #: What was done.
    faults: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    evidence: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    bound: float = 0.0
    #: What must be empty, in words.
    false_stops: list[str] = field(default_factory=list)
    ran_on: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    #: Where the log of the cluster was kept, if it was.
    log: str = ""

    @property
    def wrong(self) -> dict[str, list[str]]:
        """By what it is: all that must be empty."""
        return {
            "false stops (a task ticked after its stop had returned)": self.false_stops,
            "ran on (a task ticked after its end was told)": self.ran_on,
            "hangs (a stop took longer than its bound)": self.hangs,
            "lost (an acknowledged spawn without an end)": self.lost,
            "doubled (a task that ran or ended more often than it may)": self.doubled,
            "leaks": self.leaks,
            "troubles (an error that nothing here should raise)": self.troubles,
        }

    @property
    def ok(self) -> bool:
        """Whether all is well: nothing is wrong, and something was tried."""
        return not any(self.wrong.values()) and self.stops.total() > 0 and self.tasks.total() > 0

    def __str__(self) -> str:
        with_what = [word for word, on in (("network", self.network), ("disk", self.disk)) if on]
        lines = [
            f"soak: seed {self.seed}, {self.seconds:.0f} s, with {' and '.join(with_what) or 'processes'}",
            f"  tasks     {_counts(self.tasks)}",
            f"  stops     {_counts(self.stops)}; slowest {self.slowest:.2f} s of {self.bound:.0f} s",
            f"  evidence  {_counts(self.evidence)}",
            f"  faults    {_counts(self.faults)}",
        ]
        for name, found in self.wrong.items():
            lines.append(f"{'  ok  ' if not found else 'WRONG '} {len(found)} {name}")
            lines += [
                f"        {line}" for each in found[:5] for line in each.splitlines()[:_LINES]
            ]
            if len(found) > 5:
                lines.append(f"        … and {len(found) - 5} more")
        if self.log:
            lines.append(f"the log of the cluster: {self.log}")
        lines.append("all is well" if self.ok else f"NOT WELL; again with: --seed {self.seed}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it, as one line."""
        return json.dumps(vars(self) | {"ok": self.ok})


def _counts(counter: Counter[str]) -> str:
    each = ", ".join(f"{count} {name}" for name, count in counter.most_common())
    return f"{counter.total()} ({each})" if each else "0"
