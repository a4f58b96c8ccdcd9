"""Waits for the child processes of attempts whose body has ended. The control thread's alone."""

import os
from collections.abc import Callable
from typing import Protocol

from quiesce.registry.ids import AttemptKey
from quiesce.workers.attempt import Attempt
from quiesce.workers.hooks import Nursery
from quiesce.workers.processes import Process, command, kill, open_pidfd


class Watch(Protocol):
    """What tells when a descriptor is readable: the control thread's poller."""

    def register(self, fd: int, /) -> object: ...

    def unregister(self, fd: int, /) -> object: ...


class Sweeper:
    """Finds the processes of closing attempts, and looks again whenever one of these has died."""

    def __init__(
        self, nursery: Nursery, watch: Watch, find_attempt: Callable[[AttemptKey], Attempt | None]
    ) -> None:
        self._nursery = nursery
        self._watch = watch
        self._find_attempt = find_attempt
        #: Attempts whose body has ended and that hold processes.
        self._closing: dict[AttemptKey, Attempt] = {}
        #: By descriptor: all and only the processes that the poller watches for us.
        self._watched: dict[int, Process] = {}
        #: What each closing attempt waits for, for people.
        self.words: dict[AttemptKey, str] = {}

    def close(self, attempt: Attempt) -> None:
        """The body of this attempt has ended and it has had processes; or it started another since."""
        self._closing[attempt.key] = attempt

    def on_readable(self, fd: int) -> bool:
        """A watched process has died, if `fd` is one of ours; then `sweep` is due."""
        if self._watched.pop(fd, None) is None:
            return False
        self._watch.unregister(fd)
        os.close(fd)
        return True

    def sweep(self) -> None:
        """Release the attempts that have no process left; watch, or if forced kill, those of the others."""
        while True:
            again = False
            closing = dict(self._closing)
            forks = {key: attempt.scope.forks for key, attempt in closing.items()}
            found = self._nursery.find() if closing else {}
            for key, attempt in closing.items():
                mine = [each for each, of in found.items() if of == key or of is None]
                if mine:
                    again = self._wait_for(attempt, mine) or again
                elif attempt.scope.no_processes(forks[key]):
                    del self._closing[key]
                    self.words.pop(key, None)
                else:
                    again = True
            if not again:
                return

    def force(self, key: AttemptKey) -> None:
        """SIGKILL to all processes of this attempt, body or no body; the attempt is marked as forced."""
        attempt = self._find_attempt(key)
        if attempt is None or not attempt.scope.forks:
            return
        alone = key in self._closing
        for process, of in self._nursery.find().items():
            if of == key or (of is None and alone):
                kill(process)

    def _wait_for(self, attempt: Attempt, mine: list[Process]) -> bool:
        """Watch these. True if one has died meanwhile, so that a new look is due."""
        shown = ", ".join(f"{each.pid} ({command(each.pid)[:60]})" for each in mine[:3])
        more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
        self.words[attempt.key] = f"child process {shown}{more}"
        watched = {(each.pid, each.start) for each in self._watched.values()}
        died = False
        for process in mine:
            if attempt.forced:
                kill(process)
            if (process.pid, process.start) in watched:
                continue
            fd = open_pidfd(process)
            if fd is None:
                died = True
            else:
                self._watched[fd] = process
                self._watch.register(fd)
        return died
