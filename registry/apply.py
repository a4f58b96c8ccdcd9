"""Applying facts: the only code that changes the registry's state.

Each function assumes that its fact was decided by a handler, which has checked everything; a state
transition that is not in `states.LEGAL` raises RegistryFault with the task's story.
"""

from collections.abc import Callable
from typing import Any, Final

from quiesce.registry import apply_alike, apply_slices, apply_stops, facts
from quiesce.registry.counts import count
from quiesce.registry.ids import (
    AssignNumber,
    Attempt,
    Epoch,
    Incarnation,
    SessionId,
    SpawnNumber,
    TaskId,
)
from quiesce.registry.leaving import leave
from quiesce.registry.moving import move
from quiesce.registry.records import (
    Ask,
    Session,
    Supervisor,
    Task,
    Worker,
    stopped_row,
)
from quiesce.registry.rows import SpawnAnswer
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

# --- sessions -------------------------------------------------------------------------------------


def epoch_started(state: State, fact: facts.EpochStarted) -> None:
    """A stop of the whole system is over with the `quiesce up` that was stopped."""
    for supervisor in state.supervisors.values():
        supervisor.bound = max(supervisor.bound, fact.lease_bound)
        if supervisor.silent_since is None or fact.boot_id != state.boot_id:
            supervisor.silent_since = fact.tick
    if fact.run != state.run or not fact.run:
        state.stopping = state.failed = state.fast = False
        state.stop_reason = ""
        apply_stops.system_goes_on(state)
    state.epoch = Epoch(fact.epoch)
    state.epoch_at = fact.at
    state.boot_id = fact.boot_id
    state.run = fact.run
    state.epoch_bound = fact.lease_bound


def session_opened(state: State, fact: facts.SessionOpened) -> None:
    session = SessionId(fact.session)
    state.sessions[session] = Session(session, fact.pid, fact.host, fact.worker)


def session_closed(state: State, fact: facts.SessionClosed) -> None:
    session = state.sessions.pop(SessionId(fact.session))
    apply_stops.sessions_stops(state, session)
    for number, holder in list(session.parked.items()):
        state.parked.remove(state.tasks[holder], session, number)


def answers_forgotten(state: State, fact: facts.AnswersForgotten) -> None:
    state.sessions[SessionId(fact.session)].answers.forget(fact.through)


def results_forgotten(state: State, fact: facts.ResultsForgotten) -> None:
    results = state.sessions[SessionId(fact.session)].results
    for task_id in fact.task_ids:
        results.pop(TaskId(task_id), None)


# --- spawns ---------------------------------------------------------------------------------------


def _answer(state: State, session_id: bytes, answer: SpawnAnswer) -> None:
    session = state.sessions[SessionId(session_id)]
    session.answers.add(answer)
    session.spawned = max(session.spawned, answer.number)
    if session.parked:
        holder = session.parked.get(answer.number)
        if holder is not None:
            state.parked.remove(state.tasks[holder], session, answer.number)


def task_registered(state: State, fact: facts.TaskRegistered) -> None:
    task = Task(TaskId(fact.task_id), fact.row, fact.at)
    state.last_task_id = task.id
    state.spawned_total += 1
    count(state.live_total, (fact.row.runtime, fact.row.kind), +1)
    state.tasks[task.id] = task
    state.index.add(task)
    state.queues[fact.row.runtime].push(task.id, task.tenant_id, fact.row.kind)
    unique = task.unique
    if unique is not None:
        state.unique[unique] = task.id
    task.watchers = state.sessions[SessionId(fact.session)].alone
    _answer(state, fact.session, SpawnAnswer(SpawnNumber(fact.number), task.id, None, ""))


def spawn_refused(state: State, fact: facts.SpawnRefused) -> None:
    _answer(
        state,
        fact.session,
        SpawnAnswer(SpawnNumber(fact.number), TaskId(0), fact.error, fact.text),
    )


def spawn_joined(state: State, fact: facts.SpawnJoined) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    session = SessionId(fact.session)
    if session not in task.watchers:
        # Of a task that lives for long many learn, and go.
        task.watchers = (*filter(state.sessions.__contains__, task.watchers), session)
    _answer(state, fact.session, SpawnAnswer(SpawnNumber(fact.number), task.id, None, ""))


def spawn_parked(state: State, fact: facts.SpawnParked) -> None:
    session = state.sessions[SessionId(fact.session)]
    state.parked.add(state.tasks[TaskId(fact.holder)], session, fact.row)
    session.spawned = fact.row.number


