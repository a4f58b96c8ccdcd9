"""The broker's loop: control first, then data, then time; and after each turn what follows from it leaves.

One thread owns the sockets and the registry. A turn takes a bounded number of messages from each socket,
so that a flood on one holds up neither the other nor the deadlines.
"""

import logging
import os
import select
import signal
import time
from collections import deque
from typing import Any, Final

import zmq

from quiesce.broker.connections import Connections
from quiesce.broker.core import Core
from quiesce.broker.fence import Fence
from quiesce.broker.journal import Journal, Recovered
from quiesce.broker.journal_thread import DiskJournal
from quiesce.broker.peers import Channel, Peers
from quiesce.broker.settings import BrokerSettings
from quiesce.broker.stand_in import StandIn
from quiesce.broker.vigil import Vigil
from quiesce.protocol import wire
from quiesce.registry import effects, events

log: Final = logging.getLogger("quiesce.broker")
#: Messages that one turn takes from a socket, and seconds after which it takes no more: what follows from them
#: leaves at its end, and somebody waits for that.
LONG: Final = 0.001
CAP: Final[dict[Channel, int]] = {"control": 1000, "data": 200}
#: Turns that follow each other without a look at anything but the sockets, as long as each finds messages there.
IN_A_ROW: Final = 10
#: Seconds for which what takes long waits for somebody's next word.
MOMENT: Final = 0.0003
#: Seconds between two tries of a full connection.
RETRY: Final = 0.02
#: Seconds of one sleep: somebody's deadline may be after the end of time.
LONGEST: Final = 3600.0
#: Complaints about malformed messages that are logged in one minute; the others are counted only.
COMPLAINTS: Final = 10


