"""The options that several verbs share, and what they mean together."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

if TYPE_CHECKING:
    from quiesce.client import Client

#: How long a verb waits for a broker, in seconds: it may just be starting.
CONNECT_TIMEOUT: Final = 5.0

Address = Annotated[
    str | None,
    typer.Option(
        help="Of the broker. Default: QUIESCE_ADDRESS, the configuration here, or the default one.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Default: QUIESCE_CONFIG, ./quiesce.toml, [tool.quiesce] in ./pyproject.toml.",
        show_default=False,
    ),
]
Kind = Annotated[str | None, typer.Option(help="Only tasks of this kind.", show_default=False)]
Tenant = Annotated[str | None, typer.Option(help="Only of this tenant.", show_default=False)]
Timeline = Annotated[str | None, typer.Option(help="Only of this timeline.", show_default=False)]
Runtime = Annotated[str | None, typer.Option(help="Only of this runtime.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Everything: needed when no scope is given.")]


class ScopeOptions(NamedTuple):
    """--kind, --tenant, --timeline, --runtime, in the order in which the client takes them."""

    kind: str | None
    tenant_id: str | None
    timeline_id: str | None
    runtime: str | None


def scope(
    kind: str | None, tenant: str | None, timeline: str | None, runtime: str | None
) -> ScopeOptions:
    """An empty value is refused: in a script it is a variable that was not set, and not a wish for everything."""
    given = {"--kind": kind, "--tenant": tenant, "--timeline": timeline, "--runtime": runtime}
    for option, value in given.items():
        if value == "":
            raise typer.BadParameter(
                "is empty; leave the option out to match any", param_hint=option
            )
    return ScopeOptions(kind, tenant, timeline, runtime)


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


def seconds(text: str | None, option: str) -> float | None:
    """A time that may be inf."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise typer.BadParameter(
            f"expected seconds (0 or more, or inf), got {text!r}", param_hint=option
        )
    return value


def broker_address(address: str | None) -> str:
    """Where `quiesce up` with the same environment and folder would be."""
    given = address or os.environ.get("QUIESCE_BROKER_ADDRESS") or os.environ.get("QUIESCE_ADDRESS")
    if given:
        return given
    from quiesce.cli.config import load_config

    return load_config().broker.address


@contextmanager
def connected(address: str | None) -> "Iterator[Client]":
    """A client, closed afterwards."""
    where = broker_address(address)
    from quiesce.client import Client

    with Client(where, timeout=CONNECT_TIMEOUT) as client:
        yield client
