"""What a verb says while it waits: of a stop's tasks a line for each, and where they are; and of no broker."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from quiesce import logs
from quiesce.cli.output import age, clean
from quiesce.errors import QuiesceError
from quiesce.protocol.stack_text import innermost
from quiesce.registry.states import State

if TYPE_CHECKING:
    from quiesce.client import Client
    from quiesce.registry.ids import TaskId
    from quiesce.registry.rows import StopRow, TaskRow
    from quiesce.values import TaskInfo, TaskStacks

#: Seconds after which all is said again; and after which stacks are asked for again if others are left.
AGAIN: Final = 60.0
_OTHERS: Final = 5.0
#: Tasks with a line of their own, and those with their stacks.
SHOWN: Final = 5
_STACKS: Final = 3
#: How often to look whether the broker answers, and for how long it may be away before that is said, in seconds.
_LOOK: Final = 0.5
_AWAY: Final = 5.0


def detail(task: "TaskRow") -> str:
    """One task, on one line."""
    labels = "/".join(each for each in (task.tenant_id, task.timeline_id) if each is not None)
    who = " ".join(each for each in (str(task.id), task.kind, task.name, labels) if each)
    if task.worker_pid is not None:
        who += f", process {task.worker_pid}"
    return clean(f"  {who}: {how_it_gets_on(task)}")


def how_it_gets_on(task: "TaskRow | TaskInfo") -> str:
    """What holds it up (so whether it has seen a request), when it last looked, how far it is."""
    parts = [f"waiting for {task.waiting_for}" if task.waiting_for else task.state]
    if task.state == State.RUNNING:
        looked = age(task.last_check_at)
        parts.append(f"last looked {looked} ago" if looked else "no look for a request is known")
    if task.progress is not None:
        done, total, note = task.progress
        count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        parts.append(f"progress {count} {note}".rstrip())
    return "; ".join(parts)


class Watch:
    """Fetches the stacks of the first tasks of a stop, in a thread: a stuck one takes its time."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._thread: threading.Thread | None = None
        self._found: list[TaskStacks] | None = None
        self._ids: list[TaskId] = []
        self._asked_at = 0.0
        #: The lines that were taken last.
        self.shown: list[str] = []

    def look(self, row: "StopRow", now: float) -> None:
        """Ask again, if it is time to."""
        ids = [task.id for task in row.tasks if task.state != State.QUEUED][:_STACKS]
        wait = AGAIN if ids == self._ids else _OTHERS
        busy = self._thread is not None and self._thread.is_alive()
        if not ids or busy or (self._thread is not None and now < self._asked_at + wait):
            return
        self._ids, self._asked_at = ids, now
        self._thread = threading.Thread(target=self._ask, args=(ids,), daemon=True)
        self._thread.start()

    def _ask(self, ids: "list[TaskId]") -> None:
        try:
            self._found = self._client.stacks(task_ids=ids)
        except (QuiesceError, RuntimeError):
            self._found = None  # no broker, or the verb has ended: that is said elsewhere

    def take(self) -> list[str]:
        """The lines of what has come since."""
        found, self._found = self._found, None
        if found is None:
            return []
        self.shown = [line for task in found for line in stack_lines(task)]
        return self.shown


@contextmanager
def telling_of_no_broker(client: "Client", *, quiet: bool) -> Iterator[None]:
    """Around what waits as long as it takes: says when no broker answers, and when one does again.

    `quiet`: not at all, since on stderr there are only documents.
    """
    if quiet:
        yield
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell_of_no_broker, args=(client, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _tell_of_no_broker(client: "Client", over: threading.Event) -> None:
    away_since: float | None = None
    told = False
    while not over.wait(_LOOK):
        if client._driver.silence() is None:
            if told:
                logs.write("the broker answers again")
            away_since, told = None, False
            continue
        now = time.monotonic()
        away_since = now if away_since is None else away_since
        if not told and now >= away_since + _AWAY:
            told = True
            logs.write(clean(f"no broker answers at {client.address}; still waiting for it"))


def stack_lines(task: "TaskStacks") -> list[str]:
    """Where a task is: its innermost frames."""
    at = time.strftime("%H:%M:%S")
    lines = [clean(f"  {task.id} {task.name}, process {task.worker_pid}, was here at {at}:")]
    for text in innermost(task.stacks) or ["no stack came"]:
        lines += [f"    {clean(line)}" for line in text.splitlines()]
    return lines
