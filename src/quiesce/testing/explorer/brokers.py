"""The broker as data: its real core (registry, incoming, outgoing) over peers and a journal in memory.

One core is made for each epoch of a process and loaded with whatever state a step begins in. Each step is
remembered by (state, input), since all of it is pure.
"""

import math
from typing import Any, Final, NamedTuple

from quiesce.broker.core import Core
from quiesce.broker.journal import Recovered
from quiesce.broker.outgoing import Outgoing
from quiesce.broker.peers import Channel, Peer, Peers
from quiesce.broker.settings import BrokerSettings
from quiesce.broker.tally import Tally
from quiesce.protocol import to_client, to_supervisor
from quiesce.protocol.runs import as_received
from quiesce.registry import effects, events
from quiesce.registry.effects import Effect
from quiesce.registry.events import Instant
from quiesce.registry.facts import Fact
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.machine import Registry
from quiesce.registry.moving import RegistryFault
from quiesce.registry.scheduling import LEAST
from quiesce.registry.sessions import DOUBTED
from quiesce.registry.timers import Due
from quiesce.testing.explorer.rules import BrokenRule, Judgement, Quiet, judge
from quiesce.testing.explorer.scenario import FUNCTION, PATIENT, RUNTIME, STRICT, Scenario
from quiesce.testing.explorer.store import Memo, Store

CHANNELS: Final[tuple[Channel, Channel]] = ("control", "data")
#: No timer is due by the clock before this; most of them may fire whenever the explorer wants.
FAR: Final = 1e9
PAYLOAD_LIMIT: Final = 1_000_000
#: Timers that are due by the clock, and not before.
CLOCKED: Final = ("lease", "certain")
#: Timers that never fire here: they only log, or are a fault of their own.
ASLEEP: Final = ("word", "session")

#: (actor, channel, message).
Sending = tuple[int, int, int]


class Turn(NamedTuple):
    """What one turn of the registry has decided, and what is to be done once that is safe."""

    facts: tuple[Fact, ...]
    effects: tuple[Effect, ...]
    judgements: tuple[Judgement | Quiet, ...]


class Outcome(NamedTuple):
    """What a step of the broker leads to. `turns`: in the order of their journalling."""

    core: int
    sendings: tuple[Sending, ...]
    turns: tuple[int, ...]


class Durable(NamedTuple):
    """What the journal says: the last task, and the present attempt of each live one."""

    last_task: int
    attempts: dict[int, int]


class MemoryPeers(Peers):
    """Routes name an actor and a channel; what is sent is kept."""

    def __init__(self) -> None:
        nowhere: Any = None
        super().__init__(nowhere, nowhere)
        self.sent: list[tuple[bytes, Any]] = []

    def _encode(self, message: Any, whom: object) -> list[Any]:
        del whom
        return [as_received(message)]

    def _try(self, peer: Peer, channel: Channel, frames: list[Any]) -> bool:
        """As over a socket that is never full."""
        route = peer.routes[channel]
        if route is not None:
            self.sent.append((route, frames[0]))
        return True

    def send_to_route(self, channel: Channel, route: bytes, message: Any) -> None:
        """As over a socket that is never full."""
        del channel
        self.sent.append((route, message))

    def cut(self, route: bytes) -> None:
        """This connection is gone. (Over a real socket the next sending shows that, and is lost either way.)"""
        channel = CHANNELS[route[1]]
        peer = self.at(channel, route)
        if peer is not None:
            self._unroute(peer, channel)

    def freeze(self) -> tuple[Any, ...]:
        """All peers, by their keys."""
        return tuple(
            sorted(
                (peer.key, peer.routes["control"] or b"", peer.routes["data"] or b"", peer.worker)
                for peer in self.by_key.values()
            )
        )

    def load(self, frozen: tuple[Any, ...]) -> None:
        """The inverse."""
        self.sent = []
        self.by_key, self.by_worker = {}, {}
        self._by_route = {"control": {}, "data": {}}
        for key, control, data, worker in frozen:
            peer = self.by_key[key] = Peer(key)
            for channel, route in zip(CHANNELS, (control, data), strict=True):
                if route:
                    peer.routes[channel] = route
                    self._by_route[channel][route] = peer
            if worker:
                self.is_worker(peer, worker)