# --- a task's life --------------------------------------------------------------------------------


def _hold(state: State, task: Task, change: int) -> None:
    """Count a task in or out of what workers hold."""
    kind = task.spawn.kind
    count(state.held_kind, kind, change)
    count(state.held_tenant, (kind, task.tenant_id), change)


def _leave_worker(state: State, task: Task) -> None:
    worker = state.workers[task.worker]
    worker.tasks.pop(task.id, None)
    state.held.remove(task.id)
    _hold(state, task, -1)
    if worker.status is not None:
        worker.orphans.pop(task.id, None)
        _forget_dead(state, worker)


def _forget_dead(state: State, worker: Worker) -> None:
    """A dead worker is forgotten with its last task."""
    if worker.status is not None and not worker.tasks:
        del state.workers[worker.incarnation]


def task_assigned(state: State, fact: facts.TaskAssigned) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    move(task, TaskState.ASSIGNED)
    state.queues[task.spawn.runtime].take(task.id, task.tenant_id, task.spawn.kind)
    task.worker = Incarnation(fact.worker)
    task.assign_number = AssignNumber(fact.assign_number)
    worker = state.workers[task.worker]
    worker.tasks[task.id] = None
    worker.last_assign = task.assign_number
    state.held.add(task.id)
    _hold(state, task, +1)


def task_began(state: State, fact: facts.TaskBegan) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    move(task, TaskState.RUNNING)
    task.started_at = fact.at


def task_requeued(state: State, fact: facts.TaskRequeued) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    move(task, TaskState.QUEUED)
    _leave_worker(state, task)
    task.worker = Incarnation(0)
    task.assign_number = AssignNumber(0)
    task.lingering = ""
    task.waits_on = ()
    if fact.attempt != task.attempt:
        # A new attempt starts as the spawn said, whatever the old one associated itself with.
        state.index.remove(task)
        task.tenant_id, task.timeline_id = task.spawn.tenant_id, task.spawn.timeline_id
        state.index.add(task)
        task.attempt = Attempt(fact.attempt)
        task.retries = fact.retries
        task.started_at = None
        task.ask = None
    state.queues[task.spawn.runtime].push(task.id, task.tenant_id, task.spawn.kind)


def task_associated(state: State, fact: facts.TaskAssociated) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    state.index.remove(task)
    _hold(state, task, -1)
    task.tenant_id, task.timeline_id = fact.tenant_id, fact.timeline_id
    _hold(state, task, +1)
    state.index.add(task)


def task_asked(state: State, fact: facts.TaskAsked) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    task.ask = Ask(fact.at, fact.reason, fact.force_at)
    task.ask.timed_out = fact.timed_out
    task.ask.stopped = bool(state.stops_for(task))


def force_moved(state: State, fact: facts.ForceMoved) -> None:
    ask = state.tasks[TaskId(fact.task_id)].ask
    if ask is not None:
        ask.force_at = fact.force_at
        ask.extended = fact.extended


def stop_delivered(state: State, fact: facts.StopDelivered) -> None:
    ask = state.tasks[TaskId(fact.task_id)].ask
    if ask is not None:
        ask.delivered_at = fact.at


def stop_observed(state: State, fact: facts.StopObserved) -> None:
    ask = state.tasks[TaskId(fact.task_id)].ask
    if ask is not None:
        ask.observed_at = fact.at


def task_lingering(state: State, fact: facts.TaskLingering) -> None:
    state.tasks[TaskId(fact.task_id)].lingering = fact.what


def task_ended(state: State, fact: facts.TaskEnded) -> None:
    task = state.tasks.pop(TaskId(fact.task_id))
    worker = None
    if task.state is not TaskState.QUEUED:  # else a stop took it out of its queue
        worker = state.workers[task.worker]
        _leave_worker(state, task)
    stops = state.leave_stops(task)
    if stops:
        row = stopped_row(task, fact.outcome, fact.evidence, fact.exit_status, fact.at)
        for stop_id in stops:
            state.stops[stop_id].report([row], fact.outcome, fact.evidence)
    leave(
        state,
        [task],
        [task.id],
        outcome=fact.outcome,
        evidence=fact.evidence,
        ended_at=(fact.at,),
        started_at=(fact.started_at,),
        exit_status=fact.exit_status,
        text=fact.text,
        results=(fact.result,),
        host=worker.host if worker else "",
        worker_pid=worker.pid if worker else None,
    )


# --- pools ----------------------------------------------------------------------------------------


