"""The broker as `quiesce up` keeps track of it; this process listens in its place."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quiesce.broker.settings import BrokerSettings
from quiesce.cli import broker_process
from quiesce.cli.broker_process import SETTLING, BrokerProcess
from quiesce.cli.children import Child


class FakeChild(Child):
    """Takes note of signals."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sent: list[int] = []
        #: Whether it has not taken the last one yet.
        self.waits = False

    def has_pending(self, signum: int) -> bool:
        return self.waits

    def send(self, signum: int) -> None:
        self.sent.append(signum)


class Desk:
    """A broker of which each process begins to listen when told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.broker = BrokerProcess(
            BrokerSettings(
                address=f"ipc://{folder}",
                control=f"ipc://{folder}/control",
                data=f"ipc://{folder}/data",
                state="state",
                lock_path="lock",
                runtimes=(),
                kinds=(),
            )
        )
        self._sockets = ExitStack()

    def start(self, stopping: str = "") -> FakeChild:
        assert json.loads(self.broker.settings(stopping))["stopping"] == stopping
        child = FakeChild()
        self.broker.started(child, knows_of_stop=bool(stopping))
        return child

    def listen(self) -> None:
        for name in ("control", "data"):
            listener = self._sockets.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(self._folder / name))
            listener.listen(100)
            self._sockets.callback((self._folder / name).unlink)

    def die(self, now: float, status: int = -signal.SIGKILL) -> None:
        self._sockets.close()
        self.broker.ended(status)
        self.broker.died(now)

    def close(self) -> None:
        self._sockets.close()
        self.broker.close()


@pytest.fixture
def desk(run_folder: Path) -> Iterator[Desk]:
    desk = Desk(run_folder)
    yield desk
    desk.close()


def ready(desk: Desk, now: float, stopping: str = "") -> FakeChild:
    child = desk.start(stopping)
    desk.listen()
    assert desk.broker.watch(now)
    assert not desk.broker.watch(now)
    return child


def test_the_very_first_is_asked_before_it_listens(desk: Desk) -> None:
    child = desk.start()
    desk.broker.ask_to_stop()
    assert child.sent == [signal.SIGTERM]
    assert desk.broker.is_watched


def test_a_later_one_is_asked_once_it_listens_and_once_a_look(desk: Desk) -> None:
    ready(desk, 0.0)
    desk.die(1.0)
    child = desk.start()
    desk.broker.ask_to_stop()
    desk.broker.ask_to_stop()
    assert child.sent == []
    desk.listen()
    sent = []
    for _ in range(4):
        desk.broker.watch(2.0)
        sent.append(len(child.sent))
    assert sent == [0, 1, 2, 2]
    assert not desk.broker.is_watched


def test_one_that_has_not_taken_a_signal_gets_the_next_later(desk: Desk) -> None:
    """The kernel would make one of the two."""
    child = ready(desk, 0.0)
    child.waits = True
    desk.broker.ask_to_stop()
    assert child.sent == []
    desk.broker.watch(1.0)
    assert child.sent == []
    assert desk.broker.is_watched
    child.waits = False
    desk.broker.watch(2.0)
    assert child.sent == [signal.SIGTERM]
    assert not desk.broker.is_watched


def test_one_that_is_told_at_its_start_is_not_asked_again(desk: Desk) -> None:
    first = ready(desk, 0.0)
    desk.broker.ask_to_stop()
    assert first.sent == [signal.SIGTERM]
    desk.die(1.0)
    second = ready(desk, 2.0, "why")
    assert second.sent == []
    desk.broker.ask_to_stop()
    assert second.sent == [signal.SIGTERM]
    desk.die(3.0)
    assert ready(desk, 4.0, "why").sent == [signal.SIGTERM]  # to hurry, as the one before it


def test_who_told_a_supervisor_to_end(desk: Desk) -> None:
    ready(desk, 10.0)
    assert desk.broker.was_told_by_this_one(10.1)
    desk.die(11.0)
    assert not desk.broker.was_told_by_this_one(10.1)
    desk.start()
    assert not desk.broker.was_told_by_this_one(11.5)
    desk.listen()
    assert desk.broker.watch(12.0)
    assert not desk.broker.was_told_by_this_one(12.0 + SETTLING - 0.1)
    assert desk.broker.was_told_by_this_one(12.0 + SETTLING)


def test_a_failing_journal_is_no_reason_to_give_up_once_one_was_ready(desk: Desk) -> None:
    for _ in range(4):
        desk.start()
        desk.die(0.0, broker_process.JOURNAL_FAILED)
    assert not desk.broker.given_up
    ready(desk, 1.0)
    for _ in range(20):
        desk.die(1.0, broker_process.JOURNAL_FAILED)
        desk.start()
    assert not desk.broker.given_up


def test_a_journal_that_fails_from_the_start_is(desk: Desk) -> None:
    for _ in range(5):
        desk.start()
        desk.die(0.0, broker_process.JOURNAL_FAILED)
    assert desk.broker.given_up
    assert desk.broker.restart_at is None
    assert desk.broker.story(0.0).endswith("for the 5th time in a row before it was ready")


def test_what_it_said_of_its_end_stands_in_the_story_for_programs(desk: Desk) -> None:
    for words in ("a long story of the first one", "the disk is gone"):
        desk.start()
        os.pwrite(desk.broker.why_fd, words.encode(), 0)
        desk.die(1.0, broker_process.JOURNAL_FAILED)
        story = desk.broker.story(1.0)
        assert "ended because its journal failed (its message is above)" in story
        assert f"ended because its journal failed ({words})" in desk.broker.in_full(story)
    desk.start()
    desk.die(2.0)
    assert desk.broker.in_full("its message is above") == "its message is above"
