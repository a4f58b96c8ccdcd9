"""Waits that end too late: the whole process stood still, and what it waits for may have arrived, unread."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from quiesce.client import waiting
from quiesce.client.waiting import HELD_UP, LoopBell, Waitable, wait_for, wait_for_async
from quiesce.locks import Lock

#: Of each wait in here.
TIMEOUT = 0.01


class Late(Waitable):
    """Something that is waited for while all stands still for some seconds; it is over a moment later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        super().__init__()
        self.lock = Lock()
        #: How to be over, once the wait has looked how late it is.
        self.arrive: Callable[[], object] = lambda: None
        self._now = 100.0
        self._later = self._now + TIMEOUT + seconds
        monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=self._monotonic))

    def _monotonic(self) -> float:
        now, self._now = self._now, self._later
        if now == self._later:
            self.arrive()
        return now

    def read(self) -> None:
        """By the I/O thread."""
        wakers: list[waiting.Waker] = []
        with self.lock:
            self.finish(wakers)
        for wake in wakers:
            wake()


def test_a_thread_that_stood_still_gives_what_has_arrived_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Gate` stands for the lock that it sleeps in."""
    thing = Late(monkeypatch, 2.0)
    waits: list[float] = []

    class Gate:
        def acquire(self, *, timeout: float = -1.0) -> None:
            waits.append(timeout)
            if timeout == HELD_UP:
                thing.read()

        def release(self) -> None: ...

    monkeypatch.setattr(waiting, "threading", SimpleNamespace(Lock=Gate))
    assert wait_for(thing, thing.lock, TIMEOUT)
    assert waits == [-1.0, TIMEOUT, HELD_UP]


def test_a_coroutine_that_stood_still_does_too(monkeypatch: pytest.MonkeyPatch) -> None:
    thing = Late(monkeypatch, 2.0)

    async def wait() -> bool:
        loop = asyncio.get_running_loop()
        thing.arrive = lambda: loop.call_soon(thing.read)
        return await wait_for_async(thing, thing.lock, TIMEOUT, LoopBell(loop))

    assert asyncio.run(wait())


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    thing = Late(monkeypatch, 2.0)
    assert not wait_for(thing, thing.lock, TIMEOUT)
