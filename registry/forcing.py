"""After the grace: CancelledError or interrupt, once more a second later, then, where it is fair, the process."""

from typing import Final

from quiesce.registry import effects
from quiesce.registry.ids import TaskId
from quiesce.registry.records import Task, Worker
from quiesce.registry.states import State as TaskState
from quiesce.registry.turn import Turn

#: Seconds between the steps of force.
STEP: Final = 1.0
#: From this step on the process may be killed.
KILL_STEP: Final = 2


def on_force_due(turn: Turn, task_id: TaskId) -> None:
    """The next step of force against an attempt whose grace is over."""
    task = turn.state.tasks.get(task_id)
    if task is None or task.ask is None or task.state is TaskState.QUEUED:
        return
    worker = turn.state.workers[task.worker]
    turn.timers.set(("force", task_id), turn.now.tick + STEP)
    if worker.status is not None:
        return
    step = task.ask.forced
    task.ask.forced = min(step, KILL_STEP) + 1
    if step >= KILL_STEP:
        why_not = _spared(turn, task, worker)
        if why_not is None:
            task.ask.killed = True
            turn.send(effects.KillWorker(worker.supervisor, worker.serial, task.id, task.attempt))
            return
        if step == KILL_STEP:
            turn.log(
                "WARNING",
                f"task {task.id} {task.spawn.kind} {task.spawn.name!r} does not stop, and its process "
                f"{worker.pid} can't be killed: {why_not}",
            )
    turn.send(effects.ForceTask(worker.incarnation, task.id, task.attempt))


def _spared(turn: Turn, task: Task, worker: Worker) -> str | None:
    """Why this worker may not be killed for this task, or None if it may.

    It may when nobody else is in it, when the others are being forced too, or when the runtime allows it;
    never when that would take an unasked task marked shutdown_process_on_error.
    """
    neighbours = [turn.state.tasks[other] for other in worker.tasks if other != task.id]
    innocent = [other for other in neighbours if other.ask is None or other.ask.forced == 0]
    for other in innocent:
        if other.spawn.shutdown_process_on_error and other.ask is None:
            return f"task {other.id}, marked shutdown_process_on_error, runs there too"
    if innocent and not turn.state.runtimes[worker.runtime].kill_neighbours:
        named = ", ".join(f"{other.id} {other.spawn.name!r}" for other in innocent[:3])
        return (
            f"{len(innocent)} other tasks run there too ({named}), and kill_neighbours of runtime "
            f"{worker.runtime!r} is false"
        )
    return None
