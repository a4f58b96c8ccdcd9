"""What goes wrong: drawn by chance, each kind with its weight; and all of it mended in the end."""

from typing import TYPE_CHECKING, Final

from quiesce.testing.simulator.acts import ActiveClient
from quiesce.testing.simulator.host import Supervisor
from quiesce.testing.simulator.network import Connection
from quiesce.testing.simulator.process import Process
from quiesce.testing.simulator.worker import Worker

if TYPE_CHECKING:
    from quiesce.testing.simulator.world import World

#: How often each comes, compared with the others.
WEIGHTS: Final = {
    "delay": 500.0,
    "break": 200.0,
    "freeze": 120.0,
    "kill_worker": 40.0,
    "kill_client": 2.0,
    "kill_supervisor": 1.5,
    "part": 1.0,
    "freeze_long": 0.06,
    "kill_broker": 0.3,
    "freeze_broker": 0.6,
    "stall_disk": 0.6,
    "fill_disk": 0.3,
    "fail_disk": 0.1,
    "set_wall_clock": 0.5,
    "kill_up": 0.1,
    "crash_machine": 0.06,
    "stop_system": 0.02,
}


class Faults:
    """See the module."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._engine = world.engine
        self._calm = False
        self._calls = [getattr(self, f"_{name}") for name in WEIGHTS]
        total = sum(WEIGHTS.values())
        self._sums: list[float] = []
        reached = 0.0
        for weight in WEIGHTS.values():
            reached += weight / total
            self._sums.append(reached)
        self._engine.after(1.0, self._next)

    def _next(self) -> None:
        if self._calm:
            return
        random = self._engine.random.random
        chance = random()
        for reached, call in zip(self._sums, self._calls, strict=True):
            if chance < reached:
                call()
                break
        self._engine.after(2 * self._world.plan.trouble * random(), self._next)

    def heal(self) -> None:
        """All is well from now on."""
        self._calm = True
        world = self._world
        for process in list(world.peers):
            process.resume()
        broker = world.broker_host.broker
        if broker is not None:
            broker.resume()
        for host in list(world.network.cut):
            world.network.heal(host)
        disk = world.broker_host.disk
        disk.roomy, disk.failing = True, False

    # --- choosing ---------------------------------------------------------------------------------

    def _process(self) -> Process | None:
        peers = self._world.peers
        return peers[int(len(peers) * self._engine.random.random())] if peers else None

    def _connection(self) -> Connection | None:
        process = self._process()
        links = [] if process is None else process.links
        if not links:
            return None
        connection = links[int(len(links) * self._engine.random.random())].connection
        return None if connection is None or connection.dead else connection

    def _while(self, longest: float) -> float:
        """Seconds that something takes: mostly short, now and then up to the longest."""
        random = self._engine.random.random
        chance = random()
        if chance < 0.6:
            longest = min(longest, 0.01)
        elif chance < 0.9:
            longest = min(longest, 0.1)
        return longest * random()

    # --- kinds ------------------------------------------------------------------------------------

    def _delay(self) -> None:
        """Counted when it holds a message up."""
        connection = self._connection()
        if connection is None:
            return
        random = self._engine.random
        late = self._engine.now + self._while(1.5)
        if random.random() < 0.5:
            connection.up_last = max(connection.up_last, late)
            connection.up_burst = True
        else:
            connection.down_last = max(connection.down_last, late)
            connection.down_burst = True

    def _break(self) -> None:
        connection = self._connection()
        if connection is not None:
            self._engine.fault("break", connection.link.owner)
            self._world.network.break_off(connection)

    def _freeze(self, longest: float = 0.0) -> None:
        process = self._process()
        if process is None or process.frozen:
            return
        self._engine.fault("freeze", process)
        process.freeze()
        self._engine.after(self._while(longest or 2.0), process.resume)

    def _freeze_long(self) -> None:
        self._freeze(4 * self._world.plan.lease)

    def _kill_worker(self) -> None:
        for _ in range(5):
            process = self._process()
            if isinstance(process, Worker):
                self._engine.fault("kill of a worker", process)
                process.die(self._engine.random.choice((-9, -9, -15, -11)))
                return

    def _kill_client(self) -> None:
        clients = self._world.clients
        if not clients:
            return
        client: ActiveClient = clients[int(len(clients) * self._engine.random.random())]
        self._engine.fault("kill of a client", client)
        client.end(-9)
        self._world.client_died(client)

    def _kill_supervisor(self) -> None:
        for _ in range(20):
            process = self._process()
            if isinstance(process, Supervisor):
                self._engine.fault("kill of a supervisor", process)
                process.die(-9)
                return

    def _part(self) -> None:
        world = self._world
        host = world.hosts[1 + int((len(world.hosts) - 1) * self._engine.random.random())].name
        if host in world.network.cut:
            return
        random = self._engine.random
        up, down = random.choice(((True, True), (True, False), (False, True)))
        self._engine.fault("partition" if up and down else "partition of one direction", host)
        world.network.part(host, up=up, down=down)
        seconds = self._while(2.5 * world.plan.lease)
        self._engine.after(seconds, world.network.heal, host, random.choice((0.0, 0.5, 1.0)))

    def _kill_broker(self) -> None:
        if self._world.broker_host.broker is not None:
            self._engine.fault("kill of the broker")
            self._world.broker_host.broker_ended(-9)

    def _freeze_broker(self) -> None:
        broker = self._world.broker_host.broker
        if broker is not None and not broker.frozen:
            self._engine.fault("freeze of the broker")
            broker.frozen = True
            self._engine.after(self._while(1.0), broker.resume)

    def _stall_disk(self) -> None:
        self._engine.fault("disk stalls")
        seconds = self._while(self._world.plan.lease)
        self._world.broker_host.disk.stalled_until = self._engine.now + seconds

    def _fill_disk(self) -> None:
        disk = self._world.broker_host.disk
        if disk.roomy:
            self._engine.fault("disk is full")
            disk.roomy = False
            self._engine.after(self._while(1.0), self._empty_disk)

    def _empty_disk(self) -> None:
        self._world.broker_host.disk.roomy = True

    def _fail_disk(self) -> None:
        self._engine.fault("disk fails")
        self._world.broker_host.disk.failing = True

    def _set_wall_clock(self) -> None:
        self._engine.fault("wall clock is set")
        self._world.wall_jumps += 2 * self._engine.random.random() - 1

    def _kill_up(self) -> None:
        random = self._engine.random
        host = random.choice(self._world.hosts)
        if host.alive:
            self._engine.fault("kill of up", host.name)
            host.die(machine=False)

    def _crash_machine(self) -> None:
        random = self._engine.random
        host = random.choice(self._world.hosts)
        if host.alive:
            self._engine.fault("machine crash", host.name)
            for client in [each for each in self._world.clients if each.host == host.name]:
                client.end(-9)
                self._world.client_died(client)
            host.die(machine=True)

    def _stop_system(self) -> None:
        broker = self._world.broker_host.broker
        if broker is not None:
            self._engine.fault("stop of the system")
            broker.stop_system()
