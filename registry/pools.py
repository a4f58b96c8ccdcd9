"""Supervisors and workers come, are reached, and die; what their deaths prove."""

from typing import Final

from quiesce.registry import effects, events, facts, leasing, stopping
from quiesce.registry.ending import end, has_more, never_ran
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.names import unknown
from quiesce.registry.records import Supervisor, Task, Worker
from quiesce.registry.scheduling import assign_row
from quiesce.registry.sessions import close_those_of
from quiesce.registry.states import Evidence, Outcome, State as TaskState
from quiesce.registry.turn import Turn

#: What the shared table may say of an attempt that has ended; what else it says has begun.
ENDED: Final = frozenset({"completed", "failed", "cancelled", "crashed"})
#: Seconds that the tasks of a supervisor which is refused get to stop, or a part of its lease.
REFUSED: Final = 10.0
#: Seconds that an Ended which was on its way may take after its worker's death.
LATE: Final = 0.3


def on_supervisor_hello(turn: Turn, event: events.SupervisorHello) -> None:
    """Register a supervisor, or take it up again; its lease begins anew."""
    state = turn.state
    known = state.supervisors.get(event.supervisor)
    refusal = None
    if event.runtime not in state.runtimes:
        refusal = unknown("runtime", event.runtime, state.runtimes)
    elif event.supervisor in state.gone_supervisors:
        refusal = "its end was reported before"
    elif known is not None and known.disowned:
        refusal = "the journal may have lost what its workers were given"
    elif known is None and event.incarnation:
        refusal = "this broker knows nothing of its tasks: their registration was not recovered"
    if refusal is not None:
        grace = min(REFUSED, state.lease / 4)
        turn.send(effects.RefuseSupervisor(event.supervisor, refusal, grace))
        return
    if known is None:
        if event.predecessor is not None:
            _predecessor_died(turn, event.predecessor)
        turn.emit(
            facts.SupervisorRegistered(
                event.supervisor,
                state.last_incarnation + 1,
                event.runtime,
                event.pid,
                event.host,
                event.processes,
                event.slots,
                event.run,
            )
        )
        known = state.supervisors[event.supervisor]
    elif known.silent_since is not None:
        turn.emit(facts.SupervisorReturned(event.supervisor))
        turn.dirty.add(event.runtime)
    leasing.renew(turn, known, event.armed)
    turn.send(
        effects.WelcomeSupervisor(
            event.supervisor, known.incarnation, event.sent_at, turn.state.lease
        )
    )
    if state.leaving:
        known.exiting = True
        turn.send(effects.ExitSupervisor(event.supervisor, 0.0))


def _predecessor_died(turn: Turn, predecessor: events.Predecessor) -> None:
    """A supervisor was reaped with all its workers."""
    supervisor = turn.state.supervisors.get(predecessor.supervisor)
    if supervisor is None:
        return
    how = "its lease was over" if predecessor.fenced else f"status {predecessor.status}"
    turn.log(
        "ERROR",
        f"the supervisor of pool {supervisor.runtime!r} (pid {predecessor.pid}) died ({how}); its "
        "workers went with it, a successor has taken over",
    )
    supervisor_died(turn, supervisor, predecessor.workers, fenced=predecessor.fenced)


def on_lease_renewed(turn: Turn, event: events.LeaseRenewed) -> None:
    """Grant it. One that is not registered in this epoch must say hello."""
    supervisor = turn.state.supervisors.get(event.supervisor)
    if supervisor is None or supervisor.silent_since is not None:
        turn.send(effects.WantSupervisor(event.supervisor))
        return
    leasing.renew(turn, supervisor, event.armed)
    turn.send(effects.GrantLease(event.supervisor, event.sent_at, turn.state.lease))


def on_lease_due(turn: Turn, supervisor_id: bytes) -> None:
    """It has not renewed its lease for so long that its kernel has killed it, and its workers with it.

    (One that was never armed has not been given a task.)
    """
    supervisor = turn.state.supervisors[supervisor_id]
    if supervisor.armed:
        turn.log(
            "ERROR",
            f"the supervisor of pool {supervisor.runtime!r} (pid {supervisor.pid} on "
            f"{supervisor.host}) has not been heard of for {supervisor.bound:g} s: its lease proves "
            "that it and its workers are dead",
        )
    supervisor_died(turn, supervisor, [], fenced=True)


def supervisor_died(
    turn: Turn, supervisor: Supervisor, rows: list[events.ExitRow], *, fenced: bool
) -> None:
    """It is dead, with all its workers. `rows`: what is known of these."""
    told = {row.serial: row for row in rows}
    for serial in sorted(set(supervisor.workers) - set(told)):
        told[serial] = events.ExitRow(serial, 0, -9, False, [])
    for serial in sorted(told):
        _worker_died(turn, supervisor, told[serial], fenced=fenced)
    leasing.forget(turn, supervisor)
    turn.emit(facts.SupervisorGone(supervisor.id))


