"""Waits for the child processes of attempts whose body has ended. The control thread's alone."""

import logging
import os
from collections.abc import Callable
from typing import Final, Protocol

from quiesce.processes import (
    ENOUGH,
    NOT_OURS,
    Process,
    command,
    is_shortage,
    kill,
    open_pidfd,
)
from quiesce.registry.ids import AttemptKey
from quiesce.workers import logs
from quiesce.workers.attempt import Attempt
from quiesce.workers.nursery import Nursery

_log: Final = logging.getLogger("quiesce.worker")


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
        #: By (pid, start): those found at the last kill that we may not signal.
        self._foreign: set[tuple[int, int]] = set()
        #: Descriptors were used up: the last sweep came to nothing, and is to be made again in a while.
        self.put_off = False
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
        """Release the attempts that have no process left; watch, or if forced kill, those of the others.

        If a task has used up the descriptors of the process, nothing is known: then it is `put_off`.
        """
        try:
            self._sweep()
            self.put_off = False
        except OSError as error:
            self._put_off(error)

    def _sweep(self) -> None:
        while True:
            again = False
            closing = dict(self._closing)
            forks = {key: attempt.scope.forks for key, attempt in closing.items()}
            found = self._nursery.find() if closing else {}
            for key, attempt in closing.items():
                mine = _of(key, found)
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
        try:
            found = self._nursery.find()
            self._kill(attempt.key, found)
        except OSError as error:
            self._put_off(error)  # force comes again
            return
        if attempt.key in self._closing:
            self._describe(attempt.key, _of(attempt.key, found))

    def _put_off(self, error: OSError) -> None:
        if not is_shortage(error):
            raise error
        if not self.put_off:
            text = "the child processes of tasks can't be looked at for now: %s"
            logs.say(_log.warning, text, error)
        self.put_off = True
        for key in self._closing:
            self.words.setdefault(key, f"child processes, which can't be looked at: {error}")

    def _kill(self, key: AttemptKey, found: dict[Process, AttemptKey | None]) -> None:
        self._foreign &= {each.who for each in found}
        for process, of in found.items():
            if of != key and not (of is None and self._is_only_parent(key)):
                continue
            if not kill(process) and process.who not in self._foreign:
                self._foreign.add(process.who)
                text = "child process %d (%s) of task %d.%d can't be killed: %s; the task has not ended before it"
                logs.say(_log.warning, text, process.pid, _command(process), *key, NOT_OURS)

    def _is_only_parent(self, key: AttemptKey) -> bool:
        """Whether an orphan that nothing names can only be this attempt's."""
        return not any(other.scope.forks for other in self._running() if other.key != key)

    def _wait_for(self, attempt: Attempt, mine: list[Process]) -> bool:
        """Watch these, or enough of them. True if one has died meanwhile, so that a new look is due."""
        self._describe(attempt.key, mine)
        watched = {each.who for each in self._watched.values()}
        died = False
        for process in mine[:ENOUGH]:
            if process.who in watched:
                continue
            fd = open_pidfd(process)
            if fd is None:
                died = True
            else:
                self._watched[fd] = process
                self._watch.register(fd)
        return died

    def _describe(self, key: AttemptKey, mine: list[Process]) -> None:
        shown = []
        for each in mine[:3]:
            note = f"; {NOT_OURS}" if each.who in self._foreign else ""
            shown.append(f"{each.pid} ({_command(each)}{note})")
        more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
        self.words[key] = f"child process {', '.join(shown)}{more}"


def _of(key: AttemptKey, found: dict[Process, AttemptKey | None]) -> list[Process]:
    """What this attempt waits for."""
    return [each for each, of in found.items() if of == key or of is None]


def _command(process: Process) -> str:
    return command(process.pid)[:60]
