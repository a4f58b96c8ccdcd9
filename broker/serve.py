"""The broker's process: `python -m quiesce.broker.serve`, with one line of BrokerSettings JSON on stdin.

Exit status: 0 the system was stopped in order; 3 the same, because a task marked shutdown_process_on_error
failed; 4 it could not start, with one line on stderr that says why; 5 its journal can't be written any more, or
what it holds in memory is no longer what was decided: the next broker goes on from what the journal holds.
SIGTERM stops the system in order, again faster; SIGINT likewise where there is no parent (else a terminal's
Ctrl-C is the parent's); SIGQUIT at once.
"""

import ctypes
import errno
import gc
import logging
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Final

import zmq
from setproctitle import setproctitle

from quiesce import logs
from quiesce.broker.boot import boot_id
from quiesce.broker.connections import aside, backlog, leave_room
from quiesce.broker.journal import (
    JournalDamagedError,
    JournalFailedError,
    exists,
    next_epoch,
)
from quiesce.broker.journal_open import open_journal
from quiesce.broker.journal_space import is_full
from quiesce.broker.locks import AlreadyLockedError, Lock
from quiesce.broker.loop import Broker
from quiesce.broker.settings import BrokerSettings
from quiesce.protocol import wire
from quiesce.protocol.sizes import CONTROL_LIMIT, data_limit
from quiesce.registry import leases
from quiesce.registry.machine import HalfDoneError

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 3
EXIT_NO_START: Final = 4
EXIT_JOURNAL_FAILED: Final = 5
PR_SET_PDEATHSIG: Final = 1
#: Milliseconds that last messages get to leave.
LINGER: Final = 1000
#: Messages that may wait in ZeroMQ for one peer.
HIGH_WATER: Final = 10_000
_NAME_ANOTHER: Final = "Name a folder that does not exist yet (the broker makes it)"


class StartError(Exception):
    """The broker can't start; the text says why and what to do."""


def main() -> int:
    """Serve until the system has stopped."""
    settings = BrokerSettings.from_json(sys.stdin.readline())
    handler = logs.handler(settings.log_format, "broker", logs.LINE, settings.log_file)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    die_with(settings.parent_pid)
    setproctitle("quiesce broker")
    try:
        return serve(settings)
    except (JournalFailedError, HalfDoneError) as error:
        _say_last(str(error), settings)
        return EXIT_JOURNAL_FAILED
    except (StartError, AlreadyLockedError) as error:
        _say_last(str(error), settings)
        return EXIT_NO_START


def _say_last(why: str, settings: BrokerSettings) -> None:
    """Why it ends, whatever the level of the log: `up` speaks of "its message above"."""
    text = f"quiesce broker: {why}"
    logs.say(text, settings.log_format, "broker", logging.CRITICAL, settings.log_file)
    if settings.why_fd >= 0:
        os.pwrite(settings.why_fd, why.encode(errors="replace"), 0)


def die_with(parent: int) -> None:
    """End at once when the parent ends, as it may have already."""
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(EXIT_NO_START)


def serve(settings: BrokerSettings) -> int:
    """Lock, bind, run; and leave nothing behind."""
    wakeup = _catch_signals(alone=settings.parent_pid == 0)
    state = Path(settings.state)
    descriptors = leave_room()
    sockets = _Sockets(settings, backlog(descriptors))
    locks: list[Lock] = []
    broker: Broker | None = None
    try:
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            locks.append(Lock(state / "lock", f"the state folder {state}"))
            sockets.make_folder()
            if Path(settings.lock_path) != state / "lock":
                locks.append(Lock(Path(settings.lock_path), f"the address {settings.address}"))
            if not leases.is_safe(
                settings.lease_bound, settings.lease, settings.clock_drift, settings.kill_delay
            ):
                raise StartError(_unsafe(settings))
            boot = boot_id()
            journal, recovered = open_journal(state, settings.durability, boot_id=boot)
            epoch = next_epoch(state, recovered.last_epoch)
        except (OSError, ValueError, JournalDamagedError) as error:
            if _may_pass(error) and exists(state / "epoch"):
                # As if it had come a moment later: there may be a system to come back to.
                raise JournalFailedError(
                    f"the disk of {state} fails or is full: {error}"
                ) from error
            raise StartError(str(error)) from error
        logging.getLogger("quiesce.broker").info("%s", recovered.words)
        broker = Broker(
            settings,
            sockets.control,
            sockets.data,
            wakeup,
            journal,
            recovered,
            epoch,
            boot,
            descriptors,
        )
        # Tasks and facts make no cycles: the collector, as it comes by itself, costs a third of all work in vain.
        # A look at 5,000 new objects takes a millisecond, for which everybody waits; at all that are left of
        # hundreds of those, half a second.
        gc.freeze()
        gc.set_threshold(5_000, 400, 20)
        # The journal's thread packs for milliseconds on end; the loop shall not wait five for each of its wakings.
        sys.setswitchinterval(0.0005)
        broker.settle()
        sockets.bind()
        logging.getLogger("quiesce.broker").info(
            "broker is ready: pid %d, epoch %d, address %s", os.getpid(), epoch, settings.address
        )
        return EXIT_FAILED if broker.run() else EXIT_STOPPED
    finally:
        if broker is not None:
            broker.close()
        sockets.close()
        for lock in reversed(locks):
            lock.release()
        sockets.remove_folder()


