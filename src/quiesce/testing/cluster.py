"""A real broker and real pools for a test, and every way to hurt them.

    with Cluster(runtimes={"background": {"processes": 2, "slots": 1}}) as cluster:
        with cluster.client() as client:
            handle = client.spawn("background", "compaction", work)
            cluster.kill("worker", "background")

See `docs/testing.md`.
"""

import signal

from quiesce.testing import cluster_files, members
from quiesce.testing.cluster_life import Life
from quiesce.testing.failures import ClusterError
from quiesce.testing.members import ClusterProcess
from quiesce.testing.network import BROKER, LinkState, Network


class Cluster(Life):
    """A context manager; entering starts it, leaving ends all of it, whatever has happened.

    Args:
        runtimes: tables of [runtimes.NAME] by name, or names; None: the default four, each small.
        kinds: tables of [kinds.NAME] by name, or names, beside the default kinds.
        lease: seconds; short, so that a test can wait for it to run out.
        durability: "crash", "power-loss" or "none".
        network: let all connections of clients and pools go through a proxy, for `partition`, `delay` and `cut`.
            Then each pool has a `quiesce pool` of its own beside a `quiesce broker`.
        tcp: loopback tcp instead of ipc.
        disk: True or a size in bytes: the state folder is a file system of its own, for `fill_disk`. Needs root.
        env: variables for all processes of it; None takes one away.
        start_timeout: seconds until every worker must be ready.
        broker: further keys of [broker], such as `history=100` or `lease_bound=5.0`.

    Tasks can import what the process that makes the cluster can (its `sys.path` is handed on). The folder is
    `folder`, the broker's own address `address`.

    Raises:
        ConfigurationError: the configuration is wrong, on making it.
        ClusterError: it does not start, or, on leaving, does not end as it should. The text ends with its log.
    """

    # --- its processes

    def _one(self, what: str, runtime: str | None, pid: int | None, verb: str) -> ClusterProcess:
        if what not in members.KINDS:
            raise ValueError(f"what to {verb} is one of {', '.join(members.KINDS)}; not {what!r}")
        found = [each for each in self.processes(what, runtime) if pid in (None, each.pid)]
        if not found:
            whose = (f" of {runtime}" if runtime else "") + (f" with pid {pid}" if pid else "")
            there = members.listed(each for each in self.processes() if each.what != members.OTHER)
            raise self._error(f"there is no {what}{whose} to {verb}; there are: {there}")
        return found[0]

    def kill(self, what: str, runtime: str | None = None, pid: int | None = None) -> ClusterProcess:
        """`kill -9` of one process: "worker", "supervisor", "broker" or "up"; returns once it is dead. Gives which.

        Of several the first; `runtime` and `pid` narrow it down. What `quiesce` starts again it starts again, but
        nobody starts an `up`: see `restart`.

        Raises:
            ClusterError: there is none.
        """
        process = self._one(what, runtime, pid, "kill")
        if what == members.UP:
            (up,) = (up for up in self._ups if up.pid == process.pid)
            self._note_runs([up.pid])
            up.was_killed = True
            up.send(signal.SIGKILL)
            up.wait(20.0)
        elif not members.kill(process):
            raise self._error(f"{process} had ended already, or could not be killed")
        self._forget(process)
        return process

    def pause(
        self, what: str, runtime: str | None = None, pid: int | None = None
    ) -> ClusterProcess:
        """SIGSTOP to one process, as in `kill`; returns once all of its threads stand still. Gives which.

        Raises:
            ClusterError: there is none, or it has ended.
        """
        process = self._one(what, runtime, pid, "pause")
        self._paused.append(process)
        if not members.stop(process):
            raise self._error(f"{process} could not be stopped, or has ended")
        return process

    def restart(self, what: str, runtime: str | None = None, timeout: float = 30.0) -> None:
        """Kill one process, and return once its successor is there and every worker is ready.

        "up" (the broker's, or with `runtime` that of a pool, with `network`) is ended in order if it runs, and is
        started again on the same state, also after `kill("up")`.

        Raises:
            ClusterError: the successor does not come in time.
        """
        if what == members.UP:
            self._restart_up(runtime, timeout)
        else:
            old = self.kill(what, runtime)
            self.wait_until(
                lambda: [
                    each
                    for each in self.processes(what, old.runtime)
                    if (each.pid, each.start) != (old.pid, old.start)
                ],
                timeout,
                f"a successor of {old}",
            )
        self.wait_until_ready(timeout)

    def _restart_up(self, runtime: str | None, timeout: float) -> None:
        if runtime is None or self._network is None:
            up = self._ups[0]
        else:
            (up,) = (up for up in self._ups if up.runtime == self.config.runtime(runtime).name)
        if up.is_running:
            troubles = up.end(self.config.broker.stop_timeout + timeout)
            if troubles:
                raise self._error("; ".join(troubles))
        self._start_up(up)

    # --- its network

    def partition(
        self, a: str, b: str, *, one_way: bool = False, channel: str | None = None
    ) -> None:
        """Nothing gets from `a` to `b` any more, nor (unless `one_way`) back, until `heal`. No connection closes.

        One of them is "broker", the other "clients" or a runtime. `channel`: "control" or "data" alone.

        Raises:
            ClusterError: the cluster was made without `network=True`.
        """
        self._wire().partition(a, b, one_way, channel)

    def delay(
        self,
        a: str,
        b: str,
        seconds: float,
        *,
        one_way: bool = False,
        channel: str | None = None,
    ) -> None:
        """What `a` and `b` send each other (`one_way`: a to b) arrives so much later, in order. As in `partition`.

        On one channel alone, messages overtake those of the other.
        """
        self._wire().delay(a, b, seconds, one_way, channel)

    def cut(self, a: str, b: str, *, after: int | None = None, channel: str | None = None) -> None:
        """Break the connections between `a` and `b`: now, or each after so many more bytes from `a` to `b`.

        Peers connect again by themselves. As in `partition` otherwise.
        """
        self._wire().cut(a, b, after, channel)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """End partitions, delays and cuts to come between `a` and `b`, of all links of `a`, or everywhere.

        What was held back arrives.
        """
        self._wire().heal(a, b)

    def link(self, a: str, b: str = BROKER) -> LinkState:
        """What goes between two ends: connections, bytes, cuts."""
        return self._wire().state(a, b)

    def _wire(self) -> Network:
        if self._network is None:
            raise ClusterError(
                "faults of the network need a Cluster(network=True), which has started"
            )
        return self._network

    # --- its disk

    def fill_disk(self) -> None:
        """Leave no byte on the disk of the state folder, until `free_disk`.

        Raises:
            ClusterError: the cluster was made without `disk=True`.
        """
        self._small_disk().fill()

    def free_disk(self) -> None:
        """Undo `fill_disk`."""
        self._small_disk().free()

    def _small_disk(self) -> cluster_files.Disk:
        if self._disk is None:
            raise ClusterError(
                "a full disk needs a Cluster(disk=True) that has started; that mounts a file system: it needs root"
            )
        return self._disk