def on_supervisor_goodbye(turn: Turn, event: events.SupervisorGoodbye) -> None:
    supervisor = turn.state.supervisors.get(event.supervisor)
    if supervisor is None:
        return
    rows = [events.ExitRow(serial, 0, 0, False, []) for serial in supervisor.workers]
    supervisor_died(turn, supervisor, rows, fenced=False)


def on_worker_hello(turn: Turn, event: events.WorkerHello) -> None:
    """Register a worker, or take it up again; one whose end was reported is refused.

    What was on its way to it may be lost, so it gets no new task until it has attached again, and then
    first those that it says it has not received: assignments arrive in the order of their numbers.
    What it runs and must not, since the registry has given up on that attempt or has never known it, is asked
    to stop.
    """
    state = turn.state
    supervisor = state.supervisors.get(event.supervisor)
    if supervisor is None or supervisor.disowned:
        # It has not said hello yet, or is gone. The worker asks again; if gone, it dies with it.
        return
    incarnation = supervisor.workers.get(event.serial)
    refusal = None
    if event.serial in supervisor.dead_serials:
        refusal = "its supervisor has reported its end"
    elif event.runtime != supervisor.runtime:
        refusal = f"its supervisor runs the pool {supervisor.runtime!r}, not {event.runtime!r}"
    elif incarnation is None and event.incarnation:
        refusal = "its registration is gone"
    if refusal is not None:
        turn.send(effects.RefuseWorker(event.supervisor, event.serial, refusal))
        return
    if incarnation is None:
        incarnation = Incarnation(state.last_incarnation + 1)
        turn.emit(
            facts.WorkerRegistered(
                incarnation,
                event.supervisor,
                event.serial,
                event.runtime,
                event.pid,
                event.host,
                event.slots,
            )
        )
    turn.send(effects.WelcomeWorker(event.supervisor, event.serial, incarnation))
    worker = state.workers[incarnation]
    worker.attached = False
    worker.arrived = event.last_assign
    for task_id in worker.tasks:
        stopping.tell(turn, state.tasks[task_id])
    for number, attempt in (*event.begun, *event.received):
        task = state.tasks.get(TaskId(number))
        if task is None or task.worker != incarnation or task.attempt != attempt:
            row = (
                number,
                attempt,
                worker.last_assign,
                "the registry has given up on this attempt",
            )
            turn.ask_stop(incarnation, row)


def on_worker_attached(turn: Turn, event: events.WorkerAttached) -> None:
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.status is not None:
        return
    if not worker.attached:
        turn.emit(facts.WorkerReachable(event.worker))
        turn.dirty.add(worker.runtime)
        for task_id in worker.tasks:
            task = turn.state.tasks[task_id]
            stopping.heard(turn, task)  # what it did not answer to may have been lost
            if task.assign_number > worker.arrived:
                turn.assign(event.worker, [assign_row(task)])
    if turn.state.leaving:
        worker.exiting = True
        turn.send(effects.ExitWorker(event.worker))


def on_worker_exited(turn: Turn, event: events.WorkerExited) -> None:
    supervisor = turn.state.supervisors.get(event.supervisor)
    if supervisor is not None and event.row.serial not in supervisor.dead_serials:
        _worker_died(turn, supervisor, event.row, fenced=False)
    turn.send(effects.TakeExit(event.supervisor, event.row.serial))


def _worker_died(turn: Turn, supervisor: Supervisor, row: events.ExitRow, *, fenced: bool) -> None:
    """Every task it held ends, goes back to the queue, or (ended by the table) waits a moment for its Ended."""
    state = turn.state
    incarnation = supervisor.workers.get(row.serial)
    worker = None if incarnation is None else state.workers.get(incarnation)
    if worker is None:
        turn.emit(facts.WorkerGone(0, supervisor.id, row.serial, row.status, []))
        return
    phases = {(phase.task_id, phase.attempt): phase.phase for phase in row.attempts}
    orphans: list[tuple[int, str]] = []
    begun: list[Task] = []
    not_begun: list[Task] = []
    for task_id in worker.tasks:
        task = state.tasks[task_id]
        phase = phases.get((task.id, task.attempt))
        if phase in ENDED:
            orphans.append((task.id, phase))
            turn.timers.set(("late", task.id), turn.now.tick + LATE)
            turn.timers.clear(("resend", task.id))
            turn.timers.clear(("limit", task.id))
        elif phase is None and row.table_known and task.state is TaskState.ASSIGNED:
            not_begun.append(task)
        else:
            begun.append(task)
    _collateral(turn, begun, row.status)
    for task in begun:
        if fenced:
            _fenced(turn, task, worker, row)
        else:
            _died_under(turn, task, worker, row.status)
    for task in not_begun:
        if task.ask is not None:
            never_ran(turn, task)
        else:
            turn.let_go(task)
            turn.emit(facts.TaskRequeued(task.id, task.attempt, task.retries))
    turn.emit(facts.WorkerGone(worker.incarnation, supervisor.id, row.serial, row.status, orphans))
    close_those_of(turn, worker.incarnation)


