"""The resource tracker of multiprocess, which the workers of a pool share: started when one of them needs it.

It removes semaphores and shared memory that their processes have left behind when they died, and is a Python
interpreter of its own. Most pools never make any. So the pipe that it listens to is there from the start, as every
worker inherits it; the tracker itself comes once something has been written there, and finds it.
"""

import logging
import os
import select
import signal
from typing import Final

import multiprocess.resource_tracker
import multiprocess.spawn
import multiprocess.util

_log: Final = logging.getLogger("quiesce.supervisor")

#: What the tracker ignores, once it has got so far.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM)


class Tracker:
    """One for a supervisor process, before its first worker."""

    def __init__(self) -> None:
        self._inbox, self._outbox = os.pipe()
        #: The process, None while there is none.
        self.pid: int | None = None
        ours = multiprocess.resource_tracker._resource_tracker
        ours._fd = self._outbox  # what workers are given
        ours.ensure_running = _not_for_us

    def fileno(self) -> int:
        """Readable once somebody needs the tracker: then call `start`. -1 after that."""
        return self._inbox

    def start(self) -> None:
        """Start it. If that fails, workers find the pipe closed and start their own."""
        code = f"from multiprocess.resource_tracker import main; main({self._inbox})"
        program = multiprocess.spawn.get_executable()
        flags = multiprocess.util._args_from_interpreter_flags()
        signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            self.pid = multiprocess.util.spawnv_passfds(
                program, [program, *flags, "-c", code], [self._inbox, 2]
            )
        except OSError as error:
            _log.error("the resource tracker of the workers can't be started: %s", error)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
            os.close(self._inbox)
            self._inbox = -1

    def stop(self) -> None:
        """When no worker is left: have it remove what is left of them, and wait for its end."""
        if self._inbox >= 0 and select.select([self._inbox], [], [], 0)[0]:
            self.start()
        os.close(self._outbox)
        if self._inbox >= 0:
            os.close(self._inbox)
        if self.pid is not None:
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                pass  # it was killed, and reaped with orphans


def _not_for_us() -> None:
    """In the supervisor itself nothing is tracked."""
