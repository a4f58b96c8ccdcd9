"""Messages on ZeroMQ sockets, frame by frame: that costs half of pyzmq's own calls for several frames.

Flags are plain numbers here: what an enumeration does with `|` and `&` costs a microsecond.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import zmq

_IN: Final = int(zmq.POLLIN)
_LAST: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)
#: Of a context with both channels each has an I/O thread of its own (ZMQ_AFFINITY), so that what is said on control
#: does not wait while the data connection moves a large payload.
IO_THREADS: Final = 2
CONTROL_IO: Final = 1
DATA_IO: Final = 2
#: Above this size pyzmq's bookkeeping costs less than a copy.
_NO_COPY_ABOVE: Final = 64 * 1024
#: The first frame of what a monitor says. (pyzmq's own reader imports asyncio.)
_EVENT: Final = struct.Struct("=Hi")


def is_readable(socket: Any) -> bool:
    """Whether something has arrived."""
    return bool(socket.getsockopt(zmq.EVENTS) & _IN)


def send_frames(socket: Any, frames: Sequence[bytes]) -> None:
    """Send one message without waiting.

    Raises:
        zmq.ZMQError: it can't be sent, or not now (zmq.Again). It is the first frame that finds no room, or nobody:
            then nothing of it was sent.
    """
    last = len(frames) - 1
    for place, frame in enumerate(frames):
        flags = _LAST if place == last else _MORE
        socket.send(frame, flags, copy=len(frame) <= _NO_COPY_ABOVE)


def receive_frames(socket: Any) -> list[Any]:
    """One message that has arrived, or the rest of it. Frames after its first are payloads: views, not copied."""
    frame = socket.recv(_LAST, copy=False)
    frames = [frame.bytes]
    while frame.more:  # to ask the socket costs more
        frame = socket.recv(_LAST, copy=False)
        frames.append(frame.buffer)
    return frames


def read_event(monitor: Any) -> tuple[int, int]:
    """What a socket's monitor has to say next: what has happened, and a value."""
    event, value = _EVENT.unpack(monitor.recv_multipart()[0])
    return event, value
