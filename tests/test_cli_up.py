"""`quiesce up` watches, restarts, reaps and ends its processes; small programs stand in for the real ones."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from quiesce.cli.address import is_bound_by
from quiesce.cli.signals import Requests
from quiesce.testing.leaks import descendants, is_running
from up_house import DRIVER, House, open_house


@pytest.fixture
def house(run_folder: Path) -> Iterator[House]:
    with open_house(run_folder) as made:
        yield made


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
    assert re.sub(r"[-\d]+ [:,\d]+", "WHEN", line, count=1) == (
        f"WHEN INFO quiesce.up quiesce is up: broker pid {broker.pid}, pid {house.process.pid}, "
        f"address ipc://{house.folder}/q, runtimes r0 (1 x 16), r1 (1 x 16)"
    )
    house.send(signal.SIGTERM)
    assert house.end() == 0


def test_a_broker_listens_once_it_has_both_ports_itself() -> None:
    """Whoever else has them, and takes connections."""
    with ExitStack() as kept:
        while True:
            control = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = control.getsockname()[1]
            address = f"tcp://127.0.0.1:{port}"
            assert not is_bound_by(address, os.getpid())
            with suppress(OSError):  # somebody has it
                kept.enter_context(socket.create_server(("127.0.0.1", port + 1)))
                break
        assert is_bound_by(address, os.getpid())
        assert not is_bound_by(address, os.getppid())
    assert not is_bound_by(address, os.getpid())


def test_each_line_says_how_bad_it_is(house: House) -> None:
    house.start("", "stays")
    house.up()
    house.kill_broker(0)
    house.until_back(1)
    house.send(signal.SIGTERM)
    assert house.end() == 1
    assert f" WARNING quiesce.up the broker (pid {house.broker(0)['pid']}) died" in house.text
    assert " INFO quiesce.up SIGTERM: stopping in order" in house.text
    assert " ERROR quiesce.up killing what did not end in order" in house.text


def test_a_log_file_has_its_lines_too(house: House) -> None:
    house.start(more='log_file = "other"')
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0
    lines = [line for line in house.text.splitlines() if " quiesce.up " in line]
    assert (house.folder / "other").read_text().splitlines() == lines
    assert len(lines) == 2


def test_a_log_file_that_is_standard_error_has_them_once(house: House) -> None:
    house.start(more=f'log_file = "{house.log.name}"')
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0
    assert house.text.count("quiesce is up") == 1


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


def test_signals_of_one_occasion_are_one(house: House) -> None:
    """GNU `timeout` sends one to its child, and one to the group of that."""
    house.start("second", again_after=1000.0)
    house.up()
    house.send(signal.SIGTERM)
    house.until_said("broker: asked")
    house.send(signal.SIGTERM)
    house.until_taken(house.process.pid, signal.SIGTERM)
    house.send(signal.SIGQUIT)  # otherwise this stand-in would wait for a second one for ever
    assert house.end() == 1
    assert "again: stopping faster" not in house.text
    assert house.text.count("broker: asked") == 1


def test_when_a_signal_counts() -> None:
    requests = Requests()
    assert requests.counts(signal.SIGTERM, 1000.0)
    assert not requests.counts(signal.SIGTERM, 1000.2)
    assert requests.counts(signal.SIGINT, 1000.4)  # two Ctrl-C by hand may come as soon
    assert not requests.counts(signal.SIGINT, 1000.6)
    assert not requests.counts(signal.SIGHUP, 1100.0)
    assert requests.count == 2
    assert Requests().counts(signal.SIGHUP, 0.0)


def test_a_terminal_that_is_closed_says_nothing_twice(house: House) -> None:
    """The kernel sends it to who is in the foreground, and the shell to its jobs."""
    house.start("second")
    house.up()
    house.send(signal.SIGHUP)
    house.until_said("broker: asked")
    house.send(signal.SIGHUP)
    house.until_taken(house.process.pid, signal.SIGHUP)
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert "SIGHUP again" not in house.text
    assert "SIGTERM again: stopping faster" in house.text
    house.assert_clean()


def test_what_is_sent_to_the_group_reaches_up_alone(house: House) -> None:
    """A shell's `kill %1`, GNU `timeout`: the broker would hear it twice, and workers before their time."""
    house.start("second")
    house.up()
    os.killpg(house.process.pid, signal.SIGTERM)
    house.until_said("broker: asked")
    assert is_running(house.supervisor(0)["pid"])
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert house.text.count("broker: asked") == 2
    assert "ended: killed by" not in house.text
    house.assert_clean()


