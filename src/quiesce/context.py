"""What a task sees of itself.

A context variable holds the current attempt. It follows the body into coroutines, `asyncio.to_thread`,
`copy_context().run` and (in a worker) threads that it starts. The worker makes one `TaskContext` for each
attempt and hands in what reaches beyond the process: the port to the broker and the client factory.
"""

import dataclasses
import os
import sys
import threading
import warnings
from _thread import allocate_lock
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from quiesce.errors import NotInTaskError, ShutdownRequested
from quiesce.locks import Lock
from quiesce.registry.ids import TaskId
from quiesce.task_info import TaskInfo, TaskKind
from quiesce.token import CancellationToken
from quiesce.token_tree import Node, run_callbacks

if TYPE_CHECKING:
    from quiesce.client import Client


#: Held while the lock of a task is put in its place, which most never need.
_making: Final = allocate_lock()
os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined]  # as threading's


class TaskPort(Protocol):
    """What a task can ask of its worker."""

    def associate(
        self, task: "TaskContext", tenant_id: str | None, timeline_id: str | None
    ) -> None:
        """Returns once the registry has it."""

    def report_progress(
        self, task: "TaskContext", done: float, total: float | None, note: str
    ) -> None:
        """Never blocks."""

    def wait_began(self, task: "TaskContext", other: int) -> None:
        """A call in this task has waited for the end of task `other` for long, and goes on. Never blocks."""

    def wait_ended(self, task: "TaskContext", other: int) -> None:
        """It is over; said once for each `wait_began`. Never blocks."""

    def extend_grace(self, task: "TaskContext", seconds: float) -> None:
        """Never blocks."""

    def observed(self, task: "TaskContext") -> None:
        """The task has seen the request to stop; called once for each attempt. Never blocks."""


class TaskContext:
    """One attempt as its body sees it.

    `words[flag_index]` is the word of the shared table in which the supervisor writes the attempt's key when
    it is asked to stop; `words[check_index]` counts its checks. `root` is the runtime's own token: cancelled
    by the worker when the request arrives; tasks only ever get its one child, `token`.
    What most tasks never ask for (tokens, their own description) is made when they do.
    """

    __slots__ = (
        "_about",
        "_changes",
        "_describe",
        "_info",
        "_lock",
        "_observed",
        "_root",
        "_started_at",
        "_token",
        "check_index",
        "checks",
        "flag_index",
        "flag_key",
        "key",
        "node",
        "port",
        "scope",
        "words",
    )

    def __init__(
        self,
        key: tuple[TaskId, int],
        port: TaskPort,
        words: Any,
        flag_index: int,
        check_index: int,
        flag_key: int,
        describe: Callable[..., TaskInfo],
        about: tuple[Any, ...] = (),
        scope: Any = None,
    ) -> None:
        """`describe(*about)` gives what the task sees of itself when it begins."""
        #: Which attempt this is.
        self.key = key
        self.port = port
        self.words = words
        self.flag_index = flag_index
        self.check_index = check_index
        self.flag_key = flag_key
        #: What was last written to the check counter: nobody else writes it, so it need not be read.
        self.checks = 0
        #: The root's place in its tree; None until somebody wants a token.
        self.node: Node | None = None
        self._root: CancellationToken | None = None
        self._token: CancellationToken | None = None
        self._describe = describe
        self._about = about
        self._info: TaskInfo | None = None
        self._started_at: float | None = None
        #: What else has changed while nobody had asked for the description; None for nothing.
        self._changes: dict[str, Any] | None = None
        #: All that the attempt has begun; the worker's own, opaque here.
        self.scope = scope
        self._observed = False
        self._lock: Lock | None = None

    @property
    def _changing(self) -> Lock:
        """Held for moments, while what the task sees of itself changes. Reentrant, and each task has its own: in
        the midst of a change the garbage collector may run code of a task, which may wait for whatever it likes.
        """
        if self._lock is None:
            lock = Lock()
            with _making:  # nothing of a task's runs in here
                if self._lock is None:
                    self._lock = lock
        return self._lock

    def began(self, at: float) -> None:
        """It begins; said before any code of the task can run, and again if it was put off."""
        self._started_at = at
        if self._info is not None:
            self.update(started_at=at)

    def update(self, **changes: Any) -> None:
        """Change what the task sees of itself. Any thread; no change is lost."""
        with self._changing:
            if self._info is None:
                self._changes = {**(self._changes or {}), **changes}
            else:
                self._info = dataclasses.replace(self._info, **changes)

    @property
    def info(self) -> TaskInfo:
        """What the task sees of itself, as it is now."""
        if self._info is None:
            with self._changing:
                if self._info is None:
                    changes = self._changes or {}
                    if self._started_at is not None:
                        changes = {"started_at": self._started_at, **changes}
                    self._info = dataclasses.replace(self._describe(*self._about), **changes)
        return self._info

    @property
    def root(self) -> CancellationToken:
        """The runtime's own token."""
        if self._root is None:
            with self._changing:
                if self._root is None:
                    root = CancellationToken()
                    self.node = (
                        root._node
                    )  # first: whoever has the token must see its mark in a check
                    self._root = root
        return self._root

    @property
    def token(self) -> CancellationToken:
        """The task's token, always the same one."""
        if self._token is None:
            root = self.root
            with self._changing:
                if self._token is None:
                    self._token = root.child_token()
        return self._token

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the task's token, or has callbacks on it."""
        return self._token is not None and self._token.is_awaited()

    def wake(self, reason: str) -> Callable[[], None] | None:
        """Cancel its tokens, and wake all that waits for them. No code of the task's runs in here.

        What is given runs the callbacks, which may take long; None if there are none.
        """
        marked, watches = self.root._node.mark(reason)
        rest = partial(run_callbacks, marked, watches)
        # After the mark: who adds one from now on runs it.
        if any(watch.callbacks for watch in watches):
            return rest
        rest()
        return None

    @property
    def is_asked(self) -> bool:
        """Whether it has been asked to stop, by the broker's word or the supervisor's flag. No look is counted."""
        node = self.node
        asked = node is not None and node.cancelled
        return asked or self.words[self.flag_index] == self.flag_key

    def is_shutdown_requested(self) -> bool:
        """A read of shared memory: no lock, no message, no GIL of another thread."""
        self.checks = checks = self.checks + 1
        self.words[self.check_index] = checks
        if not self.is_asked:
            return False
        if not self._observed:
            self.observe()
        return True

    @property
    def has_observed(self) -> bool:
        """Whether it has seen the request."""
        return self._observed

    def observe(self) -> None:
        """Note that the task has seen the request; tells the broker once."""
        if not self._observed:
            self._observed = True
            self.port.observed(self)


