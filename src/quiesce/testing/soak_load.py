"""The work of a soak: clients that spawn all sorts of tasks, and an account of what became of each."""

import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from quiesce import errors
from quiesce.client import Client, TaskHandle
from quiesce.client.options import Restart
from quiesce.testing import soak_bodies
from quiesce.testing.soak_bodies import BEGUN, CHILD, WIDTH
from quiesce.testing.soak_result import SoakResult
from quiesce.testing.witness import Witness

TENANTS: Final = ("t0", "t1", "t2", "t3")
KINDS: Final = ("attach", "compaction", "layer-flush-task")
#: Bodies by runtime: of one with a process for each task, and of those with many tasks in one.
_ALONE: Final = ("doze", "spin_gently", "stubborn", "with_process", "until_checkpoint")
_SHARED: Final = ("doze", "in_thread")
_SHARED_ASYNC: Final = ("wander", "in_child_tasks", "by_token")
#: Drawn from: most are not begun again.
_RESTARTS: Final[tuple[Restart, ...]] = ("never",) * 8 + ("on-failure", "always")
#: Tasks of one client that go on at a time.
_AT_ONCE: Final = 12

#: How a handle's error says that nothing was started, and how the task ended.
_REFUSED: Final = (errors.ScopeClosedError, errors.QueueFullError)
_OUTCOMES: Final[dict[type[Exception], str]] = {
    errors.TaskFailedError: "failed",
    errors.TaskCrashedError: "crashed",
    errors.TaskCancelledError: "cancelled",
    errors.TaskLostError: "lost",
}


@dataclass(kw_only=True)
class Row:
    """One spawn. `end`: "" while it goes on, then an outcome, "refused", or "unknown"."""

    slot: int
    tenant: str
    runtime: str
    kind: str
    body: str
    retries: int = 0
    restart: Restart = "never"
    unique_key: str | None = None
    handle: TaskHandle[Any] | None = None
    task_id: int = 0
    end: str = ""
    ended_ns: int = 0

    @property
    def slots(self) -> range:
        """All that its own code ticks into."""
        return range(self.slot, self.slot + BEGUN + 1)

    def __str__(self) -> str:
        return (
            f"slot-{self.slot} task {self.task_id or '?'} {self.body} of {self.tenant} in {self.runtime}, "
            f"kind {self.kind}, retries {self.retries}, restart {self.restart}, end {self.end or 'none'}"
        )


