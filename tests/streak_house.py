"""A worker of one slot, in this process, that something happens to at every instruction of its main thread.

    python streak_house.py INTRUSION

Four tasks are assigned; while they run, at the n-th instruction of what takes and ends them, another thread
would have the lock: a trace function does here what that thread would do. For each n anew, until they end before
it comes.

`threads`: a real thread does it, and is held at one of its own instructions until the main thread waits for it, or
has nothing to do; of all pairs of instructions, some.

Prints how many moments there were; what must not be is an AssertionError.
"""

import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from houses import Lock, new_worker, row
from quiesce.protocol import from_worker, to_worker
from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.rows import EndedRow
from quiesce.testing import streak_bodies
from quiesce.workers import tracing
from quiesce.workers.attempt import NOTHING
from quiesce.workers.main_thread import MainThread, nothing_new
from quiesce.workers.streak import Streak
from quiesce.workers.table import ENTRIES, LEASE_TURNS, Phase
from quiesce.workers.worker import Worker
from quiesce.workers.worker_session import WorkerSession

#: What the main thread does without the lock, and what it shares with those who have it.
TRACED: Final = {
    function.__code__
    for function in (
        MainThread.run_in_a_row,
        MainThread._run,
        MainThread.ends,
        Worker.make,
        Worker.note_beginning,
        Worker._finish,
    )
}
#: What whoever has the lock does.
LOCKED: Final = {
    function.__code__
    for function in (
        Worker._say,
        Worker._catch_up,
        Worker._queue,
        Worker._is_handed,
        Streak.withdraw,
        WorkerSession.receive,
        WorkerSession._on_stop,
        WorkerSession._bury,
        WorkerSession.ran,
        WorkerSession.begin,
        WorkerSession.take_back,
    )
}
TASKS: Final = 4


class House:
    """One worker, and what has been seen of its tasks."""

    def __init__(self) -> None:
        self.worker, self.place = new_worker(slots=1)
        self.session: WorkerSession = self.worker._session
        self.worker._data.flush = lambda: True  # type: ignore[method-assign]  # what is said stays to be seen
        self.number = 0
        self.round()  # from now on the function is known

    def keys(self) -> list[AttemptKey]:
        """Of the tasks of this round."""
        first = self.number - TASKS + 1
        return [(TaskId(task), Attempt(1)) for task in range(first, first + TASKS)]

    def assign(self) -> None:
        rows = []
        for _ in range(TASKS):
            self.number += 1
            rows.append(row(self.number))
        self.worker.hear(to_worker.Assign(1, rows))

    def round(self, *acts: tuple[int, Callable[[], None]]) -> bool:
        """Assign and run; what comes at which instruction, in this order. Whether the first of them came."""
        streak_bodies.RAN.clear()
        self.assign()
        left = list(acts)
        count = -1

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            if frame.f_code not in TRACED:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and left:
                count += 1
                if count == left[0][0]:
                    sys.settrace(None)
                    left.pop(0)[1]()
                    sys.settrace(trace)
            return trace

        while self.worker.main.streak.rows:
            if left:
                sys.settrace(trace)
            try:
                self.worker.main.run_in_a_row()
            finally:
                sys.settrace(None)
        return len(left) < len(acts)

    def settle(self) -> dict[AttemptKey, EndedRow]:
        """What was told of this round, looked over; then all is taken, and forgotten."""
        worker, session, keys = self.worker, self.session, self.keys()
        ends: dict[AttemptKey, EndedRow] = {}
        for message in worker._data.outbox:
            if isinstance(message, from_worker.Ended):
                for row in message.rows:
                    key = (row.task_id, row.attempt)
                    assert key not in ends, f"{key} has ended twice"
                    ends[key] = row
        ran = Counter(streak_bodies.RAN)
        assert not ran or max(ran.values()) == 1, f"begun twice: {ran}"
        for key in keys:
            phase = self.place.phase(*key)
            if key in ends:
                never = ends[key].evidence == "NEVER_RAN"
                assert ends[key].outcome in ("completed", "cancelled"), ends[key].text
                if key in session.held:  # the broker has not taken it
                    assert never is (phase is Phase.FREE), (key, ends[key], phase)
                assert not (never and ran[key[0]]), f"{key} ran, and is said never to have"
                assert never or ran[key[0]] or ends[key].outcome == "cancelled"
            else:
                assert not ran[key[0]], f"{key} ran, and its end was not told"
                assert phase is Phase.FREE
        for message in worker._control_link.outbox:
            if isinstance(message, from_worker.StopSeen):
                for seen in message.rows:
                    end = ends[(TaskId(seen.task_id), Attempt(seen.attempt))]
                    never = end.evidence == "NEVER_RAN"
                    assert never is (seen.state == "never-began"), (seen, end)
        session.check()
        assert worker.main.streak.current is None
        assert not worker.main.streak.over
        assert not session.running
        assert not session.handed
        assert not worker.attempts
        worker._data.outbox.clear()
        worker._control_link.outbox.clear()
        worker.hear(to_worker.EndedTaken(list(ends)))
        assert len(self.place._free) == ENTRIES
        return ends


