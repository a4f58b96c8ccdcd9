"""What other threads hand over to the I/O thread: commands in one order, and when to end."""

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from quiesce.client import outcomes
from quiesce.client.records import Reply, SpawnRecord, Trouble
from quiesce.client.steps import Request
from quiesce.locks import Lock
from quiesce.protocol import from_client
from quiesce.protocol.frames import Payload
from quiesce.registry.rows import SpawnRow
from quiesce.values import Event as PublicEvent


class _Process:
    """This process, known without a system call: each costs more than all else that is looked at for a spawn."""

    def __init__(self) -> None:
        self.note()
        os.register_at_fork(after_in_child=self.note)

    def note(self) -> None:
        self.pid = os.getpid()


PROCESS: Final = _Process()

#: Takes events, or None for the end; answers whether it wants more.
Listener = Callable[[list[PublicEvent] | None], bool]


class Many(NamedTuple):
    """Spawns, all or none."""

    common: SpawnRow
    arguments: list[Payload]
    records: list[SpawnRecord]


class Ask(NamedTuple):
    """A request."""

    message: Request
    reply: Reply


class Abandon(NamedTuple):
    """Nobody waits for this reply any more."""

    reply: Reply


#: A record is a spawn of its own.
Command = SpawnRecord | Many | Ask | Abandon


def ask(message: Request, *, orphan: bool = False) -> Ask:
    """A request with a new reply."""
    return Ask(message, reply_to(message, orphan=orphan))


def reply_to(message: Request, *, orphan: bool = False) -> Reply:
    """A new reply, for a request that is not handed over yet."""
    reply = Reply()
    reply.orphan = orphan
    reply.holds = isinstance(message, from_client.Stop) and message.hold
    return reply


class Mailbox:
    """See the module. `lock` is that of the client's records; what says so is called under it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.pid = PROCESS.pid
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.commands: deque[Command] = deque()
        #: Nothing new is taken, and the I/O thread is to end by then; monotonic.
        self.deadline: float | None = None
        #: Why nothing will ever be answered.
        self.broken: Trouble | None = None
        #: The client has been garbage-collected.
        self.retired = False
        #: The I/O thread sleeps, or is about to, and nobody has rung since.
        self._asleep = False

    def check_process(self) -> None:
        """RuntimeError in a forked copy. Before the lock: a thread that didn't survive may have held it."""
        if PROCESS.pid != self.pid:
            raise self._forked()

    def _forked(self) -> RuntimeError:
        return RuntimeError(
            f"this client was made in process {self.pid} and does not survive a fork: make a new "
            f"one in process {PROCESS.pid}"
        )

    @property
    def forked(self) -> bool:
        """This is a copy in a forked process, where the thread does not exist, and the sockets are the parent's."""
        return PROCESS.pid != self.pid

    def check_open(self) -> None:
        """Under the lock. RuntimeError: closed. Or what has broken it."""
        if self.deadline is not None:
            raise self._closed()

    def _closed(self) -> Exception:
        if self.broken is not None:
            return outcomes.refusal(*self.broken)
        return RuntimeError("this client is closed; make a new one")

    def put(self, command: Command, before: Callable[[], None] | None = None) -> None:
        """Hand over from any thread. `before`: what is done under the lock, if the command is taken.

        RuntimeError: closed, or a forked copy. Or what has broken it.
        """
        if PROCESS.pid != self.pid:
            raise self._forked()
        with self.lock:
            if self.deadline is not None:
                raise self._closed()
            if before is not None:
                before()
            self.post(command)

    def post(self, command: Command) -> None:
        """The same under the lock, also of a client that is being closed."""
        self.commands.append(command)
        if self._asleep:
            self._wake()

    def close(self, timeout: float, trouble: Trouble | None = None) -> None:
        """Let the I/O thread end, `timeout` seconds from now at the latest. From any thread.

        `trouble`: what has broken it, which is told to all who wait or ask, instead of that it was closed.
        """
        if self.forked:
            return
        deadline = time.monotonic() + timeout
        with self.lock:
            self.broken = self.broken or trouble
            if self.deadline is None or deadline < self.deadline:
                self.deadline = deadline
            if self._asleep:  # also if the one before was interrupted at this
                self._wake()

    def retire(self) -> None:
        """From a garbage collection, between any two steps of anything: so without the lock."""
        self.retired = True
        if not self.forked and self.wake_fd >= 0:
            with suppress(OSError):
                os.eventfd_write(self.wake_fd, 1)

    def _wake(self) -> None:
        os.eventfd_write(self.wake_fd, 1)
        self._asleep = False  # after that: interrupted before, the next who puts something rings

    # --- the I/O thread ----------------------------------------------------------------------

    def take(self, most: int) -> list[Command]:
        """What has been put, in order. Nobody else takes any, so what is there now is there to be taken."""
        commands = self.commands
        return [commands.popleft() for _ in range(min(most, len(commands)))]

    def may_sleep(self, deadline: float | None) -> bool:
        """Whether there is nothing to do; who puts something, or closes, from now on rings.

        `deadline`: as the thread knows it.
        """
        with self.lock:
            changed = self.deadline != deadline
            # Once there is a deadline, it is all that being retired asks for.
            retired = self.retired and deadline is None
            self._asleep = not (self.commands or retired or changed)
            return self._asleep

    def awake(self, *, rung: bool) -> None:
        """No need to ring. `rung`: `wake_fd` is readable, by who rang for this sleep, or too late for another."""
        if rung:
            os.eventfd_read(self.wake_fd)  # there is something: nobody else reads it
        self._asleep = False

    def end(self) -> list[Command]:
        """Nothing more is read: what was put and not taken."""
        with self.lock:
            self.deadline = 0.0
            self._asleep = False
            os.close(self.wake_fd)
            self.wake_fd = -1
            left = list(self.commands)
            self.commands.clear()
            return left


def records_of(commands: list[Command]) -> list[SpawnRecord]:
    """Those of spawns."""
    found: list[SpawnRecord] = []
    for command in commands:
        if isinstance(command, SpawnRecord):
            found.append(command)
        elif isinstance(command, Many):
            found.extend(command.records)
    return found
