"""`quiesce up` watches, restarts, reaps and ends its processes; small programs stand in for the real ones."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaks import descendants, is_running

#: Runs `Up` with stand-ins: argv is the folder, what the broker does, what the supervisors do.
DRIVER = """
import sys
from pathlib import Path
from quiesce.cli.config import load_config
from quiesce.cli.up import Up

folder, broker, supervisor = sys.argv[1:]
up = Up(
    load_config(f"{folder}/quiesce.toml", {}),
    broker_command=[sys.executable, f"{folder}/broker.py", broker],
    supervisor_command=[sys.executable, f"{folder}/supervisor.py", supervisor],
    stop_patience=1.0,
)
sys.exit(up.run())
"""

BROKER = """
import json, os, signal, socket, sys

mode = sys.argv[1]
if mode == "no start":
    print("quiesce broker: this is why", file=sys.stderr)
    sys.exit(4)
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda *_: None)
settings = json.loads(sys.stdin.readline())
folder = settings["control"].removeprefix("ipc://").removesuffix("/control")
os.makedirs(folder, mode=0o700, exist_ok=True)
open(settings["lock_path"], "w").close()
sockets = []
for name in ("control", "data"):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/{name}")
    listener.listen(100)
    sockets.append(listener)
if mode == "dies":
    os.read(reader, 1)
    os.kill(os.getpid(), signal.SIGKILL)
signals = 0
while signals < (2 if mode == "second" else 10**9 if mode == "deaf" else 1):
    os.read(reader, 1)
    signals += 1
    print("broker: asked", flush=True, file=sys.stderr)
for name in ("control", "data", "lock"):
    os.unlink(f"{folder}/{name}")
os.rmdir(folder)
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
if mode == "never ready":
    (notes / f"{name}-{number}").write_text(json.dumps(note))
    sys.exit(1)
table = PoolTable(settings["table_fd"])
table.adopt(bytes([number + 1] * 8))
# The worker has a child of its own; both outlive the supervisor unless somebody ends them.
worker = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
grandchild = int(worker.stdout.readline())
place = table.place(0)
place.assign(7)
place.set_pid(worker.pid)
if mode != "without workers":
    place.set_ready()
place.begin(11, 1)
place.begin(12, 3)
place.end(12, 3, Phase.COMPLETED)
note |= {"worker": worker.pid, "grandchild": grandchild}
(notes / f"new-{name}").write_text(json.dumps(note))
(notes / f"new-{name}").rename(notes / f"{name}-{number}")
control = socket.socket(socket.AF_UNIX)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    try:
        control.connect(settings["control"].removeprefix("ipc://"))
        break
    except OSError:
        time.sleep(0.01)
try:
    control.recv(1)  # until the broker is gone
except ConnectionResetError:
    pass  # it never accepts
if mode in ("stays", "without workers"):
    signal.pause()
os.kill(grandchild, signal.SIGKILL)
worker.kill()
worker.wait()
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


