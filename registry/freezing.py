"""A registry as plain tuples, and back: for the explorer, which does it for every state that it meets.

A frozen registry is hashable, and equal registries freeze to equal tuples. What follows from the rest
(indexes, queues, counts) is left out and built again. The configuration is no part of it.

Payloads are never looked at: bytes are kept, anything else is kept as its length and thaws to a Blob; or, for a
journal, all are kept as they are.
"""

from collections.abc import Callable, Mapping, Sized
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from quiesce.registry.ended import EndedTask
from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.marked import Place, place_of
from quiesce.registry.queue import Lane
from quiesce.registry.records import (
    Ask,
    Blob,
    Closure,
    Session,
    Stop,
    Supervisor,
    Task,
    Worker,
)
from quiesce.registry.results import singly
from quiesce.registry.rows import ResultRow, SpawnAnswer, SpawnRow, StoppedRow
from quiesce.registry.scope import Scope
from quiesce.registry.serials import Serials
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState
from quiesce.registry.stop_history import EndedStop

if TYPE_CHECKING:
    from quiesce.registry.machine import Registry

Frozen = tuple[Any, ...]

# The plain fields of each record. The volatile ones, which no fact speaks of, stand apart.
_STATE: Final = (
    "epoch",
    "epoch_at",
    "boot_id",
    "run",
    "epoch_bound",
    "last_task_id",
    "last_incarnation",
    "last_stop_id",
    "stopping",
    "failed",
    "fast",
    "stop_reason",
    "spawned_total",
)
_TASK: Final = (
    "tenant_id",
    "timeline_id",
    "attempt",
    "retries",
    "started_at",
    "worker",
    "assign_number",
    "lingering",
)
_TASK_VOLATILE: Final = ("last_check_at", "progress", "restarts", "waits_on")
_ASK: Final = ("extended", "delivered_at", "observed_at", "timed_out", "stopped")
_ASK_VOLATILE: Final = ("forced", "answered", "heard", "killed")
_WORKER: Final = ("incarnation", "supervisor", "serial", "runtime", "pid", "host", "slots")
_WORKER_MORE: Final = ("status", "last_assign")
_WORKER_VOLATILE: Final = (
    *("attached", "arrived", "exiting", "pace", "quick"),
    *("cpu_seconds", "memory_bytes"),
)
_SUPERVISOR: Final = (
    "id",
    "incarnation",
    "runtime",
    "pid",
    "host",
    "processes",
    "slots",
    "run",
    "bound",
)
_SUPERVISOR_MORE: Final = ("armed", "silent_since")
_SUPERVISOR_VOLATILE: Final = ("exiting", "disowned", "cpu_seconds", "ended_cpu", "memory_bytes")
_SESSION: Final = ("id", "pid", "host", "worker")
#: The last of them are not in older ones.
_SESSION_MORE: Final = ("spawned", "forgotten", "reopened")
_STOP: Final = (
    "session",
    "request",
    "scope",
    "task_id",
    "grace",
    "timeout",
    "keep_closed",
    "hold",
    "reason",
    "last_spawn",
    "at",
    "caller",
)
_STOP_MORE: Final = ("open", "timed_out", "completed_at", "by")
_STOP_VOLATILE: Final = ("asked_by", "cycle_told")
_CLOSURE: Final = ("holder", "reason", "since", "keep", "caller", "left", "system")

_get_state: Final = attrgetter(*_STATE)
_get_task: Final = attrgetter(*_TASK)
_get_task_volatile: Final = attrgetter(*_TASK_VOLATILE)
_get_ask: Final = attrgetter("at", "reason", "force_at", *_ASK)
_get_ask_volatile: Final = attrgetter(*_ASK_VOLATILE)
_get_worker: Final = attrgetter(*_WORKER, *_WORKER_MORE)
_get_worker_volatile: Final = attrgetter(*_WORKER_VOLATILE)
_get_supervisor: Final = attrgetter(*_SUPERVISOR, *_SUPERVISOR_MORE)
_get_supervisor_volatile: Final = attrgetter(*_SUPERVISOR_VOLATILE)
_get_session: Final = attrgetter(*_SESSION, *_SESSION_MORE)
_get_stop: Final = attrgetter("id", *_STOP, *_STOP_MORE)
_get_stop_volatile: Final = attrgetter(*_STOP_VOLATILE)
_get_closure: Final = attrgetter("scope", *_CLOSURE)


