"""The supervisor's side of its conversation with the broker, and what it wants of its workers: a pure machine.

Each worker has a serial of its own and, while it is accounted for, a place in the shared table:

    starting -> alive -> dead (its descendants are hunted) -> reported -> (ExitTaken) the place is free

A place with a report that the broker has not taken is not used again, so the pool has spare places: a
replacement need not wait for the broker. No clock: `now` is an argument, in seconds.
"""

from typing import Any, Final, NamedTuple

from quiesce.protocol import PROTOCOL_VERSION, from_supervisor, to_supervisor

#: Seconds until an exit report or a Hello without an answer is sent again.
RESEND: Final = 0.5
HELLO_SLOWEST: Final = 8.0
HEARTBEAT_EVERY: Final = 5.0
#: Seconds before the next start after the first death of a worker that never was ready; doubles.
BACKOFF_FIRST: Final = 0.1
BACKOFF_SLOWEST: Final = 5.0
#: Seconds that an ending supervisor waits for its last reports to be taken.
LAST_REPORTS: Final = 2.0


class Identity(NamedTuple):
    """What does not change while the process lives. `places`: of the table."""

    supervisor: bytes
    runtime: str
    pid: int
    host: str
    boot_id: str
    processes: int
    slots: int
    places: int
    predecessor: from_supervisor.Predecessor | None = None


# --- effects --------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send this to the broker."""

    message: Any


class StartWorker(NamedTuple):
    """Start a worker process in this place of the table."""

    place: int
    serial: int


class SetFlags(NamedTuple):
    """Set the stop flags of these attempts in this place."""

    place: int
    keys: list[tuple[int, int]]


class KillFor(NamedTuple):
    """SIGKILL to this worker if the table says that the attempt runs and none of `spared` does."""

    serial: int
    place: int
    task_id: int
    attempt: int
    spared: list[tuple[int, int]]


class DumpWorker(NamedTuple):
    """Have this worker write its stacks without its interpreter, and answer with them."""

    request: int
    serial: int


class FreePlace(NamedTuple):
    """The account of this place is settled."""

    place: int


class AskToEnd(NamedTuple):
    """Ask every worker to end when nothing runs any more."""


class KillAll(NamedTuple):
    """SIGKILL to every worker."""


class Quit(NamedTuple):
    """The process ends, with this status."""

    status: int
    text: str


Effect = (
    Send | StartWorker | SetFlags | KillFor | DumpWorker | FreePlace | AskToEnd | KillAll | Quit
)
Effects = list[Effect]


class Report(NamedTuple):
    """An exit that the broker has not taken."""

    row: from_supervisor.WorkerExitedRow
    place: int
    send_at: float


