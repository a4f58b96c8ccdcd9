"""Random faults against a real system, and a judge that asks nobody but the tasks' own memory.

Some clients stop tenants all the time. Each stop is judged while its scope is still closed: no task of that tenant
may tick after the instant at which the stop returned, whatever was killed, frozen or restarted meanwhile.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from quiesce import Client, QuiesceError, TaskHandle
from quiesce.testing import Witness, bodies
from quiesce.testing.leaks import Process, descendants
from system import System

TENANTS: Final = ("t0", "t1", "t2", "t3")
#: Seconds for which a tenant is watched after its stop has returned.
WATCH: Final = 0.25
#: Witness slots: a task has its own.
SLOTS: Final = 60_000


class Chaos:
    """One run. `false_stops` and `late` are what must be empty."""

    def __init__(self, system: System, seed: int, *, seconds: float, bound: float) -> None:
        """`bound`: seconds that a stop with no grace may take, whatever happens."""
        self.system = system
        self.random = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.bound = bound
        self.witness = Witness(system.folder / "ticks", slots=SLOTS)
        self.faults: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.evidence: Counter[str] = Counter()
        self.spawned = 0
        self.slowest = 0.0
        self.false_stops: list[str] = []
        self.late: list[str] = []
        self.troubles: list[str] = []
        #: The slots that tasks of a tenant have, and the task ids.
        self._slots: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self._next_slot = 0
        self._lock = threading.Lock()
        self._frozen: list[tuple[float, Process]] = []

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def run(self) -> None:
        """All of it; returns when everything has come to rest."""
        threads = [
            threading.Thread(target=self._guarded, args=(body,), name=body.__name__)
            for body in (self.load, self.stop, self.stop, self.hurt)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.thaw(all_of_them=True)
        self.witness.close()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:
            self.troubles.append(f"{body.__name__}: {error!r}")

    # --- work -------------------------------------------------------------------------------------

    def load(self) -> None:
        """Keep some tasks of each tenant running; refused spawns are the rule."""
        draw = random.Random(self.random.random())
        with self.system.client(timeout=60) as client:
            handles: list[TaskHandle[object]] = []
            while self.goes_on and self._next_slot < SLOTS - 10:
                look_at([handle for handle in handles if handle.done()])
                handles = [handle for handle in handles if not handle.done()]
                if len(handles) > 12:
                    time.sleep(0.01)
                    continue
                tenant = draw.choice(TENANTS)
                with self._lock:
                    slot = self._next_slot
                    self._next_slot += 2
                    self._slots[tenant] += [slot, slot + 1]
                runtime = draw.choice(("background", "background", "compute-request"))
                body = draw.choice(
                    (bodies.doze, bodies.spin_gently, bodies.stubborn, bodies.with_process)
                    if runtime == "background"
                    else (bodies.doze, bodies.wander, bodies.in_child_tasks)
                )
                handles.append(
                    client.spawn(
                        runtime,
                        "attach",
                        body,
                        self.witness.path,
                        slot,
                        tenant_id=tenant,
                        retries=draw.choice((0, 0, 2)),
                    )
                )
                self.spawned += 1
                time.sleep(draw.choice((0.0, 0.005, 0.02)))
            look_at(handles)

    def stop(self) -> None:
        draw = random.Random(self.random.random())
        while self.goes_on:
            with self.system.client(timeout=60) as client:
                for _ in range(20):
                    if self.goes_on:
                        self._stop(client, draw.choice(TENANTS), draw.choice((0.0, 0.2, 0.6)))

    def _stop(self, client: Client, tenant: str, grace: float) -> None:
        began = time.monotonic()
        with client.stopped(tenant_id=tenant, grace=grace) as report:
            now = time.monotonic_ns()
            took = time.monotonic() - began
            self.slowest = max(self.slowest, took)
            if took > grace + self.bound:
                self.late.append(f"{tenant}: {took:.2f} s\n{report}")
            self.stops["of tasks" if report.tasks else "empty"] += 1
            self.evidence.update(str(row.evidence) for row in report.tasks)
            with self._lock:
                slots = list(self._slots[tenant])
            time.sleep(WATCH)
            ticked = [slot for slot in slots if self.witness.read(slot).at_ns > now]
            if ticked:
                self.false_stops.append(f"{tenant}: slots {ticked} ticked after\n{report}")

    # --- faults -----------------------------------------------------------------------------------

    def hurt(self) -> None:
        draw = random.Random(self.random.random())
        while self.goes_on:
            time.sleep(draw.uniform(0.05, 0.6))
            self.thaw()
            found = self.processes()
            kind = draw.choice(("worker",) * 6 + ("supervisor",) * 2 + ("broker",) * 2)
            if not found[kind]:
                continue
            victim = draw.choice(found[kind])
            how = draw.choice(("kill", "freeze", "freeze"))
            if how == "kill":
                _signal(victim, signal.SIGKILL)
            else:
                _signal(victim, signal.SIGSTOP)
                longest = {"worker": 6.0, "supervisor": 6.0, "broker": 0.7}[kind]
                self._frozen.append((time.monotonic() + draw.uniform(0.1, longest), victim))
            self.faults[f"{how} {kind}"] += 1

    def thaw(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for at, victim in list(self._frozen):
            if all_of_them or at <= now:
                self._frozen.remove((at, victim))
                _signal(victim, signal.SIGCONT)

    def processes(self) -> dict[str, list[Process]]:
        """The living processes of the system by what they are."""
        found: dict[str, list[Process]] = {"broker": [], "supervisor": [], "worker": []}
        for each in descendants(self.system.process.pid):
            if each.state in "ZX":
                continue
            if each.command.startswith("quiesce broker"):
                found["broker"].append(each)
            elif each.command.startswith("quiesce supervisor"):
                found["supervisor"].append(each)
            elif " worker" in each.command and "quiesce" not in each.command:
                found["worker"].append(each)
        return found


def look_at(handles: list[TaskHandle[object]]) -> None:
    """So that nobody complains that nobody has."""
    for handle in handles:
        with suppress(QuiesceError, TimeoutError):
            handle.exception(timeout=0)


def _signal(process: Process, number: int) -> None:
    """To exactly this process, if it is still there."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if any(each.key == process.key for each in descendants(os.getpid())):
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass
    finally:
        os.close(pidfd)
