"""A host: its `quiesce up`, the pools that this runs, and their supervisors; on one of them, the broker."""

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from quiesce.broker.peers import Channel
from quiesce.protocol import from_supervisor
from quiesce.testing.simulator.attempts import Place
from quiesce.testing.simulator.broker import Broker
from quiesce.testing.simulator.disk import Disk
from quiesce.testing.simulator.network import Link
from quiesce.testing.simulator.process import Clock, Process
from quiesce.testing.simulator.worker import Worker
from quiesce.workers.lease import ArmLease, AskForLease, LeaseIsBack
from quiesce.workers.supervisor_effects import (
    AskToEnd,
    Effects,
    FreePlace,
    Identity,
    KillAll,
    KillFor,
    Quit,
    Send,
    SetFlags,
    StartWorker,
)
from quiesce.workers.supervisor_session import SupervisorSession

if TYPE_CHECKING:
    from quiesce.testing.simulator.world import World


class Pool:
    """One pool of a host: the table that outlives its supervisors, and the account of the last one."""

    def __init__(self, host: "Host", runtime: str, processes: int, slots: int) -> None:
        self.host = host
        self.runtime = runtime
        self.processes = processes
        self.slots = slots
        self.places = [Place() for _ in range(2 * processes)]
        self.supervisor: Supervisor | None = None
        self.account: from_supervisor.Predecessor | None = None
        #: As in the table's header.
        self.turns = 0
        self.lease = 0.0
        self.armed_until = 0.0

    def start(self) -> None:
        """A supervisor, with the account of the last one."""
        if not self.host.alive or self.supervisor is not None:
            return
        for place in self.places:
            place.assign(0)
        self.turns, self.lease, self.armed_until = 0, 0.0, 0.0
        self.supervisor = Supervisor(self)

    def supervisor_died(self, supervisor: "Supervisor") -> None:
        """It is reaped once its workers are: the kernel kills them with it."""
        if self.supervisor is not supervisor or not self.host.alive:
            return
        boottime = self.host.clock.read()
        fenced = supervisor.status == -9 and 0 < self.armed_until <= boottime
        self.host.world.engine.after(0.03, self._cleared, supervisor, fenced)

    def _cleared(self, supervisor: "Supervisor", fenced: bool) -> None:
        if self.supervisor is not supervisor or not self.host.alive:
            return
        if any(place.worker is not None and place.worker.alive for place in self.places):
            self.host.world.engine.after(0.02, self._cleared, supervisor, fenced)
            return
        self.account = from_supervisor.Predecessor(
            supervisor.id,
            supervisor.pid,
            supervisor.status,
            fenced,
            [_exit_row(place) for place in self.places if place.serial],
        )
        self.supervisor = None
        engine = self.host.world.engine
        engine.after(0.05 + 0.1 * engine.random.random(), self.start)

    def forget(self) -> None:
        """`up` and all that it knew is gone."""
        self.supervisor = None
        self.account = None


def _exit_row(place: Place) -> from_supervisor.WorkerExitedRow:
    worker = place.worker
    status = -9 if worker is None else worker.status
    attempts = [from_supervisor.AttemptPhase(*key, phase) for key, phase in place.phases.items()]
    return from_supervisor.WorkerExitedRow(place.serial, place.pid, status, True, attempts)