def freeze(
    registry: "Registry",
    *,
    volatile: bool = True,
    payloads: bool = False,
    ready: Mapping[TaskId, Frozen] = MappingProxyType({}),
) -> Frozen:
    """All of its state. Without the volatile part: what the facts alone say. `payloads`: kept as they are. `ready`:
    tasks that are frozen so already.
    """
    state = registry.state
    keep = _keep if payloads else _payload
    return (
        _get_state(state),
        tuple(
            [
                ready.get(task_id) or _freeze_task(task, volatile, keep)
                for task_id, task in state.tasks.items()
            ]
        ),
        tuple([(name, queue.turns()) for name, queue in state.queues.items() if len(queue)]),
        tuple([_freeze_worker(worker, volatile) for worker in state.workers.values()]),
        tuple([_freeze_supervisor(each, volatile) for each in state.supervisors.values()]),
        tuple(sorted(state.gone_supervisors)),
        tuple([_freeze_session(session, volatile, keep) for session in state.sessions.values()]),
        tuple([_freeze_stop(stop, state, volatile) for stop in state.stops.values()]),
        tuple([(stop_id, _get_closure(each)) for stop_id, each in sorted(state.closures.items())]),
        tuple(
            state.history.values()
            if volatile
            else [
                ended if ended.progress is None else ended._replace(progress=None)
                for ended in state.history.values()
            ]
        ),
        tuple(state.stop_history),
        tuple(sorted(state.ended_total.items())),
        _freeze_rest(registry) if volatile else None,
    )


def _freeze_rest(registry: "Registry") -> Frozen:
    system = registry.system
    return (
        tuple(registry.timers.items()),
        registry.state.leaving,
        registry.state.certain_at,
        registry.state.full,
        (system.phase, tuple(sorted(system.pending)), system.over),
    )


Keep = Callable[[Sized], Sized | int]


def _payload(payload: Sized) -> Sized | int:
    return payload if type(payload) is bytes else len(payload)


def _keep(payload: Sized) -> Sized | int:
    return payload


def _freeze_spawn(row: SpawnRow, keep: Keep) -> Frozen:
    if type(row.function) is bytes and type(row.arguments) is bytes:
        return row
    return (*row[:-2], keep(row.function), keep(row.arguments))


def _freeze_task(task: Task, volatile: bool, keep: Keep) -> Frozen:
    ask, spawn = task.ask, task.spawn
    plain = type(spawn.function) is bytes and type(spawn.arguments) is bytes
    return (
        task.id,
        spawn if plain else _freeze_spawn(spawn, keep),
        task.created_at,
        task.state._value_,  # what `str` would make a copy of, of each
        _get_task(task),
        _get_task_volatile(task) if volatile else None,
        None if ask is None else _get_ask(ask),
        None if ask is None or not volatile else _get_ask_volatile(ask),
        task.watchers,
        tuple([(of, _freeze_spawn(row, keep)) for (of, _), row in task.parked.items()])
        if task.parked
        else (),
    )


def freeze_for_journal(task: Task) -> Frozen:
    """One task, without what is volatile, with its payloads."""
    return _freeze_task(task, volatile=False, keep=_keep)


def _freeze_worker(worker: Worker, volatile: bool) -> Frozen:
    return (
        _get_worker(worker),
        tuple(worker.tasks),
        tuple(sorted(worker.orphans.items())),
        _get_worker_volatile(worker) if volatile else None,
    )


def _freeze_supervisor(supervisor: Supervisor, volatile: bool) -> Frozen:
    return (
        _get_supervisor(supervisor),
        tuple(sorted(supervisor.workers.items())),
        supervisor.dead_serials.ranges(),
        _get_supervisor_volatile(supervisor) if volatile else None,
    )


