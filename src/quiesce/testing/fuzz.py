"""A broker among hostile peers, without sockets, disk or clock: whatever they say, all must stay in order.

    python -m quiesce.testing.fuzz MINUTES [SEED]

drives the broker's core for so long: honest peers, and among them hostile ones that say anything to anybody in
any order; see `fuzz_values`. After each message the registry's own rules are checked, that everything the broker
says can be read by whom it is said to, and that what goes into the journal comes out of it. A failure is told
with the seed of its round, which repeats it: `Mess(random.Random(seed)).run(steps)`.
"""

import math
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from quiesce.broker.core import Core
from quiesce.broker.journal import Journal, MemoryJournal, Recovered
from quiesce.broker.peers import Channel, Peer, PeerKey, Peers
from quiesce.broker.settings import BrokerSettings
from quiesce.errors import ProtocolError
from quiesce.protocol import (
    PROTOCOL_VERSION,
    from_client,
    from_supervisor,
    from_worker,
    to_client,
    to_supervisor,
    to_worker,
)
from quiesce.protocol.codec import Decoder, Message, encode
from quiesce.protocol.fact_codec import FORMAT, BlobRef, FactPacker, FactReader
from quiesce.protocol.frames import Frame, Payload
from quiesce.registry.effects import Effect
from quiesce.registry.events import Instant
from quiesce.registry.facts import Fact
from quiesce.registry.ids import SessionId
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.machine import Registry
from quiesce.registry.rows import EndedRow, SpawnRow
from quiesce.testing.fuzz_values import KINDS, MESSAGES, RUNTIMES, World, frames, message

_HEARERS: Final = {
    "session": Decoder(to_client.MESSAGES),
    "worker": Decoder(to_worker.MESSAGES),
    "supervisor": Decoder(to_supervisor.MESSAGES),
}
_ANYBODY: Final = Decoder((*to_client.MESSAGES, *to_worker.MESSAGES, *to_supervisor.MESSAGES))


class Ears(Peers):
    """Everybody at the other ends: checks that each can read what it hears. Some take nothing for a while."""

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]  # nothing below reaches a socket
        self.deaf: set[PeerKey] = set()
        self.unreadable: list[str] = []
        self.heard: list[tuple[PeerKey, Message]] = []

    def send_to_route(self, channel: Channel, route: bytes, message: Any) -> None:
        """Somebody who has not said hello."""
        self._read(_ANYBODY, encode(message))

    def _try(self, peer: Peer, channel: Channel, frames: list[bytes]) -> bool:
        if peer.routes[channel] is None:
            self.dropped += 1
            return True
        if peer.key in self.deaf:
            return False
        heard = self._read(_HEARERS[peer.key[0]], frames)
        if heard is not None:
            self.heard.append((peer.key, heard))
        return True

    def _read(self, decoder: Decoder, frames: list[bytes]) -> Message | None:
        try:
            return decoder.decode(frames)
        except ProtocolError as error:
            self.unreadable.append(str(error))
            return None