def _may_pass(error: Exception) -> bool:
    """Whether a disk says so that may do again later; SQLite calls one that is full failing, too, as it opens."""
    return is_full(error) or (isinstance(error, OSError) and error.errno == errno.EIO)


def _unsafe(settings: BrokerSettings) -> str:
    least = leases.safe_bound(settings.lease, settings.clock_drift, settings.kill_delay)
    return (
        f"lease_bound = {settings.lease_bound:g} s is too short for a lease of {settings.lease:g} s: with "
        f"clock_drift = {settings.clock_drift:g} and kill_delay = {settings.kill_delay:g} s, less than "
        f"{least:.3f} s would call supervisors dead that may live"
    )


def _catch_signals(*, alone: bool) -> int:
    """Signals only enqueue: their numbers are read from the descriptor that this returns."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, (lambda *_: None) if alone else signal.SIG_IGN)
    return reader


def why_not_ours(folder: Path) -> str:
    """Why this can't be the folder of the address, which is there already; "" if it can."""
    there = folder.stat()
    mode = stat.S_IMODE(there.st_mode)
    what = f"the folder {folder} of the address must be yours alone"
    if not stat.S_ISDIR(there.st_mode):
        return f"{what}: it is no folder, but a file. {_NAME_ANOTHER}"
    if there.st_uid != os.getuid():
        return f"{what}: its owner is {there.st_uid}, and you are {os.getuid()}. {_NAME_ANOTHER}"
    if mode & 0o077:
        advice = ", or run chmod 700 on it" if _is_ours_to_close(folder, mode) else ""
        return f"{what}: it has mode {mode:04o}. {_NAME_ANOTHER}{advice}"
    return ""


def _is_ours_to_close(folder: Path, mode: int) -> bool:
    """Whether nobody else needs it: what is everybody's, as /tmp, would serve nobody any more."""
    sockets = [folder / "control", folder / "data"]
    ours = {folder / "lock", *sockets, *map(aside, sockets)}
    return not mode & stat.S_ISVTX and set(folder.iterdir()) <= ours


class _Sockets:
    """The two endpoints and the folder they stand in."""

    def __init__(self, settings: BrokerSettings, backlog: int) -> None:
        self._settings = settings
        self._backlog = backlog
        self._context = zmq.Context(io_threads=wire.IO_THREADS)
        self.control = self._socket(CONTROL_LIMIT, wire.CONTROL_IO)
        self.data = self._socket(data_limit(settings.payload_limit), wire.DATA_IO)
        self._paths = settings.socket_files
        self._made_folder = False
        self._bound = False

    def _socket(self, largest: int, io_thread: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.AFFINITY, io_thread)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.LINGER, LINGER)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, largest)
        socket.setsockopt(zmq.BACKLOG, self._backlog)
        return socket

    def make_folder(self) -> None:
        """The folder of ipc sockets: ours alone, or nobody's before."""
        for folder in {path.parent for path in self._paths}:
            try:
                folder.mkdir(mode=0o700, parents=True)
                self._made_folder = True
            except FileExistsError:
                if why := why_not_ours(folder):
                    raise StartError(why) from None
            except OSError as error:
                if _may_pass(error):
                    raise
                in_file = isinstance(error, NotADirectoryError)
                why = "what it would be in is a file" if in_file else str(error.strerror)
                raise StartError(
                    f"the folder {folder} of the address can't be made: {why}. {_NAME_ANOTHER}"
                ) from None

    def bind(self) -> None:
        """Bind both, under the lock: what lies there now is left of a broker that was killed."""
        self._bound = True
        self._unlink()
        for socket, endpoint in (
            (self.control, self._settings.control),
            (self.data, self._settings.data),
        ):
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise StartError(
                    f"can't bind {endpoint}: {error.strerror or error}. Is another broker there? "
                    "Choose another address"
                ) from error

    def close(self) -> None:
        """Let last messages leave, then close and remove the sockets' files, if they are ours."""
        self.control.close()
        self.data.close()
        self._context.term()
        if self._bound:
            self._unlink()

    def _unlink(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
            aside(path).unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove the folder if this broker made it and nobody else uses it."""
        if self._made_folder:
            for folder in {path.parent for path in self._paths}:
                try:
                    folder.rmdir()
                except OSError:
                    return


if __name__ == "__main__":
    sys.exit(main())
