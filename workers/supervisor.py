"""A supervisor process: starts, watches, kills and reaps the workers of one pool. Runs no user code.

One thread, for good: workers die with the *thread* that started them (PR_SET_PDEATHSIG). It waits for the
control socket, the pidfds of its workers and of their orphans, and signals.

From the first answer of a broker on it lives on a lease (see `lease`): it must get through a turn of its loop
well within a sixth of one, so it starts one worker in each and leaves messages for the next.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

import multiprocess
import setproctitle
import zmq

from quiesce import processes
from quiesce.logs import FIELDS
from quiesce.markers import ATTEMPT_MARKER, WORKER_MARKER
from quiesce.protocol import from_supervisor, to_supervisor
from quiesce.protocol.codec import Decoder
from quiesce.workers import kernel, logs, predecessor
from quiesce.workers.dumps import Dumps
from quiesce.workers.lease import ArmLease, AskForLease, LeaseIsBack
from quiesce.workers.lease_timer import LeaseTimer, boottime
from quiesce.workers.link import Link
from quiesce.workers.settings import PoolSettings
from quiesce.workers.supervisor_effects import (
    AskToEnd,
    DumpWorker,
    Effects,
    FreePlace,
    Identity,
    KillAll,
    KillFor,
    Quit,
    Send,
    SetFlags,
    StartWorker,
)
from quiesce.workers.supervisor_session import SupervisorSession
from quiesce.workers.table import Phase, Place, PoolTable
from quiesce.workers.tracker import Tracker
from quiesce.workers.usage import Usage
from quiesce.workers.work import work

_log: Final = logging.getLogger("quiesce.supervisor")

#: Seconds for a stopped process to have stopped.
_STOP_WITHIN: Final = 0.1
#: Seconds of a turn after which the messages that are left wait for the next one.
_TURN: Final = 0.05
#: Seconds between two looks for whether the first worker is ready, which nothing tells.
_FIRST_LOOK: Final = 0.02


class _Child(NamedTuple):
    """One living worker."""

    serial: int
    process: Any
    pidfd: int
    place: Place


def supervise(settings: PoolSettings) -> NoReturn:
    """The whole life of a supervisor process."""
    if settings.parent_pid:
        kernel.die_with_parent(settings.parent_pid)
    kernel.become_subreaper()
    setproctitle.setproctitle(f"quiesce supervisor: {settings.runtime}")
    logs.configure(
        settings.log_level, settings.runtime, settings.log_format, "supervisor", settings.log_file
    )
    _prepare_environment(settings)
    try:
        Supervisor(settings).run()
    except BaseException:
        # At once: at its exit multiprocess would wait for the workers, which go on without us.
        _log.exception("the supervisor failed; it ends, and its workers with it")
    logging.shutdown()
    os._exit(70)


def _prepare_environment(settings: PoolSettings) -> None:
    """What workers inherit: no terminal, no marks of others, and an import path without our own folder."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.pop(ATTEMPT_MARKER, None)
    os.environ.update(settings.env)
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        sys.path.pop(0)  # that of `python -m`; workers put app_dir there


