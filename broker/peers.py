"""Who is at the other end: clients, workers and supervisors, and the routes to them on both sockets.

Routing ids are ZeroMQ's own and change with each connection; who a peer is, its hello says.
A ROUTER drops in silence what it can't route or what is over the high-water mark; with ROUTER_MANDATORY
both are errors, which become a dropped route or a backlog here. A send is no delivery: the protocol
acknowledges, and whoever connects anew says hello and gets again what it has missed.

So a peer that does not read for so long that its backlog is over LIMIT is treated as if its connection were
lost: what waits for it is dropped, and it must say hello. One connection is one peer: its last hello counts.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Literal

import zmq

from quiesce.errors import ProtocolError
from quiesce.protocol.codec import encode
from quiesce.protocol.wire import send_frames

log: Final = logging.getLogger("quiesce.broker")
Channel = Literal["control", "data"]
#: ("session", id), ("worker", (supervisor, serial)) or ("supervisor", id).
PeerKey = tuple[str, Any]
#: Messages that may wait for one peer whose connection is full, before telemetry to it is dropped.
PATIENCE: Final = 1000
#: Messages and bytes that may wait for one peer; the last one may be of any size.
LIMIT: Final = 20_000
LIMIT_BYTES: Final = 256 * 2**20


class Peer:
    """One peer and its routes; a route is None until hello, and again when it turns out to be dead."""

    __slots__ = ("backlog", "key", "missed", "routes", "waiting", "worker")

    def __init__(self, key: PeerKey) -> None:
        self.key = key
        self.routes: dict[Channel, bytes | None] = {"control": None, "data": None}
        #: Messages that found the connection full, in order.
        self.backlog: deque[tuple[Channel, list[bytes]]] = deque()
        #: Bytes in it.
        self.waiting = 0
        #: The worker incarnation, for workers.
        self.worker = 0
        #: Events that were not sent to it, because it was too slow, since the last that was.
        self.missed = 0


class Peers:
    """All peers, and the sending to them."""

    def __init__(self, control: zmq.Socket[bytes], data: zmq.Socket[bytes]) -> None:
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {"control": control, "data": data}
        self._by_route: dict[Channel, dict[bytes, Peer]] = {"control": {}, "data": {}}
        self.by_key: dict[PeerKey, Peer] = {}
        self.by_worker: dict[int, Peer] = {}
        #: Those that want events.
        self.subscribers: dict[PeerKey, Peer] = {}
        #: Peers with a backlog.
        self.full: set[PeerKey] = set()
        #: Messages without a route, or dropped with a backlog.
        self.dropped = 0
        #: Messages of ours that can't be put into bytes: a fault of ours.
        self.unsaid = 0
        #: How often a backlog was over the limit.
        self.overfull = 0

    def at(self, channel: Channel, route: bytes) -> Peer | None:
        """Who speaks from this route, if it has said hello."""
        return self._by_route[channel].get(route)

    def introduce(self, key: PeerKey, channel: Channel, route: bytes) -> Peer:
        """A hello: from now on this route is that peer's."""
        peer = self.by_key.get(key)
        if peer is None:
            peer = self.by_key[key] = Peer(key)
        self._unroute(peer, channel)
        other = self._by_route[channel].get(route)
        if other is not None:
            self._unroute(other, channel)
        peer.routes[channel] = route
        self._by_route[channel][route] = peer
        return peer

    def is_worker(self, peer: Peer, incarnation: int) -> None:
        """The broker has given this peer an incarnation."""
        if peer.worker != incarnation:
            self.by_worker.pop(peer.worker, None)
        peer.worker = incarnation
        self.by_worker[incarnation] = peer

    def forget(self, key: PeerKey) -> None:
        """The peer is gone for good."""
        peer = self.by_key.pop(key, None)
        if peer is None:
            return
        self._unroute(peer, "control")
        self._unroute(peer, "data")
        self._empty(peer)  # somebody may still hold it, and send to it
        self.by_worker.pop(peer.worker, None)
        self.subscribers.pop(key, None)

    def _unroute(self, peer: Peer, channel: Channel) -> None:
        route = peer.routes[channel]
        if route is not None:
            self._by_route[channel].pop(route, None)
            peer.routes[channel] = None

    def send(self, peer: Peer | None, channel: Channel, message: Any) -> None:
        """Send, or keep for later if the connection is full, or drop if there is none."""
        if peer is None:
            self.dropped += 1
            return
        frames = self._encode(message, peer.key)
        if frames is not None:
            self._send(peer, channel, frames)

    def send_all(self, peers: Iterable[Peer], channel: Channel, message: Any) -> None:
        """The same to many, packed once."""
        frames = self._encode(message, "many")
        if frames is not None:
            for peer in peers:
                self._send(peer, channel, frames)

    def _encode(self, message: Any, whom: object) -> list[bytes] | None:
        try:
            return encode(message)
        except ProtocolError as error:
            self.unsaid += 1
            log.error("can't be said to %s: %s", whom, error)
            return None

    def _send(self, peer: Peer, channel: Channel, frames: list[bytes]) -> None:
        if peer.backlog or not self._try(peer, channel, frames):
            self._keep(peer, channel, frames)

    def _keep(self, peer: Peer, channel: Channel, frames: list[bytes]) -> None:
        peer.backlog.append((channel, frames))
        peer.waiting += sum(map(len, frames))
        self.full.add(peer.key)
        if len(peer.backlog) > LIMIT or (peer.waiting > LIMIT_BYTES and len(peer.backlog) > 1):
            self.overfull += 1
            self.dropped += len(peer.backlog)
            self._empty(peer)
            self._unroute(peer, "control")
            self._unroute(peer, "data")

    def _empty(self, peer: Peer) -> None:
        peer.backlog.clear()
        peer.waiting = 0
        self.full.discard(peer.key)

    def send_to_route(self, channel: Channel, route: bytes, message: Any) -> None:
        """Answer somebody who has not said hello."""
        try:
            self._sockets[channel].send_multipart([route, *encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError:
            self.dropped += 1

    def _try(self, peer: Peer, channel: Channel, frames: list[bytes]) -> bool:
        route = peer.routes[channel]
        if route is None:
            self.dropped += 1
            return True
        try:
            send_frames(self._sockets[channel], [route, *frames])
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._unroute(peer, channel)
            self.dropped += 1
        return True

    def flush(self) -> None:
        """Try the backlogs again."""
        for key in sorted(self.full, key=repr):
            peer = self.by_key[key]
            while peer.backlog:
                channel, frames = peer.backlog[0]
                if not self._try(peer, channel, frames):
                    break
                peer.backlog.popleft()
                peer.waiting -= sum(map(len, frames))
            if not peer.backlog:
                self.full.discard(key)
