"""When the client's thread may sleep: a descriptor tells nothing of what came while its socket was used."""

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from quiesce.client.connection import Connection
from quiesce.client.steps import CONTROL, DATA
from quiesce.protocol.addresses import endpoints

LONG = 20.0
SOON = LONG / 2


class Far:
    """The other end of both channels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        where = endpoints(f"ipc://{folder}")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control, self.data = (self.context.socket(zmq.ROUTER) for _ in range(2))
        for socket in (self.control, self.data):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, int(LONG * 1000))
        self.data.setsockopt(zmq.RCVHWM, 1)
        self.control.bind(where.control)
        self.data.bind(where.data)
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.near = Connection(where, self.wake_fd)

    def close(self) -> None:
        self.near.close(0)
        self.control.close()
        self.data.close()
        self.context.term()
        os.close(self.wake_fd)
        for left in self.folder.iterdir():
            left.unlink()

    def connected(self) -> bytes:
        """Wait for both channels; the route to the data channel."""
        up: set[str] = set()
        while up != {CONTROL, DATA}:
            sleeps(self.near)
            up.update(name for name, is_up in self.near.changes() if is_up)
        for name in (CONTROL, DATA):
            self.near.send(name, [b"hello"])
        assert self.near.receive(1) == []  # both are found empty
        self.control_route, _ = self.control.recv_multipart()
        route, _ = self.data.recv_multipart()
        return route


@pytest.fixture
def far(run_folder: Path) -> Iterator[Far]:
    far = Far(run_folder)
    yield far
    far.close()


def sleeps(near: Connection) -> bool:
    """Whether `wake_fd` is readable; what is to be done is seen in time."""
    began = time.monotonic()
    rung = near.poll(LONG)
    assert time.monotonic() - began < SOON, "it has slept though there was something to do"
    return rung


def until_readable(socket: "zmq.Socket[bytes]") -> None:
    """Without a look at the socket itself."""
    assert select.select([int(socket.getsockopt(zmq.FD))], [], [], LONG)[0]


def test_new_sockets_are_looked_at_before_the_first_sleep(run_folder: Path) -> None:
    """Nobody is there, so nothing else wakes it; and a monitor that was never read tells nothing."""
    wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    near = Connection(endpoints(f"ipc://{run_folder}"), wake_fd)
    assert not sleeps(near)
    near.reopen()
    assert not sleeps(near)
    near.close(0)
    os.close(wake_fd)


def test_what_came_while_the_socket_was_used_is_seen(far: Far) -> None:
    route = far.connected()
    far.data.send_multipart([route, b"answer"])
    socket = far.near._channels[DATA].socket
    until_readable(socket)
    far.near.send(DATA, [b"more"])
    socket.getsockopt(zmq.EVENTS)  # as a send may do itself: from now on the descriptor is silent
    sleeps(far.near)
    assert far.near.receive(9) == [(DATA, [b"answer"])]
    assert far.near.receive(9) == []


def test_what_was_left_for_the_next_turn_is_seen(far: Far) -> None:
    route = far.connected()
    for number in range(5):
        far.data.send_multipart([route, b"%d" % number])
    found: list[bytes] = []
    while len(found) < 5:
        sleeps(far.near)
        found += [frames[0] for _, frames in far.near.receive(2)]
    assert found == [b"0", b"1", b"2", b"3", b"4"]


def test_control_comes_first_each_channel_with_its_own_limit(far: Far) -> None:
    data = far.connected()
    control = far.control_route
    for number in range(3):
        far.data.send_multipart([data, b"d%d" % number])
        far.control.send_multipart([control, b"c%d" % number])
    for name in (CONTROL, DATA):
        until_readable(far.near._channels[name].socket)
        far.near._channels[name].look = True
    assert far.near.receive(1) == [(CONTROL, [b"c0"]), (DATA, [b"d0"])]


def test_room_for_what_the_socket_would_not_take_is_seen(far: Far) -> None:
    """It waits for that without turning, and then everything leaves in order."""
    far.connected()
    channel, sent = far.near._channels[DATA], 0
    while not channel.blocked:
        far.near.send(DATA, [b"%d" % sent, bytes(60_000)])
        sent += 1
    far.near.receive(1)
    assert not far.near.poll(0.05)  # nothing to be done: nobody reads

    got = [int(far.data.recv_multipart()[1]) for _ in range(sent - len(channel.outbox))]
    until_readable(channel.socket)
    channel.look = True  # as after a heartbeat: the look takes what the descriptor would have told
    while channel.outbox:
        sleeps(far.near)
        far.near.receive(1)
        far.near.flush()
    while len(got) < sent:
        got.append(int(far.data.recv_multipart()[1]))
    assert got == list(range(sent))


def test_a_ring_is_told_apart_and_a_lost_peer_is_a_change(far: Far) -> None:
    far.connected()
    os.eventfd_write(far.wake_fd, 1)
    assert sleeps(far.near)
    os.eventfd_read(far.wake_fd)
    assert far.near.changes() == []
    far.data.close()
    while not (changes := far.near.changes()):
        assert not sleeps(far.near)
    assert changes == [(DATA, False)]
