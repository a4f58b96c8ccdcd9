"""`quiesce up`: starts the broker and the pools, watches them, reaps them, and ends them in order.

One thread, one loop. What it waits for is signals: SIGCHLD says that a process has ended, the others what
the user wants. Nothing is done in a signal handler.

    RUNNING --signal--> STOPPING --broker ended--> CLOSING --all ended--> KILLING --nothing left--> (end)
       any state --SIGQUIT, or what can't be mended--> KILLING

KILLING is also the last step of an orderly end: it makes sure that nothing is left.
"""

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from quiesce.cli import children
from quiesce.cli.address import claimed, clean_up, forget_epoch, is_bound_by
from quiesce.cli.children import PYTHON, Child, Orphans, describe
from quiesce.cli.config import Config
from quiesce.cli.pool import MAX_FAILURES, SUPERVISOR_COMMAND, Pool
from quiesce.cli.settings import broker_settings, missing_folders
from quiesce.protocol.addresses import endpoints
from quiesce.workers import kernel

BROKER_COMMAND: Final = (*PYTHON, "quiesce.broker.serve")
#: How the broker ends; anything else is an accident.
BROKER_STOPPED: Final = 0
BROKER_TASK_FAILED: Final = 3
BROKER_NOT_STARTED: Final = 4

#: Beyond its stop_timeout, how long the broker may take to end before it is killed; and after a second signal.
STOP_PATIENCE: Final = 10.0
#: How long supervisors may take to end once the broker has ended in order.
CLOSING_PATIENCE: Final = 5.0
#: How long what was killed may take to be gone. Only a process that hangs in the kernel takes longer.
KILLING_PATIENCE: Final = 30.0
#: How often to look at what no signal tells: whether the broker listens, what orphans are left.
_TICK: Final = 0.02

RUNNING: Final = "running"
STOPPING: Final = "stopping"
CLOSING: Final = "closing"
KILLING: Final = "killing"

