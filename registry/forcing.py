"""After the grace: CancelledError or interrupt, once more a second later, then, where it is fair, the process."""

from typing import Final

from quiesce.registry import effects
from quiesce.registry.ids import TaskId
from quiesce.registry.records import Task
from quiesce.registry.states import State as TaskState
from quiesce.registry.turn import Turn
from quiesce.registry.waiting import spared

#: Seconds between the steps of force.
STEP: Final = 1.0
#: A worker whose lease is shorter is frozen only after so many seconds of silence: it is spoken to once in a STEP.
PATIENCE: Final = 2 * STEP
#: From this step on the process may be killed.
KILL_STEP: Final = 2


def on_force_due(turn: Turn, task_id: TaskId, when: float) -> None:
    """The next step of force, due at `when`, against an attempt whose grace is over. (If it is made later, it is
    the broker that has heard nobody since.)
    """
    task = turn.state.tasks.get(task_id)
    if task is None or task.ask is None or task.state is TaskState.QUEUED:
        return
    worker = turn.state.workers[task.worker]
    turn.timers.set(("force", task_id), turn.now.tick + STEP)
    if worker.status is not None:
        return
    if not worker.attached and turn.now.tick - task.ask.heard <= turn.state.lease:
        return  # what can't reach it, or may get lost, is no step; after a restart it is on its way back
    step = task.ask.forced
    if step and not task.ask.answered:
        step = KILL_STEP  # the last one was not even acknowledged
    task.ask.forced = min(step, KILL_STEP) + 1
    if step >= KILL_STEP:
        frozen = not task.ask.answered and when - task.ask.heard > max(turn.state.lease, PATIENCE)
        why_not = spared(turn.state, task, worker, frozen=frozen)
        if why_not is None:
            task.ask.killed = True
            held = [turn.state.tasks[other] for other in worker.tasks]
            waiting: list[tuple[int, int]] = [
                (other.id, other.attempt) for other in held if _may_be_spared(other)
            ]
            turn.send(
                effects.KillWorker(worker.supervisor, worker.serial, task.id, task.attempt, waiting)
            )
            return
        if step == KILL_STEP:
            turn.log(
                "WARNING",
                f"task {task.id} {task.spawn.kind} {task.spawn.name!r} does not stop, and its process "
                f"{worker.pid} can't be killed: {why_not}",
            )
    if task.ask.answered and task.ask.delivered_at is not None:
        task.ask.heard = turn.now.tick  # it has answered all; if it is silent, it is from now on
    task.ask.answered = False
    turn.send(effects.ForceTask(worker.incarnation, task.id, task.attempt))


def _may_be_spared(task: Task) -> bool:
    """Nobody asked it, and it has not begun: it is queued again, unless the table says that it has begun."""
    return task.state is TaskState.ASSIGNED and task.ask is None