class Load:
    """All rows, and the clients' loops. Thread-safe."""

    def __init__(self, witness: Witness, result: SoakResult) -> None:
        self.witness = witness
        self.result = result
        self._lock = threading.Lock()
        #: All and only the rows that have not ended, by slot.
        self._live: dict[int, Row] = {}
        #: All that ever were, by slot.
        self._all: dict[int, Row] = {}

    # --- what stops ask

    def slots_in(self, **scope: str | None) -> list[int]:
        """The slots of all that may run and belongs to a scope (kind, tenant, runtime)."""
        with self._lock:
            rows = list(self._live.values())
        return [
            slot
            for row in rows
            if all(wanted in (None, getattr(row, name)) for name, wanted in scope.items())
            for slot in row.slots
        ]

    def some_handle(self, draw: random.Random) -> TaskHandle[Any] | None:
        """Of a task that goes on, if there is one."""
        with self._lock:
            handles = [row.handle for row in self._live.values() if row.handle is not None]
        return draw.choice(handles) if handles else None

    # --- the loop of a client

    def spawn_on(self, client: Client, draw: random.Random, until: float) -> None:
        """Keep some tasks going until this moment; refused spawns are the rule."""
        own: list[Row] = []
        while time.monotonic() < until:
            own = [row for row in own if not self.look_at(row)]
            if len(own) >= _AT_ONCE:
                time.sleep(0.01)
                continue
            try:
                own.append(self._spawn(client, draw))
            except ValueError:
                time.sleep(0.1)  # no slot is left: those that go on are enough
            time.sleep(draw.choice((0.0, 0.005, 0.02, 0.05)))

    def _spawn(self, client: Client, draw: random.Random) -> Row:
        runtime = draw.choice(("background",) * 2 + ("compute-request",) * 2 + ("mgmt-request",))
        tenant, kind = draw.choice(TENANTS), draw.choice(KINDS)
        slot = self.witness.new_slot(width=WIDTH)
        function: Any = soak_bodies.run
        arguments: tuple[Any, ...]
        body = draw.choice(_ALONE if runtime == "background" else _SHARED)
        arguments = (body,)
        special = draw.random()
        if special < 0.15:
            function, body, arguments = soak_bodies.short, "short", ()
        elif special < 0.18:
            function, body, arguments = soak_bodies.fail, "fail", ()
        elif special < 0.23 and runtime != "background":
            function, body = soak_bodies.spawner, "spawner"
            arguments = ("background", tenant)
        elif special < 0.26 and runtime == "mgmt-request":
            function, body = soak_bodies.stopper, "stopper"
            arguments = ("background", tenant)
        elif runtime != "background" and special < 0.65:
            body = draw.choice(_SHARED_ASYNC)
            function, arguments = soak_bodies.run_async, (body,)
        row = Row(
            slot=slot,
            tenant=tenant,
            runtime=runtime,
            kind=kind,
            body=body,
            retries=draw.choice((0, 0, 0, 2)),
            restart=draw.choice(_RESTARTS),
            unique_key=draw.choice((None,) * 9 + ("the one",)),
        )
        self._enter(row)
        if body == "spawner":
            child = Row(
                slot=slot + CHILD, tenant=tenant, runtime="background", kind="attach", body="child"
            )
            self._enter(child)
        row.handle = client.spawn(
            runtime,
            kind,
            function,
            self.witness.path,
            slot,
            *arguments,
            tenant_id=tenant,
            name=f"slot-{slot}",
            retries=row.retries,
            restart=row.restart,
            unique_key=row.unique_key,
        )
        return row

    def _enter(self, row: Row) -> None:
        with self._lock:
            self._live[row.slot] = self._all[row.slot] = row

    def look_at(self, row: Row) -> bool:
        """Whether it has ended; then what came of it is noted."""
        handle = row.handle
        if row.end:
            return True
        if handle is None or not handle.done():
            return False
        row.ended_ns = time.monotonic_ns()
        error = handle.exception(timeout=0)
        if isinstance(error, _REFUSED):
            row.end = "refused"
        elif error is None:
            row.end = "completed"
        else:
            row.end = _OUTCOMES.get(type(error), "unknown")
            if row.end == "unknown":
                self.result.troubles.append(f"{row}: {type(error).__name__}: {error}")
        if row.end not in ("refused", "unknown"):
            row.task_id = handle.id
        if row.body == "stopper" and row.end == "completed" and row.unique_key is None:
            for late in handle.result(timeout=0):
                self.result.false_stops.append(f"{late} ran on after {row} had stopped it")
        with self._lock:
            self._live.pop(row.slot, None)
            self.result.tasks[row.end] += 1
        return True

    # --- the end

    def settle(self, client: Client, patience: float) -> None:
        """Everything was stopped: each handle must end now, and what is known of it must agree."""
        deadline = time.monotonic() + patience
        rows = [row for row in self._all.values() if row.handle is not None]
        for row in rows:
            while not self.look_at(row) and time.monotonic() < deadline:
                time.sleep(0.01)
            if not row.end:
                self.result.lost.append(str(row))
        for task in client.tasks():
            self.result.lost.append(f"still registered after all was stopped: {task}")
        by_id: dict[int, list[Row]] = {}
        for row in rows:
            if row.task_id:
                by_id.setdefault(row.task_id, []).append(row)
            elif row.end == "refused" and self._begun(row):
                self.result.doubled.append(f"{row}: it was refused, and has begun all the same")
        for several in by_id.values():
            self._judge(several)
        self._compare(client, by_id)
        for row in rows:
            last = max(self.witness.read(slot).at_ns for slot in row.slots)
            if row.ended_ns and row.unique_key is None and last > row.ended_ns:
                late = (last - row.ended_ns) / 1e6
                self.result.ran_on.append(f"{row}: ticked {late:.3f} ms after its end was told")

    def _begun(self, row: Row) -> int:
        return self.witness.read(row.slot + BEGUN).ticks

    def _judge(self, rows: list[Row]) -> None:
        """All handles of one task (several only with a unique key): how often has it begun?"""
        begun = sum(map(self._begun, rows))
        ends = {row.end for row in rows}
        if len(ends) > 1 and "lost" not in ends:
            self.result.doubled.append(f"one task, several ends: {', '.join(map(str, rows))}")
        # Of those with the same key, the first one's options count, and it is not known which that was.
        if all(row.restart == "never" for row in rows):
            most = 1 + max(row.retries for row in rows)
            if begun > most:
                self.result.doubled.append(
                    f"{rows[0]}: has begun {begun} times, at most {most} allowed"
                )
            if ends == {"completed"} and begun == 0 and rows[0].unique_key is None:
                self.result.lost.append(f"{rows[0]}: has completed, and never begun")

    def _compare(self, client: Client, by_id: dict[int, list[Row]]) -> None:
        """What the registry knows of the last of them, and what the clients were told."""
        for info in client.tasks(state="ended"):
            rows = by_id.get(info.id)
            end = rows[0].end if rows else ""
            if end and end not in {"lost", info.outcome}:
                self.result.doubled.append(
                    f"{rows[0] if rows else ''}: the registry says {info.outcome}"
                )
