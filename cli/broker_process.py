"""The broker as `quiesce up` sees it: one process after the other, all with the same settings."""

import os
import signal
from dataclasses import replace
from typing import Final

from quiesce.broker.settings import BrokerSettings
from quiesce.cli.address import is_bound_by
from quiesce.cli.children import PYTHON, Child, describe
from quiesce.cli.restarts import MAX_FAILURES, Restarts

BROKER_COMMAND: Final = (*PYTHON, "quiesce.broker.serve")

#: How a broker ends; anything else is an accident.
STOPPED: Final = 0
TASK_FAILED: Final = 3
NOT_STARTED: Final = 4
JOURNAL_FAILED: Final = 5
#: Those after which no socket, lock or folder of it is left.
TIDY: Final = (STOPPED, TASK_FAILED, NOT_STARTED)

#: What is said of its own message, which stands in the log.
_ABOVE: Final = "its message is above"
COULD_NOT_START: Final = f"the broker could not start: {_ABOVE}"

#: Supervisors that end in order within so many seconds of a new broker's start may have been told so by the
#: one before it, and have told nobody what became of their tasks.
SETTLING: Final = 3.0


class BrokerProcess:
    """At most one process at a time. No clock: `now` is an argument, in seconds."""

    def __init__(self, settings: BrokerSettings) -> None:
        #: The one that runs.
        self.child: Child | None = None
        #: Of the one that runs, or ran last.
        self.pid = 0
        #: How the last one ended; None while one runs.
        self.status: int | None = None
        #: Why the last one ended, in its own words; "" if it had none.
        self.why = ""
        #: Where it leaves them: an anonymous file.
        self.why_fd = os.memfd_create("quiesce-why", os.MFD_CLOEXEC)
        #: How many were started.
        self.starts = 0
        #: Whether the one that runs listens.
        self.ready = False
        #: Whether one of them has.
        self.was_ready = False
        #: When to start the next one; None: not planned.
        self.restart_at: float | None = None
        self._settings = settings
        self._restarts = Restarts()
        self._ready_at = 0.0
        #: How often it was asked to stop the system.
        self._asked = 0
        #: How many of these the one that runs has not been told yet.
        self._owed = 0

    @property
    def given_up(self) -> bool:
        """Whether it died too often to start it again."""
        return self._restarts.given_up

    @property
    def is_watched(self) -> bool:
        """Whether something is to be done about the one that runs that no signal tells."""
        return self.child is not None and (not self.ready or self._owed > 0)

    # --- its life

    def settings(self, stopping: str) -> str:
        """The line for the next one. `stopping`: why the system stops, "" if it does not."""
        return replace(self._settings, stopping=stopping, why_fd=self.why_fd).to_json()

    def started(self, child: Child, *, knows_of_stop: bool) -> None:
        """One runs. `knows_of_stop`: its settings say that the system stops."""
        self.child = child
        self.pid = child.pid
        self.status = None
        self.starts += 1
        self.restart_at = None
        self._owed = max(self._asked - 1, 0) if knows_of_stop else self._asked

    def watch(self, now: float) -> bool:
        """Tell it what it has not been told; whether it has begun to listen since the last look."""
        if self.child is None:
            return False
        if self.ready:
            self._tell(self.child)
            return False
        self.ready = is_bound_by(self._settings.address, self.pid)
        if self.ready:
            self.was_ready = True
            self._ready_at = now
        return self.ready

    def ask_to_stop(self) -> None:
        """The first time it stops the system in order, then faster. A dead one's successor is asked."""
        self._asked += 1
        self._owed += 1
        if self.child is not None and (not self.was_ready or self.ready):
            # The first one may be killed by it before it can listen: then it has begun nothing.
            self._tell(self.child)

    def _tell(self, child: Child) -> None:
        """One at a time, and each once the one before has been taken: two signals that wait together are one."""
        if self._owed and not child.has_pending(signal.SIGTERM):
            self._owed -= 1
            child.send(signal.SIGTERM)

    def ended(self, status: int) -> None:
        """It was reaped. If it must be followed by another, `died` comes next."""
        self.child = None
        self.status = status
        size = os.fstat(self.why_fd).st_size
        self.why = os.pread(self.why_fd, size, 0).decode(errors="replace")
        os.ftruncate(self.why_fd, 0)

    def died(self, now: float) -> None:
        """It ended though it should not: plan the next one, unless it is given up."""
        at = self._restarts.died(
            now, ready=self.ready, excused=self.status == JOURNAL_FAILED and self.was_ready
        )
        self.ready = False
        self.restart_at = None if self.given_up else at

    # --- what others ask

    def was_told_by_this_one(self, ended_at: float) -> bool:
        """Whether a supervisor that ended in order at this moment was told so by the broker that runs.

        Otherwise the last broker told it, and this one waits for word of its tasks: then only a successor
        brings it.
        """
        if self.child is None:
            return False
        return self.starts == 1 or (self.ready and ended_at - self._ready_at >= SETTLING)

    def story(self, now: float) -> str:
        """How the last one ended and what comes next, for people."""
        failures = len(self._restarts.failures)
        if self.status == JOURNAL_FAILED:
            how = f"ended because its journal failed ({_ABOVE})"
        elif self.status == NOT_STARTED:
            how = f"could not start ({_ABOVE})"
        else:
            early = " before it was ready" if failures and not self.given_up else ""
            how = f"died{early} ({describe(self.status or 0)})"
        text = f"the broker (pid {self.pid}) {how}"
        if self.given_up:
            return f"{text}, for the {failures}th time in a row before it was ready"
        pause = max(0.0, (self.restart_at or now) - now)
        text += f"; starting it again{f' in {pause:.1f} s' if pause else ''}"
        return f"{text} (failure {failures} of {MAX_FAILURES})" if failures else text

    def in_full(self, story: str) -> str:
        """The same with its own message in the place of the hint at that: for who does not read the log."""
        return story.replace(_ABOVE, self.why) if self.why else story

    def close(self) -> None:
        """No other one will be started."""
        os.close(self.why_fd)
