"""The beginning of an epoch: what was recovered is taken up again.

The facts of the epochs before have given the state. What no fact speaks of (timers, who can be reached) begins
anew here: every deadline is set by the wall times in the facts, so a stop that had timed out while there was no
broker times out now. (Not so the time that a task may run: it may have ended meanwhile.) Whoever lives says
hello again; until then a worker is silent, which proves nothing. What the silence of a supervisor proves in the
end, its lease says.
"""

from quiesce.registry import effects, events, facts, leasing
from quiesce.registry.attempts import set_limit
from quiesce.registry.pools import LATE, supervisor_died
from quiesce.registry.records import Stop, Supervisor, Task
from quiesce.registry.sessions import LOOK
from quiesce.registry.states import State as TaskState
from quiesce.registry.stopping import FIRST_WORD, RESEND, has_queued, heard
from quiesce.registry.turn import Turn


def on_epoch_began(turn: Turn, event: events.EpochBegan) -> None:
    """Take up again what the facts say, and bury what the caller has proved dead."""
    state = turn.state
    bound = max(state.lease_bound, state.epoch_bound)
    turn.emit(
        facts.EpochStarted(
            event.epoch,
            turn.now.wall,
            turn.now.tick,
            event.boot_id,
            event.run,
            state.lease_bound,
        )
    )
    if not event.complete:
        state.certain_at = turn.now.tick + bound
        turn.timers.set(("certain", 0), state.certain_at)
        turn.log(
            "WARNING",
            "the journal may miss what the broker did last before it ended: what it had started may still run, "
            f"so no stop is answered within the next {bound:g} s",
        )
    for session in state.sessions.values():
        session.last_heard = turn.now.tick
        turn.timers.set(("session", session.id), turn.now.tick + LOOK)
    for worker in state.workers.values():
        worker.attached = False
        for task_id in worker.orphans:
            turn.timers.set(("late", task_id), turn.now.tick + LATE)
    for task in state.tasks.values():
        if task.state is not TaskState.QUEUED and state.workers[task.worker].status is None:
            _resume_task(turn, task)
    for supervisor in list(state.supervisors.values()):
        if supervisor.run and supervisor.run in event.swept:
            _swept(turn, supervisor)
        else:
            # What its workers run need not be known here; its lease is over before the first stop is answered.
            supervisor.disowned = not event.complete
            leasing.resume(turn, supervisor)
    for stop in list(state.open_stops.values()):
        _resume_stop(turn, stop)


def _resume_task(turn: Turn, task: Task) -> None:
    ask, wall = task.ask, turn.now.wall
    if ask is None:
        if task.started_at is not None:
            # Meanwhile it may have ended. If not, its worker says how long it has run, or answers nothing.
            age = max(0.0, wall - task.started_at)
            set_limit(turn, task, age, at_least=turn.state.lease)
        return
    heard(turn, task)
    if ask.delivered_at is None:
        turn.timers.set(("resend", task.id), turn.now.tick + RESEND)
    if ask.force_at is not None:
        left = _left(ask.at, ask.force_at, wall)
        turn.timers.set(("force", task.id), turn.now.tick + left)


def _left(since: float, until: float, wall: float) -> float:
    """Seconds of this span that are left. All of it at most: the wall clock may have been set back meanwhile."""
    return min(max(0.0, until - wall), until - since)


def _resume_stop(turn: Turn, stop: Stop) -> None:
    turn.touched.add(stop.id)
    turn.timers.set(("word", stop.id), turn.now.tick + FIRST_WORD)
    if stop.timeout is not None:
        left = _left(stop.at, stop.at + max(0.0, stop.timeout), turn.now.wall)
        turn.timers.set(("stop", stop.id), turn.now.tick + left)
    if has_queued(turn, stop):
        turn.send(effects.Again(stop.id))


def _swept(turn: Turn, supervisor: Supervisor) -> None:
    turn.log(
        "WARNING",
        f"the pool {supervisor.runtime!r} of an earlier run (supervisor pid {supervisor.pid}) is dead, with all "
        "that it had started",
    )
    supervisor_died(turn, supervisor, [], fenced=False)
