"""What the acts of the demo share: the client, the long tasks, and what was seen."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quiesce import Client
from quiesce.client import TaskHandle
from quiesce.errors import (
    QuiesceError,
    ScopeClosedError,
    TaskCancelledError,
    TaskCrashedError,
    TaskLostError,
)
from quiesce.examples.pageserver.load import LoadGenerator
from quiesce.examples.pageserver.names import RUNTIMES
from quiesce.examples.pageserver.source import Plan, Settings, SourceFile
from quiesce.examples.pageserver.system import System
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.view import Picture, Row, View
from quiesce.registry.ids import TaskId
from quiesce.values import TaskInfo


class FalsityError(Exception):
    """The demo cannot go on: something that should be true is not."""


@dataclass
class _LongTask:
    """A task that is to run until it is told otherwise, and how to spawn it."""

    kind: str
    tenant: str | None
    spawn: Callable[[], TaskHandle[Any]]
    handle: TaskHandle[Any]


class LongTasks:
    """Spawns long tasks, and spawns one anew when it crashed.

    `spawn(restart=…)` could do that too. Here the application does it itself, as one does that
    wants to look first: a tenant that is to be detached must not get its tasks back.
    """

    def __init__(self) -> None:
        #: All and only the tasks that are to be alive.
        self._tasks: list[_LongTask] = []
        self.spawned_again: Counter[str] = Counter()

    def keep(self, kind: str, tenant: str | None, spawn: Callable[[], TaskHandle[Any]]) -> None:
        """Spawn a task, and again whenever it crashed."""
        self._tasks.append(_LongTask(kind, tenant, spawn, spawn()))

    def let_go(self, *, kind: str | None = None, tenant: str | None = None) -> None:
        """Let tasks end: all of a kind, or all of a tenant."""
        self._tasks = [
            task
            for task in self._tasks
            if not (
                (kind is None or task.kind == kind) and (tenant is None or task.tenant == tenant)
            )
        ]

    def look(self) -> None:
        """Spawn anew what crashed. Raises FalsityError if a task ended in another way."""
        for task in self._tasks:
            if not task.handle.done():
                continue
            error = task.handle.exception(10)
            if not isinstance(error, TaskCrashedError | TaskLostError):
                ended = f"failed: {error}" if error else "returned"
                raise FalsityError(f"{task.kind} of {task.tenant or 'the server'} {ended}")
            task.handle = task.spawn()
            self.spawned_again[task.kind] += 1


class Seen:
    """What a client saw in the registry, looking every now and then."""

    def __init__(self) -> None:
        self.live: list[TaskInfo] = []
        self.ended: dict[TaskId, TaskInfo] = {}
        #: The kinds and runtimes of tasks that were seen to run, or to have run.
        self.kinds: set[str] = set()
        self.runtimes: set[str] = set()

    def look(self, client: Client, *, history: bool) -> None:
        """Look at the live tasks and, as they may be many, only if asked for at the ended ones."""
        self.live = client.tasks()
        found = list(self.live)
        if history:
            ended = client.tasks(state="ended")
            self.ended |= {task.id: task for task in ended}
            found += ended
        for task in found:
            if task.started_at is not None:
                self.kinds.add(str(task.kind))
                self.runtimes.add(task.runtime)

    def outcomes(self) -> dict[str, int]:
        """Return how many of the tasks that were seen to have ended ended how."""
        return dict(Counter(str(task.outcome) for task in self.ended.values()))


class Stage:
    """The running demo."""

    def __init__(
        self, client: Client, system: System, work: Work, plan: Plan, settings: Settings, view: View
    ) -> None:
        self.client = client
        self.system = system
        self.work = work
        self.plan = plan
        self.settings = settings
        self.view = view
        self.load = LoadGenerator(work.pages_socket, plan, settings)
        self.long_tasks = LongTasks()
        self.seen = Seen()
        self.detached: set[str] = set()
        #: What was found not to be true. The demo succeeds iff this is empty.
        self.false: list[str] = []
        self.summary: dict[str, Any] = {}
        self._phase = "starting"
        self._began = time.monotonic()
        self._looked = 0.0
        self._looked_back = 0.0

    @property
    def root(self) -> str:
        """The work folder, as tasks take it."""
        return str(self.work.root)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def remaining(self) -> list[SourceFile]:
        """Return the timelines of the tenants that were not detached."""
        return [file for file in self.plan.files if file.tenant not in self.detached]

    def check(self, true: bool, otherwise: str) -> bool:
        """Note what is not true. Returns `true`."""
        if not true:
            self.false.append(otherwise)
            self.view.say(f"FALSE: {otherwise}", "bold red")
        return true

    def phase(self, text: str) -> None:
        """Say what the demo does from now on."""
        self._phase = text
        self._looked = 0.0
        self.tick()

    def wait_until(
        self, what: str, true: Callable[[], bool], timeout: float, last: Callable[[], object] = str
    ) -> None:
        """Wait until something is true; raises FalsityError with the `last` thing seen if not."""
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                raise FalsityError(f"{what}: not within {timeout:.0f} s. {last()}".rstrip())
            self.tick()
            time.sleep(0.05)

    def tick(self) -> None:
        """Look after the long tasks and show how things are; at most every half a second."""
        now = time.monotonic()
        if now - self._looked < 0.5:
            return
        self._looked = now
        self.system.require_running()
        self.long_tasks.look()
        history = now - self._looked_back > 2.0
        if history:
            self._looked_back = now
        self.seen.look(self.client, history=history)
        self.view.show(self._picture())

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return what the metrics task wrote last, by tenant."""
        try:
            tenants: dict[str, dict[str, Any]] = json.loads(self.work.metrics_file.read_bytes())[
                "tenants"
            ]
        except FileNotFoundError:
            return {}
        return tenants

    def try_spawn(self, spawn: Callable[[], TaskHandle[Any]]) -> str:
        """Spawn a task that is to be refused; return "refused", or what happened instead."""
        try:
            handle = spawn()
            handle.result(10)
        except ScopeClosedError:
            return "refused"
        except (TaskCancelledError, QuiesceError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        return "it ran"

    def _picture(self) -> Picture:
        metrics = self.metrics()
        tasks = Counter(task.tenant_id for task in self.seen.live)
        runtimes = Counter(task.runtime for task in self.seen.live)
        workers = Counter(worker.runtime for worker in self.client.workers())
        rows = []
        for tenant, files in self.plan.tenants.items():
            found = metrics.get(tenant, {})
            state = "active" if found else "attaching"
            if tenant in self.detached:
                found, state = {}, "detached"
            rows.append(
                Row(
                    tenant=tenant,
                    state=state,
                    timelines=len(files),
                    versions=found.get("versions", 0),
                    versions_expected=found.get("versions_expected", 0),
                    layers=found.get("layers", 0),
                    not_local=found.get("not_local", 0),
                    collected=found.get("collected_versions", 0),
                    tasks=tasks[tenant],
                    pages=self.load.tally.pages_of(tenant),
                )
            )
        return Picture(
            phase=self._phase,
            elapsed=self.elapsed,
            rows=tuple(rows),
            runtimes={name: (workers[name], runtimes[name]) for name in RUNTIMES},
            statuses=self.load.tally.counts(),
        )
