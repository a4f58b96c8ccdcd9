"""How many files `up` and what it starts may have open: as many as the system allows, and enough."""

import logging
import resource
from collections.abc import Callable
from typing import Final

from quiesce.errors import ConfigurationError

#: What a process of a system has open without its peers, and room for a few clients.
_BESIDES: Final = 48
#: What a broker has open for each worker and each supervisor: two sockets.
_EACH: Final = 2


def raise_limit(peers: int, say: Callable[[str, int], None]) -> None:
    """Raise the limit as far as the system allows, for this process and all that it starts.

    ConfigurationError if that is not enough for a broker with so many workers and supervisors: each process would
    fail at another place.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            say(f"the limit of open files stays at {soft}: {error}", logging.WARNING)
    least = _BESIDES + _EACH * peers
    if soft != resource.RLIM_INFINITY and soft < least:
        raise ConfigurationError(
            f"a process may have {soft} files open, and this system needs {least} at least: {_EACH} for each of "
            f"its {peers} workers and supervisors, and {_BESIDES} besides. Raise the limit (ulimit -n, "
            "LimitNOFILE of a service), or configure fewer processes"
        )
