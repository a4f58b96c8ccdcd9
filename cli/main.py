"""The `quiesce` command: which verbs there are, and how all of them say what is wrong.

What a verb needs is imported where it is used, so that `quiesce --help` and `quiesce up` start fast.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final, NoReturn

import typer

from quiesce import __version__
from quiesce.cli import stop_verbs, system_verbs, task_verbs
from quiesce.errors import QuiesceError

SUCCESS: Final = 0
FAILURE: Final = 1
WRONG_USAGE: Final = 2
#: By a signal of the user's, as shells and Typer have it; not for `up`, where that is the orderly end.
INTERRUPTED: Final = 130

app = typer.Typer(
    name="quiesce",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    system_verbs.up,
    system_verbs.broker,
    system_verbs.pool,
    task_verbs.spawn,
    task_verbs.ps,
    stop_verbs.shutdown,
    stop_verbs.reopen,
    task_verbs.stacks,
    task_verbs.events,
    system_verbs.demo,
):
    app.command()(verb)


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
            _fail("Interrupted", "interrupted", as_json)
        return code
    except BrokenPipeError:
        return _on_closed_pipe()
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _on_wrong_usage(error, as_json)
        if (
            type(error).__name__ == "Abort"
        ):  # how older versions of Typer pass on a KeyboardInterrupt
            _fail("Interrupted", "interrupted", as_json)
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
    _fail("UsageError", message, as_json)
    if context is not None and not as_json:
        print(f"try: {context.command_path} --help", file=sys.stderr)
    return code


def _fail(error: str, message: str, as_json: bool) -> int:
    if as_json:
        text = json.dumps({"error": error, "message": message}, ensure_ascii=False)
    else:
        text = "\n".join(f"error: {line}" for line in message.splitlines()[:1])
        text = "\n".join([text or "error", *message.splitlines()[1:]])
    print(text, file=sys.stderr, flush=True)
    return FAILURE


def _on_closed_pipe() -> int:
    """Whoever read our output has gone (`quiesce ps | head`). Nothing may be written at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE


if __name__ == "__main__":
    main()