class House:
    """One `up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, broker: str = "", supervisor: str = "", *, runtimes: int = 1) -> None:
        self.notes.mkdir()
        pools = "".join(f"[runtimes.r{n}]\nprocesses = 1\n" for n in range(runtimes))
        (self.folder / "quiesce.toml").write_text(
            f'[broker]\naddress = "ipc://{self.folder}/q"\nstate = "{self.folder}/state"\n'
            f"stop_timeout = 0.5\n{pools}"
        )
        (self.folder / "broker.py").write_text(BROKER)
        (self.folder / "supervisor.py").write_text(SUPERVISOR)
        command = [sys.executable, "-c", DRIVER, str(self.folder), broker, supervisor]
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

    def up(self, count: int = 1) -> None:
        """Until it is ready and so many supervisors run."""
        self.until_said("quiesce is up")
        for number in range(count):
            self.supervisor(0, f"r{number}")

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

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


@pytest.fixture
def house(run_folder: Path) -> Iterator[House]:
    made = House(run_folder)
    yield made
    made.close()


# --- an orderly end


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_in_order(house: House, signum: int) -> None:
    house.start(runtimes=2)
    house.up(2)
    house.send(signum)
    assert house.end() == 0, house.text
    house.assert_clean()
    assert f"{signal.Signals(signum).name}: stopping in order" in house.text


def test_a_terminal_sends_its_interrupt_to_all(house: House) -> None:
    """Also to processes that have only just been forked, and have no handler yet."""
    house.start(runtimes=3)
    house.up(3)
    os.killpg(house.process.pid, signal.SIGINT)
    assert house.end() == 0, house.text
    house.assert_clean()
    assert "KeyboardInterrupt" not in house.text


def test_it_says_where_it_is_once_it_listens(house: House) -> None:
    house.start(runtimes=2)
    house.up(2)
    (line,) = [line for line in house.text.splitlines() if "is up" in line]
    (broker,) = [each for each in descendants(house.process.pid) if "broker.py" in each.command]
    assert line == (
        f"quiesce is up: broker pid {broker.pid}, pid {house.process.pid}, "
        f"address ipc://{house.folder}/q, runtimes r0 (1 x 16), r1 (1 x 16)"
    )
    house.send(signal.SIGTERM)
    assert house.end() == 0


def test_a_second_signal_is_passed_on(house: House) -> None:
    house.start("second")
    house.up()
    house.send(signal.SIGTERM)
    house.until_said("broker: asked")
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert house.text.count("broker: asked") == 2
    assert "SIGTERM again: stopping faster" in house.text
    house.assert_clean()


def test_supervisors_that_stay_are_killed(house: House) -> None:
    house.start("", "stays")
    house.up()
    supervisor = house.supervisor(0)
    house.send(signal.SIGTERM)
    assert house.end() == 1
    assert (
        f"killing what did not end in order: supervisor of r0 (pid {supervisor['pid']})"
        in house.text
    )
    house.assert_clean()


def test_supervisors_without_a_worker_do_not_hold_up_the_end(house: House) -> None:
    """They may not have reached the broker in time to hear that it ends."""
    house.start("", "without workers")
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


# --- ends that are not


def test_sigquit_kills_at_once(house: House) -> None:
    house.start("deaf")
    house.up()
    house.send(signal.SIGQUIT)
    assert house.end() == 1
    house.assert_clean()


def test_a_stop_that_takes_too_long_is_cut_short(house: House) -> None:
    house.start("deaf")
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 1
    assert "the stop took too long" in house.text
    house.assert_clean()


def test_a_broker_that_can_not_start_ends_all(house: House) -> None:
    house.start("no start")
    assert house.end() == 1
    assert "quiesce broker: this is why" in house.text
    assert "the broker could not start" in house.text
    house.assert_clean()


def test_a_broker_that_dies_ends_all_and_leaves_no_socket(house: House) -> None:
    house.start("dies")
    house.up()
    house.send(signal.SIGTERM)  # this broker kills itself then
    assert house.end() == 1
    assert "the broker died (killed by SIGKILL)" in house.text
    house.assert_clean()


def test_a_failed_task_that_stops_the_system_is_said(house: House) -> None:
    house.start("task failed")
    house.up()
    (broker,) = [each for each in descendants(house.process.pid) if "broker.py" in each.command]
    os.kill(broker.pid, signal.SIGTERM)  # nobody has asked `up`: the broker stops by itself
    assert house.end() == 1
    assert "because a task marked shutdown_process_on_error failed" in house.text
    house.assert_clean()


def test_killed_itself_it_leaves_no_process(house: House, run_folder: Path) -> None:
    house.start()
    house.up()
    supervisor = house.supervisor(0)
    everyone = [each.pid for each in descendants(house.process.pid)]
    assert supervisor["pid"] in everyone
    house.process.kill()
    house.process.wait()
    # The worker of this stand-in knows nothing of its parent's death: the real one does.
    for pid in (supervisor["worker"], supervisor["grandchild"]):
        os.kill(pid, signal.SIGKILL)
    house.until("all to be gone", lambda: not any(map(is_running, everyone)))
    for name in ("control", "data", "lock"):
        (run_folder / "q" / name).unlink()  # a start on this address would remove them


# --- supervisors


def test_a_killed_supervisor_gets_a_successor_that_knows_how_it_ended(house: House) -> None:
    house.start()
    house.up()
    first = house.supervisor(0)
    assert first["predecessor"] is None
    os.kill(first["pid"], signal.SIGKILL)
    second = house.supervisor(1)
    # Both were dead before the successor began.
    assert not is_running(first["worker"])
    assert not is_running(first["grandchild"])
    assert second["predecessor"] == {
        "supervisor": "01" * 8,
        "pid": first["pid"],
        "status": -signal.SIGKILL,
        "workers": [
            {
                "serial": 7,
                "pid": first["worker"],
                "status": -signal.SIGKILL,
                "attempts": [[11, 1, "begun"], [12, 3, "completed"]],
            }
        ],
    }
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_supervisor_that_dies_again_and_again_ends_the_system(house: House) -> None:
    house.start("", "never ready")
    assert house.end() == 1
    assert "for the 5th time before a worker was ready" in house.text
    assert len(list(house.notes.iterdir())) == 5
    house.assert_clean()


def test_children_of_others_are_left_alone(house: House) -> None:
    """As in a script that starts something in the background, and then becomes `quiesce up` by exec."""
    house.start()
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0
    driver = f"import os, subprocess\nother = subprocess.Popen(['sleep', '1000'])\n{DRIVER}"
    command = [sys.executable, "-c", driver, str(house.folder), "", ""]
    for note in house.notes.iterdir():
        note.unlink()
    with house.log.open("wb") as log:
        house._process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    left = [each for each in descendants(os.getpid()) if "sleep 1000" in each.command]
    assert len(left) == 1
    assert left[0].state not in "ZX"
    os.kill(left[0].pid, signal.SIGKILL)
