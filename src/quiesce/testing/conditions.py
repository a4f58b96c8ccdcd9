"""Conditions with deadlines, in place of sleeps."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from quiesce.errors import QuiesceError
from quiesce.testing.failures import NotInTimeError

T = TypeVar("T")

#: Seconds between two looks.
PACE: Final = 0.005


def wait_until(
    condition: Callable[[], T],
    timeout: float = 20.0,
    what: str = "",
    *,
    wanted: Callable[[T], object] = bool,
) -> T:
    """Call `condition()` until what it gives is true (or `wanted` of it is); gives that.

    An error of quiesce counts as not yet: a broker may just be away. Any other is raised.

    Args:
        timeout: seconds; the last look is after they are over.
        what: what is waited for, in words, for the failure.

    Raises:
        NotInTimeError: it did not come true; the text has the last value or error.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        try:
            seen = condition()
        except QuiesceError as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if wanted(seen):
                return seen
            last = repr(seen)
        if late:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise NotInTimeError(f"after {timeout:g} s still not so: {name}; last seen: {last}")
        time.sleep(PACE)
