"""shutdown_tasks: close and mark in one step, ask until heard, force after grace, report when all have ended."""

import math
from operator import itemgetter
from typing import Final

from quiesce.registry import effects, events, facts
from quiesce.registry.cycles import cycle_words, first_cycle
from quiesce.registry.ending import never_queued
from quiesce.registry.ids import Attempt, SessionId, StopId, TaskId
from quiesce.registry.matching import match
from quiesce.registry.names import undeclared_in
from quiesce.registry.records import Ask, Closure, Stop, Task
from quiesce.registry.spawning import refuse_parked, refuse_parked_by, seen_all
from quiesce.registry.turn import Turn
from quiesce.registry.waiting import held_first, still_waits, waiting_for

#: A request to stop is sent again after so many seconds without its acknowledgement.
RESEND: Final = 0.5
#: Queued tasks that one slice of a stop ends, so that nobody else waits long.
SLICE: Final = 500
#: Seconds that a stop whose time is over gives its slices, again and again.
NEXT_SLICE: Final = 0.05
#: Said after so many seconds of silence, then again after each of the other.
FIRST_WORD: Final = 1.0
NEXT_WORD: Final = 60.0
#: The session of the system's own stops.
SYSTEM: Final = SessionId(b"")


def on_stop_asked(turn: Turn, event: events.StopAsked) -> None:
    """Open a stop, or answer again one that was asked before."""
    state = turn.state
    session = state.sessions.get(event.session)
    if session is None:
        turn.send(effects.WantHello(event.session))
        return
    session.last_heard = turn.now.tick
    if event.request in session.requests:
        return
    if event.request in session.reports:
        _answer(turn, state.stops[session.reports[event.request]])
        return
    if event.request <= session.forgotten:
        text = (
            f"request {event.request} has been answered before, and its report is no longer kept; "
            "ask again, as a new request"
        )
        turn.send(effects.RefuseRequest(event.session, event.request, "QuiesceError", text))
        return
    refusal = undeclared_in(state, event.scope)
    if refusal is not None:
        turn.send(effects.RefuseRequest(event.session, event.request, *refusal))
        return
    open_stop(turn, event)


def open_stop(turn: Turn, event: events.StopAsked) -> StopId:
    """The one atomic step: the scope closes and every matching task is marked."""
    state = turn.state
    found = match(state, event.scope, event.task_id)
    caller = None
    if event.caller is not None:
        task = state.tasks.get(TaskId(event.caller[0]))
        if task is not None and task.attempt == event.caller[1] and task.id in found.held:
            caller = task.id
            found.held.remove(caller)
    stop_id = StopId(state.last_stop_id + 1)
    held: list[int] = sorted(found.held)
    turn.emit(
        facts.StopOpened(
            stop_id,
            event.session,
            event.request,
            event.scope,
            event.task_id,
            event.grace,
            event.timeout,
            event.keep_closed,
            event.hold,
            event.reason,
            event.last_spawn,
            caller,
            held,
            turn.now.wall,
            found.queued,
        )
    )
    stop = state.stops[stop_id]
    stop.asked_by = _asker(turn, event)
    for member in sorted(found.held):
        _ask(turn, state.tasks[member], _reason(stop), stop)
    refuse_parked_by(turn, found.held)
    if stop.closes:
        refuse_parked(turn, stop_id)
    if event.timeout is not None:
        turn.timers.set(("stop", stop_id), turn.now.tick + max(0.0, event.timeout))
    turn.timers.set(("word", stop_id), turn.now.tick + FIRST_WORD)
    end_queued(turn, stop)
    turn.touched.add(stop_id)
    return stop_id


def _asker(turn: Turn, event: events.StopAsked) -> tuple[TaskId, Attempt] | None:
    """The attempt inside which the call was made, if it is still there."""
    if event.caller is None:
        return None
    key = (TaskId(event.caller[0]), Attempt(event.caller[1]))
    task = turn.state.tasks.get(key[0])
    return key if task is not None and task.attempt == key[1] else None


def _reason(stop: Stop) -> str:
    return stop.reason or f"shutdown_tasks({_target(stop)})"


def end_queued(turn: Turn, stop: Stop) -> None:
    """End a slice of the stop's queued tasks: they never ran. Those that wait for their slice are in no queue."""
    state = turn.state
    members: dict[frozenset[StopId], list[TaskId]] = {}
    for batch, task_ids in state.marked.next(stop.id, SLICE):
        members.setdefault(batch.stops, []).extend(task_ids)
    for stops, together in members.items():
        first = state.stops[min(stops)]
        never_queued(turn, together, first.at, _reason(first))
    if has_queued(turn, stop):
        turn.send(effects.Again(stop.id))


def has_queued(turn: Turn, stop: Stop) -> bool:
    """Whether slices of it are still to come. Some of its queued tasks may have ended by those of others."""
    return turn.state.marked.has(stop.id)


