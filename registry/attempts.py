"""What workers say of attempts: begun, lingering, associated, given back, ended."""

import math
from collections.abc import Sized
from itertools import repeat
from operator import sub
from typing import cast

from quiesce.registry import effects, events, facts, stopping
from quiesce.registry.ending import all_plain, complete, end, is_plain, may_be_plain, never_ran
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.records import Ask, Task, Worker
from quiesce.registry.rows import LEASE_OVER, AlikeEnds, EndedRow, alike_ends
from quiesce.registry.scheduling import paced, stuck
from quiesce.registry.states import Evidence, Outcome, State as TaskState
from quiesce.registry.turn import Turn

#: An attempt that has returned, of which no more is to be said: its task, when it began and ended, and its result.
Completed = tuple[Task, float, float, Sized]
#: Tasks that have ended, and how many seconds each took.
Timed = tuple[list[Task], list[float]]


def held(turn: Turn, worker: Incarnation, task_id: int, attempt: int) -> Task | None:
    """The live task that this worker holds in this attempt, or None if the worker speaks of the past.

    (Who has no incarnation yet holds nothing, though queued tasks have the worker 0.)
    """
    task = turn.state.tasks.get(TaskId(task_id))
    if not worker or task is None or task.worker != worker or task.attempt != attempt:
        return None
    return task


def on_tasks_begun(turn: Turn, event: events.TasksBegun) -> None:
    for task_id, attempt, age in event.rows:
        task = held(turn, event.worker, task_id, attempt)
        if task is None:
            continue
        if task.state is TaskState.ASSIGNED:
            turn.emit(facts.TaskBegan(task.id, max(task.created_at, turn.now.wall - age)))
        set_limit(turn, task, age)  # also of one that is said again, to a new broker, for one


def set_limit(turn: Turn, task: Task, age: float, *, at_least: float = -math.inf) -> None:
    """A task that began so many seconds ago has its own timeout, unless its worker is dead: then it has ended.

    `at_least`: seconds from now before which it is not called over.
    """
    alive = turn.state.workers[task.worker].status is None
    if task.spawn.timeout is not None and task.ask is None and alive:
        left = max(task.spawn.timeout - age, at_least)
        turn.timers.set(("limit", task.id), turn.now.tick + left)


def on_limit_due(turn: Turn, task_id: TaskId) -> None:
    """The task has run for as long as its own timeout: it is asked to stop, and will have failed."""
    task = turn.state.tasks.get(task_id)
    if task is not None and task.state is TaskState.RUNNING and task.ask is None:
        reason = f"it has run for longer than its timeout of {task.spawn.timeout} s"
        stopping.ask(turn, task, reason, None, timed_out=True)


def on_tasks_given_back(turn: Turn, event: events.TasksGivenBack) -> None:
    """Queue them again: none was begun. Only what is still assigned under that very number is meant."""
    worker = turn.state.workers.get(event.worker)
    if worker is None:
        return
    for task_id, attempt, number in event.rows:
        if TaskId(task_id) in worker.orphans:
            continue  # it has ended, by the account of the process, which has died since
        turn.take_given_back(event.worker, (task_id, attempt, number))
        task = held(turn, event.worker, task_id, attempt)
        if task is None or task.assign_number != number or task.state is not TaskState.ASSIGNED:
            continue
        stuck(worker)
        if task.ask is not None:
            never_ran(turn, task)
        else:
            turn.let_go(task)
            turn.emit(facts.TaskRequeued(task.id, task.attempt, task.retries))


