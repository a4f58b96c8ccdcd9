"""A pool as `quiesce up` sees it: one supervisor after the other, and the account of each that died."""

import signal
from typing import Final

from quiesce.cli import children
from quiesce.cli.children import PYTHON, Child
from quiesce.cli.config import Config
from quiesce.cli.settings import pool_settings
from quiesce.workers.predecessor import describe
from quiesce.workers.table import PoolTable

SUPERVISOR_COMMAND: Final = (*PYTHON, "quiesce.workers.supervise")
#: A supervisor that fails so many times in a row before one of its workers was ready is given up.
MAX_FAILURES: Final = 5
#: Half the pause in seconds after the first such failure; it doubles with each.
FIRST_DELAY: Final = 0.1
#: A supervisor that ended in order while the system runs was told so by the broker, which will end too;
#: if the broker has not ended after so many seconds, the pool is started again.
ORDERED_END_PATIENCE: Final = 10.0
_NO_SUPERVISOR: Final = bytes(8)


class Pool:
    """The table outlives the supervisors, so that it can be read when one has died."""

    def __init__(self, config: Config, runtime: str) -> None:
        self.runtime = runtime
        self.processes = config.runtime(runtime).processes
        self.slots = config.runtime(runtime).slots
        self.table = PoolTable.create(self.processes)
        self.supervisor: Child | None = None
        #: Since the last supervisor's death we wait for its workers and their children to be gone.
        self.clearing = False
        #: When to start the next supervisor (monotonic); None: not planned.
        self.restart_at: float | None = None
        #: Failures in a row of supervisors of which no worker was ready.
        self.failures = 0
        self.last_status: int | None = None
        self._config = config
        self._last_pid = 0
        self._account: dict[str, object] | None = None

    @property
    def runs(self) -> bool:
        """Whether its supervisor lives."""
        return self.supervisor is not None

    @property
    def is_ready(self) -> bool:
        """Whether one of its workers is ready for tasks."""
        return self.runs and any(place.ready for place in self.table.account())

    @property
    def is_due(self) -> bool:
        """Whether a supervisor is to come: a restart is planned, or will be once the last one is cleared."""
        return self.clearing or self.restart_at is not None

    @property
    def given_up(self) -> bool:
        """Whether it died too often to start it again."""
        return self.failures >= MAX_FAILURES

    def settings(self, parent_pid: int) -> str:
        """The line for the next supervisor, with the account of the last one."""
        return pool_settings(
            self._config,
            self.runtime,
            parent_pid=parent_pid,
            table_fd=self.table.fd,
            predecessor=self._account,
        ).to_json()

    def started(self, supervisor: Child) -> None:
        """A supervisor runs."""
        self.supervisor = supervisor
        self.restart_at = None

    def supervisor_ended(self, status: int) -> None:
        """The supervisor was reaped. Its workers fall to us now."""
        assert self.supervisor is not None
        self._last_pid = self.supervisor.pid
        self.last_status = status
        self.supervisor = None
        self.clearing = True
        if any(place.ready for place in self.table.account()):
            self.failures = 0
        elif status not in (0, -signal.SIGKILL):  # killed: that is not its own failure
            self.failures += 1

    def cleared(self, statuses: dict[int, int], now: float) -> None:
        """Nothing is left of the last supervisor: make its account, plan the next one."""
        self.clearing = False
        assert self.last_status is not None
        owner = self.table.supervisor
        # One that died before it took the table over has had no worker: the older account still holds.
        if owner not in (_NO_SUPERVISOR, self._told()):
            self._account = describe(self.table, self._last_pid, self.last_status, statuses)
        if self.last_status == 0:
            self.restart_at = now + ORDERED_END_PATIENCE
        else:
            self.restart_at = now + (FIRST_DELAY * 2**self.failures if self.failures else 0.0)

    def _told(self) -> bytes | None:
        if self._account is None:
            return None
        return bytes.fromhex(str(self._account["supervisor"]))

    def story(self) -> str:
        """How its last supervisor ended, for people."""
        status = (
            children.describe(self.last_status) if self.last_status is not None else "not started"
        )
        return f"pool {self.runtime}: its supervisor (pid {self._last_pid}) ended: {status}"

    def close(self) -> None:
        """Give the table's memory back."""
        self.table.close()
