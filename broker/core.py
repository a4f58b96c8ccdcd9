"""What a broker does, but for its sockets, clock and disk: the same under real ones and under a simulator's.

Messages come in through `hear`, become events, and the registry's effects become messages to `peers`: those that
must wait for the journal, once it has their facts.
"""

import gc
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from quiesce import __version__
from quiesce.broker import news
from quiesce.broker.admission import Admission
from quiesce.broker.incoming import Incoming
from quiesce.broker.journal import Journal, JournalLimits, Recovered
from quiesce.broker.outgoing import LATER, Outgoing
from quiesce.broker.peers import Channel, PeerKey, Peers
from quiesce.broker.queries import Queries
from quiesce.broker.settings import BrokerSettings
from quiesce.broker.tally import Tally
from quiesce.protocol import to_client
from quiesce.registry import effects, events
from quiesce.registry.events import Instant
from quiesce.registry.facts import SessionClosed
from quiesce.registry.machine import Registry
from quiesce.registry.records import Supervisor
from quiesce.registry.timers import HELD_UP, Due

#: Seconds between two looks at whether nothing is left of a supervisor whose lease is over.
FENCE_LOOK: Final = 0.02
#: Who comes by so many seconds late to what is due listens as long before it judges.
A_MOMENT: Final = 0.05
#: Seconds for which a dead worker's route is kept, so that its last words are heard.
MOURNING: Final = 5.0
#: Seconds after a piece of what takes long, in which who talks to the broker is not held up by the next.
RECESS: Final = 0.0015
#: The same, while what somebody waits for is being written: the journal's thread needs the interpreter.
PATIENCE: Final = 0.005
#: So many pieces, and the collector looks at what they have made. It counts what is made less what is freed: where
#: they free as much, it would come late, and look at 100,000 new objects in one go.
COLLECT_EVERY: Final = 4