def on_tasks_ended(turn: Turn, event: events.TasksEnded) -> None:
    """Record each end and let the worker forget it; an end that is known already is only taken again."""
    worker, rows = turn.state.workers.get(event.worker), event.rows
    if worker is None or not rows:
        return
    if len(rows) >= turn.state.alike and AlikeEnds not in map(type, rows):
        rows = alike_ends(cast("list[EndedRow]", rows))
    taken: list[tuple[int, int]] = []
    turn.send(effects.TakeEnds(event.worker, taken))
    timed: Timed = ([], [])
    single: list[EndedRow] = []
    for row in rows:
        if isinstance(row, AlikeEnds):
            first, task_ids = row.row, row.task_ids
            taken += zip((first.task_id, *task_ids), repeat(first.attempt))
            _ended_each(turn, worker, single, timed)
            single = [] if _ended_plainly(turn, worker, row, timed) else row.one_by_one()
        else:
            taken.append(row[:2])
            single.append(row)
    _ended_each(turn, worker, single, timed)
    if timed[0]:
        paced(worker, *timed)


def _ended_plainly(turn: Turn, worker: Worker, ends: AlikeEnds, timed: Timed) -> bool:
    """End all of these at once, as one by one; False, and nothing is done, if that takes a closer look at each."""
    row = ends.row
    task_ids = [row.task_id, *ends.task_ids]
    if not may_be_plain(row) or len(task_ids) < turn.state.alike or worker.status is not None:
        return False
    # Those that it holds, in this attempt, and each once.
    distinct = set(task_ids)
    if len(distinct) < len(task_ids) or not worker.tasks.keys() >= distinct:
        return False
    tasks = list(map(turn.state.tasks.__getitem__, task_ids))
    if not all_plain(tasks, row.attempt):
        return False
    begun_ages = [cast("float", row.begun_age), *ends.begun_ages]
    ended_ages = [row.ended_age, *ends.ended_ages]
    now = turn.now.wall
    started_at: list[float] = []
    at: list[float] = []
    for task, begun_age, ended_age in zip(tasks, begun_ages, ended_ages, strict=True):
        begun = task.started_at
        if begun is None:
            begun = now - begun_age
            if begun < task.created_at:  # noqa: PLR1730 - max() costs more than all the rest
                begun = task.created_at
        ended = now - ended_age
        started_at.append(begun)
        at.append(ended if ended > begun else begun)  # noqa: FURB136 - as above
    results = [row.result, *(ends.results or repeat(row.result, len(ends.task_ids)))]
    complete(turn, worker, tasks, started_at, at, results)
    timed[0].extend(tasks)
    timed[1].extend(map(sub, begun_ages, ended_ages))
    return True


def _ended_each(turn: Turn, worker: Worker, rows: list[EndedRow], timed: Timed) -> None:
    now = turn.now.wall
    enough = worker.status is None and len(rows) >= turn.state.alike
    plain: dict[TaskId, Completed] = {}
    for row in rows:
        task = held(turn, worker.incarnation, row.task_id, row.attempt)
        if task is None or task.id in plain:
            continue  # known already, or of an attempt that has been given up
        begun, begun_age, ended_age = task.started_at, row.begun_age, row.ended_age
        if begun_age is not None:
            timed[0].append(task)
            timed[1].append(begun_age - ended_age)
            if begun is None:
                begun = max(task.created_at, now - begun_age)
        at = max(now - ended_age, task.created_at if begun is None else begun)
        if enough and begun is not None and is_plain(task, row):
            plain[task.id] = (task, begun, at, row.result)
            continue
        if plain:  # in the order in which they ended
            _complete(turn, worker, plain)
            plain = {}
        if task.ask is not None:
            # The acknowledgement may still be on its way, on the other socket.
            if row.delivered_age is not None and task.ask.delivered_at is None:
                turn.emit(facts.StopDelivered(task.id, _placed(turn, task.ask, row.delivered_age)))
            if row.observed_age is not None and task.ask.observed_at is None:
                _observed(turn, task, task.ask, row.observed_age)
        end(
            turn,
            task,
            outcome=row.outcome,
            evidence=row.evidence,
            started_at=begun,
            at=at,
            text=row.text,
            result=row.result,
            in_time=_in_time(task, row),
        )
    if plain:
        _complete(turn, worker, plain)


