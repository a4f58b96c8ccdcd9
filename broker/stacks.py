"""Where running tasks are: asked of their workers, and of the supervisors of those that do not answer.

A worker answers from its control thread, for each task alone. One whose interpreter is stuck in C code, or that is
stopped, does not: its supervisor has it write the stacks of all its threads by faulthandler, or says why not.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from quiesce.broker.peers import Peer, Peers
from quiesce.protocol import from_supervisor, from_worker, to_client, to_supervisor, to_worker
from quiesce.protocol.stack_text import innermost
from quiesce.registry import effects
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.machine import Registry
from quiesce.registry.records import Task, Worker
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

log: Final = logging.getLogger("quiesce.broker")
#: Seconds for all of it, and after which a worker is taken for stuck.
WAIT: Final = 2.0
PATIENCE: Final = 0.5
#: Questions that wait at once, at most.
QUESTIONS: Final = 256

Rows = list[to_client.StacksRow]
#: What is done with the stacks once all have come, or the time is over.
Then = Callable[[Rows], None]


class _Wait:
    """One question."""

    __slots__ = ("asked", "deadline", "dumped", "rows", "then")

    def __init__(self, then: Then, now: float) -> None:
        self.then = then
        self.deadline = now + WAIT
        #: The supervisors have been asked for what was left then.
        self.dumped = False
        #: All and only the workers without an answer, and of which attempts they were asked.
        self.asked: dict[Incarnation, list[tuple[int, int]]] = {}
        self.rows: Rows = []

    def due(self) -> float:
        """When there is something to do for it."""
        return self.deadline if self.dumped else self.deadline - WAIT + PATIENCE


class Stacks:
    """All questions for stacks that wait."""

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self._registry = registry
        self._peers = peers
        self._waits: dict[int, _Wait] = {}
        self._last = 0

    @property
    def _state(self) -> State:
        return self._registry.state

    @property
    def busy(self) -> bool:
        """Whether so many questions wait that no more should be asked."""
        return len(self._waits) >= QUESTIONS

    def ask(self, tasks: Iterable[Task], then: Then) -> None:
        """Call `then` with the stacks of those of these tasks that run: at once if none can, else soon.

        What a worker holds may have begun: word of that does not leave an interpreter that is stuck at once.
        """
        wait = _Wait(then, time.monotonic())
        for task in tasks:
            if task.worker:
                wait.asked.setdefault(task.worker, []).append((task.id, task.attempt))
        if not wait.asked:
            then([])
            return
        self._last += 1
        self._waits[self._last] = wait
        for worker, rows in wait.asked.items():
            message = to_worker.StacksWanted(self._last, rows)
            self._peers.send(self._peers.by_worker.get(worker), "control", message)

    def say(self, effect: effects.StillWaiting) -> None:
        """Log where the first tasks are that a stop waits for, once that is known."""
        state = self._state
        tasks = [state.tasks[each] for each in effect.task_ids if each in state.tasks]

        def log_them(rows: Rows) -> None:
            for row in rows:
                text = "\n".join(innermost(row.stacks)) or "no stack came"
                log.info(
                    "stop %d still waits for task %d.%d %r in process %d, which is here:\n%s",
                    effect.stop_id,
                    row.task_id,
                    row.attempt,
                    row.name,
                    row.worker_pid,
                    text,
                    extra={
                        "quiesce_stop_id": effect.stop_id,
                        "quiesce_task_id": row.task_id,
                        "quiesce_attempt": row.attempt,
                        "quiesce_worker_pid": row.worker_pid,
                    },
                )

        self.ask(tasks, log_them)

    def take(self, peer: Peer, message: from_worker.Stacks) -> None:
        """One worker has sent its stacks."""
        worker = Incarnation(peer.worker)
        wait = self._waits.get(message.request)
        if wait is None or wait.asked.pop(worker, None) is None:
            return
        for task_id, attempt, texts in message.rows:
            task = self._state.tasks.get(TaskId(task_id))
            if not texts and task is not None and task.state is not TaskState.RUNNING:
                continue  # it has not begun
            self._add(wait, worker, task_id, attempt, texts)
        self._look(message.request, wait)

    def take_dump(self, supervisor: bytes, message: from_supervisor.Dumped) -> None:
        """A supervisor has sent what one of its workers wrote."""
        known = self._state.supervisors.get(supervisor)
        worker = None if known is None else known.workers.get(message.serial)
        wait = self._waits.get(message.request)
        if wait is None or worker is None or worker not in wait.asked:
            return
        if message.error:
            text = f"no stack: {message.error}\n"
        else:
            pid = self._state.workers[worker].pid
            text = (
                f"all of process {pid}, by faulthandler, since its interpreter did not answer:\n"
                f"{message.text}"
            )
        self._give_up(wait, worker, text)
        self._look(message.request, wait)

    def next_deadline(self) -> float | None:
        """When there is something to do, on the monotonic clock."""
        if not self._waits:
            return None
        return min(wait.due() for wait in self._waits.values())

    def expire(self) -> None:
        """Ask the supervisors for what is late; end the waits that are over."""
        if not self._waits:
            return
        now = time.monotonic()
        for number, wait in list(self._waits.items()):
            if wait.due() > now:
                continue
            if not wait.dumped:
                wait.dumped = True
                self._dump(number, wait)
            else:
                for worker in list(wait.asked):
                    self._give_up(wait, worker, _NOBODY)
            self._look(number, wait)

    def _dump(self, number: int, wait: _Wait) -> None:
        for incarnation in list(wait.asked):
            worker = self._alive(incarnation)
            if worker is None:
                del wait.asked[incarnation]  # its tasks have ended with it
                continue
            peer = self._peers.by_key.get(("supervisor", worker.supervisor))
            message = to_supervisor.Dump(self._state.epoch, number, worker.serial)
            self._peers.send(peer, "control", message)

    def _alive(self, incarnation: Incarnation) -> Worker | None:
        worker = self._state.workers.get(incarnation)
        return None if worker is None or worker.status is not None else worker

    def _give_up(self, wait: _Wait, worker: Incarnation, text: str) -> None:
        """One text stands for each of its tasks."""
        for task_id, attempt in wait.asked.pop(worker):
            self._add(wait, worker, task_id, attempt, [text])

    def _add(
        self, wait: _Wait, worker: Incarnation, task_id: int, attempt: int, texts: list[str]
    ) -> None:
        """Unless the attempt has ended since."""
        task = self._state.tasks.get(TaskId(task_id))
        if task is not None and (task.worker, task.attempt) == (worker, attempt):
            pid = self._state.workers[worker].pid
            row = to_client.StacksRow(task_id, attempt, task.spawn.name, pid, texts)
            wait.rows.append(row)

    def _look(self, number: int, wait: _Wait) -> None:
        if not wait.asked:
            del self._waits[number]
            wait.then(sorted(wait.rows))


_NOBODY: Final = (
    f"no stack: neither its process nor the supervisor of that has answered within {WAIT:g} s\n"
)
