"""AsyncClient: spawn, watch and stop tasks from coroutines of one asyncio loop."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from quiesce.client import requests
from quiesce.client.async_handle import AsyncTaskHandle
from quiesce.client.base import CLOSING, BaseClient
from quiesce.client.events import AsyncEventStream, Inbox
from quiesce.client.options import AnyState, Restart, SpawnOptions
from quiesce.client.progress import Show, checked, follow
from quiesce.client.records import Reply
from quiesce.client.stopped import AsyncStoppedBlock
from quiesce.client.waiting import LoopBell, Waitable, is_asked
from quiesce.context import current_context
from quiesce.registry.ids import TaskId
from quiesce.registry.rows import StopRow
from quiesce.values import (
    BrokerInfo,
    ClosedScope,
    EndedStop,
    ShutdownReport,
    TaskInfo,
    TaskStacks,
    WorkerInfo,
)

A = TypeVar("A")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class AsyncClient(BaseClient):
    """A connection to a broker, for the coroutines of one asyncio loop: the verbs of `Client`, awaited.

        async with AsyncClient() as client:
            handle = await client.spawn("background", "compaction", compact, path, tenant_id="acme")
            print(await handle)

    Never blocks the loop. Cancelling a coroutine that awaits a verb stops the waiting, nothing else: a
    task goes on unless it is asked to stop, and a stop goes on as well. Entering the block connects, and
    raises what making a `Client` raises; leaving it is `close()`. Cancelled while it closes, it parts from
    the broker at once, without the answers that are still to come.
    """

    def __init__(
        self, address: str | None = None, *, key: object = None, timeout: float = 30.0
    ) -> None:
        super().__init__(address, key, timeout)

    async def __aenter__(self) -> "AsyncClient":
        if "_driver" in vars(self):
            raise RuntimeError("this AsyncClient has been entered before; make a new one")
        self._bell = LoopBell(asyncio.get_running_loop())
        self._start(worker=0)
        ready = self._driver.ready
        try:
            if not await self._wait(ready, self.timeout, interruptible=False) or ready.trouble:
                raise self._unreachable(ready)
        except BaseException:
            self._driver.close(0)
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if await self._end() and kind is None and self._driver.unanswered_at_end:
            raise self._unanswered(self._driver.unanswered_at_end)

    async def close(self) -> None:
        """As `Client.close`. Closing twice does nothing; nor does closing what was never entered."""
        await self.__aexit__(None, None, None)

    async def _end(self) -> bool:
        """Close; whether it was this call that did."""
        if "_driver" not in vars(self) or self._driver.forked:
            return False
        first = not self._driver.closing
        if first:
            self._driver.close(self.timeout)
        try:
            self._bell = LoopBell(asyncio.get_running_loop())  # any loop may close it
            await self._wait(self._driver.ended, self.timeout + CLOSING, interruptible=False)
        except BaseException:  # cancelled while it closes: the thread waits for no more answers
            self._driver.close(0)
            raise
        if self._driver.ended.over:
            self._driver.join(CLOSING)  # it has nothing left to do but return
        self._finalizer.detach()
        return first

    # --- spawning ------------------------------------------------------------------------------

    @overload
    async def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[T]: ...

    @overload
    async def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], T],
        /,
        *args: *Ts,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[T]: ...

    @overload
    async def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[T]: ...

    @overload
    async def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., T],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[T]: ...

    async def spawn(  # type: ignore[misc]  # mypy can't tell that *args: Any takes what *args: *Ts does
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        name: str | None = None,
        shutdown_process_on_error: bool = False,
        retries: int = 0,
        restart: Restart = "never",
        timeout: float | None = None,  # noqa: ASYNC109 - the task's own
        unique_key: str | None = None,
        progress: Show = None,
    ) -> AsyncTaskHandle[Any]:
        """As `Client.spawn`: returns without waiting for the broker's answer."""
        checked(progress)
        asked = (
            runtime,
            kind,
            fn,
            tenant_id,
            timeline_id,
            name,
            shutdown_process_on_error,
            retries,
            restart,
            timeout,
            unique_key,
        )
        record = self._hand_over(self._prepared(args, kwargs, asked))
        if progress:
            follow(self, [record], progress)
        return AsyncTaskHandle(self, record)

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[tuple[*Ts]],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], T],
        iterable_of_args: Iterable[tuple[*Ts]],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[A], Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[A],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[A], T],
        iterable_of_args: Iterable[A],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    @overload
    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., T],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[T]]: ...

    async def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        name: str | None = None,
        shutdown_process_on_error: bool = False,
        retries: int = 0,
        restart: Restart = "never",
        timeout: float | None = None,  # noqa: ASYNC109 - the task's own
        unique_key: str | None = None,
        progress: Show = None,
    ) -> list[AsyncTaskHandle[Any]]:
        """As `Client.spawn_many`: all or none, in the same order."""
        checked(progress)
        asked = (
            runtime,
            kind,
            fn,
            tenant_id,
            timeline_id,
            name,
            shutdown_process_on_error,
            retries,
            restart,
            timeout,
            unique_key,
        )
        records = self._spawn_many(iterable_of_args, kwargs, asked)
        if progress:
            follow(self, records, progress)
        return [AsyncTaskHandle(self, record) for record in records]

    # --- stopping ------------------------------------------------------------------------------

    async def shutdown_tasks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        grace: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the broker keeps it
        keep_closed: bool = False,
        reason: str = "",
    ) -> ShutdownReport:
        """As `Client.shutdown_tasks`. Cancelling it leaves the stop going on."""
        ask = requests.stop(
            kind,
            tenant_id,
            timeline_id,
            runtime,
            grace=grace,
            timeout=timeout,
            keep_closed=keep_closed,
            reason=reason,
        )
        return (await self._stop(ask, timeout)).report

    def stopped(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        grace: float | None = None,
        timeout: float | None = None,
        reason: str = "",
    ) -> AbstractAsyncContextManager[ShutdownReport]:
        """As `Client.stopped`, for `async with`. Cancelled on the way in, it opens the scope again."""
        ask = requests.stop(
            kind,
            tenant_id,
            timeline_id,
            runtime,
            grace=grace,
            timeout=timeout,
            hold=True,
            reason=reason,
        )
        return AsyncStoppedBlock(self, ask, timeout)

    async def reopen(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
    ) -> None:
        """Forget the closures within this scope that were kept, or are left of stops that timed out.

        Scopes of stops in progress, and of `stopped()` blocks, stay closed.
        """
        await self._ask(requests.reopen(kind, tenant_id, timeline_id, runtime))

    # --- looking -------------------------------------------------------------------------------

    async def tasks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        state: AnyState | None = None,
    ) -> list[TaskInfo]:
        """The live tasks of a scope; with `state`, those in that state. "ended": from the bounded history."""
        return await self._ask(requests.list_tasks(kind, tenant_id, timeline_id, runtime, state))

    async def task(self, task_id: TaskId | int) -> TaskInfo:
        """One task, live or in the bounded history. TaskNotFoundError: neither."""
        return await self._ask(requests.get_task(task_id))

    async def statistics(self) -> dict[str, Any]:
        """Counts, queues, CPU and memory by runtime, and what the broker counts of itself."""
        return await self._ask(requests.statistics())

    async def workers(self) -> list[WorkerInfo]:
        """All worker processes that the broker knows."""
        return await self._ask(requests.workers())

    async def broker_info(self) -> BrokerInfo:
        """The broker itself."""
        return await self._ask(requests.broker())

    async def stacks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        task_ids: Iterable[int] | None = None,
    ) -> list[TaskStacks]:
        """The Python stacks of the running tasks in a scope, or of those of `task_ids` alone, within two seconds.

        A worker that does not answer (its interpreter is stuck in C code) has all of its process written by
        faulthandler instead: one text, which says so in its first line and stands for each of its tasks. Where
        even that can't be had, the text says why: "no stack: process 123 is stopped (SIGSTOP)".
        """
        return await self._ask(requests.stacks(kind, tenant_id, timeline_id, runtime, task_ids))

    async def closed_scopes(self) -> list[ClosedScope]:
        """Every closed scope, with who holds it and why."""
        return await self._ask(requests.closed())

    async def history(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
    ) -> list[EndedStop]:
        """The stops that have ended, oldest first, of the bounded history: by any client, and the system's own.

        With a scope, those that may have matched a task of it. Ended tasks: `tasks(state="ended")`.
        """
        return await self._ask(requests.history(kind, tenant_id, timeline_id, runtime))

    async def stops(self) -> list[StopRow]:
        """The stops in progress, by any client, and what each still waits for."""
        return await self._ask(requests.stops())

    def events(self) -> AsyncEventStream:
        """`async for event in client.events()`: what happens in the registry from now on.

        Ends when it or the client is closed.
        """
        inbox = Inbox(self._driver.lock)
        self._bell.check_loop()
        reply = self._driver.listen(inbox.feed)
        return AsyncEventStream(self, inbox, self._subscribed(reply))

    async def _subscribed(self, reply: Reply) -> None:
        await self._answer(requests.subscribe(), reply, self.timeout)

    # --- parts ---------------------------------------------------------------------------------

    async def _wait(
        self,
        thing: Waitable,
        timeout: float | None,  # noqa: ASYNC109 - answers False
        *,
        interruptible: bool = True,
    ) -> bool:
        wait = self._driver.wait_async
        return await wait(thing, timeout, self._bell, interruptible=interruptible)

    def _send(self, ask: requests.Ask[Any]) -> Reply:
        send = self._driver.ask  # says it if this was not entered
        self._bell.check_loop()
        return send(ask.message)

    async def _ask(self, ask: requests.Ask[T]) -> T:
        fresh = not is_asked(current_context())  # as Client._ask
        return await self._answer(ask, self._send(ask), self.timeout, interruptible=fresh)

    async def _stop(
        self,
        ask: requests.Ask[requests.Stopped],
        timeout: float | None,  # noqa: ASYNC109 - the broker keeps it
    ) -> requests.Stopped:
        """The broker keeps the stop's own timeout; beyond that and ours it is out of reach."""
        limit = None if timeout is None else timeout + self.timeout
        self._raise_if_asked()
        return await self._answer(ask, self._send(ask), limit, interruptible=True)

    async def _answer(
        self,
        ask: requests.Ask[T],
        reply: Reply,
        timeout: float | None,  # noqa: ASYNC109 - raises our own error
        *,
        interruptible: bool = False,
    ) -> T:
        try:
            over = await self._wait(reply, timeout, interruptible=interruptible)
            if reply.ends is not None:
                await self._wait(reply.ends, self.timeout)
            if not over:
                raise self._unavailable(ask.verb)
            return self._read(ask, reply)
        except BaseException:
            self._driver.abandon(reply)
            raise
