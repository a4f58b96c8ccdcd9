"""What holds a task up, in words: for listings, for reports of stops that ran out of time, for the log."""

from quiesce.registry.records import Task, Worker
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState


def waiting_for(state: State, task: Task) -> str:
    """Why a task is not running, or has not ended though asked; "" if nothing holds it up."""
    if task.lingering:
        return f"what it began: {task.lingering}"
    ask = task.ask
    if ask is not None:
        worker = state.workers.get(task.worker)
        why_not = None
        if worker is not None and ask.forced:
            why_not = spared(state, task, worker, frozen=False)
        beside = (
            f"; its grace is over, but its process can't be killed: {why_not}" if why_not else ""
        )
        if ask.delivered_at is None:
            return f"its worker, to acknowledge the request to stop{beside}"
        if ask.observed_at is None:
            return f"the task, to look: the request was delivered, never observed{beside}"
        return f"the task, to end: it has seen the request{beside}"
    if task.state is not TaskState.QUEUED:
        return ""
    runtime = task.spawn.runtime
    if runtime not in state.runtimes:
        return f"runtime {runtime!r}, which the configuration does not declare any more"
    if not state.pool[runtime]:
        return f"a worker of runtime {runtime!r}: none is connected"
    if not state.allowed(task.tenant_id, task.spawn.kind):
        return f"its kind's limit: max_running or max_running_per_tenant of {task.spawn.kind!r}"
    return f"a free slot of runtime {runtime!r}"


def spared(state: State, task: Task, worker: Worker, *, frozen: bool) -> str | None:
    """Why this worker may not be killed for this task, or None if it may.

    It may when nobody else runs in it (what has not begun is queued again), when the others are being forced
    too, when the runtime allows it, or when it is `frozen`: for as long as a lease lasts it has answered to
    nothing, so its other tasks are beyond help too. Never when that would take an unasked task marked
    shutdown_process_on_error.
    """
    neighbours = [
        state.tasks[other]
        for other in worker.tasks
        if other != task.id and state.tasks[other].state is TaskState.RUNNING
    ]
    innocent = [other for other in neighbours if other.ask is None or other.ask.forced == 0]
    for other in innocent:
        if other.spawn.shutdown_process_on_error and other.ask is None:
            return f"task {other.id}, marked shutdown_process_on_error, runs there too"
    if innocent and not frozen and not state.runtime(worker.runtime).kill_neighbours:
        named = ", ".join(f"{other.id} {other.spawn.name!r}" for other in innocent[:3])
        others = "1 other task runs" if len(innocent) == 1 else f"{len(innocent)} other tasks run"
        return f"{others} there too ({named}), and kill_neighbours of runtime {worker.runtime!r} is false"
    return None
