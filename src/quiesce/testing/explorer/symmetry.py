"""Clients that do the same differ in nothing but their names: of worlds that differ in these, one is explored."""

from itertools import permutations
from typing import Any

from quiesce.testing.explorer.brokers import sorted_sessions
from quiesce.testing.explorer.clients import Client
from quiesce.testing.explorer.rules import Truth
from quiesce.testing.explorer.scenario import Scenario
from quiesce.testing.explorer.store import Memo, Store
from quiesce.testing.explorer.world import Actor, Link, World

#: A client that is forgotten by the broker takes a new name; so many are foreseen.
GENERATIONS = 4


class Renaming:
    """One way to exchange the clients."""

    def __init__(
        self,
        scenario: Scenario,
        store: Store,
        places: list[int],
        names: list[bytes],
        order: tuple[int, ...],
    ) -> None:
        """`order`: which client takes the name and the place of each."""
        self._store = store
        self._memo = Memo()
        self._place = {places[old]: places[new] for old, new in enumerate(order)}
        self._words: dict[bytes | str, bytes | str] = {}
        self._numbers: dict[int, int] = {}
        size = len(scenario.spawns) // len(places)
        for old, new in enumerate(order):
            for channel in (0, 1):
                self._words[bytes((places[old], channel))] = bytes((places[new], channel))
            for generation in range(GENERATIONS):
                end = bytes([generation])
                self._words[names[old][:-1] + end] = names[new][:-1] + end
            for each in range(size):
                here, there = old * size + each, new * size + each
                self._numbers[here] = there
                self._words[scenario.spawns[here].name] = scenario.spawns[there].name

    def world(self, world: World) -> World:
        """The same, with other names."""
        actors = list(world.actors)
        for place, actor in enumerate(world.actors):
            actors[self._place.get(place, place)] = Actor(
                actor.kind,
                self._digest(actor.state) if actor.state else 0,
                self._link(actor.control),
                self._link(actor.data),
            )
        return world._replace(
            core=self._digest(world.core) if world.core else 0,
            durable=self._digest(world.durable),
            pending=tuple(map(self._digest, world.pending)),
            actors=tuple(actors),
            truth=self._truth(world.truth),
        )

    def _link(self, link: Link) -> Link:
        if not link.ins and not link.outs:
            return link
        return Link(
            link.status, tuple(map(self._digest, link.ins)), tuple(map(self._digest, link.outs))
        )

    def _truth(self, truth: Truth) -> Truth:
        numbers = self._numbers
        return Truth(
            tuple(sorted(each._replace(spawn=numbers[each.spawn]) for each in truth.begun)),
            tuple(sorted(numbers[number] for number in truth.dead)),
        )

    def _digest(self, key: int) -> int:
        return self._memo(key, lambda: self._store.put(self._value(self._store[key])))  # type: ignore[no-any-return]  # of a memo

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind is Client:
            renamed = self._plain(value)
            numbers = self._numbers
            return renamed._replace(
                known=tuple((numbers[number], what) for number, what in value.known),
                asked=tuple(
                    each._replace(before=tuple(sorted(numbers[number] for number in each.before)))
                    for each in value.asked
                ),
            )
        if kind is tuple and len(value) == 2 and type(value[1]) is tuple:  # a broker's core
            registry, peers = self._plain(value)
            timers = sorted(registry[-1][0], key=lambda due: (due[1], due[0][0], str(due[0][1])))
            registry = (*sorted_sessions(registry)[:-1], (tuple(timers), *registry[-1][1:]))
            return registry, tuple(sorted(peers))
        if kind is tuple:
            return sorted_sessions(self._plain(value))
        return self._plain(value)

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if kind is bytes or kind is str:
            return self._words.get(value, value)
        if kind is tuple or kind is list:
            return kind(map(self._plain, value))
        if isinstance(value, tuple):
            return kind._make(map(self._plain, value))
        return value


class Symmetry:
    """All ways to exchange the clients of a scenario."""

    def __init__(
        self, scenario: Scenario, store: Store, places: list[int], names: list[bytes]
    ) -> None:
        """`places`: of the clients, among the actors; `names`: of their sessions."""
        orders = list(permutations(range(len(places))))[1:]
        self._renamings = [Renaming(scenario, store, places, names, order) for order in orders]

    def canonical(self, world: World) -> World:
        """The one of all worlds like it that is explored."""
        return min([world, *(renaming.world(world) for renaming in self._renamings)])