def go_on(turn: Turn, stop_id: StopId) -> None:
    stop = turn.state.open_stops.get(stop_id)
    if stop is not None:
        end_queued(turn, stop)


def ask(turn: Turn, task: Task, reason: str, stop: Stop | None, *, timed_out: bool = False) -> None:
    """Mark a task that a worker holds, tell the worker, and set the time of force."""
    _ask(turn, task, reason, stop, timed_out=timed_out)
    refuse_parked_by(turn, (task.id,))


def _ask(
    turn: Turn, task: Task, reason: str, stop: Stop | None, *, timed_out: bool = False
) -> None:
    grace = max(0.0, turn.state.grace(task, stop))
    if task.ask is None:
        force_at = turn.now.wall + grace if grace < math.inf else None
        turn.emit(facts.TaskAsked(task.id, turn.now.wall, reason, force_at, timed_out))
        turn.timers.set(("force", task.id), turn.now.tick + grace)
        turn.timers.clear(("limit", task.id))
        heard(turn, task)
        tell(turn, task)
    else:
        _move_force(turn, task, task.ask, grace)


def heard(turn: Turn, task: Task) -> None:
    """Its worker has answered just now, or was not there to answer."""
    if task.ask is not None:
        task.ask.heard = turn.now.tick
        task.ask.answered = True


def tell(turn: Turn, task: Task) -> None:
    """Send the request, and again later until it is acknowledged. The flag is the faster way to a running
    task; the request goes also to one that has not begun.
    """
    worker = turn.state.workers[task.worker]
    if worker.status is not None or task.ask is None or task.ask.delivered_at is not None:
        return
    turn.ask_stop(worker.incarnation, (task.id, task.attempt, worker.last_assign, task.ask.reason))
    turn.raise_flag(worker.supervisor, (worker.serial, task.id, task.attempt))
    turn.timers.set(("resend", task.id), turn.now.tick + RESEND)


def _move_force(turn: Turn, task: Task, ask_: Ask, grace: float) -> None:
    """The earliest of the graces of all that asked counts."""
    when = turn.now.tick + grace + ask_.extended
    present = turn.timers.when(("force", task.id))
    if not ask_.forced and when < (math.inf if present is None else present):
        _set_force(turn, task, when, ask_.extended)


def extend(turn: Turn, task: Task, seconds: float) -> None:
    """Move the time of force, by so many seconds in all, and at most by twice the configured grace."""
    ask_ = task.ask
    present = turn.timers.when(("force", task.id))
    if ask_ is None or present is None or ask_.forced:
        return
    extended = min(seconds, 2 * turn.state.grace(task, None))
    if extended > ask_.extended:
        _set_force(turn, task, present + extended - ask_.extended, extended)


def _set_force(turn: Turn, task: Task, tick: float, extended: float) -> None:
    turn.timers.set(("force", task.id), tick)
    at = turn.now.wall + tick - turn.now.tick
    turn.emit(facts.ForceMoved(task.id, at if at < math.inf else None, extended))