_current: Final[ContextVar[TaskContext | None]] = ContextVar("quiesce_task", default=None)
_get_current: Final = _current.get
#: How `current_client()` gets its client in this process; a worker puts its factory here.
_client_factory: list[Callable[[], "Client"]] = []


def current_context() -> TaskContext | None:
    """The attempt that the calling code belongs to. For the worker and the client, not for tasks."""
    return _current.get()


def enter(task: TaskContext | None) -> Any:
    """Make `task` the current one in this context; gives the token for `leave`."""
    return _current.set(task)


def leave(token: Any) -> None:
    """Undo `enter`."""
    _current.reset(token)


def entrance(thread: threading.Thread) -> Callable[..., object]:
    """Calls what a thread of the current task runs, in its context: a copy of the caller's.

    Or, since Python 3.14, in the one that the thread was given, which may know of no task, or of another.
    """
    if sys.version_info >= (3, 14) and thread._context is not None:
        return partial(_in_task, _current.get())
    return copy_context().run


def _in_task(task: TaskContext | None, call: Callable[..., object], /, *args: Any) -> None:
    token = enter(task)
    try:
        call(*args)
    finally:
        leave(token)


def set_client_factory(factory: Callable[[], "Client"]) -> None:
    """For the worker at its start."""
    _client_factory[:] = [factory]


def _here(what: str) -> TaskContext:
    task = _current.get()
    if task is None:
        raise NotInTaskError(
            f"{what} was called outside of a task. Call it from a function that a quiesce worker runs, "
            "or from a thread or coroutine that such a function started."
        )
    return task