class SupervisorSession:
    """One supervisor. Every method takes the moment and gives what is to be done, in order."""

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
        self.heartbeat_at = 0.0
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

    # --- workers ----------------------------------------------------------------------------------

    def start(self, now: float) -> Effects:
        """Say Hello, and start the workers without waiting for an answer."""
        return [*self._hello(now), *self._fill(now)]

    def _fill(self, now: float) -> Effects:
        """Start what is missing, as far as places and the backoff allow."""
        if self.kill_at is not None or now < self.start_at:
            return []
        effects: Effects = []
        for place in self._free_places()[: self._missing()]:
            self.last_serial += 1
            self.alive[self.last_serial] = place
            effects.append(StartWorker(place, self.last_serial))
        return effects

    def _missing(self) -> int:
        return max(self.identity.processes - (len(self.alive) - len(self.dying)), 0)

    def _free_places(self) -> list[int]:
        taken = {*self.alive.values(), *(report.place for report in self.reports.values())}
        return [place for place in range(self.identity.places) if place not in taken]

    def worker_ready(self) -> None:
        """A worker is registered: starts succeed."""
        self.early_deaths = 0
        self.start_at = 0.0

    def worker_died(self, serial: int, status: int, ready: bool, now: float) -> Effects:
        """A worker was reaped; `worker_gone` follows when its descendants are, too."""
        self.dying[serial] = status
        if ready:
            self.worker_ready()
        else:
            self.early_deaths += 1
            wait = min(BACKOFF_FIRST * 2 ** min(self.early_deaths - 1, 10), BACKOFF_SLOWEST)
            self.start_at = now + wait
        return self._fill(now)

    def worker_gone(self, serial: int, row: from_supervisor.WorkerExitedRow, now: float) -> Effects:
        """Nothing of this worker is left; `row` says what became of its attempts."""
        del self.dying[serial]
        place = self.alive.pop(serial)
        self.reports[serial] = Report(row, place, now)
        return [*self._send_reports(now), *self._fill(now), *self._leave(now)]

    def _send_reports(self, now: float, *, everything: bool = False) -> Effects:
        """Reports wait for the registration: the broker would not know whose they are."""
        if not self.registered:
            return []
        effects: Effects = []
        for serial, report in self.reports.items():
            if everything or report.send_at <= now:
                self.reports[serial] = report._replace(send_at=now + RESEND)
                effects.append(
                    Send(from_supervisor.WorkerExited(self.identity.supervisor, report.row))
                )
        return effects

    # --- the broker -------------------------------------------------------------------------------

    def connection_lost(self, now: float) -> Effects:
        """The connection broke; `connected` follows when it is back."""
        self.registered = False
        return []

    def connected(self, now: float) -> Effects:
        """The connection is back. What was on its way on the old one may be gone."""
        self.registered = False
        self.hello_interval = RESEND
        return self._hello(now)

    def _hello(self, now: float) -> Effects:
        self.hello_at = now + self.hello_interval
        self.hello_interval = min(2 * self.hello_interval, HELLO_SLOWEST)
        identity = self.identity
        return [
            Send(
                from_supervisor.Hello(
                    PROTOCOL_VERSION,
                    identity.supervisor,
                    identity.runtime,
                    identity.pid,
                    identity.host,
                    identity.boot_id,
                    identity.processes,
                    identity.slots,
                    self.incarnation,
                    self.epoch,
                    "",
                    now,
                    True,
                    identity.predecessor,
                )
            )
        ]

    def receive(self, message: Any, now: float) -> Effects:
        """A message of the broker."""
        epoch = getattr(message, "epoch", self.epoch)
        if epoch < self.epoch:
            return []
        self.epoch = epoch
        match message:
            case to_supervisor.Registered(incarnation=incarnation):
                self.incarnation = incarnation
                self.registered = True
                self.hello_at, self.hello_interval = None, RESEND
                self.heartbeat_at = now + HEARTBEAT_EVERY
                return self._send_reports(now, everything=True)
            case to_supervisor.Refused(text=text):
                self.status = 1
                self.why = f"the broker refused it: {text}"
                return [Quit(1, self.why)] if self._is_empty() else self.end(0.0, now)
            case to_supervisor.HelloWanted():
                return self._on_hello_wanted(now)
            case to_supervisor.Flag():
                return self._on_flag(message)
            case to_supervisor.Kill():
                return self._on_kill(message)
            case to_supervisor.Dump():
                return self._on_dump(message)
            case to_supervisor.ExitTaken(serial):
                return self._on_exit_taken(serial, now)
            case to_supervisor.Exit(grace=grace):
                return self.end(grace, now)
            case _:
                return []

    def _on_hello_wanted(self, now: float) -> Effects:
        if not self.registered and self.hello_at is not None and now < self.hello_at:
            return []
        self.registered = False
        self.hello_interval = RESEND
        return self._hello(now)

    def _on_flag(self, message: to_supervisor.Flag) -> Effects:
        by_place: dict[int, list[tuple[int, int]]] = {}
        for row in message.rows:
            if row.serial in self.alive:
                by_place.setdefault(self.alive[row.serial], []).append((row.task_id, row.attempt))
        return [SetFlags(place, keys) for place, keys in by_place.items()]

    def _on_kill(self, message: to_supervisor.Kill) -> Effects:
        serial = message.serial
        if serial not in self.alive or serial in self.dying:
            return []
        place = self.alive[serial]
        return [KillFor(serial, place, message.task_id, message.attempt, list(message.spared))]

    def _on_dump(self, message: to_supervisor.Dump) -> Effects:
        serial = message.serial
        if serial in self.alive and serial not in self.dying:
            return [DumpWorker(message.request, serial)]
        text = f"worker {serial} of runtime {self.identity.runtime!r} has ended"
        return [Send(from_supervisor.Dumped(message.request, serial, "", text))]

    def _on_exit_taken(self, serial: int, now: float) -> Effects:
        report = self.reports.pop(serial, None)
        if report is None:
            return []
        return [FreePlace(report.place), *self._fill(now), *self._leave(now)]

    # --- the end, and time ------------------------------------------------------------------------

    def end(self, grace: float, now: float) -> Effects:
        """End the workers, killing after `grace` what is left; then Goodbye and Quit. Again: faster."""
        first = self.kill_at is None
        self.kill_at = now + grace if self.kill_at is None else min(self.kill_at, now + grace)
        asked: Effects = [AskToEnd()] if first and self.alive else []
        return [*asked, *self._kill(now), *self._leave(now)]

    def _kill(self, now: float) -> Effects:
        if self.kill_at is None or now < self.kill_at or self.killed:
            return []
        self.killed = True
        return [KillAll()] if self.alive else []

    def _is_empty(self) -> bool:
        return not self.alive and not self.reports

    def _leave(self, now: float) -> Effects:
        if self.kill_at is None or self.alive:
            return []
        if self.leave_at is None:
            self.leave_at = now + LAST_REPORTS
        if self.reports and now < self.leave_at:
            return []
        goodbye: Effects = [Send(from_supervisor.Goodbye(self.identity.supervisor))]
        return [*(goodbye if self.registered else []), Quit(self.status, self.why)]

    def tick(self, now: float) -> Effects:
        """What time brings. Call it when `due` has come; more often is harmless."""
        effects: Effects = []
        if self.hello_at is not None and now >= self.hello_at:
            effects += self._hello(now)
        if self.registered and now >= self.heartbeat_at:
            self.heartbeat_at = now + HEARTBEAT_EVERY
            effects.append(Send(from_supervisor.Renew(self.identity.supervisor, now, True)))
        effects += self._send_reports(now)
        effects += self._fill(now)
        effects += self._kill(now)
        return [*effects, *self._leave(now)]

    def due(self) -> float | None:
        """When `tick` has something to do; None: not before something else happens."""
        times = [] if self.hello_at is None else [self.hello_at]
        if self.registered:
            times.append(self.heartbeat_at)
            times += [report.send_at for report in self.reports.values()]
        if self.kill_at is None:
            if self._missing() and self._free_places():
                times.append(self.start_at)
        elif self.alive:
            times += [] if self.killed else [self.kill_at]
        elif self.leave_at is not None:
            times.append(self.leave_at)
        return min(times, default=None)

    # --- for the simulator and the explorer -------------------------------------------------------

    def freeze(self) -> tuple[Any, ...]:
        """All of its state but the identity, as plain tuples."""
        return (
            self.incarnation,
            self.epoch,
            self.registered,
            self.hello_at,
            self.hello_interval,
            self.heartbeat_at,
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
    def thaw(cls, identity: Identity, frozen: tuple[Any, ...]) -> "SupervisorSession":
        """The inverse of `freeze`."""
        session = cls(identity)
        (
            session.incarnation,
            session.epoch,
            session.registered,
            session.hello_at,
            session.hello_interval,
            session.heartbeat_at,
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
        session.alive, session.dying = dict(alive), dict(dying)
        session.reports = {
            serial: Report(_thaw_row(row), place, send_at)
            for serial, row, place, send_at in reports
        }
        return session

    def check(self) -> None:
        """Assert what the attributes say of themselves. For tests."""
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
