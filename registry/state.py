"""The registry's state: all of its collections, each with what is true of it.

`quiesce.registry.apply` is the only writer. Telemetry aside, the same facts give the same state.
"""

from collections import OrderedDict

from quiesce.registry.ids import Epoch, Incarnation, SessionId, StopId, TaskId
from quiesce.registry.index import ScopeIndex
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.queue import RuntimeQueue
from quiesce.registry.records import (
    Closure,
    EndedTask,
    Session,
    Stop,
    Supervisor,
    Task,
    Worker,
)
from quiesce.registry.scope import Scope


class State:
    """What stands. `runtimes` and `kinds` are the configuration, the rest follows from the facts."""

    def __init__(
        self,
        runtimes: dict[str, RuntimeLimits],
        kinds: dict[str, KindLimits],
        *,
        history_limit: int,
        payload_limit: int,
    ) -> None:
        self.runtimes = runtimes
        self.kinds = kinds
        self.history_limit = history_limit
        self.payload_limit = payload_limit
        self.epoch = Epoch(0)
        self.epoch_at = 0.0
        self.last_task_id = TaskId(0)
        self.last_incarnation = Incarnation(0)
        self.last_stop_id = StopId(0)

        #: All and only the tasks that have not ended.
        self.tasks: dict[TaskId, Task] = {}
        #: Indexes `tasks` by scope.
        self.index = ScopeIndex()
        #: For each declared runtime, all and only its QUEUED tasks.
        self.queues: dict[str, RuntimeQueue] = {name: RuntimeQueue() for name in runtimes}
        #: For each unique key, the live task that holds it.
        self.unique: dict[tuple[str, str | None, str | None, str], TaskId] = {}
        #: How many tasks of a kind, and of a (kind, tenant), workers hold. No zeros.
        self.held_kind: dict[str, int] = {}
        self.held_tenant: dict[tuple[str, str | None], int] = {}
        #: The newest ended tasks, oldest first, at most `history_limit`.
        self.history: OrderedDict[TaskId, EndedTask] = OrderedDict()

        #: Registered workers: the living, and the dead that still have orphans.
        self.workers: dict[Incarnation, Worker] = {}
        #: For each runtime, its living workers.
        self.pool: dict[str, dict[Incarnation, Worker]] = {name: {} for name in runtimes}
        #: Registered supervisors.
        self.supervisors: dict[bytes, Supervisor] = {}
        self.sessions: dict[SessionId, Session] = {}

        #: Open stops, and ended ones whose report may be asked for again.
        self.stops: dict[StopId, Stop] = {}
        #: All and only the stops that wait.
        self.open_stops: dict[StopId, Stop] = {}
        #: Why scopes are closed, by the stop that closed them.
        self.closures: dict[StopId, Closure] = {}
        #: The stops in `closures`, by their scope; no empty sets.
        self.closed: dict[Scope, set[StopId]] = {}

        #: Spawns that wait for the end of a holder of their unique key are in Task.parked; this counts them.
        self.parked = 0
        self.stopping = False
        self.failed = False
        self.fast = False
        self.stop_reason = ""

        #: Counters for statistics: all tasks ever registered; ended ones by runtime and outcome.
        self.spawned_total = 0
        self.ended_total: dict[tuple[str, str], int] = {}

    def closing(
        self, kind: str, tenant_id: str | None, timeline_id: str | None, runtime: str
    ) -> Closure | None:
        """A closure that covers a task with these labels, or None. At most 16 look-ups."""
        closed = self.closed
        if not closed:
            return None
        tenants = (None,) if tenant_id is None else (None, tenant_id)
        timelines = (None,) if timeline_id is None else (None, timeline_id)
        for k in (None, kind):
            for t in tenants:
                for line in timelines:
                    for r in (None, runtime):
                        stops = closed.get(Scope(k, t, line, r))
                        if stops:
                            return self.closures[min(stops)]
        return None

    def stops_covering(
        self, kind: str, tenant_id: str | None, timeline_id: str | None, runtime: str
    ) -> list[Stop]:
        """The open scope stops that cover a task with these labels."""
        return [
            stop
            for stop in self.open_stops.values()
            if stop.closes and stop.scope.matches(kind, tenant_id, timeline_id, runtime)
        ]

    def room(self, runtime: str) -> int:
        """How many more spawns the queue of this runtime takes."""
        return self.runtimes[runtime].max_queue - len(self.queues[runtime])

    def allowed(self, tenant_id: str | None, kind: str) -> bool:
        """Whether the limits of the kind let one more of this tenant run."""
        limits = self.kinds[kind]
        if limits.max_running is not None and self.held_kind.get(kind, 0) >= limits.max_running:
            return False
        per_tenant = limits.max_running_per_tenant
        return per_tenant is None or self.held_tenant.get((kind, tenant_id), 0) < per_tenant

    def grace(self, task: Task, stop: Stop | None) -> float:
        """Seconds from the request to force: of the call, else the runtime, else the kind."""
        if stop is not None and stop.grace is not None:
            return stop.grace
        runtime = self.runtimes[task.spawn.runtime]
        if runtime.stop_grace is not None:
            return runtime.stop_grace
        return self.kinds[task.spawn.kind].stop_grace
