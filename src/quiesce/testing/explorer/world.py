"""The state of the whole cluster: a small tuple of integers, equal iff the clusters are."""

from typing import Final, NamedTuple

from quiesce.testing.explorer.rules import Truth
from quiesce.testing.explorer.scenario import Faults

#: What an actor is.
POOL: Final = 0
WORKER: Final = 1
CLIENT: Final = 2
DEAD_WORKER: Final = 3
DEAD_POOL: Final = 4
GONE: Final = 5

#: How a connection is: there; broken, and its owner has not noticed; broken, and it has; not made yet.
UP: Final = 0
CUT: Final = 1
LOST: Final = 2
NEW: Final = 3

#: Places in `World.faults`: what may still go wrong.
TOTAL: Final = 0
BREAKS: Final = 1
HASTY: Final = 2
WORKERS: Final = 3
POOLS: Final = 4
BROKERS: Final = 5
SESSIONS: Final = 6
TICKS: Final = 7

NOTHING: Final = (0, 0, 0, 0, 0, 0, 0)


class Link(NamedTuple):
    """One connection to the broker. `ins`: messages on their way to the broker; `outs`: on their way from it."""

    status: int = UP
    ins: tuple[int, ...] = ()
    outs: tuple[int, ...] = ()


class Actor(NamedTuple):
    """One process but the broker. Supervisors use the control connection alone."""

    kind: int
    state: int
    control: Link
    data: Link


class World(NamedTuple):
    """`core` 0: there is no broker. `pending`: turns that the journal does not hold yet, oldest first."""

    clock: int
    faults: tuple[int, ...]
    core: int
    durable: int
    pending: tuple[int, ...]
    actors: tuple[Actor, ...]
    truth: Truth


EMPTY: Final = Link()
NOBODY: Final = Actor(GONE, 0, EMPTY, EMPTY)


def allowance(faults: Faults) -> tuple[int, ...]:
    """As `World.faults`."""
    return (
        faults.total,
        faults.breaks,
        faults.hasty,
        faults.workers,
        faults.pools,
        faults.brokers,
        faults.sessions,
        faults.ticks,
    )


class Draft:
    """A world in the making."""

    __slots__ = ("actors", "clock", "core", "durable", "faults", "pending", "truth")

    def __init__(self, world: World) -> None:
        self.clock, self.faults, self.core, self.durable, self.pending = world[:5]
        self.actors = list(world.actors)
        self.truth = world.truth

    def world(self) -> World:
        """As it is now."""
        for place, actor in enumerate(self.actors):
            if actor.kind == GONE and actor is not NOBODY and not (actor[2].ins or actor[3].ins):
                self.actors[place] = NOBODY
        return World(
            self.clock,
            self.faults,
            self.core,
            self.durable,
            self.pending,
            tuple(self.actors),
            self.truth,
        )

    def spend(self, what: int) -> None:
        """One fault less; when the sum is used up, so is every part of it."""
        left = list(self.faults)
        left[what] -= 1
        if what != TICKS:
            left[TOTAL] -= 1
            if not left[TOTAL]:
                left[:TICKS] = NOTHING
        self.faults = tuple(left)

    def link(self, place: int, channel: int) -> Link:
        """One connection of an actor."""
        actor = self.actors[place]
        return actor.data if channel else actor.control

    def set_link(self, place: int, channel: int, link: Link) -> None:
        """Change it."""
        kind, state, control, data = self.actors[place]
        if channel:
            self.actors[place] = Actor(kind, state, control, link)
        else:
            self.actors[place] = Actor(kind, state, link, data)

    def set_state(self, place: int, state: int) -> None:
        """Change what an actor is in."""
        kind, _, control, data = self.actors[place]
        self.actors[place] = Actor(kind, state, control, data)