def _collateral(turn: Turn, begun: list[Task], status: int) -> None:
    """Stops that had the process killed name who else died in it."""
    stops = {
        stop
        for task in begun
        if task.ask is not None and task.ask.killed
        for stop in turn.state.waited.get(task.id, ())
    }
    for task in begun:
        if task.ask is None:
            for stop in sorted(stops):
                turn.emit(facts.TaskCollateral(stop, task.id, status, turn.now.wall))


def _died_under(turn: Turn, task: Task, worker: Worker, status: int) -> None:
    """The process died while the attempt ran: crashed, or cancelled if it was asked to stop."""
    said = f"signal {-status}" if status < 0 else f"exit status {status}"
    text = (
        f"process {worker.pid} of runtime {worker.runtime!r} ended with {said} while it ran task "
        f"{task.id}.{task.attempt} {task.spawn.kind} {task.spawn.name!r} (tenant {task.tenant_id!r}, "
        f"timeline {task.timeline_id!r})"
    )
    asked = task.ask is not None
    if not asked:
        fatal = task.spawn.shutdown_process_on_error and not has_more(turn, task)
        turn.log("ERROR", text + ("; the whole system stops because of it" if fatal else ""))
    end(
        turn,
        task,
        outcome=Outcome.CANCELLED if asked else Outcome.CRASHED,
        evidence=Evidence.REAPED,
        started_at=task.started_at or turn.now.wall,
        at=turn.now.wall,
        exit_status=status,
        text=text,
    )


def _fenced(turn: Turn, task: Task, worker: Worker, row: events.ExitRow) -> None:
    """The lease proves the process dead. What became of the attempt before that, nobody knows."""
    text = (
        f"process {worker.pid} of runtime {worker.runtime!r} on {worker.host} was out of reach of the broker "
        f"until its lease was over, and is dead; it had task {task.id}.{task.attempt} {task.spawn.kind} "
        f"{task.spawn.name!r} (tenant {task.tenant_id!r}, timeline {task.timeline_id!r})"
    )
    if task.ask is None:
        fatal = task.spawn.shutdown_process_on_error and not has_more(turn, task)
        turn.log("ERROR", text + ("; the whole system stops because of it" if fatal else ""))
    end(
        turn,
        task,
        outcome=Outcome.LOST,
        evidence=Evidence.FENCED,
        started_at=task.started_at,
        at=turn.now.wall,
        exit_status=row.status if row.table_known else None,
        text=text,
    )


def on_late_due(turn: Turn, task_id: TaskId) -> None:
    """The Ended of a dead worker did not arrive: its outcome is known from the table, its result is lost."""
    task = turn.state.tasks[task_id]
    worker = turn.state.workers[task.worker]
    outcome = worker.orphans[task_id]
    end(
        turn,
        task,
        outcome=outcome,
        evidence=Evidence.RETURNED,
        started_at=task.started_at or turn.now.wall,
        at=turn.now.wall,
        exit_status=worker.status,
        text=f"it ended as {outcome}, but process {worker.pid} died before it had handed over the result",
    )


def on_usage_said(turn: Turn, event: events.UsageSaid) -> None:
    """Telemetry: written directly, decided on by nobody."""
    supervisor = turn.state.supervisors.get(event.supervisor)
    if supervisor is None:
        return
    supervisor.cpu_seconds = event.cpu_seconds
    supervisor.memory_bytes = event.memory_bytes
    supervisor.ended_cpu = event.ended_cpu
    for serial, _, cpu, memory, checks in event.workers:
        incarnation = supervisor.workers.get(serial)
        worker = None if incarnation is None else turn.state.workers.get(incarnation)
        if worker is None:
            continue
        worker.cpu_seconds, worker.memory_bytes = cpu, memory
        for task_id, attempt, age in checks:
            task = turn.state.tasks.get(TaskId(task_id))
            if task is not None and task.worker == incarnation and task.attempt == attempt:
                task.last_check_at = None if age is None else turn.now.wall - age
