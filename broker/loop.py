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

from quiesce import __version__
from quiesce.broker import news
from quiesce.broker.incoming import Incoming
from quiesce.broker.journal import Journal, Recovered
from quiesce.broker.outgoing import Outgoing
from quiesce.broker.peers import Channel, PeerKey, Peers
from quiesce.broker.queries import Queries
from quiesce.broker.settings import BrokerSettings
from quiesce.protocol import to_client
from quiesce.registry import effects, events
from quiesce.registry.facts import SessionClosed
from quiesce.registry.machine import Registry

log: Final = logging.getLogger("quiesce.broker")
#: Messages that one turn takes from a socket.
CONTROL_CAP: Final = 1000
DATA_CAP: Final = 200
#: Seconds between two tries of a full connection.
RETRY: Final = 0.02
#: Seconds for which a dead worker's route is kept, so that its last words are heard.
MOURNING: Final = 5.0
#: Complaints about malformed messages that are logged in one minute; the others are counted only.
COMPLAINTS: Final = 10


def recover(settings: BrokerSettings, recovered: Recovered) -> Registry:
    """The registry as it was when the journal was last written."""
    configuration: dict[str, Any] = {
        "runtimes": settings.runtimes,
        "kinds": settings.kinds,
        "shutdown_order": settings.shutdown_order,
        "stop_timeout": settings.stop_timeout,
        "session_timeout": settings.session_timeout,
        "history": settings.history,
        "payload_limit": settings.payload_limit,
        "lease": settings.lease,
        "lease_bound": settings.lease_bound,
    }
    if recovered.snapshot is None:
        registry = Registry(**configuration)
    else:
        registry = Registry.thaw(recovered.snapshot, **configuration)
    for fact in recovered.facts:
        registry.apply(fact)
    return registry


