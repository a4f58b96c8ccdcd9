"""Journals in the tests: facts as a registry really decides them, and a folder to write them to."""

import select
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from quiesce.broker.journal import Journal, JournalLimits, Recovered
from quiesce.broker.journal_open import open_journal
from quiesce.protocol.frames import Frame
from quiesce.registry import events, facts
from quiesce.registry.effects import Effect, ExitWorker
from quiesce.registry.events import Event
from quiesce.registry.facts import Fact
from quiesce.registry.ids import Incarnation
from quiesce.registry.machine import Registry
from registry_helpers import Desk

BOOT: Final = "boot-1"
OTHER_BOOT: Final = "boot-2"
#: Small, so that little has to be written.
SMALL: Final = JournalLimits(reserve=64 * 1024, margin=0)


class Teller(Desk):
    """A desk that keeps the facts of each event as a turn."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.thorough = False
        self.turns: list[list[Fact]] = []
        self.say(events.EpochBegan(1))

    def _say(self, event: Event) -> None:
        before = len(self.facts)
        super()._say(event)
        if self.facts[before:]:
            self.turns.append(self.facts[before:])


def epoch(number: int) -> facts.EpochStarted:
    """The beginning of an epoch."""
    return facts.EpochStarted(number, 1.0, 1.0, "boot", "", 33.0)


def told(rounds: int = 1, payload: int = 10) -> Teller:
    """Tasks that are spawned, run, end, fail and are stopped; scopes that close, open and stay closed."""
    desk = Teller()
    desk.session("A")
    for step in range(rounds):
        tenant = f"tenant-{step}"
        worker = desk.worker()
        desk.spawn(
            *[{"tenant_id": tenant, "arguments": bytes([step % 256]) * payload} for _ in range(5)]
        )
        held = sorted(desk.registry.state.workers[worker].tasks)
        desk.begin(worker, *held)
        desk.end(worker, held[0], result=b"r" * payload)
        desk.stop(tenant_id=tenant, keep_closed=step % 2 == 0, reason="over")
        desk.go_on()
        left = [task for task in held[1:] if task in desk.registry.state.tasks]
        for task in left:
            desk.seen(worker, task, 0.0)
        desk.obey(worker, *left)
        rest = list(desk.registry.state.workers[worker].tasks)
        if rest:
            desk.begin(worker, *[t for t in rest if desk.life(t) == "assigned"])
            desk.obey(worker, *rest)
        desk.exit(worker, 0)
    desk.spawn({"tenant_id": "left", "unique_key": "k"}, {"runtime": "solo"})
    return desk


def effect(number: int) -> Effect:
    """An effect that can be told from others."""
    return ExitWorker(Incarnation(number))


def numbers(effects: Iterable[Effect]) -> list[int]:
    """What `effect` was called with."""
    return [cast("ExitWorker", each).worker for each in effects]


def begun(number: int) -> Fact:
    """A fact that can be told from others, and does not matter much."""
    return facts.TaskBegan(number, float(number))


def open_here(
    folder: Path,
    durability: str = "crash",
    *,
    boot: str = BOOT,
    limits: JournalLimits = SMALL,
    **more: Any,
) -> tuple[Journal, Recovered]:
    """The journal of this folder."""
    return open_journal(folder, durability, boot_id=boot, limits=limits, **more)


def take(journal: Journal, count: int, patience: float = 20.0) -> list[Effect]:
    """So many effects, waited for as the loop does."""
    deadline = time.monotonic() + patience
    found: list[Effect] = []
    while len(found) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"waited in vain for {count} effects; came: {found[-5:]}"
        select.select([journal.fileno()], [], [], left)
        found += journal.committed()
    return found


def write(journal: Journal, turns: Iterable[Sequence[Any]]) -> None:
    """Append these turns, and wait until they are safe."""
    turns = list(turns)
    for number, turn in enumerate(turns):
        journal.append(list(turn), [effect(number)])
    assert numbers(take(journal, len(turns))) == list(range(len(turns)))


def one_by_one(journal: Journal, turns: Iterable[Sequence[Any]]) -> None:
    """Each turn is a row of its own."""
    for turn in turns:
        write(journal, [turn])


def flat(turns: Iterable[Sequence[Any]]) -> list[Fact]:
    """The facts of all turns."""
    return [fact for turn in turns for fact in turn]


def plain(value: Any) -> Any:
    """With payloads as bytes, so that it can be compared."""
    if isinstance(value, Frame):
        return value.data
    if isinstance(value, tuple):
        return tuple([plain(item) for item in value])
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def registry_of(recovered: Recovered, configuration: dict[str, Any]) -> Registry:
    """What the broker makes of it."""
    if recovered.snapshot is None:
        registry = Registry(**configuration)
    else:
        registry = Registry.thaw(recovered.snapshot, **configuration)
    for fact in recovered.facts:
        registry.apply(fact)
    return registry


def take_snapshot(journal: Journal, frozen: tuple[Any, ...], patience: float = 20.0) -> None:
    """Hand it in, and wait until it stands. One at a time, as a broker does: else the end of the one before would
    pass for that of this.
    """
    _until_snapshot(journal, patience)
    journal.snapshot(frozen)
    _until_snapshot(journal, patience)


def _until_snapshot(journal: Journal, patience: float) -> None:
    deadline = time.monotonic() + patience
    while cast("Any", journal)._snapshotting:
        assert time.monotonic() < deadline, "waited in vain for the snapshot"
        write(journal, [[]])
