"""What the judge knows of each task, stop and call."""

from bisect import bisect_right
from typing import TYPE_CHECKING

from quiesce.registry import facts
from quiesce.registry.scope import Scope

if TYPE_CHECKING:
    from quiesce.testing.simulator.attempts import Attempt
    from quiesce.testing.simulator.worker import Worker

#: (kind, tenant, timeline, runtime)
Labels = tuple[str, str | None, str | None, str]


class Call:
    """One request of a client, as its caller sees it."""

    __slots__ = ("attempt", "hold", "keep", "number", "scope", "task_id")

    def __init__(
        self,
        scope: Scope,
        task_id: int | None,
        *,
        hold: bool = False,
        keep: bool = False,
        attempt: "Attempt | None" = None,
    ) -> None:
        self.scope = scope
        self.task_id = task_id
        self.hold = hold
        self.keep = keep
        #: The attempt in which it was made.
        self.attempt = attempt
        #: How many facts had been written down when it was made.
        self.number = 0


class TaskTruth:
    """What really became of one task."""

    __slots__ = (
        "begun",
        "created_at",
        "ended",
        "history",
        "id",
        "labels",
        "number",
        "over",
        "reported",
        "running",
        "smudged",
    )

    def __init__(self, task_id: int, labels: Labels, number: int, created_at: float) -> None:
        self.id = task_id
        #: Tells it from one that has got its number after the disk had lost this one.
        self.created_at = created_at
        #: Those of its spawn.
        self.labels = labels
        #: Facts that were written down before it was registered.
        self.number = number
        #: Since when (in facts) which labels have held, where its attempts have changed them.
        self.history: list[tuple[int, Labels]] | None = None
        #: In which process each attempt began; how those ended that ended by themselves.
        self.begun: dict[int, Worker] = {}
        self.ended: dict[int, str] = {}
        self.running: Attempt | None = None
        #: A client has been told of its end: it must never run again.
        self.over = False
        #: By the report of a stop, which no disk may lose.
        self.reported = False
        #: The disk has lost something of it, as its mode allows: how it ended is anybody's guess.
        self.smudged = False

    def was_in(self, scope: Scope, since: int, until: int) -> bool:
        """Whether it was in the scope at some time between these numbers of facts."""
        if self.history is None:
            return scope.matches(*self.labels)
        first = bisect_right(self.history, since, key=lambda each: each[0]) - 1
        return any(
            scope.matches(*labels)
            for number, labels in self.history[max(first, 0) :]
            if number <= until
        )


class StopTruth:
    """One stop, by the broker's order."""

    __slots__ = ("at", "caller", "ended", "last_spawn", "number", "scope", "session", "task_id")

    def __init__(self, fact: facts.StopOpened, number: int) -> None:
        #: Facts that were written down before it, and before its end.
        self.number = number
        self.ended = number
        self.at = fact.at
        self.last_spawn = fact.last_spawn
        self.scope = fact.scope
        self.session = fact.session
        self.task_id = fact.task_id
        self.caller = fact.caller


class Closed:
    """A scope that a client was told is closed. `left`: tasks that it was told may still run.

    `kept`: only who reopens or releases it opens it; else a stop that succeeds does, too.
    """

    __slots__ = ("kept", "left", "scope")

    def __init__(self, scope: Scope, left: frozenset[int], *, kept: bool) -> None:
        self.scope = scope
        self.left = left
        self.kept = kept
