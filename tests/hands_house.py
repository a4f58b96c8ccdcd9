"""Threads that take what is queued for them, with a clock of the test's.

    python hands_house.py SCENARIO

A process of its own: these threads are kept until it ends. What must not be is an AssertionError.
"""

import os
import sys
import threading
from typing import Final
from unittest import mock

from quiesce.testing import wait_until
from quiesce.workers.hands import PATIENCE, Hands, start_own

LONG: Final = 30.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


CLOCK: Final = Clock()


class Body:
    """Work that says when it has begun, and lasts until it is let go."""

    def __init__(self, *, lasts: bool = True) -> None:
        self.begun = threading.Event()
        self._go = threading.Event()
        self.over = threading.Event()
        if not lasts:
            self._go.set()

    def __call__(self) -> None:
        self.begun.set()
        assert self._go.wait(LONG)
        self.over.set()

    def let_go(self) -> None:
        self._go.set()

    def await_begin(self) -> None:
        assert self.begun.wait(LONG), "nobody has taken it"


def look(hands: Hands, after: float = PATIENCE) -> None:
    CLOCK.now += after
    assert hands.look(), "nothing waits"


def busy(hands: Hands, count: int = 1) -> list[Body]:
    """So many threads have a body each."""
    bodies = [Body() for _ in range(count)]
    for body in bodies:
        hands.give(body)
        body.await_begin()
    return bodies


def queue(hands: Hands, count: int, *, lasts: bool = True) -> list[Body]:
    bodies = [Body(lasts=lasts) for _ in range(count)]
    for body in bodies:
        hands.queue(body)
    return bodies


def behind_one_that_lasts(hands: Hands) -> None:
    """A thread for each after a millisecond, and not before."""
    busy(hands)
    waiting = queue(hands, 3)
    look(hands, 0.0)
    look(hands, PATIENCE / 2)
    assert hands._made == 1
    look(hands, PATIENCE / 2)
    for body in waiting:
        body.await_begin()
    assert not hands.look()


def behind_short_ones(hands: Hands) -> None:
    """What was taken was not late: nobody else is called as long as it goes on."""
    (first,) = busy(hands)
    for _ in range(5):
        (following,) = queue(hands, 1)
        look(hands)
        first.let_go()
        following.await_begin()
        queue(hands, 1, lasts=False)
        look(hands)
        assert hands._made == 1, (
            "somebody was called for what had waited for less than a millisecond"
        )
        following.let_go()
        (first,) = queue(hands, 1)
        first.await_begin()
    queue(hands, 1)
    look(hands, 0.0)
    look(hands)
    look(hands)
    assert hands._made == 2


def a_look_that_is_late(hands: Hands) -> None:
    """It proves nothing of others; but the next one does, however late it is."""
    busy(hands)
    (waiting,) = queue(hands, 1)
    look(hands, 0.0)
    look(hands, 3 * PATIENCE)
    assert hands._made == 1
    look(hands, 3 * PATIENCE)
    waiting.await_begin()


def too_many(hands: Hands) -> None:
    """One of several falls asleep, though something waits; then it goes on as before."""
    bodies = busy(hands, 3)
    following = queue(hands, 3)
    look(hands, 0.0)
    for body in bodies:
        body.let_go()
    for body in following:
        body.await_begin()
    (last,) = queue(hands, 1)
    look(hands)  # all three have taken something
    assert hands._awake == 3
    following[0].let_go()
    wait_until(lambda: hands._awake == 2)
    assert not last.begun.is_set()
    following[1].let_go()
    last.await_begin()
    assert hands._awake == 2


def who_is_called_takes_it(hands: Hands) -> None:
    """Also when there are too many of them: nothing that is given waits for anything."""
    too_many(hands)
    (waiting,) = queue(hands, 1)
    hands._too_many = True
    given = Body()
    hands.give(given)
    waiting.await_begin()  # it takes the oldest
    assert not given.begun.is_set()
    look(hands)
    look(hands)
    given.await_begin()


def left_for_who_is_awake(hands: Hands) -> None:
    """Or not at all."""
    body = Body()
    assert not hands.leave(body)
    assert not hands.is_waiting
    (other,) = busy(hands)
    assert hands.leave(body)
    other.let_go()
    body.await_begin()
    assert hands._made == 1


def in_the_midst_of_a_call(hands: Hands) -> None:
    """A finalizer gives something while a thread is started."""
    given, start = Body(lasts=False), start_own

    def start_and_collect(thread: threading.Thread) -> None:
        with mock.patch("quiesce.workers.hands.start_own", start):
            hands.give(given)
        start(thread)

    with mock.patch("quiesce.workers.hands.start_own", start_and_collect):
        busy(hands)
    given.await_begin()


def beside_a_call(hands: Hands) -> None:
    """While another thread starts some, nothing is left: that would take as long."""
    busy(hands)
    with hands._lock:
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(hands.leave(Body())))
        thread.start()
        thread.join(LONG)
    assert answers == [False]
    assert not hands.is_waiting


SCENARIOS: Final = {
    scenario.__name__: scenario
    for scenario in (
        behind_one_that_lasts,
        behind_short_ones,
        a_look_that_is_late,
        too_many,
        who_is_called_takes_it,
        left_for_who_is_awake,
        in_the_midst_of_a_call,
        beside_a_call,
    )
}

if __name__ == "__main__":
    with mock.patch("quiesce.workers.hands.time", CLOCK):
        SCENARIOS[sys.argv[1]](Hands("test"))
    sys.stdout.flush()
    os._exit(0)