class Supervisor(Process):
    """The real session, and the kernel's timer."""

    kind = "supervisor"

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.host.world, pool.host.name, pool.host.clock)
        self.pool = pool
        self.id = self.engine.random.getrandbits(64).to_bytes(8, "big")
        self.workers: dict[int, Worker] = {}
        self.session = SupervisorSession(
            Identity(
                self.id,
                pool.runtime,
                self.pid,
                self.host,
                pool.host.boot_id,
                pool.processes,
                pool.slots,
                len(pool.places),
                pool.host.run,
                pool.account,
            )
        )
        self._was_lost = False
        self._timer = inf
        self.engine.after(0.02 * self.engine.random.random(), self.start)

    def start(self) -> None:
        """Its interpreter is there."""
        if not self.alive:
            return
        if self.frozen:
            self.defer(self.start)
            return
        self.control = Link(self.world.network, self, "control", self.host)
        self.links = [self.control]
        self.do(self.session.start(self.clock.read()))

    # --- the session ------------------------------------------------------------------------------

    def hear(self, channel: Channel, message: Any) -> None:
        """A message of the broker."""
        if self.alive:
            if self.engine.trace is not None:
                self.engine.note(f"{self} hears {message!r:.300}")
            self.do(self.session.receive(message, self.clock.read()))

    def lost(self, channel: Channel) -> None:
        """As its monitor says."""
        if self.alive:
            self._was_lost = True
            self.do(self.session.connection_lost(self.clock.read()))

    def back(self, channel: Channel) -> None:
        """Likewise."""
        if self._was_lost:
            self._was_lost = False
            self.do(self.session.connected(self.clock.read()))

    def tick(self) -> None:
        """The inbox first, then time."""
        connection = self.control.connection
        if connection is not None:
            connection.pump_down()
        if self.alive:
            self.do(self.session.tick(self.clock.read()))

    def do(self, effects: Effects) -> None:
        """What the session wants done."""
        for effect in effects:
            self._do(effect)
            if not self.alive:
                return
        self.plan_tick(self.session.due())

    def _do(self, effect: Any) -> None:
        match effect:
            case Send(message):
                self.control.send(message)
            case SetFlags(place, keys):
                worker = self.pool.places[place].worker
                if worker is not None and worker.alive:
                    worker.flag(keys)
            case StartWorker(place, serial):
                self.pool.places[place].assign(serial)
                self.workers[serial] = Worker(self, serial, self.pool.places[place])
            case KillFor():
                self._kill_for(effect)
            case FreePlace(place):
                self.pool.places[place].assign(0)
            case ArmLease(until, lease):
                self.pool.lease, self.pool.armed_until = lease, until
                self._arm(until)
            case AskForLease():
                self._turn_lease(1)
            case LeaseIsBack():
                self._turn_lease(0)
            case AskToEnd():
                for worker in list(self.workers.values()):
                    worker.terminate()
            case KillAll():
                for worker in list(self.workers.values()):
                    worker.die(-9)
            case Quit(status, _):
                self.die(status, orderly=True)

    def _kill_for(self, order: KillFor) -> None:
        worker = self.workers.get(order.serial)
        if worker is None or not worker.alive:
            return
        if worker.running(order.task_id, order.attempt) and not any(
            worker.running(task_id, attempt) for task_id, attempt in order.spared
        ):
            self.engine.counts["workers killed by force"] += 1
            worker.die(-9)

    def _turn_lease(self, odd: int) -> None:
        if self.pool.turns % 2 != odd:
            self.pool.turns += 1
            self.engine.counts["leases half over" if odd else "leases back"] += 1
            for worker in self.workers.values():
                if odd:
                    worker.flag(list[tuple[int, int]](worker.attempts))
                after = self.pool.lease / 12 * self.engine.random.random()
                self.engine.after(after, worker.look_at_lease)

    # --- the kernel -------------------------------------------------------------------------------

    def _arm(self, until: float) -> None:
        """It fires whatever state the process is in."""
        was, self._timer = self._timer, self.clock.moment(until)
        if was == inf:
            self.engine.at(self._timer, self._fire)

    def _fire(self) -> None:
        if not self.alive:
            return
        if self.engine.now < self._timer:
            self.engine.at(self._timer, self._fire)  # it has been moved since
            return
        self.engine.counts["supervisors ended by their lease"] += 1
        delay = self.world.plan.kill_delay * self.engine.random.choice((0.01, 0.3, 0.49))
        self.engine.after(delay, self.die, -9, delay)

    # --- workers ----------------------------------------------------------------------------------

    def lost_worker(self, worker: Worker) -> None:
        """One has died; it is reaped when this process runs."""
        if self.alive:
            self.engine.after(0.002 * self.engine.random.random(), self._reap, worker)

    def _reap(self, worker: Worker) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.defer(self._reap, worker)
            return
        del self.workers[worker.serial]
        place = worker.table
        self.do(
            self.session.worker_died(worker.serial, worker.status, place.ready, self.clock.read())
        )
        # What its tasks had started is hunted.
        hunt = self.engine.random.choice((0.0001, 0.001, 0.05))
        self.engine.after(hunt, self._bury, worker)

    def _bury(self, worker: Worker) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.defer(self._bury, worker)
            return
        row = _exit_row(worker.table)
        self.do(self.session.worker_gone(worker.serial, row, self.clock.read()))

    def die(self, status: int, within: float = 0.01, *, orderly: bool = False) -> None:
        """It is gone, and soon its workers are."""
        if not self.alive:
            return
        self.end(status, orderly=orderly)
        for worker in self.workers.values():
            self.engine.after(within * self.engine.random.random(), worker.die, -9)
        if status == 0:
            self.pool.host.pool_ended(self.pool)
        else:
            self.pool.supervisor_died(self)


