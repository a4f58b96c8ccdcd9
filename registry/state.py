"""The registry's state: all of its collections, each with what is true of it.

`quiesce.registry.apply` is the only writer. Telemetry aside, the same facts give the same state.
"""

import itertools
from collections import OrderedDict, deque
from typing import Final

from quiesce.registry import leases
from quiesce.registry.ended import EndedTask
from quiesce.registry.ids import Epoch, Incarnation, SessionId, StopId, TaskId
from quiesce.registry.index import ScopeIndex
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.marked import Marked
from quiesce.registry.parked import Parked
from quiesce.registry.queue import RuntimeQueue
from quiesce.registry.records import (
    Closure,
    Session,
    Stop,
    Supervisor,
    Task,
    Worker,
)
from quiesce.registry.scope import Scope
from quiesce.registry.stop_history import EndedStop

#: So many tasks of which the same is said make one fact.
ALIKE: Final = 4
#: What the journal wants before spawns are taken, as far as the registry knows.
ROOM: Final = "more room on the disk of the broker's state folder"
_NO_STOPS: Final[frozenset[StopId]] = frozenset()


class Queues(dict[str, RuntimeQueue]):
    """By runtime; one for each that has ever been declared, as far as anything is queued there."""

    def __missing__(self, runtime: str) -> RuntimeQueue:
        queue = self[runtime] = RuntimeQueue()
        return queue


class Pools(dict[str, dict[Incarnation, Worker]]):
    """By runtime; as Queues."""

    def __missing__(self, runtime: str) -> dict[Incarnation, Worker]:
        pool: dict[Incarnation, Worker] = {}
        self[runtime] = pool
        return pool


