"""Results, kept by a session until its client has taken them: of tasks that ended together and alike, one row."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

from quiesce.registry.ids import TaskId
from quiesce.registry.records import Session
from quiesce.registry.rows import RUN, Alike, ResultRow

_new: Final = tuple.__new__


def made(
    task_ids: list[TaskId], fields: tuple[Any, ...], results: Sequence[Any]
) -> list[ResultRow]:
    """The rows of these tasks, of which all but their results is alike; the results, or the one that all have."""
    if results.count(results[0]) == len(results):
        return [_new(ResultRow, (task_ids[0], *fields, results[0]))] * len(task_ids)
    return [
        _new(ResultRow, (task_id, *fields, result))
        for task_id, result in zip(task_ids, results, strict=True)
    ]


def told(session: Session, task_ids: Iterable[TaskId]) -> list[ResultRow | Alike]:
    """Those of these tasks that the session keeps, as its client is told."""
    rows: list[ResultRow | Alike] = []
    for row, together in groupby(task_ids, session.results.__getitem__):
        first, *others = together
        mine = row if row.task_id == first else row._replace(task_id=first)
        if len(others) + 1 < RUN:
            rows += [mine, *(row._replace(task_id=each) for each in others)]
        else:
            rows.append(Alike(mine, list[int](others), 1 + len(others)))
    return rows


def singly(session: Session) -> list[ResultRow]:
    """All that the session keeps, each task with a row of its own. Of a snapshot they may be very many."""
    return [
        row if row[0] == task_id else _new(ResultRow, (task_id, *row[1:]))
        for task_id, row in session.results.items()
    ]
