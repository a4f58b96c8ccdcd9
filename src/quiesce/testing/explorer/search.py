"""Breadth-first through all states of a scenario, on one core or several; and what was found.

States are shared out by their hashes: whoever owns one has seen it or expands it. Level by level, what was found
for others is exchanged, with the values that they have not met.
"""

import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Final

from quiesce.testing.explorer.model import Model, Step
from quiesce.testing.explorer.plants import planted
from quiesce.testing.explorer.rules import BrokenRule
from quiesce.testing.explorer.scenario import Scenario
from quiesce.testing.explorer.world import World

MASK: Final = 2**64 - 1
#: (world, hash of its parent, which of the parent's steps led to it).
Found = tuple[World, int, int]
#: States that one process expands before it looks at the clock.
LOOK: Final = 500


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A rule that does not hold, and the shortest way to that."""

    rule: str
    text: str
    steps: list[Step]


@dataclass(frozen=True, kw_only=True)
class Explored:
    """What came of it.

    `over`: states in which everyone has got what it wanted. `cpu`: seconds of all processes together.
    `complete`: there are no other states.
    """

    scenario: Scenario
    states: int
    transitions: int
    depth: int
    over: int
    seconds: float
    cpu: float
    complete: bool
    broken: Broken | None

    def __str__(self) -> str:
        extent = "all of it" if self.complete else "as far as this"
        rate = self.states / max(self.cpu, 1e-9)
        return (
            f"{self.scenario.name}: {self.states:,} states ({self.over:,} of them ends), "
            f"{self.transitions:,} transitions, depth {self.depth}, {extent}, in {self.seconds:.1f} s, "
            f"{self.cpu:.1f} s of CPU ({rate:,.0f} states/s)"
        )


class Shard:
    """The states that one process owns."""

    def __init__(self, scenario: Scenario, number: int, count: int) -> None:
        self.model = Model(scenario)
        self._number = number
        self._count = count
        #: By the hash of a state: its place in the arrays.
        self._places: dict[int, int] = {}
        self._parents = array("Q")
        self._steps = array("H")
        #: Steps that take no fault, as pairs of hashes; and the states that are over.
        self.edges = array("Q")
        self.over = array("Q")
        self.frontier: list[World] = []
        self.transitions = 0
        #: How many levels it has been asked for, and the last of them that had anything here.
        self.levels = self.depth = 0
        self.broken: list[tuple[str, str, int, Step | None]] = []
        self.initial = self.model.initial()
        #: For each other process: the values that it has from us.
        self._told: list[set[int]] = [set() for _ in range(count)]
        if self.owner(key_of(self.initial)) == number:
            self._add(self.initial, 0, 0, self.frontier)

    def __len__(self) -> int:
        return len(self._places)

    def owner(self, key: int) -> int:
        """Who is to look at the state with this hash."""
        return (key >> 20) % self._count

    def _add(self, world: World, parent: int, step: int, to: list[World]) -> None:
        key = key_of(world)
        if key not in self._places:
            self._places[key] = len(self._places)
            self._parents.append(parent)
            self._steps.append(step)
            to.append(world)

    def take_in(self, found: Iterable[Found], values: dict[int, Any]) -> None:
        """What others have found."""
        self.model.store.learn(values)
        for world, parent, step in found:
            self._add(world, parent, step, self.frontier)

    def expand(self, until: float) -> tuple[list[list[Found]], list[dict[int, Any]]]:
        """One level. What is found for each process, and the values that it needs; stops early at `until`."""
        found: list[list[Found]] = [[] for _ in range(self._count)]
        level, self.frontier = self.frontier, []
        if level:
            self.depth = self.levels
        self.levels += 1
        for number, world in enumerate(level):
            self._expand(world, found)
            if number % LOOK == 0 and time.monotonic() > until:
                break
        values = [self._news(other, found[other]) for other in range(self._count)]
        return found, values

    def _expand(self, world: World, found: list[list[Found]]) -> None:
        model = self.model
        key = key_of(world)
        is_over = model.is_over(world)
        if is_over:
            self.over.append(key)
        goes_on = is_over
        for number, (step, fault) in enumerate(model.next_steps(world)):
            self.transitions += 1
            try:
                after = model.take(world, step, fault)
            except BrokenRule as broken:
                self.broken.append((broken.rule, broken.text, key, step))
                goes_on = True
                continue
            there = key_of(after)
            if fault < 0 and there != key:
                goes_on = True
                self.edges.append(key)
                self.edges.append(there)
            owner = self.owner(there)
            if owner == self._number:
                self._add(after, key, number, self.frontier)
            else:
                found[owner].append((after, key, number))
        if not goes_on:
            text = "nobody can do anything, and somebody waits"
            self.broken.append(("everything can still end", text, key, None))

    def _news(self, other: int, found: list[Found]) -> dict[int, Any]:
        store, told = self.model.store, self._told[other]
        values: dict[int, Any] = {}
        for world, _, _ in found:
            for key in keys_in(world):
                if key not in told:
                    told.add(key)
                    values[key] = store[key]
        return values

    def parent(self, key: int) -> tuple[int, int]:
        """Where this state was found, and by which step."""
        place = self._places[key]
        return self._parents[place], self._steps[place]


def key_of(world: World) -> int:
    """The hash of a state: of integers alone, so it is the same in all processes."""
    return hash(world) & MASK


def keys_in(world: World) -> Iterable[int]:
    """All values that a world names."""
    if world.core:
        yield world.core
    yield world.durable
    yield from world.pending
    for _, state, control, data in world.actors:
        if state:
            yield state
        for link in (control, data):
            yield from link.ins
            yield from link.outs


# --- several processes ----------------------------------------------------------------------------


def _serve(pipe: Any, scenario: Scenario, number: int, count: int, plant: str) -> None:
    """The life of a process that owns a part of the states."""
    with planted(plant):
        shard = Shard(scenario, number, count)
        while True:
            what, *arguments = pipe.recv()
            if what == "level":
                incoming, until = arguments
                for found, values in incoming:
                    shard.take_in(found, values)
                outgoing = shard.expand(until)
                pipe.send((*outgoing, _numbers(shard), shard.broken, len(shard.frontier)))
            elif what == "parent":
                pipe.send(shard.parent(arguments[0]))
            elif what == "edges":
                pipe.send((shard.edges.tobytes(), shard.over.tobytes()))
            else:
                return


#: States, transitions, states that are over, seconds of CPU; and the depth.
Numbers = tuple[float, ...]


def _numbers(shard: Shard) -> Numbers:
    return len(shard), shard.transitions, len(shard.over), time.process_time(), shard.depth


class _Alone:
    """One process: this one."""

    def __init__(self, scenario: Scenario) -> None:
        self._shard = Shard(scenario, 0, 1)
        self.model = self._shard.model

    def level(self, until: float) -> tuple[bool, Numbers, list[Any]]:
        """Whether there is another one; the numbers so far; and what is broken."""
        self._shard.expand(until)
        return bool(self._shard.frontier), _numbers(self._shard), self._shard.broken

    def parent(self, key: int) -> tuple[int, int]:
        """As `Shard.parent`."""
        return self._shard.parent(key)

    def edges(self) -> tuple["array[int]", "array[int]"]:
        """As `Shard.edges` and `over`."""
        return self._shard.edges, self._shard.over

    def end(self) -> None:
        """Nothing is to be ended."""


class _Together:
    """Several processes, and this one that passes on what they find."""

    def __init__(self, scenario: Scenario, jobs: int, plant: str) -> None:
        self.model = Model(scenario)
        self.model.initial()
        context = get_context("spawn")
        self._pipes = []
        self._processes = []
        self._count = jobs
        for number in range(jobs):
            ours, theirs = context.Pipe()
            arguments = (theirs, scenario, number, jobs, plant)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._incoming: list[list[Any]] = [[] for _ in range(jobs)]

    def level(self, until: float) -> tuple[bool, Numbers, list[Any]]:
        for pipe, incoming in zip(self._pipes, self._incoming, strict=True):
            pipe.send(("level", incoming, until))
        self._incoming = [[] for _ in range(self._count)]
        total: list[float] = [0, 0, 0, 0, 0]
        broken: list[Any] = []
        more = False
        for pipe in self._pipes:
            found, values, numbers, bad, left = pipe.recv()
            for other in range(self._count):
                if found[other]:
                    self._incoming[other].append((found[other], values[other]))
                    more = True
            more = more or left > 0
            deepest = max(total[-1], numbers[-1])
            total = [old + new for old, new in zip(total, numbers, strict=True)]
            total[-1] = deepest
            broken += bad
        return more, tuple(total), broken

    def parent(self, key: int) -> tuple[int, int]:
        pipe = self._pipes[(key >> 20) % self._count]
        pipe.send(("parent", key))
        parent, step = pipe.recv()
        return parent, step

    def edges(self) -> tuple["array[int]", "array[int]"]:
        edges, over = array("Q"), array("Q")
        for pipe in self._pipes:
            pipe.send(("edges",))
            some, ends = pipe.recv()
            edges.frombytes(some)
            over.frombytes(ends)
        return edges, over

    def end(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send(("end",))
            except OSError:
                pass
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()
            pipe.close()
            process.close()


# --- the search -----------------------------------------------------------------------------------


def explore(
    scenario: Scenario,
    *,
    budget: int | None = None,
    seconds: float | None = None,
    jobs: int = 1,
    plant: str = "",
) -> Explored:
    """Explore a scenario to its end, to so many states, or for so long; or until a rule does not hold.

    `plant`: a bug to plant, by its name in `plants`.
    """
    began, idle = time.monotonic(), time.process_time() if jobs == 1 else 0.0
    until = began + (seconds if seconds is not None else 1e9)
    with planted(plant):
        team: _Alone | _Together = (
            _Alone(scenario) if jobs == 1 else _Together(scenario, jobs, plant)
        )
        try:
            while True:
                more, numbers, broken = team.level(until)
                late = time.monotonic() > until or (budget is not None and numbers[0] >= budget)
                if broken or late or not more:
                    break
            complete = not more and not broken and not late
            if complete:
                broken = _stuck(*team.edges())
            return Explored(
                scenario=scenario,
                states=int(numbers[0]),
                transitions=int(numbers[1]),
                depth=int(numbers[4]),
                over=int(numbers[2]),
                seconds=time.monotonic() - began,
                cpu=numbers[3] - idle,
                complete=complete,
                broken=_first(team, broken),
            )
        finally:
            team.end()


def _first(team: "_Alone | _Together", broken: list[Any]) -> Broken | None:
    """Of all that was found on a level, always the same: that whose story comes first."""
    stories = []
    for rule, text, key, last in broken:
        numbers: list[int] = []
        here = key
        while here:
            here, number = team.parent(here)
            numbers.append(number)
        stories.append((len(numbers), list(reversed(numbers[:-1])), rule, text, last))
        if len(stories) == 100:
            break
    if not stories:
        return None
    _, numbers, rule, text, last = min(stories, key=lambda story: (*story[:4], str(story[4])))
    model = team.model
    world = model.initial()
    steps: list[Step] = []
    for number in numbers:
        step, fault = model.next_steps(world)[number]
        steps.append(step)
        world = model.take(world, step, fault)
    if last is not None:
        steps.append(last)
    return Broken(rule=rule, text=text, steps=steps)


def _stuck(edges: "array[int]", over: "array[int]") -> list[Any]:
    """The states from which nothing that goes well leads to an end."""
    before: dict[int, list[int]] = {}
    for place in range(0, len(edges), 2):
        before.setdefault(edges[place + 1], []).append(edges[place])
    good = set(over)
    todo = list(good)
    while todo:
        for key in before.get(todo.pop(), ()):
            if key not in good:
                good.add(key)
                todo.append(key)
    text = "whatever happens, not everyone gets what it waits for"
    bad = {key for key in edges if key not in good}
    return [("everything can still end", text, key, None) for key in sorted(bad)]
