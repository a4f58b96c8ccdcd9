"""What wakes the client's I/O thread, and nothing else."""

import os
import select
import threading
from collections.abc import Iterator

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
