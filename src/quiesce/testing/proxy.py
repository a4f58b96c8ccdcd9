"""A process between the broker and its peers that can hold, delay and break what goes through.

    peer  <-- its own sockets -->  proxy  <-- one connection for each of the peer's -->  broker

It is started by `quiesce.testing.network` with a socket as standard input: orders come as lines of JSON, each is
answered by one when it holds, and the end of that socket (who had it has closed it, or has died) ends the proxy.

What is held is not read, so it stays in the sender's and the kernel's buffers, as on a network that loses every
packet for a while: nobody sees a connection close, and a new one does not come about before it is let go.
"""

import errno
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

#: The two directions of a link, by whither the bytes go.
TO_BROKER: Final = "to broker"
TO_PEER: Final = "to peer"
DIRECTIONS: Final = (TO_BROKER, TO_PEER)
CHANNELS: Final = ("control", "data")

_CHUNK: Final = 64 * 1024
#: Bytes that may be on the way in one direction of a connection before its sender is made to wait.
_ON_THE_WAY: Final = 8 * 1024 * 1024


class Rule:
    """What is done to one direction of one channel of a link."""

    def __init__(self) -> None:
        self.held = False
        self.delay = 0.0
        #: Bytes that have passed.
        self.passed = 0


class Way:
    """One direction of one connection: from `source` to `target`. Nothing goes before both are there."""

    def __init__(
        self, rule: Rule, source: socket.socket | None, target: socket.socket | None
    ) -> None:
        self.rule = rule
        self.source = source
        self.target = target
        #: What was read, with when it may leave.
        self.queue: deque[tuple[float, bytes]] = deque()
        self.size = 0
        #: The source has said its last.
        self.ended = False
        #: So many bytes more, and the connection breaks. None: it does not.
        self.budget: int | None = None

    @property
    def wants_to_read(self) -> bool:
        return (
            not self.rule.held
            and not self.ended
            and self.source is not None
            and self.target is not None
            and self.size < _ON_THE_WAY
        )

    def is_due(self, now: float) -> bool:
        """Whether something may leave now."""
        return bool(self.queue) and not self.rule.held and self.queue[0][0] <= now


class Pair:
    """A connection of a peer, and the one to the broker that stands for it."""

    def __init__(self, link: "Link", channel: str, peer: socket.socket) -> None:
        self.link = link
        self.channel = channel
        self.peer = peer
        self.broker: socket.socket | None = None
        rules = link.rules[channel]
        self.ways = {
            TO_BROKER: Way(rules[TO_BROKER], peer, None),
            TO_PEER: Way(rules[TO_PEER], None, peer),
        }
        self.is_open = True
        #: Something waits for its time to come.
        self.is_timed = False

    def connected(self, broker: socket.socket) -> None:
        """Both ends are there."""
        self.broker = broker
        self.ways[TO_BROKER].target = broker
        self.ways[TO_PEER].source = broker


class Link:
    """One side's way to the broker: where its peers connect, and what is done to what passes."""

    def __init__(self, name: str, listen: dict[str, str], targets: dict[str, str]) -> None:
        self.name = name
        self.targets = targets
        self.rules = {
            channel: {direction: Rule() for direction in DIRECTIONS} for channel in CHANNELS
        }
        self.listeners = {channel: _listen(endpoint) for channel, endpoint in listen.items()}
        self.pairs: set[Pair] = set()
        self.cuts = 0
        self._paths = [each.removeprefix("ipc://") for each in listen.values() if "ipc" in each]

    def state(self) -> dict[str, Any]:
        """For who asks."""
        sums = {
            direction: sum(self.rules[channel][direction].passed for channel in CHANNELS)
            for direction in DIRECTIONS
        }
        return {
            "connections": sum(pair.broker is not None for pair in self.pairs),
            "waiting": sum(pair.broker is None for pair in self.pairs),
            "to_broker": sums[TO_BROKER],
            "to_peer": sums[TO_PEER],
            "cuts": self.cuts,
        }

    def close(self) -> None:
        """The listeners, and their files."""
        for listener in self.listeners.values():
            listener.close()
        for path in self._paths:
            try:
                os.unlink(path)
            except OSError:
                pass