def stop(house: House, which: int) -> Callable[[], None]:
    """Somebody stops one of the tasks."""

    def intrude() -> None:
        task = house.number - TASKS + 1 + which
        order = to_worker.StopOrder(task, 1, house.number, "r")
        house.worker.hear(to_worker.Stop(1, [order]))

    return intrude


def go_through(house: House, intrude: Callable[[], None], after: Callable[[], None]) -> int:
    """All moments, one after the other."""
    at = 0
    while house.round((at, intrude)):
        after()
        at += 1
    after()
    return at


def stops(house: House) -> int:
    """Of each of the tasks, at each moment."""

    def all_ended() -> None:
        assert len(house.settle()) == TASKS

    return sum(go_through(house, stop(house, which), all_ended) for which in range(TASKS))


def leases(house: House, *, seen: bool = True) -> int:
    """The lease is half over, which another thread sees at once, or only the main thread; and later it is back."""
    ran: list[int] = []

    def intrude() -> None:
        house.place.words[LEASE_TURNS] += 1
        if seen:
            house.worker.look_at_lease()
        ran[:] = [len(streak_bodies.RAN)]

    def after() -> None:
        assert not ran or len(streak_bodies.RAN) <= ran[0] + 1, "only what had passed may begin"
        ran.clear()
        house.worker.look_at_lease()
        house.settle()
        if house.place.lease_turns % 2:
            before = len(streak_bodies.RAN)
            house.worker.main.run_in_a_row()
            assert len(streak_bodies.RAN) == before, "begun while the lease is half over"
            house.place.words[LEASE_TURNS] += 1
            house.worker.look_at_lease()
            while house.worker.main.streak.rows:
                house.worker.main.run_in_a_row()
            assert len(set(streak_bodies.RAN)) == len(streak_bodies.RAN)
        house.worker._data.outbox.clear()
        house.worker.hear(to_worker.EndedTaken(list(house.session.held)))
        assert not house.session.received

    return go_through(house, intrude, after)


def anew(session: WorkerSession, now: float) -> list[Any]:
    """All that waits is taken back, and handed over anew in the same moment."""
    return [*session.take_back(), *session._hand(now)]


def withdrawals(house: House) -> int:
    """At each moment."""

    def after() -> None:
        assert len(house.settle()) == TASKS

    return go_through(house, lambda: house.worker.say(anew), after)


def twice(house: House) -> int:
    """As `withdrawals`, and a little later somebody has the lock once more."""
    chance = random.Random(1)
    at, looked = 0, True
    while looked:
        for _ in range(3):
            acts = (
                (at, lambda: house.worker.say(anew)),
                (at + chance.randrange(1, 150), lambda: house.worker.say(nothing_new)),
            )
            looked = house.round(*acts)
            assert len(house.settle()) == TASKS
        at += 1
    return 3 * at


def forgets(house: House) -> int:
    """As `withdrawals`, and in the same moment the broker takes what has ended: its entries are free."""

    def intrude() -> None:
        house.worker.say(anew)
        house.worker.hear(to_worker.EndedTaken(list(house.session.held)))

    def after() -> None:
        assert len(house.settle()) == TASKS

    return go_through(house, intrude, after)


