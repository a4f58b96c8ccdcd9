"""Spawns: checked, registered, refused, joined to the holder of their unique key, or parked behind it."""

from collections.abc import Collection, Sequence, Sized

from quiesce.registry import effects, events, facts, sessions
from quiesce.registry.answers import told
from quiesce.registry.ids import SessionId, SpawnNumber, StopId, TaskId
from quiesce.registry.limits import LABEL_LIMIT
from quiesce.registry.names import Refusal, undeclared
from quiesce.registry.printable import printable
from quiesce.registry.records import Closure, Session
from quiesce.registry.rows import AlikeSpawns, SpawnAnswer, SpawnRow, alike_spawns, one_by_one
from quiesce.registry.state import State
from quiesce.registry.turn import Turn


def on_spawns_asked(turn: Turn, event: events.SpawnsAsked) -> None:
    """Decide on each spawn that is new; answer again what was decided before."""
    session, rows = sessions.heard(turn, event.session, event.answered_through), event.rows
    if session is None:
        return
    if len(rows) == 1 and isinstance(rows[0], SpawnRow) and rows[0].number == session.spawned + 1:
        decide(turn, event.session, rows[0])
    elif not _decide_many(turn, event, session):
        return
    # Stops of this session that waited for these spawns to arrive are looked at again.
    turn.touched.update(session.requests.values())
    sessions.forget_answers(turn, session, event.answered_through)


def _decide_many(turn: Turn, event: events.SpawnsAsked, session: Session) -> bool:
    """False, and nothing is decided: some between these and those before are missing, and must be sent again."""
    last = session.spawned
    rows: Sequence[SpawnRow | AlikeSpawns] = event.rows
    again: list[SpawnRow] = []
    if rows and _number(rows[0]) <= last:  # some of them, perhaps all, have come before
        single = list[SpawnRow](one_by_one(rows))
        again = [row for row in single if row.number <= last]
        rows = [row for row in single if row.number > last]
    runs = alike_spawns(rows)
    count = 0
    for run in runs:
        if run.row.number != last + 1 + count:
            turn.send(effects.WantHello(event.session))
            return False
        count += run.many
    for row in again:
        answer = session.answers.get(row.number)
        if answer is not None:
            turn.answer_spawn(event.session, answer)
    if event.atomic and runs:
        refusal = _whole(turn.state, runs, count)
        if refusal is not None:
            for number in range(last + 1, last + 1 + count):
                _refuse(turn, event.session, SpawnNumber(number), refusal)
            runs = []
    for run in runs:
        if run.many < turn.state.alike or not _register(turn, event.session, run):
            for row in run.one_by_one():
                decide(turn, event.session, row)
    return True


def _number(row: SpawnRow | AlikeSpawns) -> int:
    return row.row.number if isinstance(row, AlikeSpawns) else row.number


def on_room_said(turn: Turn, event: events.RoomSaid) -> None:
    """Whether tasks can be noted; those that are registered are never touched by it."""
    if turn.state.full is event.room:
        turn.state.full = not event.room
        lacks = f"has no room on its disk: spawns are refused until it has {turn.state.room}"
        turn.log("WARNING", f"the journal {'has room again' if event.room else lacks}")


def _register(turn: Turn, session: SessionId, run: AlikeSpawns) -> bool:
    """Register spawns that are alike, all at once; False if that takes a closer look at each."""
    state, row, count = turn.state, run.row, run.many
    if row.unique_key is not None or _refusal(state, run.largest()):
        return False
    if _full(state, row, count):
        return False
    numbers = range(row.number, row.number + count)
    task_ids = range(state.last_task_id + 1, state.last_task_id + 1 + count)
    turn.emit(
        facts.TasksRegistered(
            *(task_ids[0], task_ids[-1], session, row.number),
            *(turn.now.wall, row, list[Sized](run.arguments)),
        )
    )
    turn.answer_spawns(session, told(numbers, task_ids))
    turn.dirty.add(row.runtime)
    return True


def decide(turn: Turn, session: SessionId, row: SpawnRow) -> None:
    """Register one spawn, or say why not."""
    state = turn.state
    refusal = _refusal(state, row)
    holder = None
    if refusal is None and row.unique_key is not None:
        holder = state.unique.get((row.kind, row.tenant_id, row.timeline_id, row.unique_key))
    if holder is not None and not state.is_stopping(state.tasks[holder]):
        turn.emit(facts.SpawnJoined(session, row.number, holder))
        turn.answer_spawn(session, SpawnAnswer(row.number, holder, None, ""))
        return
    if refusal is None:
        refusal = _full(state, row, 1)
    if refusal is None and holder is not None:
        refusal = _circle(state, row, holder)
    if refusal is not None:
        _refuse(turn, session, row.number, refusal)
        return
    if holder is not None:
        turn.emit(facts.SpawnParked(session, holder, row))
        return
    task_id = TaskId(state.last_task_id + 1)
    turn.emit(facts.TaskRegistered(task_id, session, row.number, turn.now.wall, row))
    turn.answer_spawn(session, SpawnAnswer(row.number, task_id, None, ""))
    turn.dirty.add(row.runtime)


def _refuse(turn: Turn, session: SessionId, number: SpawnNumber, refusal: Refusal) -> None:
    turn.emit(facts.SpawnRefused(session, number, *refusal))
    turn.answer_spawn(session, SpawnAnswer(number, TaskId(0), *refusal))


