"""The metrics endpoint as `quiesce up` sees it: a process of its own, without which everything goes on."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from quiesce.cli.children import PYTHON, Child, describe
from quiesce.cli.config import BrokerConfig
from quiesce.cli.keys import host_and_port
from quiesce.errors import ConfigurationError

METRICS_COMMAND: Final = (*PYTHON, "quiesce.cli.metrics_serve")
#: Seconds before it is started again: the first time, and at most; one that ran for longer was well.
_PAUSE: Final = 1.0
_LONGEST: Final = 60.0


class MetricsProcess:
    """At most one process at a time. No clock: `now` is an argument, in seconds."""

    def __init__(self, config: BrokerConfig) -> None:
        """ConfigurationError: prometheus-client is not installed."""
        if find_spec("prometheus_client") is None:
            raise ConfigurationError(
                "[broker] metrics needs prometheus-client, which is not installed: "
                "pip install 'quiesce[metrics]', or leave the key out"
            )
        self.child: Child | None = None
        #: When to start the next one (monotonic); None while one runs.
        self.start_at: float | None = 0.0
        self._config = config
        self._pause = _PAUSE
        self._started_at = 0.0

    def start_if_due(self, now: float, start: Callable[[str], Child]) -> None:
        """Start it if it is time to; `start` takes the line for it."""
        if self.start_at is None or now < self.start_at:
            return
        host, port = host_and_port(self._config.metrics)
        settings = {
            "address": self._config.address,
            "host": host,
            "port": port,
            "log_format": self._config.log_format,
            "log_file": self._config.log_file,
        }
        self.child = start(json.dumps(settings))
        self.start_at = None
        self._started_at = now

    def ended(self, status: int, now: float) -> str:
        """It was reaped: plan the next one; what to say about it."""
        if now - self._started_at > _LONGEST:
            self._pause = _PAUSE
        self.child = None
        self.start_at = now + self._pause
        text = f"the metrics ended ({describe(status)}); starting them again in {self._pause:g} s"
        self._pause = min(2 * self._pause, _LONGEST)
        return text