def _freeze_session(session: Session, volatile: bool, keep: Keep) -> Frozen:
    return (
        _get_session(session),
        tuple(session.answers),
        tuple(
            [
                row if type(row.result) is bytes else (*row[:-1], keep(row.result))
                for row in singly(session)
            ]
        ),
        tuple(sorted(session.requests.items())),
        tuple(sorted(session.blocks)),
        tuple(session.reports.items()),
        (session.last_heard, tuple(session.untold)) if volatile else None,
    )


def _freeze_stop(stop: Stop, state: State, volatile: bool) -> Frozen:
    return (
        _get_stop(stop),
        tuple(state.first_left(stop)),
        (),  # in older ones, the queued of these
        tuple(stop.rows),
        tuple(stop.collateral),
        tuple(stop.left),
        _get_stop_volatile(stop) if volatile else None,
    )


# --- and back -------------------------------------------------------------------------------------


def thaw(registry: "Registry", frozen: Frozen) -> None:
    """Give a fresh registry the state that was frozen."""
    numbers, tasks, turns, workers, supervisors, gone, sessions, stops, closures, *rest = frozen
    history, stop_history, ended_total, volatile = rest
    state = registry.state
    _set(state, _STATE, numbers)
    for row in tasks:
        _thaw_task(state, row)
    for row in workers:
        _thaw_worker(state, row)
    for row in supervisors:
        _thaw_supervisor(state, row)
    state.gone_supervisors.update(gone)
    for row in sessions:
        _thaw_session(state, row)
    for row in stops:
        _thaw_stop(state, row)
    for stop_id, row in closures:
        closure = Closure(Scope(*row[0]), "", 0.0, keep=False, caller=None)
        _set(closure, _CLOSURE, row[1:])
        state.closures[stop_id] = closure
        state.closed.setdefault(closure.scope, set()).add(stop_id)
        if closure.holder == "timed-out":
            state.timed_out[stop_id] = closure
    for row in history:
        if len(row) == len(EndedTask._fields):
            ended = EndedTask._make(row)
        else:
            fields, progress = row  # an older journal's
            ended = EndedTask._make((*fields, progress))
        state.history[ended.id] = ended
    state.stop_history.extend(
        EndedStop(*row)._replace(scope=Scope(*row[1])) for row in stop_history
    )
    state.ended_total.update(ended_total)
    _derive(state)
    for runtime, tenants in turns:
        state.queues[runtime].set_turns(tenants)
    if volatile is not None:
        _thaw_rest(registry, volatile)


def _thaw_rest(registry: "Registry", frozen: Frozen) -> None:
    state = registry.state
    timers, state.leaving, state.certain_at, state.full, (phase, pending, over) = frozen
    for due, tick in timers:
        registry.timers.set(due, tick)
    registry.system.phase = phase
    registry.system.pending = set(pending)
    registry.system.over = over


def _derive(state: State) -> None:
    """What follows from the tasks and stops."""
    for stop in state.open_stops.values():
        for member in stop.held:
            state.wait_for(member, stop.id)
    marked: dict[tuple[Place, frozenset[StopId]], list[TaskId]] = {}
    for task in state.tasks.values():
        spawn = task.spawn
        pool = (spawn.runtime, spawn.kind)
        state.live_total[pool] = state.live_total.get(pool, 0) + 1
        state.index.add(task)
        if task.unique is not None:
            state.unique[task.unique] = task.id
        parked, task.parked = task.parked, {}
        for (session_id, _), row in parked.items():
            state.parked.add(task, state.sessions[session_id], row)
        if task.state is not TaskState.QUEUED:
            held = (spawn.kind, task.tenant_id)
            state.held_kind[spawn.kind] = state.held_kind.get(spawn.kind, 0) + 1
            state.held_tenant[held] = state.held_tenant.get(held, 0) + 1
            state.held.add(task.id)
        elif task.id in state.waited:
            marked.setdefault((place_of(task), state.waited.pop(task.id)), []).append(task.id)
        else:
            state.queues[spawn.runtime].push(task.id, task.tenant_id, spawn.kind)
    for (place, stops), task_ids in marked.items():
        state.marked.add(place, Lane(task_ids), stops)
    for stop in state.open_stops.values():
        stop.held &= state.held


def _set(record: object, names: tuple[str, ...], values: Frozen) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(record, name, value)


