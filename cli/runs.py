"""The file `runs` of a state folder: which runs of `quiesce up` there were, of which no broker knows yet that
nothing lives any more.

A run is written there before its `up` starts anything. The next `up` holds the lock of the state folder, so
every run that it finds there is that of a dead `up`; it ends what is left of it, and tells the new broker,
which makes it durable. Only then the run leaves the file.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from quiesce import leftovers, processes
from quiesce.errors import ConfigurationError, QuiesceError
from quiesce.workers import kernel

#: Runs that can't be proven over are kept, for an `up` that can; but no more than so many, the oldest go first.
MOST_KEPT: Final = 64
_MACHINE_ID: Final = Path("/etc/machine-id")
#: The pid namespace of the machine itself; containers have others.
_MACHINE_NAMESPACE: Final = "pid:[4026531836]"


class Run(NamedTuple):
    """One run: its id, where and as whom its `up` ran, and which process that was.

    `machine`: "" if unknown. `start`: in clock ticks since boot. `folder`: that of the address, if this run
    made it and so has to remove it; else "".
    """

    run: str
    boot_id: str
    machine: str
    namespace: str
    uid: int
    pid: int
    start: int
    folder: str = ""


def new_id() -> str:
    """Names a run for ever."""
    return os.urandom(8).hex()


def this_run(run: str, folder: str = "") -> Run:
    """The run of this very process."""
    me = processes.look(os.getpid())
    assert me is not None
    return Run(
        run=run,
        boot_id=kernel.boot_id(),
        machine=_machine_id(),
        namespace=os.readlink("/proc/self/ns/pid"),
        uid=os.geteuid(),
        pid=me.pid,
        start=me.start,
        folder=folder,
    )


def _machine_id() -> str:
    try:
        text = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch("[0-9a-f]{32}", text) else ""


def is_in_reach(run: Run, own: Run) -> bool:
    """Whether a scan by us shows all that may live of a run: same boot, same processes to be seen, and ours.

    A namespace of another number may still live beside ours; the number of ours is given to no other one.
    """
    same = (run.boot_id, run.namespace) == (own.boot_id, own.namespace)
    return same and own.uid in (0, run.uid)


def ended_with_its_boot(run: Run, own: Run) -> bool:
    """Whether the machine has been started anew since. Containers have no machine id of their own to go by."""
    return (
        run.boot_id != own.boot_id
        and bool(run.machine)
        and run.machine == own.machine
        and run.namespace == own.namespace == _MACHINE_NAMESPACE
    )


class Ledger:
    """The runs of one state folder, while its lock is held. Make it with `open`."""

    def __init__(self, path: Path, own: Run, swept: Iterable[Run], kept: Iterable[Run]) -> None:
        self.own = own
        #: Runs that are proven over, for the broker to be told.
        self.swept = tuple(swept)
        #: What became of them, for people.
        self.notes: list[str] = []
        self._path = path
        #: Runs that can't be proven over from here.
        self._kept = tuple(kept)
        #: All and only the others that the file is to hold beside our own.
        self._others = (*self._kept, *self.swept)

    @classmethod
    def open(cls, state: str, own: Run, patience: float = leftovers.PATIENCE) -> "Ledger":
        """Read the file, and end what is left of the runs in it. Nothing is written yet.

        Raises:
            ConfigurationError: the file is damaged or can't be read, or an `up` in it lives.
            QuiesceError: what is left of a run does not end.
        """
        path = Path(state, "runs")
        listed = read(path)
        reached = [each for each in listed if is_in_reach(each, own)]
        for each in reached:
            process = processes.look(each.pid)
            if process is not None and process.start == each.start and not process.is_zombie:
                raise ConfigurationError(
                    f"{path} names the `quiesce up` with pid {each.pid}, which runs: either the state folder is "
                    "a copy of that one's, or its file system has no locks. Choose another state folder"
                )
        killed, ours, _ = leftovers.end({each.run for each in reached}, patience)
        swept = [
            each
            for each in listed
            if (each in reached and each.run not in ours) or ended_with_its_boot(each, own)
        ]
        ledger = cls(path, own, swept, (each for each in listed if each not in swept))
        if killed:
            ledger.notes.append(
                "killed what an earlier `quiesce up`, which was killed, had left behind: "
                + ", ".join(killed)
            )
        for run, pid in ours.items():
            ledger.notes.append(
                f"warning: we were started by process {pid}, which a task of the earlier run {run} had "
                "started; so what that task did can't be proven to have ended"
            )
        return ledger

    @property
    def folders(self) -> set[str]:
        """Folders of addresses that dead runs had made, and have not removed."""
        return {each.folder for each in self.swept if each.folder}

    def record(self) -> None:
        """Make our own run durable, before anything of it is started. QuiesceError if that fails, as below."""
        self._write((*self._others, self.own))

    def settle(self) -> None:
        """A broker has made durable that the swept runs are over. More than once is harmless."""
        if self._others != self._kept:
            self._others = self._kept
            self._write((*self._others, self.own))

    def finish(self) -> None:
        """All of ours has ended. The run stays in the file: the broker may not have lived to see it."""
        self.own = self.own._replace(folder="")
        self._write((*self._others, self.own))

    def withdraw(self) -> None:
        """Nothing of ours was started, or it told nobody: as if we had not been here."""
        self._write(self._others)

    def _write(self, runs: tuple[Run, ...]) -> None:
        """Durable, and as a whole or not at all."""
        rows = [each._asdict() for each in runs[-MOST_KEPT:]]
        fresh = self._path.with_name("runs.new")
        try:
            if rows:
                with fresh.open("w", encoding="utf-8") as file:
                    json.dump(rows, file, indent=0)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise QuiesceError(f"{self._path} can't be written: {error.strerror}") from None


def read(path: Path) -> list[Run]:
    """The runs in the file, oldest first; none if there is no file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from None
    except ValueError:
        rows = None
    try:
        return [_run_of(row) for row in rows]
    except (TypeError, KeyError):
        raise ConfigurationError(
            f"{path} should list the earlier runs of `quiesce up`, and does not. If nothing of them lives "
            "any more, remove it; what ran then counts as dead once its lease has proven it"
        ) from None


def _run_of(row: Any) -> Run:
    given = {name: row[name] for name in Run._fields}
    for name, kind in Run.__annotations__.items():
        if type(given[name]) is not kind:
            raise TypeError(name)
    return Run(**given)
