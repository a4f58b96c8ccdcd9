"""The worker's side of its conversation with the broker: a pure machine. Events in, effects out.

What an attempt goes through here:

    Assign -> received -> handed -> running -> held -> (EndedTaken) gone
                  |          |
                  +----------+-- Stop -> held (NEVER_RAN)      Stop before its Assign -> tombstone -> held

Whoever was handed an attempt asks before anything of it begins: the loop may be blocked by a neighbour for
long, and a Stop does not wait for it. Loading a function runs user code, so it counts as running; a coroutine
that is loaded and left nothing behind is handed over again, to the loop, as if it had not begun. What needs no
loading, since its function is known and no coroutine's, begins at once. What was handed can be
withdrawn, and handed over anew: whoever has the old one learns that when it asks.

A worker of one slot is handed all that waits at once while what it runs is short: it runs them in a row, and tells
us afterwards, all together, which of them `ran`. As soon as we know of one that runs, the others are withdrawn: so
they can be given back while it lasts.

A worker without registration (at its start, after a lost connection, when the broker does not know it) keeps
what it has to say and says it once it is registered. Nothing that has begun depends on the broker being there.
No clock: `now` is an argument, in seconds on any clock that never goes back.
"""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from quiesce.protocol import PROTOCOL_VERSION, from_worker, to_worker
from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.states import Outcome
from quiesce.workers.worker_asks import WorkerAsks
from quiesce.workers.worker_effects import (
    RESEND,
    RESEND_SLOWEST,
    Asked,
    AskToStop,
    Control,
    Data,
    Effects,
    ForceAttempt,
    Forget,
    Hand,
    Limit,
    Look,
    Quit,
    Ran,
    Withdraw,
)
from quiesce.workers.worker_ends import WorkerEnds
from quiesce.workers.worker_gives_back import GIVE_BACK, WorkerGivesBack
from quiesce.workers.worker_lease import WorkerLease
from quiesce.workers.worker_waits import WorkerWaits

#: Seconds after which the broker is told that an attempt has begun: of a body, and of what loads.
BEGUN_AFTER: Final = 0.002
LOADING: Final = 1.0
#: Seconds that an exiting worker waits for the broker to take its last ends.
LAST_ENDS: Final = 5.0


