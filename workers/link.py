"""One connection to the broker: a DEALER socket, its outbox, and word of when it breaks."""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import zmq

from quiesce.errors import ProtocolError
from quiesce.protocol import from_worker, wire
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.sizes import FULL, held

_log: Final = logging.getLogger("quiesce.worker")

#: Messages whose rows may travel as one's: each row stands for itself.
_JOINED: Final[frozenset[type]] = frozenset({from_worker.Ended, from_worker.StopSeen})
#: How many messages travel as one.
_AS_ONE: Final = 128
#: Messages taken in one go, so that one side can't starve the other.
_AT_ONCE: Final = 100
#: Milliseconds between attempts to connect: at first, and at most. Pools start beside their broker, and have
#: nothing to do without it.
_RECONNECT: Final = 20
_RECONNECT_MAX: Final = 80


class Link:
    """Owned by one thread; only `outbox.append` is for all. Wake the owner after that."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        decoder: Decoder,
        io_thread: int = 0,
    ) -> None:
        """Connect. `io_thread`: which of the context's moves the frames, see `wire`; 0 for any."""
        self._decoder = decoder
        #: What waits to be sent, oldest first.
        self.outbox: deque[Any] = deque()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.AFFINITY, io_thread)
        self.socket.linger = 0
        self.socket.set_hwm(10_000)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX)
        events = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
        #: Tells of the connection; may be read by another thread than the owner.
        self.monitor = self.socket.get_monitor_socket(events)
        self.socket.connect(endpoint)

    def flush(self) -> bool:
        """Send what there is. False: not all could be sent yet, try again soon."""
        while self.outbox:
            message, count = self._next()
            try:
                frames = encode(message, escape=True)
            except ProtocolError:
                _log.exception("a message that can't be sent is dropped")
                self.outbox.popleft()
                continue
            try:
                wire.send_frames(self.socket, frames)
            except zmq.Again:
                return False
            for _ in range(count):
                self.outbox.popleft()
        return True

    def _next(self) -> tuple[Any, int]:
        """The oldest message, and how many it stands for: those of one kind that follow each other go as one."""
        first = self.outbox[0]
        waiting = len(self.outbox)
        kind = type(first)
        if waiting == 1 or kind not in _JOINED:
            return first, 1
        rows, size, count = list(first.rows), _size(first), 1
        while count < min(waiting, _AS_ONE):
            message = self.outbox[count]
            if type(message) is not kind:
                break
            size += _size(message)
            if size > FULL:
                break
            rows += message.rows
            count += 1
        return kind(rows), count

    def receive(self) -> Iterable[Any]:
        """The messages that have arrived, at most so many. What is no message is logged and dropped."""
        for _ in range(_AT_ONCE):
            if not self.is_readable:
                return
            frames = wire.receive_frames(self.socket)
            try:
                yield self._decoder.decode(frames)
            except ProtocolError as error:
                _log.warning("the broker sent what is no message: %s", error)

    @property
    def is_readable(self) -> bool:
        """Whether something has arrived."""
        return wire.is_readable(self.socket)

    def hear(self) -> Iterable[bool]:
        """What the monitor has to say: True for connected, False for disconnected."""
        while wire.is_readable(self.monitor):
            event, _ = wire.read_event(self.monitor)
            yield event == zmq.Event.HANDSHAKE_SUCCEEDED

    def close(self, linger: int) -> None:
        """Close, giving what was sent so many milliseconds to leave: then `context.term()` waits for it."""
        self.socket.disable_monitor()
        self.socket.close(linger)

    def close_monitor(self) -> None:
        """For who reads it."""
        self.monitor.close(0)


def _size(message: Any) -> int:
    """Bytes of what is not bounded otherwise."""
    return held(message.rows) if type(message) is from_worker.Ended else 0
