"""Connections as ZeroMQ over a stream gives them: in order, nothing lost while one lives, anything lost with it.

A peer's socket (`Link`) has one connection at a time. Either side learns late that it is dead, and what was on
its way is gone, but for a part that lay in the other's buffer; the peer then connects anew, by a new route. A
direction may be delayed, or cut for a while without anybody being told. What the broker sends is bounded by a
high-water mark.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from quiesce.broker.peers import Channel, Peer, PeerKey, Peers
from quiesce.protocol.runs import as_received
from quiesce.testing.simulator.engine import Engine


class Owner(Protocol):
    """A process that has links."""

    alive: bool
    frozen: bool

    def hear(self, channel: Channel, message: Any) -> None:
        """A message has arrived."""

    def heard(self) -> None:
        """All that had arrived has been heard."""

    def lost(self, channel: Channel) -> None:
        """The connection is gone."""

    def back(self, channel: Channel) -> None:
        """There is one, for the first time or again."""

    def defer(self, call: Callable[..., object], *args: Any) -> None:
        """It is stopped: do this when it goes on."""


class Listener(Protocol):
    """The broker, as its sockets see it."""

    alive: bool
    control: deque[tuple[bytes, Any]]
    data: deque[tuple[bytes, Any]]

    def wake(self) -> None:
        """Something has arrived."""


class Connection:
    """One transport, from its handshake on. Times are true ones; each direction is a queue."""

    __slots__ = (
        "broker",
        "dead",
        "down",
        "down_burst",
        "down_cut",
        "down_due",
        "down_last",
        "inbox",
        "limit",
        "link",
        "network",
        "route",
        "up",
        "up_burst",
        "up_cut",
        "up_due",
        "up_last",
    )

    def __init__(self, network: "Network", link: "Link", broker: Listener, route: bytes) -> None:
        self.network = network
        self.link = link
        self.broker = broker
        self.route = route
        self.inbox = broker.control if link.channel == "control" else broker.data
        #: Nothing that is sent from now on arrives; one side, or both, may not know.
        self.dead = False
        self.up: deque[tuple[float, Any]] = deque()
        self.down: deque[tuple[float, Any]] = deque()
        #: Whether the delivery of the first of a queue is planned.
        self.up_due = self.down_due = False
        self.up_last = self.down_last = 0.0
        #: Whether a delay is on, and has not yet held anything up.
        self.up_burst = self.down_burst = False
        self.up_cut = self.down_cut = False
        #: Messages to the peer that the connection takes.
        self.limit = 1000

    def pump_up(self) -> None:
        """What has come to the broker's side goes into its inbox."""
        self.up_due = False
        if self.up_cut or not self.broker.alive:
            return
        queue, now, inbox, route = self.up, self.network.engine.now, self.inbox, self.route
        while queue and queue[0][0] <= now:
            inbox.append((route, queue.popleft()[1]))
        self.broker.wake()
        if queue:
            self.up_due = True
            self.network.engine.at(queue[0][0], self.pump_up)

    def pump_down(self) -> None:
        """What has come to the peer's side is heard by it."""
        self.down_due = False
        link = self.link
        owner = link.owner
        if self.down_cut or link.connection is not self or owner.frozen:
            return
        queue, now, channel = self.down, self.network.engine.now, link.channel
        while queue and queue[0][0] <= now:
            owner.hear(channel, queue.popleft()[1])
            if link.connection is not self or owner.frozen:
                return
        owner.heard()
        if queue and link.connection is self:
            self.down_due = True
            self.network.engine.at(queue[0][0], self.pump_down)

    def cut(self, *, up: bool, down: bool) -> None:
        """Nothing gets through these directions until `mend`."""
        self.up_cut = self.up_cut or up
        self.down_cut = self.down_cut or down

    def mend(self) -> None:
        """What has waited arrives now."""
        engine = self.network.engine
        self.up_cut = self.down_cut = False
        if self.up and not self.up_due:
            self.up_due = True
            engine.at(max(engine.now, self.up[0][0]), self.pump_up)
        self.resume()

    def resume(self) -> None:
        """The peer reads again."""
        engine = self.network.engine
        if self.down and not self.down_due:
            self.down_due = True
            engine.at(max(engine.now, self.down[0][0]), self.pump_down)


