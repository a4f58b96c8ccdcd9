"""Attempts in a simulated worker, and the part of its pool's table that tells of them."""

from typing import TYPE_CHECKING, Final

from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import AssignRow
from quiesce.registry.states import Outcome
from quiesce.testing.simulator.truths import Labels, TaskTruth

if TYPE_CHECKING:
    from quiesce.testing.simulator.worker import Worker

#: A function whose calls are over at once, nearly always.
SHORT: Final = b"short"


class Place:
    """One worker's part of the pool's table, which outlives it."""

    __slots__ = ("phases", "pid", "ready", "serial", "worker")

    def __init__(self) -> None:
        self.serial = 0
        self.pid = 0
        self.ready = False
        #: The phase of each attempt that has begun here and whose end the broker does not know yet.
        self.phases: dict[AttemptKey, str] = {}
        self.worker: Worker | None = None

    def assign(self, serial: int) -> None:
        """A new worker gets it."""
        self.serial = serial
        self.pid = 0
        self.ready = False
        self.phases = {}
        self.worker = None


class Attempt:
    """One attempt in this process."""

    __slots__ = (
        "asked",
        "begun_at",
        "deaf",
        "forced",
        "in_body",
        "key",
        "labels",
        "over",
        "reacting",
        "request",
        "row",
        "stopping",
        "truth",
        "unanswered",
        "worker",
    )

    def __init__(self, worker: "Worker", row: AssignRow) -> None:
        self.worker = worker
        self.row = row
        self.key: AttemptKey = (row.task_id, row.attempt)
        self.labels: Labels = (row.kind, row.tenant_id, row.timeline_id, worker.runtime)
        #: What the judge knows of its task, once it has begun.
        self.truth: TaskTruth | None = None
        #: When it began, if the main thread took it in a row.
        self.begun_at = 0.0
        self.in_body = False
        #: It knows, or can know, that it is asked to stop.
        self.asked = False
        #: It is on its way to look.
        self.reacting = False
        #: How often it must be forced; it looks if that is 0.
        self.deaf = 0
        self.forced = 0
        #: Its call of associate_with that has no answer.
        self.request = 0
        #: Its nested spawns without an answer; whether it waits for a stop that it has called.
        self.unanswered = 0
        self.stopping = False
        #: The outcome of its body, which has ended.
        self.over: Outcome | None = None

    def __str__(self) -> str:
        return f"{self.key[0]}.{self.key[1]}"
