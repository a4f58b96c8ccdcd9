"""The verbs that start tasks and look at them: spawn, ps, stacks, events."""

import json as jsonlib
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from quiesce.cli import options
from quiesce.cli.loading import load_function
from quiesce.cli.options import (
    Address,
    Json,
    Kind,
    Runtime,
    ScopeOptions,
    Tenant,
    Timeline,
)
from quiesce.cli.output import (
    GoesOnError,
    clean,
    plain,
    print_error,
    print_json,
    result_document,
    result_text,
)
from quiesce.errors import QuiesceError

if TYPE_CHECKING:
    from quiesce.client.options import AnyState


def spawn(
    function: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION", help="Importable by the workers.", show_default=False
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="JSON values: 3, '\"text\"', '[1, 2]'. Put -- before negative numbers.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[str, typer.Option(help="The pool to run in.")] = "background",
    kind: Annotated[str, typer.Option(help="What the task is for.", show_default=False)] = ...,  # type: ignore[assignment]  # Typer's way to say: required
    tenant: Annotated[
        str | None, typer.Option(help="Whom it works for; stops select by it.", show_default=False)
    ] = None,
    timeline: Annotated[
        str | None, typer.Option(help="And on which part of theirs.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="For people. Default: the function's.", show_default=False)
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(help="Keyword arguments, as a JSON object.", show_default=False),
    ] = None,
    unique_key: Annotated[
        str | None,
        typer.Option(
            help="Only one live task may have it; another spawn gets that one.", show_default=False
        ),
    ] = None,
    retries: Annotated[int, typer.Option(help="How often to run it again after a failure.")] = 0,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="For how long it may run.", show_default=False),
    ] = None,
    shutdown_process_on_error: Annotated[
        bool,
        typer.Option(
            "--shutdown-process-on-error", help="Its failure stops the whole system in order."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait, and print its result.")
    ] = False,
    progress: Annotated[
        bool, typer.Option("--progress", help="With --wait: a bar of what it reports.")
    ] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Start a task; prints its id, or with --wait its result.

    A --wait that is interrupted leaves the task alone: it goes on.
    """
    for option, value, advice in (
        ("--kind", kind, "name a kind of the configuration"),
        ("--runtime", runtime, "leave the option out for 'background'"),
        ("--tenant", tenant, "leave the option out for a task of no tenant"),
        ("--timeline", timeline, "leave the option out for a task of no timeline"),
        ("--name", name, "leave the option out for the name of the function"),
        ("--unique-key", unique_key, "leave the option out for none"),
    ):
        options.refuse_empty(option, value, advice)
        options.refuse_bytes(option, value)
    # Said here, for each version of Typer says it in other words.
    if not 0 <= retries <= options.MAX_RETRIES:
        raise typer.BadParameter(
            f"expected a whole number from 0 to {options.MAX_RETRIES}, got {retries}",
            param_hint="--retries",
        )
    timeout_seconds = options.seconds(timeout, "--timeout", positive=True)
    values = [_json_value(text, f"argument {n}") for n, text in enumerate(arguments or [], 1)]
    keywords = _json_value(kwargs, "--kwargs") if kwargs is not None else {}
    if not isinstance(keywords, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--kwargs")
    if progress and not wait:
        raise typer.BadParameter("goes with --wait", param_hint="--progress")
    called = load_function(function)
    with options.connected(address) as client:
        handle = client.spawn(
            runtime,
            kind,
            called,
            *values,
            kwargs=keywords,
            tenant_id=tenant,
            timeline_id=timeline,
            name=name,
            unique_key=unique_key,
            retries=retries,
            timeout=timeout_seconds,
            shutdown_process_on_error=shutdown_process_on_error,
        )
        task_id = handle.id
        if not wait:
            print_json({"id": task_id}) if json else print(task_id)
            return
        task = clean(f"task {task_id} ({handle.name})")
        if not json:
            print(task, file=sys.stderr, flush=True)
        from quiesce.cli.watching import telling_of_no_broker
        from quiesce.client.progress import follow

        meter = follow(client, [handle._record], True) if progress else None
        try:
            try:
                with telling_of_no_broker(client, quiet=json):
                    result = handle.result()
            finally:
                if meter is not None:
                    (meter.join if handle.done() else meter.close)()
        except QuiesceError as error:
            if not json:
                raise  # its task has been named
            print_error(type(error).__name__, str(error), as_json=True, id=task_id)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            where = ScopeOptions(kind, tenant, timeline, runtime)
            shown = options.command("ps", *where.words(), address=address)
            stop = options.command("shutdown", *where.words(), address=address)
            raise GoesOnError(
                f"{task} goes on: {shown} shows it; {stop} stops it, with all others of that scope"
            ) from None
        if json:
            document = result_document(result)
            print_json({"id": task_id, "outcome": "completed", "result": document})
        elif result is not None:
            print(result_text(result))


def _json_value(text: str, what: str) -> Any:
    try:
        return jsonlib.loads(text)
    except ValueError as error:
        quoted = jsonlib.dumps(text)
        raise typer.BadParameter(
            f"{text!r} is not JSON ({error}); a text needs quotes of its own: '{quoted}'",
            param_hint=what,
        ) from None


def ps(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="queued, assigned, running, or ended. Default: all live ones.", show_default=False
        ),
    ] = None,
    closed: Annotated[
        bool,
        typer.Option(
            "--closed", help="Show closed scopes, too, and what has to end before they open."
        ),
    ] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show the tasks and, below them, each runtime."""
    from quiesce.cli.output import console

    scope = options.scope(kind, tenant, timeline, runtime)
    states = ("queued", "assigned", "running", "ended")
    if state is not None and state not in states:
        raise typer.BadParameter(
            f"expected one of {', '.join(states)}; got {state!r}", param_hint="--state"
        )
    with options.connected(address) as client:
        tasks = client.tasks(*scope, state=cast("AnyState | None", state))  # as was just checked
        statistics = client.statistics()
        scopes = client.closed_scopes() if closed else []
        stops = client.stops()
    if json:
        document: dict[str, Any] = {
            "tasks": tasks,
            "runtimes": statistics.get("runtimes", {}),
            "stops": stops,
        }
        print_json(document | {"closed": scopes} if closed else document)
        return
    from rich.text import Text

    from quiesce.cli import listing

    out = console()
    out.print(listing.tasks(tasks) if tasks else "no tasks")
    out.print()
    out.print(listing.runtimes(statistics.get("runtimes", {})))
    if stops:
        out.print()
        out.print(Text(listing.stops(stops)))
    if closed:
        out.print()
        out.print(listing.closed(scopes) if scopes else "no scope is closed")


def stacks(
    kind: Kind = None,
    tenant: Tenant = None,
    timeline: Timeline = None,
    runtime: Runtime = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show the Python stacks of running tasks."""
    scope = options.scope(kind, tenant, timeline, runtime)
    with options.connected(address) as client:
        found = client.stacks(*scope)
        tasks = {} if json else {task.id: task for task in client.tasks(*scope)}
    if json:
        print_json({"stacks": found})
        return
    from quiesce.cli.watching import how_it_gets_on

    for task in found:
        print(f"task {task.id}.{task.attempt} {clean(task.name)} in process {task.worker_pid}")
        if task.id in tasks:
            print(f"  {clean(how_it_gets_on(tasks[task.id]))}")
        for text in task.stacks or ("no stack came",):
            print("\n".join(f"  {clean(line)}" for line in text.rstrip().splitlines()))
        print()
    if not found:
        print("no running tasks")


def events(address: Address = None, json: Json = False) -> None:
    """Show what happens in the registry, one line each, until interrupted."""
    import time

    from quiesce.cli.watching import telling_of_no_broker

    with (
        options.connected(address) as client,
        suppress(KeyboardInterrupt),
        telling_of_no_broker(client, quiet=json),
    ):
        for event in client.events():
            if json:
                print_json(event)
                continue
            at = time.strftime("%H:%M:%S", time.localtime(event.at))
            task = f" task {event.task_id}" if event.task_id is not None else ""
            data = " ".join(
                f"{key}={value if isinstance(value, str) else jsonlib.dumps(value)}"
                for key, value in plain(event.data).items()
                if value not in (None, "")
            )
            print(
                clean(f"{at}.{int(event.at % 1 * 1000):03} {event.type}{task} {data}"), flush=True
            )
