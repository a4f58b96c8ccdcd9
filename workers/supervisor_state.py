"""All that a supervisor session remembers, and what holds of it at every moment."""

from typing import Any, Self

from quiesce.protocol import from_supervisor
from quiesce.workers.lease import Lease
from quiesce.workers.supervisor_effects import RESEND, Identity, Report


class SupervisorState:
    """The state of a session, to be frozen to and thawed from plain tuples, cheaply."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.incarnation = 0
        #: The newest epoch seen. Orders of an older one are ignored.
        self.epoch = 0
        #: The broker has answered our last Hello, and the connection was not lost since.
        self.registered = False
        #: When Hello is said again; None if none is due.
        self.hello_at: float | None = None
        self.hello_interval = RESEND
        self.lease = Lease()
        self.last_serial = 0
        #: All and only the workers that were started and whose end has not been reported: their places.
        self.alive: dict[int, int] = {}
        #: Those of them that are dead, while their descendants are hunted: place and exit status.
        self.dying: dict[int, int] = {}
        #: All and only the reports that the broker has not taken, by serial.
        self.reports: dict[int, Report] = {}
        #: Deaths in a row of workers that never were ready.
        self.early_deaths = 0
        #: No worker is started before this.
        self.start_at = 0.0
        #: Exit came, or somebody asked this process to end: when what is left is killed.
        self.kill_at: float | None = None
        #: What is left was killed.
        self.killed = False
        #: When it ends even if its last reports are not taken; set once all workers are accounted for.
        self.leave_at: float | None = None
        self.status = 0
        #: Why it ends, for the log.
        self.why = "all workers are reaped"

    # --- for the simulator and the explorer -------------------------------------------------------

    def freeze(self) -> tuple[Any, ...]:
        """All of its state but the identity, as plain tuples."""
        return (
            self.incarnation,
            self.epoch,
            self.registered,
            self.hello_at,
            self.hello_interval,
            self.lease.freeze(),
            self.last_serial,
            tuple(self.alive.items()),
            tuple(self.dying.items()),
            tuple(
                (serial, _freeze_row(report.row), report.place, report.send_at)
                for serial, report in self.reports.items()
            ),
            self.early_deaths,
            self.start_at,
            self.kill_at,
            self.killed,
            self.leave_at,
            self.status,
            self.why,
        )

    @classmethod
    def thaw(cls, identity: Identity, frozen: tuple[Any, ...]) -> Self:
        """The inverse of `freeze`."""
        session = cls(identity)
        (
            session.incarnation,
            session.epoch,
            session.registered,
            session.hello_at,
            session.hello_interval,
            lease,
            session.last_serial,
            alive,
            dying,
            reports,
            session.early_deaths,
            session.start_at,
            session.kill_at,
            session.killed,
            session.leave_at,
            session.status,
            session.why,
        ) = frozen
        session.lease = Lease.thaw(lease)
        session.alive, session.dying = dict(alive), dict(dying)
        session.reports = {
            serial: Report(_thaw_row(row), place, send_at)
            for serial, row, place, send_at in reports
        }
        return session

    def check(self) -> None:
        """Assert what the attributes say of themselves. For tests."""
        self.lease.check()
        places = [*self.alive.values(), *(report.place for report in self.reports.values())]
        assert len(places) == len(set(places)), f"a place is used twice: {places}"
        assert all(0 <= place < self.identity.places for place in places)
        assert self.dying.keys() <= self.alive.keys()
        assert not self.alive.keys() & self.reports.keys()
        assert len(self.alive) - len(self.dying) <= self.identity.processes


def _freeze_row(row: from_supervisor.WorkerExitedRow) -> tuple[Any, ...]:
    return (*row[:4], tuple(tuple(phase) for phase in row.attempts))


def _thaw_row(frozen: tuple[Any, ...]) -> from_supervisor.WorkerExitedRow:
    serial, pid, status, table_known, phases = frozen
    attempts = [from_supervisor.AttemptPhase(*phase) for phase in phases]
    return from_supervisor.WorkerExitedRow(serial, pid, status, table_known, attempts)
