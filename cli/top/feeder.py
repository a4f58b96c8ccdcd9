"""The threads of `quiesce top`: one asks the broker again and again, one more for each call that may take long."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quiesce.cli.top.source import Snapshot, take
from quiesce.errors import QuiesceError

if TYPE_CHECKING:
    from quiesce.client import Client

#: What a call of the client may raise: no broker, a refusal, or (RuntimeError) the client was closed.
ERRORS = (QuiesceError, RuntimeError)


class Feeder(threading.Thread):
    """Hands a snapshot to `deliver`, or the error that came instead, every `interval` seconds."""

    def __init__(
        self,
        client: "Client",
        interval: float,
        deliver: Callable[[Snapshot | Exception], object],
    ) -> None:
        super().__init__(name="quiesce-top", daemon=True)
        self.interval = interval
        self._client = client
        self._deliver = deliver
        self._over = False
        self._wake = threading.Event()

    def run(self) -> None:
        """Until `stop`. A broker that is away is asked again: the client connects by itself."""
        while not self._over:
            self._wake.clear()
            news: Snapshot | Exception
            try:
                news = take(self._client)
            except ERRORS as error:
                news = error
            if not self._over:
                self._deliver(news)
                self._wake.wait(self.interval)

    def hurry(self) -> None:
        """Ask now: something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """Ask no more; returns at once."""
        self._over = True
        self._wake.set()


class Call(threading.Thread):
    """One call, in a thread of its own: `done(result)`, or `failed(error)`. It ends when the client is closed."""

    def __init__(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], object],
        failed: Callable[[Exception], object],
    ) -> None:
        super().__init__(name="quiesce-top-call", daemon=True)
        self._work = work
        self._done = done
        self._failed = failed

    def run(self) -> None:
        """Once."""
        try:
            result = self._work()
        except ERRORS as error:
            self._failed(error)
        else:
            self._done(result)
