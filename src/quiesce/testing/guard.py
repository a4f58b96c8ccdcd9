"""A process that outlives a test run which is killed, and ends what that had started.

`python -m quiesce.testing.guard` reads lines on standard input: "up PID START", "folder PATH", "disk PATH". At the
end of the input it ends all of it, unless "done" was the last line.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from quiesce.testing.cluster_files import unmount
from quiesce.workers import processes


def main() -> None:
    """The life of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ups: list[tuple[int, int]] = []
    folders: list[Path] = []
    disks: list[Path] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "done":
            return
        if word == "up":
            pid, start = rest.split()
            ups.append((int(pid), int(start)))
        else:
            (disks if word == "disk" else folders).append(Path(rest))
    for pid, start in ups:
        process = processes.look(pid)
        if process is not None and process.start == start:
            processes.kill(process)
    end_runs(folders)
    for disk in disks:
        unmount(disk)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def end_runs(folders: list[Path]) -> None:
    """Kill what carries the mark of a run of these folders' state, wherever it is by now."""
    from quiesce.cli import leftovers, runs

    found = {each.run for folder in folders for each in runs.read(folder / "state" / "runs")}
    if found:
        leftovers.end(found)


if __name__ == "__main__":
    main()
    os._exit(0)
