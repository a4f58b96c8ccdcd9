"""Streams of events: one inbox for each, filled by the I/O thread, emptied by its reader."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from quiesce.client.outcomes import missed
from quiesce.client.waiting import Waitable, Waker
from quiesce.locks import Lock
from quiesce.values import Event

if TYPE_CHECKING:
    from types import TracebackType

    from quiesce.client.async_client import AsyncClient
    from quiesce.client.client import Client

#: A reader that is slower loses the oldest, and is told so.
LIMIT: Final = 10_000


class Inbox:
    """Between the I/O thread and a reader. The lock is the driver's."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._events: deque[Event] = deque()
        #: None: nobody knows how many.
        self._missed: int | None = 0
        self._missed_at = 0.0
        #: Set when no more will come; the events so far can still be read.
        self.ended = False
        #: No reader is left. Written without the lock.
        self.dropped = False
        self._news: Waitable | None = None

    def feed(self, events: list[Event] | None) -> bool:
        """A listener of the driver."""
        wakers: list[Waker] = []
        with self._lock:
            if events is None:
                self.ended = True
            else:
                self._events.extend(events)
                while len(self._events) > LIMIT:
                    lost = self._events.popleft()
                    count = lost.data["count"] if lost.type == "missed" else 1
                    if self._missed is not None:
                        self._missed = None if count is None else self._missed + count
                    self._missed_at = lost.at
            if self._news is not None:
                self._news.finish(wakers)
                self._news = None
        for waker in wakers:
            waker()
        return not self.dropped

    def take(self) -> Event | Waitable | None:
        """The next event; what to wait for if there is none yet; None at the end."""
        with self._lock:
            if self._missed != 0:
                count, self._missed = self._missed, 0
                return missed(count, self._missed_at)
            if self._events:
                return self._events.popleft()
            if self.ended:
                return None
            if self._news is None:
                self._news = Waitable()
            return self._news


class EventStream:
    """Iterates over events, from its making on; ends when it or its client is closed. It holds its client.

    Events of type "missed" count (`data["count"]`) those that were dropped because the reader was too slow. With a
    count of None the broker was out of reach for a moment: some before it may be missing, nobody knows how many.
    Also a context manager that closes it.
    """

    def __init__(self, client: "Client", inbox: Inbox) -> None:
        #: A client that nobody holds closes, and with it what is still being read.
        self._client: Client | None = client
        self._driver = client._driver
        self._inbox = inbox

    def __iter__(self) -> "EventStream":
        return self

    def __next__(self) -> Event:
        """Block until there is one. ShutdownRequested: inside a task that is asked to stop."""
        self._driver.check_process()  # before the lock
        while True:
            found = self._inbox.take()
            if isinstance(found, Event):
                return found
            if found is None:
                raise StopIteration
            self._driver.wait(found, None)

    def close(self) -> None:
        """No more events: iterations end, in other threads too. In a forked copy it does nothing."""
        if self._driver.forked:
            return
        self._driver.unlisten(self._inbox.feed)
        self._inbox.feed(None)
        self._client = None

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        self.close()

    def __del__(self) -> None:
        inbox: Inbox | None = getattr(self, "_inbox", None)
        if inbox is not None:  # a garbage collection must not take the lock: the next event sees it
            inbox.dropped = True


def _look_at(done: "asyncio.Future[None]") -> None:
    """asyncio complains of failures that nobody has looked at; a stream that nobody reads needs none."""
    if not done.cancelled():
        done.exception()


class AsyncEventStream:
    """`EventStream`, for `async for` and `async with`."""

    def __init__(
        self,
        client: "AsyncClient",
        inbox: Inbox,
        subscribed: Coroutine[Any, Any, None],
    ) -> None:
        self._client: AsyncClient | None = client  # as EventStream
        self._driver = client._driver
        self._inbox = inbox
        self._bell = client._bell
        #: Done once the broker has answered the subscription.
        self._subscribed = asyncio.ensure_future(subscribed)
        self._subscribed.add_done_callback(_look_at)

    def __aiter__(self) -> "AsyncEventStream":
        return self

    async def __anext__(self) -> Event:
        """The next event. ShutdownRequested: inside a task that is asked to stop."""
        self._driver.check_process()  # before the lock
        if not self._subscribed.done():
            await asyncio.wait([self._subscribed])  # shared: a cancelled reader must not cancel it
        if not self._inbox.ended:
            self._subscribed.result()
        while True:
            found = self._inbox.take()
            if isinstance(found, Event):
                return found
            if found is None:
                raise StopAsyncIteration
            await self._driver.wait_async(found, None, self._bell)

    async def aclose(self) -> None:
        """No more events: iterations end. In a forked copy it does nothing."""
        if self._driver.forked:
            return
        self._subscribed.cancel()
        self._driver.unlisten(self._inbox.feed)
        self._inbox.feed(None)
        self._client = None

    async def __aenter__(self) -> "AsyncEventStream":
        return self

    async def __aexit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        inbox: Inbox | None = getattr(self, "_inbox", None)
        if inbox is not None:
            inbox.dropped = True  # as EventStream
