"""Where settings come from: a file in TOML and the environment. Each value remembers its place."""

import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from quiesce.cli.keys import shown
from quiesce.cli.paths import why_not_readable
from quiesce.errors import ConfigurationError

OWN_NAME: Final = "quiesce.toml"
PYPROJECT: Final = "pyproject.toml"

#: Variables that Kubernetes sets for a service of this name: not ours, though they begin alike.
_KUBERNETES: Final = re.compile(
    r"QUIESCE_.*?_?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


class File(NamedTuple):
    """A configuration file, read. `table` is what is below [tool.quiesce] in a pyproject.toml."""

    path: Path
    prefix: tuple[str, ...]
    table: dict[str, Any]
    #: Line numbers of keys and table headers, by their path from `prefix` on, as far as a plain
    #: reading of the lines tells.
    lines: Mapping[tuple[str, ...], int]

    def place(self, *path: str) -> str:
        """'file:line: [table]' for a path of tables; the last line that is known on the way."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.path}:{self.lines[path[:length]]}"
        return str(self.path)

    def header(self, *tables: str) -> str:
        """A table as the file names it."""
        return f"[{'.'.join((*self.prefix, *tables))}]"


def find_file(path: str | Path | None, env: Mapping[str, str]) -> Path | None:
    """The argument, else QUIESCE_CONFIG, else quiesce.toml or a pyproject.toml with [tool.quiesce] here."""
    named = path or env.get("QUIESCE_CONFIG")
    if named:
        found = Path(named).expanduser()
        if why := why_not_readable(found):
            source = "" if path else " (from QUIESCE_CONFIG)"
            raise ConfigurationError(f"configuration {found}{source}: {why}")
        return found
    try:
        if _is_file(OWN_NAME):
            return Path(OWN_NAME)
        if _is_file(PYPROJECT) and _has_section(Path(PYPROJECT)):
            return Path(PYPROJECT)
    except PermissionError:
        raise ConfigurationError(
            f"you may not enter the current folder, so whether {OWN_NAME} is in it can't be seen: cd to another "
            "one, or name a file with QUIESCE_CONFIG"
        ) from None
    return None


def _is_file(path: str) -> bool:
    """PermissionError where that can't be seen: `Path.is_file` has said no to that, too, since Python 3.14."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def _has_section(path: Path) -> bool:
    """A broken pyproject.toml that does not speak of quiesce is not our business."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if "quiesce" not in text:
        return False
    try:
        return isinstance(tomllib.loads(text).get("tool", {}).get("quiesce"), dict)
    except (tomllib.TOMLDecodeError, AttributeError):
        return "[tool.quiesce" in text  # reading it will say what is wrong


def read_file(path: Path) -> File:
    """Raises ConfigurationError if it can't be read or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from None
    prefix: tuple[str, ...] = ()
    if path.name == PYPROJECT:
        prefix = ("tool", "quiesce")
        for name in prefix:
            table = table.get(name, {})
            if not isinstance(table, dict):
                raise ConfigurationError(f"{path}: [{name}]: expected a table, got {shown(table)}")
    return File(path, prefix, table, dict(_lines(text, prefix)))


def _lines(text: str, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """A plain reading of lines: good for a hint, not for the values."""
    header: tuple[str, ...] = ()
    seen = set()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            header = _split(match[1])
            path = header
        elif match := re.match(r"\s*((?:[\w.-]|\"[^\"]*\"|'[^']*'|\s*\.\s*)+?)\s*=", line):
            path = (*header, *_split(match[1]))
        else:
            continue
        if path[: len(prefix)] == prefix:
            for length in range(len(prefix) + 1, len(path) + 1):
                short = path[len(prefix) : length]
                if short not in seen:
                    seen.add(short)
                    yield short, number


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", dotted)
    return tuple(part.strip("\"'") for part in parts)


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """What the environment holds that may be meant for us, by name. Empty means unset."""
    return {
        name: value
        for name, value in sorted(env.items())
        if name.startswith("QUIESCE_") and value and not _KUBERNETES.fullmatch(name)
    }


def variable(*path: str) -> str:
    """The variable of a key: ("kinds", "initial-load", "stop_grace") -> QUIESCE_KINDS_INITIAL_LOAD_STOP_GRACE."""
    return re.sub(r"[^A-Z0-9]", "_", "_".join(("quiesce", *path)).upper())