class Supervisor:
    """The driver around the session."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._id = os.urandom(8)
        own = settings.table_fd < 0
        self._table = (
            PoolTable.create(settings.processes) if own else PoolTable.open(settings.table_fd)
        )
        self._table.adopt(self._id)
        self._session = SupervisorSession(
            Identity(
                self._id,
                settings.runtime,
                os.getpid(),
                socket.gethostname(),
                kernel.boot_id(),
                settings.processes,
                settings.slots,
                self._table.places,
                settings.run,
                predecessor.parse(settings.predecessor),
            )
        )
        #: All and only the workers that are not reaped, by serial.
        self._children: dict[int, _Child] = {}
        #: By pidfd: what the poller watches besides workers, orphans of dead ones: all, or enough of them.
        self._orphans: dict[int, processes.Process] = {}
        #: Reaped workers whose orphans are hunted: pid and status.
        self._dying: dict[int, tuple[int, int, Place]] = {}
        self._timer = LeaseTimer()
        self._dumps = Dumps()
        self._usage = Usage(self._id, os.getpid())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link = Link(self._context, settings.control, Decoder(to_supervisor.MESSAGES))
        self._was_lost = False
        self._wake = kernel.Wake()
        self._tracker = Tracker()
        self._signals: list[int] = []
        self._poller = zmq.Poller()
        for what in (self._link.socket, self._link.monitor, self._wake, self._tracker):
            self._poller.register(what, zmq.POLLIN)
        self._quit: Quit | None = None

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Until Quit."""
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self._settings.parent_pid:
            # A terminal sends it to all; only `up` acts on it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._say(lambda session, now: session.start(now))
        while self._quit is None:
            self._turn()
        self._leave(self._quit)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        self._wake.set()

    def _turn(self) -> None:
        sent = self._link.flush()
        ready = self._poller.poll(self._timeout(sent))
        while self._signals:
            # Before the deaths that they may be the reason of.
            self._on_end_wanted(self._signals.pop(0))
        for what, _ in ready:
            if what is self._link.socket:
                self._read()
            elif what is self._link.monitor:
                self._on_monitor()
            elif what == self._wake.fileno():
                self._wake.clear()
            elif what == self._tracker.fileno():
                self._poller.unregister(self._tracker)
                self._tracker.start()
            elif what in self._orphans:
                self._on_orphan_died(what)
            else:
                self._on_worker_died(what)
        self._on_time()

    def _read(self) -> None:
        """Tell the session what has arrived."""
        until = boottime() + _TURN
        for message in self._link.receive():
            self._say(lambda session, now, message=message: session.receive(message, now))  # type: ignore[misc]  # bound early
            if isinstance(message, to_supervisor.Registered):
                self._usage.say_again()
            if boottime() >= until:
                return

    def _timeout(self, sent: bool) -> int:
        now = boottime()
        due = self._session.due()
        times = [self._usage.sample_at, now + 60] + ([] if due is None else [due])
        if not sent:
            times.append(now + 0.05)
        if self._session.waits_for_first:
            times.append(now + _FIRST_LOOK)
        dump = self._dumps.due()
        if dump is not None:
            times.append(dump)
        return int(max(0.0, min(times) - now) * 1000) + 1

    def _on_time(self) -> None:
        if self._session.waits_for_first and any(
            child.place.ready for child in self._children.values()
        ):
            self._session.worker_ready()
        due = self._session.due()
        if due is not None and due <= boottime():
            # What has come meanwhile may be what is waited for: the inbox first.
            self._read()
            self._say(lambda session, now: session.tick(now))
        now = boottime()
        self._link.outbox.extend(self._dumps.look(now))
        if now >= self._usage.sample_at:
            workers = {
                child.serial: (child.process.pid, child.place) for child in self._children.values()
            }
            if any(place.ready for _, place in workers.values()) and self._session.early_deaths:
                self._session.worker_ready()
            usage = self._usage.sample(workers, now)
            if usage is not None and self._session.registered:
                self._link.outbox.append(usage)

    def _on_end_wanted(self, number: int) -> None:
        """SIGINT, SIGTERM: in order, the second one faster. SIGQUIT: at once."""
        again = self._session.kill_at is not None
        grace = 0.0 if again or number == signal.SIGQUIT else self._settings.stop_timeout
        _log.info("%s: the pool ends", signal.Signals(number).name)
        self._say(lambda session, now: session.end(grace, now))

    def _on_monitor(self) -> None:
        for connected in self._link.hear():
            if not connected:
                self._was_lost = True
                self._say(lambda session, now: session.connection_lost(now))
            elif self._was_lost:
                self._was_lost = False
                self._say(lambda session, now: session.connected(now))

    def _say(self, event: Callable[[SupervisorSession, float], Effects]) -> None:
        for effect in event(self._session, boottime()):
            self._do(effect)

    def _do(self, effect: Any) -> None:
        match effect:
            case Send(message):
                self._link.outbox.append(message)
            case StartWorker(place, serial):
                self._start_worker(place, serial)
            case SetFlags(place, keys):
                self._table.place(place).flag(set(keys))
            case KillFor():
                self._kill_for(self._children[effect.serial], effect)
            case ArmLease(until, lease):
                self._table.note_lease(until, lease)  # first: who reads it may rely on it
                self._timer.arm(until)
            case AskForLease(reason):
                _log.warning("%s; its tasks are asked to stop", reason)
                self._table.ask_all()
            case LeaseIsBack():
                _log.info("the broker is back, and with it the lease of this pool")
                self._table.lease_is_back()
            case DumpWorker(request, serial):
                self._dump(request, serial)
            case FreePlace(place):
                self._table.place(place).clear()
            case AskToEnd():
                self._signal_all(signal.SIGTERM)
            case KillAll():
                self._signal_all(signal.SIGKILL)
            case Quit():
                self._quit = effect

    # --- workers ----------------------------------------------------------------------------------

    def _start_worker(self, index: int, serial: int) -> None:
        place = self._table.place(index)
        place.assign(serial)
        os.environ[WORKER_MARKER] = f"{self._id.hex()}:{serial}"
        table = f"/proc/{os.getpid()}/fd/{self._table.fd}"
        arguments = (self._settings.to_json(), self._id, os.getpid(), serial, index, table)
        process = multiprocess.get_context("spawn").Process(
            target=work, args=arguments, name=f"{self._settings.runtime}-{serial}"
        )
        # Blocked in the child until it ignores it: a terminal sends it to all.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        except OSError as error:
            _log.error("worker %d can't be started: %s", serial, error)
            self._died(serial, 0, 1, place)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        place.set_pid(process.pid)
        pidfd = os.pidfd_open(process.pid)
        self._children[serial] = _Child(serial, process, pidfd, place)
        self._poller.register(pidfd, zmq.POLLIN)

    def _on_worker_died(self, pidfd: int) -> None:
        child = next((each for each in self._children.values() if each.pidfd == pidfd), None)
        if child is None:
            self._poller.unregister(pidfd)
            return
        last = processes.look(child.process.pid)
        status = child.process.exitcode  # reaps
        if status is None:
            return
        self._poller.unregister(pidfd)
        os.close(pidfd)
        del self._children[child.serial]
        pid = child.process.pid
        child.process.close()
        self._usage.ended_cpu += 0.0 if last is None else last.cpu_seconds
        self._died(child.serial, pid, status, child.place)

    def _died(self, serial: int, pid: int, status: int, place: Place) -> None:
        self._log_death(serial, pid, status, place)
        self._dying[serial] = (pid, status, place)
        ready = place.ready
        self._say(lambda session, now: session.worker_died(serial, status, ready, now))
        self._hunt()

    def _log_death(self, serial: int, pid: int, status: int, place: Place) -> None:
        """One that ends because its pool or the system does is no event, and nobody replaces it."""
        in_order = status == 0 and all(row.phase is not Phase.BEGUN for row in place.phases())
        if self._session.kill_at is not None:
            level, how = logging.DEBUG, "with its pool"
        elif not place.ready:
            level, how = logging.ERROR, "before it was ready"
        elif in_order:
            level, how = logging.DEBUG, "as it was asked to"
        else:
            level, how = logging.WARNING, "and is replaced"
        said = {"quiesce_worker_pid": pid, "quiesce_exit_status": status}
        _log.log(
            level,
            "worker %d (pid %d) ended with status %d %s",
            serial,
            pid,
            status,
            how,
            extra=said,
        )

    def _hunt(self) -> None:
        """Kill and reap what dead workers left behind; report them once there is nothing left.

        Orphans of living workers fall to these, so every child of ours that is neither a worker nor the
        resource tracker is an orphan of a dead one.
        """
        if not self._dying:
            return
        own = {child.process.pid for child in self._children.values()}
        if self._tracker.pid is not None:
            own.add(self._tracker.pid)
        while True:
            orphans = [each for each in processes.children(os.getpid()) if each.pid not in own]
            if not sum(each.is_zombie and processes.reap(each.pid) for each in orphans):
                break
        watched = {each.who for each in self._orphans.values()}
        for orphan in orphans:
            is_ours = processes.kill(orphan)
            if orphan.who in watched or len(self._orphans) >= processes.ENOUGH:
                continue
            pidfd = processes.open_pidfd(orphan)
            if pidfd is not None:
                self._orphans[pidfd] = orphan
                self._poller.register(pidfd, zmq.POLLIN)
            if not is_ours:
                text = "process %d (%s), left by a worker that died, can't be killed: %s; %s"
                then = "the end of that worker is told when it has ended"
                words = processes.command(orphan.pid)[:60]
                _log.warning(text, orphan.pid, words, processes.NOT_OURS, then)
        if not orphans:
            self._report_dead()

    def _on_orphan_died(self, pidfd: int) -> None:
        orphan = self._orphans.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        processes.reap(orphan.pid)
        self._hunt()

    def _report_dead(self) -> None:
        dying, self._dying = self._dying, {}
        for serial, (pid, status, place) in dying.items():
            attempts = [
                from_supervisor.AttemptPhase(row.task_id, row.attempt, row.phase.name.lower())
                for row in place.phases()
            ]
            row = from_supervisor.WorkerExitedRow(serial, pid, status, True, attempts)
            self._say(
                lambda session, now, serial=serial, row=row: session.worker_gone(serial, row, now)  # type: ignore[misc]  # bound early
            )

    def _dump(self, request: int, serial: int) -> None:
        child = self._children[serial]
        answers = self._dumps.begin(request, serial, child.process.pid, child.place, boottime())
        self._link.outbox.extend(answers)

    def _signal_all(self, number: int) -> None:
        for child in self._children.values():
            _send_signal(child.pidfd, number)

    def _kill_for(self, child: _Child, order: KillFor) -> None:
        """SIGKILL, if the attempt runs and none of the spared ones does.

        The process is stopped first, so that none of them begins or ends meanwhile.
        """
        _send_signal(child.pidfd, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_WITHIN
        # All its threads have stopped; or it is in the kernel, where it does not change the table either.
        while not _has_stopped(child.process.pid) and time.monotonic() < deadline:
            time.sleep(0.0005)
        running = {
            (row.task_id, row.attempt) for row in child.place.phases() if row.phase is Phase.BEGUN
        }
        target = (order.task_id, order.attempt)
        if target in running and running.isdisjoint(map(tuple, order.spared)):
            # As fields: the record has its own attributes of these names, which `extra` may not overwrite.
            said = {FIELDS: {"task_id": order.task_id, "attempt": order.attempt}}
            _log.info("worker %d is killed for task %d.%d", child.serial, *target, extra=said)
            _send_signal(child.pidfd, signal.SIGKILL)
        else:
            _send_signal(child.pidfd, signal.SIGCONT)

    # --- the end ----------------------------------------------------------------------------------

    def _leave(self, why: Quit) -> NoReturn:
        """Nothing of the workers is left; say so, and end the resource tracker."""
        (_log.error if why.status else _log.info)("the supervisor ends: %s", why.text)
        self._link.flush()
        self._link.close(linger=1000)
        self._link.close_monitor()
        self._context.term()
        self._tracker.stop()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(why.status)


def _send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def _has_stopped(pid: int) -> bool:
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return found is not None