class Packing(MemoryJournal):
    """Keeps its facts as bytes, as the journal on disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[tuple[bytes, int]] = []
        self._blobs: list[Payload] = []
        self._packer = FactPacker(self._place)

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""
        if facts:
            self.turns.append((b"".join(map(self._packer.fact, facts)), len(facts)))
        super().append(facts, effects)

    def read(self) -> list[Fact]:
        """All of them."""
        reader = FactReader(lambda ref: self._blobs[ref.id])
        return [fact for body, count in self.turns for fact in reader.facts(FORMAT, body, count)]

    def _place(self, payload: Payload) -> BlobRef:
        self._blobs.append(payload)
        return BlobRef(len(self._blobs) - 1, 1, len(payload), bytes(16))


def settings() -> BrokerSettings:
    """Of a small system whose limits are soon reached."""
    return BrokerSettings(
        address="ipc:///nowhere",
        control="ipc:///nowhere/control",
        data="ipc:///nowhere/data",
        state="/nowhere",
        lock_path="/nowhere/lock",
        runtimes=(
            RuntimeLimits(name="pool", slots=3, max_queue=20, kill_neighbours=True),
            RuntimeLimits(name="solo", slots=1, max_queue=20),
        ),
        kinds=(
            KindLimits(name="gc", stop_grace=2.0, max_running=3),
            KindLimits(name="flush", stop_grace=math.inf, max_running_per_tenant=1),
        ),
        shutdown_order=("flush", "*"),
        payload_limit=10_000,
        history=10,
    )


NOTHING: Final = Recovered(snapshot=None, facts=(), last_epoch=0, complete=True, words="")


class Fault(Exception):  # noqa: N818 - what a fuzzer finds, not what a caller handles
    """The broker did what it must not, and what led to it."""


class Mess:
    """A broker's core, honest peers that do something useful, and hostile ones."""

    def __init__(
        self,
        chance: random.Random,
        *,
        hostile: float = 0.6,
        journal: Journal | None = None,
        recovered: Recovered = NOTHING,
        epoch: int = 1,
    ) -> None:
        self.chance = chance
        self.hostile = hostile
        self.tick = 1000.0
        #: By how much time may pass in one step: leases and sessions may expire.
        self.jumps: tuple[float, ...] = (0.01, 0.6, 3.0, 20.0, 40.0)
        self.ears = Ears()
        self.journal = Packing() if journal is None else journal
        self.settings = settings()
        self.complaints: list[str] = []
        self.core = Core(
            self.settings,
            self.ears,
            self.journal,
            recovered,
            epoch,
            "boot",
            now=lambda: Instant(self.tick, 1e9 + self.tick),
            complain=self.complaints.append,
        )
        self.world = World(self.core.registry.state)
        self.supervisors = {name: f"honest-{name}".encode()[:8] for name in RUNTIMES}
        self.session = b"honest session.."
        self.spawned = self.requests = 0
        self._greet()

    def _greet(self) -> None:
        """The honest ones are there, and known."""
        for name, supervisor in self.supervisors.items():
            self._hear("control", supervisor, self._supervisor_hello(name))
            hello = from_worker.Hello(
                PROTOCOL_VERSION, name, supervisor, 1, 42, "here", 3, 0, 0, 0, [], []
            )
            self._hear("control", b"w" + supervisor, hello)
            self._attach(name)
        for channel in ("control", "data"):
            hello_ = from_client.Hello(
                PROTOCOL_VERSION, self.session, channel, 7, "here", 0, resumed=False
            )
            self._hear(channel, b"client", hello_)

    def _supervisor_hello(self, name: str) -> from_supervisor.Hello:
        supervisor = self.supervisors[name]
        return from_supervisor.Hello(
            *(PROTOCOL_VERSION, supervisor, name, 41, "here", "boot", 1, 3, 0, 0, "", 1.0, True),
            None,
        )

    def _attach(self, name: str) -> None:
        known = self.core.registry.state.supervisors.get(self.supervisors[name])
        incarnation = known.workers.get(1) if known is not None else None
        if incarnation is not None:
            attach = from_worker.Attach(incarnation, self.core.registry.state.epoch)
            self._hear("data", b"w" + self.supervisors[name], attach)

    # --- steps ------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """So many steps, and then what was journalled is played again. Fault: whatever is wrong."""
        for _ in range(steps):
            self.step()
        self.replay()

    def step(self) -> None:
        """Somebody says something, or time passes; then all must be in order."""
        roll = self.chance.random()
        if roll < self.hostile:
            self._attack()
        elif roll < 0.95:
            self._work()
        else:
            self.tick += self.chance.choice(self.jumps)
            self.core.pass_time()
            self.core.leave()
        self.check()

    def _attack(self) -> None:
        chance = self.chance
        kind = chance.choice(MESSAGES)
        made = message(chance, kind, self.world)
        channel: Channel = chance.choice(("control", "data"))
        route = chance.choice(self._routes(channel)) if chance.random() < 0.8 else self._stranger()
        try:
            good = encode(made)
        except ProtocolError:
            return
        if chance.random() < 0.25:
            good = frames(chance, good)
        if chance.random() < 0.02:
            keys = list(self.ears.by_key)
            self.ears.deaf = set(chance.sample(keys, min(2, len(keys))))
        self._take(channel, route, good)

    def _routes(self, channel: Channel) -> list[bytes]:
        """Known ones, so that messages come in wrong roles."""
        routes = [peer.routes[channel] for peer in list(self.ears.by_key.values())[:30]]
        return [route for route in routes if route is not None] or [b"nobody"]

    def _stranger(self) -> bytes:
        return bytes([0, *self.chance.randbytes(4)])

    def _work(self) -> None:
        """An honest peer goes on, as well as the others let it."""
        chance = self.chance
        what = chance.randrange(5)
        name = chance.choice(RUNTIMES)
        if what == 0:
            self._honest_spawn(name)
        elif what == 1:
            self._honest_worker(name)
        elif what == 2:
            self.requests += 1
            scope = (chance.choice((None, *KINDS)), chance.choice((None, "tenant")), None, None)
            stop = from_client.Stop(
                self.requests,
                scope,
                None,
                None,
                chance.choice((None, 5.0)),
                False,
                False,
                "",
                0,
                None,
            )
            self._hear("control", b"client", stop)
        elif what == 3:
            self._hear("control", self.supervisors[name], self._supervisor_hello(name))
            self._attach(name)
        else:
            kind = chance.choice((from_client.ListTasks, from_client.GetStatistics))
            self._hear("control", b"client", message(chance, kind, World()))

    def make_busy(self) -> None:
        """Tasks that are queued, assigned and running, and one that has ended."""
        for number in range(10):
            self._honest_spawn(RUNTIMES[number % 2])
        for name in RUNTIMES:
            state = self.core.registry.state
            for worker in list(state.pool[name].values()):
                rows: list[tuple[int, int, float]] = [
                    (task, state.tasks[task].attempt, 0.1) for task in list(worker.tasks)[:2]
                ]
                self._hear("data", b"w" + worker.supervisor, from_worker.Begun(rows))
        self._honest_worker("pool")
        self.check()

    def _honest_spawn(self, name: str) -> None:
        session = self.core.registry.state.sessions.get(SessionId(self.session))
        self.spawned = 0 if session is None else session.spawned
        row = message(self.chance, SpawnRow, World())
        row = row._replace(  # type: ignore[attr-defined]  # it is a SpawnRow
            number=self.spawned + 1,
            runtime=name,
            kind=self.chance.choice(KINDS),
            timeout=self.chance.choice((None, 5.0)),
            parent=None,
            retries=self.chance.choice((0, 2)),
            restart="never",
        )
        self._hear("data", b"client", from_client.Spawn(0, [row]))

    def _honest_worker(self, name: str) -> None:
        state = self.core.registry.state
        known = state.supervisors.get(self.supervisors[name])
        worker = state.workers.get(known.workers.get(1, 0)) if known is not None else None  # type: ignore[call-overload]  # 0 is nobody
        if worker is None or not worker.tasks:
            return
        task = state.tasks[self.chance.choice(list(worker.tasks))]
        if self.chance.random() < 0.5:
            said: Message = from_worker.Begun([(task.id, task.attempt, 0.1)])
        else:
            how = self.chance.choice(("completed", "failed", "cancelled"))
            row = EndedRow(
                *(task.id, task.attempt, how, "RETURNED", 0.2, 0.1, None, None, "", b"r")
            )
            said = from_worker.Ended([row])
        self._hear("data", b"w" + self.supervisors[name], said)

    def _hear(self, channel: Channel, route: bytes, said: Message) -> None:
        self._take(channel, route, encode(said))

    def _take(self, channel: Channel, route: bytes, said: Sequence[bytes]) -> None:
        self.core.incoming.take(channel, [route, *said])
        self.core.leave()

    # --- what must hold ---------------------------------------------------------------------------

    def check(self) -> None:
        """Fault, unless everything is in order."""
        if self.ears.unreadable:
            raise Fault(f"it said what nobody can read: {self.ears.unreadable}")
        if self.core.incoming.failed:
            raise Fault(f"a handler failed: {self.complaints[-1]}")
        self.core.registry.check()
        deadline = self.core.due()
        if deadline is not None and not -math.inf < deadline < math.inf:
            raise Fault(f"something is due at {deadline}")

    def replay(self) -> None:
        """Fault, unless what was journalled makes the same registry."""
        configuration = {
            "runtimes": self.settings.runtimes,
            "kinds": self.settings.kinds,
            "history": self.settings.history,
            "payload_limit": self.settings.payload_limit,
            "shutdown_order": self.settings.shutdown_order,
            "lease": self.settings.lease,
            "lease_bound": self.settings.lease_bound,
        }
        again = Registry(**configuration)  # type: ignore[arg-type]  # as it takes them
        assert isinstance(self.journal, Packing)
        for fact in self.journal.read():
            again.apply(fact)
        made, was = (
            plain(each.freeze(volatile=False, payloads=True))
            for each in (again, self.core.registry)
        )
        if made != was:
            raise Fault("what was journalled makes another registry")


def plain(frozen: Any) -> Any:
    """With payloads as bytes, however they travelled."""
    if isinstance(frozen, Frame):
        return frozen.data
    return tuple(map(plain, frozen)) if isinstance(frozen, tuple) else frozen


def main(minutes: float, seed: int | None = None, *, steps: int = 300) -> int:
    """Make one mess after the other for so long; 1 once one has failed, else 0. Prints what it did."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    deadline = time.monotonic() + 60 * minutes
    rounds = 0
    sys.stdout.write(f"fuzz: seed {seed}, for {minutes:g} minutes\n")
    while not rounds or time.monotonic() < deadline:
        each = seed + rounds
        mess = Mess(random.Random(each), hostile=random.Random(each).choice((0.3, 0.6, 0.9)))
        try:
            mess.run(steps)
        except Exception as error:  # whatever it is, it is what was looked for
            sys.stdout.write(
                f"fuzz: FAILED in the round of seed {each}: {type(error).__name__}: {error}\n"
            )
            return 1
        rounds += 1
    sys.stdout.write(f"fuzz: {rounds} rounds of {steps} steps, all in order\n")
    return 0


if __name__ == "__main__":
    number = int(sys.argv[2]) if len(sys.argv) > 2 else None
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0, number))
