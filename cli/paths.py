"""Places in the file system that a configuration speaks of: where we are, what can be written."""

import os
import stat
from pathlib import Path

from quiesce.errors import ConfigurationError


def here() -> Path:
    """The current folder; ConfigurationError if it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigurationError(
            "the current folder no longer exists: cd to one that does, and try again"
        ) from None


def why_not_readable(path: str | Path) -> str:
    """Why this is no file to read from; "" if it is one, be it a pipe: `<(...)`, /dev/stdin."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "is a folder" if stat.S_ISDIR(there.st_mode) else ""


def why_not_writable(path: str) -> str:
    """Why nothing can be added to this file, which is made if it is missing; "" if all is well."""
    try:
        # Without O_NONBLOCK a pipe that nobody reads would hold us up for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o666))
    except OSError as error:
        return f"{path} can't be written: {error.strerror}"
    return ""
