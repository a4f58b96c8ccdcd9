"""The verbs that close and open scopes: shutdown, which says all the while what it waits for, and reopen."""

import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from quiesce.cli import options
from quiesce.cli.options import (
    Address,
    All,
    Json,
    Kind,
    Runtime,
    ScopeOptions,
    Tenant,
    Timeline,
)
from quiesce.cli.output import GoesOnError, clean, counted, print_json
from quiesce.cli.watching import AGAIN, SHOWN, Watch, detail, telling_of_no_broker
from quiesce.errors import QuiesceError, ShutdownTimeoutError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from quiesce.client import Client
    from quiesce.registry.rows import StopRow
    from quiesce.values import ShutdownReport

#: How often to ask what a stop waits for, in seconds; and how long to be silent before the first line.
_POLL: Final = 0.25
_SILENCE: Final = 1.0


class _Stop(threading.Thread):
    """The call, in a thread of its own: it returns when everything has ended."""

    def __init__(
        self,
        client: "Client",
        scope: ScopeOptions,
        *,
        grace: float | None,
        timeout: float | None,
        keep_closed: bool,
        reason: str,
    ) -> None:
        super().__init__(name="quiesce-stop", daemon=True)
        self._client = client
        self._scope = scope
        self._grace = grace
        self._timeout = timeout
        self._keep_closed = keep_closed
        self._reason = reason
        self.report: ShutdownReport | None = None
        self.error: BaseException | None = None
        #: Set once there is a report or an error. Waited for instead of `join`, which some versions of
        #: Python leave with a thread that looks dead when Ctrl-C interrupts it.
        self.over = threading.Event()

    def run(self) -> None:
        try:
            self.report = self._client.shutdown_tasks(
                *self._scope,
                grace=self._grace,
                timeout=self._timeout,
                keep_closed=self._keep_closed,
                reason=self._reason,
            )
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error
        finally:
            self.over.set()


def shutdown(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    everything: All = False,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="From the request to force. Default: as each kind is configured; inf: never.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="How long to wait for all of it. Default: for ever.",
            show_default=False,
        ),
    ] = None,
    keep_closed: Annotated[
        bool, typer.Option("--keep-closed", help="Leave the scope closed, until `reopen`.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; the tasks see it.", show_default=False)] = "",
    address: Address = None,
    json: Json = False,
) -> None:
    """Stop the tasks of a scope; returns when every one of them has really ended.

    Exits 1 if some have not within --timeout: the scope then stays closed. Interrupted, the stop goes on.
    """
    scope = options.wide_scope(options.scope(kind, tenant, timeline, runtime), everything)
    grace_seconds = options.seconds(grace, "--grace")
    timeout_seconds = options.seconds(timeout, "--timeout")
    options.refuse_bytes("--reason", reason)
    with options.connected(address) as client:
        stop = _Stop(
            client,
            scope,
            grace=grace_seconds,
            timeout=timeout_seconds,
            keep_closed=keep_closed,
            reason=reason,
        )
        stop.start()
        try:
            with telling_of_no_broker(client, quiet=json):
                if json:
                    stop.over.wait()
                elif sys.stderr.isatty():
                    _show_live(client, stop, scope)
                else:
                    _show_lines(client, stop, scope)
        except KeyboardInterrupt:
            if not stop.over.is_set():
                limited = timeout_seconds is not None
                text = _goes_on(client, scope, address, keep_closed=keep_closed, limited=limited)
                raise GoesOnError(text) from None
    report = stop.report
    if isinstance(stop.error, ShutdownTimeoutError):
        report = stop.error.report
    if report is not None and json:
        print_json(report)
    elif report is not None:
        print(report)
    if isinstance(stop.error, ShutdownTimeoutError) and report is not None:
        raise ShutdownTimeoutError(_timeout_text(scope, address, timeout_seconds, report), report)
    if stop.error is not None:
        raise stop.error


def _timeout_text(
    scope: ScopeOptions, address: str | None, timeout: float | None, report: "ShutdownReport"
) -> str:
    from quiesce.client.requests import timeout_text

    reopen = options.command("reopen", *scope.words(), address=address)
    return clean(
        f"{timeout_text(report.scope, timeout, report)}. The scope stays closed; a shutdown that "
        f"succeeds, or {reopen}, opens it"
    )


def _find(client: "Client", scope: ScopeOptions) -> "StopRow | None":
    """Our stop among those in progress. Another one of the same scope waits for the same tasks."""
    from quiesce.registry.scope import Scope

    try:
        stops = [row for row in client.stops() if row.scope == str(Scope(*scope))]
    except QuiesceError:
        return None  # the call itself will say what is wrong, and of no broker is told anyway
    return max(stops, key=lambda row: row.stop_id, default=None)


