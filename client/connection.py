"""The two sockets of a client, owned by its I/O thread: frames in and out, and when a peer comes and goes.

The thread sleeps on descriptors, for ZeroMQ's own poller looks at each socket several times. That of a socket tells
of what comes once the socket was looked at and had nothing, and until it is used again.
"""

import select
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

#: Plain numbers, as in `wire`.
_IN: Final = int(zmq.POLLIN)
_OUT: Final = int(zmq.POLLOUT)
_ANY: Final = _IN | _OUT

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
        #: The socket would not take the first of the outbox.
        self.blocked = False
        #: The socket is to be looked at before the thread sleeps: it was used, or its descriptor has told.
        self.look = True
        self.socket.connect(endpoint)


class Connection:
    """Both channels, and the descriptor that wakes the thread. Not thread-safe; made and closed by one thread."""

    def __init__(self, endpoints: Endpoints, wake_fd: int) -> None:
        self._endpoints = {CONTROL: endpoints.control, DATA: endpoints.data}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_fd = wake_fd
        self._open()

    def _open(self) -> None:
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        #: The monitors are to be looked at.
        self._changed = True
        #: In the order in which they are served: control first.
        self._channels = {
            name: _Channel(self._context, endpoint) for name, endpoint in self._endpoints.items()
        }
        #: By descriptor: whose socket it is; None: a monitor's.
        self._watched: dict[int, _Channel | None] = {}
        for channel in self._channels.values():
            self._watched[int(channel.socket.getsockopt(zmq.FD))] = channel
            self._watched[int(channel.monitor.getsockopt(zmq.FD))] = None
        for descriptor in self._watched:
            self._poll.register(descriptor, select.POLLIN)

    def reopen(self) -> None:
        """Both sockets anew: nothing of the old ones will be read or sent."""
        self._close_channels(0)
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
        if self._changed:
            timeout = 0.0
        for channel in self._channels.values():
            if channel.look:
                channel.look = bool(_events(channel.socket) & (_ANY if channel.blocked else _IN))
                if channel.look:
                    timeout = 0.0
        rung = False
        for descriptor, _ in self._poll.poll(int(timeout * 1000) + 1 if timeout > 0 else 0):
            if descriptor == self._wake_fd:
                rung = True
                continue
            watched = self._watched[descriptor]
            if watched is None:
                self._changed = True
            else:
                watched.look = True
        return rung

    def changes(self) -> list[tuple[str, bool]]:
        """Which channels had been connected (True) or disconnected when `poll` returned, in order."""
        found: list[tuple[str, bool]] = []
        if not self._changed:
            return found
        self._changed = False
        for name, channel in self._channels.items():
            while wire.is_readable(channel.monitor):
                kind, _ = wire.read_event(channel.monitor)
                # What was handed over for the old connection is to be said anew on the next.
                channel.outbox.clear()
                channel.blocked = False
                found.append((name, kind == zmq.EVENT_HANDSHAKE_SUCCEEDED))
        return found

    def receive(self, limit: int) -> list[tuple[str, Frames]]:
        """The messages that had arrived when `poll` returned, and some since, at most `limit` from each channel.

        Those of control come first.
        """
        found: list[tuple[str, Frames]] = []
        for name, channel in self._channels.items():
            most = len(found) + limit
            while channel.look and len(found) < most:
                if wire.is_readable(channel.socket):
                    found.append((name, wire.receive_frames(channel.socket)))
                else:
                    channel.look = False
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
        channel.look = True
        while channel.outbox:
            if channel.blocked and not _events(socket) & _OUT:
                return
            try:
                wire.send_frames(socket, channel.outbox[0])
            except zmq.Again:
                channel.blocked = True
                return
            channel.outbox.popleft()
        channel.blocked = False
