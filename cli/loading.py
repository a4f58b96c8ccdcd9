"""The function that `spawn` names: imported here as the workers will, or said in words why that fails."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import typer

from quiesce.cli.keys import nearest

_HINT: Final = "MODULE:FUNCTION"


def load_function(reference: str) -> Callable[..., Any]:
    """Import `reference` with the current folder on the path.

    Raises typer.BadParameter if it names nothing, ImportError if its module is there and fails.
    """
    module_name, path = _parts(reference)
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found: Any = _module(module_name, folder)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = nearest(part, tuple(dir(found)))
            raise typer.BadParameter(
                f"{module_name!r} has no {path!r}{near}", param_hint=_HINT
            ) from None
    if not callable(found):
        raise typer.BadParameter(f"{reference!r} is not a function", param_hint=_HINT)
    return found  # type: ignore[no-any-return]  # it is callable, as was just checked


def _parts(reference: str) -> tuple[str, str]:
    module_name, colon, path = reference.partition(":")
    text = f"expected MODULE:FUNCTION, such as package.module:function, got {reference!r}"
    if "/" in module_name or module_name.endswith(".py"):
        text += "; name the module as an import does, not its file"
        raise typer.BadParameter(text, param_hint=_HINT)
    if colon and module_name.startswith("."):
        text += "; a module is named in full, without a leading dot"
        raise typer.BadParameter(text, param_hint=_HINT)
    if not colon or not all(module_name.split(".")) or not all(path.split(".")):
        raise typer.BadParameter(text, param_hint=_HINT)
    return module_name, path


def _module(name: str, folder: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise typer.BadParameter(
                f"there is no module {missing!r} (looked in {folder} and among the installed ones)",
                param_hint=_HINT,
            ) from None
        raise ImportError(f"can't import {name!r}: {error}{_where(error.__traceback__)}") from error
    except (Exception, SystemExit) as error:  # whatever its code does while it is imported
        text = traceback.format_exception_only(error)[-1].strip()
        raise ImportError(f"can't import {name!r}: {text}{_where(error.__traceback__)}") from error


def _where(trace: TracebackType | None) -> str:
    """Which line it was: the last one that is not of the import system."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(trace)
        if not frame.f_code.co_filename.startswith("<frozen importlib")
        and frame.f_code.co_filename not in (__file__, importlib.__file__)
    ]
    if not frames:
        return ""
    frame, line = frames[-1]
    return f", in {frame.f_globals.get('__name__', '?')} ({frame.f_code.co_filename}:{line})"
