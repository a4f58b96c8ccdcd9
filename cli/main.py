"""The `quiesce` command: which verbs there are, and how all of them say what is wrong.

What a verb needs is imported where it is used, so that `quiesce --help` and `quiesce up` start fast.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

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
from quiesce.cli.options import GoesOnError
from quiesce.cli.output import print_error
from quiesce.errors import QuiesceError

SUCCESS: Final = 0
FAILURE: Final = 1
WRONG_USAGE: Final = 2
#: By a signal of the user's, as shells and Typer have it; not for `up`, where that is the orderly end.
INTERRUPTED: Final = 130


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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exits 0 on success, 1 on failure, 2 on wrong usage, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = run(words)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _on_closed_pipe()
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """One call of the command, as its exit status."""
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        code = int(app(args=list(words), prog_name="quiesce", standalone_mode=False) or SUCCESS)
        if code == INTERRUPTED:
            print_error("Interrupted", "interrupted", as_json=as_json)
        return code
    except BrokenPipeError:
        return _on_closed_pipe()
    except GoesOnError as error:
        print_error("Interrupted", f"interrupted: {error}", as_json=as_json)
        return INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _on_wrong_usage(error, as_json)
        if (
            type(error).__name__ == "Abort"
        ):  # how older versions of Typer pass on a KeyboardInterrupt
            print_error("Interrupted", "interrupted", as_json=as_json)
            return INTERRUPTED
        if os.environ.get("QUIESCE_DEBUG") == "1":
            raise
        if isinstance(error, (QuiesceError, OSError)):
            return _fail(type(error).__name__, str(error), as_json)
        text = f"{error} ({type(error).__name__}; QUIESCE_DEBUG=1 shows where)"
        return _fail(type(error).__name__, text, as_json)


def _on_wrong_usage(error: Exception, as_json: bool) -> int:
    """An error of Typer's (it brings its own copy of Click or not, depending on its version)."""
    message = error.format_message()  # type: ignore[attr-defined]  # the caller has looked
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:  # otherwise it has been printed
            print(message, file=sys.stderr)
        return WRONG_USAGE
    code = int(error.exit_code)  # type: ignore[attr-defined]  # the caller has looked
    print_error("UsageError", message, as_json=as_json)
    if context is not None and not as_json:
        print(f"try: {context.command_path} --help", file=sys.stderr)
    return code


def _fail(error: str, message: str, as_json: bool) -> int:
    print_error(error, message, as_json=as_json)
    return FAILURE


def _on_closed_pipe() -> int:
    """Whoever read our output has gone (`quiesce ps | head`). Nothing may be written at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE


if __name__ == "__main__":
    main()