class Silent(Outgoing):
    """Says nothing in the log: what a broker tells people is no part of what is explored."""

    def carry_out(self, effect: Effect) -> None:
        """As its base, but for words."""
        if not isinstance(effect, (effects.Log, effects.StillWaiting)):
            super().carry_out(effect)


class Uncounted(Tally):
    """Measures nothing: how long things take is no part of what is explored."""

    def take(self, happened: list[Fact]) -> None:
        """As if nothing had happened."""

    def on_usage(self, event: events.UsageSaid, now: float) -> None:
        """As if nothing had been said."""


class Pages:
    """The journal of the core: turns are taken, and committed by a step of the explorer."""

    durability = "crash"

    def __init__(self) -> None:
        self.turns: list[tuple[list[Fact], list[Effect]]] = []

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""
        self.turns.append((facts, effects))

    def committed(self) -> list[Effect]:
        """The explorer hands them out."""
        return []

    @property
    def behind(self) -> bool:
        """Nobody asks here."""
        return False

    def fileno(self) -> int:
        """There is nothing to wait for."""
        return -1

    def clear_wakeup(self) -> None:
        """There is nothing to wait for."""

    def wants_snapshot(self) -> bool:
        """Never: the explorer keeps what the facts have led to."""
        return False

    def snapshot(self, frozen: tuple[Any, ...]) -> None:
        """Never wanted."""

    def room(self) -> bool:
        """Always."""
        return True

    def vouch(self) -> None:
        """Nothing is noted."""

    def close(self) -> None:
        """There is nothing to close."""


class Shell(Core):
    """The real core; what it decides is judged at once, as far as that needs no look at the world."""

    def __init__(
        self, settings: BrokerSettings, recovered: Recovered, epoch: int, clock: float
    ) -> None:
        self.clock = clock
        self.net = MemoryPeers()
        self.pages = Pages()
        self.judgements: list[tuple[Judgement | Quiet, ...]] = []
        super().__init__(settings, self.net, self.pages, recovered, epoch, "boot", now=self._moment)
        self._tally = Uncounted(self.registry.state)

    def _moment(self) -> Instant:
        """The wall clock stands still: it says when things were, and decides nothing."""
        return Instant(self.clock, 0.0)

    def handle(self, event: events.Event) -> None:
        """As the core."""
        if type(self.outgoing) is not Silent:
            epoch = self.outgoing.epoch
            self.outgoing = Silent(self.net, payload_limit=PAYLOAD_LIMIT)
            self.outgoing.epoch = epoch
        attempts = {task.id: int(task.attempt) for task in self.registry.state.tasks.values()}
        count = len(self.pages.turns)
        super().handle(event)
        if len(self.pages.turns) > count:
            self.judgements.append(judge(self.registry.state, attempts, self.pages.turns[-1][0]))


