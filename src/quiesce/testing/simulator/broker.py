"""A broker process: the real core between a simulated network and a simulated journal."""

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

from quiesce.broker.core import Core
from quiesce.broker.journal import JournalFailedError
from quiesce.broker.settings import BrokerSettings
from quiesce.registry import effects, events
from quiesce.registry.events import Instant
from quiesce.testing.simulator.disk import SimulatedJournal
from quiesce.testing.simulator.network import SimulatedPeers
from quiesce.testing.simulator.process import Clock

if TYPE_CHECKING:
    from quiesce.testing.simulator.host import BrokerHost

#: Seconds that a turn of its loop takes: what arrives meanwhile is heard in the next.
TURN = 0.0004
#: Seconds between two tries of a full connection.
RETRY = 0.02


class Broker:
    """From its start to its end. It listens once the beginning of its epoch is written down."""

    def __init__(self, up: "BrokerHost", settings: BrokerSettings) -> None:
        self.up = up
        self.world = up.world
        self.engine = up.world.engine
        self.clock: Clock = up.clock
        self.alive = True
        self.frozen = False
        self.listening = False
        self.control: deque[tuple[bytes, Any]] = deque()
        self.data: deque[tuple[bytes, Any]] = deque()
        self._due = False
        self._alarm = inf
        disk = up.disk
        recovered = disk.recover(up.boot_id)
        if not recovered.complete:
            self.engine.counts["recoveries that may miss something"] += 1
        self.journal = SimulatedJournal(disk, up.boot_id, self.wake, self.world.judge.committed)
        self.core = Core(
            settings,
            SimulatedPeers(self.world.network),
            self.journal,
            recovered,
            disk.epoch,
            up.boot_id,
            now=self.now,
        )
        # Here few tasks are alike, so few count as many: in each world others.
        self.core.registry.state.alike = 1 + self.world.seed % 4
        self.core.outgoing.on_still_waiting = _say_nothing
        self.wake()

    def now(self) -> Instant:
        """Its clocks."""
        return Instant(self.clock.read(), self.world.wall())

    def wake(self) -> None:
        """Something has arrived, or is safe."""
        if not self._due:
            self._due = True
            self.engine.after(TURN, self.turn)

    def turn(self) -> None:
        """One turn of its loop."""
        self._due = False
        if not self.alive or self.frozen:
            return
        core = self.core
        if not self.listening:
            if not self.journal.idle:
                return  # the journal wakes us
            self.listening = not self.journal.failed
            if self.listening:
                self.up.broker_is_ready()
        trace = self.engine.trace
        try:
            for inbox, channel in ((self.control, "control"), (self.data, "data")):
                while inbox:
                    route, message = inbox.popleft()
                    if trace is not None:
                        self.engine.note(f"broker hears {message!r:.300}")
                    core.hear(channel, route, message)  # type: ignore[arg-type]  # these are its names
            core.pass_time()
            core.leave()
        except JournalFailedError:
            self.up.broker_ended(5)
            return
        if core.stopped is not None:
            core.say_goodbye()
            self.journal.close()
            self.up.broker_ended(0)
            return
        if core.busy:
            self.wake()
        self._plan()

    def _plan(self) -> None:
        due = self.core.due()
        when = inf if due is None else max(self.clock.moment(due) + 1e-6, self.engine.now)
        if self.core.peers.full:
            when = min(when, self.engine.now + RETRY)
        if when < self._alarm:
            self._alarm = when
            self.engine.at(when, self._ring, when)

    def _ring(self, when: float) -> None:
        if when == self._alarm:
            self._alarm = inf
            self.wake()

    def stop_system(self) -> None:
        """SIGTERM."""
        if self.alive and self.listening and not self.frozen:
            self.core.handle(events.SystemStopAsked("signal SIGTERM"))
            self.wake()

    def resume(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.wake()

    def end(self) -> None:
        """The process is gone."""
        self.alive = False
        self.journal.kill()


def _say_nothing(effect: effects.StillWaiting) -> None:
    """Stacks are asked for by the real clock; here nobody reads them."""