_WANTED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def say(text: str) -> None:
    """One line for people, beside the logs of the processes."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


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
        on_ready: Callable[["Up"], None] | None = None,
    ) -> None:
        names = [each.name for each in config.runtimes] if runtimes is None else list(runtimes)
        self.config = config
        self.state = RUNNING
        self.code = 0
        self.broker: Child | None = None
        #: None while it runs, and always where there is none.
        self.broker_status: int | None = None
        self.ready = False
        #: Why it ends with another status than 0: what was said first.
        self.trouble = ""
        self._with_broker = with_broker
        self._broker_command = broker_command
        self._supervisor_command = supervisor_command
        self._stop_patience = stop_patience
        self._on_ready = on_ready or announce
        self._runtimes = names
        self.pools: list[Pool] = []
        #: All and only the processes that we started and have not reaped, by pid.
        self._children: dict[int, Child] = {}
        self._signals = 0
        self._deadline: float | None = None

    # --- the whole run

    def run(self) -> int:
        """Start, watch, end; gives the exit status. ConfigurationError if nothing could be started."""
        for name in self._runtimes:
            self.config.runtime(name)  # says now if there is none
        if not self._with_broker:
            return self._run("")
        new = missing_folders(self.config)
        settings = broker_settings(self.config, parent_pid=os.getpid())
        folder = endpoints(settings.address).folder
        remove_folder = folder is not None and not os.path.exists(folder)
        with claimed(settings, new):
            code = self._run(settings.to_json())
            if self.broker_status not in (BROKER_STOPPED, BROKER_TASK_FAILED, BROKER_NOT_STARTED):
                clean_up(settings, remove_folder=remove_folder)
            if self.broker_status == BROKER_NOT_STARTED and settings.state in new:
                forget_epoch(settings)
        return code

    def _run(self, settings: str) -> int:
        _raise_descriptor_limit()
        kernel.become_subreaper()
        self._orphans = Orphans()
        with _Signals() as signals:
            try:
                self._start(settings)
                while not self._is_over():
                    for signum in signals.wait(self._timeout()):
                        self._on_signal(signum)
                    self._reap()
                    self._on_time(time.monotonic())
            finally:
                for child in self._children.values():
                    child.send(signal.SIGKILL)  # only if we failed: otherwise none is left
                for pool in self.pools:
                    pool.close()
        return self.code

    def _start(self, settings: str) -> None:
        self._env = {**os.environ, "QUIESCE_ADDRESS": self.config.broker.address}
        if self._with_broker:
            self.broker = self._start_child("broker", self._broker_command, settings)
        for name in self._runtimes:
            self.pools.append(Pool(self.config, name))
        for pool in self.pools:
            self._start_pool(pool)

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

    # --- signals

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            return  # everything that has ended is reaped anyway
        name = signal.Signals(signum).name
        if signum == signal.SIGQUIT:
            self._kill_all(f"{name}: killing everything at once", code=1)
        elif self.state in (RUNNING, STOPPING):
            self._signals += 1
            if self._signals == 1:
                self._stop(f"{name}: stopping in order (again: faster; SIGQUIT: at once)")
            else:
                say(f"{name} again: stopping faster (SIGQUIT: at once)")
                self._pass_on(signal.SIGTERM)
                self._deadline = min(
                    self._deadline or float("inf"), time.monotonic() + self._stop_patience
                )

    def _stop(self, why: str, code: int = 0) -> None:
        """Ask for the stop of the whole system. What is asked never takes it back."""
        say(why)
        self._fail(why, code)
        self.state = STOPPING
        self._pass_on(signal.SIGTERM)
        self._deadline = time.monotonic() + self.config.broker.stop_timeout + self._stop_patience

    def _pass_on(self, signum: int) -> None:
        """To the broker, which tells the supervisors; to these only where the broker is not ours."""
        if self.broker is not None:
            self.broker.send(signum)
        else:
            for pool in self.pools:
                if pool.supervisor is not None:
                    pool.supervisor.send(signum)

    def _kill_all(self, why: str = "", code: int = 0) -> None:
        if why:
            say(why)
        self._fail(why, code)
        if self.state != KILLING:
            self.state = KILLING
            self._deadline = time.monotonic() + KILLING_PATIENCE
        for child in self._children.values():
            child.send(signal.SIGKILL)

    def _fail(self, why: str, code: int) -> None:
        if code and not self.code:
            self.code, self.trouble = code, why

    # --- ends of processes

    def _reap(self) -> None:
        for pid, status in children.reap_all():
            child = self._children.pop(pid, None)
            if child is None:
                self._orphans.ended(pid, status)
                continue
            child.ended(status)
            if child is self.broker:
                self._on_broker_ended(status)
            else:
                for pool in self.pools:
                    if pool.supervisor is child:
                        self._on_supervisor_ended(pool, status)

    def _on_broker_ended(self, status: int) -> None:
        self.broker_status = status
        if self.state == KILLING:
            return
        if status == -signal.SIGTERM and self.state == STOPPING and not self.ready:
            # It was asked to stop before it could listen to that: it has begun nothing.
            self._kill_all()
        elif status == BROKER_STOPPED:
            self._close()
        elif status == BROKER_TASK_FAILED:
            why = "the system has stopped because a task marked shutdown_process_on_error failed"
            say(why)
            self._fail(why, 1)
            self._close()
        elif status == BROKER_NOT_STARTED:
            self._kill_all("the broker could not start; its message is above", code=1)
        else:
            self._on_broker_lost(status)

    def _on_broker_lost(self, status: int) -> None:
        """Here a broker that recovers from its journal will be started again; this version has none."""
        self._kill_all(f"the broker died ({describe(status)}): killing everything", code=1)

    def _close(self) -> None:
        self.state = CLOSING
        self._deadline = time.monotonic() + CLOSING_PATIENCE
        for pool in self.pools:
            # It had no worker to tell the broker of, and may wait for that broker for ever. Nothing has run.
            if pool.supervisor is not None and not pool.is_ready:
                pool.supervisor.send(signal.SIGKILL)

    def _on_supervisor_ended(self, pool: Pool, status: int) -> None:
        pool.supervisor_ended(status)
        if status != 0 and self.state != KILLING and not (self.state == CLOSING and status == -9):
            say(pool.story())

    # --- time

    def _on_time(self, now: float) -> None:
        if self.state == KILLING:
            self._orphans.kill(set(self._children))
            if self._deadline is not None and now > self._deadline:
                left = [each.pid for each in self._orphans.left(set())]
                why = f"these processes were killed but do not end: {', '.join(map(str, left))}"
                say(why)
                self._fail(why, 1)
                self._children.clear()
            return
        if self.state == STOPPING and self._deadline is not None and now > self._deadline:
            self._kill_all("the stop took too long: killing everything", code=1)
        elif self.state == CLOSING:
            self._on_time_closing(now)
        else:
            self._watch_ready()
            self._clear(now)
            self._restart(now)

    def _on_time_closing(self, now: float) -> None:
        late = [str(pool.supervisor) for pool in self.pools if pool.runs]
        if not late:
            self._kill_all()
        elif self._deadline is not None and now > self._deadline:
            self._kill_all(f"killing what did not end in order: {', '.join(late)}", code=1)

    def _watch_ready(self) -> None:
        if self.ready or self.state != RUNNING:
            return
        if self.broker is None:
            self.ready = any(pool.is_ready for pool in self.pools)
        else:
            self.ready = is_bound_by(self.config.broker.address, self.broker.pid)
        if self.ready:
            self._on_ready(self)

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
                    self._stop(f"{why}: stopping", code=1)
                else:
                    self._kill_all(why, code=1)
        self._orphans.forget()

    def _restart(self, now: float) -> None:
        for pool in self.pools:
            stopping = self.state == STOPPING
            if (pool.last_status == 0 and (stopping or self.broker is None)) or (
                stopping and self.broker is None
            ):
                pool.restart_at = None  # ended as it was told to
            if pool.restart_at is None or pool.clearing or pool.runs or now < pool.restart_at:
                continue
            # Also during a stop: only the successor's word proves to the broker how its tasks ended.
            self._start_pool(pool)
        if self.broker is None and not any(each.runs or each.is_due for each in self.pools):
            self._kill_all()  # a pool alone: it has ended as it was told

    def _timeout(self) -> float | None:
        """Until what has to be done even if no signal comes."""
        if self.state == KILLING or any(pool.clearing for pool in self.pools):
            return _TICK
        if self.state == RUNNING and not self.ready:
            return _TICK
        times = [pool.restart_at for pool in self.pools if pool.restart_at is not None]
        if self._deadline is not None:
            times.append(self._deadline)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _is_over(self) -> bool:
        if self.state != KILLING or self._children:
            return False
        hopeless = self._deadline is not None and time.monotonic() > self._deadline
        return hopeless or not self._orphans.left(set())


class _Signals:
    """Signals as numbers to be read, in the order in which they came."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def __enter__(self) -> "_Signals":
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in (*_WANTED, signal.SIGCHLD):
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            signal.signal(signum, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        # Everything has ended, and so will we: one more signal must not change our exit status now.
        for signum in _WANTED:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout: float | None) -> bytes:
        """The signals that came, at the latest after `timeout` seconds; perhaps none."""
        # Rounded up, so that it does not spin through the last millisecond.
        if self._poll.poll(None if timeout is None else int(timeout * 1000) + 1):
            return os.read(self._read, 4096)
        return b""


def _raise_descriptor_limit() -> None:
    """To what the system allows: a broker has two sockets for each of its peers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            say(f"the limit of open files stays at {soft}: {error}")


def announce(up: Up) -> None:
    """The line for people: it is ready."""
    words = [f"pid {os.getpid()}", f"address {up.config.broker.address}"]
    if up.broker is not None:
        words.insert(0, f"broker pid {up.broker.pid}")
    if up.pools:
        pools = (f"{pool.runtime} ({pool.processes} x {pool.slots})" for pool in up.pools)
        words.append(f"runtimes {', '.join(pools)}")
    say(f"quiesce is up: {', '.join(words)}")
