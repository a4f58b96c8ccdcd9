"""A worker process: the real session machine, and a model of what runs in it.

An attempt loads, begins, may associate itself, spawn and stop others; it ends by itself, or looks now and then
and ends when it is asked, or does not look and must be forced; it may leave something behind and linger, or
take its whole process with it. What it really does, the judge is told; what the broker learns goes its way.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

from quiesce.broker.peers import Channel
from quiesce.registry.ids import Attempt as AttemptNumber, AttemptKey, TaskId
from quiesce.registry.rows import AssignRow
from quiesce.registry.states import Outcome
from quiesce.testing.simulator.attempts import SHORT, Attempt, Place
from quiesce.testing.simulator.nested import NestedClient
from quiesce.testing.simulator.network import Link
from quiesce.testing.simulator.process import Process
from quiesce.workers.lease import half_over
from quiesce.workers.worker_effects import (
    AskToStop,
    Control,
    Data,
    Effects,
    ForceAttempt,
    Forget,
    Hand,
    Identity,
    Limit,
    Quit,
    Ran,
    Settle,
    Withdraw,
)
from quiesce.workers.worker_session import WorkerSession

if TYPE_CHECKING:
    from quiesce.testing.simulator.host import Supervisor


class Worker(Process):
    """One worker process, started by its supervisor in a place of the table."""

    kind = "worker"

    def __init__(self, supervisor: "Supervisor", serial: int, place: Place) -> None:
        super().__init__(supervisor.world, supervisor.host, supervisor.clock)
        pool = supervisor.pool
        self.supervisor = supervisor
        self.serial = serial
        self.runtime: str = pool.runtime
        self.table = place
        self.table_lease = pool
        self.judge = self.world.judge
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.client: NestedClient | None = None
        #: With one slot: what the main thread is to take in a row; what it has begun last; and what it has begun
        #: and ended of which the session was not told.
        self.rows: deque[AssignRow] = deque()
        self.current: Attempt | None = None
        self.over: list[Ran] = []
        self._takes = False
        self._slots = pool.slots
        self._turns = 0
        self._lost: set[str] = set()
        self.session: WorkerSession = WorkerSession(
            Identity(self.runtime, supervisor.id, serial, self.pid, self.host, pool.slots)
        )
        place.pid, place.worker = self.pid, self
        self.engine.after(0.01 + 0.05 * self.engine.random.random(), self.start)

    def start(self) -> None:
        """Its interpreter is there."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.start)
            return
        network = self.world.network
        self.control = Link(network, self, "control", self.host)
        self.data = Link(network, self, "data", self.host)
        self.links = [self.control, self.data]
        self.do(self.session.start(self.clock.read()))

    # --- the session ------------------------------------------------------------------------------

    def caught_up(self) -> WorkerSession:
        """The session, once it knows what the main thread has begun and ended by itself."""
        current, over = self.current, self.over
        self.over = []
        for ran in over:
            self.attempts.pop(ran.key, None)
        if over:
            self.do(self.session.ran(over, self.clock.read()))
        if current is not None and current.key in self.session.handed:
            self.do(self.session.begin(current.key, current.begun_at))
        return self.session

    def hear(self, channel: Channel, message: Any) -> None:
        """A message of the broker."""
        if not self.alive:
            return
        if self.engine.trace is not None:
            self.engine.note(f"{self} hears {message!r:.300}")
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        self.do(self.caught_up().receive(message, self.clock.read()))

    def lost(self, channel: Channel) -> None:
        """As the control thread hears it of its monitors."""
        if self.alive:
            self._lost.add(channel)
            self.do(self.caught_up().connection_lost(self.clock.read()))

    def back(self, channel: Channel) -> None:
        """Likewise."""
        if channel in self._lost:
            self._lost.discard(channel)
            if not self._lost:
                self.do(self.caught_up().connected(self.clock.read()))

    def tick(self) -> None:
        """The session's time."""
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        self.do(self.caught_up().tick(self.clock.read()))

    def look_at_lease(self) -> None:
        """It reads in the table how the lease of its pool stands."""
        if not self.alive or not self.links:
            return
        if self.frozen:
            self.defer(self.look_at_lease)
            return
        while self._turns < self.table_lease.turns:
            self._turns += 1
            now = self.clock.read()
            if self._turns % 2:
                reason = half_over(self.table_lease.lease)
                self.do(self.caught_up().lease_half_over(reason, now))
            else:
                self.do(self.caught_up().lease_is_back(now))

    def terminate(self) -> None:
        """SIGTERM of its supervisor."""
        if not self.alive:
            return
        if self.frozen or not self.links:
            self.defer(self.terminate)
            return
        self.do(self.caught_up().exit_asking("the pool is going", self.clock.read()))

    def do(self, effects: Effects) -> None:
        """What the session wants done."""
        for effect in effects:
            kind = type(effect)
            if kind is Data:
                self.data.send(effect.message)  # type: ignore[union-attr]  # narrowed by kind
            elif kind is Control:
                self.control.send(effect.message)  # type: ignore[union-attr]  # narrowed by kind
            else:
                self._do(effect)
                if not self.alive:
                    return
        due = self.session.due()
        if due is not None:
            self.plan_tick(due)

    def _do(self, effect: Any) -> None:
        match effect:
            case Hand(rows) if self._slots == 1:
                self.rows.extend(rows)
                self._take_soon()
            case Hand(rows):
                for row in rows:
                    attempt = self.attempts[(row.task_id, row.attempt)] = Attempt(self, row)
                    self.engine.after(0.0005 * self.engine.random.random(), self.load, attempt)
            case Forget(keys):
                for key in keys:
                    self.table.phases.pop(key, None)
            case Withdraw(keys):
                for key in keys:
                    self.attempts.pop(key, None)
                    self.table.phases.pop(key, None)
                self.rows = deque(row for row in self.rows if row[1:3] not in keys)
            case AskToStop(task_id, number):
                found = self.attempts.get((task_id, number))
                if found is not None:
                    self.ask(found)
            case ForceAttempt(task_id, number):
                found = self.attempts.get((task_id, number))
                if found is not None:
                    self.force(found)
            case Settle():
                self._settled(effect)
            case Limit():
                self.table.ready = True
            case Quit(status, _):
                self.die(status, orderly=True)

    # --- the main thread of a worker of one slot --------------------------------------------------

    def _take_soon(self) -> None:
        if not self._takes:
            self._takes = True
            self.engine.after(0.0001 * self.engine.random.random(), self.take)

    def take(self) -> None:
        """The next one: by itself, if its function is known."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.take)
            return
        self._takes = False
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        if not self.rows:
            self.caught_up()
            return
        attempt = Attempt(self, self.rows.popleft())
        self.attempts[attempt.key] = attempt
        random = self.engine.random.random
        if random() < 0.2:
            self.load(attempt)
            return
        self.current = attempt
        attempt.begun_at = self.clock.read()
        self.table.phases[attempt.key] = "begun"
        self.judge.begins(attempt)
        attempt.in_body = True
        if attempt.row.function == SHORT and random() < 0.998:
            outcome = Outcome.COMPLETED if random() < 0.9 else Outcome.FAILED
            self.engine.after(0.0001 * random(), self.close, attempt, outcome)
        else:
            self.world.bodies.begin(attempt)

    def _finish_in_row(self, attempt: Attempt, outcome: Outcome) -> None:
        """Nobody needs to be told at once."""
        times = attempt.begun_at, self.clock.read()
        self.over.append(Ran(attempt.key, *times, outcome, "", b""))
        self.current = None
        self._take_soon()

    # --- the gate ---------------------------------------------------------------------------------

    def load(self, attempt: Attempt) -> None:
        """A thread has taken it up: it begins, if it was not stopped before."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.load, attempt)
            return
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        if self.attempts.get(attempt.key) is not attempt or attempt.key not in self.session.handed:
            return
        self.table.phases[attempt.key] = "begun"
        self.judge.begins(attempt)
        chance = self.engine.random.random()
        if chance < 0.4:
            # Its function is known: there is nothing to load.
            self.begin_body(attempt)
            return
        now = self.clock.read()
        self.do(self.caught_up().load(attempt.key, now))
        if chance < 0.8 or self._slots == 1:
            self.begin_body(attempt)
        elif chance < 0.9:
            # Its function takes its time to load.
            self.engine.after(self.engine.random.choice((0.01, 0.2, 1.5)), self.begin_body, attempt)
        else:
            self._wait_for_loop(attempt)

    def _wait_for_loop(self, attempt: Attempt) -> None:
        """A coroutine is loaded: until the loop comes to it, it has not begun."""
        asked = attempt.key in self.session.asked
        self.do(self.caught_up().put_off(attempt.key))
        if attempt.key in self.session.handed:
            self.table.phases.pop(attempt.key, None)
            self.judge.is_put_off(attempt)
        if asked:
            self.close(attempt, Outcome.CANCELLED)
            return
        self.engine.after(self.engine.random.choice((0.0001, 0.002, 0.03)), self._on_loop, attempt)

    def _on_loop(self, attempt: Attempt) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.defer(self._on_loop, attempt)
            return
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        if self.attempts.get(attempt.key) is not attempt:
            return
        if attempt.key in self.session.handed:
            self.table.phases[attempt.key] = "begun"
            self.judge.begins(attempt)
        self.begin_body(attempt)

    def begin_body(self, attempt: Attempt) -> None:
        """The first instruction of the function."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.begin_body, attempt)
            return
        if self.attempts.get(attempt.key) is not attempt:
            return
        self.do(self.caught_up().begin(attempt.key, self.clock.read()))
        if self.is_dead():
            return
        attempt.in_body = True
        if attempt.asked:
            self.close(attempt, Outcome.CANCELLED)
            return
        self.world.bodies.begin(attempt)

    # --- being asked ------------------------------------------------------------------------------

    def ask(self, attempt: Attempt) -> None:
        """It is asked, by message or by the flag: it sees that when it looks."""
        attempt.asked = True
        if attempt.reacting or not attempt.in_body or attempt.deaf or attempt.over is not None:
            return
        attempt.reacting = True
        random = self.engine.random
        patience = 0.0005 if random.random() < 0.9 else 0.3
        self.engine.after(patience * random.random(), self.react, attempt)

    def is_dead(self) -> bool:
        """Asked anew: what was done just before may have ended it."""
        return not self.alive

    def flag(self, keys: list[tuple[int, int]]) -> None:
        """The supervisor has set flags in the table."""
        for task_id, number in keys:
            key = (TaskId(task_id), AttemptNumber(number))
            attempt = self.attempts.get(key)
            if attempt is not None and self.table.phases.get(key) == "begun":
                self.ask(attempt)

    def react(self, attempt: Attempt) -> None:
        """It looks, and ends, now or soon."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.react, attempt)
            return
        attempt.reacting = False
        if self.attempts.get(attempt.key) is not attempt or attempt.over is not None:
            return
        self.do(self.caught_up().observed(attempt.key, self.clock.read()))
        self.world.bodies.react(attempt)

    def force(self, attempt: Attempt) -> None:
        """CancelledError, an interrupt: the deaf need it more than once, some of them never end by it."""
        attempt.forced += 1
        attempt.asked = True
        if not attempt.in_body:
            return
        if attempt.over is not None:
            self.engine.after(0.001, self.finish, attempt)  # what it left behind is killed
        elif attempt.forced >= attempt.deaf:
            self.engine.after(0.001, self.close, attempt, Outcome.CANCELLED)

    # --- its end ----------------------------------------------------------------------------------

    def close(self, attempt: Attempt, outcome: Outcome) -> None:
        """The body has ended. It may have left something behind."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.close, attempt, outcome)
            return
        if self.attempts.get(attempt.key) is not attempt or attempt.over is not None:
            return
        attempt.over = outcome
        random = self.engine.random.random()
        if random < 0.02:
            self.caught_up()
            self.current = None
            self.engine.after(0.25, self.linger, attempt)
            self.engine.after(random * 100, self.finish, attempt)
        else:
            self.finish(attempt)

    def linger(self, attempt: Attempt) -> None:
        """What it waits for is told."""
        if self.alive and not self.frozen and self.attempts.get(attempt.key) is attempt:
            self.do(self.caught_up().linger(attempt.key, "a thread"))

    def finish(self, attempt: Attempt) -> None:
        """All that it began has ended; its nested spawns must be answered."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.finish, attempt)
            return
        outcome = attempt.over
        if outcome is None or self.attempts.get(attempt.key) is not attempt:
            return
        if attempt.unanswered:
            return  # the last answer brings us here again
        if self.table_lease.turns != self._turns:
            self.look_at_lease()
        self.table.phases[attempt.key] = outcome.value
        self.judge.ends(attempt, outcome.value)
        if attempt is self.current and not attempt.asked:
            self._finish_in_row(attempt, outcome)
            return
        session = self.caught_up()
        if attempt is self.current:
            self.current = None
        del self.attempts[attempt.key]
        self.do(session.ended(attempt.key, outcome, "", b"", self.clock.read()))

    def _settled(self, effect: Settle) -> None:
        for attempt in self.attempts.values():
            if attempt.request == effect.request:
                attempt.request = 0
                self.world.bodies.associated(attempt)
                return

    def running(self, task_id: int, number: int) -> bool:
        """Whether the table says that it has begun and not ended."""
        return self.table.phases.get((TaskId(task_id), AttemptNumber(number))) == "begun"

    def find(self, task_id: int, number: int) -> Attempt | None:
        """An attempt that was handed over."""
        return self.attempts.get((TaskId(task_id), AttemptNumber(number)))

    def nested(self) -> NestedClient:
        """The client of its tasks, made for the first that asks."""
        if self.client is None:
            self.client = NestedClient(self)
        return self.client

    def freeze(self) -> None:
        """With the client that lives in it."""
        super().freeze()
        if self.client is not None:
            self.client.freeze()

    def resume(self) -> None:
        """Likewise."""
        super().resume()
        if self.client is not None and self.alive:
            self.client.resume()

    def die(self, status: int, *, orderly: bool = False) -> None:
        """The process ends; its supervisor will reap it."""
        if not self.alive:
            return
        self.judge.process_dies(self.attempts.values())
        if self.client is not None:
            self.client.end(status)
        self.end(status, orderly=orderly)
        self.supervisor.lost_worker(self)

    def what_is_left(self) -> list[str]:
        """Ends that the broker has not taken, attempts that it has given up on."""
        session = self.session
        left = [f"{self} holds {key}" for key in session.held]
        left += [
            f"{self} has {key}" for key in (*session.received, *session.handed, *session.running)
        ]
        return left
