"""TaskHandle: one task as the client that spawned it holds it."""

import asyncio
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quiesce.client import checks, outcomes, own_stop, requests
from quiesce.client.driver import Driver
from quiesce.client.records import SpawnRecord
from quiesce.client.waiting import (
    LoopBell,
    deadline_after,
    remaining,
)
from quiesce.errors import QuiesceError
from quiesce.registry.ids import TaskId
from quiesce.registry.states import Outcome
from quiesce.values import ShutdownReport, TaskInfo

if TYPE_CHECKING:
    from quiesce.client.client import Client

T_co = TypeVar("T_co", covariant=True)


class BaseHandle(Generic[T_co]):
    """What TaskHandle and AsyncTaskHandle have in common. Not made by users."""

    __slots__ = ("__weakref__", "_record")

    def __init__(self, record: SpawnRecord) -> None:
        self._record = record

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # In an interpreter that ends, what this needs of our modules may be gone already. Nothing is lost:
        # each client's driver has logged what nobody had looked at, before that.
        record = getattr(self, "_record", None)
        if record is not None and not finalizing():
            record.on_dropped()

    @property
    def name(self) -> str:
        """What the task was named by its spawn."""
        return self._record.name

    def done(self) -> bool:
        """Whether nothing more will come: the task has ended, or its spawn was refused. Never blocks."""
        return self._record.over

    def __repr__(self) -> str:
        record = self._record
        if record.trouble is not None:
            state = record.trouble[0]
        elif record.completed:
            state = Outcome.COMPLETED
        elif record.result is not None:
            state = record.result.outcome
        else:
            state = "not ended" if record.task_id else "not answered"
        task = f"task {record.task_id}" if record.task_id else "task without an id yet"
        return f"<{type(self).__name__} {record.name!r}: {task}, {state}>"


