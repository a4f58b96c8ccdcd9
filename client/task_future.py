"""The future that a QuiesceExecutor gives for a call, and what it raises."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from quiesce.client import own_stop
from quiesce.client.records import SpawnRecord
from quiesce.client.waiting import Waitable, Waker, wait_for
from quiesce.context import current_context
from quiesce.errors import QuiesceError, TaskCrashedError, TaskFailedError, TaskTimeoutError
from quiesce.locks import Lock

if TYPE_CHECKING:
    from quiesce.client.client import Client

P = ParamSpec("P")
T = TypeVar("T")


class TaskFuture(Future[Any]):
    """A future whose blocking calls end with ShutdownRequested inside a task that is asked to stop."""

    #: What such calls wait for, once there was one, and its lock.
    _ended: "tuple[Waitable, Lock] | None" = None
    #: The task that runs it, with the client that has spawned it: of a call that was made in a task.
    spawned: "tuple[Client, SpawnRecord] | None" = None

    def result(self, timeout: float | None = None) -> Any:
        """As concurrent.futures has it."""
        try:
            return super().result(self._wait_in_task(timeout))
        finally:
            del self  # an exception that is raised here refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As concurrent.futures has it."""
        return super().exception(self._wait_in_task(timeout))

    def _wait_in_task(self, timeout: float | None) -> float | None:
        """What is left to be waited for: nothing, if this has waited already."""
        if current_context() is None:
            return timeout
        if not self.done():
            self._wait(timeout)
            timeout = 0.0
        if self.spawned is not None and self.done():
            own_stop.comes_first(*self.spawned)
        return timeout

    def _wait(self, timeout: float | None) -> None:
        with self._condition:
            known = self._ended
            if known is None:
                self._ended = Waitable(), Lock()
        assert self._ended is not None
        if known is None:
            self.add_done_callback(self._on_done)
        wait_for(*self._ended, timeout)

    def _on_done(self, _: Future[Any]) -> None:
        assert self._ended is not None, "it was called for that"
        ended, lock = self._ended
        wakers: list[Waker] = []
        with lock:
            ended.finish(wakers)
        for waker in wakers:
            waker()


def rebuilt(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `read` makes of a task's end. QuiesceError also for what would end the thread that reads it."""
    try:
        return read(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        raise QuiesceError(
            f"the task ended, but what it left can't be rebuilt here: that raised {type(error).__name__}"
        ) from error


def original(error: BaseException) -> BaseException:
    """What the call raised, with the remote traceback as its cause."""
    cause = error.__cause__
    if (
        isinstance(error, TaskFailedError | TaskCrashedError | TaskTimeoutError)
        and cause is not None
    ):
        error.__cause__ = None
        if cause.__cause__ is None:
            cause.__cause__ = error
        return cause
    return error
