"""`quiesce up`: starts the broker and the pools, watches them, reaps them, and ends them in order.

One thread, one loop. What it waits for is signals: SIGCHLD says that a process has ended, the others what
the user wants. Nothing is done in a signal handler.

    RUNNING --signal--> STOPPING --broker ended--> CLOSING --all ended--> KILLING --nothing left--> (end)
       any state --SIGQUIT, or what can't be mended--> KILLING

A broker that dies is started again, in STOPPING too; its successor goes on where it was. Supervisors and their
workers live through that. KILLING is also the last step of an orderly end: it makes sure that nothing is left.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from quiesce import logs
from quiesce.broker.settings import BrokerSettings
from quiesce.cli import broker_process, children, descriptors
from quiesce.cli.address import claimed, clean_up, forget_epoch, refuse_taken, remove_empty
from quiesce.cli.broker_process import BROKER_COMMAND, BrokerProcess
from quiesce.cli.children import Child, Orphans
from quiesce.cli.config import Config
from quiesce.cli.metrics_process import METRICS_COMMAND, MetricsProcess
from quiesce.cli.pool import SUPERVISOR_COMMAND, Pool
from quiesce.cli.restarts import MAX_FAILURES
from quiesce.cli.runs import Ledger, new_id, this_run
from quiesce.cli.settings import broker_settings, missing_folders
from quiesce.cli.signals import AGAIN_AFTER, Requests, Signals
from quiesce.errors import QuiesceError
from quiesce.protocol.addresses import endpoints
from quiesce.workers import kernel

#: Beyond its stop_timeout, how long the broker may take to end before it is killed; and after a second signal.
STOP_PATIENCE: Final = 10.0
#: How long supervisors may take to end once the broker has ended in order.
CLOSING_PATIENCE: Final = 5.0
#: How long what was killed may take to be gone. Only a process that hangs in the kernel takes longer.
KILLING_PATIENCE: Final = 30.0
#: How long a pool that is alone waits for its broker before it says so.
BROKER_PATIENCE: Final = 5.0
#: How often to look at what no signal tells: whether the broker listens, what orphans are left.
_TICK: Final = 0.02
#: The same while nothing is left but orphans that can't be killed.
_SLOW_TICK: Final = 0.5
#: The same while there is a deadline: who sleeps until then does not know how much of it stood still.
_BEAT: Final = 1.0
#: A wait that takes so much longer than it was to has stood still, and very likely all that is waited for has, too:
#: a container was paused, or a job stopped.
_HELD_UP: Final = 1.0

RUNNING: Final = "running"
STOPPING: Final = "stopping"
CLOSING: Final = "closing"
KILLING: Final = "killing"


def say(config: Config, text: str, level: int = logging.INFO) -> None:
    """One line, beside the logs of the processes and in their format."""
    logs.say(text, config.broker.log_format, "up", level, config.broker.log_file)


class Up:
    """A broker and pools, or (`quiesce broker`, `quiesce pool`) one of them.

    `run` may be called once. The commands are arguments so that tests can put other programs in.
    """

    def __init__(
        self,
        config: Config,
        *,
        with_broker: bool = True,
        runtimes: Iterable[str] | None = None,
        broker_command: Sequence[str] = BROKER_COMMAND,
        supervisor_command: Sequence[str] = SUPERVISOR_COMMAND,
        stop_patience: float = STOP_PATIENCE,
        again_after: float = AGAIN_AFTER,
        on_ready: Callable[["Up"], None] | None = None,
    ) -> None:
        names = [each.name for each in config.runtimes] if runtimes is None else list(runtimes)
        self.config = config
        self.state = RUNNING
        self.code = 0
        #: Names this run of `up`, in everything that it starts.
        self.run_id = new_id()
        #: None where there is none of ours.
        self.broker: BrokerProcess | None = None
        #: Whether it has been announced.
        self.ready = False
        #: Why it ends with another status than 0: what was said first, in full.
        self.trouble = ""
        #: None where it is not configured, or the broker is not ours.
        self.metrics: MetricsProcess | None = None
        self._with_broker = with_broker
        self._broker_command = broker_command
        self._supervisor_command = supervisor_command
        self._stop_patience = stop_patience
        self._on_ready = on_ready or announce
        self._runtimes = names
        self.pools: list[Pool] = []
        #: All and only the processes that we started and have not reaped, by pid.
        self._children: dict[int, Child] = {}
        self._ledger: Ledger | None = None
        self._requests = Requests(again_after)
        #: Why the system stops, for the broker.
        self._stop_reason = ""
        self._deadline: float | None = None
        #: When to say that no broker answers; None: never, or it has been said.
        self._missing_at: float | None = None

    def say(self, text: str, level: int = logging.INFO) -> None:
        """One line."""
        say(self.config, text, level)

    # --- the whole run

    def run(self) -> int:
        """Start, watch, end; gives the exit status. ConfigurationError if nothing could be started."""
        runtimes = [
            self.config.runtime(name) for name in self._runtimes
        ]  # says now if there is none
        descriptors.raise_limit(sum(each.processes + 1 for each in runtimes), self.say)
        if self._with_broker and self.config.broker.metrics:
            self.metrics = MetricsProcess(self.config.broker)
        if not self._with_broker:
            return self._run()
        new = missing_folders(self.config)
        settings = broker_settings(self.config, parent_pid=os.getpid(), run=self.run_id)
        with claimed(settings, new):
            return self._run_claimed(settings, new)

    def _run_claimed(self, settings: BrokerSettings, new: tuple[str, ...]) -> int:
        folder = endpoints(settings.address).folder
        own = folder if folder and not os.path.exists(folder) else ""
        ledger = self._ledger = Ledger.open(settings.state, this_run(self.run_id, own))
        for note in ledger.notes:
            self.say(note, logging.WARNING)
        refuse_taken(settings)
        if folder in ledger.folders:
            # An `up` that was killed had made it, and so it becomes ours to remove.
            own, ledger.own = folder, ledger.own._replace(folder=folder)
        ledger.record()
        settings = replace(settings, swept=tuple(each.run for each in ledger.swept))
        broker = self.broker = BrokerProcess(settings)
        code = self._run()
        came_to_nothing = broker.starts == 1 and broker.status == broker_process.NOT_STARTED
        if broker.starts > 1 or broker.status not in broker_process.TIDY:
            clean_up(settings, remove_folder=bool(own))
        elif own:
            remove_empty(own)
        if came_to_nothing:
            self._note(ledger.withdraw)
            if settings.state in new:
                forget_epoch(settings)
        else:
            self._note(ledger.finish)
        return code

    def _note(self, write: Callable[[], None]) -> None:
        """What the next start could do without."""
        try:
            write()
        except QuiesceError as error:
            self.say(f"warning: {error}", logging.WARNING)

    def _run(self) -> int:
        kernel.become_subreaper()
        self._orphans = Orphans(lambda text: self.say(text, logging.WARNING))
        with Signals() as signals:
            try:
                self._start()
                while not self._is_over():
                    for signum in self._wait(signals):
                        self._on_signal(signum)
                    self._reap()
                    self._on_time(time.monotonic())
            finally:
                for child in self._children.values():
                    child.send(signal.SIGKILL)  # only if we failed: otherwise none is left
                for part in (self.broker, *self.pools):
                    if part is not None:
                        part.close()
        return self.code

    def _start(self) -> None:
        self._env = children.environment(self.config.broker.address, self.run_id)
        if self.broker is not None:
            self._start_broker(self.broker)
        for name in self._runtimes:
            self.pools.append(Pool(self.config, name, self.run_id))
        for pool in self.pools:
            self._start_pool(pool)
        if self.broker is None:
            self._missing_at = time.monotonic() + BROKER_PATIENCE

    def _start_broker(self, broker: BrokerProcess) -> None:
        stopping = self._stop_reason if self.state == STOPPING else ""
        line = broker.settings(stopping)
        child = self._start_child("broker", self._broker_command, line, (broker.why_fd,))
        broker.started(child, knows_of_stop=bool(stopping))

    def _start_child(
        self, name: str, command: Sequence[str], settings: str, pass_fds: tuple[int, ...] = ()
    ) -> Child:
        child = children.start(name, command, settings, env=self._env, pass_fds=pass_fds)
        self._children[child.pid] = child
        return child

    def _start_pool(self, pool: Pool) -> None:
        name = f"supervisor of {pool.runtime}"
        line = pool.settings(os.getpid())
        pool.started(self._start_child(name, self._supervisor_command, line, (pool.table.fd,)))

    def _start_metrics(self, settings: str) -> Child:
        return self._start_child("metrics", METRICS_COMMAND, settings)

    # --- signals

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            return  # everything that has ended is reaped anyway
        name = signal.Signals(signum).name
        if signum == signal.SIGQUIT:
            self._kill_all(f"{name}: killing everything at once", code=1)
        elif self.state in (RUNNING, STOPPING) and self._requests.counts(signum, time.monotonic()):
            if self._requests.count == 1:
                self._stop(
                    f"{name}: stopping in order (again: faster; SIGQUIT: at once)", f"signal {name}"
                )
            else:
                self.say(f"{name} again: stopping faster (SIGQUIT: at once)")
                self._ask_to_stop()
                self._deadline = min(
                    self._deadline or float("inf"), time.monotonic() + self._stop_patience
                )

    def _stop(self, why: str, reason: str, code: int = 0) -> None:
        """Ask for the stop of the whole system. What is asked never takes it back."""
        self._say_why(why, code)
        self.state = STOPPING
        self._stop_reason = reason
        self._deadline = time.monotonic() + self.config.broker.stop_timeout + self._stop_patience
        if self.broker is not None and not self.broker.was_ready and self.broker.child is None:
            self._kill_all()  # between two brokers that could not start: nothing has begun
        else:
            self._ask_to_stop()

    @property
    def _is_alone(self) -> bool:
        """Whether the supervisors have no broker that we could ask."""
        return self.broker is None or self.broker.given_up

    def _ask_to_stop(self) -> None:
        """The broker, which tells the supervisors; these only where the broker is not ours, or given up."""
        if self.broker is not None and not self.broker.given_up:
            self.broker.ask_to_stop()
        else:
            for pool in self.pools:
                if pool.supervisor is not None:
                    pool.supervisor.send(signal.SIGTERM)

    def _kill_all(self, why: str = "", code: int = 0) -> None:
        self._say_why(why, code)
        if self.state != KILLING:
            self.state = KILLING
            self._deadline = time.monotonic() + KILLING_PATIENCE
        for child in self._children.values():
            child.send(signal.SIGKILL)

    def _say_why(self, why: str, code: int) -> None:
        """Why it ends, and with what status; "" of an end that was announced before."""
        if why:
            self.say(why, logging.ERROR if code else logging.INFO)
        if code and not self.code:
            self.code = code
            self.trouble = why if self.broker is None else self.broker.in_full(why)

    # --- ends of processes

    def _reap(self) -> None:
        for pid, status in children.reap_all():
            child = self._children.pop(pid, None)
            if child is None:
                self._orphans.ended(pid, status)
                continue
            child.ended(status)
            if self.broker is not None and child is self.broker.child:
                self._on_broker_ended(self.broker, status)
            elif self.metrics is not None and child is self.metrics.child:
                story = self.metrics.ended(status, time.monotonic())
                if self.state == RUNNING:
                    self.say(story, logging.WARNING)
            else:
                for pool in self.pools:
                    if pool.supervisor is child:
                        self._on_supervisor_ended(pool, status)

    def _on_broker_ended(self, broker: BrokerProcess, status: int) -> None:
        broker.ended(status)
        if self.state == KILLING:
            return
        if status == -signal.SIGTERM and self.state == STOPPING and not broker.was_ready:
            # It was asked to stop before it could listen to that: it has begun nothing.
            self._kill_all()
        elif status == broker_process.STOPPED:
            self._close()
        elif status == broker_process.TASK_FAILED:
            why = "the system has stopped because a task marked shutdown_process_on_error failed"
            self._say_why(why, 1)
            self._close()
        elif status == broker_process.NOT_STARTED and broker.starts == 1 and not broker.was_ready:
            self._kill_all(broker_process.COULD_NOT_START, code=1)
        else:
            self._on_broker_lost(broker, time.monotonic())

    def _on_broker_lost(self, broker: BrokerProcess, now: float) -> None:
        broker.died(now)
        why = broker.story(now)
        if broker.given_up:
            self._on_broker_given_up(broker, why)
            return
        self.say(f"{why}, to finish the stop" if self.state == STOPPING else why, logging.WARNING)
        for pool in self.pools:
            if pool.last_status == 0 and not pool.runs and not pool.clearing:
                # It ended in order, but who was told what became of its tasks may have told nobody.
                pool.restart_at = now

    def _on_broker_given_up(self, broker: BrokerProcess, why: str) -> None:
        if not broker.was_ready:
            self._kill_all(f"{why}: killing everything", code=1)
        elif self.state == RUNNING:
            self._stop(f"{why}: stopping without it", "the broker can't be started again", code=1)
        else:
            self._say_why(f"{why}: going on without it", 1)
            self._ask_to_stop()

    def _close(self) -> None:
        self.state = CLOSING
        self._deadline = time.monotonic() + CLOSING_PATIENCE
        for pool in self.pools:
            # It had no worker to tell the broker of, and may wait for that broker for ever. Nothing has run.
            if pool.supervisor is not None and not pool.is_ready:
                pool.supervisor.send(signal.SIGKILL)

    def _on_supervisor_ended(self, pool: Pool, status: int) -> None:
        boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
        pool.supervisor_ended(status, time.monotonic(), boottime)
        if status != 0 and self.state != KILLING and not (self.state == CLOSING and status == -9):
            self.say(pool.story(), logging.WARNING)

    # --- time

    def _wait(self, signals: Signals) -> bytes:
        """For signals, as long as there is nothing to do. Time that stood still uses up nobody's patience."""
        timeout, since = self._timeout(), time.monotonic()
        found = signals.wait(timeout)
        late = 0.0 if timeout is None else time.monotonic() - since - timeout
        if late > _HELD_UP:
            if self._deadline is not None:
                self._deadline += late
                self.say(
                    f"everything stood still for {late:.1f} s: they do not count", logging.WARNING
                )
            if self._missing_at is not None:
                self._missing_at += late
        return found

    def _on_time(self, now: float) -> None:
        if self.state == KILLING:
            self._orphans.kill(set(self._children))
            if self._deadline is not None and now > self._deadline:
                self._say_why(
                    f"these processes were killed but do not end: {self._orphans.words()}", 1
                )
                self._children.clear()
            return
        if self.state == STOPPING and self._deadline is not None and now > self._deadline:
            self._kill_all("the stop took too long: killing everything", code=1)
        elif self.state == CLOSING:
            self._on_time_closing(now)
        else:
            self._watch_broker(now)
            self._watch_ready(now)
            self._clear(now)
            self._restart(now)

    def _on_time_closing(self, now: float) -> None:
        late = [str(pool.supervisor) for pool in self.pools if pool.runs]
        if not late:
            self._kill_all()
        elif self._deadline is not None and now > self._deadline:
            self._kill_all(f"killing what did not end in order: {', '.join(late)}", code=1)

    def _watch_broker(self, now: float) -> None:
        if self.broker is None or not self.broker.watch(now):
            return
        if self._ledger is not None:
            self._note(self._ledger.settle)
        if self.ready:
            self.say(f"the broker is back: pid {self.broker.pid}")

    def _watch_ready(self, now: float) -> None:
        if self.ready or self.state != RUNNING:
            return
        if self.broker is None:
            self.ready = any(pool.is_ready for pool in self.pools)
            self._watch_for_a_broker(now)
        else:
            self.ready = self.broker.ready
        if self.ready:
            self._on_ready(self)

    def _watch_for_a_broker(self, now: float) -> None:
        """Of a pool that is alone: say once that there is none."""
        if any(pool.was_answered for pool in self.pools):
            self._missing_at = None
        elif self._missing_at is not None and now >= self._missing_at:
            self._missing_at = None
            address = self.config.broker.address
            self.say(f"no broker answers at {address}; waiting for it", logging.WARNING)

    def _clear(self, now: float) -> None:
        """Pools whose supervisor died: once nothing is left of it, plan its successor."""
        clearing = [pool for pool in self.pools if pool.clearing]
        if not clearing or self._orphans.kill(set(self._children)):
            return
        for pool in clearing:
            pool.cleared(self._orphans.statuses, now)
            if pool.given_up:
                why = f"{pool.story()}, for the {MAX_FAILURES}th time before a worker was ready"
                if self.state == RUNNING:
                    pool.restart_at = None
                    reason = f"pool {pool.runtime} can't be started"
                    self._stop(f"{why}: stopping", reason, code=1)
                else:
                    self._kill_all(why, code=1)
        self._orphans.forget()

    def _restart(self, now: float) -> None:
        broker, stopping = self.broker, self.state == STOPPING
        if self.metrics is not None and self.ready and not stopping:
            self.metrics.start_if_due(now, self._start_metrics)
        if broker is not None and broker.restart_at is not None and now >= broker.restart_at:
            self._start_broker(broker)
        for pool in self.pools:
            if self._is_alone:
                if stopping or pool.last_status == 0:
                    pool.restart_at = None  # ended as it was told to
            elif pool.last_status == 0 and pool.restart_at is not None:
                assert broker is not None
                if not broker.was_told_by_this_one(pool.ended_at):
                    pool.restart_at = min(pool.restart_at, now)
                elif stopping:
                    pool.restart_at = None
            if pool.restart_at is None or pool.clearing or pool.runs or now < pool.restart_at:
                continue
            # Also during a stop: only the successor's word proves to the broker how its tasks ended.
            self._start_pool(pool)
        if self._is_alone and not any(each.runs or each.is_due for each in self.pools):
            self._kill_all()  # a pool alone: it has ended as it was told

    def _timeout(self) -> float | None:
        """Until what has to be done even if no signal comes."""
        if self.state == KILLING or any(pool.clearing for pool in self.pools):
            return _SLOW_TICK if self._orphans.only_wait else _TICK
        times = [] if self._deadline is None else [min(self._deadline, time.monotonic() + _BEAT)]
        if self.state in (RUNNING, STOPPING):
            if self.state == RUNNING and not self.ready:
                return _TICK
            if self.broker is not None:
                if self.broker.is_watched:
                    return _TICK
                times += [] if self.broker.restart_at is None else [self.broker.restart_at]
            times += [pool.restart_at for pool in self.pools if pool.restart_at is not None]
            if self.state == RUNNING and self.metrics is not None:
                times += [] if self.metrics.start_at is None else [self.metrics.start_at]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _is_over(self) -> bool:
        if self.state != KILLING or self._children:
            return False
        hopeless = self._deadline is not None and time.monotonic() > self._deadline
        return hopeless or not self._orphans.left(set())


def announce(up: Up) -> None:
    """The line for people: it is ready."""
    words = [f"pid {os.getpid()}", f"address {up.config.broker.address}"]
    if up.broker is not None:
        words.insert(0, f"broker pid {up.broker.pid}")
    if up.pools:
        pools = (f"{pool.runtime} ({pool.processes} x {pool.slots})" for pool in up.pools)
        words.append(f"runtimes {', '.join(pools)}")
    up.say(f"quiesce is up: {', '.join(words)}")
