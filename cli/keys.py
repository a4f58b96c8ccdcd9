"""The keys of a configuration: which there are, what each holds, and how it is said to be wrong.

A check takes a value as TOML gives it and returns it as the settings hold it, or raises RefusedError with
what was expected. An environment variable is text; `from_text` brings it into the form TOML would give.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from quiesce.protocol.sizes import LARGEST_PAYLOAD

Check = Callable[[object], Any]

#: The longest time that a setting may name, in seconds: a day, so that no timer overflows.
_DAY: Final = 86_400.0


class RefusedError(Exception):
    """A value is not what its key holds; the text says what is, without the place."""


class Key(NamedTuple):
    """One key of a table. `form` says how a text from the environment is to be read."""

    check: Check
    form: str = "text"


def _number(low: float, high: float, *, infinite: bool = False, unit: str = " of seconds") -> Check:
    expected = f"a number{unit} from {low:g} to {high:g}" + (" or inf" if infinite else "")

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RefusedError(f"expected {expected}, got {shown(value)}")
        if infinite and value == math.inf:
            return math.inf
        if not low <= value <= high:
            raise RefusedError(f"expected {expected}, got {shown(value)}")
        return float(value)

    return check


def _whole(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise RefusedError(f"expected a whole number from {low} to {high}, got {shown(value)}")
        return value

    return check


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(f"expected true or false, got {shown(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise RefusedError(f"expected a text on one line, got {shown(value)}")
    return value


def _choice(*choices: str, upper: bool = False) -> Check:
    def check(value: object) -> str:
        given = value.upper() if upper and isinstance(value, str) else value
        if given in choices:
            return str(given)
        text = f"expected one of {', '.join(choices)}; got {shown(value)}"
        raise RefusedError(text + nearest(given, choices))

    return check


def _texts(what: str, pattern: str) -> Check:
    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise RefusedError(f"expected a list of {what}, got {shown(value)}")
        for item in value:
            if not isinstance(item, str) or not re.fullmatch(pattern, item):
                raise RefusedError(f"expected a list of {what}, but it holds {shown(item)}")
            if value.count(item) > 1:
                raise RefusedError(f"{item!r} is in the list twice")
        return tuple(value)

    return check


def host_and_port(text: str) -> tuple[str, int]:
    """127.0.0.1:9464, localhost:9464 or [::1]:9464. RefusedError if it is none of the kind."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        number = int(port) if colon and port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise RefusedError(
            f"expected HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464 (port 0: any free one), got {shown(text)}"
        )
    return host, number


def _listening(value: object) -> str:
    text = _text(value)
    host_and_port(text)
    return str(text)


#: The name of a runtime or a kind.
NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?"
_MODULE: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"

BROKER: Final[Mapping[str, Key]] = {
    "address": Key(_text),
    "state": Key(_text),
    "lease": Key(_number(0.5, 3600), "number"),
    "lease_bound": Key(_number(0.5, _DAY), "number"),
    "clock_drift": Key(_number(0, 0.5, unit=""), "number"),
    "kill_delay": Key(_number(0, 3600), "number"),
    "durability": Key(_choice("power-loss", "crash", "none")),
    "stop_timeout": Key(_number(0, _DAY), "number"),
    "payload_limit": Key(_whole(1024, LARGEST_PAYLOAD), "number"),
    "session_timeout": Key(_number(1, _DAY), "number"),
    "history": Key(_whole(0, 10_000_000), "number"),
    "busy_poll": Key(_number(0, 0.01), "number"),
    "app_dir": Key(_text),
    "log_level": Key(_choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", upper=True)),
    "log_file": Key(_text),
    "log_format": Key(_choice("console", "json")),
    "metrics": Key(_listening),
    "metrics_public": Key(_boolean, "boolean"),
    "shutdown_order": Key(_texts("kinds", rf"\*|{NAME}"), "list"),
    "default_runtimes": Key(_boolean, "boolean"),
}
RUNTIME: Final[Mapping[str, Key]] = {
    "processes": Key(_whole(1, 1024), "number"),
    "slots": Key(_whole(1, 256), "number"),  # as many as the table of a pool has entries
    "max_queue": Key(_whole(1, 2**31), "number"),
    "kill_neighbours": Key(_boolean, "boolean"),
    "stop_grace": Key(_number(0, _DAY, infinite=True), "number"),
    "preload": Key(_texts("modules to import", _MODULE), "list"),
    "title": Key(_text),
}
KIND: Final[Mapping[str, Key]] = {
    "stop_grace": Key(_number(0, _DAY, infinite=True), "number"),
    "max_running": Key(_whole(1, 2**31), "number"),
    "max_running_per_tenant": Key(_whole(1, 2**31), "number"),
}


def from_text(text: str, form: str) -> object:
    """The value of an environment variable as TOML would give it; the text itself where it can't be read so.

    Lists are separated by commas.
    """
    if form == "list":
        return [item.strip() for item in text.split(",") if item.strip()]
    if form == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if form == "number":
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
    return text


def nearest(word: object, words: "Mapping[str, object] | tuple[str, ...]") -> str:
    """'; did you mean …?', or nothing where nothing is near."""
    found = get_close_matches(str(word), list(words), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def shown(value: object) -> str:
    """A wrong value, as short as a line allows."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)) and len(repr(value)) > 60:
        return "a table" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