class Broker:
    """Ties the sockets to the registry."""

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
    ) -> None:
        """`recovered`: what the journal held. The broker of `epoch` goes on from there."""
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {"control": control, "data": data}
        self._wakeup = wakeup
        self._journal = journal
        self.registry = recover(settings, recovered)
        self.peers = Peers(control, data)
        self._queries = Queries(
            self.registry,
            self.peers,
            address=settings.address,
            version=__version__,
            durability=journal.durability,
            say_malformed=self._complain,
        )
        self._queries.counters = self._counters
        self._incoming = Incoming(
            self.peers, self._queries, self.handle, payload_limit=settings.payload_limit
        )
        self._outgoing = Outgoing(self.peers, payload_limit=settings.payload_limit)
        self._outgoing.on_still_waiting = self._queries.stacks.say
        self._incoming.epoch = self._outgoing.epoch = epoch
        #: Something acknowledged before may be missing from the journal, and may still run.
        self._doubtful = not recovered.complete
        self._graves: deque[tuple[float, PeerKey]] = deque()
        self._complaints: deque[float] = deque()
        self.handle(
            events.EpochBegan(epoch, boot_id, settings.run, settings.swept, recovered.complete)
        )
        if settings.stopping and not self.registry.state.stopping:
            self.handle(events.SystemStopAsked(settings.stopping))

    def handle(self, event: events.Event) -> None:
        """One event into the registry; what must not wait for the journal is done at once."""
        tick = time.clock_gettime(time.CLOCK_BOOTTIME)
        facts, caused = self.registry.handle(event, events.Instant(tick, time.time()))
        patient = []
        for effect in caused:
            if type(effect) in effects.HASTY:
                self._outgoing.carry_out(effect)
            else:
                patient.append(effect)
        if facts or patient:
            self._journal.append(facts, patient)
        if facts:
            news.tell(self.peers, facts, time.time())
            for fact in facts:
                if type(fact) is SessionClosed:
                    self.peers.forget(("session", fact.session))
        if isinstance(event, events.WorkerExited):
            worker: PeerKey = ("worker", (event.supervisor, event.row.serial))
            self._graves.append((tick + MOURNING, worker))

    def settle(self) -> None:
        """Wait until the beginning of this epoch is durable: nobody may hear of it before.

        Raises:
            JournalFailedError: it can't be written.
        """
        last = effects.Log("DEBUG", f"epoch {self.registry.state.epoch} is written down")
        self._journal.append([], [last])
        ready: list[effects.Effect] = []
        while last not in ready:
            ready += self._journal.committed()
            if self._journal.fileno() >= 0 and last not in ready:
                select.select([self._journal.fileno()], [], [])
        for effect in ready:
            self._outgoing.carry_out(effect)

    def run(self) -> bool:
        """Serve until the system has stopped; whether a failure stopped it.

        Raises:
            JournalFailedError: nothing can be written any more. What is not acknowledged is given up; whoever
                starts the broker again goes on from what was written.
        """
        poller = zmq.Poller()
        for socket in self._sockets.values():
            poller.register(socket, zmq.POLLIN)
        poller.register(self._wakeup, zmq.POLLIN)
        if self._journal.fileno() >= 0:
            poller.register(self._journal.fileno(), zmq.POLLIN)
        while self._outgoing.stopped is None:
            poller.poll(self._timeout())
            self._take_signals()
            self._drain("control", CONTROL_CAP)
            self._drain("data", DATA_CAP)
            self._pass_time()
            self._leave()
        self._say_goodbye()
        return self._outgoing.stopped

    # --- one turn ---------------------------------------------------------------------------------

    def _timeout(self) -> int:
        """Milliseconds until something is due; -1 for ever."""
        if self._outgoing.again:
            return 0
        waits = []
        deadline = self.registry.next_deadline()
        if deadline is not None:
            waits.append(deadline - time.clock_gettime(time.CLOCK_BOOTTIME))
        stacks = self._queries.stacks.next_deadline()
        if stacks is not None:
            waits.append(stacks - time.monotonic())
        if self.peers.full:
            waits.append(RETRY)
        if not waits:
            return -1
        return max(0, int(min(waits) * 1000) + 1)

    def _drain(self, channel: Channel, cap: int) -> None:
        socket = self._sockets[channel]
        for _ in range(cap):
            waiting = socket.getsockopt(zmq.EVENTS)
            if not isinstance(waiting, int) or not waiting & zmq.POLLIN:
                return
            frames: Any = socket.recv_multipart()
            self._incoming.take(channel, frames)

    def _take_signals(self) -> None:
        for number in _read_signals(self._wakeup):
            if number in (signal.SIGTERM, signal.SIGINT):
                self.handle(events.SystemStopAsked(f"signal {signal.Signals(number).name}"))

    def _pass_time(self) -> None:
        again, self._outgoing.again = self._outgoing.again, []
        for stop_id in again:
            self.handle(events.Continue(stop_id))
        tick = time.clock_gettime(time.CLOCK_BOOTTIME)
        deadline = self.registry.next_deadline()
        if deadline is not None and deadline <= tick:
            self.handle(events.Tick())
        self._queries.stacks.expire()
        while self._graves and self._graves[0][0] <= tick:
            self.peers.forget(self._graves.popleft()[1])

    def _leave(self) -> None:
        """What is safe by now leaves."""
        for effect in self._journal.committed():
            self._outgoing.carry_out(effect)
        if self._journal.room() is self.registry.state.full:
            self.handle(events.RoomSaid(self._journal.room()))
        if self._doubtful and self.registry.state.certain_at is None:
            self._doubtful = False
            self._journal.vouch()
        if self._journal.wants_snapshot():
            self._journal.snapshot(self.registry.freeze(volatile=False, payloads=True))
        self._outgoing.flush()
        if self.peers.full:
            self.peers.flush()

    def _say_goodbye(self) -> None:
        self._outgoing.flush()
        for peer in list(self.peers.by_key.values()):
            if peer.key[0] == "session":
                self.peers.send(peer, "control", to_client.Goodbye(self.registry.state.stop_reason))
        self._journal.close()

    def _counters(self) -> dict[str, int]:
        return {
            "malformed_messages": self._incoming.malformed,
            "undeliverable_messages": self.peers.dropped,
            "peers": len(self.peers.by_key),
        }

    def _complain(self, text: str) -> None:
        """Log a malformed message, but let no peer fill the log."""
        now = time.monotonic()
        while self._complaints and self._complaints[0] < now - 60:
            self._complaints.popleft()
        if len(self._complaints) < COMPLAINTS:
            self._complaints.append(now)
            log.warning("dropped a malformed message: %s", text)


def _read_signals(wakeup: int) -> bytes:
    try:
        return os.read(wakeup, 4096)
    except BlockingIOError:
        return b""
