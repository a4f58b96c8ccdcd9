"""One attempt: what it is, what its body came to, and how that is judged."""

import contextvars
import sys
import traceback
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from quiesce.context import TaskContext
from quiesce.errors import PayloadTooLargeError, ShutdownRequested
from quiesce.protocol.callables import pack_exception, pack_value
from quiesce.protocol.sizes import cut_within
from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import AssignRow
from quiesce.registry.states import Outcome, State
from quiesce.task_info import Fence, TaskInfo
from quiesce.workers.scope import Scope
from quiesce.workers.table import Phase
from quiesce.workers.worker_effects import Identity

if TYPE_CHECKING:
    import asyncio  # see `loop`

_PHASES: Final = {
    Outcome.COMPLETED: Phase.COMPLETED,
    Outcome.FAILED: Phase.FAILED,
    Outcome.CANCELLED: Phase.CANCELLED,
    Outcome.CRASHED: Phase.CRASHED,
}
#: What most attempts come to: to look up a member of an enumeration, or to hash it, costs more than all else here.
COMPLETED: Final = Outcome.COMPLETED
_COMPLETED: Final = Phase.COMPLETED


def phase_of(outcome: Outcome) -> Phase:
    """What the table says of such an end."""
    return _COMPLETED if outcome is COMPLETED else _PHASES[outcome]


class Verdict(NamedTuple):
    """How an attempt ended. `result`: the pickled value or exception, as in EndedRow."""

    outcome: Outcome
    text: str
    result: bytes


#: What a group holds, whatever its class makes of that.
_EXCEPTIONS: Final[Any] = BaseExceptionGroup.__dict__["exceptions"]
#: Of a body that returned None.
NOTHING: Final = Verdict(COMPLETED, "", pack_value(None))


class Where(Enum):
    """Where the body of an attempt runs."""

    MAIN_THREAD = auto()
    THREAD = auto()
    LOOP = auto()


class Attempt:
    """One attempt in this process, from its Hand to its end."""

    __slots__ = (
        "begun_at",
        "context",
        "forced",
        "has_passed",
        "key",
        "root",
        "row",
        "scope",
        "task",
        "verdict",
        "where",
    )

    def __init__(self, key: AttemptKey, row: AssignRow, task: TaskContext, scope: Scope) -> None:
        self.key = key
        self.row = row
        self.task = task
        self.scope = scope
        #: The body's context, in which `task` is the current one. Nothing else leaks between attempts.
        self.context: Final = contextvars.Context()
        #: When it began, for one that the main thread has taken in a row.
        self.begun_at = 0.0
        #: Where its body runs, once that has begun.
        self.where: Where | None = None
        #: The asyncio task of the body, if it runs on the loop.
        self.root: asyncio.Task[Any] | None = None
        #: Whether the gate let it pass when it was asked last.
        self.has_passed = False
        #: Force has come: whatever it starts now is killed when it is seen.
        self.forced = False
        #: Set once the body has ended.
        self.verdict: Verdict | None = None

    @property
    def is_asked(self) -> bool:
        """Whether it has been asked to stop, by the broker's word or the supervisor's flag."""
        return self.task.is_asked

    def words(self) -> str:
        """Who it is, for the log."""
        row, info = self.row, self.task.info
        return (
            f"task {row.task_id}.{row.attempt} {row.kind} {row.name!r} "
            f"(tenant {info.tenant_id!r}, timeline {info.timeline_id!r})"
        )


def info_of(row: AssignRow, identity: Identity, epoch: int, incarnation: int) -> TaskInfo:
    """An attempt as it sees itself when it begins; when that was, the worker tells it then."""
    return TaskInfo(
        id=row.task_id,
        attempt=row.attempt,
        kind=row.kind,
        name=row.name,
        runtime=identity.runtime,
        tenant_id=row.tenant_id,
        timeline_id=row.timeline_id,
        state=State.RUNNING,
        created_at=row.created_at,
        host=identity.host,
        worker_pid=identity.pid,
        fence=Fence(epoch, incarnation, row.attempt),
    )


def judge(error: BaseException | None, asked: bool, forced: bool = False) -> Outcome:
    """The table of section 5 of the design: what an attempt's body came to."""
    if error is None:
        return Outcome.COMPLETED
    if forced:
        return Outcome.CANCELLED  # whatever it has made of what was raised in it
    leaves, ends = _leaves(error), _ends()
    if all(issubclass(leaf, ends) for leaf in leaves):
        # Raised though nobody asked: its own doing, and no end that anybody waits for.
        return Outcome.CANCELLED if asked else Outcome.FAILED
    if any(not issubclass(leaf, (Exception, *ends)) for leaf in leaves):
        return Outcome.CRASHED
    return Outcome.FAILED


def _ends() -> tuple[type[BaseException], ...]:
    """What asks a body to end. Nobody has raised asyncio's where nobody has imported it."""
    exceptions = sys.modules.get("asyncio.exceptions")
    cancelled = getattr(exceptions, "CancelledError", ShutdownRequested)
    return ShutdownRequested, cancelled


def _leaves(error: BaseException) -> set[type[BaseException]]:
    """The types of what a group holds: a TaskGroup wraps even a ShutdownRequested of its children.

    However deep that is, and whatever the errors say of themselves: `isinstance` would ask them.
    """
    leaves: set[type[BaseException]] = set()
    left = [error]
    while left:
        each = left.pop()
        if issubclass(type(each), BaseExceptionGroup):
            left += _EXCEPTIONS.__get__(each)
        else:
            leaves.add(type(each))
    return leaves


def bare_verdict(error: BaseException, asked: bool, forced: bool) -> Verdict:
    """On an error that can't be packed or formatted: what can be said without its help."""
    text = "an error that can't be shown"
    with suppress(BaseException):
        text = type(error).__name__
        text = ascii(error)
    try:
        outcome = judge(error, asked, forced)
    except BaseException:  # of memory, say: its end is told all the same
        outcome = Outcome.FAILED
    return Verdict(outcome, text, b"")


def verdict_of(
    value: Any, error: BaseException | None, asked: bool, forced: bool, limit: int
) -> Verdict:
    """Judge and pack. A result that can't be sent makes the attempt fail, with words that say so."""
    outcome = judge(error, asked, forced)
    if error is not None:
        packed = pack_exception(error)
        return Verdict(outcome, describe(error), packed if len(packed) <= limit else b"")
    try:
        packed = pack_value(value)
    except Exception as unpicklable:
        unpicklable.add_note(
            f"The task returned normally, but its result (a {type(value).__qualname__}) can't be pickled, "
            "so it can't be sent. Return plain data instead."
        )
        return Verdict(Outcome.FAILED, describe(unpicklable), pack_exception(unpicklable))
    if len(packed) > limit:
        large = PayloadTooLargeError(
            f"the task returned normally, but its result of {len(packed)} bytes exceeds the limit of "
            f"{limit} bytes; write it to storage and return its place, or raise the limit"
        )
        return Verdict(Outcome.FAILED, describe(large), pack_exception(large))
    return Verdict(outcome, "", packed)


def describe(error: BaseException) -> str:
    """The traceback, from the body on: what the worker's own frames say helps nobody. Not all of a long one."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_globals.get("__name__", "")):
        trace = trace.tb_next
    return cut_within("".join(traceback.format_exception(type(error), error, trace)))


def _is_ours(module: str) -> bool:
    return (
        module.startswith(("quiesce.workers.", "quiesce.protocol.")) or module == "quiesce.workers"
    )