class Broker:
    """Ties the sockets and the clock to the core."""

    def __init__(
        self,
        settings: BrokerSettings,
        control: zmq.Socket[bytes],
        data: zmq.Socket[bytes],
        wakeup: int,
        journal: Journal,
        recovered: Recovered,
        epoch: int,
        boot_id: str,
        descriptors: int | None = None,
    ) -> None:
        """`recovered`: what the journal held. The broker of `epoch` goes on from there. `descriptors`: how many it
        is to use.
        """
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {"control": control, "data": data}
        self._channels: dict[object, Channel] = {control: "control", data: "data"}
        self._both = [(control, zmq.POLLIN), (data, zmq.POLLIN)]
        self._peers = Peers(control, data)
        self._connections = Connections(
            control.context,
            self._sockets,
            settings.socket_files,
            lambda channel, route: self._peers.at(channel, route) is not None,
            time.monotonic,
            limit=descriptors,
        )
        self._wakeup = wakeup
        #: What it sleeps on: descriptors, for ZeroMQ's own poller looks at each socket several times. That of a
        #: socket tells of what comes until the socket is used; so before each sleep both are looked at.
        self._poll = select.poll()
        self._vigil = Vigil(self._poll, settings.busy_poll)
        self._monitors = frozenset(
            int(monitor.getsockopt(zmq.FD)) for monitor in self._connections.monitors.values()
        )
        #: How many turns have not polled.
        self._hurried = 0
        self._journal = journal
        self._complaints: deque[float] = deque()
        self._core = Core(
            settings,
            self._peers,
            journal,
            recovered,
            epoch,
            boot_id,
            complain=self._complain,
            patient=True,
            is_clear=Fence().is_clear,
        )
        self._stand_in: StandIn | None = None
        if isinstance(journal, DiskJournal):
            self._core.queries.journal = journal.figures
        self._core.more_counters = self._connections.counters

    def close(self) -> None:
        """Before the sockets are closed, whether it ran or not."""
        if self._stand_in is not None:
            self._stand_in.close()
        self._vigil.close()
        self._connections.close()

    def settle(self) -> None:
        """Wait until the beginning of this epoch is durable: nobody may hear of it before.

        Raises:
            JournalFailedError: it can't be written.
        """
        last = effects.Log("DEBUG", f"epoch {self._core.registry.state.epoch} is written down")
        self._journal.append([], [last])
        ready: list[effects.Effect] = []
        while last not in ready:
            ready += self._journal.committed()
            if self._journal.fileno() >= 0 and last not in ready:
                select.select([self._journal.fileno()], [], [])
        for effect in ready:
            self._core.outgoing.carry_out(effect)

    def run(self) -> bool:
        """Serve until the system has stopped; whether a failure stopped it.

        Raises:
            JournalFailedError: nothing can be written any more. What is not acknowledged is given up; whoever
                starts the broker again goes on from what was written.
        """
        descriptors = [int(socket.getsockopt(zmq.FD)) for socket in self._sockets.values()]
        descriptors += [self._wakeup, *self._monitors]
        if self._journal.fileno() >= 0:
            descriptors.append(self._journal.fileno())
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)
        self._connections.look()  # a socket's descriptor tells of what comes once the socket was found empty
        if isinstance(self._journal, DiskJournal):
            self._stand_in = StandIn(self._turn)
            self._journal.commit_here(self._stand_in.aside)
        while self._core.stopped is None:
            self._turn(LONGEST)
        self._core.say_goodbye()
        self._journal.close()
        return self._core.stopped

    # --- one turn ---------------------------------------------------------------------------------

    def _turn(self, longest: float) -> None:
        """Serve once, having waited at most so many seconds for something to do."""
        # Under load there is always more: then all else is looked at only after a few turns in a row.
        arrived = self._arrived()
        if arrived and self._hurried < IN_A_ROW:
            self._hurried += 1
        else:
            self._hurried = 0
            for what, _ in self._wait(bool(arrived), longest):
                if what == self._wakeup:
                    self._take_signals()
                elif what in self._monitors:
                    self._connections.look()
            if self._connections.look_at <= time.monotonic():
                self._connections.look()
            arrived = self._arrived()
        for channel in arrived:
            self._drain(channel, CAP[channel])
        self._core.pass_time()
        self._core.leave(heard=bool(arrived))

    def _wait(self, arrived: bool, longest: float) -> list[tuple[int, int]]:
        """Until something is to be done; what has something to say, beside the sockets."""
        if not arrived and self._core.talking and self._core.busy:
            return self._vigil.look(MOMENT)
        return self._vigil.wait(0 if arrived else self._timeout(longest))

    def _timeout(self, longest: float) -> int:
        """Milliseconds until something is due."""
        if self._core.busy:
            return 0
        wait = min(longest, self._connections.look_at - time.monotonic())
        deadline = self._core.due()
        if deadline is not None:
            wait = min(wait, deadline - time.clock_gettime(time.CLOCK_BOOTTIME))
        stacks = self._core.queries.stacks.next_deadline()
        if stacks is not None:
            wait = min(wait, stacks - time.monotonic())
        if self._core.peers.full:
            wait = min(wait, RETRY)
        return max(0, int(wait * 1000) + 1)

    def _arrived(self) -> list[Channel]:
        """Where there is something to take, control first."""
        return [self._channels[socket] for socket, _ in zmq.zmq_poll(self._both, 0)]

    def _drain(self, channel: Channel, cap: int) -> None:
        """Take what has arrived: one message, then others up to so many, but not for long."""
        socket = self._sockets[channel]
        enough = time.monotonic() + LONG
        for _ in range(cap):
            route = socket.recv()
            if self._peers.at(channel, route) is None:
                self._hear_stranger(channel, route)
            else:
                # A route never comes alone.
                self._core.incoming.take(channel, [route, *wire.receive_frames(socket)])
            if time.monotonic() > enough or not wire.is_readable(socket):
                return

    def _hear_stranger(self, channel: Channel, route: bytes) -> None:
        """A message of nobody that is known, perhaps a hello: then its connection is somebody's."""
        frames: Any = self._sockets[channel].recv_multipart(copy=False)
        try:
            self._connections.heard(channel, frames[0].get(zmq.SRCFD), route)
        except zmq.ZMQError:
            pass  # it speaks a ZMTP older than any of ours, or something that looks like it
        self._core.incoming.take(channel, [route, *[frame.bytes for frame in frames]])

    def _take_signals(self) -> None:
        for number in _read_signals(self._wakeup):
            if number in (signal.SIGTERM, signal.SIGINT):
                name = signal.Signals(number).name
                self._core.handle(events.SystemStopAsked(f"signal {name}"))

    def _complain(self, text: str) -> None:
        """Log a malformed message, but let no peer fill the log."""
        now = time.monotonic()
        while self._complaints and self._complaints[0] < now - 60:
            self._complaints.popleft()
        if len(self._complaints) < COMPLAINTS:
            self._complaints.append(now)
            log.warning("dropped a message: %s", text)


def _read_signals(wakeup: int) -> bytes:
    try:
        return os.read(wakeup, 4096)
    except BlockingIOError:
        return b""
