"""What the client keeps of each spawn and each request, shared by its handle and the I/O thread.

A record never refers to its handle, so that the handle's going away can be noticed.
"""

import logging
from collections.abc import Iterable
from typing import Final

from quiesce.client.outcomes import refusal
from quiesce.client.steps import Answer
from quiesce.client.waiting import Waitable, Waker
from quiesce.errors import QuiesceError
from quiesce.locks import Lock
from quiesce.registry.rows import ResultRow, SpawnRow
from quiesce.registry.states import Outcome

log: Final = logging.getLogger("quiesce")

#: (class of quiesce.errors, text): how an error is kept, since each raising makes a new one.
Trouble = tuple[str, str]


class Ends(Waitable):
    """The ends of several spawns. Over once none is left to come."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        super().__init__()
        #: Counted by the I/O thread alone.
        self.left = left


class Reply(Waitable):
    """A control request that waits for its answer. Over once `answer` or `trouble` is set."""

    __slots__ = ("answer", "ends", "holds", "key", "orphan", "trouble")

    def __init__(self) -> None:
        super().__init__()
        #: 0 until the I/O thread has taken it up.
        self.key = 0
        self.answer: Answer | None = None
        #: Of a stop's report: over once the ends that it tells of have arrived, too.
        self.ends: Ends | None = None
        self.trouble: Trouble | None = None
        #: Nobody waits any more.
        self.orphan = False
        #: Its answer brings a scope that stays closed until Release.
        self.holds = False


class Look:
    """Whether somebody has been shown the trouble of spawns that were asked for together."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = False


class SpawnRecord(Waitable):
    """One spawn. Over once its task has ended, or it was refused or given up; before that, answered.

    There are many of them, and few of which more is asked than how they end: what is rarely wanted is made late.
    """

    __slots__ = (
        "awaited",
        "dropped",
        "look",
        "name",
        "parent",
        "result",
        "row",
        "task_id",
        "trouble",
        "value",
    )

    def __init__(self, common: SpawnRow, row: SpawnRow | None, look: Look | None = None) -> None:
        self.over = False
        self.wakers = None
        self.name = common.name
        self.parent = common.parent
        #: What is to be sent, until the I/O thread has it: it may be large, and a handle may be held for long.
        #: None for one of many.
        self.row = row
        self.task_id = 0
        #: The end of the task, until there is a `value`: the packed result would take as much room again.
        self.result: ResultRow | None = None
        #: A refusal, or why nothing more will be heard of the task.
        self.trouble: Trouble | None = None
        #: No handle is left to show the trouble through.
        self.dropped = False
        #: The rebuilt result, once asked for: (value,).
        self.value: tuple[object] | None = None
        #: Whether somebody has been shown the trouble; made when it is asked for, unless it is shared.
        self.look = look
        #: What is over once the broker has answered; made when somebody waits for that.
        self.awaited: Waitable | None = None

    @property
    def answered(self) -> bool:
        """Whether the broker has: `task_id` or `trouble` is set."""
        return self.task_id != 0 or self.over

    def answer(self, lock: Lock) -> Waitable:
        """What is over once the broker has answered."""
        with lock:
            if self.awaited is None:
                self.awaited = Waitable()
                self.awaited.over = self.answered
            return self.awaited

    def waited_task(self) -> int:
        """See Waitable."""
        return self.task_id

    @property
    def completed(self) -> bool:
        """Whether the task is known to have returned, be its result lost or not."""
        row = self.result  # before the look at the value, which is there before this goes
        return self.value is not None or (row is not None and row.outcome == Outcome.COMPLETED)

    def keep(self, value: object) -> object:
        """Under the lock: the rebuilt result, for all who ask: that of the first who comes here."""
        if self.value is None:
            self.value = (value,)
            self.result = None
        return self.value[0]

    def give_up(self, trouble: Trouble, wakers: list[Waker]) -> None:
        """Under the lock: refused, unknown, or the client is closed. No more will come."""
        if self.over:
            return
        self.row = None
        self.trouble = trouble
        if self.awaited is not None and not self.awaited.over:
            self.awaited.finish(wakers)
        self.finish(wakers)

    def error(self) -> QuiesceError:
        """The trouble as an exception; whoever gets it has seen it."""
        assert self.trouble is not None
        self.take_note()
        return refusal(*self.trouble)

    def take_note(self) -> bool:
        """Somebody sees the trouble now; whether nobody had before."""
        if self.look is None:
            self.look = Look()
        seen, self.look.taken = self.look.taken, True
        return not seen

    def on_dropped(self) -> None:
        """No handle is left. What nobody looked at is said in the log."""
        self.dropped = True
        if self.trouble is not None:
            log_unseen([self])


def log_unseen(records: Iterable[SpawnRecord]) -> None:
    """Log the spawns among these that failed and that nobody has seen; one line for each reason.

    Only what became of the spawn itself; how a task ended is logged where it ran.
    """
    names: dict[Trouble, list[str]] = {}
    for record in records:
        if record.trouble is not None and not record.task_id and record.take_note():
            names.setdefault(record.trouble, []).append(record.name)
    for (error, text), of in names.items():
        more = f" (and of {len(of) - 1} others)" if len(of) > 1 else ""
        log.warning("spawn of %s%s failed, and nobody looked: %s: %s", of[0], more, error, text)
