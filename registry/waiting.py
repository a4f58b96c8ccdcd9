"""What holds a task up, in words: for listings, for reports of stops that ran out of time, for the log."""

import heapq
from typing import Final

from quiesce.registry.cycles import asked_for, cycle_of, cycle_words
from quiesce.registry.ids import StopId, TaskId
from quiesce.registry.records import Closure, Stop, Task, Worker
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

#: Tasks that are named where there may be many, and those of them whose stacks are shown.
NAMED: Final = 5
STACKS: Final = 3


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
        others = _others(state, task)
        beside += f"; it waits for {others}" if others else ""
        if ask.delivered_at is None:
            return f"its worker, to acknowledge the request to stop{beside}"
        if ask.observed_at is None:
            return f"the task, to look: the request was delivered, never observed{beside}"
        return f"the task, to end: it has seen the request{beside}"
    if task.state is TaskState.RUNNING:
        return _others(state, task)
    if task.state is not TaskState.QUEUED:
        return ""
    runtime = task.spawn.runtime
    if runtime not in state.runtimes:
        return f"runtime {runtime!r}, which the configuration does not declare any more"
    if not state.pool[runtime]:
        return f"a worker of runtime {runtime!r}: none is connected"
    kind = task.spawn.kind
    if not (state.has_room(kind) and state.allowed(task.tenant_id, kind)):
        return f"its kind's limit: max_running or max_running_per_tenant of {kind!r}"
    return f"a free slot of runtime {runtime!r}"


def spared(state: State, task: Task, worker: Worker, *, frozen: bool) -> str | None:
    """Why this worker may not be killed for this task, or None if it may.

    It may when nobody else runs in it (what has not begun is queued again), when the others are being forced
    too, when the runtime allows it, or when it is `frozen`: for as long as a lease lasts it has answered to
    nothing that it was told, so its other tasks are beyond help too. Never when that would take a task marked
    shutdown_process_on_error that is not being forced itself.
    """
    neighbours = [
        state.tasks[other]
        for other in worker.tasks
        if other != task.id and state.tasks[other].state is TaskState.RUNNING
    ]
    innocent = [other for other in neighbours if other.ask is None or other.ask.forced == 0]
    for other in innocent:
        if other.spawn.shutdown_process_on_error:
            return f"task {other.id}, marked shutdown_process_on_error, runs there too"
    if innocent and not frozen and not state.runtime(worker.runtime).kill_neighbours:
        named = ", ".join(f"{other.id} {other.spawn.name!r}" for other in innocent[:3])
        others = "1 other task runs" if len(innocent) == 1 else f"{len(innocent)} other tasks run"
        return f"{others} there too ({named}), and kill_neighbours of runtime {worker.runtime!r} is false"
    return None


# --- other tasks ----------------------------------------------------------------------------------


def _others(state: State, task: Task) -> str:
    """The tasks that a running one waits for: in `result` and its like, or in a stop; "" if it waits for none."""
    stops = asked_for(state, task)
    if not task.waits_on and not stops:
        return ""
    cycle = cycle_of(state, task)
    if cycle:
        return cycle_words(cycle)
    parts = []
    ends = [state.tasks[other] for other in task.waits_on if other in state.tasks]
    if ends:
        parts.append(f"the end{'s' * (len(ends) > 1)} of {_counted(ends, len(ends))}")
    for stop in stops:
        left = state.left_of(stop)
        of_what = f"{left} task{'s' * (left != 1)}" if left else "spawns that came before it"
        parts.append(f"stop {stop.id} of [{target(stop)}]: {of_what}")
    return "; ".join(parts)


def _counted(tasks: list[Task], total: int) -> str:
    """ "task 3 'a'", "tasks 3 'a', 4 'b'"; of many, the first few."""
    names = ", ".join(f"{task.id} {task.spawn.name!r}" for task in tasks[:NAMED])
    more = f" and {total - NAMED} more" if total > NAMED else ""
    return f"task{'s' * (total != 1)} {names}{more}"


# --- stops ----------------------------------------------------------------------------------------


def target(stop: Stop) -> str:
    """What a stop is of."""
    return str(stop.scope) if stop.task_id is None else f"task {stop.task_id}"


def still_waits(state: State, stop: Stop, wall: float) -> list[str]:
    """What is left of a stop: the lines of it, one for each of the first tasks."""
    left = state.left_of(stop)
    what = f"{left} task{'s' * (left != 1)}" if left else "spawns that its caller sent before it"
    head = f"stop {stop.id} of [{target(stop)}] still waits for {what}"
    lines = [
        f"  {_line(state, state.tasks[member], wall)}" for member in state.first_left(stop, NAMED)
    ]
    if left > NAMED:
        lines.append(f"  and {left - NAMED} more")
    return [f"{head}:", *lines] if lines else [head]


def _line(state: State, task: Task, wall: float) -> str:
    """Who it is, where, and what is known of how it gets on."""
    worker = state.workers.get(task.worker)
    labels = "/".join(each for each in (task.tenant_id, task.timeline_id) if each is not None)
    words = f"{task.id}.{task.attempt} {task.spawn.kind} {task.spawn.name!r}"
    words += f" of {labels}" if labels else ""
    if worker is not None:
        words += f" in process {worker.pid} on {worker.host}"
    parts = [f"waits for {waiting_for(state, task) or 'nothing that is known'}"]
    if task.state is TaskState.RUNNING:
        at = task.last_check_at
        parts.append(
            "no look for a request is known"
            if at is None
            else f"last looked {max(0.0, wall - at):.1f} s ago"
        )
    if task.progress is not None:
        done, total, note = task.progress
        count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        parts.append(f"progress {count} {note}".rstrip())
    return f"{words}: {'; '.join(parts)}"


def held_first(state: State, stop: Stop) -> list[TaskId]:
    """The first tasks that a stop waits for and a worker holds: those whose stacks are worth a look."""
    return heapq.nsmallest(STACKS, stop.held)


def holding(state: State, stop_id: StopId, closure: Closure) -> str:
    """What a closed scope waits for until it opens; "" for what only `reopen` opens."""
    stop = state.open_stops.get(stop_id)
    if stop is not None:
        first = [state.tasks[member] for member in state.first_left(stop, NAMED)]
        if not first:
            return "spawns that its caller sent before it"
        return _with_reasons(state, first, state.left_of(stop))
    if closure.holder == "block":
        return "the end of its stopped() block"
    left = [state.tasks[member] for member in closure.left if member in state.tasks]
    return f"left behind: {_with_reasons(state, left[:NAMED], len(left))}" if left else ""


def _with_reasons(state: State, first: list[Task], total: int) -> str:
    count = f"{total} task{'s' * (total != 1)}"
    names = ", ".join(
        f"{task.id} {task.spawn.name!r} ({waiting_for(state, task) or task.state})"
        for task in first
    )
    more = f" and {total - NAMED} more" if total > NAMED else ""
    return f"{count}: {names}{more}"
