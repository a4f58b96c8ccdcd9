"""What a log line looks like: for people, or as JSON for programs. The same for every process of a system.

A record says who it is about in attributes that begin with `quiesce_` (logging refuses an `extra` of the user's
that is there already); in JSON they stand without that prefix, and those that are empty are left out.
"""

import json
import logging
import os
import sys
import time
from typing import Any, Final, TextIO

CONSOLE: Final = "console"
JSON: Final = "json"
FORMATS: Final = (CONSOLE, JSON)

_PREFIX: Final = "quiesce_"
#: Fields of structlog, or of whoever has more than `extra` can carry: a dictionary.
FIELDS: Final = "quiesce_fields"
#: What every record has.
_PLAIN: Final = frozenset(
    {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}
)
#: A line for people, of a process of which there is but one.
LINE: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One object on one line: the time (UTC), level, logger, process, pid and message, then whatever else is known.

    An `extra` of the user's stands under its own name; where that is taken, with a `_` behind it.
    """

    def __init__(self, process: str) -> None:
        """`process`: "broker", "worker of background"."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "process": self._process,
            "pid": record.process,
            "message": record.getMessage(),
        }
        theirs: dict[str, Any] = {}
        for name, value in vars(record).items():
            if name == FIELDS:
                theirs.update(value)
            elif name.startswith(_PREFIX):
                if value not in (None, ""):
                    line[name.removeprefix(_PREFIX)] = value
            elif name not in _PLAIN and name != "quiesce":
                theirs[name] = value
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        for name, value in theirs.items():
            if line.get(name) != value:
                line[f"{name}_" if name in line else name] = value
        return dumps(line)


def dumps(line: dict[str, Any]) -> str:
    """On one line, whatever is in it."""
    try:
        return json.dumps(line, default=repr, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that are no texts, a circle
        return json.dumps({key: _text(value) for key, value in line.items()}, ensure_ascii=False)


def _text(value: object) -> object:
    return value if isinstance(value, (str, int, float)) else repr(value)


def timestamp(at: float) -> str:
    """2026-01-02T03:04:05.678Z."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03}Z"


def handler(log_format: str, process: str, console: str, file: str = "") -> logging.Handler:
    """To standard error, or to the end of `file`. `console`: the format of `logging.Formatter` for people."""
    made: logging.Handler
    if file:
        from quiesce.log_file import LogFile  # it brings much, and few want it

        made = LogFile(file, write)
    else:
        made = logging.StreamHandler(sys.stderr)
    made.setFormatter(_formatter(log_format, process, console))
    return made


def _formatter(log_format: str, process: str, console: str) -> logging.Formatter:
    return JsonFormatter(process) if log_format == JSON else logging.Formatter(console)


def say(
    text: str, log_format: str, process: str, level: int = logging.INFO, file: str = ""
) -> None:
    """A line of a process that has no logging of its own: on standard error and at the end of `file`, out at once.

    A terminal gets the bare text: who looks at it knows what time it is.
    """
    record = logging.LogRecord(f"quiesce.{process}", level, "", 0, text, None, None)
    line = _formatter(log_format, process, LINE).format(record)
    write(text if log_format == CONSOLE and sys.stderr.isatty() else line)
    if file:
        _append(line, file)


def _append(line: str, file: str) -> None:
    """Unless standard error is that file, which has it already."""
    try:
        with open(file, "a", encoding="utf-8", errors="backslashreplace") as end:
            if not os.path.sameopenfile(end.fileno(), sys.stderr.fileno()):
                end.write(f"{line}\n")
    except OSError:  # as for standard error, see `write`
        pass


def write(text: str) -> None:
    """A line on standard error, out at once. Where nobody can read it any more it is lost, and all goes on."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:  # the terminal or the reader of the pipe is gone, the disk is full
        pass


def flush(stream: TextIO) -> bool:
    """Send out what waits in a standard stream; if it can't be, it is thrown away, and the answer is False.

    Otherwise Python would try again at the exit, and make the exit status 120.
    """
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return False
    return True


def fill_closed_streams() -> None:
    """Open what this process was started without (`2>&-`), for itself and all that it starts.

    Otherwise the next file that it opens would get that number, and what is written there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Those before it are open, so this one gets its number.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", errors="backslashreplace"))
