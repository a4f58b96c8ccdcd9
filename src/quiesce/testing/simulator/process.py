"""What all processes have in common: they can be stopped and go on, and die; and each host has its clocks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quiesce.broker.peers import Channel
from quiesce.testing.simulator.network import Link

if TYPE_CHECKING:
    from quiesce.testing.simulator.world import World


class Clock:
    """CLOCK_BOOTTIME of one boot of a host: begins at 0, runs at a rate of its own."""

    __slots__ = ("began", "rate", "world")

    def __init__(self, world: "World") -> None:
        self.world = world
        self.began = world.engine.now
        drift = world.plan.drift
        random = world.engine.random
        self.rate = 1.0 + random.choice((-drift, drift, drift * (2 * random.random() - 1)))

    def read(self) -> float:
        """Now, on this clock."""
        return (self.world.engine.now - self.began) * self.rate

    def moment(self, reading: float) -> float:
        """The true time at which it will show this."""
        return self.began + reading / self.rate


class Process:
    """One process that speaks to the broker. `links`: its sockets."""

    kind = "process"

    def __init__(self, world: "World", host: str, clock: Clock) -> None:
        self.world = world
        self.engine = world.engine
        self.host = host
        self.clock = clock
        self.pid = world.next_pid()
        self.alive = True
        #: Stopped by SIGSTOP: nothing of it runs.
        self.frozen = False
        #: How it ended; negative is the signal.
        self.status = 0
        self.links: list[Link] = []
        #: Its place in `world.peers`, for a cheap removal.
        self.place = -1
        #: When its next tick is planned.
        self.tick_at = float("inf")
        self._deferred: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        world.enter(self)

    def __str__(self) -> str:
        return f"{self.kind}-{self.pid}"

    # --- for its links ----------------------------------------------------------------------------

    def hear(self, channel: Channel, message: Any) -> None:
        """A message has arrived."""
        raise NotImplementedError

    def heard(self) -> None:
        """All that had arrived has been heard."""

    def lost(self, channel: Channel) -> None:
        """A connection is gone."""

    def back(self, channel: Channel) -> None:
        """A connection is there."""

    # --- being stopped ----------------------------------------------------------------------------

    def defer(self, call: Callable[..., object], *args: Any) -> None:
        """It is stopped: this happens when it goes on."""
        self._deferred.append((call, args))

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def resume(self) -> None:
        """SIGCONT: all that became due meanwhile happens, what has arrived is read."""
        if not self.alive or not self.frozen:
            return
        self.frozen = False
        for link in self.links:
            if link.connection is not None:
                link.connection.resume()
        deferred, self._deferred = self._deferred, []
        for place, (call, args) in enumerate(deferred):
            if self.frozen or not self.alive:
                self._deferred = deferred[place:]
                return
            call(*args)

    # --- time -------------------------------------------------------------------------------------

    def plan_tick(self, due: float | None) -> None:
        """Have `tick` called when its clock shows `due`, if it is not called before."""
        if due is None:
            return
        when = max(self.clock.moment(due) + 1e-6, self.engine.now)
        if when < self.tick_at:
            self.tick_at = when
            self.engine.at(when, self._on_tick, when)

    def _on_tick(self, when: float) -> None:
        if when != self.tick_at or not self.alive:
            return
        if self.frozen:
            self.defer(self._on_tick, when)
            return
        self.tick_at = float("inf")
        self.tick()

    def tick(self) -> None:
        """What time brings."""

    # --- the end ----------------------------------------------------------------------------------

    def end(self, status: int, *, orderly: bool = False) -> None:
        """It is gone."""
        if not self.alive:
            return
        self.alive = False
        self.status = status
        self._deferred.clear()
        for link in self.links:
            link.close(orderly=orderly)
        self.world.leave(self)
        if self.engine.trace is not None:
            self.engine.note(f"{self} ends with {status}")

    def what_is_left(self) -> list[str]:
        """What of its has not come to its end, once all should."""
        return []
