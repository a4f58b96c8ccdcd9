"""A `quiesce up` of one's own, as a child process, for an executor that was given no broker."""

import json
import multiprocessing.process
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from quiesce.client.client import Client
from quiesce.errors import BrokerUnavailableError

RUNTIME: Final = "executor"
KIND: Final = "executor"

_PRELOAD: Final = "quiesce.client.private_worker"
#: In the pool's folder: what that module finds of its owner.
OWNER_FILE: Final = "owner.json"

#: Nobody else's memory is in danger: about as much as one message may hold.
_PAYLOAD_LIMIT: Final = 240 * 1024 * 1024

#: Seconds for it to answer.
_START_TIMEOUT: Final = 60.0
#: Seconds for its tasks to stop, and for its processes to end after that.
_STOP_TIMEOUT: Final = 5
_END_TIMEOUT: Final = 20.0

#: Runs in the child: asks to be told to stop when the thread that started it ends (SIGTERM stops it in order),
#: looks whether that has happened already, and is `quiesce up`. What its owner was started without (`2>&-`) it
#: opens for itself and all that it starts: no worker could do without. What it says for people goes to the log;
#: what the tasks print and log goes where the owner's own does. Whoever of the two ends last removes the folder;
#: if both are killed, it stays.
_LAUNCH: Final = """
import os, sys
for number in range(3):  # first: libraries open files, too, and keep them
    try:
        os.fstat(number)
    except OSError:  # those before it are open, so the next one gets its number
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
import ctypes, shutil, signal
parent, folder = int(sys.argv[1]), sys.argv[2]
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
status = 1
with open(os.path.join(folder, "log"), "a", buffering=1) as sys.stderr:
    try:
        if os.getppid() == parent:
            from quiesce.cli.main import run
            status = run(["up", "--config", os.path.join(folder, "quiesce.toml")])
    finally:
        if status == 0 or os.getppid() != parent:  # otherwise the owner looks at the log first
            shutil.rmtree(folder, ignore_errors=True)
sys.exit(status)
"""


class PrivateBroker:
    """A broker with one pool, in a folder of its own.

    To be made in a thread that lives as long as it shall: it stops when that thread ends, however it does.
    """

    def __init__(self, processes: int, variables: Mapping[str, str]) -> None:
        """`variables`: of the environment of its processes, besides our own."""
        self._folder = Path(tempfile.mkdtemp(prefix="qx-", dir="/tmp"))
        self.address = f"ipc://{self._folder}/b"
        self._log_path = self._folder / "log"
        self._watcher: threading.Thread | None = None
        self._stopping = False
        try:
            self._process = self._start(processes, variables)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _start(self, processes: int, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        config = self._folder / "quiesce.toml"
        config.write_text(
            f"""
[broker]
address = "{self.address}"
state = "{self._folder}/state"
app_dir = "{self._folder}"  # until a worker has our path: see the module that is preloaded
durability = "none"
payload_limit = {_PAYLOAD_LIMIT}
stop_timeout = {_STOP_TIMEOUT}
log_level = "WARNING"
log_file = "{self._log_path}"
[runtimes.{RUNTIME}]
processes = {processes}
slots = 1
preload = ["{_PRELOAD}"]
max_queue = 1000000
[kinds.{KIND}]
"""
        )
        # No settings of the user's own broker reach this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("QUIESCE_")}
        env.update(variables)
        here = _current_folder()
        path = _import_path(here)
        ours = {"PYTHONPATH": os.pathsep.join(path), **_flags()}
        owner = self._folder / OWNER_FILE
        owner.touch(mode=0o600)
        owner.write_text(
            json.dumps(
                {
                    "authkey": multiprocessing.process.current_process().authkey.hex(),
                    "path": path,
                    "warnings": sys.warnoptions,
                    "environment": {name: env.get(name) for name in ours},
                }
            )
        )
        return subprocess.Popen(
            # -P: what lies in the current folder must not shadow what it imports.
            [sys.executable, "-P", "-c", _LAUNCH, str(os.getpid()), str(self._folder)],
            env={**env, **ours},
            stdin=subprocess.DEVNULL,
            cwd="/" if here is None else None,
            start_new_session=True,  # a Ctrl-C is for the owner, who then shuts this down
        )

    def connect(self) -> Client:
        """A client of it, as soon as it answers. BrokerUnavailableError: at once, if it ends instead."""
        waited = 0.0
        while True:
            try:
                return Client(self.address, timeout=1.0)
            except BrokerUnavailableError:
                failure = self.failure()
                if failure is not None:
                    raise BrokerUnavailableError(failure) from None
                waited += 1.0
                if waited >= _START_TIMEOUT:
                    raise

    def watch(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called, in a thread of its own, with the words for it once this has ended by itself."""
        self._watcher = threading.Thread(
            target=self._watch,
            args=(os.pidfd_open(self._process.pid), tell),
            name="quiesce-private-broker",
            daemon=True,
        )
        self._watcher.start()

    def _watch(self, pidfd: int, tell: Callable[[str], None]) -> None:
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
        finally:
            os.close(pidfd)
        if not self._stopping:
            tell(self.obituary())

    def obituary(self) -> str:
        """That this has ended by itself, in the words for those who used it."""
        return (
            "the private pool of this executor has ended, though nobody shut it down: the calls that ran have "
            f"ended with it, no others are begun. Make a new executor. {self.failure()}"
        )

    def failure(self) -> str | None:
        """Why it is not running, with the end of its log; None if it is."""
        status = self._process.poll()
        if status is None:
            return None
        how = f"status {status}" if status >= 0 else f"signal {-status}"
        with suppress(OSError):
            log = self._log_path.read_text(errors="replace")[-2000:]
            if log:
                return f"`quiesce up` ended with {how}; its log ends:\n{log}"
        return f"`quiesce up` ended with {how}"

    def stop(self) -> None:
        """End it in order, then by force; its folder goes too."""
        self._stopping = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)  # at once, children first
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
            self._process.kill()
            self._process.wait()
        if self._watcher is not None:
            self._watcher.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _current_folder() -> str | None:
    """None: it has been removed, so no process could be started in it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _import_path(here: str | None) -> list[str]:
    """Where this process imports from, the current folder by its name (as the standard library's pools have it).

    What is no text, as a `Path`, imports nothing in this process either.
    """
    found: list[object] = [*sys.path]
    entries = [entry or here for entry in found if isinstance(entry, str)]
    return [entry for entry in entries if entry is not None]


def _flags() -> dict[str, str]:
    """The variables that give an interpreter those of this one, where that matters to code; "" is as if not set.

    Not the filters of warnings: those are for the tasks' code alone, and -W error would end a broker or supervisor
    for a warning of anybody's.
    """
    flags = sys.flags
    return {
        "PYTHONOPTIMIZE": str(flags.optimize or ""),
        "PYTHONUTF8": str(flags.utf8_mode),
        "PYTHONDEVMODE": str(int(flags.dev_mode) or ""),
        "PYTHONDONTWRITEBYTECODE": str(flags.dont_write_bytecode or ""),
        "PYTHONNOUSERSITE": str(flags.no_user_site or ""),
    }
