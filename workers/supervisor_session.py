"""The supervisor's side of its conversation with the broker, and what it wants of its workers: a pure machine.

Each worker has a serial of its own and, while it is accounted for, a place in the shared table:

    starting -> alive -> dead (its descendants are hunted) -> reported -> (ExitTaken) the place is free

A place with a report that the broker has not taken is not used again, so the pool has spare places: a
replacement need not wait for the broker. Its lease is kept in `lease`.

No clock: `now` is an argument, in seconds of CLOCK_BOOTTIME, since that is what leases count in.
"""

from typing import Any, Final

from quiesce.protocol import PROTOCOL_VERSION, from_supervisor, to_supervisor
from quiesce.workers.supervisor_effects import (
    RESEND,
    AskToEnd,
    DumpWorker,
    Effects,
    FreePlace,
    KillAll,
    KillFor,
    Quit,
    Report,
    Send,
    SetFlags,
    StartWorker,
)
from quiesce.workers.supervisor_state import SupervisorState

#: What RESEND doubles up to for a Hello; it is never said less often than the lease is to be renewed.
HELLO_SLOWEST: Final = 8.0
#: Seconds that the first worker of a pool has for itself, unless it is ready sooner. At the start of a system all
#: pools load theirs at once, and each gets its first one in half the time if the others wait.
HEAD_START: Final = 1.0
#: Seconds before the next start after the first death of a worker that never was ready; doubles.
BACKOFF_FIRST: Final = 0.1
BACKOFF_SLOWEST: Final = 5.0
#: Seconds that an ending supervisor waits for its last reports to be taken.
LAST_REPORTS: Final = 2.0


class SupervisorSession(SupervisorState):
    """One supervisor. Every method takes the moment and gives what is to be done, in order."""

    # --- workers ----------------------------------------------------------------------------------

    def start(self, now: float) -> Effects:
        """Say Hello, and start the first worker without waiting for an answer; `tick` starts the others."""
        effects = [*self._hello(now), *self._fill(now)]
        if self._missing():
            self.start_at = now + HEAD_START
        return effects

    @property
    def waits_for_first(self) -> bool:
        """Whether the others are to be started once the first worker is ready: then say `worker_ready`."""
        alone = self.last_serial == 1 and not self.early_deaths and self.start_at > 0
        return alone and self.kill_at is None and self._missing() > 0

    def _fill(self, now: float) -> Effects:
        """Start one of what is missing, if places and the backoff allow; `due` sees to the next.

        One start takes a while, and must not keep the lease waiting.
        """
        if self.kill_at is not None or now < self.start_at:
            return []
        effects: Effects = []
        for place in self._free_places()[: min(self._missing(), 1)]:
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
        """A worker is registered: starts succeed, and need not wait."""
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
        self.lease.waits(now)
        return []

    def connected(self, now: float) -> Effects:
        """The connection is back. What was on its way on the old one may be gone."""
        self.registered = False
        self.hello_interval = RESEND
        return self._hello(now)

    def _hello(self, now: float) -> Effects:
        interval = self.hello_interval
        if self.lease.is_armed:
            interval = min(interval, self.lease.ask_every)
        self.hello_at = now + interval
        self.hello_interval = min(2 * self.hello_interval, HELLO_SLOWEST)
        self.lease.asked(now)
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
                    identity.run,
                    now,
                    self.lease.is_armed,
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
            case to_supervisor.Registered():
                return self._on_registered(message, now)
            case to_supervisor.Refused(text=text, grace=grace):
                self.status = 1
                self.why = f"the broker refused it: {text}"
                return [Quit(1, self.why)] if self._is_empty() else self.end(grace, now)
            case to_supervisor.Grant(sent_at=sent_at, lease=lease):
                return self._on_grant(sent_at, lease, now)
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

    def _on_registered(self, message: to_supervisor.Registered, now: float) -> Effects:
        self.incarnation = message.incarnation
        self.registered = True
        self.hello_at, self.hello_interval = None, RESEND
        granted = self._on_grant(message.sent_at, message.lease, now)
        if not self.lease.is_armed:
            granted += self._renew(now)  # this answer came too late
        return [*granted, *self._send_reports(now, everything=True)]

    def _on_grant(self, sent_at: float, lease: float, now: float) -> Effects:
        was_armed = self.lease.is_armed
        effects: Effects = [*self.lease.granted(sent_at, lease, now)]
        if self.lease.is_armed and not was_armed:
            # Until the broker has heard of the timer it assigns nothing to our workers.
            effects += self._renew(now)
        return effects

    def _renew(self, now: float) -> Effects:
        self.lease.asked(now)
        return [Send(from_supervisor.Renew(self.identity.supervisor, now, self.lease.is_armed))]

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
        """What time brings, once all that has arrived is told. Call it when `due` has come, or more often."""
        effects: Effects = []
        if self.hello_at is not None and now >= self.hello_at:
            effects += self._hello(now)
        if self.registered and now >= self.lease.ask_at:
            effects += self._renew(now)
        effects += self.lease.tick(now)
        effects += self._send_reports(now)
        effects += self._fill(now)
        effects += self._kill(now)
        return [*effects, *self._leave(now)]

    def due(self) -> float | None:
        """When `tick` has something to do; None: not before something else happens."""
        times = [] if self.hello_at is None else [self.hello_at]
        if self.registered:
            times.append(self.lease.ask_at)
            times += [report.send_at for report in self.reports.values()]
        half = self.lease.due()
        if half is not None:
            times.append(half)
        if self.kill_at is None:
            if self._missing() and self._free_places():
                times.append(self.start_at)
        elif self.alive:
            times += [] if self.killed else [self.kill_at]
        elif self.leave_at is not None:
            times.append(self.leave_at)
        return min(times, default=None)
