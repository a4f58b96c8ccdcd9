"""Who is connected, by descriptor: idle strangers are cut off, and before descriptors run out the doors are shut.

Without descriptors an ipc listener of libzmq aborts the process and a tcp one spins, so at HIGH of the limit
nobody else comes in, until it is down to LOW again. Existing connections go on being served all the while:
therefore the listeners are not unbound, for that ends all their connections too (libzmq 4.3.5). Instead the
file of an ipc socket is put aside, so that nobody finds it, and whoever comes over tcp is cut off at once.

A ROUTER can't close one of its connections, and a peer that speaks ZMTP and nothing else stays for ever. But the
descriptors are those of this process, and the sockets' monitors tell them: they are shut down by their number
(known for sure by its inode), which libzmq takes for the peer's leaving. That is never wrong: a peer that meant
something connects anew, and says hello.
"""

import contextlib
import logging
import math
import os
import resource
import socket as sockets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import zmq

from quiesce.broker.peers import Channel
from quiesce.protocol.wire import is_readable, read_event

log: Final = logging.getLogger("quiesce.broker")
#: Shares of the limit of descriptors at which the doors are shut, and opened again.
HIGH: Final = 0.7
LOW: Final = 0.6
#: Seconds that a connection may take to be some peer's: as a rule, and while the doors are shut.
PATIENCE: Final = 30.0
IMPATIENCE: Final = 3.0
#: Seconds between two looks at all connections, and between two counts of all other descriptors.
PACE: Final = 1.0
COUNT_PACE: Final = 10.0

_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
#: Of these, those that one look takes from a socket.
_CAP: Final = 1000

#: Whether somebody speaks from this route.
Knows = Callable[[Channel, bytes], bool]


