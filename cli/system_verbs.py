"""The verbs that run a system or a part of it in the foreground: up, broker, pool, demo."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from quiesce.cli.options import ConfigFile, Json, refuse_empty
from quiesce.errors import ConfigurationError

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A runtime of the configuration.", show_default=False),
]
Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
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

    SIGINT, SIGTERM or SIGHUP stops all in order; SIGINT or SIGTERM again, 0.3 s later, faster; SIGQUIT at once.
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
    from quiesce.cli.run_system import run_system

    check_path(path)
    config = load_config(path, to_run=True)
    for name in runtimes or ():
        try:
            config.runtime(name)
        except ConfigurationError as error:
            raise typer.BadParameter(str(error), param_hint="NAME") from None
    raise typer.Exit(run_system(config, as_json, runtimes, with_broker))


def check_path(path: str | None) -> None:
    """An option that names no file is wrong usage; a file with wrong contents is not."""
    from quiesce.cli.sources import find_file

    refuse_empty("--config", path, "leave the option out for the default")
    if path is not None:
        try:
            find_file(path, {})
        except (ConfigurationError, RuntimeError) as error:  # RuntimeError: ~ of no user
            raise typer.BadParameter(str(error), param_hint="--config") from None


def demo(folder: Folder = None, keep: Keep = None, json: Json = False) -> None:
    """Run a small page server under load, detach a tenant, verify everything, stop."""
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="FOLDER")
    if keep is not None and keep.exists():
        text = f"{keep} is there already; name a folder to be made"
        raise typer.BadParameter(text, param_hint="--keep")
    # By name: the examples use the command line, so this must not import them.
    module = importlib.import_module("quiesce.examples.pageserver.demo")
    raise typer.Exit(module.run_demo(folder, json=json, keep=keep))