def _thaw_payload(frozen: Sized | int) -> Sized:
    return Blob(frozen) if isinstance(frozen, int) else frozen


def _thaw_spawn(frozen: Frozen) -> SpawnRow:
    if type(frozen) is SpawnRow:
        return frozen
    function, arguments = map(_thaw_payload, frozen[-2:])
    return SpawnRow._make((*frozen[:-2], function, arguments))


def _thaw_task(state: State, frozen: Frozen) -> None:
    task_id, spawn, created_at, life, plain, volatile, ask, ask_volatile, watchers, parked = frozen
    task = Task(task_id, _thaw_spawn(spawn), created_at)
    task.state = TaskState(life)
    _set(task, _TASK, plain)
    if volatile is not None:
        _set(task, _TASK_VOLATILE, volatile)
    if ask is not None:
        task.ask = Ask(*ask[:3])
        _set(task.ask, _ASK, ask[3:])
        if ask_volatile is not None:
            _set(task.ask, _ASK_VOLATILE, ask_volatile)
    task.watchers = tuple(watchers)
    for session, row in parked:
        task.park(session, _thaw_spawn(row))
    state.tasks[task.id] = task


def _thaw_worker(state: State, frozen: Frozen) -> None:
    plain, tasks, orphans, volatile = frozen
    worker = Worker(*plain[: len(_WORKER)])
    _set(worker, _WORKER_MORE, plain[len(_WORKER) :])
    worker.tasks = dict.fromkeys(tasks)
    worker.orphans = dict(orphans)
    if volatile is not None:
        _set(worker, _WORKER_VOLATILE, volatile)
    state.workers[worker.incarnation] = worker
    if worker.status is None:
        state.pool[worker.runtime][worker.incarnation] = worker


def _thaw_supervisor(state: State, frozen: Frozen) -> None:
    plain, workers, dead, volatile = frozen
    supervisor = Supervisor(*plain[: len(_SUPERVISOR)])
    _set(supervisor, _SUPERVISOR_MORE, plain[len(_SUPERVISOR) :])
    supervisor.workers = dict(workers)
    older = [each for each in dead if isinstance(each, int)]  # each by itself
    supervisor.dead_serials = Serials(dead if not older else ())
    for serial in older:
        supervisor.dead_serials.add(serial)
    if volatile is not None:
        _set(supervisor, _SUPERVISOR_VOLATILE, volatile)
    state.supervisors[supervisor.id] = supervisor


def _thaw_session(state: State, frozen: Frozen) -> None:
    plain, answers, results, requests, blocks, reports, volatile = frozen
    session = Session(*plain[: len(_SESSION)])
    more = plain[len(_SESSION) :]
    _set(session, _SESSION_MORE[: len(more)], more)
    for row in answers:
        session.answers.add(SpawnAnswer(*row))
    session.results = {
        TaskId(row[0]): ResultRow._make((*row[:-1], _thaw_payload(row[-1]))) for row in results
    }
    session.requests = dict(requests)
    session.blocks = set(blocks)
    session.reports = dict(reports)
    if volatile is not None:
        session.last_heard, untold = volatile
        session.untold = list(untold)
    state.sessions[session.id] = session


def _thaw_stop(state: State, frozen: Frozen) -> None:
    plain, remaining, _, rows, collateral, left, volatile = frozen
    stop_id, *fields = plain
    named = dict(zip(_STOP, fields, strict=False))
    named["scope"] = Scope(*named["scope"])
    if named["caller"] is not None:
        named["caller"] = StoppedRow(*named["caller"])
    stop = Stop(stop_id, held=remaining, **named)  # `_derive` finds out which are
    _set(stop, _STOP_MORE, tuple(fields[len(_STOP) :]))
    for row in map(StoppedRow._make, rows):
        stop.report([row], str(row.outcome), str(row.evidence))
    stop.collateral = [StoppedRow(*row) for row in collateral]
    stop.left = [StoppedRow(*row) for row in left]
    if volatile is not None:
        _set(stop, _STOP_VOLATILE, volatile)
    state.stops[stop.id] = stop
    if stop.open:
        state.open_stops[stop.id] = stop
