"""The way to a broken rule: read by people, and replayed by a test."""

from collections.abc import Sequence
from typing import Any, Final

from quiesce.testing.explorer.model import Model, Step
from quiesce.testing.explorer.process_states import Worker
from quiesce.testing.explorer.scenarios import SCENARIOS
from quiesce.testing.explorer.search import Broken
from quiesce.testing.explorer.world import CLIENT, DEAD_POOL, DEAD_WORKER, POOL, WORKER, World

_KINDS: Final = {
    POOL: "supervisor",
    WORKER: "worker",
    CLIENT: "client",
    DEAD_WORKER: "dead worker",
    DEAD_POOL: "dead supervisor",
}
_CHANNELS: Final = ("control", "data")
#: Characters of a message, at most.
_WIDTH: Final = 150


def replay(name: str, steps: Sequence[Step]) -> World:
    """Take these steps in this scenario. One that is not possible (any more) ends it: the bug is mended.

    Returns:
        The last state.

    Raises:
        BrokenRule: what the trace was found for.
    """
    model = Model(SCENARIOS[name])
    world = model.initial()
    for step in steps:
        possible = {each.step: each.fault for each in model.next_steps(world)}
        if step not in possible:
            break
        world = model.take(world, step, possible[step])
    return world


def story(name: str, steps: Sequence[Step]) -> list[str]:
    """Each step in words. (Of a planted bug it is told with the bug planted.)"""
    model = Model(SCENARIOS[name])
    world = model.initial()
    words: list[str] = []
    for step in steps:
        words.append(_words(model, world, step))
        possible = {each.step: each.fault for each in model.next_steps(world)}
        if step is not steps[-1]:
            world = model.take(world, step, possible[step])
    return words


def pasteable(name: str, broken: Broken, told: Sequence[str]) -> str:
    """A test that fails as long as the rule is broken. `told`: its story."""
    lines = [
        "def test_that_was_found_by_the_explorer() -> None:",
        f"    # {broken.rule}:",
        f"    # {broken.text}",
        "    replay(",
        f"        {name!r},",
        "        [",
    ]
    for step, words in zip(broken.steps, told, strict=True):
        lines.append(f"            {step!r},  # {words}")
    return "\n".join([*lines, "        ],", "    )"])


def _words(model: Model, world: World, step: Step) -> str:
    what, *arguments = step
    if what == "timer":
        return f"the timer {arguments[0]} of the broker fires"
    if not arguments:
        return str(what)
    place, *rest = arguments
    who = _name(model, world, place)
    if what in ("hear", "hears"):
        link = (world.actors[place].control, world.actors[place].data)[rest[0]]
        channel = _CHANNELS[rest[0]]
        if what == "hear":
            return f"the broker hears {who} on {channel}: {_message(model, link.ins[0])}"
        return f"{who} hears on {channel}: {_message(model, link.outs[0])}"
    if what in ("breaks", "notices"):
        return f"the {_CHANNELS[rest[0]]} connection of {who} {what}"
    if what == "dies":
        return f"{who} dies; what it had sent {'may still arrive' if rest[0] else 'is lost'}"
    if what == "goes on":
        client = model.store[world.actors[place].state]
        return f"{who} goes on: {_short(client.steps[client.place])}"
    return f"{who} {what} {' '.join(map(str, rest))}".rstrip()


def _name(model: Model, world: World, place: int) -> str:
    actor = world.actors[place]
    name = f"{_KINDS.get(actor.kind, 'somebody who is gone')} {place}"
    if actor.kind == WORKER:
        worker: Worker = model.store[actor.state]
        return f"{name} (serial {worker.identity.serial} of supervisor {worker.pool})"
    return name


def _message(model: Model, key: int) -> str:
    return _short(model.store[key])


def _short(thing: Any) -> str:
    text = str(thing)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
