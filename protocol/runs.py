"""Rows that are alike, in messages that may have many: a batch of spawns, the ends of one stop.

In a list of rows of RUNS, `[row, number, number, ...]` stands for the row, and for more that differ from it by
their first fields alone, which are numbers: one field or more, as RUNS says, each row's after the other's. Who
receives such a message sees all rows; who sends it may give a run as what it is, an `Alike`.

The ends of attempts differ by more: there `[row, tasks, ages, ages, results]` stands for many, and arrives as an
`AlikeEnds`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgpack

from quiesce.protocol import from_client, from_worker, to_client, to_worker
from quiesce.registry.rows import (
    RUN,
    Alike,
    AssignRow,
    EndedRow,
    ResultRow,
    SpawnAnswer,
    SpawnRow,
    StoppedRow,
    TaskRow,
    alike_ends,
    one_by_one,
)

#: Rows whose first fields are numbers, and which may be alike otherwise: how many fields these are.
RUNS: Final[dict[type, int]] = {
    SpawnRow: 1,
    SpawnAnswer: 2,
    AssignRow: 2,
    ResultRow: 1,
    StoppedRow: 1,
    TaskRow: 1,
}
#: How many rows a message may have that has runs, where a peer could make a few bytes of very many.
MOST: Final[dict[type, int]] = {SpawnRow: 10_000}
#: Messages that are looked through for runs, and the place of their rows.
ROWS_IN: Final[dict[type, int]] = {
    message: message._fields.index(field)
    for message, field in (
        (from_client.Spawn, "rows"),
        (from_worker.Ended, "rows"),
        (to_client.SpawnAnswers, "rows"),
        (to_client.Ended, "rows"),
        (to_client.StopReport, "tasks"),
        (to_client.Tasks, "rows"),
        (to_worker.Assign, "rows"),
    )
}


class PackedRows(list[Any]):
    """Rows of RUNS for a message that shall hold many: packed in pieces, as time allows, before it is sent.

    More may come meanwhile.
    """

    def __init__(self, rows: list[Any]) -> None:
        super().__init__(rows)
        self._pieces: list[bytes] = []
        self._items = self._done = 0
        self._packer = msgpack.Packer()
        self._trouble: Exception | None = None

    def pack(self, count: int) -> bool:
        """Pack so many more; whether there is no more to be done. What can't travel is said by `packed`."""
        if self._trouble is not None:
            return True
        items = _in_runs(self[self._done : self._done + count])
        try:
            self._pieces.extend(map(self._packer.pack, items))
        except Exception as error:
            self._trouble = error
            return True
        self._items += len(items)
        self._done = min(len(self), self._done + count)
        return self._done == len(self)

    def packed(self) -> bytes:
        """All of it, as the field of a message. Raises whatever the packer does."""
        while not self.pack(1024):
            pass
        if self._trouble is not None:
            raise self._trouble
        header: bytes = self._packer.pack_array_header(self._items)
        return header + b"".join(self._pieces)


def pack_with_runs(
    code: int, message: tuple[Any, ...], place: int, beside: Callable[[object], Any]
) -> bytes:
    """Frame 0 of a message with rows at this place."""
    packer: Any = msgpack.Packer(default=beside)
    rows = message[place]
    if type(rows) is not PackedRows:
        packed: bytes = packer.pack((code, *message[:place], _in_runs(rows), *message[place + 1 :]))
        return packed
    pieces = [packer.pack_array_header(1 + len(message)), packer.pack(code)]
    for index, field in enumerate(message):
        pieces.append(rows.packed() if index == place else packer.pack(field))
    return b"".join(pieces)


def as_received(message: tuple[Any, ...]) -> tuple[Any, ...]:
    """The message as who receives it sees it: for networks that only seem to be ones."""
    place = ROWS_IN.get(type(message))
    if place is None:
        return message
    rows = [*one_by_one(message[place])]
    kind: Any = type(message)
    received: tuple[Any, ...] = kind(*message[:place], rows, *message[place + 1 :])
    return received


def _in_runs(rows: list[Any]) -> list[Any]:
    """The same with runs in place of rows that are alike."""
    items: list[Any] = []
    if rows and type(rows[0]) is EndedRow:
        return list(alike_ends(rows))
    width = 0
    start, rest = 0, ()
    for place, row in enumerate(rows):
        if type(row) is Alike:
            _add_run(items, rows[start:place], width)
            items.append([row.row, *row.numbers])
            start, rest = place + 1, ()
            continue
        width = width or RUNS[type(row)]
        if row[width:] != rest:
            _add_run(items, rows[start:place], width)
            start, rest = place, row[width:]
    _add_run(items, rows[start:], width)
    return items


def _add_run(items: list[Any], rows: list[Any], width: int) -> None:
    if len(rows) < RUN:
        items += rows
    else:
        run = [rows[0]]
        for row in rows[1:]:
            run += row[:width]
        items.append(run)
