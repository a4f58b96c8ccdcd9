"""A worker of several slots, in this process: its main thread falls asleep while another thread has a word to say.

    python slots_house.py

An attempt runs, in a thread of its own, and another waits for a thread. The first ends, and its thread takes the
second, or another thread has just taken that. At the n-th instruction of what the main thread does in its loop this
begins, and is held at the k-th of its own, until the main thread sleeps, or only watches, or waits for the lock. Of
all pairs of instructions, some.

Whenever the main thread sleeps for good, everything must have been told and sent: else nobody would, ever.
Prints how many pairs there were; what must not be is an AssertionError.
"""

import os
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import zmq

from houses import Lock, new_worker, row
from quiesce.protocol import from_worker, to_worker
from quiesce.registry.ids import Attempt as Number, TaskId
from quiesce.workers import tracing
from quiesce.workers.attempt import NOTHING, Attempt
from quiesce.workers.hands import Work
from quiesce.workers.main_thread import MainThread
from quiesce.workers.worker import Worker

#: What the main thread does in its loop, and what the others do that it might miss.
LOOP: Final = {MainThread.serve.__code__}
WORDS: Final = {
    function.__code__
    for function in (
        MainThread.ends,
        MainThread.goes_on.fget,  # type: ignore[attr-defined]  # a property
        Worker._finish,
        Worker._say,
        MainThread._pass_on,
        MainThread.is_needed,
        Worker._queue,
    )
}
#: Instructions of two turns of the loop, and of an end; and pairs of them of each kind.
LOOP_LENGTH: Final = 160
LENGTH: Final = 330
WHOLE: Final = 10**9
MORE: Final = 400


class Asleep(BaseException):
    """The main thread sleeps until somebody wakes it."""


class FewHands:
    """As `Hands`, but its threads are the test's."""

    def __init__(self) -> None:
        self.work: deque[Work] = deque()
        #: Whether one of its threads takes what waits, sooner or later.
        self.is_awake = True

    def queue(self, work: Work) -> None:
        self.work.append(work)

    def leave(self, work: Work) -> bool:
        if self.is_awake:
            self.work.append(work)
        return self.is_awake

    @property
    def is_waiting(self) -> bool:
        return bool(self.work)

    def look(self) -> bool:
        return bool(self.work)


class House:
    """One worker, and its main thread's poller."""

    def __init__(self) -> None:
        self.worker, _ = new_worker(slots=2)
        self.hands = FewHands()
        self.worker.runner._hands = self.hands  # type: ignore[assignment]  # as them
        self.lock = Lock()
        self.worker._lock = self.lock  # type: ignore[assignment]  # as one
        self.sent: list[int] = []
        self.worker._data.flush = self.flush  # type: ignore[method-assign]  # there is no broker
        self.number = 0
        self.on_idle: Callable[[], None] = lambda: None
        house = self

        class Poller:
            def register(self, what: object, flags: int) -> None:
                pass

            def poll(self, patience: int | None) -> list[tuple[object, int]]:
                return house.poll(patience)

        zmq.Poller = Poller  # type: ignore[assignment,misc]  # for `serve`

    def flush(self) -> bool:
        outbox = self.worker._data.outbox
        while outbox:
            message = outbox.popleft()
            if isinstance(message, from_worker.Ended):
                self.sent += [row.task_id for row in message.rows]
        return True

    def poll(self, patience: int | None) -> list[tuple[object, int]]:
        wake = self.worker.main.wake
        try:
            if os.eventfd_read(wake.fileno()):
                return [(wake, zmq.POLLIN)]
        except BlockingIOError:
            pass
        if patience is None:
            raise Asleep
        self.on_idle()
        return []

    def serve(self, *, again: bool = False) -> None:
        """Until the main thread sleeps. `again`: it does so already, and goes on if somebody has woken it."""
        try:
            if again:
                self.poll(None)
            self.worker.main.serve()
        except Asleep:
            pass

    def assign(self, count: int) -> list[int]:
        """So many tasks are assigned; their ids."""
        rows = []
        for _ in range(count):
            self.number += 1
            rows.append(row(self.number))
        self.worker.hear(to_worker.Assign(1, rows))
        to_start = self.worker.main.to_start
        while to_start:
            self.worker.runner.start(to_start.popleft())
        return [each.task_id for each in rows]

    def begin(self, task: int) -> Attempt:
        """A thread takes what waits, and begins it."""
        self.hands.work.popleft()
        attempt = self.worker.attempts[(TaskId(task), Number(1))]
        assert self.worker.may_run(attempt)
        return attempt

    def forget(self) -> None:
        """The broker has taken all ends."""
        self.worker.hear(to_worker.EndedTaken(list(self.worker._session.held)))
        self.sent.clear()
        assert not self.worker.attempts