def leave_room() -> int:
    """How many descriptors this process is to use: as many as it may. From now on it may use four times as many, if
    that is granted: a flood of connections is faster than we count.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * soft, hard), hard))
    return soft


def backlog(limit: int) -> int:
    """How many connections may wait for each of two listeners, so that all of them find room beyond HIGH."""
    return max(1, min(100, int((1 - HIGH) * limit / 4)))


class _Connection:
    """One descriptor that a listener has accepted."""

    __slots__ = ("channel", "fd", "inode", "route", "since")

    def __init__(self, channel: Channel, fd: int, inode: int, since: float) -> None:
        self.channel = channel
        self.fd = fd
        #: No two sockets have the same: so a number that is used again is found out.
        self.inode = inode
        #: Since when it has been nobody's.
        self.since = since
        #: The route that some message from it came by.
        self.route: bytes | None = None


class Connections:
    """All connections to the broker's sockets. Used by the thread that owns these."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        routers: Mapping[Channel, "zmq.Socket[bytes]"],
        files: list[Path],
        knows: Knows,
        tick: Callable[[], float],
        *,
        limit: int | None = None,
    ) -> None:
        """Watch, from before they are bound.

        Args:
            context: of the sockets.
            routers: the broker's sockets.
            files: of those that are bound to ipc endpoints.
            knows: tells whether a route is some peer's.
            tick: the time in seconds.
            limit: of descriptors; None: that of this process.
        """
        self._routers = routers
        self._files = files
        self._knows = knows
        self._tick = tick
        self._limit = limit or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.monitors: dict[Channel, zmq.Socket[bytes]] = {}
        for channel, router in routers.items():
            where = f"inproc://monitor-{channel}-{id(self):x}"
            router.monitor(where, _EVENTS)
            monitor = context.socket(zmq.PAIR)
            monitor.setsockopt(zmq.RCVHWM, 0)  # else libzmq's thread may have to wait for us
            monitor.setsockopt(zmq.LINGER, 0)
            monitor.connect(where)
            self.monitors[channel] = monitor
        self._probe = next(int(each.getsockopt(zmq.FD)) for each in self.monitors.values())
        self._by_fd: dict[int, _Connection] = {}
        self._other = 0
        self._count_at = self._tend_at = -1.0
        #: The tick at which to look again, whatever happens; infinite: not before something happens.
        self.look_at = math.inf
        #: Nobody else comes in just now.
        self.shut = False
        self.times_shut = self.cut_off = 0

    def close(self) -> None:
        """Before the sockets are closed."""
        for channel, monitor in self.monitors.items():
            self._routers[channel].disable_monitor()
            monitor.close(0)

    def counters(self) -> dict[str, int]:
        """For statistics."""
        return {
            "connections": len(self._by_fd),
            "connections_cut_off": self.cut_off,
            "times_shut": self.times_shut,
        }

    def heard(self, channel: Channel, fd: int, route: bytes) -> None:
        """A message has come over this descriptor by this route; perhaps before we were told of the connection."""
        connection = self._noted(channel, fd)
        if connection is not None:
            connection.route = route

    def look(self) -> None:
        """Take in who has come and gone; now and then look at all, and do what has to be done."""
        taken = [self._take(channel, monitor) for channel, monitor in self.monitors.items()]
        self._shut_in_time()
        tick = self._tick()
        if tick >= self._tend_at:
            self._tend_at = tick + PACE
            self._tend(tick)
        if not all(taken):
            self.look_at = tick  # a monitor's descriptor won't tell again of what was left
        else:
            self.look_at = self._tend_at if self._by_fd or self.shut else math.inf

    def _tend(self, tick: float) -> None:
        if tick >= self._count_at:
            self._count_at = tick + COUNT_PACE
            self._count()
            self._shut_in_time()
        used = self._told
        self._cut_off_idle(tick)
        if self.shut and used < LOW * self._limit:
            self._open(used)

    @property
    def _told(self) -> int:
        """How many descriptors are in use, by what was told so far."""
        return len(self._by_fd) + self._other

    def _shut_in_time(self) -> None:
        """Shut the doors, if it is time. In a flood that is a matter of a millisecond, and the monitors' words come
        late: so the lowest number that is free counts, too.
        """
        if self.shut:
            return
        try:
            free = os.dup(self._probe)
            os.close(free)
        except OSError:
            free = self._limit
        used = max(free, self._told)
        if used >= HIGH * self._limit:
            self._shut(used)

    # --- who comes and goes -----------------------------------------------------------------------

    def _take(self, channel: Channel, monitor: "zmq.Socket[bytes]") -> bool:
        """Whether that was all. In a flood there is always more: the doors don't wait for its end."""
        for _ in range(_CAP):
            if not is_readable(monitor):
                return True
            self._shut_in_time()
            event, fd = read_event(monitor)
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(channel, fd)
            elif event == zmq.EVENT_DISCONNECTED:
                connection = self._by_fd.get(fd)
                # Another may have got the number since, and have been noted before.
                if connection is not None and connection.inode != _inode(fd):
                    del self._by_fd[fd]
        return False

    def _accepted(self, channel: Channel, fd: int) -> None:
        connection = self._noted(channel, fd)
        if connection is not None and self.shut and self._is_tcp(channel):
            self._cut(connection)

    def _noted(self, channel: Channel, fd: int) -> _Connection | None:
        """The connection that has this number now; None if there is none."""
        inode = _inode(fd)
        connection = self._by_fd.get(fd)
        if inode is not None and (connection is None or connection.inode != inode):
            connection = self._by_fd[fd] = _Connection(channel, fd, inode, self._tick())
        return None if inode is None else connection

    def _is_tcp(self, channel: Channel) -> bool:
        endpoint: Any = self._routers[channel].getsockopt(zmq.LAST_ENDPOINT)
        return bool(endpoint.startswith(b"tcp"))

    def _count(self) -> None:
        """All descriptors but these connections'; and connections whose end nobody told are forgotten."""
        for connection in list(self._by_fd.values()):
            if connection.inode != _inode(connection.fd):
                del self._by_fd[connection.fd]
        try:
            found = os.listdir("/proc/self/fd")
        except OSError:
            return  # there is none left to look with
        self._other = max(0, len(found) - 1 - len(self._by_fd))

    # --- what is done about it --------------------------------------------------------------------

    def _cut_off_idle(self, tick: float) -> None:
        patience = IMPATIENCE if self.shut else PATIENCE
        for connection in list(self._by_fd.values()):
            route = connection.route
            if route is not None and self._knows(connection.channel, route):
                connection.since = tick
            elif tick - connection.since > patience:
                self._cut(connection)

    def _cut(self, connection: _Connection) -> None:
        del self._by_fd[connection.fd]
        # Not by a copy of the descriptor, for there may be none left. Should the number become another's in
        # between, that one is cut off in its place, and connects anew.
        with contextlib.suppress(OSError):
            found = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM, fileno=connection.fd)
            try:
                if _inode(connection.fd) == connection.inode:
                    self.cut_off += 1
                    found.shutdown(sockets.SHUT_RDWR)
            finally:
                found.detach()

    def _shut(self, used: int) -> None:
        for path in self._files:
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside(path))
        self.shut = True
        self.times_shut += 1
        log.warning(
            "%d of %d descriptors are in use: nobody else is let in until there are fewer. Raise the limit "
            "(ulimit -n), or end what is not needed",
            used,
            self._limit,
        )

    def _open(self, used: int) -> None:
        self.shut = False
        log.warning("%d of %d descriptors are in use: all are let in again", used, self._limit)
        for path in self._files:
            with contextlib.suppress(FileNotFoundError):
                aside(path).rename(path)


def aside(path: Path) -> Path:
    """Where the file of an ipc socket is while the doors are shut."""
    return path.with_name(f".{path.name}.shut")


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None
