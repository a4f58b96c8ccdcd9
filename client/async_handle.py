"""AsyncTaskHandle: one task as a coroutine that spawned it holds it."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from quiesce.client import checks, requests
from quiesce.client.handle import BaseHandle, conclude, failure, not_ended, spawned_id
from quiesce.client.records import SpawnRecord
from quiesce.client.waiting import deadline_after, remaining
from quiesce.errors import QuiesceError
from quiesce.registry.ids import TaskId
from quiesce.values import ShutdownReport, TaskInfo

if TYPE_CHECKING:
    from quiesce.client.async_client import AsyncClient

T_co = TypeVar("T_co", covariant=True)


class _Id:
    """What `AsyncTaskHandle.id` gives: to be awaited, with or without a call."""

    __slots__ = ("_handle",)

    def __init__(self, handle: "AsyncTaskHandle[Any]") -> None:
        self._handle = handle

    def __await__(self) -> Generator[Any, None, TaskId]:
        return self._handle._wait_id().__await__()

    def __call__(self) -> "_Id":
        return self


class AsyncTaskHandle(BaseHandle[T_co]):
    """A task that `AsyncClient.spawn` has handed over. `await handle` gives its result.

    As TaskHandle, with every verb awaited (`done()` alone never waits and isn't). Belongs to the event loop
    of its client. Cancelling a coroutine that awaits one of these stops the waiting; the task goes on
    unless it is asked to stop, with `shutdown`.
    """

    __slots__ = ("_client",)

    def __init__(self, client: "AsyncClient", record: SpawnRecord) -> None:
        super().__init__(record)
        self._client = client

    @property
    def id(self) -> _Id:
        """`await handle.id`: the task's id, once the broker has answered; raises as `TaskHandle.id` does."""
        return _Id(self)

    async def _wait_id(self) -> TaskId:
        record, client = self._record, self._client
        if not record.answered and not await client._wait(
            client._driver.answer(record), client.timeout
        ):
            raise client._unanswered_spawn(record.name)
        return spawned_id(record)

    async def status(self) -> TaskInfo:
        """What the registry knows of the task now; raises as `TaskHandle.status` does."""
        return await self._client.task(await self.id)

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Client's
        """Until the task has ended, at most `timeout` seconds; whether it has. Raises a refusal."""
        if not await self._client._wait(self._record, timeout):
            return False
        if self._record.trouble is not None:
            raise self._record.error()
        return True

    async def result(self, timeout: float | None = None) -> T_co:  # noqa: ASYNC109 - as Client's
        """What the task returned; raises as `TaskHandle.result` does."""
        if not await self._client._wait(self._record, timeout):
            raise not_ended(self._record, timeout, self._client._driver.silence())
        return conclude(self._record, self._client._driver)  # type: ignore[no-any-return]  # what the task returned

    async def exception(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client's
    ) -> QuiesceError | None:
        """What `result` would raise; None if the task completed."""
        if not await self._client._wait(self._record, timeout):
            raise not_ended(self._record, timeout, self._client._driver.silence())
        return failure(self._record)

    async def shutdown(
        self,
        grace: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client's
        *,
        reason: str = "",
    ) -> ShutdownReport:
        """Stop this task alone, with evidence of its end; raises as `TaskHandle.shutdown` does."""
        grace, timeout = checks.seconds("grace", grace), checks.seconds("timeout", timeout)
        deadline = deadline_after(timeout)
        task_id = await self.id
        ask = requests.stop_task(task_id, grace, remaining(deadline), reason, within=timeout)
        return (await self._client._stop(ask, timeout)).report

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.result().__await__()
