"""Driver programs as the benchmark sees them: started, asked with a time limit, and ended with all they started."""

import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import environments
import peerlist
from driver import descendants  # of peers/, which `environments` has put on the path

PEERS = Path(__file__).resolve().parent / "peers"
PR_SET_CHILD_SUBREAPER = 36

#: Seconds for a driver to end in order.
CLOSING = 40.0
#: Seconds for any one thing, unless more is said.
LIMIT = 60.0


class DriverError(Exception):
    """It did not do what it was asked: its own error, its end, or the time limit."""


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """What drivers leave behind falls to us, and is ended with this block; so are their temporary files."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Below /tmp: a longer path is too long for sockets.
    with tempfile.TemporaryDirectory(
        prefix="bench-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            for driver in list(Driver.running):
                driver.close()
            end_what_is_left()


class Driver:
    """One of them; a context manager."""

    #: All that run: whatever else descends from us is left behind.
    running: "list[Driver]" = []  # noqa: RUF012 - shared by all on purpose

    def __init__(self, name: str, python: str, *, options: dict[str, Any] | None = None) -> None:
        kind = peerlist.KINDS[name]
        self.name = name
        self.log = environments.cache() / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        given = json.dumps({**kind.options, **(options or {})})
        env = {name: text for name, text in os.environ.items() if not name.startswith("QUIESCE_")}
        env["PATH"] = os.pathsep.join([str(Path(python).parent), env.get("PATH", "")])
        if kind.environment:
            env["PYTHONPATH"] = str(PEERS)  # their workers import the bodies, wherever they start
        elif paths := env.get("PYTHONPATH"):
            # PYTHONPATH=src must hold in processes that run in other folders, too.
            env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [python, str(PEERS / kind.script), given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                cwd=PEERS,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._buffer = b""
        self.broken = ""
        Driver.running.append(self)

    def __enter__(self) -> "Driver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    # --- asking

    def ask(self, verb: str, /, *, limit: float = LIMIT, **arguments: Any) -> Any:
        """The answer to one question. After a DriverError of the time limit or its end it is of no more use."""
        self.send(verb, **arguments)
        return self.answer(verb, limit)

    def send(self, verb: str, /, **arguments: Any) -> None:
        """Ask, without waiting."""
        if self.broken:
            raise DriverError(self.broken)
        try:
            self._in.write(json.dumps({"do": verb, **arguments}).encode() + b"\n")
            self._in.flush()
        except OSError:
            self._break(f"it ended before {verb}: {self._last_words()}")

    def answer(self, verb: str, limit: float = LIMIT) -> Any:
        """Wait for it."""
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                self._break(f"{verb} took more than {limit:.0f} s")
            chunk = os.read(self._out.fileno(), 1 << 20)
            if not chunk:
                self._break(f"it ended in {verb}: {self._last_words()}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise DriverError(f"{verb}: {answer['error']}")
        return answer["ok"]

    def _break(self, why: str) -> None:
        self.broken = why
        raise DriverError(why)

    def _last_words(self) -> str:
        text = self.log.read_bytes()[self._log_start :].decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"

    # --- ending

    def close(self) -> None:
        """End it, in order if it answers, and all that it has started."""
        try:
            self._in.close()
        except OSError:
            pass
        try:
            self.process.wait(0 if self.broken else CLOSING)
        except subprocess.TimeoutExpired:
            pass
        finally:
            Driver.running.remove(self)
            end_what_is_left()
            self.process.wait()
            self._out.close()


def end_what_is_left() -> None:
    """Kill and reap all that descends from this process and not from a running driver."""
    for _ in range(50):
        spared = {os.getpid()}
        for each in Driver.running:
            spared.update(descendants(each.process.pid))
        left = set(descendants(os.getpid())) - spared
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # not ours yet, or a driver's own, which `close` waits for
                pass
        time.sleep(0.02)
