"""The blocks in which a scope stays closed: what `Client.stopped` and `AsyncClient.stopped` give.

No generators: one that is collected would go through its `finally`, and so ask the broker and wait, between any
two steps of anything. A block that nobody leaves keeps its scope closed, as the broker does when its client goes.
"""

from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from quiesce.client import requests
from quiesce.client.driver import Driver
from quiesce.client.mailbox import reply_to
from quiesce.client.records import Reply
from quiesce.errors import QuiesceError
from quiesce.values import ShutdownReport

if TYPE_CHECKING:
    from quiesce.client.async_client import AsyncClient
    from quiesce.client.client import Client


class _Held:
    """The stop of the block that is entered now, if any."""

    def __init__(self) -> None:
        self._stop_id: int | None = None

    def _check_outside(self) -> None:
        if self._stop_id is not None:
            raise RuntimeError("this stopped() block is entered already; call stopped() for each")

    def _leave(self, driver: Driver) -> tuple[requests.Ask[None], Reply] | None:
        """Hand over the release. None: the client was closed inside, and the scope stays closed.

        Before any wait, and never abandoned: one that is cancelled or runs out of time does not leave the
        scope closed, however long the broker stays away.

        RuntimeError: nobody is in the block.
        """
        if self._stop_id is None:
            raise RuntimeError(
                "this stopped() block was not entered, or has been left: it opens its scope once, when its body "
                "ends; leave that to the with statement"
            )
        ask = requests.release(self._stop_id)
        reply: Reply | None = None
        try:
            reply = driver.ask(ask.message)
        except RuntimeError:
            if driver.forked:
                raise
        self._stop_id = None
        return None if reply is None else (ask, reply)

    def _leave_interrupted(self, driver: Driver) -> None:
        """The same, if an interrupt came before it was handed over, or may have: twice does no harm."""
        if self._stop_id is not None:
            ask = requests.release(self._stop_id)
            with suppress(RuntimeError, QuiesceError):  # closed
                driver.ask(ask.message, orphan=True)


class StoppedBlock(_Held):
    """See `Client.stopped`."""

    def __init__(
        self, client: "Client", ask: requests.Ask[requests.Stopped], timeout: float | None
    ) -> None:
        super().__init__()
        self._client = client
        self._ask = ask
        self._timeout = timeout

    def __enter__(self) -> ShutdownReport:
        self._check_outside()
        reply = reply_to(self._ask.message)
        # An interrupt may come after the client's own last look at the reply, and nobody is in the block then.
        try:
            self._stop_id, report = self._client._stop(self._ask, self._timeout, reply)
            return report
        except BaseException:
            self._stop_id = None
            self._client._driver.abandon(reply)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        client = self._client
        try:
            handed_over = self._leave(client._driver)
        except KeyboardInterrupt:
            self._leave_interrupted(client._driver)
            raise
        if handed_over is None:
            return
        ask, reply = handed_over
        if not client._driver.wait(reply, client.timeout, interruptible=False):
            raise client._unavailable(ask.verb)
        client._read(ask, reply)


class AsyncStoppedBlock(_Held):
    """See `AsyncClient.stopped`."""

    def __init__(
        self, client: "AsyncClient", ask: requests.Ask[requests.Stopped], timeout: float | None
    ) -> None:
        super().__init__()
        self._client = client
        self._ask = ask
        self._timeout = timeout

    async def __aenter__(self) -> ShutdownReport:
        self._check_outside()
        self._stop_id, report = await self._client._stop(self._ask, self._timeout)
        return report

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        client = self._client
        handed_over = self._leave(client._driver)
        if handed_over is None:
            return
        ask, reply = handed_over
        if not await client._wait(reply, client.timeout, interruptible=False):
            raise client._unavailable(ask.verb)
        client._read(ask, reply)