class Link:
    """One socket of a peer. `immediate`: it takes no messages while there is no connection (they are lost)."""

    __slots__ = (
        "channel",
        "closed",
        "connection",
        "host",
        "immediate",
        "network",
        "outbox",
        "owner",
        "wait",
    )

    def __init__(
        self,
        network: "Network",
        owner: Owner,
        channel: Channel,
        host: str,
        *,
        immediate: bool = False,
    ) -> None:
        self.network = network
        self.owner = owner
        self.channel: Channel = channel
        self.host = host
        self.immediate = immediate
        #: As far as the peer knows.
        self.connection: Connection | None = None
        #: What waits for the next one.
        self.outbox: list[Any] = []
        self.closed = False
        self.wait = 0.01
        network.engine.after(network.engine.random.random() * 0.002, self.connect)

    def send(self, message: Any) -> None:
        """After all that was sent before."""
        connection = self.connection
        network = self.network
        if connection is None or connection.dead:
            if self.immediate:
                return
            if connection is None or self.outbox or network.engine.random.random() < 0.5:
                self.outbox.append(message)
            return
        engine = network.engine
        when = engine.now + network.base + engine.random.random() * network.spread
        if when < connection.up_last:
            when = connection.up_last
            if connection.up_burst:
                connection.up_burst = False
                engine.fault("delay", connection.route)
        connection.up_last = when
        connection.up.append((when, message))
        if not connection.up_due and not connection.up_cut:
            connection.up_due = True
            engine.at(when, connection.pump_up)

    def connect(self) -> None:
        """Try; again later if nobody answers."""
        if self.closed or self.connection is not None:
            return
        network, engine = self.network, self.network.engine
        if self.owner.frozen:
            self.owner.defer(self.connect)
            return
        broker = network.broker
        if broker is None or self.host in network.cut:
            self.wait = min(2 * self.wait, network.slowest_retry)
            engine.after(self.wait * (0.5 + engine.random.random()), self.connect)
            return
        self.wait = 0.01
        self.connection = network.open(self, broker)
        waiting, self.outbox = self.outbox, []
        for message in waiting:
            self.send(message)
        self.owner.back(self.channel)

    def notice(self, connection: Connection) -> None:
        """The peer's side learns that the connection is dead."""
        if self.connection is not connection or self.closed:
            return
        if self.owner.frozen:
            self.owner.defer(self.notice, connection)
            return
        self.connection = None
        connection.down.clear()
        self.owner.lost(self.channel)
        engine = self.network.engine
        engine.after(self.wait * (0.5 + engine.random.random()), self.connect)

    def close(self, *, orderly: bool = False) -> None:
        """The process has gone. What it said last may still arrive; in order, it does."""
        self.closed = True
        connection, self.connection = self.connection, None
        self.outbox.clear()
        if connection is None:
            return
        connection.down.clear()
        random = self.network.engine.random
        if not orderly and random.random() < 0.5:
            cut_short(connection.up, random.randrange(len(connection.up) + 1))
        connection.dead = True
        self.network.engine.after(random.random() * 0.02, self.network.forget, connection)


