"""How large things may be that travel.

A message that is larger than its receiver takes is dropped whole, and so it is each time it is sent again. So who
puts rows together counts what they hold, and begins another message in time; texts without bounds are cut.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from quiesce.registry.rows import Alike

#: Bytes of a message on control: it has no payloads, so it has no business being larger.
CONTROL_LIMIT: Final = 16 * 2**20
#: The largest `payload_limit` that a broker may be given.
LARGEST_PAYLOAD: Final = 2**31
#: Bytes of payloads and texts in one message, after which the next begins. A row by itself may be larger.
FULL: Final = 256 * 1024
#: Spawns that are registered together, all or none: in one turn of the broker, in which nobody else is heard.
TOGETHER_LIMIT: Final = 1_000_000
#: Characters of a text that is shown: a traceback, what lingers, a note. The rest is cut off.
TEXT_LIMIT: Final = 2**20
NOTE_LIMIT: Final = 4096


def data_limit(payload_limit: int) -> int:
    """Bytes that a broker takes in one message on data."""
    return 2 * payload_limit + CONTROL_LIMIT


def held(rows: Iterable[Any]) -> int:
    """Bytes of the last two fields of these rows, in which the payloads are, and the texts. Of rows that are alike
    one travels.
    """
    size = 0
    for row in rows:
        whole = row.row if type(row) is Alike else row
        size += len(whole[-2]) + len(whole[-1])
    return size


def weightless(rows: Iterable[Any]) -> int:
    """The same of rows that have no payloads."""
    del rows
    return 0


def in_parts(
    rows: list[Any], most: int, weigh: Callable[[Iterable[Any]], int] = held
) -> Iterable[list[Any]]:
    """The rows of one message after the other: at most so many each, and none behind FULL bytes."""
    if len(rows) == 1 and type(rows[0]) is not Alike:
        return [rows]  # whatever it holds
    if len(rows) + _more(rows) <= most and weigh(rows) <= FULL:
        return [rows] if rows else []
    return _parted(rows, most, weigh)


def _parted(
    rows: list[Any], most: int, weigh: Callable[[Iterable[Any]], int]
) -> Iterator[list[Any]]:
    part: list[Any] = []
    count = size = 0
    for row in rows:
        for piece in row.cut(most) if type(row) is Alike else (row,):
            number, more = 1 + _more((piece,)), weigh((piece,))
            if part and (count + number > most or size + more > FULL):
                yield part
                part, count, size = [], 0, 0
            part.append(piece)
            count += number
            size += more
    yield part


def _more(rows: Iterable[Any]) -> int:
    """How many rows there are beyond those that stand there."""
    return sum([row.count - 1 for row in rows if type(row) is Alike])


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, or its beginning."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def cut_within(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, or its beginning and its end: of a traceback both matter."""
    half = limit // 2 - 10
    return text if len(text) <= limit else f"{text[:half]}\n  ...\n{text[-half:]}"