def boottime_and_wall() -> Instant:
    """This moment, on the clocks that brokers use."""
    return Instant(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def recover(settings: BrokerSettings, recovered: Recovered) -> Registry:
    """The registry as it was when the journal was last written."""
    limits = JournalLimits()  # as `serve` opens it
    configuration: dict[str, Any] = {
        "runtimes": settings.runtimes,
        "kinds": settings.kinds,
        "shutdown_order": settings.shutdown_order,
        "stop_timeout": settings.stop_timeout,
        "session_timeout": settings.session_timeout,
        "history": settings.history,
        "payload_limit": settings.payload_limit,
        "lease": settings.lease,
        "lease_bound": settings.lease_bound,
        "room": f"{limits.margin >> 20} MiB free on the disk of {settings.state}, beside its reserve of "
        f"{limits.reserve >> 20} MiB",
    }
    if recovered.snapshot is None:
        registry = Registry(**configuration)
    else:
        registry = Registry.thaw(recovered.snapshot, **configuration)
    for fact in recovered.facts:
        registry.apply(fact)
    return registry


class Core:
    """Ties the registry to the journal and to its peers."""

    def __init__(
        self,
        settings: BrokerSettings,
        peers: Peers,
        journal: Journal,
        recovered: Recovered,
        epoch: int,
        boot_id: str,
        *,
        now: Callable[[], Instant] = boottime_and_wall,
        complain: Callable[[str], None] = lambda text: None,
        patient: bool = False,
        is_clear: Callable[[Supervisor], bool] = lambda supervisor: True,
    ) -> None:
        """Begin an epoch.

        Args:
            settings: what this broker is to be.
            peers: whom it speaks to.
            journal: where facts go before their effects leave.
            recovered: what the journal held: the broker goes on from there.
            epoch: of this start, higher than any before.
            boot_id: names this boot of the machine.
            now: its clock.
            complain: told of each malformed message.
            is_clear: whether nothing that can be seen is left of a supervisor whose lease is over; asked again and
                again until it is so.
            patient: let what nobody waits for leave a little later, with something else; and what takes long wait
                a little for whoever talks to the broker.
        """
        self.peers = peers
        self._journal = journal
        self._is_clear = is_clear
        self._now = now
        #: The last look at that clock.
        self._tick = now().tick
        self.registry = recover(settings, recovered)
        self.queries = Queries(
            self.registry,
            peers,
            address=settings.address,
            version=__version__,
            durability=journal.durability,
            say_malformed=complain,
            say_failed=lambda name, error: complain(f"{name} could not be handled: {error!r:.500}"),
        )
        self.queries.counters = self._counters
        self._tally = Tally(self.registry.state)
        self.queries.times = self._tally.plain
        self.admission = Admission(self.registry, peers, self.handle, lambda: now().tick)
        self.incoming = Incoming(
            peers,
            self.queries,
            self.admission,
            self.handle,
            payload_limit=settings.payload_limit,
        )
        self.outgoing = Outgoing(
            peers, payload_limit=settings.payload_limit, patience=LATER if patient else 0.0
        )
        self.outgoing.on_still_waiting = self.queries.stacks.say
        self.incoming.epoch = self.outgoing.epoch = epoch
        #: Something acknowledged before may be missing from the journal, and may still run.
        self._doubtful = not recovered.complete
        #: What is due at the end of a turn, by turns.
        self._chores = deque(
            [
                self._go_on,
                self._care_for_snapshot,
                self.outgoing.pack_long,
                self.queries.go_on_listing,
            ]
        )
        self._patient = patient
        #: Something was decided at the end of the last turn: what follows from it leaves in the next.
        self._follows = False
        #: When the last chore was done; and whether another was put off, since somebody may answer.
        self._worked_at = -math.inf
        self._pieces = 0
        self.talking = False
        self._graves: deque[tuple[float, PeerKey]] = deque()
        #: The broker was held up: until then it listens, and judges nobody's silence.
        self._listens_until: float | None = None
        #: What the driver counts.
        self.more_counters: Callable[[], dict[str, int]] = dict
        self.handle(
            events.EpochBegan(epoch, boot_id, settings.run, settings.swept, recovered.complete)
        )
        if settings.stopping and not self.registry.state.stopping:
            self.handle(events.SystemStopAsked(settings.stopping))

    @property
    def stopped(self) -> bool | None:
        """None while it is to go on; then whether a failure has stopped it."""
        return self.outgoing.stopped

    def hear(self, channel: Channel, route: bytes, message: Any) -> None:
        """One message, decoded, that has arrived by this route."""
        self.incoming.hear(channel, route, message)

    def handle(self, event: events.Event) -> None:
        """One event into the registry; what must not wait for the journal is done at once."""
        now = self._now()
        self._tick = now.tick
        facts, caused = self.registry.handle(event, now)
        patient = []
        for effect in caused:
            if type(effect) in effects.HASTY:
                self.outgoing.carry_out(effect)
            else:
                patient.append(effect)
        if len(patient) < len(caused):
            # Before the journal's thread is woken: in the midst of a send it would take the interpreter from us.
            self.outgoing.flush(now.tick)
        if facts or patient:
            self._journal.append(facts, patient)
        if facts:
            self._tally.take(facts)
            if self.peers.subscribers:
                news.tell(self.peers, facts, now.wall, self.registry.state)
            for fact in facts:
                if type(fact) is SessionClosed:
                    self.peers.forget(("session", fact.session))
        if type(event) is events.UsageSaid:
            self._tally.on_usage(event, now.wall)
        elif isinstance(event, events.WorkerExited):
            worker: PeerKey = ("worker", (event.supervisor, event.row.serial))
            self._graves.append((now.tick + MOURNING, worker))

    def due(self) -> float | None:
        """The tick by which `pass_time` has something to do; None: not before something else happens."""
        deadline, later = self.registry.next_deadline(), self.outgoing.later_at
        if deadline is None:
            return later if later < math.inf else None
        return min(max(deadline, self._listens_until or 0.0), later)

    def pass_time(self) -> None:
        """What time brings. After the inbox: it may hold what is awaited.

        Who finds that something is long overdue has been held up, and so have all who wait in the inbox, perhaps
        still in the kernel's part of it: they are heard first, for a moment.
        """
        tick = self._tick = self._now().tick
        deadline = self.registry.next_deadline()
        if deadline is not None and deadline <= tick:
            late = tick - deadline
            if self._listens_until is None and late > A_MOMENT:
                self._listens_until = tick + (HELD_UP if late > HELD_UP else A_MOMENT)
                if late > HELD_UP:
                    text = f"the broker was held up for over {late:.1f} s"
                    self.outgoing.carry_out(effects.Log("WARNING", text))
            if self._listens_until is None or self._listens_until <= tick:
                self._listens_until = None
                self._hold_leases(tick)
                self.handle(events.Tick())
        self.queries.stacks.expire()
        if tick >= self.admission.sweep_at:
            self.admission.sweep()
        while self._graves and self._graves[0][0] <= tick:
            self.peers.forget(self._graves.popleft()[1])

    def _hold_leases(self, tick: float) -> None:
        """One that is over proves nothing as long as something is left of what it stood for."""
        timers = self.registry.timers
        for supervisor in self.registry.state.supervisors.values():
            due: Due = ("lease", supervisor.id)
            when = timers.when(due)
            over = when is not None and when <= tick and supervisor.armed
            if over and not self._is_clear(supervisor):
                timers.set(due, tick + FENCE_LOOK)

    def leave(self, *, heard: bool = False) -> None:
        """What is safe by now leaves. Then comes a piece of what takes long: nobody waits for this turn any more.

        `heard`: there were messages in this turn.

        Raises:
            JournalFailedError: nothing can be written any more.
        """
        self._follows = False
        ready = (
            self._journal.committed()
        )  # should the disk stall, another thread has turns in here: see `StandIn`
        for effect in ready:
            self.outgoing.carry_out(effect)
        room = self._journal.room()
        changed = room is self.registry.state.full
        if changed:
            self.handle(events.RoomSaid(room))
        if self._doubtful and self.registry.state.certain_at is None:
            self._doubtful = False
            self._journal.vouch()
        self.outgoing.flush(self._tick)
        if self.peers.full:
            self.peers.flush()
        self._follows = self._follows or changed
        self.talking = self._patient and self._is_talking(heard or bool(ready))
        if not self.talking and self._do_a_chore():
            self._follows = True
            self._worked_at = self._now().tick
            self._pieces += 1
            if self._patient and self._pieces % COLLECT_EVERY == 0:
                gc.collect(0)

    def _is_talking(self, now: bool) -> bool:
        rested = self._now().tick - self._worked_at
        return rested < PATIENCE if self._journal.behind else now and rested < RECESS

    def _do_a_chore(self) -> bool:
        """One in each turn, however much there is to do; whether there was any."""
        for _ in range(len(self._chores)):
            self._chores.rotate(-1)
            if self._chores[-1]():
                return True
        return False

    # Each does a piece of what takes long, and says whether there was one to do.

    def _go_on(self) -> bool:
        if not self.outgoing.again:
            return False
        self.handle(events.Continue(self.outgoing.again.popleft()))
        return True

    def _care_for_snapshot(self) -> bool:
        """Freeze some of what is there, until the snapshot can be had at once."""
        ahead = self.registry.ahead
        if self._journal.wants_snapshot():
            if ahead.go_on():
                self._journal.snapshot(self.registry.snapshot())
            return True
        if ahead.begun:
            ahead.take()  # there is no room for it any more
        return False

    @property
    def busy(self) -> bool:
        """Whether there is something to be done in the next turn, whatever else comes."""
        ours = self._follows or self.registry.ahead.begun
        return ours or self.outgoing.busy or self.queries.busy

    def say_goodbye(self) -> None:
        """The system has stopped: the last words to clients."""
        self.outgoing.flush_all()
        for peer in list(self.peers.by_key.values()):
            if peer.key[0] == "session":
                self.peers.send(peer, "control", to_client.Goodbye(self.registry.state.stop_reason))

    def _counters(self) -> dict[str, int]:
        return {
            "malformed_messages": self.incoming.malformed,
            "failed_messages": self.incoming.failed,
            "undeliverable_messages": self.peers.dropped,
            "unreadable_answers": self.peers.unsaid,
            "overfull_peers": self.peers.overfull,
            "refused_sessions": self.admission.refused,
            "dropped_sessions": self.admission.dropped,
            "peers": len(self.peers.by_key),
            **self.more_counters(),
        }
