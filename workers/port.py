"""What running tasks may ask of their worker: the TaskPort of `quiesce.context`."""

import math
import threading
from collections.abc import Callable
from typing import Final

from quiesce import errors
from quiesce.context import TaskContext
from quiesce.protocol.labels import check_label, check_length
from quiesce.protocol.sizes import NOTE_LIMIT, cut
from quiesce.registry.ids import Attempt, AttemptKey
from quiesce.workers import task_logs
from quiesce.workers.nursery import Nursery
from quiesce.workers.worker_effects import Effects, Settle
from quiesce.workers.worker_session import WorkerSession

#: What the session is told.
Event = Callable[[WorkerSession, float], Effects]
#: Calls within each other that what tells it may need.
ROOM: Final = 40
#: Seconds that associate_with waits for the broker.
ANSWER_WITHIN: Final = 30.0


class _Call:
    """One waiting call of associate_with."""

    __slots__ = ("answer", "answered", "task")

    def __init__(self, task: TaskContext) -> None:
        self.task = task
        self.answered = threading.Event()
        self.answer: Settle | None = None


class Port:
    """One for all attempts of a process. In a forked child it does nothing: the sockets are its parent's."""

    def __init__(
        self,
        say: Callable[[Event], None],
        nursery: Nursery,
    ) -> None:
        self._say = say
        self._nursery = nursery
        #: All and only the calls of associate_with that still wait.
        self._calls: dict[int, _Call] = {}

    def _tell(self, event: Event) -> None:
        """Tell the session, or raise RecursionError before it has heard of anything: it is told what neighbours
        have come to, too, and in the midst of that nothing may raise.
        """
        _make_room(ROOM)
        self._say(event)

    def associate(self, task: TaskContext, tenant_id: str | None, timeline_id: str | None) -> None:
        """Returns once the registry has it.

        Raises:
            TypeError, ValueError: a label is none.
            BrokerUnavailableError: no answer in time; the registry may or may not have it.
            QuiesceError: the broker refused; a class of `quiesce.errors`.
        """
        for what, label in (("tenant_id", tenant_id), ("timeline_id", timeline_id)):
            check_label(what, label)
            check_length(what, label)
        if self._nursery.in_child:
            raise errors.NotInTaskError(
                "associate_with() was called in a forked child process of a task. "
                "Call it in the process that runs the task."
            )
        call = _Call(task)
        request = 0

        def ask(session: WorkerSession, now: float) -> Effects:
            nonlocal request
            request, effects = session.associate(key_of(task), tenant_id, timeline_id)
            self._calls[request] = call
            return effects

        def give_up(session: WorkerSession, now: float) -> Effects:
            self._calls.pop(request, None)
            session.give_up(request)
            return []

        try:
            self._tell(ask)
            answered = call.answered.wait(ANSWER_WITHIN)
        finally:
            self._tell(give_up)
        answer = call.answer
        if not answered or answer is None:
            raise errors.BrokerUnavailableError(
                f"associate_with({tenant_id!r}, {timeline_id!r}) had no answer from the broker within "
                f"{ANSWER_WITHIN:g} s; the registry may or may not have it. Call it again."
            )
        if answer.error is not None:
            kind = getattr(errors, answer.error, errors.QuiesceError)
            raise kind(answer.text)
        task_logs.bind_again(task.info)

    def settle(self, answer: Settle) -> None:
        """The broker has answered. The task sees the change even if its call was interrupted."""
        call = self._calls.pop(answer.request, None)
        if call is None:
            return
        if answer.error is None:
            call.task.update(tenant_id=answer.tenant_id, timeline_id=answer.timeline_id)
        call.answer = answer
        call.answered.set()

    def report_progress(
        self, task: TaskContext, done: float, total: float | None, note: str
    ) -> None:
        """Never blocks.

        Raises:
            TypeError, ValueError: `done` or `total` is no number, or `note` no string.
        """
        part = _number("done", done)
        whole = None if total is None else _number("total", total)
        if not isinstance(note, str):
            raise TypeError(f"note must be a string, not {note!r}")
        if not self._nursery.in_child:
            key, text = key_of(task), cut(note, NOTE_LIMIT)
            self._tell(lambda session, now: session.report_progress(key, part, whole, text, now))

    def wait_began(self, task: TaskContext, other: int) -> None:
        """Never blocks."""
        if not self._nursery.in_child:
            self._tell(lambda session, now: session.wait_began(key_of(task), other))

    def wait_ended(self, task: TaskContext, other: int) -> None:
        """Never blocks."""
        if not self._nursery.in_child:
            self._tell(lambda session, now: session.wait_ended(key_of(task), other))

    def extend_grace(self, task: TaskContext, seconds: float) -> None:
        """Never blocks.

        Raises:
            TypeError, ValueError: `seconds` is no number, or below 0.
        """
        more = _number("seconds", seconds)
        if more < 0:
            raise ValueError(
                f"seconds must be 0 or more, not {seconds!r}: a grace is not shortened"
            )
        if not self._nursery.in_child:
            self._tell(lambda session, now: session.extend_grace(key_of(task), more))

    def observed(self, task: TaskContext) -> None:
        """Never blocks."""
        if not self._nursery.in_child:
            self._tell(lambda session, now: session.observed(key_of(task), now))


def _make_room(calls: int) -> None:
    if calls:
        _make_room(calls - 1)


def _number(what: str, value: float) -> float:
    # A string is read by float(), too.
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{what} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{what} must be a number that a float has room for") from None
    if math.isnan(number) or number == -math.inf:
        raise ValueError(f"{what} must be a number, not {value!r}")
    return number


def key_of(task: TaskContext) -> AttemptKey:
    """The attempt that a task context belongs to."""
    return task.key[0], Attempt(task.key[1])
