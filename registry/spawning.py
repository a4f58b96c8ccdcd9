"""Spawns: checked, registered, refused, joined to the holder of their unique key, or parked behind it."""

from collections.abc import Iterable
from difflib import get_close_matches

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import SessionId, SpawnNumber, TaskId
from quiesce.registry.records import Session, size_of
from quiesce.registry.rows import SpawnAnswer, SpawnRow
from quiesce.registry.scope import Scope
from quiesce.registry.state import State
from quiesce.registry.turn import Turn

Refusal = tuple[str, str]


def on_spawns_asked(turn: Turn, event: events.SpawnsAsked) -> None:
    """Decide on each spawn that is new; answer again what was decided before."""
    session = turn.state.sessions.get(event.session)
    if session is None or not event.rows:
        turn.send(effects.WantHello(event.session))
        return
    session.last_heard = turn.now.tick
    if event.rows[0].number > session.spawned + 1:
        turn.send(effects.WantHello(event.session))
        return
    new = [row for row in event.rows if row.number > session.spawned]
    for row in event.rows:
        if row.number <= session.spawned:
            answer = session.answers.get(row.number)
            if answer is not None:
                turn.answer_spawn(event.session, answer)
    if event.atomic and new:
        refusal = _whole(turn.state, new)
        if refusal is not None:
            for row in new:
                _refuse(turn, event.session, row.number, refusal)
            new = []
    for row in new:
        decide(turn, event.session, row)
    # Stops of this session that waited for these spawns to arrive are looked at again.
    turn.touched.update(session.requests.values())


def decide(turn: Turn, session: SessionId, row: SpawnRow) -> None:
    """Register one spawn, or say why not."""
    state = turn.state
    refusal = _refusal(state, row)
    if refusal is None and row.unique_key is not None:
        holder = state.unique.get((row.kind, row.tenant_id, row.timeline_id, row.unique_key))
        if holder is not None:
            if state.tasks[holder].ask is not None:
                turn.emit(facts.SpawnParked(session, holder, row))
                return
            turn.emit(facts.SpawnJoined(session, row.number, holder))
            turn.answer_spawn(session, SpawnAnswer(row.number, holder, None, ""))
            return
    if refusal is None and state.room(row.runtime) < 1:
        refusal = _full(state, row, 1)
    if refusal is not None:
        _refuse(turn, session, row.number, refusal)
        return
    task_id = TaskId(state.last_task_id + 1)
    turn.emit(facts.TaskRegistered(task_id, session, row.number, turn.now.wall, row))
    turn.answer_spawn(session, SpawnAnswer(row.number, task_id, None, ""))
    turn.dirty.add(row.runtime)


def _refuse(turn: Turn, session: SessionId, number: SpawnNumber, refusal: Refusal) -> None:
    turn.emit(facts.SpawnRefused(session, number, *refusal))
    turn.answer_spawn(session, SpawnAnswer(number, TaskId(0), *refusal))


def _whole(state: State, rows: list[SpawnRow]) -> Refusal | None:
    """Why none of these rows may be spawned, if one may not."""
    for row in rows:
        refusal = _refusal(state, row)
        if refusal is not None:
            return refusal
    row = rows[0]
    if state.room(row.runtime) < len(rows):
        return _full(state, row, len(rows))
    return None


def _refusal(state: State, row: SpawnRow) -> Refusal | None:
    if row.runtime not in state.runtimes:
        return "UnknownRuntimeError", unknown("runtime", row.runtime, state.runtimes)
    if row.kind not in state.kinds:
        return "UnknownKindError", unknown("kind", row.kind, state.kinds)
    if row.parent is not None:
        parent = state.tasks.get(row.parent[0])
        if parent is None or parent.attempt != row.parent[1]:
            return (
                "TaskCancelledError",
                f"the attempt {row.parent[0]}.{row.parent[1]} that made this spawn has ended, "
                "so nothing was started",
            )
    size = size_of(row.function, row.arguments)
    if size > state.payload_limit:
        return (
            "PayloadTooLargeError",
            f"nothing was started: function and arguments of {row.name!r} have {size} bytes, the limit "
            f"is {state.payload_limit}; pass a path or a reference instead, or raise payload_limit",
        )
    closure = state.closing(row.kind, row.tenant_id, row.timeline_id, row.runtime)
    if closure is not None:
        return "ScopeClosedError", closed_text(row, closure.scope, closure.holder, closure.reason)
    return None


def closed_text(row: SpawnRow, scope: Scope, holder: str, reason: str) -> str:
    """Why a closed scope refuses, and what opens it."""
    opens = {
        "stop": "it opens when that stop has ended",
        "block": "it opens when the stopped() block has ended",
        "kept": "reopen() opens it",
        "timed-out": "that stop timed out: a stop of it that succeeds, or reopen(), opens it",
    }[holder]
    why = f" ({reason})" if reason else ""
    return (
        f"nothing was started: {row.kind} {row.name!r} of tenant {row.tenant_id!r}, timeline "
        f"{row.timeline_id!r} lies in the closed scope [{scope}]{why}; {opens}"
    )


def _full(state: State, row: SpawnRow, wanted: int) -> Refusal:
    limit = state.runtimes[row.runtime].max_queue
    return (
        "QueueFullError",
        f"nothing was started: the queue of runtime {row.runtime!r} holds "
        f"{len(state.queues[row.runtime])} of at most {limit} tasks, and {wanted} more were asked for; "
        "wait for some to end, or raise max_queue",
    )


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The text of an unknown name: the nearest known, and all of them."""
    known = sorted(known)
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}{hint} Known: {', '.join(known)}"


def seen_all(session: Session | None, last_spawn: int) -> bool:
    """Whether all spawns up to this number have arrived; a session that is gone sends no more."""
    return session is None or session.spawned >= last_spawn
