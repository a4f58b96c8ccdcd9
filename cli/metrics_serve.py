"""The process of the metrics endpoint: `python -m quiesce.cli.metrics_serve`, a client like any other.

One line of JSON on stdin says what it serves. It asks the broker when somebody asks it, at most once a second, and
gives it two seconds to answer: whoever scrapes a system can't slow its broker down. Exit status 4: it can't listen,
with one line on stderr that says why.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from quiesce.errors import QuiesceError
from quiesce.logs import say

EXIT_NO_START: Final = 4
#: Seconds for which an answer of the broker is good; and those that it has to give one.
FRESH: Final = 1.0
PATIENCE: Final = 2.0


class Exporter:
    """What prometheus-client calls for each scrape. Threads come one after the other."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Any = None
        self._lock = threading.Lock()
        self._at = 0.0
        self._last: list[Any] = []

    def describe(self) -> Iterable[Any]:
        """Nothing is asked of the broker before the first scrape."""
        return ()

    def collect(self) -> Iterable[Any]:
        """The families."""
        with self._lock:
            if not self._last or time.monotonic() >= self._at + FRESH:
                self._last = self._ask()
                self._at = time.monotonic()
            return self._last

    def _ask(self) -> list[Any]:
        from quiesce.cli.metrics import families
        from quiesce.client import Client

        began = time.monotonic()
        statistics, workers = None, []
        try:
            if self._client is None:
                self._client = Client(self._address, timeout=PATIENCE)
            statistics = self._client.statistics()
            workers = self._client.workers()
        except RuntimeError:  # the client has come to its end: the next scrape makes another
            self._client = None
        except QuiesceError:
            pass  # no broker: `up` is 0
        return list(families(statistics, workers, time.monotonic() - began))

    def close(self) -> None:
        """Part from the broker."""
        with self._lock:
            if self._client is not None:
                self._client.close()


def main() -> int:
    """Serve until a signal."""
    settings = json.loads(sys.stdin.readline())
    from prometheus_client import CollectorRegistry, start_http_server
    from setproctitle import setproctitle

    setproctitle("quiesce metrics")
    registry = CollectorRegistry()
    exporter = Exporter(settings["address"])
    registry.register(exporter)
    host, port = settings["host"], settings["port"]
    form, file = settings["log_format"], settings["log_file"]
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        say(
            f"the metrics can't be served at {host}:{port}: {error.strerror}. Choose another port with "
            "[broker] metrics or QUIESCE_BROKER_METRICS (0: any that is free)",
            form,
            "metrics",
            logging.ERROR,
            file,
        )
        return EXIT_NO_START
    shown = f"[{host}]" if ":" in host else host
    where = f"http://{shown}:{server.server_port}/metrics"
    say(f"quiesce metrics are at {where}", form, "metrics", file=file)
    signal.sigwait({signal.SIGTERM, signal.SIGQUIT})
    server.shutdown()
    thread.join()
    server.server_close()
    exporter.close()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGQUIT})
    sys.exit(main())
