"""A process that outlives a test run which is killed, and ends what that had started.

`python -m quiesce.testing.guard` reads lines on standard input: "up PID START", "run ID", "folder PATH",
"disk PATH". At the end of the input it ends all of it, unless "done" was the last line.
"""

import shutil
import signal
import sys
from pathlib import Path

from quiesce import processes
from quiesce.testing import launch
from quiesce.testing.cluster_files import unmount


def main() -> None:
    """The life of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ups: list[tuple[int, int]] = []
    folders: list[Path] = []
    disks: list[Path] = []
    runs: set[str] = set()
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "done":
            return
        if word == "up":
            pid, start = rest.split()
            ups.append((int(pid), int(start)))
        elif word == "run":
            runs.add(rest)
        else:
            (disks if word == "disk" else folders).append(Path(rest))
    living = [each for pid, start in ups if (each := processes.look(pid)) and each.start == start]
    runs |= launch.runs_below([each.pid for each in living])
    for each in living:
        processes.kill(each)
    for folder in folders:
        launch.end_what_is_left(runs, folder / "state")
    for disk in disks:
        unmount(disk)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
