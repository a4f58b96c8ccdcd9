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
from quiesce.registry.rows import ResultRow

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
    """Whether somebody has been shown the trouble of a spawn; spawns of one spawn_many share it."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = False


class SpawnRecord(Waitable):
    """One spawn. Over once its task has ended, or it was refused or given up; before that, `answered`."""

    __slots__ = (
        "answered",
        "dropped",
        "look",
        "name",
        "parent",
        "result",
        "task_id",
        "trouble",
        "value",
    )

    def __init__(self, name: str, parent: tuple[int, int] | None, look: Look | None = None) -> None:
        super().__init__()
        self.name = name
        self.parent = parent
        #: Over once the broker has answered: `task_id` or `trouble` is set.
        self.answered = Waitable()
        self.task_id = 0
        self.result: ResultRow | None = None
        #: A refusal, or why nothing more will be heard of the task.
        self.trouble: Trouble | None = None
        #: No handle is left to show the trouble through.
        self.dropped = False
        self.look = look or Look()
        #: The rebuilt result, once asked for: (value,).
        self.value: tuple[object] | None = None

    def waited_task(self) -> int:
        """See Waitable."""
        return self.task_id

    def accept(self, task_id: int, wakers: list[Waker]) -> None:
        """Under the lock: the broker has registered the task."""
        self.task_id = task_id
        self.answered.finish(wakers)

    def end(self, result: ResultRow, wakers: list[Waker]) -> None:
        """Under the lock: the task has ended."""
        self.result = result
        self.finish(wakers)

    def give_up(self, trouble: Trouble, wakers: list[Waker]) -> None:
        """Under the lock: refused, unknown, or the client is closed. No more will come."""
        if self.over:
            return
        self.trouble = trouble
        if not self.answered.over:
            self.answered.finish(wakers)
        self.finish(wakers)

    def error(self) -> QuiesceError:
        """The trouble as an exception; whoever gets it has seen it."""
        assert self.trouble is not None
        self.look.taken = True
        return refusal(*self.trouble)

    def on_dropped(self) -> None:
        """No handle is left. What nobody looked at is said in the log."""
        self.dropped = True
        self.log_unseen()

    def log_unseen(self) -> None:
        """Log a spawn that failed, unless somebody has seen it, or was told of it here before."""
        log_unseen([self])


def log_unseen(records: Iterable[SpawnRecord]) -> None:
    """Log the spawns among these that failed and that nobody has seen; one line for each reason.

    Only what became of the spawn itself; how a task ended is logged where it ran.
    """
    names: dict[Trouble, list[str]] = {}
    for record in records:
        if record.trouble is not None and not record.task_id and not record.look.taken:
            record.look.taken = True
            names.setdefault(record.trouble, []).append(record.name)
    for (error, text), of in names.items():
        more = f" (and of {len(of) - 1} others)" if len(of) > 1 else ""
        log.warning("spawn of %s%s failed, and nobody looked: %s: %s", of[0], more, error, text)
