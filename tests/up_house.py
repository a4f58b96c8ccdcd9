"""A `quiesce up` whose broker and supervisors are small programs that tests can steer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quiesce.cli.children import is_pending
from quiesce.testing.leaks import descendants

#: Runs `Up` with stand-ins: argv is the folder, what the brokers do one after the other (the last mode is that
#: of all that follow), what the supervisors do, how long a signal says nothing new, and the patience with a stop.
#: A file "stands still" in the notes makes its next wait one of 100 s more.
DRIVER = """
import sys, time
from pathlib import Path
from quiesce.cli.config import load_config
from quiesce.cli.signals import Signals
from quiesce.cli.up import Up

folder, broker, supervisor, again_after, patience = sys.argv[1:]
monotonic, wait = time.monotonic, Signals.wait
still, stood = Path(folder, "notes", "stands still"), [0.0]

def wait_on(self, timeout):
    found = wait(self, timeout)
    if still.exists():
        still.unlink()
        stood[0] += 100.0
    return found

Signals.wait = wait_on
time.monotonic = lambda: monotonic() + stood[0]
up = Up(
    load_config(f"{folder}/quiesce.toml", {}),
    runtimes=() if supervisor == "none" else None,
    broker_command=[sys.executable, f"{folder}/broker.py", broker],
    supervisor_command=[sys.executable, f"{folder}/supervisor.py", supervisor],
    stop_patience=float(patience),
    again_after=float(again_after),
)
sys.exit(up.run())
"""

BROKER = """
import json, os, signal, socket, sys, time
from pathlib import Path

settings = json.loads(sys.stdin.readline())
folder = Path(settings["control"].removeprefix("ipc://")).parent
notes = folder.parent / "notes"
number = len(list(notes.glob("broker-*")))
modes = sys.argv[1].split(";")
mode = modes[min(number, len(modes) - 1)]
note = {"pid": os.getpid(), "mark": os.environ["QUIESCE_RUN"]}
note |= {name: settings[name] for name in ("run", "swept", "stopping")}
(notes / "new").write_text(json.dumps(note))
(notes / "new").rename(notes / f"broker-{number}")
if mode == "no start":
    print("quiesce broker: this is why", file=sys.stderr)
    sys.exit(4)
if mode == "fails":
    sys.exit(1)
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(5))
deadline = time.monotonic() + 30
while mode.startswith("waits") and not (notes / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
folder.mkdir(mode=0o700, exist_ok=True)
Path(settings["lock_path"]).touch()
sockets = []
for name in ("control", "data"):
    (folder / name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / name))
    listener.listen(100)
    sockets.append(listener)
signals = 1 if settings["stopping"] else 0
while signals < (2 if mode.endswith("second") else 10**9 if mode == "deaf" else 1):
    os.read(reader, 1)
    if mode == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    signals += 1
    print("broker: asked", flush=True, file=sys.stderr)
(notes / "stopped").touch()
for name in ("control", "data", "lock"):
    (folder / name).unlink()
if number == 0:
    folder.rmdir()  # as the real one: who did not make it leaves it
sys.exit(3 if mode == "task failed" else 0)
"""

SUPERVISOR = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
from quiesce.workers import kernel
from quiesce.workers.table import Phase, PoolTable

mode = sys.argv[1]
settings = json.loads(sys.stdin.readline())
kernel.become_subreaper()
notes = Path(settings["control"].removeprefix("ipc://")).parent.parent / "notes"
name = settings["runtime"]
number = len(list(notes.glob(f"{name}-*")))
note = {"pid": os.getpid(), "predecessor": settings["predecessor"]}
note |= {"mark": os.environ["QUIESCE_RUN"], "run": settings["run"]}
if mode == "never ready":
    (notes / f"{name}-{number}").write_text(json.dumps(note))
    sys.exit(1)
table = PoolTable(settings["table_fd"])
table.adopt(bytes([number + 1] * 8))
if mode.startswith("armed"):
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    table.note_lease(now + (1000 if mode == "armed long" else 0), 2.0)
# The worker has a child of its own; both outlive the supervisor unless somebody ends them.
worker = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
grandchild = int(worker.stdout.readline())
place = table.place(0)
place.assign(7)
place.set_pid(worker.pid)
if mode != "without workers":
    place.set_ready()
place.begin((11, 1))
place.begin((12, 3))
place.end((12, 3), Phase.COMPLETED)
note |= {"worker": worker.pid, "grandchild": grandchild}

def end():
    os.kill(grandchild, signal.SIGKILL)
    worker.kill()
    worker.wait()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            os._exit(0)

signal.signal(signal.SIGUSR1, lambda *_: end())
(notes / f"new-{name}").write_text(json.dumps(note))
(notes / f"new-{name}").rename(notes / f"{name}-{number}")
deadline = time.monotonic() + 30
while time.monotonic() < deadline and not (notes / "stopped").exists():
    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(settings["control"].removeprefix("ipc://"))
            control.recv(1)  # until the broker is gone; it never accepts
        except OSError:
            time.sleep(0.01)
if mode in ("stays", "without workers"):
    signal.pause()
end()
"""