class Proxy:
    """One thread, one loop."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._text = b""
        self._links: dict[str, Link] = {}
        self._selector = selectors.DefaultSelector()
        self._register(orders, selectors.EVENT_READ, self._on_orders)
        self._goes_on = True

    def run(self) -> None:
        """Until nobody is there to give orders."""
        while self._goes_on:
            for key, events in self._selector.select(self._timeout()):
                if self._goes_on:
                    key.data(events)
            self._on_time()
        for link in self._links.values():
            for pair in list(link.pairs):
                self._break(pair)
            link.close()
        self._selector.close()

    def _timeout(self) -> float | None:
        """Until something that is delayed may leave."""
        due = [
            way.queue[0][0]
            for link in self._links.values()
            for pair in link.pairs
            if pair.is_timed
            for way in pair.ways.values()
            if way.queue and not way.rule.held
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _register(self, what: socket.socket, events: int, call: Callable[[int], None]) -> None:
        what.setblocking(False)
        self._selector.register(what, events, call)

    # --- orders

    def _on_orders(self, events: int) -> None:
        try:
            data = self._orders.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._goes_on = False
            return
        self._text += data
        while b"\n" in self._text:
            line, _, self._text = self._text.partition(b"\n")
            try:
                answer = self._obey(json.loads(line))
            except OSError as error:
                answer = {"error": str(error)}
            self._orders.setblocking(True)
            self._orders.sendall(json.dumps(answer).encode() + b"\n")
            self._orders.setblocking(False)

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["order"] == "link":
            link = Link(order["name"], order["listen"], order["targets"])
            self._links[link.name] = link
            for channel, listener in link.listeners.items():
                self._register(
                    listener,
                    selectors.EVENT_READ,
                    partial(self._on_peer, link, channel),
                )
            return {}
        link = self._links[order["name"]]
        channels, directions = order.get("channels", CHANNELS), order.get("directions", DIRECTIONS)
        rules = [link.rules[channel][way] for channel in channels for way in directions]
        if order["order"] == "set":
            for rule in rules:
                rule.held = order.get("held", rule.held)
                rule.delay = order.get("delay", rule.delay)
        elif order["order"] == "cut":
            after = order["after"]
            for pair in [pair for pair in link.pairs if pair.channel in channels]:
                if after is None:
                    link.cuts += 1
                    self._break(pair)
                else:
                    for direction in directions:
                        pair.ways[direction].budget = after
        elif order["order"] == "heal":
            for rule in rules:
                rule.held, rule.delay = False, 0.0
            for pair in link.pairs:
                for way in pair.ways.values():
                    way.budget = None
                    # What was delayed may leave now; the order of bytes stays.
                    way.queue = deque((0.0, data) for _, data in way.queue)
        for pair in list(link.pairs):
            if pair.is_open:
                self._watch(pair)
        return link.state()

    # --- connections

    def _on_peer(self, link: Link, channel: str, events: int) -> None:
        try:
            peer, _ = link.listeners[channel].accept()
        except OSError:
            return  # it has gone again
        peer.setblocking(False)
        pair = Pair(link, channel, peer)
        link.pairs.add(pair)
        self._watch(pair)

    def _connect(self, pair: Pair) -> None:
        """To the broker; who finds none there sees its own connection close, and tries again."""
        target = pair.link.targets[pair.channel]
        try:
            broker = _connect(target)
        except OSError:
            self._break(pair)
            return
        pair.connected(broker)

    def _watch(self, pair: Pair) -> None:
        """Have the selector look for what this pair can go on with now."""
        if pair.broker is None and not pair.ways[TO_BROKER].rule.held:
            self._connect(pair)
            if not pair.is_open:
                return
        now = time.monotonic()
        wanted: dict[socket.socket, int] = {}
        pair.is_timed = any(way.queue and way.queue[0][0] > now for way in pair.ways.values())
        for way in pair.ways.values():
            if way.wants_to_read and way.source is not None:
                wanted[way.source] = wanted.get(way.source, 0) | selectors.EVENT_READ
            if way.target is not None and way.is_due(now):
                wanted[way.target] = wanted.get(way.target, 0) | selectors.EVENT_WRITE
        for end in (pair.peer, pair.broker):
            if end is None:
                continue
            events = wanted.get(end, 0)
            try:
                known: int | None = self._selector.get_key(end).events
            except KeyError:
                known = None
            if events and known is None:
                self._register(end, events, partial(self._on_ready, pair, end))
            elif not events and known is not None:
                self._selector.unregister(end)
            elif known is not None and known != events:
                self._selector.modify(end, events, self._selector.get_key(end).data)

    def _on_ready(self, pair: Pair, end: socket.socket, events: int) -> None:
        for way in pair.ways.values():
            if pair.is_open and way.source is end and way.wants_to_read:
                self._read(pair, way)
        self._go_on(pair)

    def _read(self, pair: Pair, way: Way) -> None:
        assert way.source is not None
        try:
            data = way.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            way.ended = True
            return
        way.queue.append((time.monotonic() + way.rule.delay, data))
        way.size += len(data)

    def _go_on(self, pair: Pair) -> None:
        """Send what is due, in both directions; close once one side has ended and all of it is delivered."""
        for way in pair.ways.values():
            while pair.is_open and way.is_due(time.monotonic()) and self._send(pair, way):
                pass
        if not pair.is_open:
            return
        if any(way.ended and not way.queue and not way.rule.held for way in pair.ways.values()):
            self._break(pair)
        else:
            self._watch(pair)

    def _send(self, pair: Pair, way: Way) -> bool:
        """The first piece of the queue, or what can be of it; whether to go on."""
        assert way.target is not None
        due, data = way.queue[0]
        piece = data if way.budget is None else data[: way.budget]
        try:
            sent = way.target.send(piece) if piece else 0
        except BlockingIOError:
            return False
        except OSError:
            self._break(pair)
            return False
        way.size -= sent
        way.rule.passed += sent
        if way.budget is not None:
            way.budget -= sent
            if way.budget == 0:
                pair.link.cuts += 1
                self._break(pair)
                return False
        if sent < len(data):
            way.queue[0] = (due, data[sent:])
            return sent == len(piece)
        way.queue.popleft()
        return True

    def _break(self, pair: Pair) -> None:
        """Close both ends at once."""
        pair.is_open = False
        pair.link.pairs.discard(pair)
        for end in (pair.peer, pair.broker):
            if end is None:
                continue
            try:
                self._selector.unregister(end)
            except KeyError:
                pass
            end.close()

    def _on_time(self) -> None:
        now = time.monotonic()
        for link in self._links.values():
            for pair in list(link.pairs):
                if pair.is_timed and any(way.is_due(now) for way in pair.ways.values()):
                    self._go_on(pair)


def _place(endpoint: str) -> tuple[int, Any]:
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    return socket.AF_INET, (host, int(port))


def _listen(endpoint: str) -> socket.socket:
    family, place = _place(endpoint)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener


def _connect(endpoint: str) -> socket.socket:
    """A connection that may still come about; OSError if it is refused at once."""
    family, place = _place(endpoint)
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        code = made.connect_ex(place)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        if family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


def main() -> None:
    """The life of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # a terminal sends them to all; it ends with its orders
    Proxy(socket.socket(fileno=os.dup(sys.stdin.fileno()))).run()


if __name__ == "__main__":
    main()
