"""The verbs of the `quiesce` command, read with Typer."""

from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from quiesce import __version__
from quiesce.cli import (
    doctor,
    history_verb,
    stop_verbs,
    system_verbs,
    task_verbs,
    top_verb,
)


class Verb(TyperCommand):
    """A usage line that reads `NAME`, `[FOLDER]`, `[ARGS]...` with every version of Typer."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the verb. The versions wrap the metavars of arguments differently, or not at all."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = param.metavar or str(param.name).upper()
                pieces.append(name if param.required else f"[{name}]")
                pieces[-1] += "..." if param.nargs != 1 else ""
        return pieces


app = typer.Typer(
    name="quiesce",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: The verbs, in the order and under the heads of the help.
VERBS: Final = {
    "Run a system": (
        system_verbs.up,
        system_verbs.broker,
        system_verbs.pool,
        doctor.doctor,
        system_verbs.demo,
    ),
    "Start and stop tasks": (task_verbs.spawn, stop_verbs.shutdown, stop_verbs.reopen),
    "See what happens": (
        task_verbs.ps,
        top_verb.top,
        task_verbs.stacks,
        history_verb.history,
        task_verbs.events,
    ),
}
for head, verbs in VERBS.items():
    for verb in verbs:
        app.command(cls=Verb, rich_help_panel=head)(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quiesce {__version__}")
        raise typer.Exit()


@app.callback()
def quiesce(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Process pools with one truthful registry: stop exactly the tasks you name, and know when they ended."""