def exits(house: House) -> int:
    """The worker is to end: nothing may begin any more."""
    ran: list[int] = []

    def intrude() -> None:
        house.worker.hear(to_worker.Exit(1))
        ran[:] = [len(streak_bodies.RAN)]

    def after() -> None:
        house.settle()
        assert len(streak_bodies.RAN) <= ran[0] + 1 if ran else True
        # As if it had not happened, for the next moment.
        house.worker.quitting = None
        house.session.exiting_since = None
        house.session.received.clear()
        ran.clear()

    return go_through(house, intrude, after)


def looks(house: House) -> int:
    """Time passes: the session asks what has begun; what waits is given back, and taken back."""

    def intrude() -> None:
        house.worker.say(WorkerSession.tick)
        given = dict.fromkeys(
            (*key, row.assign_number) for key, row in house.session.received.items()
        )
        house.worker.say(lambda session, now: session.give_back(now + 1.0))
        assert not given or house.session.given_back.keys() == given.keys()

    def after() -> None:
        ends = house.settle()
        back = [row[:2] for row in house.session.given_back]
        assert sorted([*ends, *back]) == house.keys()
        house.worker.hear(to_worker.GivenBackTaken(list(house.session.given_back)))

    return go_through(house, intrude, after)


def elsewhere(house: House) -> int:
    """Another thread ends what the main thread has announced, for it had left something behind."""

    def intrude() -> None:
        attempt = house.worker.main.streak.current
        if attempt is not None:
            over, answers = list(house.worker.main.streak.over), list[bool]()
            thread = threading.Thread(
                target=lambda: answers.append(house.worker.main.ends(attempt, NOTHING))
            )
            thread.start()
            thread.join()
            assert answers == [False]
            assert (house.worker.main.streak.current, house.worker.main.streak.over) == (
                attempt,
                over,
            )

    def after() -> None:
        assert len(house.settle()) == TASKS

    return go_through(house, intrude, after)


def threads(house: House) -> int:
    """Somebody stops one of the tasks, and is held up in the midst of it."""
    lock = Lock()
    house.worker._lock = lock  # type: ignore[assignment]  # as one
    tracing.untraced = lambda call, *args: call(
        *args
    )  # the other thread is held by its trace function
    chance = random.Random(1)
    pairs = [(chance.randrange(1400), chance.randrange(400)) for _ in range(3000)]
    for number, (ours, theirs) in enumerate(pairs):
        held, go_on = threading.Event(), threading.Event()
        act = stop(house, number % TASKS)

        def other(
            act: Any = act, theirs: int = theirs, held: Any = held, go_on: Any = go_on
        ) -> None:
            left = theirs

            def trace(frame: FrameType, event: str, argument: Any) -> Any:
                nonlocal left
                if frame.f_code not in LOCKED:
                    return None
                frame.f_trace_opcodes = True
                if event == "opcode":
                    left -= 1
                    if left == 0:
                        held.set()
                        go_on.wait()
                return trace

            sys.settrace(trace)
            act()
            sys.settrace(None)
            held.set()

        thread = threading.Thread(target=other)

        def intrude(thread: Any = thread, held: Any = held) -> None:
            thread.start()
            held.wait()

        lock.on_wait = go_on.set
        if house.round((ours, intrude)):
            go_on.set()
            thread.join()
            while house.worker.main.streak.rows:
                house.worker.main.run_in_a_row()
        assert len(house.settle()) == TASKS
    return len(pairs)


INTRUSIONS: Final = {
    "threads": threads,
    "stop": stops,
    "lease": leases,
    "unseen lease": lambda house: leases(house, seen=False),
    "withdraw": withdrawals,
    "withdraw and look": twice,
    "withdraw and forget": forgets,
    "exit": exits,
    "look": looks,
    "elsewhere": elsewhere,
}

if __name__ == "__main__":
    house = House()
    house.settle()
    sys.stdout.write(f"{INTRUSIONS[sys.argv[1]](house)}\n")
    sys.stdout.flush()
    os._exit(0)