def _names(row: "StopRow") -> str:
    """The first tasks that a stop waits for, and what each waits for."""
    names = ", ".join(
        f"{task.id} {task.name} ({task.waiting_for or task.state})" for task in row.tasks[:5]
    )
    return names + (f" and {row.remaining - 5} more" if row.remaining > 5 else "")


def _goes_on(
    client: "Client", scope: ScopeOptions, address: str | None, *, keep_closed: bool, limited: bool
) -> str:
    """What to tell who interrupts a stop: the broker goes on with it, and keeps its scope closed."""
    from quiesce.registry.scope import Scope

    row = _find(client, scope)
    waiting = f": it waits for {counted(row.remaining, 'task')}, {_names(row)}" if row else ""
    reopen = options.command("reopen", *scope.words(), address=address)
    if keep_closed:
        until = f"until {reopen}"
    else:
        until = "until all have ended"
        until += f" (if its --timeout is over before: until {reopen})" if limited else ""
    again = options.command("shutdown", *scope.words(), address=address)
    shown = options.command("ps", "--closed", address=address)
    return clean(
        f"the stop of {Scope(*scope)} goes on{waiting}. The scope stays closed {until}. "
        f"{shown} shows it; {again} waits for it again"
    )


def _show_lines(client: "Client", stop: _Stop, scope: ScopeOptions) -> None:
    """After a second of silence, whenever what is left has changed, and each minute: who, and where they are."""
    started, last, again_at = time.monotonic(), "", 0.0
    watch = Watch(client)
    wait = _SILENCE
    while True:
        if stop.over.wait(wait):
            return
        wait = _POLL
        row = _find(client, scope)
        if row is None:
            continue
        now = time.monotonic()
        line = clean(f"waiting for {counted(row.remaining, 'task')} of {row.scope}: {_names(row)}")
        lines = []
        if line != last or now >= again_at:
            last, again_at = line, now + AGAIN
            lines = [f"{now - started:.1f} s: {line}", *map(detail, row.tasks[:SHOWN])]
        watch.look(row, now)
        lines += watch.take()
        if lines:
            print("\n".join(lines), file=sys.stderr, flush=True)


def _show_live(client: "Client", stop: _Stop, scope: ScopeOptions) -> None:
    """On a terminal: the table of what is left, in place; it goes away at the end."""
    from rich.live import Live

    from quiesce.cli.output import console

    started = time.monotonic()
    watch = Watch(client)
    with Live(console=console(error=True), transient=True, auto_refresh=False) as live:
        while True:
            if stop.over.wait(_POLL):
                return
            row = _find(client, scope)
            if row is None:
                continue
            now = time.monotonic()
            if now >= started + _SILENCE:
                watch.look(row, now)
            watch.take()
            live.update(_picture(row, watch.shown), refresh=True)


def _picture(row: "StopRow", stacks: list[str]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from quiesce.cli.listing import tasks
    from quiesce.cli.output import age
    from quiesce.client.outcomes import task_info

    head = f"waiting for {counted(row.remaining, 'task')} of {row.scope}, {age(row.requested_at)}"
    parts: list[RenderableType] = [
        Text(clean(head)),
        tasks(map(task_info, row.tasks), of_a_stop=True),
    ]
    if row.remaining > len(row.tasks):
        parts.append(Text(f"… and {row.remaining - len(row.tasks)} more"))
    parts += [Text(line, overflow="ellipsis", no_wrap=True) for line in stacks]
    return Group(*parts)


def reopen(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    everything: All = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Open scopes within this one that were kept closed, or stayed so after a stop that timed out."""
    from quiesce.registry.scope import Scope

    scope = options.wide_scope(options.scope(kind, tenant, timeline, runtime), everything)
    with options.connected(address) as client:
        before = client.closed_scopes()
        client.reopen(*scope)
        closed = client.closed_scopes()
    opened = [
        each
        for each in before
        if each.holder in ("kept", "timed-out")  # others open by themselves
        and Scope(*scope).matches(each.kind, each.tenant_id, each.timeline_id, each.runtime)
        and each not in closed
    ]
    if json:
        print_json({"reopened": opened, "closed": closed})
        return
    for each in opened:
        print(clean(f"opened: {each.scope}"))
    if not opened:
        print(clean(f"nothing to open: no scope within [{Scope(*scope)}] was kept closed"))
    for each in closed:
        print(clean(f"still closed: {each.scope}, by {each.holder}"))
