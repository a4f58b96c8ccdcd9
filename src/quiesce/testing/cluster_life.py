"""How a cluster for tests comes and goes: started, ready, talked to, ended, and nothing of it left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from quiesce import processes
from quiesce.cli.config import Config, load_config
from quiesce.client import Client
from quiesce.errors import QuiesceError
from quiesce.testing import cluster_files, launch, leaks, members
from quiesce.testing.conditions import wait_until
from quiesce.testing.failures import ClusterError, NotInTimeError
from quiesce.testing.launch import Launch
from quiesce.testing.members import ClusterProcess
from quiesce.testing.network import CLIENTS, Network, free_tcp_address
from quiesce.values import WorkerInfo

T = TypeVar("T")

#: The default runtimes of a cluster, small: they start fast, and one of them has tasks that can be killed alone.
RUNTIMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "compute-request": {"processes": 1},
    "mgmt-request": {"processes": 1},
    "walreceiver": {"processes": 1},
    "background": {"processes": 2, "slots": 1},
}
#: Lines of the log that an error shows.
_TAIL: Final = 40
#: Seconds beyond `stop_timeout` that an orderly end may take.
_END: Final = 20.0
#: Seconds that a look at a broker may take before it is seen whether its `up` still lives.
_LOOK: Final = 1.0


class Life:
    """The part of `Cluster` that hurts nothing."""

    def __init__(
        self,
        *,
        runtimes: Mapping[str, Mapping[str, Any]] | Iterable[str] | None = None,
        kinds: Mapping[str, Mapping[str, Any]] | Iterable[str] | None = None,
        lease: float = 2.0,
        durability: str = "crash",
        network: bool = False,
        tcp: bool = False,
        disk: bool | int = False,
        env: Mapping[str, str | None] | None = None,
        start_timeout: float = 60.0,
        **broker: Any,
    ) -> None:
        if given := sorted({"address", "state"} & set(broker)):
            raise TypeError(f"a cluster has its own {' and '.join(given)}: leave it out")
        self.folder = cluster_files.make_folder()
        #: What was still there when it had ended, in words.
        self.left: list[str] = []
        self._start_timeout = start_timeout
        self._clients: list[Client] = []
        self._paused: list[ClusterProcess] = []
        self._runs: set[str] = set()
        self._network: Network | None = None
        self._disk: cluster_files.Disk | None = None
        self._disk_size = cluster_files.DISK if disk is True else int(disk)
        self._guard: subprocess.Popen[bytes] | None = None
        self._state = "new"
        self._log = self.folder / "log"
        self._file = self.folder / "quiesce.toml"
        try:
            self.address = free_tcp_address() if tcp else f"ipc://{self.folder}/run"
            settings = {
                "address": self.address,
                "state": str(self.folder / "state"),
                "app_dir": os.getcwd(),
                "log_level": "DEBUG",
                "stop_timeout": 10.0,
                "lease": lease,
                "durability": durability,
            }
            chosen = RUNTIMES if runtimes is None else runtimes
            settings |= {"default_runtimes": False} | broker
            self._file.write_text(cluster_files.configuration(settings, chosen, kinds))
            #: All of the configuration, checked.
            self.config: Config = load_config(self._file, {})
            self._ups = self._launches(network, launch.environment(env or {}))
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def _launches(self, network: bool, env: dict[str, str]) -> list[Launch]:
        """The broker's first."""
        place = (self.folder, self._log)
        config = ("--config", str(self._file))
        if not network:
            return [Launch(("up", *config), env, *place, None)]
        self._names = [each.name for each in self.config.runtimes]
        pools = [Launch(("pool", name, *config), env, *place, name) for name in self._names]
        return [Launch(("broker", *config), env, *place, None), *pools]

    # --- its life

    def start(self) -> Self:
        """Start it, and return once every worker is ready. Entering the block does this."""
        if self._state != "new":
            raise ClusterError("a cluster is started once; make another, or see `restart`")
        self._state = "running"
        try:
            self._start()
        except BaseException as error:
            self._close(error)
            raise
        return self

    def _start(self) -> None:
        self._log.touch()
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "quiesce.testing.guard"],
            stdin=subprocess.PIPE,
            env=launch.environment({}),
            start_new_session=True,
        )
        self._tell_guard(f"folder {self.folder}")
        if self._disk_size:
            self._tell_guard(f"disk {self.folder}/state")
            self._disk = cluster_files.Disk(self.folder / "state", self._disk_size)
        if len(self._ups) > 1:
            self._network = Network(self.folder, self.address, self._names, self._log)
            for up in self._ups[1:]:
                assert up.runtime is not None
                up.set_address(self._network.addresses[up.runtime])
        for up in self._ups:
            self._start_up(up)
        self.wait_until_ready(self._start_timeout)

    def _start_up(self, up: Launch) -> None:
        pid = up.start()
        process = processes.look(pid)
        assert process is not None
        self._tell_guard(f"up {pid} {process.start}")

    def _tell_guard(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{line}\n".encode())
        self._guard.stdin.flush()

    def wait_until_ready(self, timeout: float = 30.0) -> list[WorkerInfo]:
        """Until the broker answers and every worker of every runtime is ready; gives the workers.

        Raises:
            ClusterError: a process of `quiesce` has ended instead, or not in time.
        """
        wanted = sum(each.processes for each in self.config.runtimes)
        deadline = time.monotonic() + timeout

        def ready() -> list[WorkerInfo]:
            for up in self._ups:
                if up.status is not None:
                    raise self._error(f"`{up}` has ended with status {up.status}")
            try:
                with Client(self.address, timeout=_LOOK) as client:
                    while True:
                        rows = self._ready_workers(client)
                        if len(rows) == wanted or time.monotonic() > deadline:
                            return rows
                        time.sleep(0.02)
            except QuiesceError:
                return []

        try:
            rows = wait_until(ready, timeout, wanted=lambda rows: len(rows) == wanted)
        except NotInTimeError as error:
            raise self._error(f"not all of {wanted} workers were ready: {error}") from None
        self._note_runs([up.pid for up in self._ups])
        return rows

    def _note_runs(self, ups: list[int]) -> None:
        """By which all that descends from these is known, whoever its parent is by then."""
        for run in launch.runs_below(ups) - self._runs:
            self._runs.add(run)
            self._tell_guard(f"run {run}")

    def _ready_workers(self, client: Client) -> list[WorkerInfo]:
        """What the broker calls ready, and lives: it may not have heard of a death yet."""
        alive = {each.pid for each in self.processes(members.WORKER)}
        return [each for each in client.workers() if each.state == "ready" and each.pid in alive]

    def stop(self) -> int:
        """End all of it in order; gives the exit status of `quiesce up` (of the broker's, with `network`).

        Frozen processes go on, partitions heal, and the clients that it has given out are closed first.

        Raises:
            ClusterError: something did not end in time, or was left though all had ended in order.
        """
        if self._state == "running":
            self._state = "stopped"
            troubles = self._stop()
            if troubles:
                raise self._error("; ".join(troubles))
        status = self._ups[0].status
        return 0 if status is None else status

    def _stop(self) -> list[str]:
        troubles: list[str] = []
        for ease in (self.resume, self._heal_all, self._free_disk):
            try:
                ease()
            except Exception as error:
                troubles.append(f"{error}")
        for client in self._clients:
            with suppress(QuiesceError):
                client.close()
        ups = [up for up in self._ups if up.pid]
        self._note_runs([up.pid for up in ups if up.is_running])
        in_order = not any(up.was_killed for up in ups)
        patience = self.config.broker.stop_timeout + _END
        if ups:
            # The broker stops the system, and tells the pools to end.
            broker, *pools = ups
            broker.send(signal.SIGTERM)
            if broker.is_running and broker.wait(patience) is None:
                troubles += broker.end(5.0, first=signal.SIGTERM)
            deadline = time.monotonic() + 5.0
            for pool in pools:
                if pool.wait(deadline - time.monotonic()) is None:
                    troubles += pool.end(10.0)
        if self._network is not None:
            self._network.close()
        try:
            killed = launch.end_what_is_left(self._runs, self.folder / "state")
        except QuiesceError as error:
            troubles.append(str(error))
            killed = []
        self.left += [f"process {each}" for each in killed]
        if in_order and not troubles:
            self.left += [f"file {each}" for each in leaks.sockets_and_locks(self.folder)]
            if self.left:
                troubles.append(f"it ended in order, but left: {', '.join(self.left)}")
        return troubles

    def _heal_all(self) -> None:
        if self._network is not None:
            self._network.heal()

    def _free_disk(self) -> None:
        if self._disk is not None:
            self._disk.free()

    def _close(self, error: BaseException | None) -> None:
        """After an error of the block all is said as a note to that."""
        try:
            self.stop()
        except ClusterError as trouble:
            if error is None:
                raise
            error.add_note(str(trouble))
        except Exception as trouble:
            if error is None:
                raise
            error.add_note(f"and the cluster could not be stopped: {trouble!r}")
        else:
            if error is not None and not isinstance(error, ClusterError):
                error.add_note(f"the log of the cluster ends so:\n{self._tail()}")
        finally:
            self._state = "gone"
            if self._disk is not None:
                self._disk.close()
            if self._guard is not None and self._guard.stdin is not None:
                with suppress(OSError):
                    self._tell_guard("done")
                with suppress(OSError):
                    self._guard.stdin.close()
                self._guard.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self if self._state == "running" else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    def wait(self, timeout: float = 60.0) -> int:
        """Until `quiesce up` (the broker's, with `network`) ends by itself; gives its exit status.

        Raises:
            NotInTimeError: it has not within `timeout` seconds.
        """
        status = self._ups[0].wait(timeout)
        if status is None:
            raise NotInTimeError(self._said(f"`{self._ups[0]}` has not ended within {timeout:g} s"))
        self._ups[
            0
        ].was_killed = True  # and so may have left something, which is no trouble of ours
        return status

    # --- talking to it

    def client(self, timeout: float = 30.0) -> Client:
        """A client; closed at the end of the cluster, if not before. With `network` it goes through the proxy."""
        client = Client(self.client_address, timeout=timeout)
        self._clients = [each for each in self._clients if each is not client]
        self._clients.append(client)
        return client

    @property
    def client_address(self) -> str:
        """Where clients connect: QUIESCE_ADDRESS for programs of your own."""
        return self.address if self._network is None else self._network.addresses[CLIENTS]

    @property
    def log(self) -> str:
        """All that its processes have logged so far."""
        try:
            return self._log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _tail(self) -> str:
        lines = self.log.splitlines()
        return "\n".join(["…"] * (len(lines) > _TAIL) + lines[-_TAIL:])

    def _said(self, text: str) -> str:
        return f"{text}\nthe log of the cluster ends so:\n{self._tail()}"

    def _error(self, text: str) -> ClusterError:
        return ClusterError(self._said(text))

    def wait_until(
        self,
        condition: Callable[[], T],
        timeout: float = 20.0,
        what: str = "",
        *,
        wanted: Callable[[T], object] = bool,
    ) -> T:
        """As the function `wait_until`; its failure shows the tail of the log, too."""
        try:
            return wait_until(condition, timeout, what, wanted=wanted)
        except NotInTimeError as error:
            ended = [f"`{up}` has ended with status {up.status}" for up in self._ups if up.status]
            raise NotInTimeError(self._said("\n".join([str(error), *ended]))) from None

    # --- its processes

    def processes(
        self, what: str | None = None, runtime: str | None = None
    ) -> list[ClusterProcess]:
        """Those that live now: all of them, or the "up", "broker", "supervisor", "worker" or "other" ones.

        Workers count once they have their title, supervisors too; what tasks have started is "other".
        """
        if what is not None and what not in (*members.KINDS, members.OTHER):
            raise ValueError(f"what is one of {', '.join(members.KINDS)}, other; not {what!r}")
        if runtime is not None:
            self.config.runtime(runtime)
        titles = {each.name: each.title for each in self.config.runtimes}
        ups = {up.pid: up.runtime for up in self._ups if up.is_running}
        return [
            each
            for each in members.find(ups, titles)
            if what in (None, each.what) and runtime in (None, each.runtime)
        ]

    def resume(self, process: ClusterProcess | None = None) -> None:
        """SIGCONT to exactly the process that `pause` gave, or to all that are paused. The dead are passed over."""
        for each in list(self._paused) if process is None else [process]:
            members.send(each, signal.SIGCONT)
            self._forget(each)

    def _forget(self, process: ClusterProcess) -> None:
        gone = (process.pid, process.start)
        self._paused = [each for each in self._paused if (each.pid, each.start) != gone]
