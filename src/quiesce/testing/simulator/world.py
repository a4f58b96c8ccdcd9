"""A whole cluster under a seed: built, kept busy, healed, and looked at."""

from dataclasses import dataclass, field
from typing import Final, TextIO

from quiesce.broker.settings import BrokerSettings
from quiesce.registry.leases import safe_bound
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.testing.simulator.acts import ActiveClient
from quiesce.testing.simulator.bodies import Bodies
from quiesce.testing.simulator.engine import Engine, Violation
from quiesce.testing.simulator.faults import WEIGHTS, Faults
from quiesce.testing.simulator.host import BrokerHost, Host
from quiesce.testing.simulator.judge import Judge
from quiesce.testing.simulator.network import Network
from quiesce.testing.simulator.process import Clock, Process

KINDS: Final = ("scan", "flush", "gc")
#: The wall clock at the beginning.
_WALL: Final = 1.7e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is simulated. Times in seconds.

    `pace`: between two acts of a client. `trouble`: between two faults; `weights`: see `faults`. `drift`,
    `kill_delay`: rho and K of `registry.leases`; the lease bound is the least that is safe. `check_every`: between
    two looks at the registry's invariants.
    """

    durability: str = "crash"
    clients: int = 24
    tenants: int = 128
    pace: float = 0.05
    trouble: float = 0.003
    weights: dict[str, float] = field(default_factory=lambda: WEIGHTS)
    lease: float = 3.0
    drift: float = 0.03
    kill_delay: float = 0.3
    check_every: float = 20.0
    pools: dict[str, list[tuple[str, int, int]]] = field(
        default_factory=lambda: {
            "alpha": [("many", 4, 8), ("solo", 6, 1), ("brief", 2, 1)],
            "beta": [("many", 3, 8), ("apart", 4, 4)],
            "gamma": [("solo", 6, 1), ("apart", 4, 4), ("brief", 2, 1)],
        }
    )


class World:
    """Everything."""

    def __init__(self, seed: int, plan: Plan | None = None, trace: TextIO | None = None) -> None:
        self.plan = plan = plan or Plan()
        self.seed = seed
        self.engine = Engine(seed, trace)
        self.judge = Judge(self.engine)
        self.network = Network(self.engine)
        self.bodies = Bodies(self)
        self.settings = BrokerSettings(
            address="simulated",
            control="",
            data="",
            state="",
            lock_path="",
            runtimes=(
                RuntimeLimits(name="many", slots=8, kill_neighbours=True, max_queue=2000),
                RuntimeLimits(name="solo", slots=1, max_queue=2000),
                RuntimeLimits(name="apart", slots=4, max_queue=2000),
                RuntimeLimits(name="brief", slots=1, max_queue=2000),
            ),
            kinds=(
                KindLimits(name="scan", stop_grace=0.2),
                KindLimits(name="flush", stop_grace=0.5, max_running_per_tenant=2),
                KindLimits(name="gc", stop_grace=1.0, max_running=12),
            ),
            stop_timeout=5.0,
            lease=plan.lease,
            lease_bound=safe_bound(plan.lease, plan.drift, plan.kill_delay) + 1e-6,
            clock_drift=plan.drift,
            kill_delay=plan.kill_delay,
            durability=plan.durability,
            session_timeout=12.0,
            history=20,
        )
        #: All living processes but brokers.
        self.peers: list[Process] = []
        self.calm = False
        self.wall_jumps = 0.0
        self._pids = 100
        self._tenants = [f"t{number}" for number in range(plan.tenants)]
        first, *others = plan.pools.items()
        self.broker_host = BrokerHost(self, *first)
        self.hosts: list[Host] = [self.broker_host, *(Host(self, *each) for each in others)]
        self.faults = Faults(self)
        self.clients: list[ActiveClient] = []
        for host in self.hosts:
            host.start()
        for _ in range(plan.clients):
            self.add_client()
        self.engine.after(plan.check_every, self._check)

    # --- for its parts ----------------------------------------------------------------------------

    def wall(self) -> float:
        """The wall clock, which may be set."""
        return _WALL + self.engine.now + self.wall_jumps

    def next_pid(self) -> int:
        """Names a process."""
        self._pids += 1
        return self._pids

    def new_name(self) -> str:
        """A boot, a run."""
        return f"{self.engine.random.getrandbits(64):016x}"

    def enter(self, process: Process) -> None:
        """It lives."""
        process.place = len(self.peers)
        self.peers.append(process)

    def leave(self, process: Process) -> None:
        """It does not any more."""
        last = self.peers.pop()
        if last is not process:
            self.peers[process.place] = last
            last.place = process.place

    def tenant(self) -> str:
        """Any tenant."""
        return self._tenants[int(len(self._tenants) * self.engine.random.random())]

    def kind(self) -> str:
        """Any kind."""
        return KINDS[int(3 * self.engine.random.random())]

    def runtime(self) -> str:
        """Any runtime; the one with many slots more often."""
        chance = self.engine.random.random()
        return "many" if chance < 0.5 else ("solo" if chance < 0.7 else "apart")

    def add_client(self) -> None:
        """A program of a user is started, on one of the hosts."""
        host = self.hosts[int(len(self.hosts) * self.engine.random.random())]
        self.clients.append(ActiveClient(self, host.name, Clock(self)))

    def client_died(self, client: ActiveClient) -> None:
        """Another one is started some time."""
        self.clients.remove(client)
        self.engine.after(0.2, self.add_client)

    # --- its life ---------------------------------------------------------------------------------

    def _check(self) -> None:
        broker = self.broker_host.broker
        if broker is not None and broker.alive:
            broker.core.registry.check()
            self.engine.counts["checks of invariants"] += 1
        self.engine.after(self.plan.check_every, self._check)

    def run(self, seconds: float) -> None:
        """Busy, with faults, for so long."""
        self.engine.run(self.engine.now + seconds)

    def heal(self, patience: float = 120.0) -> None:
        """Faults end, clients only wait, all tasks are stopped: then everything must come to its end."""
        self.calm = self.bodies.calm = True
        self.faults.heal()
        deadline = self.engine.now + patience
        stopped_at = 0.0
        while True:
            left = self.what_is_left()
            if not left:
                break
            if self.engine.now > deadline:
                raise Violation(f"{patience:g} s after the last fault: {'; '.join(left[:10])}")
            if self.engine.now - stopped_at > 10.0:
                stopped_at = self.engine.now
                self._stop_all()
            self.engine.run(self.engine.now + 0.5)
        broker = self.broker_host.broker
        assert broker is not None
        broker.core.registry.check()

    def _stop_all(self) -> None:
        from quiesce.registry.scope import Scope

        client = self.clients[0]
        client.reopen(Scope())
        client.stop(Scope(), grace=1.0)

    def what_is_left(self) -> list[str]:
        """What has not come to its end."""
        left: list[str] = []
        broker = self.broker_host.broker
        if broker is None or not broker.listening:
            return ["there is no broker"]
        state = broker.core.registry.state
        left += [f"task {task.id} is {task.state}" for task in state.tasks.values()]
        left += [f"stop {stop.id} of [{stop.scope}] is open" for stop in state.open_stops.values()]
        if not broker.journal.idle:
            left.append("the journal is busy")
        for here in self.judge.running.values():
            left += [f"{attempt} runs in {attempt.worker}" for attempt in here]
        for peer in self.peers:
            left += peer.what_is_left()
        return left
