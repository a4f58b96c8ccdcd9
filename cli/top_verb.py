"""The verb that looks all the time: top."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from quiesce.cli import options
from quiesce.cli.options import Address, Json, Kind, Runtime, Tenant, Timeline
from quiesce.cli.output import print_json
from quiesce.errors import ConfigurationError

if TYPE_CHECKING:
    from quiesce.client import Client

#: The least seconds between two questions to the broker, and the most.
_FASTEST, _SLOWEST = 0.1, 3600.0
#: Seconds for each answer.
_PATIENCE = 2.0


def top(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    interval: Annotated[
        str, typer.Option(metavar="SECONDS", help="Between two looks at the broker.")
    ] = "1",
    address: Address = None,
    json: Json = False,
) -> None:
    """Watch runtimes, tasks and stops live, and act on them; ? shows the keys.

    Needs Textual, which the extra `top` brings. --json prints one snapshot, and needs nothing.
    """
    scope = options.scope(kind, tenant, timeline, runtime)
    seconds = options.seconds(interval, "--interval", positive=True)
    if seconds is None or not _FASTEST <= seconds <= _SLOWEST:
        raise typer.BadParameter(
            f"expected seconds from {_FASTEST:g} to {_SLOWEST:g}, got {interval!r}",
            param_hint="--interval",
        )
    if json:
        _print_snapshot(scope, address)
        return
    where = options.broker_address(address)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("needs a terminal; --json prints one snapshot, ps a table")
    if find_spec("textual") is None:
        raise ConfigurationError(
            "quiesce top needs Textual, which is not installed: pip install 'quiesce[top]' "
            "(without it: quiesce top --json, or quiesce ps)"
        )
    from quiesce.cli.top.app import TopApp
    from quiesce.cli.top.filters import Filter

    given = zip(("kind", "tenant", "timeline", "runtime"), scope, strict=True)
    wanted = Filter(tuple((name, value) for name, value in given if value is not None))
    with options.connected(where) as client:
        client.timeout = _PATIENCE
        _refuse_unknown(client, scope)
        shown = TopApp(client, interval=seconds, wanted=wanted)
        shown.run()
        for target in shown.going_on:
            print(f"the stop of {target} goes on; quiesce ps --closed shows it", file=sys.stderr)
    if shown.return_code:
        raise typer.Exit(shown.return_code)


def _refuse_unknown(client: "Client", scope: options.ScopeOptions) -> None:
    """A typo would pass for "nothing runs": the broker knows which kinds and runtimes there are."""
    if any(scope):
        client.history(*scope)


def _print_snapshot(scope: options.ScopeOptions, address: str | None) -> None:
    from quiesce.cli.top.source import document, take
    from quiesce.registry.scope import Scope

    with options.connected(address) as client:
        _refuse_unknown(client, scope)
        found = document(take(client))
    wanted = Scope(*scope)
    found["tasks"] = [
        task
        for task in found["tasks"]
        if wanted.matches(task.kind, task.tenant_id, task.timeline_id, task.runtime)
    ]
    print_json(found)
