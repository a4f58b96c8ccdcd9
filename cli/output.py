"""What the verbs print: JSON for programs, tables and lines for people."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from quiesce import logs
from quiesce.registry.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class GoesOnError(Exception):
    """The user interrupted a verb, and what it had asked for goes on, as the text says."""


def plain(value: object) -> Any:
    """A value of quiesce as JSON can say it: objects by their fields; infinities as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def print_json(value: object) -> None:
    """One document, on one line, out at once."""
    sys.stdout.write(_json(plain(value), sys.stdout) + "\n")
    sys.stdout.flush()


def _json(document: object, stream: TextIO) -> str:
    """With the escapes of JSON for all but ASCII, if there is something in it that the stream can't encode.

    What would stand in its place otherwise is none of JSON's escapes.
    """
    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document)
    return text


def result_text(result: object) -> str:
    """What a task returned: texts bare, what JSON can say as JSON, all else by its repr.

    Objects of users may refuse to be shown, which is no failure of the task.
    """
    if isinstance(result, str):
        return _shown(result, str)
    try:
        return json.dumps(result, ensure_ascii=False)
    except Exception:  # no JSON, a circle, or whatever their code raises
        return _shown(result, repr)


def result_document(result: object) -> Any:
    """The same as a part of a document of JSON."""
    try:
        document = plain(result)
        json.dumps(document)  # raises of numbers with too many digits
        return document
    except Exception as error:
        return _hidden(result, error)


def _shown(result: object, how: Callable[[object], str]) -> str:
    try:
        return how(result)
    except Exception as error:
        return _hidden(result, error)


def _hidden(result: object, error: Exception) -> str:
    try:
        reason = f"{type(error).__name__}: {error}"
    except Exception:  # theirs, too
        reason = type(error).__name__
    return clean(f"<{type(result).__name__} that can't be shown: {reason}>")


def print_error(error: str, message: str, *, as_json: bool, **more: object) -> None:
    """What went wrong, on stderr: for programs the name of the error and its text, and `more`, as one document."""
    if as_json:
        text = _json({"error": error, "message": message, **more}, sys.stderr)
    else:
        shown = "\n".join(printable(line.expandtabs()) for line in message.splitlines())
        text = f"error: {shown}" if message else "error"
    logs.write(text)


def counted(count: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{count} {noun}{'s' * (count != 1)}"


def console(*, error: bool = False) -> "Console":
    """For tables. Where nobody looks (a pipe, a file), lines are as long as they have to be."""
    from rich.console import Console

    made = Console(stderr=error, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=error, highlight=False, width=1000)
    return made


def table(*columns: str, right: tuple[str, ...] = (), wrapped: tuple[str, ...] = ()) -> "Table":
    """Without frames: readable on a terminal, easy to cut in a pipe. On a narrow one some columns wrap."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def add_row(to: "Table", *cells: object) -> None:
    """Names come from users: no markup, nothing that a terminal obeys."""
    from rich.text import Text

    to.add_row(*(Text(clean(cell)) for cell in cells))


def clean(value: object) -> str:
    """On one line, without control characters; empty for None."""
    return "" if value is None else printable(str(value))


def age(since: float | None, now: float | None = None) -> str:
    """How long ago: 0.4s, 12s, 3m05s, 2h14m, 3d04h; empty for None."""
    if since is None:
        return ""
    return duration((time.time() if now is None else now) - since)


def duration(seconds: float) -> str:
    """At most two units."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
