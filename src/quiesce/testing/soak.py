"""A soak: random faults against a real system under load, and a judge that asks nobody but the tasks' own memory.

Some clients spawn, some stop, one thread hurts. Each stop is judged when it returns: no task that it names, and no
task of its scope while that is still closed, may tick after this instant, whatever was killed, frozen, cut off or
started again meanwhile. At the end everything is stopped, and the account must be even: every acknowledged spawn
has ended, once; none has begun more often than its retries allow; nothing is left behind.

`python -m quiesce.testing.soak --minutes 5` runs one from the command line.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from quiesce.client import Client
from quiesce.errors import QuiesceError, ShutdownTimeoutError
from quiesce.registry import leases
from quiesce.testing.arguments import duration
from quiesce.testing.cluster import Cluster
from quiesce.testing.failures import ClusterError, LeakError
from quiesce.testing.leaks import no_leaks
from quiesce.testing.soak_bodies import ran_on
from quiesce.testing.soak_faults import LONGEST, Faults
from quiesce.testing.soak_load import KINDS, TENANTS, Load
from quiesce.testing.soak_result import SoakResult
from quiesce.testing.witness import Witness
from quiesce.values import ShutdownReport

#: Seconds for which the tasks of a stop are watched after it has returned.
WATCH: Final = 0.25
#: Slots of the witness for each second.
_SLOTS: Final = 600
_LEASE: Final = 2.0
RUNTIMES: Final = {
    "compute-request": {"processes": 1, "slots": 64},
    "mgmt-request": {"processes": 1, "slots": 64},
    "background": {"processes": 3, "slots": 1},
}
#: Seconds that what is not the waiting of a stop may take: restarts, on a machine with much else to do.
_SLACK: Final = 10.0


class Soak:
    """One run. `run` may be called once.

    Args:
        seed: of all that is drawn. (What the system makes of it differs each time: its processes are real.)
        seconds: for how long faults are made.
        network: with faults of the network.
        disk: with a disk that is full at times; needs root.
        bound: seconds beyond its grace that a stop may take. None: what the lease and the faults come to.
        log: where to keep the cluster's log; None: in a temporary file, if something is wrong.
    """

    def __init__(
        self,
        seed: int,
        *,
        seconds: float,
        network: bool = False,
        disk: bool = False,
        bound: float | None = None,
        log: str | Path | None = None,
    ) -> None:
        lb = leases.default_bound(_LEASE, leases.DRIFT, leases.KILL_DELAY)
        longest = LONGEST["clients"] + LONGEST["broker"] + (LONGEST["partition"] if network else 0)
        self.bound = 2 * lb + longest + _SLACK if bound is None else bound
        self.result = SoakResult(seed=seed, network=network, disk=disk, bound=self.bound)
        self._seconds = seconds
        self._draw = random.Random(seed)
        self._log = log
        #: Closed scopes that are kept are opened by whoever is first: one at a time.
        self._keeping = threading.Lock()
        self._lock = threading.Lock()
        #: The stops that go on: since when, how long they may take, and of what.
        self._going: dict[object, tuple[float, float, str]] = {}

    def run(self) -> SoakResult:
        """All of it; what is wrong is in the result."""
        began = time.monotonic()
        try:
            with no_leaks():
                self._run()
        except LeakError as error:
            self.result.leaks.append(str(error))
        self.result.seconds = time.monotonic() - began
        return self.result

    def _run(self) -> None:
        cluster = Cluster(
            runtimes=RUNTIMES,
            kinds={kind: {"stop_grace": 1.0} for kind in KINDS},
            lease=_LEASE,
            stop_timeout=5.0,
            history=1_000_000,
            network=self.result.network,
            disk=self.result.disk,
        )
        try:
            with cluster:
                try:
                    self._run_on(cluster)
                    cluster.stop()
                except ClusterError as error:
                    self.result.troubles.append(str(error))
                finally:
                    self._keep_log(cluster)
        except ClusterError as error:  # it did not even start
            self.result.troubles.append(str(error))

    def _run_on(self, cluster: Cluster) -> None:
        self._cluster = cluster
        slots = int(self._seconds * _SLOTS) + 10_000
        with Witness(cluster.folder / "ticks", slots) as witness:
            self._witness = witness
            self._load = Load(witness, self.result)
            self._until = time.monotonic() + self._seconds
            faults = Faults(
                cluster,
                self._own_draw(),
                self.result,
                network=self.result.network,
                disk=self.result.disk,
            )
            bodies: list[Callable[[], None]] = [
                *(self._spawn for _ in range(2)),
                *(self._stop for _ in range(3)),
                lambda: faults.go_on(self._until),
            ]
            threads = [
                threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies
            ]
            for thread in threads:
                thread.start()
            if self._all_end(threads):
                self._settle()

    def _own_draw(self) -> random.Random:
        return random.Random(self._draw.random())

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:
            self.result.troubles.append(f"{type(error).__name__}: {error}")

    def _all_end(self, threads: list[threading.Thread]) -> bool:
        """Whether they do; a stop that goes on far beyond its bound is given up, and told."""
        deadline = self._until + 2 * self.bound + 30.0
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for since, allowed, scope in self._going.values():
                took = time.monotonic() - since
                self.result.hangs.append(
                    f"{scope}: has not returned after {took:.1f} s of {allowed:.1f} s"
                )
        late = [thread for thread in threads if thread.is_alive()]
        if late:
            self.result.troubles.append(
                f"{len(late)} threads of the soak do not end:\n{_stacks(late)}\n{self._situation()}"
            )
        return not late

    def _situation(self) -> str:
        """What the broker knows, for whoever looks into a hang."""
        try:
            with Client(self._cluster.address, timeout=10.0) as client:
                rows: list[object] = [client.broker_info(), *client.stops(), *client.tasks()]
                rows += [*client.workers(), *client.closed_scopes()]
        except QuiesceError as error:
            rows = [f"{type(error).__name__}: {error}"]
        return "\n".join(map(str, [*rows, *self._cluster.processes()]))

    # --- work

    def _spawn(self) -> None:
        client = self._cluster.client(timeout=60.0)
        self._load.spawn_on(client, self._own_draw(), self._until)

    # --- stops

    def _stop(self) -> None:
        draw = self._own_draw()
        ways = (self._stop_tenant,) * 10 + (
            self._stop_part,
            self._stop_part,
            self._stop_part,
            self._stop_and_keep,
            self._stop_with_timeout,
            self._stop_one,
            self._stop_one,
        )
        while time.monotonic() < self._until:
            with Client(self._cluster.client_address, timeout=60.0) as client:
                for _ in range(20):
                    if time.monotonic() < self._until:
                        draw.choice(ways)(client, draw)
                        # While all scopes are closed nothing runs.
                        time.sleep(draw.uniform(0.0, 1.0))

    def _stop_tenant(self, client: Client, draw: random.Random) -> None:
        self._stop_held(client, draw, tenant=draw.choice(TENANTS))

    def _stop_part(self, client: Client, draw: random.Random) -> None:
        """Scopes that overlap those of the others."""
        tenant = draw.choice((None, *TENANTS))
        runtime = draw.choice((None, *RUNTIMES))
        kind = draw.choice((None, *KINDS))
        if tenant is None and draw.random() < 0.7:
            kind = draw.choice(KINDS)
        self._stop_held(client, draw, tenant=tenant, runtime=runtime, kind=kind)

    def _stop_held(self, client: Client, draw: random.Random, **scope: str | None) -> None:
        grace = draw.choice((0.0, 0.2, 0.6))
        what = _arguments(scope)
        with self._timed(str(scope), grace) as stop, client.stopped(**what, grace=grace) as report:
            stop.returned(report)
            self._judge(report, stop.instant, **scope)

    def _stop_and_keep(self, client: Client, draw: random.Random) -> None:
        tenant = draw.choice(TENANTS)
        with self._keeping:
            with self._timed(f"{tenant}, kept", 0.2) as stop:
                report = client.shutdown_tasks(tenant_id=tenant, grace=0.2, keep_closed=True)
                stop.returned(report)
            self._judge(report, stop.instant, tenant=tenant)
            client.reopen(tenant_id=tenant)
        self.result.stops["kept closed"] += 1

    def _stop_with_timeout(self, client: Client, draw: random.Random) -> None:
        """It may be over before its tasks are; what it calls stopped by then must be, and the rest later."""
        tenant = draw.choice(TENANTS)
        with self._keeping:
            timeout = draw.choice((0.05, 0.5))
            try:
                with self._timed(f"{tenant}, timeout {timeout}", timeout) as stop:
                    report = client.shutdown_tasks(tenant_id=tenant, grace=60.0, timeout=timeout)
                    stop.returned(report)
            except ShutdownTimeoutError as error:
                self.result.stops["timed out"] += 1
                instant = self._witness.now()
                if error.report is not None:
                    self._judge_rows(error.report, instant)
                self._stop_held(client, draw, tenant=tenant)
            else:
                self._judge_rows(report, stop.instant)
            client.reopen(tenant_id=tenant)

    def _stop_one(self, client: Client, draw: random.Random) -> None:
        """By its handle, which closes nothing."""
        handle = self._load.some_handle(draw)
        if handle is None:
            return
        try:
            with self._timed(repr(handle), 0.2) as stop:
                report = handle.shutdown(grace=0.2)
                stop.returned(report)
        except QuiesceError:
            return  # it was refused, or its client is gone: nothing to judge
        self._judge_rows(report, stop.instant)
        self.result.stops["of one task"] += 1

    def _timed(self, scope: str, grace: float) -> "_Timed":
        return _Timed(self, scope, grace + self.bound)

    def _judge(self, report: ShutdownReport, instant: int, **scope: str | None) -> None:
        """Its scope is still closed."""
        slots = self._load.slots_in(**scope)
        time.sleep(WATCH)
        late = self._witness.ticked_after(instant, slots)
        if late:
            self.result.false_stops.append(f"{scope}: slots {late} ticked after\n{report}")
        self._judge_rows(report, instant)

    def _judge_rows(self, report: ShutdownReport, instant: int) -> None:
        """What it names has ended, whether or not its scope is open again."""
        late = ran_on(self._witness.path, (row.name for row in report.tasks), instant)
        if late:
            self.result.false_stops.append(f"{late} ran on after\n{report}")

    # --- the end

    def _settle(self) -> None:
        """Nothing is hurt any more: stop all, and draw up the account."""
        client = self._cluster.client(timeout=60.0)
        with self._timed("everything", 0.2) as stop:
            report = client.shutdown_tasks(grace=0.2, keep_closed=True, timeout=4 * self.bound)
            stop.returned(report)
        self._judge(report, stop.instant)
        self._load.settle(client, 30.0)

    def _keep_log(self, cluster: Cluster) -> None:
        if self._log is None:
            if self.result.ok:
                return
            with tempfile.NamedTemporaryFile(
                prefix="quiesce-soak-", suffix=".log", delete=False
            ) as file:
                self.result.log = file.name
        else:
            self.result.log = str(self._log)
        Path(self.result.log).write_text(cluster.log)


def _stacks(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames()
    return "\n".join(
        "".join(traceback.format_stack(frame))
        for thread in threads
        if (frame := frames.get(thread.ident or 0)) is not None
    )


def _arguments(scope: dict[str, str | None]) -> dict[str, Any]:
    return {("tenant_id" if name == "tenant" else name): value for name, value in scope.items()}


class _Timed:
    """One stop, from its call to its return."""

    def __init__(self, soak: Soak, scope: str, allowed: float) -> None:
        self._soak = soak
        self._scope = scope
        self._allowed = allowed
        self._began = 0.0
        #: When it returned, on the clock of the witness.
        self.instant = 0

    def __enter__(self) -> "_Timed":
        self._began = time.monotonic()
        with self._soak._lock:
            self._soak._going[self] = (self._began, self._allowed, self._scope)
        return self

    def returned(self, report: ShutdownReport) -> None:
        """Its report is there."""
        self.instant = Witness.now()
        took = time.monotonic() - self._began
        result = self._soak.result
        with self._soak._lock:
            self._soak._going.pop(self, None)
            result.slowest = max(result.slowest, took)
            result.stops["of tasks" if report.tasks else "empty"] += 1
            result.evidence.update(str(row.evidence) for row in report.tasks)
            if took > self._allowed:
                result.hangs.append(f"{self._scope}: {took:.2f} s\n{report}")

    def __exit__(self, *_: object) -> None:
        with self._soak._lock:
            self._soak._going.pop(self, None)


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="soak", description="Random faults against a real system."
    )
    parser.add_argument("--minutes", type=duration, default=1.0, help="for how long (default: 1)")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn (default: any)")
    parser.add_argument("--no-network", action="store_true", help="no partitions, delays and cuts")
    parser.add_argument("--no-disk", action="store_true", help="no full disk (which needs root)")
    parser.add_argument("--log", help="keep the log of the cluster in this file")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    soak = Soak(
        seed,
        seconds=given.minutes * 60.0,
        network=not given.no_network,
        disk=not given.no_disk and os.geteuid() == 0,
        log=given.log,
    )
    result = soak.run()
    sys.stdout.write(f"{result.to_json() if given.json else result}\n")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
