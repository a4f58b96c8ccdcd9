"""The stacks of a worker whose interpreter does not answer: faulthandler writes them from a signal handler.

The worker keeps an anonymous file for them, and names its descriptor in its place of the shared table. The
supervisor sends the signal and reads what was appended, through /proc. It never waits: a dump is looked at
every few milliseconds until it is complete, or its time is over.

A dump has no end mark, and its form is the interpreter's own. That it is complete, the kernel says: the signal is
pending no more, and no thread blocks it, which the one that runs its handler does.
"""

import faulthandler
import fcntl
import os
import signal
from pathlib import Path
from typing import Final

from quiesce.protocol import from_supervisor
from quiesce.workers.table import Place

#: A real-time signal, beside that of `interrupt`.
SIGNAL: Final = signal.SIGRTMAX - 4
#: Seconds between two looks at a dump, and for all of it.
LOOK_EVERY: Final = 0.005
WITHIN: Final = 1.0
#: Bytes of a dump that travel.
LIMIT: Final = 256 * 1024
_NAME: Final = "quiesce-stacks"
_BIT: Final = 1 << (SIGNAL - 1)
#: Who blocks this too blocks all signals, as ZeroMQ's threads do, and runs no handler.
_NEIGHBOUR: Final = 1 << (SIGNAL - 2)

#: Letters of /proc/PID/stat that tell why nothing came.
_STATES: Final = {
    "D": "waits in the kernel, where no signal reaches it",
    "t": "is held by a debugger",
}


def register(place: Place) -> None:
    """For a worker at its start, in its main thread."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    # Whoever empties it from outside can't move the place where we write; so it is always the end.
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)
    place.set_dump(fd)


class _Dump:
    """One that is going on."""

    __slots__ = ("fd", "look_at", "pid", "requests", "size", "until")

    def __init__(self, pid: int, fd: int, now: float) -> None:
        self.pid = pid
        self.fd = fd
        #: Who asked for it, each once.
        self.requests: list[int] = []
        self.size = 0
        self.look_at = now + LOOK_EVERY
        self.until = now + WITHIN


class Dumps:
    """The supervisor's side. `due` says when `look` has something to do."""

    def __init__(self) -> None:
        #: All and only those without an answer, by the serial of the worker.
        self._going: dict[int, _Dump] = {}

    def begin(
        self, request: int, serial: int, pid: int, pidfd: int, place: Place, now: float
    ) -> list[from_supervisor.Dumped]:
        """Have this worker write its stacks; the answer if it can't. One dump serves all who ask meanwhile."""
        dump = self._going.get(serial)
        if dump is None:
            try:
                trouble = _unable(pid, place)
                fd = -1 if trouble else _open(pid, place.dump)
            except (OSError, ValueError) as error:
                trouble = _gone(pid) or f"process {pid} can't be read: {error}"
            if trouble:
                return [from_supervisor.Dumped(request, serial, "", trouble)]
            dump = self._going[serial] = _Dump(pid, fd, now)
            try:
                os.ftruncate(fd, 0)
                signal.pidfd_send_signal(pidfd, SIGNAL)
            except OSError as error:
                dump.requests.append(request)
                return self._answer(serial, _gone(pid) or f"process {pid} can't be asked: {error}")
        dump.requests.append(request)
        return []

    def due(self) -> float | None:
        """When to look; None: no dump is going on."""
        return min((dump.look_at for dump in self._going.values()), default=None)

    def look(self, now: float) -> list[from_supervisor.Dumped]:
        """The answers that are there by now."""
        answers: list[from_supervisor.Dumped] = []
        for serial, dump in list(self._going.items()):
            if dump.look_at > now:
                continue
            dump.look_at = now + LOOK_EVERY
            size = os.fstat(dump.fd).st_size
            settled = 0 < size == dump.size
            dump.size = size
            if settled and not _is_writing(dump.pid):
                answers += self._answer(serial, "")
            elif now >= dump.until:
                answers += self._answer(serial, "" if size else _silent(dump.pid))
            elif gone := _gone(dump.pid):
                answers += self._answer(serial, gone)
        return answers

    def _answer(self, serial: int, error: str) -> list[from_supervisor.Dumped]:
        dump = self._going.pop(serial)
        text = ""
        if not error:
            text = os.pread(dump.fd, LIMIT, 0).decode(errors="replace")
            if dump.size > LIMIT:
                text += f"\n… and {dump.size - LIMIT} bytes more\n"
        os.ftruncate(dump.fd, 0)
        os.close(dump.fd)
        return [from_supervisor.Dumped(each, serial, text, error) for each in dump.requests]


def _open(pid: int, number: int) -> int:
    """The worker's file. What a task may have put in its place is not touched."""
    path = f"/proc/{pid}/fd/{number}"
    if _NAME not in os.readlink(path):
        raise ValueError(f"descriptor {number} is no longer the file for stacks")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _unable(pid: int, place: Place) -> str:
    """Why this process can't be asked now; "" if it can."""
    gone = _gone(pid)
    if gone:
        return gone
    if place.dump < 0:
        return f"process {pid} is starting: it can't write its stacks yet"
    if not _field(Path(f"/proc/{pid}/status"), "SigCgt") & _BIT:
        return (
            f"process {pid} no longer has the handler that writes its stacks: a task took it away"
        )
    return ""


def _gone(pid: int) -> str:
    """Why nothing may be expected of this process; "" if nothing speaks against it."""
    state = _state(pid)
    if state == "T":
        return f"process {pid} is stopped (SIGSTOP)"
    return f"process {pid} has ended" if state in ("", "Z", "X") else ""


def _silent(pid: int) -> str:
    how = _STATES.get(_state(pid), "did not take the signal")
    return f"process {pid} wrote nothing within {WITHIN:g} s: it {how}"


def _state(pid: int) -> str:
    """The letter of /proc/PID/stat; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _is_writing(pid: int) -> bool:
    """Whether the signal is still to be taken, or a thread runs its handler."""
    process = Path(f"/proc/{pid}")
    try:
        if (_field(process / "status", "ShdPnd") | _field(process / "status", "SigPnd")) & _BIT:
            return True
        for thread in (process / "task").iterdir():
            blocked = _field(thread / "status", "SigBlk")
            if blocked & _BIT and not blocked & _NEIGHBOUR:
                return True
    except OSError:
        return False
    return False


def _field(status: Path, name: str) -> int:
    """A set of signals; 0 where the kernel does not tell."""
    try:
        text = status.read_text()
    except OSError:
        return 0
    _, found, rest = text.partition(f"\n{name}:")
    return int(rest.split(maxsplit=1)[0], 16) if found else 0