class TaskHandle(BaseHandle[T_co]):
    """A task that `Client.spawn` has handed over: ask it, wait for it, stop it.

    Thread-safe; any number of threads may wait on it. Inside a task, its blocking calls end with
    ShutdownRequested when that task is itself asked to stop. Dropping a handle does not stop its task.
    A refused spawn raises its refusal (ScopeClosedError, QueueFullError, UnknownKindError, ...) from `id`,
    `wait` and `result`; one that nobody has looked at is logged when the handle goes.
    """

    __slots__ = ("_client",)

    def __init__(self, client: "Client", record: SpawnRecord) -> None:
        self._record = record
        self._client = client

    @property
    def id(self) -> TaskId:
        """The task's id. Waits for the broker's answer, at most the client's timeout.

        Raises:
            BrokerUnavailableError: no answer in time. It may still come: ask again.
            QuiesceError: the class that says why the spawn was refused.
            ShutdownRequested: inside a task that is asked to stop.
        """
        record, driver = self._record, self._client._driver
        if not record.answered and not driver.wait(driver.answer(record), self._client.timeout):
            raise self._client._unanswered_spawn(record.name)
        return spawned_id(record)

    def status(self) -> TaskInfo:
        """What the registry knows of the task now; also of an ended one, while the history keeps it.

        Raises:
            TaskNotFoundError: it has ended, and the bounded history has dropped it.
            BrokerUnavailableError: no answer in the client's timeout.
        """
        return self._client.task(self.id)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the task has ended, at most `timeout` seconds (None: for ever); whether it has.

        However it ended: `result` and `exception` tell.

        Raises:
            QuiesceError: the class that says why the spawn was refused.
            ShutdownRequested: inside a task that is asked to stop.
        """
        record = self._record
        if not self._client._driver.wait(record, timeout):
            return False
        if record.trouble is not None:
            raise record.error()
        return True

    def result(self, timeout: float | None = None) -> T_co:
        """Block until the task has ended, and give what it returned.

        Asked again, it gives the same object.

        Raises:
            TimeoutError: the builtin: it has not ended in `timeout` seconds (None: for ever, also without
                a broker). It goes on; or the text says that no broker answers, so nobody can tell.
            TaskFailedError: it raised; the text has the remote traceback, `__cause__` the original
                exception, or None where that can't be rebuilt here.
            TaskTimeoutError: it ran longer than the `timeout` of its spawn.
            TaskCrashedError: its process died under it; `exit_status` tells how.
            TaskCancelledError: it was stopped.
            TaskLostError: its host is out of reach and proved dead, or its result died with its process.
            QuiesceError: the class that says why the spawn was refused.
            ShutdownRequested: inside a task that is asked to stop.
        """
        record, driver = self._record, self._client._driver
        if not (record.over or driver.wait(record, timeout)):
            raise not_ended(record, timeout, driver.silence())
        own_stop.comes_first(self._client, record)
        return conclude(record, driver)  # type: ignore[no-any-return]  # what the task returned

    def exception(self, timeout: float | None = None) -> QuiesceError | None:
        """Block until the task has ended, and give what `result` would raise; None if it completed.

        Raises:
            TimeoutError: the builtin: it has not ended in `timeout` seconds (None: for ever).
            ShutdownRequested: inside a task that is asked to stop.
        """
        record = self._record
        if not self._client._driver.wait(record, timeout):
            raise not_ended(record, timeout, self._client._driver.silence())
        own_stop.comes_first(self._client, record)
        return failure(record)

    def shutdown(
        self, grace: float | None = None, timeout: float | None = None, *, reason: str = ""
    ) -> ShutdownReport:
        """Stop this task alone, and wait for the evidence of its end; then `done()`. Closes no scope.

        `grace`: seconds from the request to force (None: as its kind is configured; inf: never). `reason`: why; the
        task and the report say it.

        Raises:
            ShutdownTimeoutError: it has not ended in `timeout` seconds (None: for ever); `.report`.
            BrokerUnavailableError: no answer in `timeout` and the client's timeout together.
            QuiesceError: the class that says why the spawn was refused.
            ShutdownRequested: inside a task that is asked to stop; the stop goes on.
        """
        grace, timeout = checks.seconds("grace", grace), checks.seconds("timeout", timeout)
        deadline = deadline_after(timeout)
        task_id = self.id
        ask = requests.stop_task(task_id, grace, remaining(deadline), reason, within=timeout)
        return self._client._stop(ask, timeout).report

    def __await__(self) -> Generator[Any, None, T_co]:
        """`await handle`, on any asyncio loop: as `result()`. Cancelling the await leaves the task alone."""
        return self._result_async().__await__()

    async def _result_async(self) -> T_co:
        driver = self._client._driver
        await driver.wait_async(self._record, None, LoopBell(asyncio.get_running_loop()))
        if own_stop.may_come(self._record) is not None:
            await asyncio.to_thread(own_stop.comes_first, self._client, self._record)
        return conclude(self._record, driver)  # type: ignore[no-any-return]  # what the task returned


# --- what a record says --------------------------------------------------------------------------


def spawned_id(record: SpawnRecord) -> TaskId:
    """The id of an answered spawn; raises its refusal."""
    if not record.task_id:
        raise record.error()
    return TaskId(record.task_id)


def failure(record: SpawnRecord) -> QuiesceError | None:
    """Why the spawn of a record that is over has no result; None if it has one."""
    if record.trouble is not None:
        return record.error()
    row = record.result  # before the look at the value, which is there before this goes
    if record.value is not None:
        return None
    assert row is not None
    return outcomes.error_of(row, record.name)


def conclude(record: SpawnRecord, driver: Driver) -> Any:
    """The result of a record that is over, one object for all who ask; raises what it has instead."""
    row = record.result  # as in `failure`
    if record.value is not None:
        return record.value[0]
    error = record.error() if row is None else outcomes.error_of(row, record.name)
    if error is not None:
        raise error
    assert row is not None
    value = outcomes.rebuilt(row.result, record.task_id, record.name)
    if driver.forked:  # who held the lock at the fork is not there
        return record.keep(value)
    with driver.lock:
        return record.keep(value)


def not_ended(record: SpawnRecord, timeout: float | None, silence: float | None) -> TimeoutError:
    """A wait has run out. `silence`: of the driver; a task goes on only as far as a broker can tell."""
    task = f"task {record.task_id}" if record.task_id else "the task (not yet answered)"
    if silence is not None:
        so = f"no broker has answered for {silence:.1f} s: what became of the task is unknown"
    elif record.task_id:
        so = "it goes on"
    else:
        so = "its spawn still waits for the broker's answer"
    return TimeoutError(f"{task} ({record.name}) has not ended within {timeout} s; {so}")
