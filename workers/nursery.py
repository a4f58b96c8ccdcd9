"""The child processes of a worker, by the attempt that began them."""

import os
import signal

from quiesce import processes
from quiesce.locks import Lock
from quiesce.markers import ATTEMPT_MARKER
from quiesce.processes import Process
from quiesce.registry.ids import Attempt, AttemptKey, TaskId

#: Names a process for ever.
_Who = tuple[int, int]


class Nursery:
    """Knows by three signs whose a process is: who started it, its ancestors, and its environment."""

    def __init__(self) -> None:
        #: Held while a process is started and noted, and during a look: none is ever seen in between.
        self.lock = Lock()
        #: Who began what was started here, or seen below that; None (of what was started here alone): no attempt
        #: waits for it, nor for what is below it.
        self._born: dict[_Who, AttemptKey | None] = {}
        #: Those that were started here: their exit status belongs to whoever started them.
        self._own: set[_Who] = set()
        #: Those of them that were dead already when the last look began.
        self._dead: set[_Who] = set()
        #: By pid: what was started and has not been looked at yet; the next look does that first.
        self._unseen: dict[int, AttemptKey | None] = {}
        #: Set in forked children of this process: there, all of the worker's machinery is inert.
        self.in_child = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.in_child = True
        # What the worker's handler does is not for its children; who terminates one expects it to die.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def add(self, pid: int, key: AttemptKey | None) -> None:
        """A process was started; `lock` has been held since before.

        Or a fork server has started it, and a look has seen it below that, as nobody's. One that is gone already
        (nobody waits for it where SIGCHLD is ignored) has left what it began to us: the next look sees that.
        """
        try:
            self._note(pid, key)
        except OSError:
            # No descriptor to be had. Whoever started it must get its pid all the same.
            self._unseen[pid] = key

    def _note(self, pid: int, key: AttemptKey | None) -> None:
        process = processes.look(pid)
        if process is not None:
            who = process.who
            if self._born.get(who) is None:
                self._born[who] = key
            self._own.add(who)

    def bury(self, key: AttemptKey) -> None:
        """Reap what this attempt, which has ended, started and nobody has waited for."""
        with self.lock:
            for who in [who for who in self._own if self._born.get(who) == key]:
                try:
                    process = processes.look(who[0])
                except OSError:
                    return  # no descriptor to be had: zombies that stay do no harm
                if (
                    process is None
                    or process.start != who[1]
                    or (process.is_zombie and processes.reap(process.pid))
                ):
                    self._own.discard(who)
                    self._born.pop(who, None)

    def find(self) -> dict[Process, AttemptKey | None]:
        """Every living descendant of this worker that an attempt may wait for, with its attempt.

        None: an orphan that nothing names (forked without exec, and never seen while its parents lived).
        Reaps orphans that are dead; the worker is a subreaper. So an empty answer is a proof, see
        `processes`. OSError: nothing is known, see `processes.is_shortage`.
        """
        with self.lock:
            for pid in list(self._unseen):
                self._note(pid, self._unseen[pid])
                del self._unseen[pid]
            while True:
                below = self._look()
                known: set[_Who] = {each.who for each in below.values()}
                dead = {each.who for each in below.values() if each.is_zombie}
                dead &= self._own
                if self._own <= known and dead <= self._dead:
                    break
                # One of them has died, perhaps in the midst of the look: what it began after the list of all was
                # made, which is ours now, is not in that. They get fewer: none begins while we have the lock.
                self._own &= known
                self._dead = dead
            self._born = {who: key for who, key in self._born.items() if who in known}
            found: dict[Process, AttemptKey | None] = {}
            for process in below.values():
                if process.is_zombie:
                    continue
                counts, key = self._attempt_of(process, below)
                if counts:
                    found[process] = key
                # Nobody's is only what is below such a process: whose it is may be told in a moment (`add`).
                if key is not None:
                    self._born.setdefault(process.who, key)
            return found

    def _look(self) -> dict[int, Process]:
        """All descendants; dead orphans are reaped until there are none left."""
        here = os.getpid()
        while True:
            below = processes.descendants(here)
            reaped = sum(
                processes.reap(each.pid)
                for each in below.values()
                if each.is_zombie and each.parent == here and each.who not in self._own
            )
            if not reaped:
                return below

    def _attempt_of(
        self, process: Process, below: dict[int, Process]
    ) -> tuple[bool, AttemptKey | None]:
        """Whether attempts wait for this process, and which: by itself and its ancestors, else its marker."""
        line: list[Process] = []
        at: Process | None = process
        while at is not None:
            line.append(at)
            at = below.get(at.parent)
        for each in line:
            if each.who in self._born:
                key = self._born[each.who]
                return key is not None, key
        for each in line:
            marker = processes.environment(each.pid).get(ATTEMPT_MARKER, "")
            task, _, attempt = marker.partition(".")
            if task.isdigit() and attempt.isdigit():
                return True, (TaskId(int(task)), Attempt(int(attempt)))
        return True, None
