"""The two sockets of a client, owned by its I/O thread: frames in and out, and when a peer comes and goes."""

from collections import deque
from typing import Any, Final

import zmq

from quiesce.client.steps import CONTROL, DATA
from quiesce.protocol import wire
from quiesce.protocol.addresses import Endpoints

#: Milliseconds between attempts to connect: at first, and at most.
_RECONNECT: Final = 50
_RECONNECT_MAX: Final = 200
#: Of tcp connections only: milliseconds between ZMTP pings, and until a silent peer counts as gone.
_PING: Final = 5_000
_PING_TIMEOUT: Final = 20_000

Frames = list[bytes]


def _events(socket: "zmq.Socket[bytes]") -> int:
    """What can be done now without waiting."""
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)  # pyzmq's own type says int or bytes, for all options alike
    return events


class _Channel:
    """One DEALER with its monitor and what it could not take yet."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        # Only completed connections take messages, and a lost one takes its messages with it: the
        # session sends them again after its Hello, and no stale ones arrive before it.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX)
        if endpoint.startswith("tcp:"):
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, _PING)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PING_TIMEOUT)
        self.monitor: Any = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self.outbox: deque[Frames] = deque()
        #: The socket would not take the first of the outbox: POLLOUT is being polled for.
        self.blocked = False
        self.socket.connect(endpoint)


class Connection:
    """Both channels, and the descriptor that wakes the thread. Not thread-safe; made and closed by one thread."""

    def __init__(self, endpoints: Endpoints, wake_fd: int) -> None:
        self._endpoints = {CONTROL: endpoints.control, DATA: endpoints.data}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_fd = wake_fd
        #: What had something to say when it was last looked.
        self._ready: list[Any] = []
        self._open()

    def _open(self) -> None:
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        #: In the order in which they are served: control first.
        self._channels = {
            name: _Channel(self._context, endpoint) for name, endpoint in self._endpoints.items()
        }
        for channel in self._channels.values():
            self._poller.register(channel.monitor, zmq.POLLIN)
            self._poller.register(channel.socket, zmq.POLLIN)

    def reopen(self) -> None:
        """Both sockets anew: nothing of the old ones will be read or sent."""
        self._close_channels(0)
        self._ready = []
        self._open()

    def close(self, linger: int) -> None:
        """Close everything; what was handed to the sockets has `linger` milliseconds to leave."""
        self._close_channels(linger)
        self._context.term()

    def _close_channels(self, linger: int) -> None:
        for channel in self._channels.values():
            channel.socket.disable_monitor()
            channel.monitor.close(0)
            channel.socket.close(linger)

    def poll(self, timeout: float) -> bool:
        """Sleep until something is to be done here, at most `timeout` seconds; whether `wake_fd` is readable."""
        ready = self._poller.poll(int(timeout * 1000) + 1 if timeout > 0 else 0)
        self._ready = [thing for thing, _ in ready]
        return self._wake_fd in self._ready

    def changes(self) -> list[tuple[str, bool]]:
        """Which channels had been connected (True) or disconnected when `poll` returned, in order."""
        found: list[tuple[str, bool]] = []
        for name, channel in self._channels.items():
            monitor = channel.monitor
            while monitor in self._ready and wire.is_readable(monitor):
                kind, _ = wire.read_event(monitor)
                # What was handed over for the old connection is to be said anew on the next.
                channel.outbox.clear()
                self._set_blocked(channel, blocked=False)
                found.append((name, kind == zmq.EVENT_HANDSHAKE_SUCCEEDED))
        return found

    def receive(self, name: str, limit: int) -> list[list[bytes]]:
        """The messages that had arrived on this channel when `poll` returned, and some since, at most `limit`."""
        socket = self._channels[name].socket
        found: list[list[bytes]] = []
        if socket not in self._ready:
            return found
        while len(found) < limit and wire.is_readable(socket):
            found.append(wire.receive_frames(socket))
        return found

    def send(self, name: str, frames: Frames) -> None:
        """Send after all sent before on this channel; kept here while the socket takes nothing."""
        channel = self._channels[name]
        channel.outbox.append(frames)
        if len(channel.outbox) == 1:
            self._flush(channel)

    def flush(self) -> None:
        """Try again with what was kept."""
        for channel in self._channels.values():
            if channel.outbox:
                self._flush(channel)

    def _flush(self, channel: _Channel) -> None:
        socket = channel.socket
        while channel.outbox:
            if channel.blocked and not _events(socket) & zmq.POLLOUT:
                return
            try:
                wire.send_frames(socket, channel.outbox[0])
            except zmq.Again:
                self._set_blocked(channel, blocked=True)
                return
            channel.outbox.popleft()
        self._set_blocked(channel, blocked=False)

    def _set_blocked(self, channel: _Channel, *, blocked: bool) -> None:
        if channel.blocked != blocked:
            channel.blocked = blocked
            flags = zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN
            self._poller.modify(channel.socket, flags)