def _whole(state: State, runs: list[AlikeSpawns], count: int) -> Refusal | None:
    """Why none of these, so many in all, may be spawned, if one may not."""
    for run in runs:
        refusal = _refusal(state, run.largest())
        if refusal is not None:
            return refusal
    return _full(state, runs[0].row, count)


def _refusal(state: State, row: SpawnRow) -> Refusal | None:
    if row.kind not in state.kinds or row.runtime not in state.runtimes:
        return undeclared(state, row.kind, row.runtime)
    if state.full:
        text = (
            f"nothing was started: there is no room on the broker's disk for the journal to note {row.name!r}; "
            f"what is registered goes on, and can be stopped. Make room: it wants {state.room}"
        )
        return "QueueFullError", text
    if row.parent is not None:
        parent = state.tasks.get(row.parent[0])
        if parent is None or parent.attempt != row.parent[1]:
            text = (
                f"nothing was started: the attempt {row.parent[0]}.{row.parent[1]} that made this "
                "spawn has ended"
            )
            return "TaskCancelledError", text
    labels = (row.name, row.tenant_id, row.timeline_id, row.unique_key)
    for label, value in zip(
        ("name", "tenant_id", "timeline_id", "unique_key"), labels, strict=True
    ):
        if value is not None and len(value) > LABEL_LIMIT:
            length = len(value)
            text = (
                f"nothing was started: {label} has {length} characters, the limit is {LABEL_LIMIT}; "
                "labels are for finding a task, pass what is long as an argument"
            )
            return "PayloadTooLargeError", text
    size = len(row.function) + len(row.arguments)
    if size > state.payload_limit:
        text = (
            f"nothing was started: function and arguments of {row.name!r} have {size} bytes, the "
            f"limit is {state.payload_limit}; pass a path or a reference, or raise payload_limit"
        )
        return "PayloadTooLargeError", text
    if not state.closed:
        return None
    closing = state.closing(row.kind, row.tenant_id, row.timeline_id, row.runtime)
    return _closed(state, row, state.closures[closing[0]]) if closing else None


def refuse_parked(turn: Turn, stop_id: StopId) -> None:
    """A scope has closed: the spawns in it that are parked could only start after the stop's report."""
    closure = turn.state.closures[stop_id]
    for holder in sorted(turn.state.parked.holders):
        for (session, _), row in list(turn.state.tasks[holder].parked.items()):
            if closure.scope.matches(row.kind, row.tenant_id, row.timeline_id, row.runtime):
                _refuse(turn, session, row.number, _closed(turn.state, row, closure))


def refuse_parked_by(turn: Turn, parents: Collection[TaskId]) -> None:
    """These tasks are asked to stop: what they have parked would hold up their ends."""
    for holder, key in turn.state.parked.made_by(parents):
        row = turn.state.tasks[holder].parked[key]
        _refuse(turn, key[0], row.number, _held_up(row, holder))


def _closed(state: State, row: SpawnRow, closure: Closure) -> Refusal:
    """Why a closed scope refuses, and what opens it."""
    opens = {
        "stop": "it opens when that stop has ended",
        "block": "it opens when the stopped() block has ended",
        "kept": "reopen() opens it",
        "timed-out": "that stop timed out: a stop of it that succeeds, or reopen(), opens it",
    }[closure.holder]
    if state.stopping:
        opens = "the whole system stops: spawn again once it has been started again"
    scope = printable(str(closure.scope))
    why = f" ({printable(closure.reason)})" if closure.reason else ""
    text = (
        f"nothing was started: {row.kind} {row.name!r} of tenant {row.tenant_id!r}, timeline "
        f"{row.timeline_id!r} lies in the closed scope [{scope}]{why}; {opens}"
    )
    return "ScopeClosedError", text


def _full(state: State, row: SpawnRow, wanted: int) -> Refusal | None:
    """Why so many more may not be queued, or be parked to be queued later; None if they may."""
    limit = state.runtime(row.runtime).max_queue
    queued = len(state.queues[row.runtime])
    waiting = state.parked.in_runtime.get(row.runtime, 0)
    if queued + wanted <= limit and waiting + wanted <= limit:
        return None
    parked = f" and {waiting} wait for a unique_key" if waiting else ""
    text = (
        f"nothing was started: the queue of runtime {row.runtime!r} holds {queued} of at most {limit} "
        f"tasks{parked}, and {wanted} more were asked for; wait for some to end, or raise max_queue"
    )
    return "QueueFullError", text


def _circle(state: State, row: SpawnRow, holder: TaskId) -> Refusal | None:
    """Why a spawn may not wait for this holder: an attempt ends only after its spawns are answered."""
    if row.parent is None:
        return None
    if row.parent[0] != holder:
        parent = state.tasks[TaskId(row.parent[0])]
        return _held_up(row, holder) if state.is_stopping(parent) else None
    text = (
        f"nothing was started: task {holder} holds the unique_key {row.unique_key!r} and is asked to "
        "stop; it can't wait for its own end"
    )
    return "TaskCancelledError", text


def _held_up(row: SpawnRow, holder: TaskId) -> Refusal:
    """Why a spawn by a task that is asked to stop does not wait: the holder may belong to somebody else."""
    assert row.parent is not None
    text = (
        f"nothing was started: task {row.parent[0]}, which made this spawn, is asked to stop, and does not wait "
        f"for the end of task {holder}, which holds the unique_key {row.unique_key!r}"
    )
    return "TaskCancelledError", text


def seen_all(session: Session | None, last_spawn: int) -> bool:
    """Whether all spawns up to this number have arrived; a session that is gone sends no more."""
    return session is None or session.spawned >= last_spawn
