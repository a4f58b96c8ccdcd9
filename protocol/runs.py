"""Rows that are alike, in messages that may have many: the ends of one stop, above all.

In a list of rows of RUNS, `[row, number, number, ...]` stands for the row, and for more that differ from it by
their first field alone. Whoever sends and who receives such a message sees all rows.
"""

from collections.abc import Callable
from typing import Any, Final

import msgpack

from quiesce.protocol import to_client
from quiesce.registry.rows import ResultRow, StoppedRow

#: Rows whose first field is a number, and which may be alike otherwise; how many at least make a run.
RUNS: Final[frozenset[type]] = frozenset({ResultRow, StoppedRow})
RUN: Final = 4
#: Messages that are looked through for runs, and the place of their rows.
ROWS_IN: Final[dict[type, int]] = {
    to_client.Ended: to_client.Ended._fields.index("rows"),
    to_client.StopReport: to_client.StopReport._fields.index("tasks"),
}


class PackedRows(list[Any]):
    """Rows of RUNS for a message that shall hold many: packed in pieces, as time allows, before it is sent."""

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


def _in_runs(rows: list[Any]) -> list[Any]:
    """The same with runs in place of rows that are alike."""
    items: list[Any] = []
    run: list[Any] = []
    rest: tuple[Any, ...] = ()
    for row in rows:
        if run and row[1:] == rest:
            run.append(row[0])
            continue
        _add_run(items, run, rest)
        run, rest = [row], row[1:]
    _add_run(items, run, rest)
    return items


def _add_run(items: list[Any], run: list[Any], rest: tuple[Any, ...]) -> None:
    if len(run) >= RUN:
        items.append(run)
    else:
        items += run[:1]
        items += [(number, *rest) for number in run[1:]]
