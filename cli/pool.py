"""A pool as `quiesce up` sees it: one supervisor after the other, and the account of each that died."""

import signal
from typing import Final

from quiesce.cli import children
from quiesce.cli.children import PYTHON, Child
from quiesce.cli.config import Config
from quiesce.cli.restarts import Restarts
from quiesce.cli.settings import pool_settings
from quiesce.workers.predecessor import describe
from quiesce.workers.table import PoolTable

SUPERVISOR_COMMAND: Final = (*PYTHON, "quiesce.workers.supervise")
#: A supervisor that ended in order while the system runs was told so by the broker, which will end too;
#: if the broker has not ended after so many seconds, the pool is started again.
ORDERED_END_PATIENCE: Final = 10.0
_NO_SUPERVISOR: Final = bytes(8)


#: By so many seconds the table may say too late when a timer ends its supervisor.
_ROUNDED: Final = 0.001


class Pool:
    """The table outlives the supervisors, so that it can be read when one has died."""

    def __init__(self, config: Config, runtime: str, run: str = "") -> None:
        self.runtime = runtime
        self.processes = config.runtime(runtime).processes
        self.slots = config.runtime(runtime).slots
        self.table = PoolTable.create(self.processes)
        self.supervisor: Child | None = None
        #: Since the last supervisor's death we wait for its workers and their children to be gone.
        self.clearing = False
        #: When to start the next supervisor (monotonic); None: not planned.
        self.restart_at: float | None = None
        self.last_status: int | None = None
        #: When the last supervisor ended (monotonic).
        self.ended_at = 0.0
        self._config = config
        self._run = run
        #: Supervisors that fail in a row before one of their workers was ready are given up.
        self._restarts = Restarts()
        self._last_pid = 0
        self._fenced = False
        self._account: dict[str, object] | None = None

    @property
    def runs(self) -> bool:
        """Whether its supervisor lives."""
        return self.supervisor is not None

    @property
    def is_ready(self) -> bool:
        """Whether one of its workers is ready for tasks."""
        return self.runs and self._had_a_worker()

    @property
    def was_answered(self) -> bool:
        """Whether a broker has given its supervisor a lease."""
        return self._adopted() and self.table.armed_until > 0

    @property
    def is_due(self) -> bool:
        """Whether a supervisor is to come: a restart is planned, or will be once the last one is cleared."""
        return self.clearing or self.restart_at is not None

    @property
    def given_up(self) -> bool:
        """Whether it died too often to start it again."""
        return self._restarts.given_up

    def settings(self, parent_pid: int) -> str:
        """The line for the next supervisor, with the account of the last one."""
        return pool_settings(
            self._config,
            self.runtime,
            parent_pid=parent_pid,
            table_fd=self.table.fd,
            run=self._run,
            predecessor=self._account,
        ).to_json()

    def started(self, supervisor: Child) -> None:
        """A supervisor runs."""
        self.supervisor = supervisor
        self.restart_at = None

    def supervisor_ended(self, status: int, now: float, boottime: float) -> None:
        """The supervisor was reaped. Its workers fall to us now. `boottime`: the same moment on CLOCK_BOOTTIME."""
        assert self.supervisor is not None
        self._last_pid = self.supervisor.pid
        self.last_status = status
        self.ended_at = now
        self.supervisor = None
        self.clearing = True
        armed = self.table.armed_until
        timed_out = 0 < armed <= boottime + _ROUNDED
        self._fenced = status == -signal.SIGKILL and self._adopted() and timed_out

    def cleared(self, statuses: dict[int, int], now: float) -> None:
        """Nothing is left of the last supervisor: make its account, plan the next one."""
        self.clearing = False
        status = self.last_status
        assert status is not None
        ready = self._had_a_worker()
        if self._adopted():
            # One that died before it took the table over has had no worker: the older account still holds.
            self._account = describe(
                self.table, self._last_pid, status, statuses, fenced=self._fenced
            )
        if status == 0:
            self.restart_at = now + ORDERED_END_PATIENCE
        else:
            # Killed: that is not its own failure.
            excused = not ready and status == -signal.SIGKILL
            self.restart_at = self._restarts.died(now, ready=ready, excused=excused)

    def _had_a_worker(self) -> bool:
        return self._adopted() and any(place.ready for place in self.table.account())

    def _adopted(self) -> bool:
        """Whether the table is that of the supervisor that runs or ran last, and not still its predecessor's."""
        told = None if self._account is None else bytes.fromhex(str(self._account["supervisor"]))
        return self.table.supervisor not in (_NO_SUPERVISOR, told)

    def story(self) -> str:
        """How its last supervisor ended, for people."""
        if self._fenced:
            how = "its lease ran out, and its own timer killed it"
        elif self.last_status is None:
            how = "not started"
        else:
            how = children.describe(self.last_status)
        return f"pool {self.runtime}: its supervisor (pid {self._last_pid}) ended: {how}"

    def close(self) -> None:
        """Give the table's memory back."""
        self.table.close()