class State:
    """What stands. `runtimes` and `kinds` are the configuration, the rest follows from the facts.

    A configuration may have lost a runtime or a kind of which there are tasks: they wait until it is declared
    again, or are stopped; `runtime` and `kind` give limits for all.
    """

    def __init__(
        self,
        runtimes: dict[str, RuntimeLimits],
        kinds: dict[str, KindLimits],
        *,
        history_limit: int,
        payload_limit: int,
        lease: float = leases.LEASE,
        lease_bound: float | None = None,
        alike: int = ALIKE,
        room: str = ROOM,
    ) -> None:
        self.runtimes, self.kinds = runtimes, kinds
        self.history_limit = history_limit
        self.payload_limit = payload_limit
        self.alike = alike
        #: See ROOM.
        self.room = room
        #: L and Lb of `leases`.
        self.lease = lease
        self.lease_bound = leases.default_bound(lease) if lease_bound is None else lease_bound
        self.epoch = Epoch(0)
        self.epoch_at = 0.0
        #: The lease bound of this epoch.
        self.epoch_bound = self.lease_bound
        #: The broker's boot, and the `quiesce up` that started it.
        self.boot_id = ""
        self.run = ""
        self.last_task_id = TaskId(0)
        self.last_incarnation = Incarnation(0)
        self.last_stop_id = StopId(0)

        #: All and only the tasks that have not ended.
        self.tasks: dict[TaskId, Task] = {}
        #: Indexes `tasks` by scope.
        self.index = ScopeIndex()
        #: For each runtime, all and only its QUEUED tasks that no stop waits for.
        self.queues = Queues({name: RuntimeQueue() for name in runtimes})
        #: All and only the unique keys of live tasks, and who holds each.
        self.unique: dict[tuple[str, str | None, str | None, str], TaskId] = {}
        #: For each held task that open stops wait for, all and only these.
        self.waited: dict[TaskId, frozenset[StopId]] = {}
        #: The queued tasks that open stops wait for.
        self.marked = Marked()
        #: All and only the tasks that workers hold.
        self.held: set[TaskId] = set()
        #: How many tasks of a kind, and of a (kind, tenant), workers hold. No zeros.
        self.held_kind: dict[str, int] = {}
        self.held_tenant: dict[tuple[str, str | None], int] = {}
        #: The spawns that wait for a unique key.
        self.parked = Parked()
        #: The newest ended tasks, oldest first, at most `history_limit`.
        self.history: OrderedDict[TaskId, EndedTask] = OrderedDict()
        #: The newest ended stops, in the order of their ends, at most `history_limit`.
        self.stop_history: deque[EndedStop] = deque(maxlen=history_limit)
        #: All and only the tasks and stops that have ended in the last turn, or by the fact that was replayed last,
        #: for who tells of them: the history may be too short for that. Volatile.
        self.ended_now: dict[TaskId, EndedTask] = {}
        self.stops_ended_now: dict[StopId, EndedStop] = {}

        #: Registered workers: the living, and the dead that still have orphans.
        self.workers: dict[Incarnation, Worker] = {}
        #: For each runtime, all and only its living workers.
        self.pool = Pools({name: {} for name in runtimes})
        #: Registered supervisors.
        self.supervisors: dict[bytes, Supervisor] = {}
        #: Those that are gone: a hello of theirs that was still on its way registers nothing.
        self.gone_supervisors: set[bytes] = set()
        self.sessions: dict[SessionId, Session] = {}

        #: All and only the open stops, and the ended ones whose report may be asked for again.
        self.stops: dict[StopId, Stop] = {}
        #: All and only the stops that wait, by id.
        self.open_stops: dict[StopId, Stop] = {}
        #: Why scopes are closed, by the stop that closed them; of each open stop that closes one.
        self.closures: dict[StopId, Closure] = {}
        #: All and only those of them whose stop has timed out.
        self.timed_out: dict[StopId, Closure] = {}
        #: The stops in `closures`, by their scope; no empty sets.
        self.closed: dict[Scope, set[StopId]] = {}

        self.stopping = False
        self.failed = False
        self.fast = False
        self.stop_reason = ""
        #: The pools have been told to exit; who comes now is told so too. Volatile.
        self.leaving = False
        #: Before this tick something may still run that nothing here knows of: no stop is answered. Volatile.
        self.certain_at: float | None = None
        #: The journal has no room for more tasks. Volatile.
        self.full = False

        #: Counters for statistics: all tasks ever registered; live ones by runtime and kind (no zeros); ended
        #: ones by runtime, kind and outcome.
        self.spawned_total = 0
        self.live_total: dict[tuple[str, str], int] = {}
        self.ended_total: dict[tuple[str, str, str], int] = {}

    def begin_turn(self) -> None:
        """What has ended before is not of now."""
        if self.ended_now:
            self.ended_now.clear()
        if self.stops_ended_now:
            self.stops_ended_now.clear()

    def closing(
        self, kind: str, tenant_id: str | None, timeline_id: str | None, runtime: str
    ) -> list[StopId]:
        """The stops whose closures cover a task with these labels, ascending. At most 16 look-ups."""
        closed = self.closed
        if not closed:
            return []
        tenants = (None,) if tenant_id is None else (None, tenant_id)
        timelines = (None,) if timeline_id is None else (None, timeline_id)
        found: list[StopId] = []
        for k in (None, kind):
            for t in tenants:
                for line in timelines:
                    for r in (None, runtime):
                        found.extend(closed.get(Scope(k, t, line, r), ()))
        return sorted(found)

    def stops_for(self, task: Task) -> frozenset[StopId]:
        """The open stops that wait for it."""
        batch = self.marked.find(task) if self.marked else None
        return self.waited.get(task.id, _NO_STOPS) if batch is None else batch.stops

    def is_stopping(self, task: Task) -> bool:
        """Whether it is asked to stop, or will be."""
        return task.ask is not None or bool(self.stops_for(task))

    def wait_for(self, member: TaskId, stop_id: StopId) -> None:
        """From now on this open stop waits for this held task, too."""
        self.waited[member] = self.waited.get(member, _NO_STOPS) | {stop_id}

    def wait_no_more(self, member: TaskId, stop_id: StopId) -> None:
        """The stop has given it up."""
        stops = self.waited[member] - {stop_id}
        if stops:
            self.waited[member] = stops
        else:
            del self.waited[member]

    def leave_stops(self, task: Task) -> frozenset[StopId]:
        """It has ended: those that waited for it."""
        batch = self.marked.find(task) if self.marked else None
        if batch is None:
            return self.waited.pop(task.id, _NO_STOPS)
        self.marked.leave(batch, {task.id})
        return batch.stops

    def left_of(self, stop: Stop) -> int:
        """How many tasks an open stop still waits for."""
        return len(stop.held) + self.marked.count(stop.id)

    def first_left(self, stop: Stop, count: int | None = None) -> list[TaskId]:
        """Those that an open stop still waits for, by id: all, or the first so many."""
        batches = self.marked.of(stop.id)
        left = itertools.chain(stop.held, *(batch.lane.firsts(count) for batch in batches))
        return sorted(left)[:count]

    def unfinished(self, scope: Scope) -> set[TaskId]:
        """The held tasks that stops of this scope, or of scopes within it, still wait for or gave up on.

        Such a task may have left the scope by associate_with; that releases nobody.
        """
        found: set[TaskId] = set()
        for stop in self.open_stops.values():
            if stop.closes and scope.covers(stop.scope):
                found |= stop.held
        for closure in self.timed_out.values():
            if scope.covers(closure.scope):
                found.update(task_id for task_id in closure.left if task_id in self.held)
        return found

    def runtime(self, name: str) -> RuntimeLimits:
        """Its limits; the default ones if it is not declared any more."""
        return self.runtimes.get(name) or RuntimeLimits(name=name)

    def kind(self, name: str) -> KindLimits:
        """Its limits; the default ones if it is not declared any more."""
        return self.kinds.get(name) or KindLimits(name=name)

    def has_room(self, kind: str) -> bool:
        """Whether the limit of the kind lets one more of it run."""
        most = self.kind(kind).max_running
        return most is None or self.held_kind.get(kind, 0) < most

    def allowed(self, tenant_id: str | None, kind: str) -> bool:
        """Whether that for each tenant lets one more of this tenant run."""
        per_tenant = self.kind(kind).max_running_per_tenant
        return per_tenant is None or self.held_tenant.get((kind, tenant_id), 0) < per_tenant

    def grace(self, task: Task, stop: Stop | None) -> float:
        """Seconds from the request to force: of the call, else the runtime, else the kind."""
        if stop is not None and stop.grace is not None:
            return stop.grace
        runtime = self.runtime(task.spawn.runtime)
        if runtime.stop_grace is not None:
            return runtime.stop_grace
        return self.kind(task.spawn.kind).stop_grace