class Network:
    """All connections to the one broker."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        #: The broker that listens.
        self.broker: Listener | None = None
        #: The connections that its side knows of, by route.
        self.routes: dict[bytes, Connection] = {}
        #: Hosts that can't reach it, and the directions that are cut: up, down.
        self.cut: dict[str, tuple[bool, bool]] = {}
        #: Seconds that a message takes: so many, and up to so many more.
        self.base = 0.0001
        self.spread = 0.001
        self.slowest_retry = 0.2
        self._last = 0

    def open(self, link: Link, broker: Listener) -> Connection:
        """A new connection."""
        self._last += 1
        route = self._last.to_bytes(5, "big")
        connection = Connection(self, link, broker, route)
        random = self.engine.random
        if random.random() < 0.1:
            connection.limit = 1 + random.randrange(20)
        self.routes[route] = connection
        return connection

    def forget(self, connection: Connection) -> None:
        """The broker's side learns that it is dead."""
        self.routes.pop(connection.route, None)

    def send(self, connection: Connection, message: Any) -> bool:
        """From the broker; False if it takes no more."""
        if connection.dead:
            return True
        if len(connection.down) >= connection.limit:
            self.engine.counts["high-water marks"] += 1
            return False
        engine = self.engine
        when = engine.now + self.base + engine.random.random() * self.spread
        if when < connection.down_last:
            when = connection.down_last
            if connection.down_burst:
                connection.down_burst = False
                engine.fault("delay", connection.route)
        connection.down_last = when
        connection.down.append((when, message))
        if not connection.down_due and not connection.down_cut:
            connection.down_due = True
            engine.at(when, connection.pump_down)
        return True

    def break_off(self, connection: Connection) -> None:
        """It dies. Each side is told after a moment of its own; a part of what was on its way is lost."""
        random, engine = self.engine.random, self.engine
        connection.dead = True
        kept = random.random() < 0.4
        lost = cut_short(connection.up, random.randrange(len(connection.up) + 1) if kept else 0)
        lost += cut_short(
            connection.down, random.randrange(len(connection.down) + 1) if kept else 0
        )
        engine.counts["messages lost"] += lost
        engine.after(random.random() * 0.02, connection.link.notice, connection)
        engine.after(random.random() * 0.02, self.forget, connection)

    def listen(self, broker: Listener) -> None:
        """A broker is there."""
        self.broker = broker

    def fall_silent(self) -> None:
        """It is gone."""
        self.broker = None
        for connection in list(self.routes.values()):
            if not connection.dead:
                self.break_off(connection)
            connection.up.clear()
        self.routes.clear()

    def part(self, host: str, *, up: bool, down: bool) -> None:
        """Nothing gets from that host to the broker (up), or back (down), or both."""
        self.cut[host] = (up, down)
        for connection in self.routes.values():
            if connection.link.host == host:
                connection.cut(up=up, down=down)

    def heal(self, host: str, breaks: float = 0.0) -> None:
        """It is in reach again; so many of its connections (0 to 1) have died meanwhile."""
        if self.cut.pop(host, None) is None:
            return
        for connection in list(self.routes.values()):
            if connection.link.host == host:
                if breaks and self.engine.random.random() < breaks and not connection.dead:
                    self.break_off(connection)
                connection.mend()


def cut_short(queue: deque[tuple[float, Any]], keep: int) -> int:
    """Drop all but the first so many; how many that were."""
    dropped = 0
    while len(queue) > keep:
        queue.pop()
        dropped += 1
    return dropped


class SimulatedPeers(Peers):
    """The broker's side: messages as they are, to the connections of a simulated network."""

    def __init__(self, network: Network) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]  # it has no sockets, and asks them nothing
        self._network = network

    def _encode(self, message: Any, whom: object) -> list[Any]:
        del whom
        return [as_received(message)]  # one frame, as long as the message has fields

    def send_to_route(self, channel: Channel, route: bytes, message: Any) -> None:
        """As its base."""
        connection = self._network.routes.get(route)
        if connection is None or not self._network.send(connection, message):
            self.dropped += 1

    def _try(self, peer: Peer, channel: Channel, frames: list[Any]) -> bool:
        route = peer.routes[channel]
        if route is None:
            self.dropped += 1
            return True
        connection = self._network.routes.get(route)
        if connection is None:
            self._unroute(peer, channel)
            self.dropped += 1
            return True
        return self._network.send(connection, frames[0])


__all__ = ["Connection", "Link", "Network", "Owner", "PeerKey", "SimulatedPeers"]
