"""A `quiesce up` of one's own, as a child process, for an executor that was given no broker."""

import json
import multiprocessing.process
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from quiesce.errors import BrokerUnavailableError

RUNTIME: Final = "executor"
KIND: Final = "executor"

_PRELOAD: Final = "quiesce.client.private_worker"

#: Nobody else's memory is in danger: about as much as one message may hold.
_PAYLOAD_LIMIT: Final = 240 * 1024 * 1024

#: Seconds for its tasks to stop, and for its processes to end after that.
_STOP_TIMEOUT: Final = 5
_END_TIMEOUT: Final = 20.0

#: Runs in the child: asks to be told to stop when the thread that started it ends (SIGTERM stops it in order),
#: looks whether that has happened already, and is `quiesce up`. What that says for people goes to the log; what
#: the tasks print and log goes where the owner's own does. Whoever of the two ends last removes the folder; if
#: both are killed, it stays.
_LAUNCH: Final = """
import ctypes, os, shutil, signal, sys
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
        config = self._folder / "quiesce.toml"
        config.write_text(
            f"""
[broker]
address = "{self.address}"
state = "{self._folder}/state"
app_dir = {_toml(str(Path.cwd()))}
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
        key = self._folder / "authkey"  # see the module that is preloaded
        key.touch(mode=0o600)
        key.write_bytes(multiprocessing.process.current_process().authkey)
        # The workers import what this process can; no settings of the user's own broker reach this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("QUIESCE_")}
        env.update(variables)
        env["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(os.getpid()), str(self._folder)],
                env=env,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the owner, who then shuts this down
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def failure(self) -> str | None:
        """Why it is not running, with the end of its log; None if it is."""
        status = self._process.poll()
        if status is None:
            return None
        with suppress(OSError):
            log = self._log_path.read_text(errors="replace")[-2000:]
            return f"`quiesce up` ended with status {status}:\n{log}"
        return f"`quiesce up` ended with status {status}"

    def stop(self) -> None:
        """End it in order, then by force; its folder goes too."""
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
        shutil.rmtree(self._folder, ignore_errors=True)

    def unavailable(self) -> BrokerUnavailableError | None:
        """The error for who waits for it in vain; None while it runs."""
        failure = self.failure()
        return None if failure is None else BrokerUnavailableError(failure)


def _toml(text: str) -> str:
    """As a string of TOML: JSON's escapes are valid there."""
    return json.dumps(text)