class House:
    """One `up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        broker: str = "",
        supervisor: str = "",
        *,
        runtimes: int = 1,
        more: str = "",
        again_after: float = 0.0,
        patience: float = 1.0,
    ) -> None:
        """`more`: lines for [broker]. `again_after`: 0, and each signal counts."""
        self.notes.mkdir(exist_ok=True)
        pools = "".join(f"[runtimes.r{n}]\nprocesses = 1\n" for n in range(runtimes))
        (self.folder / "quiesce.toml").write_text(
            f'[broker]\naddress = "ipc://{self.folder}/q"\nstate = "{self.folder}/state"\n'
            f"stop_timeout = 0.5\n{more}\n{pools}"
        )
        (self.folder / "broker.py").write_text(BROKER)
        (self.folder / "supervisor.py").write_text(SUPERVISOR)
        words = [str(self.folder), broker, supervisor, str(again_after), str(patience)]
        command = [sys.executable, "-c", DRIVER, *words]
        with self.log.open("wb") as log:
            # In a process group of its own, so that a test can do what a terminal does.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, what: str, condition: Callable[[], Any], timeout: float = 20.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; the log:\n{self.text}")
            time.sleep(0.01)
        return found

    def until_said(self, text: str) -> None:
        self.until(repr(text), lambda: text in self.text)

    def supervisor(self, number: int, runtime: str = "r0") -> dict[str, Any]:
        path = self.notes / f"{runtime}-{number}"
        self.until(str(path), path.exists)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def broker(self, number: int) -> dict[str, Any]:
        """What the broker that was started as this one, from 0, has noted."""
        path = self.notes / f"broker-{number}"
        self.until(str(path), path.exists)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def count(self, what: str) -> int:
        """How many brokers ("broker") or supervisors of a pool ("r0") have been started."""
        return len(list(self.notes.glob(f"{what}-*")))

    def kill_broker(self, number: int, signum: int = signal.SIGKILL) -> None:
        os.kill(self.broker(number)["pid"], signum)

    def until_back(self, number: int) -> None:
        """Until this broker has taken the place of the one before it."""
        self.until_said(f"the broker is back: pid {self.broker(number)['pid']}")

    def up(self, count: int = 1) -> None:
        """Until it is ready and so many supervisors run."""
        self.until_said("quiesce is up")
        for number in range(count):
            self.supervisor(0, f"r{number}")

    def stand_still(self) -> None:
        """As if a wait of `up` had taken 100 s longer: its container was paused, say."""
        still = self.notes / "stands still"
        still.touch()
        self.send(signal.SIGCHLD)  # of which it makes nothing
        self.until("its next turn", lambda: not still.exists())

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def until_taken(self, pid: int, signum: int) -> None:
        """Until the process has noted this signal: another one then comes after it, in its own order."""
        self.until(f"signal {signum} taken by {pid}", lambda: not is_pending(pid, signum))

    def end(self, timeout: float = 20.0) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"up did not end; the log:\n{self.text}") from None

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def assert_clean(self) -> None:
        """Nothing is left, already when `up` has ended (the fixtures would wait for a while)."""
        # Zombies too: what falls to this process now had been left by `up`.
        names = ("broker.py", "supervisor.py", "sleep 1000")
        left = [each for each in descendants(os.getpid()) if any(n in each.command for n in names)]
        assert left == []
        assert not (self.folder / "q").exists()
        assert not (self.folder / "state" / "lock").exists()


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """One that is gone at the end."""
    made = House(folder)
    try:
        yield made
    finally:
        made.close()
