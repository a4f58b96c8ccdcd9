"""One turn of the registry: what an event has led to so far.

Handlers decide, `emit` facts (applied at once, so that the next decision sees them) and `send` effects.
"""

from collections.abc import Collection, Iterable
from typing import Any

from quiesce.registry import effects
from quiesce.registry.apply import apply
from quiesce.registry.effects import Effect
from quiesce.registry.events import Instant
from quiesce.registry.facts import Fact
from quiesce.registry.ids import Incarnation, SessionId, StopId
from quiesce.registry.printable import printable
from quiesce.registry.records import Task
from quiesce.registry.rows import Alike, AssignRow, ResultRow, SpawnAnswer, SpawnRow
from quiesce.registry.state import State
from quiesce.registry.timers import Timers


class Turn:
    """Facts in the order of their decision; effects in the order of their sending, batched by receiver."""

    __slots__ = (
        "_batches",
        "begun",
        "dirty",
        "effects",
        "facts",
        "fatal",
        "now",
        "state",
        "timers",
        "touched",
        "unparked",
    )

    def __init__(self, state: State, timers: Timers, now: Instant) -> None:
        self.state = state
        self.timers = timers
        self.now = now
        self.facts: list[Fact] = []
        self.effects: list[Effect] = []
        #: A fact has been applied, or was about to be.
        self.begun = False
        #: Runtimes in which something may be assigned now.
        self.dirty: set[str] = set()
        #: Stops that may be complete now.
        self.touched: set[StopId] = set()
        #: Spawns whose unique key has become free.
        self.unparked: list[tuple[SessionId, SpawnRow]] = []
        #: Why the whole system must stop, if a task marked so has failed.
        self.fatal: str | None = None
        self._batches: dict[tuple[type, Any], list[Any]] = {}

    def emit(self, fact: Fact) -> None:
        """Decide: the fact is applied and recorded."""
        self.begun = True
        apply(self.state, fact)
        self.facts.append(fact)

    def let_go(self, task: Task) -> None:
        """A worker, or a limit, has room that this task took."""
        spawn = task.spawn
        limits = self.state.kind(spawn.kind)
        self.dirty.add(spawn.runtime)
        if limits.is_limited:
            self.dirty.update(self.state.runtimes)

    def unpark(self, task: Task) -> None:
        """The spawns that wait for its end are decided anew once this is over."""
        for (session, _), row in task.parked.items():
            self.unparked.append((session, row))

    def send(self, effect: Effect) -> None:
        """Have something done."""
        self.effects.append(effect)

    def log(self, level: str, *lines: str) -> None:
        """Have something said in the broker's log. What users have named is in it, and adds no line to these."""
        self.effects.append(effects.Log(level, "\n".join(map(printable, lines))))

    def _rows(self, kind: type, to: Any) -> list[Any]:
        rows = self._batches.get((kind, to))
        if rows is None:
            rows = self._batches[(kind, to)] = []
            self.effects.append(kind(to, rows))
        return rows

    def _batch(self, kind: type, to: Any, row: Any) -> None:
        self._rows(kind, to).append(row)

    def answer_spawn(self, session: SessionId, answer: SpawnAnswer) -> None:
        """One row of AnswerSpawns."""
        self._batch(effects.AnswerSpawns, session, answer)

    def answer_spawns(self, session: SessionId, answers: Iterable[SpawnAnswer | Alike]) -> None:
        """Some rows of AnswerSpawns."""
        self._rows(effects.AnswerSpawns, session).extend(answers)

    def send_results(self, session: SessionId, rows: Collection[ResultRow | Alike]) -> None:
        """Some rows of SendResults."""
        if rows:
            self._rows(effects.SendResults, session).extend(rows)

    def assign(self, worker: Incarnation, rows: Iterable[AssignRow | Alike]) -> None:
        """Some rows of AssignTasks."""
        self._rows(effects.AssignTasks, worker).extend(rows)

    def take_given_back(self, worker: Incarnation, row: tuple[int, int, int]) -> None:
        """One row of TakeGivenBack."""
        self._batch(effects.TakeGivenBack, worker, row)

    def ask_stop(self, worker: Incarnation, row: tuple[int, int, int, str]) -> None:
        """One row of AskStops."""
        self._batch(effects.AskStops, worker, row)

    def raise_flag(self, supervisor: bytes, row: tuple[int, int, int]) -> None:
        """One row of RaiseFlags."""
        self._batch(effects.RaiseFlags, supervisor, row)
