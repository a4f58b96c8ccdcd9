"""Waits for the child processes of attempts whose body has ended. The control thread's alone."""

import os
from collections.abc import Callable
from typing import Protocol

from quiesce.registry.ids import AttemptKey
from quiesce.workers.attempt import Attempt
from quiesce.workers.nursery import Nursery
from quiesce.workers.processes import Process, command, kill, open_pidfd


class Watch(Protocol):
    """What tells when a descriptor is readable: the control thread's poller."""

    def register(self, fd: int, /) -> object: ...

    def unregister(self, fd: int, /) -> object: ...


class Sweeper:
    """Finds the processes of closing attempts, and looks again whenever one of these has died."""

    def __init__(
        self, nursery: Nursery, watch: Watch, running: Callable[[], list[Attempt]]
    ) -> None:
        self._nursery = nursery
        self._watch = watch
        self._running = running
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
                if attempt.forced:
                    self._kill(key, found)
                if mine:
                    again = self._wait_for(attempt, mine) or again
                elif attempt.scope.no_processes(forks[key]):
                    del self._closing[key]
                    self.words.pop(key, None)
                else:
                    again = True
            if not again:
                return

    def force(self, attempt: Attempt) -> None:
        """SIGKILL to all processes of this attempt, body or no body; the attempt is marked as forced."""
        if not attempt.scope.forks:
            return
        self._kill(attempt.key, self._nursery.find())

    def _kill(self, key: AttemptKey, found: dict[Process, AttemptKey | None]) -> None:
        for process, of in found.items():
            if of == key or (of is None and self._is_only_parent(key)):
                kill(process)

    def _is_only_parent(self, key: AttemptKey) -> bool:
        """Whether an orphan that nothing names can only be this attempt's."""
        return not any(other.scope.forks for other in self._running() if other.key != key)

    def _wait_for(self, attempt: Attempt, mine: list[Process]) -> bool:
        """Watch these. True if one has died meanwhile, so that a new look is due."""
        shown = ", ".join(f"{each.pid} ({command(each.pid)[:60]})" for each in mine[:3])
        more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
        self.words[attempt.key] = f"child process {shown}{more}"
        watched = {(each.pid, each.start) for each in self._watched.values()}
        died = False
        for process in mine:
            if (process.pid, process.start) in watched:
                continue
            fd = open_pidfd(process)
            if fd is None:
                died = True
            else:
                self._watched[fd] = process
                self._watch.register(fd)
        return died