def test_a_second_signal_is_not_lost_in_one_that_waits(house: House) -> None:
    """The kernel makes one of two that wait together."""
    house.start("second")
    house.up()
    broker = house.broker(0)["pid"]
    os.kill(broker, signal.SIGSTOP)
    house.send(signal.SIGTERM)
    house.until_said("stopping in order")
    house.send(signal.SIGTERM)
    house.until_said("stopping faster")
    os.kill(broker, signal.SIGCONT)
    assert house.end() == 0, house.text
    assert house.text.count("broker: asked") == 2
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


def test_what_stood_still_used_up_no_patience(house: House) -> None:
    """A container was paused in the midst of the stop: the broker has had no time either."""
    house.start("second", patience=10.0)
    house.up()
    house.send(signal.SIGTERM)
    house.until_said("broker: asked")
    house.stand_still()
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert "everything stood still for" in house.text
    house.assert_clean()


def test_it_is_cut_short_all_the_same_if_it_takes_too_long_then(house: House) -> None:
    house.start("deaf")
    house.up()
    house.send(signal.SIGTERM)
    house.until_said("broker: asked")
    house.stand_still()
    assert house.end() == 1
    assert house.text.index("everything stood still for") < house.text.index("took too long")
    house.assert_clean()


def test_a_broker_that_can_not_start_ends_all(house: House) -> None:
    house.start("no start")
    assert house.end() == 1
    assert "quiesce broker: this is why" in house.text
    assert "the broker could not start" in house.text
    house.assert_clean()


def test_a_failed_task_that_stops_the_system_is_said(house: House) -> None:
    house.start("task failed")
    house.up()
    (broker,) = [each for each in descendants(house.process.pid) if "broker.py" in each.command]
    os.kill(broker.pid, signal.SIGTERM)  # nobody has asked `up`: the broker stops by itself
    assert house.end() == 1
    assert "because a task marked shutdown_process_on_error failed" in house.text
    house.assert_clean()


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
        "fenced": False,
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


@pytest.mark.parametrize(("mode", "fenced"), [("armed", True), ("armed long", False)])
def test_a_supervisor_killed_by_its_own_timer_was_fenced(
    house: House, mode: str, fenced: bool
) -> None:
    house.start("", mode)
    house.up()
    os.kill(house.supervisor(0)["pid"], signal.SIGKILL)
    assert house.supervisor(1)["predecessor"]["fenced"] is fenced
    assert ("its lease ran out, and its own timer killed it" in house.text) is fenced
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_supervisor_that_dies_again_and_again_ends_the_system(house: House) -> None:
    house.start("", "never ready")
    assert house.end() == 1
    assert "for the 5th time before a worker was ready" in house.text
    assert house.count("r0") == 5
    house.assert_clean()


def test_children_of_others_are_left_alone(house: House) -> None:
    """As in a script that starts something in the background, and then becomes `quiesce up` by exec."""
    house.start()
    house.up()
    house.send(signal.SIGTERM)
    assert house.end() == 0
    driver = f"import os, subprocess\nother = subprocess.Popen(['sleep', '1000'])\n{DRIVER}"
    command = [sys.executable, "-c", driver, str(house.folder), "", "", "0", "1"]
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