def join_covering(turn: Turn, task: Task) -> None:
    """The task has come into other scopes: if one is closed it is asked to stop, and open stops wait for it.

    Leaving a scope releases nobody: stops that waited for it still do. A stop of its own does not ask it.
    """
    state = turn.state
    spawn = task.spawn
    labels = (spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
    for stop_id in state.closing(*labels):
        closure = state.closures[stop_id]
        if closure.caller == task.id:
            continue
        stop = state.open_stops.get(stop_id)
        if stop is None:
            ask(turn, task, closure.reason or f"the scope [{closure.scope}] is closed", None)
            continue
        if task.id not in stop.held:
            turn.emit(facts.StopJoined(stop.id, task.id))
        ask(turn, task, _reason(stop), stop)


def check(turn: Turn, stop_id: StopId) -> None:
    """Make the report if every task has evidence of its end and all spawns that came before have arrived."""
    state = turn.state
    stop = state.open_stops.get(stop_id)
    if stop is None or stop.held or has_queued(turn, stop):
        return
    if not seen_all(state.sessions.get(stop.session), stop.last_spawn):
        return
    if state.certain_at is not None and not _is_system(turn, stop):
        return
    _end(turn, stop, timed_out=False)
    if stop.closes and any(
        stop.scope.covers(closure.scope) for closure in state.timed_out.values()
    ):
        turn.emit(facts.ScopesReopened(stop.scope, True))


def _is_system(turn: Turn, stop: Stop) -> bool:
    closure = turn.state.closures.get(stop.id)
    return closure is not None and closure.system


def on_certain_due(turn: Turn) -> None:
    """By now all is dead that was started before and is not known here: stops may be answered."""
    turn.state.certain_at = None
    turn.touched.update(turn.state.open_stops)


def _end(turn: Turn, stop: Stop, *, timed_out: bool) -> None:
    turn.timers.clear(("stop", stop.id))
    turn.timers.clear(("word", stop.id))
    if turn.now.wall - stop.at > FIRST_WORD:
        left = f", {len(stop.held)} are left" if timed_out else ""
        turn.log(
            "INFO",
            f"stop {stop.id} of [{_target(stop)}] {'timed out' if timed_out else 'is complete'} after "
            f"{turn.now.wall - stop.at:.1f} s: {_many(len(stop.rows))} ended{left}",
        )
    waiting = [waiting_for(turn.state, turn.state.tasks[member]) for member in sorted(stop.held)]
    turn.emit(facts.StopEnded(stop.id, timed_out, max(turn.now.wall, stop.at), waiting))
    _answer(turn, stop)


def _answer(turn: Turn, stop: Stop) -> None:
    if stop.session not in turn.state.sessions:
        return
    turn.send(
        effects.AnswerStop(
            stop.session,
            stop.request,
            stop.id,
            stop.timed_out,
            stop.at,
            stop.completed_at or turn.now.wall,
            effects.Report(
                sorted(stop.rows, key=itemgetter(0)),
                [] if stop.caller is None else [stop.caller],
                stop.collateral,
                stop.left,
            ),
        )
    )


def _many(tasks: int) -> str:
    return f"{tasks} task{'s' * (tasks != 1)}"


def _target(stop: Stop) -> str:
    return str(stop.scope) if stop.task_id is None else f"task {stop.task_id}"


# --- closures -------------------------------------------------------------------------------------


def on_release_asked(turn: Turn, event: events.ReleaseAsked) -> None:
    """The body of a block is done. A block that is kept for want of this word is released in a later session, too:
    its program was silent for too long, and is there again.
    """
    session = turn.state.sessions.get(event.session)
    if session is None:
        turn.send(effects.WantHello(event.session))
        return
    closure = turn.state.closures.get(event.stop_id)
    if closure is not None and (event.stop_id in session.blocks or _left_behind(closure)):
        turn.emit(facts.BlockReleased(event.stop_id, closure.keep))
    turn.send(effects.AnswerDone(event.session, event.request))


def _left_behind(closure: Closure) -> bool:
    """Whether it is that of a block whose session is gone; nothing else is kept that was not to be."""
    return closure.holder == "kept" and not closure.keep


def on_reopen_asked(turn: Turn, event: events.ReopenAsked) -> None:
    session = turn.state.sessions.get(event.session)
    if session is None:
        turn.send(effects.WantHello(event.session))
        return
    if event.request <= session.reopened:
        # It was done before, and is sent again. What has been closed since then stays so.
        turn.send(effects.AnswerDone(event.session, event.request))
        return
    if turn.state.stopping:
        text = "nothing is reopened: the whole system stops, and what it has stopped stays closed"
        turn.send(effects.RefuseRequest(event.session, event.request, "ScopeClosedError", text))
        return
    refusal = undeclared_in(turn.state, event.scope)
    if refusal is not None:
        turn.send(effects.RefuseRequest(event.session, event.request, *refusal))
        return
    turn.emit(facts.ScopesReopened(event.scope, False, event.session, event.request))
    turn.send(effects.AnswerDone(event.session, event.request))


# --- time -----------------------------------------------------------------------------------------


def on_resend_due(turn: Turn, task_id: TaskId) -> None:
    """The worker has not acknowledged the request yet."""
    tell(turn, turn.state.tasks[task_id])


def on_stop_due(turn: Turn, stop_id: StopId) -> None:
    """The stop's own timeout is over: the report says what is left, and the scope stays closed."""
    stop = turn.state.open_stops[stop_id]
    if has_queued(turn, stop):
        # Its queued tasks can't run any more, and end in a moment: the report shall say so.
        turn.timers.set(("stop", stop_id), turn.now.tick + NEXT_SLICE)
    else:
        _end(turn, stop, timed_out=True)


def on_word_due(turn: Turn, stop_id: StopId) -> None:
    """Say what a stop still waits for, and have the stacks of the first said too."""
    stop = turn.state.open_stops[stop_id]
    turn.log("INFO", *still_waits(turn.state, stop, turn.now.wall))
    held = held_first(turn.state, stop)
    if held:
        turn.send(effects.StillWaiting(stop_id, held))
    _tell_cycle(turn, stop)
    turn.timers.set(("word", stop_id), turn.now.tick + NEXT_WORD)


def _tell_cycle(turn: Turn, stop: Stop) -> None:
    """Once: tasks that wait for each other won't end by themselves."""
    if stop.cycle_told:
        return
    state = turn.state
    held = sorted(stop.held)  # who is queued waits for nobody
    cycle = first_cycle(state, (state.tasks[member] for member in held))
    if cycle:
        stop.cycle_told = True
        turn.log(
            "WARNING", f"stop {stop.id} of [{_target(stop)}] is held up by {cycle_words(cycle)}"
        )