def supervisor_registered(state: State, fact: facts.SupervisorRegistered) -> None:
    state.last_incarnation = Incarnation(fact.incarnation)
    state.supervisors[fact.supervisor] = Supervisor(
        fact.supervisor,
        Incarnation(fact.incarnation),
        fact.runtime,
        fact.pid,
        fact.host,
        fact.processes,
        fact.slots,
        fact.run,
        state.epoch_bound,
    )


def supervisor_returned(state: State, fact: facts.SupervisorReturned) -> None:
    state.supervisors[fact.supervisor].silent_since = None


def supervisor_armed(state: State, fact: facts.SupervisorArmed) -> None:
    state.supervisors[fact.supervisor].armed = True


def supervisor_gone(state: State, fact: facts.SupervisorGone) -> None:
    del state.supervisors[fact.supervisor]
    state.gone_supervisors.add(fact.supervisor)


def worker_registered(state: State, fact: facts.WorkerRegistered) -> None:
    incarnation = Incarnation(fact.incarnation)
    state.last_incarnation = incarnation
    worker = Worker(
        incarnation,
        fact.supervisor,
        fact.serial,
        fact.runtime,
        fact.pid,
        fact.host,
        fact.slots,
    )
    state.workers[incarnation] = worker
    state.pool[fact.runtime][incarnation] = worker
    state.supervisors[fact.supervisor].workers[fact.serial] = incarnation


def worker_reachable(state: State, fact: facts.WorkerReachable) -> None:
    state.workers[Incarnation(fact.worker)].attached = True


def worker_gone(state: State, fact: facts.WorkerGone) -> None:
    supervisor = state.supervisors.get(fact.supervisor)
    if supervisor is not None:
        supervisor.dead_serials.add(fact.serial)
        supervisor.workers.pop(fact.serial, None)
    worker = state.workers.get(Incarnation(fact.worker))
    if worker is not None:
        worker.status = fact.status
        worker.attached = False
        worker.orphans = {TaskId(task_id): outcome for task_id, outcome in fact.orphans}
        state.pool[worker.runtime].pop(worker.incarnation, None)
        _forget_dead(state, worker)


def system_stopping(state: State, fact: facts.SystemStopping) -> None:
    state.stopping = True
    state.failed = state.failed or fact.failed
    state.fast = state.fast or fact.fast
    state.stop_reason = state.stop_reason or fact.reason


APPLY: Final[dict[type, Callable[[State, Any], None]]] = {
    facts.EpochStarted: epoch_started,
    facts.SupervisorRegistered: supervisor_registered,
    facts.SupervisorReturned: supervisor_returned,
    facts.SupervisorArmed: supervisor_armed,
    facts.SupervisorGone: supervisor_gone,
    facts.WorkerRegistered: worker_registered,
    facts.WorkerReachable: worker_reachable,
    facts.WorkerGone: worker_gone,
    facts.SessionOpened: session_opened,
    facts.SessionClosed: session_closed,
    facts.AnswersForgotten: answers_forgotten,
    facts.TaskRegistered: task_registered,
    facts.TasksRegistered: apply_alike.tasks_registered,
    facts.SpawnRefused: spawn_refused,
    facts.SpawnJoined: spawn_joined,
    facts.SpawnParked: spawn_parked,
    facts.TaskAssigned: task_assigned,
    facts.TasksAssigned: apply_alike.tasks_assigned,
    facts.TaskBegan: task_began,
    facts.TaskRequeued: task_requeued,
    facts.TaskAssociated: task_associated,
    facts.TaskAsked: task_asked,
    facts.ForceMoved: force_moved,
    facts.StopJoined: apply_stops.stop_joined,
    facts.StopDelivered: stop_delivered,
    facts.StopObserved: stop_observed,
    facts.TaskLingering: task_lingering,
    facts.TaskEnded: task_ended,
    facts.TasksCompleted: apply_alike.tasks_completed,
    facts.TasksNeverRan: apply_slices.tasks_never_ran,
    facts.ResultsForgotten: results_forgotten,
    facts.StopOpened: apply_stops.stop_opened,
    facts.TaskCollateral: apply_stops.task_collateral,
    facts.StopEnded: apply_stops.stop_ended,
    facts.BlockReleased: apply_stops.block_released,
    facts.ScopesReopened: apply_stops.scopes_reopened,
    facts.SystemStopping: system_stopping,
}


def apply(state: State, fact: facts.Fact) -> None:
    """Change the state by one fact."""
    APPLY[type(fact)](state, fact)
