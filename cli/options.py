"""The options that several verbs share, and what they mean together."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from quiesce.errors import ConfigurationError

if TYPE_CHECKING:
    from quiesce.client import Client

#: How long a verb waits for a broker, in seconds: it may just be starting.
CONNECT_TIMEOUT: Final = 5.0
#: That of `quiesce.client.checks`, which is not loaded for a help.
MAX_RETRIES: Final = 2**31 - 1

Address = Annotated[
    str | None,
    typer.Option(
        help="The broker's. Default: QUIESCE_ADDRESS, the configuration here, or the default one.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        # The backslash: Rich would take what is in the brackets for markup, and swallow it.
        help=r"Default: QUIESCE_CONFIG, ./quiesce.toml, \[tool.quiesce] in ./pyproject.toml.",
        show_default=False,
    ),
]
Kind = Annotated[str | None, typer.Option(help="Only tasks of this kind.", show_default=False)]
Tenant = Annotated[str | None, typer.Option(help="Only tasks of this tenant.", show_default=False)]
Timeline = Annotated[
    str | None, typer.Option(help="Only tasks of this timeline.", show_default=False)
]
Runtime = Annotated[
    str | None, typer.Option(help="Only tasks of this runtime.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Everything: needed when no scope is given.")]


class ScopeOptions(NamedTuple):
    """--kind, --tenant, --timeline, --runtime, in the order in which the client takes them."""

    kind: str | None
    tenant_id: str | None
    timeline_id: str | None
    runtime: str | None

    def words(self) -> list[str]:
        """As they are given to a verb."""
        given = zip(("--kind", "--tenant", "--timeline", "--runtime"), self, strict=True)
        words = [word for option, value in given if value is not None for word in (option, value)]
        return words or ["--all"]


def command(*words: str, address: str | None) -> str:
    """A call of `quiesce` that the user may copy, of the same broker."""
    more = ("--address", address) if address else ()
    return f"`{shlex.join(('quiesce', *words, *more))}`"


def scope(
    kind: str | None, tenant: str | None, timeline: str | None, runtime: str | None
) -> ScopeOptions:
    """An empty value is refused; it is no wish for everything."""
    for option, value in (
        ("--kind", kind),
        ("--tenant", tenant),
        ("--timeline", timeline),
        ("--runtime", runtime),
    ):
        refuse_empty(option, value, "leave the option out to match any")
        refuse_bytes(option, value)
    return ScopeOptions(kind, tenant, timeline, runtime)


def refuse_empty(option: str, value: str | None, advice: str) -> None:
    """In a script an empty value is a variable that was not set, and not a wish."""
    if value == "":
        raise typer.BadParameter(f"is empty; {advice}", param_hint=option)


def refuse_bytes(option: str, value: str | None) -> None:
    """Labels and reasons are texts: bytes that are none come as lone surrogates, and can't travel."""
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(f"expected UTF-8, got {value!r}", param_hint=option) from None


def wide_scope(options: ScopeOptions, everything: bool) -> ScopeOptions:
    """A scope for a verb that changes things: all of it must be asked for."""
    named = any(value is not None for value in options)
    if named and everything:
        raise typer.BadParameter("goes with no other scope option", param_hint="--all")
    if not named and not everything:
        raise typer.BadParameter(
            "name a scope (--kind, --tenant, --timeline, --runtime) or give --all"
        )
    return options


def seconds(text: str | None, option: str, *, positive: bool = False) -> float | None:
    """A time that may be inf."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0 or (positive and value == 0):
        least = "more than 0" if positive else "0 or more"
        raise typer.BadParameter(
            f"expected seconds ({least}, or inf), got {text!r}", param_hint=option
        )
    return value


def broker_address(address: str | None) -> str:
    """Where `quiesce up` with the same environment and folder would be."""
    if address is not None:
        from quiesce.protocol.addresses import refuse_unsafe

        refuse_empty("--address", address, "leave the option out for the default")
        try:
            refuse_unsafe(address)
        except ConfigurationError as error:
            raise typer.BadParameter(str(error), param_hint="--address") from None
        return address
    given = os.environ.get("QUIESCE_BROKER_ADDRESS") or os.environ.get("QUIESCE_ADDRESS")
    if given:
        return given
    from quiesce.cli.config import load_config

    return load_config().broker.address


@contextmanager
def connected(address: str | None) -> "Iterator[Client]":
    """A client, closed afterwards."""
    where = broker_address(address)
    from quiesce.client import Client

    class CommandClient(Client):
        """Says how the command names a broker."""

        _another = "--address or QUIESCE_ADDRESS"

    with CommandClient(where, timeout=CONNECT_TIMEOUT) as client:
        yield client
