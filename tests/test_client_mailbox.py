"""What wakes the client's I/O thread, and nothing else."""

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quiesce.client.mailbox import Mailbox, ask
from quiesce.protocol import from_client


@pytest.fixture
def box() -> Iterator[Mailbox]:
    box = Mailbox()
    yield box
    box.end()


def rings(box: Mailbox) -> bool:
    return bool(select.select([box.wake_fd], [], [], 0)[0])


def test_a_ring_that_comes_late_rings_once(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who rings has said so and is held up; meanwhile the I/O thread was woken by something else."""
    entered, go_on = threading.Event(), threading.Event()
    write = os.eventfd_write

    def slow(fd: int, value: int) -> None:
        entered.set()
        assert go_on.wait(20)
        write(fd, value)

    def put() -> None:
        box.put(ask(from_client.GetStatistics(0)))

    monkeypatch.setattr(os, "eventfd_write", slow)
    assert box.may_sleep(None)
    other = threading.Thread(target=put)
    other.start()
    assert entered.wait(20)
    box.awake(rung=rings(box))
    go_on.set()
    other.join(20)
    box.commands.clear()
    assert box.may_sleep(None)
    assert rings(box)
    box.awake(rung=True)
    assert box.may_sleep(None)
    assert not rings(box)


@contextmanager
def interrupted_ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes just before the ring, out of the block."""

    def interrupted(fd: int, value: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "eventfd_write", interrupted)
        yield


def test_who_is_interrupted_before_the_ring_leaves_it_to_the_next(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert box.may_sleep(None)
    with interrupted_ring(monkeypatch):
        box.put(ask(from_client.GetStatistics(0)))
    assert not box.lock._is_owned()  # type: ignore[attr-defined]  # of all of them
    box.put(ask(from_client.GetBroker(0)))
    assert rings(box)
    assert len(box.take(9)) == 2


def test_an_interrupted_close_is_rung_for_by_the_next(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert box.may_sleep(None)
    with interrupted_ring(monkeypatch):
        box.close(1.0)
    first = box.deadline
    box.close(2.0)
    assert rings(box)
    assert box.deadline == first


def test_what_is_put_is_taken_in_order_so_many_at_a_time(box: Mailbox) -> None:
    commands = [ask(from_client.GetStatistics(number)) for number in range(5)]
    for command in commands:
        box.put(command)
    assert [*box.take(3), *box.take(3), *box.take(3)] == commands
    assert box.may_sleep(None)


def test_one_that_is_retired_sleeps_once_it_has_a_deadline(box: Mailbox) -> None:
    """It may have spawns without an answer, and a broker that is away."""
    assert box.may_sleep(None)
    box.retire()
    assert rings(box)
    box.awake(rung=True)
    assert not box.may_sleep(None)
    box.close(1.0)
    assert not box.may_sleep(None)
    assert box.may_sleep(box.deadline)
    assert not rings(box)


def test_nothing_is_done_for_a_command_that_is_not_taken(box: Mailbox) -> None:
    done: list[str] = []
    box.put(ask(from_client.GetStatistics(0)), lambda: done.append("open"))
    box.close(1.0)
    with pytest.raises(RuntimeError, match="closed"):
        box.put(ask(from_client.GetStatistics(0)), lambda: done.append("closed"))
    assert done == ["open"]
    assert len(box.commands) == 1