def _in_time(task: Task, row: EndedRow) -> bool:
    """Whether it ended within its own timeout, by the clock of its worker, and unasked (but perhaps by its pool,
    for want of a broker). The word of that may come so late that it was asked to stop meanwhile.
    """
    limit = task.spawn.timeout
    if limit is None or row.begun_age is None or row.begun_age - row.ended_age > limit:
        return False
    return row.delivered_age is None or row.text.startswith(LEASE_OVER)


def _complete(turn: Turn, worker: Worker, plain: dict[TaskId, Completed]) -> None:
    """End these as `end` would: together, if they are enough."""
    if len(plain) >= turn.state.alike:
        complete(turn, worker, *map(list, zip(*plain.values(), strict=True)))
        return
    for task, started_at, at, result in plain.values():
        end(
            turn,
            task,
            outcome=Outcome.COMPLETED,
            evidence=Evidence.RETURNED,
            started_at=started_at,
            at=at,
            result=result,
        )


def _placed(turn: Turn, ask: Ask, age: float) -> float:
    """So many seconds ago, but between the request and now. (A wall clock may go back: the request wins.)"""
    return max(ask.at, min(turn.now.wall - age, turn.now.wall))


def _observed(turn: Turn, task: Task, ask: Ask, age: float) -> None:
    at = _placed(turn, ask, age)
    if ask.delivered_at is None or ask.delivered_at > at:
        turn.emit(facts.StopDelivered(task.id, at))
    turn.emit(facts.StopObserved(task.id, at))


def on_stops_seen(turn: Turn, event: events.StopsSeen) -> None:
    """The request has arrived; ages are placed between the request and now, so that the times are ordered."""
    for task_id, attempt, _, delivered_age, observed_age in event.rows:
        task = held(turn, event.worker, task_id, attempt)
        if task is None or task.ask is None:
            continue
        stopping.heard(turn, task)
        if task.ask.delivered_at is None:
            turn.emit(facts.StopDelivered(task.id, _placed(turn, task.ask, delivered_age)))
            turn.timers.clear(("resend", task.id))
        if observed_age is not None and task.ask.observed_at is None:
            _observed(turn, task, task.ask, observed_age)


def on_task_lingers(turn: Turn, event: events.TaskLingers) -> None:
    task = held(turn, event.worker, event.task_id, event.attempt)
    if task is not None and task.lingering != event.what:
        turn.emit(facts.TaskLingering(task.id, event.what))


def on_progress_said(turn: Turn, event: events.ProgressSaid) -> None:
    for task_id, attempt, done, total, note in event.rows:
        task = held(turn, event.worker, task_id, attempt)
        if task is not None:
            task.progress = (done, total, note)


def on_waits_said(turn: Turn, event: events.WaitsSaid) -> None:
    """All that an attempt waits for; what was said of it before is over."""
    said: dict[tuple[int, int], list[TaskId]] = {}
    for task_id, attempt, other in event.rows:
        others = said.setdefault((task_id, attempt), [])
        if other:
            others.append(TaskId(other))
    for (task_id, attempt), others in said.items():
        task = held(turn, event.worker, task_id, attempt)
        if task is not None:
            task.waits_on = tuple(sorted(set(others)))


def on_grace_asked(turn: Turn, event: events.GraceAsked) -> None:
    task = held(turn, event.worker, event.task_id, event.attempt)
    if task is not None:
        stopping.extend(turn, task, event.seconds)


def on_associate_asked(turn: Turn, event: events.AssociateAsked) -> None:
    """Overwrite tenant and timeline; in a closed scope the task is asked to stop, and its stops wait for it."""
    task = held(turn, event.worker, event.task_id, event.attempt)
    if task is None:
        turn.send(
            effects.AnswerAssociate(
                event.worker, event.request, "TaskNotFoundError", "this attempt has ended"
            )
        )
        return
    turn.emit(facts.TaskAssociated(task.id, event.tenant_id, event.timeline_id))
    turn.let_go(task)  # its place under the limit of the tenant that it left
    stopping.join_covering(turn, task)
    turn.send(effects.AnswerAssociate(event.worker, event.request, None, ""))
