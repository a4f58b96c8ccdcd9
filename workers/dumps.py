"""The stacks of a worker whose interpreter does not answer: faulthandler writes them from a signal handler.

The worker keeps an anonymous file for them, and names its descriptor in its place of the shared table. The
supervisor sends the signal to one thread after the other, and reads what each appended, through /proc. It never
waits: a dump is looked at every few milliseconds until it is complete, or its time is over.

Each thread writes its own frames only. Had one written those of all, as faulthandler can, it would read what others
change meanwhile, and now and then end the process with SIGSEGV (python/cpython#116008): asking must harm nobody.

What a thread writes has no end mark, and its form is the interpreter's own. That it is complete, the kernel says:
the signal is pending no more, and the thread does not block it, as it does while it runs the handler.
"""

import faulthandler
import fcntl
import os
import signal
from typing import Final

from quiesce.protocol import from_supervisor
from quiesce.workers import kernel
from quiesce.workers.table import Place

#: A real-time signal, beside that of `interrupt`.
SIGNAL: Final = signal.SIGRTMAX - 4
#: Seconds between two looks at a dump, and for all of it.
LOOK_EVERY: Final = 0.002
WITHIN: Final = 1.0
#: Seconds that one thread may take, before the next is asked.
_PATIENCE: Final = 0.25
#: Bytes of a dump that travel.
LIMIT: Final = 256 * 1024
_NAME: Final = "quiesce-stacks"
_BIT: Final = 1 << (SIGNAL - 1)

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
    faulthandler.register(SIGNAL, file=fd, all_threads=False, chain=False)
    place.set_dump(fd)


class _Dump:
    """One that is going on: of one thread after the other, the main one first."""

    def __init__(self, pid: int, fd: int, now: float) -> None:
        self.pid = pid
        self.fd = fd
        #: Who asked for it, each once.
        self.requests: list[int] = []
        self.look_at = now + LOOK_EVERY
        self.until = now + WITHIN
        #: Threads still to be asked; the one that writes, its time, and whether it was at rest when last looked at.
        self.todo = _threads(pid)
        self.thread: int | None = None
        self._thread_until = now
        self._rested = False
        #: Bytes of the file that were read; the texts that came of them.
        self.size = 0
        self.texts: list[str] = []

    def proceed(self, now: float) -> bool:
        """Look at the thread that writes, ask the next; whether there is none any more."""
        if self.thread is not None:
            resting = not _is_writing(self.pid, self.thread)
            if not (resting and self._rested) and now < self._thread_until:
                self._rested = resting
                return False
            self.read()
        self._rested = False
        while self.todo:
            self.thread = self.todo.pop(0)
            if _blocks(self.pid, self.thread):
                if not _is_foreign(self.pid, self.thread):
                    self.texts.append(_head(self.thread, ", which blocks all signals"))
                continue
            try:
                kernel.signal_thread(self.pid, self.thread, SIGNAL)
            except ProcessLookupError:
                continue
            self._thread_until = now + _PATIENCE
            return False
        self.thread = None
        return True

    def read(self) -> None:
        """What the thread that was asked has written. One without a Python stack writes nothing."""
        assert self.thread is not None
        text = os.pread(self.fd, LIMIT, self.size).decode(errors="replace")
        self.size = os.fstat(self.fd).st_size
        _, _, frames = text.partition("\n")
        if frames:
            self.texts.append(_head(self.thread) + frames)


class Dumps:
    """The supervisor's side. `due` says when `look` has something to do."""

    def __init__(self) -> None:
        #: All and only those without an answer, by the serial of the worker.
        self._going: dict[int, _Dump] = {}

    def begin(
        self, request: int, serial: int, pid: int, place: Place, now: float
    ) -> list[from_supervisor.Dumped]:
        """Have this child write its stacks; the answer if it can't. One dump serves all who ask meanwhile."""
        dump = self._going.get(serial)
        if dump is None:
            try:
                trouble = _unable(pid, place)
                fd = -1 if trouble else _open(pid, place.dump)
            except (OSError, ValueError) as error:
                trouble = _gone(pid) or f"process {pid} can't be read: {error}"
            if trouble:
                return [from_supervisor.Dumped(request, serial, "", trouble)]
            os.ftruncate(fd, 0)
            dump = self._going[serial] = _Dump(pid, fd, now)
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
            if gone := _gone(dump.pid):
                answers += self._answer(serial, gone)
            elif dump.proceed(now):
                answers += self._answer(serial, "" if dump.texts else _silent(dump.pid))
            elif now >= dump.until:
                dump.read()
                if left := len(dump.todo):
                    dump.texts.append(f"… and {left} more threads, which had no time\n")
                answers += self._answer(serial, "" if dump.texts else _silent(dump.pid))
        return answers

    def _answer(self, serial: int, error: str) -> list[from_supervisor.Dumped]:
        dump = self._going.pop(serial)
        text = ""
        if not error:
            text = "\n".join(dump.texts)
            if len(text) > LIMIT:
                text = f"{text[:LIMIT]}\n… and {len(text) - LIMIT} characters more\n"
        os.ftruncate(dump.fd, 0)
        os.close(dump.fd)
        return [from_supervisor.Dumped(each, serial, text, error) for each in dump.requests]


def _head(thread: int, words: str = "") -> str:
    """As faulthandler heads the threads of a process; with the number that the kernel gives it."""
    return f"Thread 0x{thread:x}{words} (most recent call first):\n"


def _threads(pid: int) -> list[int]:
    """The main one first, then the newest."""
    try:
        threads = [int(each) for each in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
    return sorted(threads, key=lambda thread: (thread != pid, -thread))


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
    if not _field(f"/proc/{pid}/status", "SigCgt") & _BIT:
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
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _is_writing(pid: int, thread: int) -> bool:
    """Whether the signal is still to be taken by it, or its handler runs."""
    status = _thread_file(pid, thread, "status")
    return bool((_field(status, "SigPnd") | _field(status, "SigBlk")) & _BIT)


def _blocks(pid: int, thread: int) -> bool:
    return bool(_field(_thread_file(pid, thread, "status"), "SigBlk") & _BIT)


def _is_foreign(pid: int, thread: int) -> bool:
    """Whether it is one of ZeroMQ's, which have no Python stack."""
    try:
        return _read(_thread_file(pid, thread, "comm")).startswith("ZMQ")
    except OSError:
        return True


def _thread_file(pid: int, thread: int, name: str) -> str:
    return f"/proc/{pid}/task/{thread}/{name}"


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _field(status: str, name: str) -> int:
    """A set of signals; 0 where the kernel does not tell."""
    try:
        text = _read(status)
    except OSError:
        return 0
    _, found, rest = text.partition(f"\n{name}:")
    return int(rest.split(maxsplit=1)[0], 16) if found else 0
