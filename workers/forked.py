"""What becomes of a forked child of a task's code that comes back from it: it ends, as from a script."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from quiesce.workers.nursery import Nursery

_P = ParamSpec("_P")
_T = TypeVar("_T")


def leave_child(error: BaseException | None) -> NoReturn:
    """Code of a task forked, and its child came back to us: it is no worker, and must not act as one."""
    status = 0
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            status = 1
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where nobody can read that
        os._exit(status)


def call(
    nursery: Nursery, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Call code of a task. What this returns or raises, it does so in the worker only."""
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        if nursery.in_child:
            leave_child(error)
        raise
    if nursery.in_child:
        leave_child(None)
    return value