class Host:
    """A machine with its `quiesce up` (here: of pools alone)."""

    def __init__(self, world: "World", name: str, pools: list[tuple[str, int, int]]) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.clock = Clock(world)
        self.boot_id = world.new_name()
        self.run = ""
        self.pools = [Pool(self, *pool) for pool in pools]

    def start(self) -> None:
        """`quiesce up`."""
        if self.alive:
            return
        self.alive = True
        self.run = self.world.new_name()
        for pool in self.pools:
            pool.start()

    def pool_ended(self, pool: Pool) -> None:
        """A supervisor has ended in order: its work is done, until somebody starts the pool again."""
        if pool.supervisor is not None:
            pool.supervisor = None
            pool.account = None
            self.world.engine.after(0.5, pool.start)

    def die(self, *, machine: bool) -> None:
        """`up` is gone, and all that it started; or the whole machine, at once, to boot anew."""
        if not self.alive:
            return
        self.alive = False
        engine = self.world.engine
        for pool in self.pools:
            supervisor = pool.supervisor
            if supervisor is not None:
                workers = list(supervisor.workers.values())
                supervisor.end(-9)
                for worker in workers:
                    if machine:
                        worker.die(-9)
                    else:
                        engine.after(0.01 * engine.random.random(), worker.die, -9)
            pool.forget()
        if machine:
            self.boot_id = self.world.new_name()
            self.clock = Clock(self.world)
        engine.after(0.2 + engine.random.random(), self.start)


class BrokerHost(Host):
    """The one that runs the broker, too, and keeps a list of runs."""

    def __init__(self, world: "World", name: str, pools: list[tuple[str, int, int]]) -> None:
        super().__init__(world, name, pools)
        self.disk = Disk(world.engine, world.plan.durability)
        self.broker: Broker | None = None
        #: Runs of which no broker knows yet that they are over.
        self.ledger: list[str] = []
        self.swept: tuple[str, ...] = ()

    def start(self) -> None:
        """All that is left of earlier runs is dead by now."""
        if self.alive:
            return
        self.swept = tuple(self.ledger)
        super().start()
        self.ledger.append(self.run)
        self.start_broker()

    def start_broker(self) -> None:
        """The next one."""
        if self.alive and self.broker is None:
            settings = replace(self.world.settings, run=self.run, swept=self.swept)
            self.broker = Broker(self, settings)

    def broker_is_ready(self) -> None:
        """It listens: what it was told of earlier runs is written down."""
        assert self.broker is not None
        self.ledger = [run for run in self.ledger if run not in self.swept]
        self.world.network.listen(self.broker)

    def broker_ended(self, status: int) -> None:
        """Its process is gone; another follows, or, after a stop of the system, another `up`."""
        broker = self.broker
        if broker is None:
            return
        broker.end()
        self.broker = None
        self.world.network.fall_silent()
        if self.world.plan.durability == "none":
            self.disk.lose_all()
            self.world.judge.lost_all()
        engine = self.world.engine
        engine.counts["broker restarts"] += 1
        if engine.trace is not None:
            engine.note(f"the broker ends with {status}")
        if status == 0:
            self.die(machine=False)
        else:
            engine.after(0.02 + 0.2 * engine.random.random(), self.start_broker)

    def die(self, *, machine: bool) -> None:
        """With the broker."""
        if not self.alive:
            return
        broker, self.broker = self.broker, None
        if broker is not None:
            broker.end()
            self.world.network.fall_silent()
        if self.world.plan.durability == "none":
            self.disk.lose_all()
            self.world.judge.lost_all()
        elif machine:
            self.world.judge.lost(self.disk.lose())
        super().die(machine=machine)
