"""`quiesce up` starts a dead broker again, and ends what earlier runs have left."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.processes import environment
from quiesce.testing.leaks import is_running
from up_house import House, open_house


@pytest.fixture
def house(run_folder: Path) -> Iterator[House]:
    with open_house(run_folder) as made:
        yield made


# --- a broker that dies


def test_a_killed_broker_is_started_again_and_supervisors_stay(house: House) -> None:
    house.start(runtimes=2)
    house.up(2)
    house.kill_broker(0)
    house.until_back(1)
    first, second = house.broker(0), house.broker(1)
    story = f"the broker (pid {first['pid']}) died (killed by SIGKILL); starting it again\n"
    assert story in house.text
    assert second == {**first, "pid": second["pid"]}  # of the same run, and no stop asked
    house.kill_broker(1, signal.SIGSEGV)
    house.until_back(2)
    assert "died (killed by SIGSEGV); starting it again in 0.1 s\n" in house.text
    assert house.text.count("quiesce is up") == 1
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert (house.count("r0"), house.count("r1")) == (1, 1)
    house.assert_clean()


def test_a_broker_alone_is_started_again_too(house: House) -> None:
    house.start(supervisor="none")
    house.until_said("quiesce is up")
    house.kill_broker(0)
    house.until_back(1)
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_broker_whose_journal_failed_is_started_again_after_a_pause(house: House) -> None:
    house.start()
    house.up()
    house.kill_broker(0, signal.SIGUSR1)  # this stand-in exits with 5 then
    house.until_back(1)
    assert (
        "ended because its journal failed (its message is above); starting it again in 0.1 s"
        in house.text
    )
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_broker_that_dies_in_a_stop_is_started_again_and_finishes_it(house: House) -> None:
    house.start("dies;")
    house.up()
    house.send(signal.SIGTERM)  # this broker kills itself then
    assert house.end() == 0, house.text
    assert "died (killed by SIGKILL); starting it again, to finish the stop" in house.text
    assert house.broker(1)["stopping"] == "signal SIGTERM"
    assert "broker: asked" not in house.text  # it knows, and a signal would hurry it
    house.assert_clean()


def test_a_second_signal_reaches_the_next_broker(house: House) -> None:
    house.start("dies;waits second")
    house.up()
    house.send(signal.SIGTERM)
    assert house.broker(1)["stopping"] == "signal SIGTERM"
    house.send(signal.SIGTERM)
    house.until_said("SIGTERM again")
    (house.notes / "go").touch()
    assert house.end() == 0, house.text
    assert house.text.count("broker: asked") == 1
    house.assert_clean()


def test_a_stop_reaches_a_broker_that_is_just_being_started_again(house: House) -> None:
    house.start(";waits")
    house.up()
    house.kill_broker(0)
    assert house.broker(1)["stopping"] == ""
    house.send(signal.SIGTERM)
    house.until_said("stopping in order")
    (house.notes / "go").touch()
    assert house.end() == 0, house.text
    assert house.text.count("broker: asked") == 1
    assert house.count("broker") == 2
    house.assert_clean()


def test_what_ended_in_order_under_a_dead_broker_gets_a_successor_with_the_account(
    house: House,
) -> None:
    """The dead broker may have told nobody what became of the tasks."""
    house.start("dies;waits")
    house.up()
    house.send(signal.SIGTERM)
    house.broker(1)
    os.kill(house.supervisor(0)["pid"], signal.SIGUSR1)  # this stand-in ends in order then
    assert house.supervisor(1)["predecessor"]["status"] == 0
    (house.notes / "go").touch()
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_broker_that_fails_again_and_again_ends_the_system(house: House) -> None:
    house.start("fails")
    began = time.monotonic()
    assert house.end() == 1
    assert house.count("broker") == 5
    assert time.monotonic() - began >= 0.2 + 0.4 + 0.8 + 1.6
    assert (
        "died before it was ready (exit status 1); starting it again in 0.4 s (failure 2 of 5)\n"
        in house.text
    )
    assert (
        "died (exit status 1), for the 5th time in a row before it was ready: killing everything\n"
        in house.text
    )
    house.assert_clean()


def test_a_signal_between_brokers_that_fail_ends_at_once(house: House) -> None:
    house.start("fails")
    house.until_said("failure 3 of 5")
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    assert house.count("broker") <= 4
    house.assert_clean()


def test_supervisors_are_asked_to_stop_when_the_broker_does_not_come_back(house: House) -> None:
    house.start(";fails")
    house.up()
    house.kill_broker(0)
    assert house.end() == 1
    assert "for the 5th time in a row before it was ready: stopping without it" in house.text
    assert f"supervisor (pid {house.supervisor(0)['pid']}) ended: killed by SIGTERM" in house.text
    house.assert_clean()


def test_a_broker_that_can_not_start_once_may_later(house: House) -> None:
    """Only at the very first start this is final."""
    house.start(";no start;")
    house.up()
    house.kill_broker(0)
    house.until_back(2)
    assert (
        "could not start (its message is above); starting it again in 0.2 s (failure 1 of 5)"
        in house.text
    )
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_broker_killed_at_the_very_end_leaves_no_socket(house: House) -> None:
    house.start(";deaf")
    house.up()
    house.kill_broker(0)
    house.until_back(1)
    house.send(signal.SIGQUIT)
    assert house.end() == 1
    house.assert_clean()


# --- the runs before


def test_what_a_killed_up_left_is_ended_by_the_next_before_its_broker_begins(house: House) -> None:
    house.start()
    house.up()
    supervisor, broker = house.supervisor(0), house.broker(0)
    assert supervisor["mark"] == supervisor["run"] == broker["mark"] == broker["run"]
    assert broker["swept"] == []
    house.process.kill()
    house.process.wait()
    house.until("the broker's end", lambda: not is_running(broker["pid"]))
    # This stand-in's worker knows nothing of its parent's death (the real one does), and nor does its child.
    left = [supervisor["worker"], supervisor["grandchild"]]
    assert all(map(is_running, left))
    house.start()
    second = house.broker(1)
    assert not any(map(is_running, left))
    assert second["swept"] == [broker["run"]]
    assert second["run"] != broker["run"]
    house.until_said("killed what an earlier `quiesce up`, which was killed, had left behind")
    assert f"{supervisor['grandchild']} (sleep 1000)" in house.text
    house.up()
    runs = [each["run"] for each in json.loads((house.folder / "state" / "runs").read_text())]
    assert runs == [second["run"]]  # the broker knows of the first, now that it has been ready
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
    house.assert_clean()


def test_a_run_is_told_to_every_broker_until_one_was_ready(house: House) -> None:
    house.start("deaf")
    house.up()
    house.send(signal.SIGQUIT)
    assert house.end() == 1
    first = house.broker(0)["run"]
    house.start("deaf;fails")
    assert house.end() == 1
    second = house.broker(1)
    assert second["swept"] == [first]
    house.start("deaf;fails;fails;fails;fails;fails;;fails")
    house.up()
    third = house.broker(6)
    assert third["swept"] == [first, second["run"]]
    house.kill_broker(6)
    assert house.broker(7)["swept"] == [first, second["run"]]
    assert house.end() == 1


def test_a_start_that_comes_to_nothing_leaves_no_run(house: House) -> None:
    house.start("no start")
    assert house.end() == 1
    assert not (house.folder / "state" / "runs").exists()


def test_marks_of_others_are_not_handed_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a task that starts a system of its own."""
    monkeypatch.setenv("QUIESCE_RUN", "of-another")
    monkeypatch.setenv("QUIESCE_WORKER", "of-another")
    monkeypatch.setenv("QUIESCE_ATTEMPT", "1.1")
    house.start()
    house.up()
    environ = environment(house.supervisor(0)["pid"])
    assert environ["QUIESCE_RUN"] == house.broker(0)["run"]
    assert environ.keys().isdisjoint({"QUIESCE_WORKER", "QUIESCE_ATTEMPT"})
    house.send(signal.SIGTERM)
    assert house.end() == 0, house.text
