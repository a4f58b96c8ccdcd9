"""The verbs that run a system or a part of it in the foreground: up, broker, pool, demo."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quiesce.cli.options import ConfigFile, Json

if TYPE_CHECKING:
    from quiesce.cli.up import Up

Name = Annotated[str, typer.Argument(metavar="NAME", help="A runtime of the configuration.")]
Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]",
        help="Any folder with files. Default: the standard library of the running Python.",
        show_default=False,
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Move the work folder here at the end.", show_default=False
    ),
]


def up(config: ConfigFile = None, json: Json = False) -> None:
    """Start the broker and all pools, in the foreground.

    SIGINT, SIGTERM or SIGHUP stops everything in order, a second one faster, SIGQUIT at once.
    """
    _run(config, json)


def broker(config: ConfigFile = None, json: Json = False) -> None:
    """Start the broker alone, in the foreground. Signals as in `up`."""
    _run(config, json, runtimes=())


def pool(name: Name, config: ConfigFile = None, json: Json = False) -> None:
    """Start one pool alone, in the foreground: its broker runs elsewhere. Signals as in `up`."""
    _run(config, json, runtimes=(name,), with_broker=False)


def _run(
    path: str | None,
    as_json: bool,
    runtimes: tuple[str, ...] | None = None,
    with_broker: bool = True,
) -> None:
    from quiesce.cli.config import load_config
    from quiesce.cli.up import Up, say

    config = load_config(path)
    for warning in config.warnings:
        say(f"warning: {warning}")
    on_ready = _announce_json if as_json else None
    code = Up(config, runtimes=runtimes, with_broker=with_broker, on_ready=on_ready).run()
    raise typer.Exit(code)


def _announce_json(ready: "Up") -> None:
    from quiesce.cli.output import print_json

    print_json(
        {
            "pid": os.getpid(),
            "broker_pid": ready.broker.pid if ready.broker else None,
            "address": ready.config.broker.address,
            "runtimes": {
                pool.runtime: {"processes": pool.processes, "slots": pool.slots}
                for pool in ready.pools
            },
        }
    )


def demo(folder: Folder = None, keep: Keep = None, json: Json = False) -> None:
    """Run a small page server under load, detach a tenant, verify everything, stop."""
    # By name: the examples use the command line, so this must not import them.
    module = importlib.import_module("quiesce.examples.pageserver.demo")
    raise typer.Exit(module.run_demo(folder, json=json, keep=keep))