def one(house: House, ours: int, theirs: int, taken: str, *, awake: bool) -> bool:
    """One pair of instructions. Whether both came.

    `taken`: when another thread takes the second: "before" the first ends, in the "midst" of that, or "later".
    `awake`: whether there is one for the third, which is handed over when the first has ended.
    """
    first, second, third = house.assign(3)
    running = house.begin(first)
    house.hands.is_awake = awake
    held, go_on = threading.Event(), threading.Event()
    came = False

    def speak() -> None:
        nonlocal came
        left = theirs

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left, came
            if frame.f_code not in WORDS:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    came = True
                    held.set()
                    go_on.wait()
            return trace

        sys.settrace(trace)
        house.worker._finish(running, NOTHING)
        sys.settrace(None)
        held.set()

    thread = threading.Thread(target=speak)
    other = threading.Thread(target=house.begin, args=(second,))
    idle = 0

    def on_idle() -> None:
        """The main thread watches, a millisecond long."""
        nonlocal idle
        if thread.ident is None:
            if taken == "before" and house.hands.work:
                house.begin(second)
            return
        idle += 1
        if idle == 3:
            go_on.set()
            thread.join()
        elif idle > 4 and house.hands.work:  # by and by
            is_second = (TaskId(second), Number(1)) in house.worker._session.handed
            house.begin(second if is_second else third)

    house.on_idle = on_idle
    house.lock.on_wait = go_on.set
    count = -1

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code not in LOOP:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == ours:
                thread.start()
                held.wait()
                if taken == "midst" and house.hands.work:
                    other.start()
                    other.join()
        return trace

    sys.settrace(trace)
    try:
        house.serve()
    finally:
        sys.settrace(None)
    begun = thread.ident is not None
    if not begun:
        thread.start()
    go_on.set()
    thread.join()
    house.serve(again=True)
    main, streak = house.worker.main, house.worker.main.streak
    assert not house.worker._data.outbox, "it sleeps, and an end was not sent"
    assert not streak.over, "it sleeps, and an end was not told"
    assert not main.to_start, "it sleeps, and what was handed over has no thread"
    assert not house.hands.is_waiting, "it sleeps, and does not look at what waits"
    assert first in house.sent
    house.hands.is_awake = True
    for task in (second, third):
        attempt = house.worker.attempts[(TaskId(task), Number(1))]
        assert attempt.begun_at
        house.worker._finish(attempt, NOTHING)
    house.serve()
    house.forget()
    return begun and came


def main() -> int:
    tracing.untraced = lambda call, *args: call(
        *args
    )  # the other thread is held by its trace function
    house, chance, count = House(), random.Random(1), 0
    for taken in ("before", "midst", "later"):
        for awake in (False, True):
            for ours in range(LOOP_LENGTH):
                one(house, ours, WHOLE, taken, awake=awake)  # all of it, at each moment
                one(house, ours, chance.randrange(1, LENGTH), taken, awake=awake)
            for _ in range(MORE):
                ours, theirs = chance.randrange(LOOP_LENGTH), chance.randrange(1, LENGTH)
                count += one(house, ours, theirs, taken, awake=awake)
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{main()}\n")
    sys.stdout.flush()
    os._exit(0)