class BrokerMachine:
    """All steps of a broker. States are digests in the store."""

    def __init__(self, scenario: Scenario, store: Store) -> None:
        self._store = store
        self._scenario = scenario
        self._settings = BrokerSettings(
            address="ipc:///nowhere",
            control="",
            data="",
            state="",
            lock_path="",
            runtimes=(
                RuntimeLimits(
                    name=RUNTIME, slots=scenario.slots, kill_neighbours=scenario.kill_neighbours
                ),
            ),
            kinds=(
                KindLimits(name=PATIENT, stop_grace=float("inf")),
                KindLimits(name=STRICT, stop_grace=10.0),
            ),
            history=0,
            lease=scenario.lease,
            lease_bound=scenario.lease_bound,
            run="run",
            payload_limit=PAYLOAD_LIMIT,
        )
        self._configuration: dict[str, Any] = {
            "runtimes": self._settings.runtimes,
            "kinds": self._settings.kinds,
            "stop_timeout": self._settings.stop_timeout,
            "session_timeout": self._settings.session_timeout,
            "history": 0,
            "payload_limit": self._settings.payload_limit,
            "lease": scenario.lease,
            "lease_bound": scenario.lease_bound,
            "alike": scenario.alike,
        }
        self._shell: Shell | None = None
        self.memo = Memo()

    # --- steps ------------------------------------------------------------------------------------

    def start(self, durable: int, clock: int) -> tuple[int, int, tuple[int, ...]]:
        """A broker begins an epoch: its core, what is durable then, and the turns of that."""
        return self.memo(("start", durable, clock), lambda: self._start(durable, clock))  # type: ignore[no-any-return]  # of a memo

    def hear(self, core: int, clock: int, route: bytes, message: int) -> Outcome:
        """One message from one route."""

        def make() -> Outcome:
            shell = self._load(core, clock)
            shell.hear(CHANNELS[route[1]], route, self._store[message])
            return self._save(shell)

        return self.memo((core, clock, route, message), make)  # type: ignore[no-any-return]  # of a memo

    def fire(self, core: int, clock: int, due: Due) -> Outcome:
        """This timer is due now."""

        def make() -> Outcome:
            shell = self._load(core, clock)
            if due[0] == "session":
                session: Any = due[1]
                shell.registry.state.sessions[session].last_heard = DOUBTED
            shell.registry.timers.set(due, float(clock))
            shell.handle(events.Tick())
            return self._save(shell)

        return self.memo((core, clock, due), make)  # type: ignore[no-any-return]  # of a memo

    def leave(self, core: int, clock: int, turn: int) -> Outcome:
        """The journal has this turn: its effects are carried out, and everything collected leaves."""

        def make() -> Outcome:
            shell = self._load(core, clock)
            for effect in self._store[turn].effects:
                shell.outgoing.carry_out(effect)
            return self._save(shell)

        return self.memo((core, clock, turn), make)  # type: ignore[no-any-return]  # of a memo

    def cut(self, core: int, route: bytes) -> int:
        """A connection is gone."""

        def make() -> int:
            registry, peers = self._store[core]
            net = MemoryPeers()
            net.load(peers)
            net.cut(route)
            return self._store.put((registry, net.freeze()))

        return self.memo(("cut", core, route), make)  # type: ignore[no-any-return]  # of a memo

    def commit(self, durable: int, turn: int) -> int:
        """What the journal says with one more turn."""

        def make() -> int:
            registry = Registry.thaw(self._store[durable], **self._configuration)
            for fact in self._store[turn].facts:
                registry.apply(fact)
            return self._store.put(sorted_sessions(registry.freeze(volatile=False, payloads=True)))

        return self.memo(("commit", durable, turn), make)  # type: ignore[no-any-return]  # of a memo

    # --- looks ------------------------------------------------------------------------------------

    def nothing(self) -> int:
        """What is durable before the first epoch."""
        registry = Registry(**self._configuration)
        return self._store.put(registry.freeze(volatile=False, payloads=True))

    def durable(self, durable: int) -> Durable:
        """What can be read off it."""

        def make() -> Durable:
            registry = Registry.thaw(self._store[durable], **self._configuration)
            tasks = registry.state.tasks.values()
            return Durable(
                registry.state.last_task_id, {task.id: int(task.attempt) for task in tasks}
            )

        return self.memo(("durable", durable), make)  # type: ignore[no-any-return]  # of a memo

    def dues(self, core: int) -> tuple[tuple[Due, float], ...]:
        """Its timers, but those that sleep, and when they are due."""

        def make() -> tuple[tuple[Due, float], ...]:
            timers = self._store[core][0][-1][0]
            return tuple((due, tick) for due, tick in timers if due[0] not in ASLEEP)

        return self.memo(("dues", core), make)  # type: ignore[no-any-return]  # of a memo

    def sessions(self, core: int) -> tuple[bytes, ...]:
        """The sessions it knows."""

        def make() -> tuple[bytes, ...]:
            return tuple(sorted(row[0][0] for row in self._store[core][0][6]))

        return self.memo(("sessions", core), make)  # type: ignore[no-any-return]  # of a memo

    def is_open(self, core: int) -> bool:
        """Whether a stop waits."""

        def make() -> bool:
            return bool(self._load(core, 0).registry.state.open_stops)

        return self.memo(("open", core), make)  # type: ignore[no-any-return]  # of a memo

    # --- parts ------------------------------------------------------------------------------------

    def _start(self, durable: int, clock: int) -> tuple[int, int, tuple[int, ...]]:
        snapshot = self._store[durable]
        recovered = Recovered(
            snapshot=snapshot,
            facts=[],
            last_epoch=snapshot[0][0],
            complete=True,
            words="",
        )
        self._shell = Shell(self._settings, recovered, snapshot[0][0] + 1, float(clock))
        outcome = self._save(self._shell)
        core = outcome.core
        for turn in outcome.turns:
            # Nobody hears of an epoch before its beginning is durable.
            durable = self.commit(durable, turn)
            core = self.leave(core, clock, turn).core
        return core, durable, outcome.turns

    def _load(self, core: int, clock: int) -> Shell:
        frozen, peers = self._store[core]
        if self._shell is None:
            fresh = Recovered(snapshot=None, facts=[], last_epoch=0, complete=True, words="")
            self._shell = Shell(self._settings, fresh, 1, 0.0)
        shell = self._shell
        shell.clock = float(clock)
        shell.registry = Registry.thaw(frozen, **self._configuration)
        shell.queries._registry = shell.registry
        shell.incoming.epoch = shell.outgoing.epoch = shell.registry.state.epoch
        shell.net.load(peers)
        shell.pages.turns = []
        shell.judgements = []
        return shell

    def _save(self, shell: Shell) -> Outcome:
        """The end of a turn of the loop, after which everything collected leaves.

        A prompt journal has its facts by then, and with it what waits for them leaves, too.
        """
        turns = []
        for (decided, waiting), judgements in zip(shell.pages.turns, shell.judgements, strict=True):
            later = tuple(waiting)
            if not self._scenario.slow_disk:
                later = ()
                for effect in waiting:
                    shell.outgoing.carry_out(effect)
            if decided or later:
                turns.append(self._store.put(Turn(tuple(decided), later, judgements)))
        shell.outgoing.flush(math.inf)
        shell._graves.clear()
        registry = shell.registry
        if shell.outgoing.again:
            raise BrokenRule("an explored stop has one slice", str(shell.outgoing.again))
        for session in registry.state.sessions.values():
            session.last_heard = 0.0
        for worker in registry.state.workers.values():
            if self._scenario.quick and not worker.last_assign:
                worker.pace, worker.quick = LEAST, (FUNCTION,)
        for due in [due for due, _ in registry.timers.items() if due[0] not in CLOCKED]:
            registry.timers.set(due, FAR)
        try:
            registry.check()
        except RegistryFault as fault:
            raise BrokenRule("the registry's invariants hold", str(fault)) from fault
        frozen = sorted_sessions(registry.freeze())
        core = self._store.put((frozen, shell.net.freeze()))
        return Outcome(core, tuple(self._sendings(shell.net.sent)), tuple(turns))

    def _sendings(self, sent: list[tuple[bytes, Any]]) -> list[Sending]:
        found: list[Sending] = []
        for route, message in sent:
            kind = type(message)
            if kind is to_client.Alive or (kind is to_supervisor.Flag and not self._scenario.flags):
                continue  # nobody does anything about it
            found.append((route[0], route[1], self._store.put(message)))
        return found


def sorted_sessions(registry: tuple[Any, ...]) -> tuple[Any, ...]:
    """A frozen registry. In which order its sessions were opened makes no difference."""
    return (*registry[:6], tuple(sorted(registry[6], key=_name)), *registry[7:])


def _name(session: tuple[Any, ...]) -> bytes:
    name: bytes = session[0][0]
    return name
