"""The `quiesce` command: how all verbs are called, and how all of them say what is wrong.

What a verb needs is imported where it is used. A plain `quiesce up` does without Typer, which takes longer to load
than everything else that `up` needs, and would stay in memory as long as the system runs.
"""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Final, NoReturn

from quiesce import logs
from quiesce.cli.output import GoesOnError, print_error
from quiesce.cli.paths import why_not_readable
from quiesce.errors import QuiesceError

SUCCESS: Final = 0
FAILURE: Final = 1
WRONG_USAGE: Final = 2
#: By a signal of the user's, as shells and Typer have it; not for `up`, where that is the orderly end.
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exits 0 on success, 1 on failure, 2 on wrong usage, 130 if interrupted."""
    logs.fill_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        # As stderr has it: a name that can't be encoded must not make a verb fail that has done its work.
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = run(words)
    if not logs.flush(sys.stdout):
        code = code or FAILURE
    logs.flush(sys.stderr)
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """One call of the command, as its exit status."""
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        code = _call(words)
        if code == INTERRUPTED:
            print_error("Interrupted", "interrupted", as_json=as_json)
        return code
    except BrokenPipeError:  # whoever read our output has gone (`quiesce ps | head`)
        return FAILURE
    except KeyboardInterrupt:  # of a plain `up` that had not got so far as to wait for signals
        print_error("Interrupted", "interrupted", as_json=as_json)
        return INTERRUPTED
    except GoesOnError as error:
        print_error("Interrupted", f"interrupted: {error}", as_json=as_json)
        return INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _on_wrong_usage(error, words, as_json)
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


def _call(words: Sequence[str]) -> int:
    plain = _plain_up(words)
    if plain is not None:
        from quiesce.cli.config import load_config
        from quiesce.cli.run_system import run_system

        path, as_json = plain
        return run_system(load_config(path, to_run=True), as_json)
    from quiesce.cli.verbs import app

    return int(app(args=list(words), prog_name="quiesce", standalone_mode=False) or SUCCESS)


def _plain_up(words: Sequence[str]) -> tuple[str | None, bool] | None:
    """FILE and whether --json, of `up [--config FILE] [--json]` with a FILE that is there; None: it is not that."""
    if not words or words[0] != "up":
        return None
    path, as_json = None, False
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "--json" and not as_json:
            as_json = True
        elif word == "--config" and path is None and rest and not why_not_readable(rest[0]):
            path = rest.pop(0)
        else:
            return None
    return path, as_json


def _on_wrong_usage(error: Exception, words: Sequence[str], as_json: bool) -> int:
    """An error of Typer's (it brings its own copy of Click or not, depending on its version)."""
    message = error.format_message()  # type: ignore[attr-defined]  # the caller has looked
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:  # otherwise it has been printed
            logs.write(message)
        return WRONG_USAGE
    code = int(error.exit_code)  # type: ignore[attr-defined]  # the caller has looked
    print_error("UsageError", message, as_json=as_json)
    if not as_json:
        path = _command(words) if context is None else context.command_path
        logs.write(f"try: {path} --help")
    return code


def _command(words: Sequence[str]) -> str:
    """What was called, for an error that does not say: of an option without its argument."""
    from quiesce.cli.verbs import VERBS

    verbs = [verb.__name__ for verbs in VERBS.values() for verb in verbs]
    return f"quiesce {words[0]}" if words and words[0] in verbs else "quiesce"


def _fail(error: str, message: str, as_json: bool) -> int:
    print_error(error, message, as_json=as_json)
    return FAILURE


if __name__ == "__main__":
    main()