class WorkerSession(WorkerAsks, WorkerEnds, WorkerWaits, WorkerGivesBack, WorkerLease):
    """One worker process. Every method takes the moment and gives what is to be done, in order."""

    # --- the connection ---------------------------------------------------------------------------

    def start(self, now: float) -> Effects:
        """The sockets are there: say Hello."""
        return self._hello(now)

    def connection_lost(self, now: float) -> Effects:
        """One of the two connections broke; `connected` follows when it is back."""
        self.registered = False
        return []

    def connected(self, now: float) -> Effects:
        """A connection that was lost is back. What was on its way on the old one may be gone."""
        self.registered = False
        self.hello_interval = RESEND
        return self._hello(now)

    def receive(self, message: Any, now: float) -> Effects:
        """A message of the broker, from either endpoint."""
        epoch = getattr(message, "epoch", self.epoch)
        if epoch < self.epoch:
            return []
        self.epoch = epoch
        match message:
            case to_worker.Registered():
                return self._on_registered(message, now)
            case to_worker.Refused():
                return [Quit(1, f"the broker refused this worker: {message.text}")]
            case to_worker.HelloWanted():
                return self._on_hello_wanted(now)
            case to_worker.Assign():
                return self._on_assign(message, now)
            case to_worker.EndedTaken():
                return self._on_ended_taken(message, now)
            case to_worker.GivenBackTaken(rows):
                for row in rows:
                    self.given_back.pop(row, None)
                return []
            case to_worker.Stop():
                return self._on_stop(message, now)
            case to_worker.Force():
                return self._on_force(message, now)
            case to_worker.Associated():
                return self._on_associated(message)
            case to_worker.StacksWanted():
                return [Look(message.request, list(message.rows))]
            case to_worker.Exit():
                return self.exit(now)
            case _:
                return []

    def _hello(self, now: float) -> Effects:
        self.hello_at = now + self.hello_interval
        self.hello_interval = min(2 * self.hello_interval, RESEND_SLOWEST)
        identity = self.identity
        waiting = [key for key in self.untold if key in self.loading]
        begun = [
            *(key for key in self.running if key not in waiting),
            *(key for key, held in self.held.items() if held.begun_at is not None),
        ]
        received = [*waiting, *self.handed, *self.received]
        hello = from_worker.Hello(
            PROTOCOL_VERSION,
            identity.runtime,
            identity.supervisor,
            identity.serial,
            identity.pid,
            identity.host,
            identity.slots,
            self.incarnation,
            self.epoch,
            self.last_assign,
            [(task, attempt) for task, attempt in begun],
            [(task, attempt) for task, attempt in received],
        )
        return [Control(hello)]

    def _on_hello_wanted(self, now: float) -> Effects:
        # Every message that the broker could not place gives one of these; one Hello answers them all.
        if not self.registered and self.hello_at is not None and now < self.hello_at:
            return []
        self.registered = False
        self.hello_interval = RESEND
        return self._hello(now)

    def _on_registered(self, message: to_worker.Registered, now: float) -> Effects:
        if message.incarnation != self.incarnation and self.incarnation:
            # Assignments are numbered anew. None of the old ones can follow the first new one.
            self.last_assign = 0
            self.tombstones = dict.fromkeys(self.tombstones, 1)
        self.incarnation = message.incarnation
        self.registered = True
        self.hello_at, self.hello_interval = None, RESEND
        effects: Effects = [
            Limit(message.payload_limit),
            Data(from_worker.Attach(self.incarnation, self.epoch)),
        ]
        self.untold = {key: None for key in self.untold if key in self.loading}
        effects += self._say_begun([key for key in self.running if key not in self.untold], now)
        effects += self.send_held(now, everything=True)
        effects += self.say_given_back(list(self.given_back))
        effects += [
            Control(from_worker.Lingering(task, attempt, what))
            for (task, attempt), what in self.lingering.items()
        ]
        effects += self.say_waits(self.waiting)
        effects += self.say_extended(self.extending)
        effects += [Control(associate) for associate in self.associating.values()]
        return effects

    # --- assignments and their ends ---------------------------------------------------------------

    def _on_assign(self, message: to_worker.Assign, now: float) -> Effects:
        ended: list[AttemptKey] = []
        passed = self.last_assign
        if not self.received:
            self.flowed_at = now
        for row in message.rows:
            key = (row.task_id, row.attempt)
            if row.assign_number <= passed:
                continue
            self.last_assign = max(self.last_assign, row.assign_number)
            if key in self.tombstones:
                ended.append(key)
            elif not (
                key in self.received
                or key in self.handed
                or key in self.running
                or key in self.held
            ):
                self.received[key] = row
        if self.tombstones:
            self.tombstones = {
                key: number
                for key, number in self.tombstones.items()
                if number > self.last_assign and key not in ended
            }
        for key in ended:
            self.hold_unbegun(key, now)
        return [*self.send_held(now), *self._hand(now)]

    def _hand(self, now: float, *, in_a_row: bool = False) -> Effects:
        """Hand over what the slots allow; `in_a_row`: all that waits, to a slot that is free."""
        if not self.received or self.exiting_since is not None or self.lease_is_over:
            return []
        busy = len(self.handed) + len(self.running)
        free = self.identity.capacity - busy - len(self.held)
        if busy or not (in_a_row and self.identity.slots == 1):
            free = min(free, self.identity.slots - busy)
        if free <= 0:
            return []
        if free >= len(self.received):
            rows, self.received = self.received, {}
        else:
            rows = dict(islice(self.received.items(), free))
            for key in rows:
                del self.received[key]
        self.handed.update(rows)
        self.flowed_at = now
        self.look_at = now + BEGUN_AFTER
        return [Hand(list(rows.values()))]

    def load(self, key: AttemptKey, now: float) -> Effects:
        """A handed attempt begins to load its function."""
        self.loading[key] = self.handed.pop(key)
        return self._has_begun(key, now)

    def put_off(self, key: AttemptKey) -> Effects:
        """A coroutine is loaded and nothing of it runs: it waits for the loop, unless it is asked to stop."""
        if key not in self.asked and self.exiting_since is None:
            self.handed[key] = self.loading.pop(key)
            del self.running[key]
            self.untold.pop(key, None)
        return []

    def begin(self, key: AttemptKey, now: float) -> Effects:
        """The body of a handed or loading attempt begins."""
        self.loading.pop(key, None)
        if self.handed.pop(key, None) is not None:
            return self._has_begun(key, now)
        if key in self.untold:
            self.tell_at = min(self.tell_at, self._tell_by(key))
        return []

    def _has_begun(self, key: AttemptKey, now: float) -> Effects:
        """The broker is told if it lasts: of what has ended by then, its end says enough."""
        self.running[key] = now
        self.untold[key] = None
        self.tell_at = min(self.tell_at, self._tell_by(key))
        if not self.handed or self.identity.slots > 1:
            return []
        self.flowed_at = now
        return self.take_back()  # what was handed in a row with it

    def _tell_by(self, key: AttemptKey) -> float:
        """By when to tell that it has begun. What loads in a worker of many slots may have to wait again."""
        waits = key in self.loading and self.identity.slots > 1
        return self.running[key] + (LOADING if waits else BEGUN_AFTER)

    def _say_begun(self, keys: Iterable[AttemptKey], now: float) -> Effects:
        rows: list[tuple[int, int, float]] = [(*key, now - self.running[key]) for key in keys]
        return [Control(from_worker.Begun(rows))] if rows and self.registered else []

    def _say_slow(self, now: float) -> Effects:
        """Tell of those that have lasted; of the loading ones too, for their own timeout counts."""
        if now < self.tell_at:
            return []
        slow = [key for key in self.untold if now >= self._tell_by(key)]
        for key in slow:
            del self.untold[key]
        self.tell_at = min(map(self._tell_by, self.untold), default=math.inf)
        return self._say_begun(slow, now)

    def ended(
        self, key: AttemptKey, outcome: Outcome, text: str, result: Any, now: float
    ) -> Effects:
        """A running attempt has ended, with all that it began, and its nested spawns are acknowledged. Or one that
        was put off has, since another coroutine has cancelled it while it waited.
        """
        begun_at = self.running.get(key, now)
        told = self.tell_ends([Ran(key, begun_at, now, outcome, text, result)], now)
        return [*told, *self._hand(now), *self._leave(now)]

    def ran(self, ends: list[Ran], now: float) -> Effects:
        """These have ended, in this order, as in `ended`; what waits may follow them in a row."""
        told = self.tell_ends(ends, now)
        return [*told, *self._hand(now, in_a_row=True), *self._leave(now)]

    def _on_ended_taken(self, message: to_worker.EndedTaken, now: float) -> Effects:
        gone: list[AttemptKey] = []
        for key in message.rows:
            held = self.held.pop(key, None)
            if key in self.unsent:
                self.unsent.remove(key)
            if held is not None and held.begun_at is not None:
                gone.append(key)
        forgotten: Effects = [Forget(gone)] if gone else []
        return [*forgotten, *self._hand(now), *self._leave(now)]

    # --- requests to stop -------------------------------------------------------------------------

    def _on_stop(self, message: to_worker.Stop, now: float) -> Effects:
        seen: list[from_worker.StopSeenRow] = []
        effects: Effects = []
        for order in message.rows:
            key = (TaskId(order.task_id), Attempt(order.attempt))
            if key in self.running:
                effects += self._ask(key, order.reason, now)
                # What it has asked for since its pool had asked it to stop the broker does not know.
                effects += self.say_extended([key])
                seen.append(self._seen(key, now))
            elif key in self.held and self.held[key].begun_at is not None:
                seen.append(from_worker.StopSeenRow(*key, "over", 0.0, None))
            else:
                effects += self._bury(key, order.last_assign, now)
                seen.append(from_worker.StopSeenRow(*key, "never-began", 0.0, None))
        acknowledged: Effects = [Control(from_worker.StopSeen(seen))] if seen else []
        return [*effects, *acknowledged, *self.send_held(now), *self._hand(now)]

    def _bury(self, key: AttemptKey, last_assign: int, now: float) -> Effects:
        """Make sure that an attempt which has not begun never does.

        One that is unknown though its assignment has passed was lost on the way (or the broker has its
        end and forgot): no assignment of that number is accepted any more.
        """
        if key in self.held:
            return []
        if self.handed.pop(key, None) is not None:
            self.hold_unbegun(key, now)
            return [Withdraw([key])]
        if self.received.pop(key, None) is None and last_assign > self.last_assign:
            self.tombstones[key] = last_assign
        else:
            self.hold_unbegun(key, now)
        return []

    def _ask(self, key: AttemptKey, reason: str, now: float) -> Effects:
        asked = self.asked.get(key)
        if asked is not None and asked.told:
            return []
        if asked is None:
            asked = Asked(reason, now, None, True)
        elif asked.lease:
            # Another request than the one that it knows: this one is there since now.
            asked = Asked(reason, now, None if asked.observed_at is None else now, True)
        self.asked[key] = asked._replace(reason=reason, told=True)
        return [AskToStop(*key, reason)]

    def _seen(self, key: AttemptKey, now: float) -> from_worker.StopSeenRow:
        asked = self.asked[key]
        observed = None if asked.observed_at is None else now - asked.observed_at
        return from_worker.StopSeenRow(*key, "running", now - asked.delivered_at, observed)

    def observed(self, key: AttemptKey, now: float) -> Effects:
        """The attempt has looked and knows. The flag may have told it before the broker's Stop arrived."""
        if key not in self.running:
            return []
        asked = self.asked.get(key, Asked("", now, None, False))
        if asked.observed_at is not None:
            return []
        self.asked[key] = asked._replace(observed_at=now)
        return [Control(from_worker.StopSeen([self._seen(key, now)]))] if asked.told else []

    def _on_force(self, message: to_worker.Force, now: float) -> Effects:
        key = (TaskId(message.task_id), Attempt(message.attempt))
        if key in self.running:
            asked = self._ask(key, "", now)
            # The acknowledgement also says that this worker hears: it is not frozen.
            seen = Control(from_worker.StopSeen([self._seen(key, now)]))
            return [*asked, ForceAttempt(*key), seen]
        buried: Effects = []
        if key in self.received or key in self.handed:
            buried = self._bury(key, 0, now)
        return [*buried, *self.send_held(now), *self._hand(now)]

    # --- the lease of the pool --------------------------------------------------------------------

    def lease_is_back(self, now: float) -> Effects:
        """What was received may begin. What was asked to stop stays asked."""
        self.lease_is_over = False
        return self._hand(now)

    # --- the end, and time ------------------------------------------------------------------------

    def exit(self, now: float) -> Effects:
        """Take no more work; Quit follows when nothing runs any more. What has not begun never does."""
        forgotten = self.take_back()
        if self.exiting_since is None:
            self.exiting_since = now
        return [*forgotten, *self._leave(now)]

    def exit_asking(self, reason: str, now: float) -> Effects:
        """As `exit`, and ask what runs to stop: the pool goes without the broker's doing."""
        effects: Effects = []
        for key in list(self.running):
            if key not in self.asked or self.asked[key].lease:
                effects += self._ask(key, reason, now)
        return [*effects, *self.exit(now)]

    def _leave(self, now: float) -> Effects:
        if self.exiting_since is None or self.running:
            return []
        last_end = max((held.ended_at for held in self.held.values()), default=self.exiting_since)
        if self.held and now < max(last_end, self.exiting_since) + LAST_ENDS:
            return []
        return [Quit(0, "the pool is going")]

    def tick(self, now: float) -> Effects:
        """What time brings. Call it when `due` has come; more often is harmless."""
        effects: Effects = []
        self.look_at = now + BEGUN_AFTER
        if self.hello_at is not None and now >= self.hello_at:
            effects += self._hello(now)
        effects += [*self._say_slow(now), *self.send_held(now), *self._send_progress(now)]
        effects += self.give_back(now)
        return [*effects, *self._leave(now)]

    def due(self) -> float | None:
        """When `tick` has something to do; None: not before something else happens."""
        times = [] if self.hello_at is None else [self.hello_at]
        if self.untold:
            times.append(self.tell_at)
        if self.handed and self.identity.slots == 1:
            times.append(self.look_at)
        if self.is_stuck():
            times.append(self.flowed_at + GIVE_BACK)
        if self.registered:
            if self.held:
                times.append(self.resend_at)
            if self.progress:
                times.append(self.progress_at)
        if self.exiting_since is not None and self.held and not self.running:
            last_end = max(held.ended_at for held in self.held.values())
            times.append(max(last_end, self.exiting_since) + LAST_ENDS)
        return min(times, default=None)