def is_shutdown_requested() -> bool:
    """Whether the current task has been asked to stop.

    Costs about as much as two dictionary look-ups, so check as often as you like. Outside of a task:
    a RuntimeWarning, and False. (After neon's `task_mgr::is_shutdown_requested`.)
    """
    task = _get_current()
    if task is None:
        warnings.warn(
            "is_shutdown_requested() was called outside of a task; it answers False there",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    # The method of this name, written out: a call more would cost half of it all. A flag of 0, which is what
    # it mostly is, need not be compared: no key is 0.
    words = task.words
    task.checks = checks = task.checks + 1
    words[task.check_index] = checks
    flag = words[task.flag_index]
    node = task.node
    if (flag and flag == task.flag_key) or (node is not None and node.cancelled):
        task.observe()
        return True
    return False


def shutdown_token() -> CancellationToken:
    """The current task's token: cancelled when the task is asked to stop; always the same one.

    It is a child of the runtime's own, so that cancelling it does not pass for a request.

    Callbacks that are added to it, or to tokens below it, run when the task is asked, one after the other as
    `CancellationToken.cancel` says, in a thread of the worker that is theirs for so long, and in a copy of the
    task's context. They may take long: what waits for the token is woken before them, and they hold up nothing but
    the end of the task, of which they are a part. (A worker that can start no thread runs them in the one that
    hears requests to stop, which then hears none before they are over.)

    Raises:
        NotInTaskError: outside of a task.
    """
    return _here("shutdown_token()").token


async def shutdown_watcher() -> None:
    """Return when the current task is asked to stop (at once if it has been).

    Raises:
        NotInTaskError: outside of a task.
    """
    task = _here("shutdown_watcher()")
    if not task.is_shutdown_requested():
        await task.root.cancelled()
    task.observe()


def wait_for_shutdown(timeout: float | None = None) -> bool:
    """Block until the current task is asked to stop, at most `timeout` seconds; whether it was.

    The way for synchronous code to sleep: `while not wait_for_shutdown(60): flush()`.

    Raises:
        NotInTaskError: outside of a task.
    """
    task = _here("wait_for_shutdown()")
    if task.is_shutdown_requested():
        return True
    if task.root.wait(timeout):
        task.observe()
        return True
    return task.is_shutdown_requested()


def checkpoint() -> None:
    """Do nothing, or raise ShutdownRequested if the current task has been asked to stop.

    Raises:
        ShutdownRequested: a BaseException; let it pass, and the task ends as cancelled.
        NotInTaskError: outside of a task.
    """
    task = _get_current()
    if task is None:
        task = _here("checkpoint()")  # raises
    # As in is_shutdown_requested().
    words = task.words
    task.checks = checks = task.checks + 1
    words[task.check_index] = checks
    flag = words[task.flag_index]
    node = task.node
    if (flag and flag == task.flag_key) or (node is not None and node.cancelled):
        task.observe()
        raise ShutdownRequested(task.root.reason or "asked to stop")


def current_task() -> TaskInfo | None:
    """The current task as it was when this attempt began, last associated or was asked to stop.

    None outside of a task. `.stopping` and `.reason` are those of the word that follows the flag: they may
    come a moment after `is_shutdown_requested()` is true.

    `.fence` grows with each new owner of the task: hand it to storage that refuses writes of older ones.
    """
    task = _current.get()
    return None if task is None else task.info


def current_task_id() -> TaskId | None:
    """The current task's id; None outside of a task."""
    task = _current.get()
    return None if task is None else task.key[0]


def current_task_kind() -> TaskKind | str | None:
    """The current task's kind; None outside of a task."""
    task = _current.get()
    if task is None:
        return None
    kind = task.info.kind
    return TaskKind(kind) if kind in TaskKind.__members__.values() else kind


def associate_with(tenant_id: str | None, timeline_id: str | None) -> None:
    """Set the current task's tenant and timeline, overwriting both; None clears.

    Returns once the registry has it: from then on a stop by the new tenant finds this task. If the new
    scope is closed, the task is asked to stop, and every open stop of that scope waits for it too; but a
    `stopped()` block whose stop has returned does not: call `checkpoint()` before you touch what is the tenant's.
    From a coroutine, call it through `asyncio.to_thread` if the loop must not wait the round trip.

    Raises:
        NotInTaskError: outside of a task.
        BrokerUnavailableError: no broker answered in time.
    """
    task = _here("associate_with()")
    task.port.associate(task, tenant_id, timeline_id)


def report_progress(done: float, total: float | None = None, note: str = "") -> None:
    """Say how far the current task is. Never blocks; at most one message a second leaves the worker.

    Raises:
        NotInTaskError: outside of a task.
        TypeError, ValueError: `done` or `total` is no number that a float has room for, or `note` no string.
    """
    task = _here("report_progress()")
    task.port.report_progress(task, done, total, note)


def extend_grace(seconds: float) -> None:
    """Ask for so many seconds more before this stopping task is forced; bounded by the configuration.

    Never blocks: a broker that is away hears of it when it is back. Does nothing before the task is asked to stop.

    Raises:
        NotInTaskError: outside of a task.
        TypeError, ValueError: `seconds` is no number that a float has room for, or below 0.
    """
    task = _here("extend_grace()")
    task.port.extend_grace(task, seconds)


def current_client() -> "Client":
    """The client of this worker process, to spawn, wait for and stop other tasks from inside one.

    All tasks of the process share it; do not close it.

    Raises:
        NotInTaskError: outside of a task.
    """
    _here("current_client()")
    return _client_factory[0]()
