"""Applying the facts of stops and closures; `apply` calls it and says what holds for both."""

from typing import Final, cast

from quiesce.registry import facts
from quiesce.registry.ids import RequestNumber, SessionId, StopId, TaskId
from quiesce.registry.matching import listed, mark, match
from quiesce.registry.moving import RegistryFault
from quiesce.registry.records import Closure, Session, Stop, Task, stopped_row
from quiesce.registry.state import State
from quiesce.registry.states import Evidence, Outcome
from quiesce.registry.stop_history import THE_SYSTEM, remembered

#: How many ended stops a session may ask for again, and how many rows their reports may have together.
#: (The last one is kept whatever its size.)
REPORTS_KEPT: Final = 64
ROWS_KEPT: Final = 100_000


def stop_opened(state: State, fact: facts.StopOpened) -> None:
    stop_id = StopId(fact.stop_id)
    state.last_stop_id = stop_id
    caller = state.tasks.get(TaskId(fact.caller)) if fact.caller is not None else None
    stop = Stop(
        stop_id,
        session=SessionId(fact.session),
        request=RequestNumber(fact.request),
        scope=fact.scope,
        task_id=None if fact.task_id is None else TaskId(fact.task_id),
        grace=fact.grace,
        timeout=fact.timeout,
        keep_closed=fact.keep_closed,
        hold=fact.hold,
        reason=fact.reason,
        last_spawn=fact.last_spawn,
        caller=None if caller is None else stopped_row(caller),
        held=cast("list[TaskId]", fact.members),
        at=fact.at,
    )
    asker = state.sessions.get(stop.session)
    stop.by = THE_SYSTEM if asker is None else f"process {asker.pid} on {asker.host}"
    state.stops[stop_id] = stop
    state.open_stops[stop_id] = stop
    if fact.queued is None:  # an older journal, where members are all
        found = listed(stop.held & state.held, stop.held - state.held)
        stop.held = found.held
    else:
        found = match(state, stop.scope, stop.task_id)
        if found.queued != fact.queued:
            raise RegistryFault(
                f"stop {stop_id} matched {fact.queued} queued tasks, and now matches {found.queued}"
            )
    mark(state, found, stop_id)
    for member in stop.held:
        _wait_for(state, state.tasks[member], stop_id)
    if stop.closes:
        closure = Closure(
            fact.scope,
            fact.reason,
            fact.at,
            keep=fact.keep_closed,
            caller=None if caller is None else caller.id,
            system=not fact.session,
        )
        state.closures[stop_id] = closure
        state.closed.setdefault(closure.scope, set()).add(stop_id)
    session = state.sessions.get(stop.session)
    if session is not None:
        session.requests[stop.request] = stop_id


def stop_joined(state: State, fact: facts.StopJoined) -> None:
    stop_id, task_id = StopId(fact.stop_id), TaskId(fact.task_id)
    state.stops[stop_id].held.add(task_id)
    _wait_for(state, state.tasks[task_id], stop_id)


def _wait_for(state: State, task: Task, stop_id: StopId) -> None:
    state.wait_for(task.id, stop_id)
    if task.ask is not None:
        task.ask.stopped = True


def task_collateral(state: State, fact: facts.TaskCollateral) -> None:
    task = state.tasks[TaskId(fact.task_id)]
    row = stopped_row(task, str(Outcome.CRASHED), str(Evidence.REAPED), fact.exit_status, fact.at)
    state.stops[StopId(fact.stop_id)].collateral.append(row)


def stop_ended(state: State, fact: facts.StopEnded) -> None:
    stop = state.open_stops.pop(StopId(fact.stop_id))
    stop.open = False
    stop.timed_out = fact.timed_out
    stop.completed_at = fact.at
    session = state.sessions.get(stop.session)
    remaining = tuple(sorted(stop.held))
    stop.held.clear()
    for member, waiting_for in zip(remaining, fact.waiting, strict=True):
        task = state.tasks[member]
        state.wait_no_more(member, stop.id)
        stop.left.append(stopped_row(task)._replace(waiting_for=waiting_for))
    ended = state.stops_ended_now[stop.id] = remembered(stop)
    state.stop_history.append(ended)
    if stop.closes:
        closure = state.closures[stop.id]
        if fact.timed_out:
            closure.holder = "timed-out"
            closure.left = remaining
            state.timed_out[stop.id] = closure
        elif stop.hold and session is not None:
            closure.holder = "block"
            session.blocks.add(stop.id)
        elif stop.keep_closed:
            closure.holder = "kept"
        else:
            _open(state, stop.id)
    if session is None:
        del state.stops[stop.id]
        return
    del session.requests[stop.request]
    session.reports[stop.request] = stop.id
    _forget_reports(state, session)


def _forget_reports(state: State, session: Session) -> None:
    rows = sum(len(state.stops[stop_id].rows) for stop_id in session.reports.values())
    while len(session.reports) > 1 and (len(session.reports) > REPORTS_KEPT or rows > ROWS_KEPT):
        oldest = next(iter(session.reports))
        stop = state.stops.pop(session.reports.pop(oldest))
        rows -= len(stop.rows)
        session.forgotten = max(session.forgotten, oldest)


def _open(state: State, stop_id: StopId) -> None:
    closure = state.closures.pop(stop_id, None)
    state.timed_out.pop(stop_id, None)
    if closure is not None:
        stops = state.closed[closure.scope]
        stops.remove(stop_id)
        if not stops:
            del state.closed[closure.scope]


def block_released(state: State, fact: facts.BlockReleased) -> None:
    stop_id = StopId(fact.stop_id)
    for session in state.sessions.values():
        session.blocks.discard(stop_id)
    if fact.kept:
        state.closures[stop_id].holder = "kept"
    else:
        _open(state, stop_id)


def scopes_reopened(state: State, fact: facts.ScopesReopened) -> None:
    session = state.sessions.get(SessionId(fact.session))
    if session is not None:
        session.reopened = fact.request
    if fact.timed_out_only:
        for stop_id, closure in list(state.timed_out.items()):
            if not fact.scope.covers(closure.scope):
                continue
            if closure.keep:
                closure.holder = "kept"
                closure.left = ()
                del state.timed_out[stop_id]
            else:
                _open(state, stop_id)
        return
    for stop_id, closure in list(state.closures.items()):
        if closure.holder in ("timed-out", "kept") and fact.scope.covers(closure.scope):
            _open(state, stop_id)


def system_goes_on(state: State) -> None:
    """The stop of the whole system is over: what it closed is open. Its own stops run to their end."""
    for stop_id, closure in list(state.closures.items()):
        if closure.system and stop_id in state.open_stops:
            closure.keep = state.stops[stop_id].keep_closed = False
        elif closure.system:
            _open(state, stop_id)


def sessions_stops(state: State, session: Session) -> None:
    """The session is gone: its open stops go on as nobody's, its reports are wanted no more."""
    for stop_id in session.requests.values():
        state.stops[stop_id].session = SessionId(b"")
    for stop_id in session.reports.values():
        del state.stops[stop_id]
