"""What every driver program is: one measured thing in a process of its own, spoken to in JSON lines.

    bench                                   driver
      | {"do": "start"}                       |
      | <------------ {"ok": {"seconds": ...}} |
      | {"do": "individual", "n": 20000}      |
      | <------------ {"ok": {"seconds": ...}} |
      | (end of input)                        |   closes what it started, and ends

A line names a method of the driver's `Peer` and its arguments; the answer is `{"ok": value}`, or `{"error": text}`.
Only the standard library: each driver runs in the environment of what it measures.
"""

import json
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Of every pool: the same for all that are compared.
WORKERS = 2

now = time.monotonic  # one clock for all processes of a machine


class Peer:
    """What is measured. A driver overrides `begin`, `submit`, `result` and `close`, and what it can do faster."""

    #: The distribution whose version is reported.
    package = ""

    def begin(self) -> None:
        """Import what is needed and start the workers."""
        raise NotImplementedError

    def submit(self) -> Any:
        """Hand over one no-op."""
        raise NotImplementedError

    def result(self, pending: Any) -> Any:
        """Wait for the result of what `submit` gave."""
        raise NotImplementedError

    def close(self) -> None:
        """End all that was started."""

    # --- what is asked from outside

    def start(self) -> dict[str, Any]:
        """From nothing to the first result: imports, processes, connections."""
        began = now()
        self.begin()
        self.result(self.submit())
        return {"seconds": now() - began, "version": self.version()}

    def version(self) -> str:
        """Of the package, or of Python."""
        try:
            return version(self.package) if self.package else sys.version.split()[0]
        except PackageNotFoundError:
            return "this tree"

    def individual(self, n: int) -> dict[str, Any]:
        """`n` no-ops, handed over one by one, until all results are in."""
        began = now()
        pending = [self.submit() for _ in range(n)]
        for each in pending:
            self.result(each)
        return {"seconds": now() - began, "n": n}

    def roundtrips(self, n: int) -> list[float]:
        """Seconds from handing over one no-op to its result, `n` times one after the other."""
        submit, result = self.submit, self.result
        times = []
        for _ in range(n):
            began = now()
            result(submit())
            times.append(now() - began)
        return times

    def memory(self) -> dict[str, Any]:
        """Bytes (proportional set size) of this process and all that descend from it."""
        tree = descendants(os.getpid())
        return {"bytes": sum(map(pss, tree)), "processes": len(tree)}


def serve(peer: Peer) -> None:
    """Answer until the input ends. What the measured thing prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        for line in filter(str.strip, sys.stdin):
            message = json.loads(line)
            verb = message.pop("do")
            try:
                answer = {"ok": getattr(peer, verb)(**message)}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers)
    finally:
        try:
            peer.close()
        except Exception:  # it may not even have begun; what is left is ended from outside
            traceback.print_exc()


def options() -> dict[str, Any]:
    """What this driver was started with."""
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    assert isinstance(given, dict)
    return given


# --- looking at processes ---------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Of every process, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> list[int]:
    """A process and all that descend from it."""
    parent = parents()
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, above in parent.items() if above in tree} - tree
        tree |= more
        grown = bool(more)
    return sorted(tree)


def pss(pid: int) -> int:
    """Bytes of a process, memory that several share counted in parts; 0 if it has ended."""
    try:
        for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def processor_seconds(pid: int) -> float:
    """What a process has used of the processors since its start; 0 if it has ended."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
