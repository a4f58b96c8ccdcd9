"""The checker of everything that the registry says of itself: each "all and only …" beside a collection.

`check` is slow (it looks at everything) and meant for tests and for the explorer. It tells by name what is
wrong and where; a caller who knows how it came to that can add so.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from quiesce.registry.apply_stops import REPORTS_KEPT
from quiesce.registry.forcing import KILL_STEP
from quiesce.registry.ids import SessionId, StopId, TaskId
from quiesce.registry.index import ScopeIndex
from quiesce.registry.marked import place_of
from quiesce.registry.moving import RegistryFault, story
from quiesce.registry.records import Stop, Task, Worker
from quiesce.registry.scheduling import MOST, may_follow, room, takes
from quiesce.registry.spawning import seen_all
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState
from quiesce.registry.timers import Due

if TYPE_CHECKING:
    from quiesce.registry.machine import Registry


def check(registry: "Registry", *, volatile: bool = True) -> None:
    """Look at everything, after an event has been handled.

    Args:
        registry: what is looked at; it is not changed.
        volatile: False leaves out timers and all else that a replay of facts does not restore.

    Raises:
        RegistryFault: the first thing that does not hold, with its story.
    """
    state = registry.state
    for look in (_tasks, _queues, _workers, _supervisors, _sessions, _parked, _stops, _closures):
        look(state)
    _counts(state)
    if volatile:
        _settled(state)
        _slots(state)
        _timers(registry)
        _system(registry)


def _fault(what: str, tale: str) -> RegistryFault:
    return RegistryFault(f"{what}: {tale}")


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise _fault(what, f"found {found!r}, expected {expected!r}")


def _each(what: str, tasks: Iterable[Task], holds: Callable[[Task], bool]) -> None:
    for task in tasks:
        if not holds(task):
            raise _fault(what, story(task))


# --- tasks ----------------------------------------------------------------------------------------


def _tasks(state: State) -> None:
    tasks = state.tasks.values()
    _each("no live task has ended", tasks, lambda task: task.state is not TaskState.ENDED)
    for task_id, task in state.tasks.items():
        _same("a task stands under its id", task_id, task.id)
        _each_task(state, task)
    _each("ids grow", tasks, lambda task: task.id <= state.last_task_id)
    _same("tasks stand by id", list(state.tasks), sorted(state.tasks))
    index = ScopeIndex()
    for task in tasks:
        index.add(task)
    _same("the index holds all and only live tasks", state.index.as_dict(), index.as_dict())
    named = {task.unique: task.id for task in tasks if task.unique is not None}
    _same("unique keys name all and only live holders", state.unique, named)
    _same("unique keys are unique", len(named), sum(task.unique is not None for task in tasks))


def _each_task(state: State, task: Task) -> None:
    queued = task.state is TaskState.QUEUED
    ask = task.ask
    stops = state.stops_for(task)
    for what, holds in (
        ("a task is held iff it has a worker", queued == (task.worker == 0)),
        ("a task has an assignment iff it is held", queued == (task.assign_number == 0)),
        ("a queued task has not begun", not queued or task.started_at is None),
        (
            "only a running task has begun",
            (task.started_at is not None) == (task.state is TaskState.RUNNING),
        ),
        ("a queued task does not linger", not queued or not task.lingering),
        ("a queued task is not asked: it ends at once", not queued or ask is None),
        ("a held task that a stop waits for is asked", queued or not stops or bool(ask)),
        (
            "retries are used up one by one, beside restarts",
            task.retries + task.attempt == task.spawn.retries + 1
            or (task.spawn.restart != "never" and task.retries <= task.spawn.retries),
        ),
        ("a session watches once", len(set(task.watchers)) == len(task.watchers)),
        (
            "spawns wait only for a task that is stopping",
            not task.parked or state.is_stopping(task),
        ),
        ("only a task that is held waits for others", not queued or not task.waits_on),
        ("stops that wait are open", stops <= state.open_stops.keys()),
    ):
        if not holds:
            raise _fault(what, story(task))
    if ask is not None:
        times = [ask.at, ask.delivered_at, ask.observed_at]
        told = [time for time in times if time is not None]
        if told != sorted(told) or (ask.delivered_at is None and ask.observed_at is not None):
            raise _fault(f"the times of a request are in order, not {times}", story(task))
        if not 0 <= ask.forced <= KILL_STEP + 1:
            raise _fault(f"{ask.forced} steps of force", story(task))


def _queues(state: State) -> None:
    for runtime, queue in state.queues.items():
        waiting: dict[tuple[str | None, str], list[TaskId]] = {}
        for task in state.tasks.values():
            marked = bool(state.stops_for(task))
            if task.state is TaskState.QUEUED and task.spawn.runtime == runtime and not marked:
                waiting.setdefault((task.tenant_id, task.spawn.kind), []).append(task.id)
        found = {(tenant, kind): ids for tenant, kind, ids in queue.lanes()}
        _same(f"queue {runtime!r} holds all and only unmarked queued tasks", found, waiting)
        size = sum(map(len, waiting.values()))
        _same(f"queue {runtime!r} knows its size", len(queue), size)


def _counts(state: State) -> None:
    held = [task for task in state.tasks.values() if task.state is not TaskState.QUEUED]
    _same("held tasks are known", state.held, {task.id for task in held})
    kinds = Counter(task.spawn.kind for task in held)
    _same("held tasks are counted by kind", state.held_kind, dict(kinds))
    tenants = Counter((task.spawn.kind, task.tenant_id) for task in held)
    _same("held tasks are counted by kind and tenant", state.held_tenant, dict(tenants))
    for kind, count in kinds.items():
        limit = state.kind(kind).max_running
        if limit is not None and count > limit:
            raise _fault("no more of a kind are held than max_running", f"{count} of {kind!r}")
    pools = Counter((task.spawn.runtime, task.spawn.kind) for task in state.tasks.values())
    _same("live tasks are counted by runtime and kind", state.live_total, dict(pools))
    total = len(state.tasks) + sum(state.ended_total.values())
    _same("every task is live or has ended", total, state.spawned_total)
    if len(state.history) > state.history_limit:
        raise _fault("the history is bounded", f"{len(state.history)} tasks")
    if len(state.stop_history) > state.history_limit:
        raise _fault("the history of stops is bounded", f"{len(state.stop_history)} stops")
    _same("no live task is in the history", state.history.keys() & state.tasks.keys(), set())


# --- pools ----------------------------------------------------------------------------------------


def _workers(state: State) -> None:
    for runtime, pool in state.pool.items():
        living = {
            worker.incarnation: worker
            for worker in state.workers.values()
            if worker.status is None and worker.runtime == runtime
        }
        _same(f"pool {runtime!r} is all and only its living workers", pool, living)
    holders: dict[TaskId, int] = {}
    for incarnation, worker in state.workers.items():
        _same("a worker stands under its incarnation", incarnation, worker.incarnation)
        _each_worker(state, worker)
        for task_id in worker.tasks:
            if task_id in holders:
                raise _fault("a task has one worker", f"{holders[task_id]} and {incarnation}")
            holders[task_id] = incarnation
    held = {task.id: task.worker for task in state.tasks.values() if task.worker}
    _same("workers hold all and only the tasks that say so", holders, held)


def _each_worker(state: State, worker: Worker) -> None:
    tale = f"worker {worker.incarnation} (pid {worker.pid}, status {worker.status})"
    supervisor = state.supervisors.get(worker.supervisor)
    alive = worker.status is None
    tasks = [state.tasks[task_id] for task_id in worker.tasks if task_id in state.tasks]
    for what, holds in (
        ("a worker holds live tasks", len(tasks) == len(worker.tasks)),
        ("a worker is registered once", worker.incarnation <= state.last_incarnation),
        ("a dead worker is kept for its orphans alone", alive or worker.tasks.keys()),
        ("orphans are the tasks of a dead worker", worker.orphans.keys() <= worker.tasks.keys()),
        ("only a dead worker has orphans", not alive or not worker.orphans),
        ("all that a dead worker holds are orphans", alive or len(worker.orphans) == len(tasks)),
        ("a dead worker can't be reached", alive or not worker.attached),
        ("a living worker has a supervisor", not alive or supervisor is not None),
        ("no more tasks than it may be handed", len(worker.tasks) <= worker.slots + MOST),
    ):
        if not holds:
            raise _fault(what, tale)
    numbers = [task.assign_number for task in tasks]
    _same(f"assignments of {tale} are in order", numbers, sorted(set(numbers)))
    _same(f"assignments of {tale} are numbered", max([*numbers, 0]) <= worker.last_assign, True)
    if alive and supervisor is not None:
        known = supervisor.workers.get(worker.serial)
        _same(f"the supervisor of {tale} knows it", known, worker.incarnation)
    for task in tasks:
        _same(f"a task runs in its runtime: {story(task)}", task.spawn.runtime, worker.runtime)


def _supervisors(state: State) -> None:
    for name, supervisor in state.supervisors.items():
        _same("a supervisor stands under its name", name, supervisor.id)
        known = {
            worker.serial: worker.incarnation
            for worker in state.workers.values()
            if worker.supervisor == name and worker.status is None
        }
        _same(f"supervisor {name!r} has all and only its living workers", supervisor.workers, known)
        both = {serial for serial in supervisor.workers if serial in supervisor.dead_serials}
        _same(f"no serial of supervisor {name!r} is alive and dead", both, set())
    back = state.gone_supervisors & state.supervisors.keys()
    _same("a supervisor that is gone is not registered", back, set())


# --- sessions -------------------------------------------------------------------------------------


def _sessions(state: State) -> None:
    for name, session in state.sessions.items():
        _same("a session stands under its name", name, session.id)
        open_stops = {
            stop.request: stop.id for stop in state.open_stops.values() if stop.session == name
        }
        _same(f"the requests of session {name!r} are its open stops", session.requests, open_stops)
        ended = {
            stop.request: stop.id
            for stop in state.stops.values()
            if stop.session == name and not stop.open
        }
        _same(f"the reports of session {name!r} are its ended stops", session.reports, ended)
        if len(session.reports) > REPORTS_KEPT:
            raise _fault("reports are bounded", f"session {name!r} has {len(session.reports)}")
        answered: set[int] = {answer.number for answer in session.answers}
        for number in (*answered, *session.parked):
            if not 1 <= number <= session.spawned:
                raise _fault("answers are of spawns that have come", f"{name!r}: {number}")
        both = answered & session.parked.keys()
        _same(f"no parked spawn of session {name!r} is answered", both, set())
        both = {task_id for task_id in session.results if task_id in state.tasks}
        _same(f"session {name!r} has results of ended tasks only", both, set())
    blocks = Counter(stop for session in state.sessions.values() for stop in session.blocks)
    held = Counter(stop for stop, each in state.closures.items() if each.holder == "block")
    _same("each block belongs to one session, and closes its scope", blocks, held)


def _parked(state: State) -> None:
    parked = [
        (session, number, task.id)
        for task in state.tasks.values()
        for session, number in task.parked
    ]
    known = [
        (session.id, number, holder)
        for session in state.sessions.values()
        for number, holder in session.parked.items()
    ]
    _same("sessions know all and only their parked spawns", sorted(known), sorted(parked))
    runtimes = Counter(row.runtime for task in state.tasks.values() for row in task.parked.values())
    _same("parked spawns are counted", state.parked.in_runtime, runtimes)
    holders = {holder for _, _, holder in parked}
    _same("holders have parked spawns", state.parked.holders, holders)
    made = [
        (task.id, (session, number))
        for task in state.tasks.values()
        for (session, number), row in task.parked.items()
        if row.parent is not None
    ]
    _same("who has made parked spawns is known", state.parked.all_made(), sorted(made))
    for task in state.tasks.values():
        for row in task.parked.values():
            if state.closing(row.kind, row.tenant_id, row.timeline_id, row.runtime):
                raise _fault(f"spawn {row.number} is parked in a closed scope", story(task))


# --- stops ----------------------------------------------------------------------------------------


def _stops(state: State) -> None:
    waiting = {stop.id: stop for stop in state.stops.values() if stop.open}
    _same("open stops are all and only those that wait", state.open_stops, waiting)
    _same("stops wait for live tasks", state.waited.keys() - state.tasks.keys(), set())
    _same("what is waited for has stops", all(state.waited.values()), True)
    _same("what stops wait for in `waited` is held", state.waited.keys() - state.held, set())
    _marked(state)
    _same("open stops stand by id", list(state.open_stops), sorted(state.open_stops))
    for stop_id, stop in state.stops.items():
        _same("a stop stands under its id", stop_id, stop.id)
        _each_stop(state, stop)


def _marked(state: State) -> None:
    for batch in state.marked:
        tale = f"batch {batch.place} of stops {sorted(batch.stops)}"
        _same(f"the {tale} has tasks", bool(batch.lane.members), True)
        _same(f"the stops of {tale} are open", batch.stops - state.open_stops.keys(), set())
        _same(f"the {tale} knows its order", batch.lane.firsts(None), sorted(batch.lane.members))
        for task_id in batch.lane.members:
            task = state.tasks.get(task_id)
            if task is None:
                raise _fault(f"the {tale} has live tasks", f"task {task_id}")
            if task.state is not TaskState.QUEUED or place_of(task) != batch.place:
                raise _fault(f"the {tale} has queued tasks of its place", story(task))
    twice = Counter((batch.place, batch.stops) for batch in state.marked)
    _same("there is one batch of a place for the same stops", set(twice.values()) <= {1}, True)
    members = Counter(task_id for batch in state.marked for task_id in batch.lane.members)
    _same("a marked task is in one batch", set(members.values()) <= {1}, True)


def _each_stop(state: State, stop: Stop) -> None:
    tale = f"stop {stop.id} of [{stop.scope}], task {stop.task_id}"
    waiting = {task_id for task_id, stops in state.waited.items() if stop.id in stops}
    _same(f"{tale} waits for all and only the held tasks that say so", stop.held, waiting)
    left = state.first_left(stop)
    _same(f"{tale} knows how many are left", state.left_of(stop), len(left))
    reported = {row.id for row in stop.rows}
    _same(f"{tale} reports each end once", len(reported), len(stop.rows))
    _same(f"{tale} reports ends", reported & state.tasks.keys(), set())
    for row in stop.rows:
        if row.outcome is None or row.evidence is None or row.stopped_at is None:
            raise _fault(f"a row of {tale} without evidence", repr(row))
        times = [row.requested_at, row.delivered_at, row.observed_at, row.stopped_at]
        told = [time for time in times if time is not None]
        _same(f"the four times of task {row.id} in {tale} are in order", told, sorted(told))
    if not stop.open:
        _same(f"{tale} has ended", (left, stop.completed_at is None), ([], False))
        _same(f"{tale} timed out iff something was left", stop.timed_out or not stop.left, True)
        known = stop.session in state.sessions
        _same(f"the session of {tale} may ask for its report", known, True)
        return
    closure = state.closures.get(stop.id)
    _same(f"{tale} closes its scope iff it is one", closure is not None, stop.task_id is None)
    if closure is None:
        return
    _same(f"the closure of {tale}", (closure.holder, closure.scope), ("stop", stop.scope))
    caller = None if stop.caller is None else stop.caller.id
    waited = set(left)
    for task in state.tasks.values():
        spawn = task.spawn
        covered = stop.scope.matches(spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
        if covered and task.id not in waited and task.id != caller:
            raise _fault(f"{tale} covers a live task that it does not wait for", story(task))


def _closures(state: State) -> None:
    by_scope: dict[object, set[StopId]] = {}
    for stop_id, closure in state.closures.items():
        by_scope.setdefault(closure.scope, set()).add(stop_id)
        tale = f"closure of [{closure.scope}] by stop {stop_id}, {closure.holder}"
        known = closure.holder in ("stop", "block", "kept", "timed-out")
        _same(f"the holder of the {tale}", known, True)
        _same(f"the {tale}", closure.holder == "stop", stop_id in state.open_stops)
        given_up = not closure.left or closure.holder == "timed-out"
        _same(f"only a stop that timed out leaves tasks behind: {tale}", given_up, True)
        for task in state.tasks.values():
            spawn = task.spawn
            labels = (spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
            stray = closure.scope.matches(*labels) and not state.is_stopping(task)
            if stray and task.id != closure.caller:
                raise _fault(f"{tale}: a live task in it is not asked", story(task))
    _same("closed scopes are those of the closures", state.closed, by_scope)
    timed_out = {
        stop_id: closure
        for stop_id, closure in state.closures.items()
        if closure.holder == "timed-out"
    }
    _same("what has timed out is known", state.timed_out, timed_out)


def _settled(state: State) -> None:
    """What `_settle` leaves nothing of, once stops are answered."""
    if state.certain_at is not None:
        return
    for stop in state.open_stops.values():
        if not state.left_of(stop) and seen_all(state.sessions.get(stop.session), stop.last_spawn):
            raise _fault("a stop that is complete has ended", f"stop {stop.id} of [{stop.scope}]")


def _slots(state: State) -> None:
    for runtime, queue in state.queues.items():
        waiting = queue.peek(state.has_room, state.allowed)
        if waiting is None:
            continue
        task = state.tasks[waiting]
        for worker in state.pool[runtime].values():
            is_free = len(worker.tasks) < room(worker) and takes(state, worker)
            if is_free and may_follow(state, worker, task):
                raise _fault(
                    "nothing that may run waits beside a free slot",
                    f"worker {worker.incarnation} of {runtime!r}; {story(task)}",
                )


# --- what is volatile -----------------------------------------------------------------------------


def _timers(registry: "Registry") -> None:
    state = registry.state
    times = dict(registry.timers.items())
    wanted: set[Due] = {("session", name) for name in state.sessions}
    wanted |= {("word", stop_id) for stop_id in state.open_stops}
    wanted |= {("lease", name) for name in state.supervisors}
    wanted |= {("certain", 0)} if state.certain_at is not None else set()
    for stop in state.open_stops.values():
        if stop.timeout is not None and stop.timeout != math.inf:
            wanted.add(("stop", stop.id))
    for task in state.tasks.values():
        worker = state.workers.get(task.worker)
        if worker is None or worker.status is not None:
            continue
        limit = math.inf if task.spawn.timeout is None else task.spawn.timeout
        if task.state is TaskState.RUNNING and limit < math.inf and task.ask is None:
            wanted.add(("limit", task.id))
        if task.ask is None:
            continue
        if task.ask.delivered_at is None:
            wanted.add(("resend", task.id))
        if _force_is_near(state, task):
            wanted.add(("force", task.id))
    wanted |= {("late", task) for worker in state.workers.values() for task in worker.orphans}
    bounded = state.leaving or state.fast or registry.system.timeout < math.inf
    if state.stopping and bounded and not registry.system.over:
        wanted.add(("system", 0))
    for due in sorted(wanted - times.keys(), key=repr):
        raise _fault("everything that waits has its timer", f"{due} has none")
    for due in sorted(times.keys() - wanted, key=repr):
        # The stop whose grace set a time of force may be over since.
        task_or_none = state.tasks.get(TaskId(int(due[1]))) if due[0] == "force" else None
        if task_or_none is None or task_or_none.ask is None:
            raise _fault("every timer has something that waits", f"{due} has nothing")
    if any(tick == math.inf for tick in times.values()):
        raise _fault("nothing is due at the end of time", repr(times))


def _force_is_near(state: State, task: Task) -> bool:
    """Whether force must have a time: a grace that is finite, or one that is over."""
    if task.ask is not None and task.ask.forced:
        return True
    stops: list[Stop | None] = [
        state.open_stops[stop_id] for stop_id in state.waited.get(task.id, ())
    ]
    extended = task.ask.extended if task.ask is not None else 0.0
    return any(state.grace(task, stop) + extended < math.inf for stop in stops)


def _system(registry: "Registry") -> None:
    system, state = registry.system, registry.state
    for what, holds in (
        (
            "the stop of the system has a phase iff it has begun",
            state.stopping == (system.phase >= 0),
        ),
        ("its pending stops are open", system.pending <= state.open_stops.keys()),
        ("its pending stops are nobody's", not _owned(state, system.pending)),
        ("it is over at its end only", not system.over or state.leaving),
        ("the pools leave only in it", not state.leaving or state.stopping),
    ):
        if not holds:
            raise _fault(what, f"phase {system.phase}, pending {sorted(system.pending)}")


def _owned(state: State, stops: set[int]) -> list[SessionId]:
    return [
        state.stops[StopId(stop)].session for stop in stops if state.stops[StopId(stop)].session
    ]
