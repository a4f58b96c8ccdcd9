"""Client: spawn, watch and stop tasks from threads."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from quiesce.client import requests
from quiesce.client.base import CLOSING
from quiesce.client.events import EventStream, Inbox
from quiesce.client.mailbox import reply_to
from quiesce.client.options import AnyState
from quiesce.client.records import Reply
from quiesce.client.spawning import SpawningClient
from quiesce.client.stopped import StoppedBlock
from quiesce.client.waiting import is_asked
from quiesce.context import current_context
from quiesce.protocol import from_client
from quiesce.registry.ids import TaskId
from quiesce.registry.rows import StopRow
from quiesce.registry.scope import Scope
from quiesce.values import (
    BrokerInfo,
    ClosedScope,
    EndedStop,
    ShutdownReport,
    TaskInfo,
    TaskStacks,
    WorkerInfo,
)

T = TypeVar("T")


class Client(SpawningClient):
    """A connection to a broker, for threads: any number of them may share it.

        with Client() as client:
            handle = client.spawn("background", "compaction", compact, path, tenant_id="acme")
            print(handle.result())

    Making one waits for the broker, so a program may start both at once. Leaving the block (or `close()`)
    sends all that is pending and waits for the broker's answers to the spawns; tasks go on after it. A
    client that nobody closes ends with its last reference or the interpreter, and says goodbye on the way.
    It does not survive a fork: make one in the child. Nor is it for signal handlers: the thread that one interrupts
    may be in the midst of a call. Have the handler set an Event or cancel a CancellationToken, which are.

    Args:
        address: of the broker; None: QUIESCE_ADDRESS, else the default.
        key: for CURVE over tcp, which is not built yet: must be None.
        timeout: seconds that bound every wait for the broker's answer. Not those of `result` and `wait`,
            nor of `shutdown_tasks`: their own timeout counts.

    Raises:
        BrokerUnavailableError: no broker answered within `timeout`.
        ConfigurationError: the address is none.
        ProtocolError: the broker speaks another version.
    """

    def __init__(
        self, address: str | None = None, *, key: object = None, timeout: float = 30.0
    ) -> None:
        self._begin(address, key, timeout, worker=0)

    def _begin(self, address: str | None, key: object, timeout: float, worker: int) -> None:
        super().__init__(address, key, timeout)
        #: Called with the scope of a stop before that takes its number, by executors that hold back spawns.
        self._before_stop: set[Callable[[Scope], None]] = set()
        #: It is the one that a worker has for its tasks.
        self._is_of_worker = worker != 0
        self._start(worker)
        ready = self._driver.ready
        try:
            if not self._driver.wait(ready, self.timeout) or ready.trouble:
                raise self._unreachable(ready)
        except BaseException:
            self._end(0)
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._end(self.timeout)

    def close(self) -> None:
        """Send all that is pending, wait for the answers to the spawns, and part from the broker.

        Tasks go on. Handles keep what they have; from then on they learn nothing more. Closing twice does
        nothing.

        Raises:
            BrokerUnavailableError: some spawns were not answered within the client's timeout.
        """
        if self._end(self.timeout) and self._driver.unanswered_at_end:
            raise self._unanswered(self._driver.unanswered_at_end)

    def _end(self, timeout: float, unavailable: str = "") -> bool:
        """Close; whether it was this call that did. `unavailable`: why there is no broker any more."""
        if self._driver.forked:
            return False
        first = not self._driver.closing
        self._driver.close(timeout, unavailable)
        self._driver.wait(self._driver.ended, timeout + CLOSING, interruptible=False)
        self._driver.join(CLOSING)
        self._finalizer.detach()
        return first

    # --- stopping ------------------------------------------------------------------------------

    def shutdown_tasks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        grace: float | None = None,
        timeout: float | None = None,
        keep_closed: bool = False,
        reason: str = "",
    ) -> ShutdownReport:
        """Stop every task in the scope, and return once there is evidence that each has ended.

        None matches anything; a task without a tenant never matches a scope that names one. The scope is
        closed meanwhile: spawns into it, this client's earlier ones included, are refused. A task that
        calls this on a scope that covers itself is left out, and listed as `caller`. This client's handles of the
        stopped tasks are `done()` then. (Their ends travel with the results, so they may come a moment later
        than the report: they are waited for, at most the client's timeout.)
        (After neon's `task_mgr::shutdown_tasks`.)

        Args:
            grace: seconds from the request to force; None: as each kind is configured; inf: never force.
            timeout: seconds for all of it; None: for ever.
            keep_closed: leave the scope closed afterwards, until `reopen`.
            reason: why; it reaches the tasks, the listings and the report.

        Raises:
            ShutdownTimeoutError: tasks are left after `timeout`; `.report` says which. The scope stays closed.
            BrokerUnavailableError: no answer within `timeout` and the client's timeout together. Whether
                the stop was begun is unknown.
            ShutdownRequested: inside a task that is asked to stop; the stop goes on.
        """
        ask = requests.stop(
            kind,
            tenant_id,
            timeline_id,
            runtime,
            grace=grace,
            timeout=timeout,
            keep_closed=keep_closed,
            reason=reason,
        )
        return self._stop(ask, timeout).report

    def stopped(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        grace: float | None = None,
        timeout: float | None = None,
        reason: str = "",
    ) -> AbstractContextManager[ShutdownReport]:
        """A block in which the scope is stopped and stays closed: the safe way to remove its files.

            with client.stopped(tenant_id="acme") as report:
                shutil.rmtree(folder)

        Entering does what `shutdown_tasks` does, and raises what it raises; after a ShutdownTimeoutError
        the scope stays closed. Interrupted on the way in, as by Ctrl-C, it opens the scope again.
        Leaving opens it, also when the body raises. A client that is
        closed inside can't say that the body is done: the scope then stays closed, until `reopen`.
        """
        ask = requests.stop(
            kind,
            tenant_id,
            timeline_id,
            runtime,
            grace=grace,
            timeout=timeout,
            hold=True,
            reason=reason,
        )
        return StoppedBlock(self, ask, timeout)

    def reopen(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
    ) -> None:
        """Forget the closures within this scope that were kept, or are left of stops that timed out.

        Scopes of stops in progress, and of `stopped()` blocks, stay closed.
        """
        self._ask(requests.reopen(kind, tenant_id, timeline_id, runtime))

    # --- looking -------------------------------------------------------------------------------

    def tasks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        state: AnyState | None = None,
    ) -> list[TaskInfo]:
        """The live tasks of a scope; with `state`, those in that state. "ended": from the bounded history."""
        return self._ask(requests.list_tasks(kind, tenant_id, timeline_id, runtime, state))

    def task(self, task_id: TaskId | int) -> TaskInfo:
        """One task, live or in the bounded history. TaskNotFoundError: neither."""
        return self._ask(requests.get_task(task_id))

    def statistics(self) -> dict[str, Any]:
        """Counts, queues, CPU and memory by runtime, and what the broker counts of itself."""
        return self._ask(requests.statistics())

    def workers(self) -> list[WorkerInfo]:
        """All worker processes that the broker knows."""
        return self._ask(requests.workers())

    def broker_info(self) -> BrokerInfo:
        """The broker itself."""
        return self._ask(requests.broker())

    def stacks(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
        *,
        task_ids: Iterable[int] | None = None,
    ) -> list[TaskStacks]:
        """The Python stacks of the running tasks in a scope, or of those of `task_ids` alone, within two seconds.

        A worker that does not answer (its interpreter is stuck in C code) has all of its process written by
        faulthandler instead: one text, which says so in its first line and stands for each of its tasks. Where
        even that can't be had, the text says why: "no stack: process 123 is stopped (SIGSTOP)".
        """
        return self._ask(requests.stacks(kind, tenant_id, timeline_id, runtime, task_ids))

    def closed_scopes(self) -> list[ClosedScope]:
        """Every closed scope, with who holds it and why."""
        return self._ask(requests.closed())

    def history(
        self,
        kind: str | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        runtime: str | None = None,
    ) -> list[EndedStop]:
        """The stops that have ended, oldest first, of the bounded history: by any client, and the system's own.

        With a scope, those that may have matched a task of it. Ended tasks: `tasks(state="ended")`.
        """
        return self._ask(requests.history(kind, tenant_id, timeline_id, runtime))

    def stops(self) -> list[StopRow]:
        """The stops in progress, by any client, and what each still waits for."""
        return self._ask(requests.stops())

    def events(self) -> EventStream:
        """An iterator over what happens in the registry from now on.

        Ends when it or the client is closed. `next` blocks; inside a task it ends with ShutdownRequested
        when that task is asked to stop.
        """
        inbox = Inbox(self._driver.lock)
        stream = EventStream(self, inbox)
        try:
            reply = self._driver.listen(inbox.feed)
            self._answer(requests.subscribe(), reply, self.timeout)
        except BaseException:
            stream.close()
            raise
        return stream

    # --- parts ---------------------------------------------------------------------------------

    def _ask(self, ask: requests.Ask[T]) -> T:
        # A task that cleans up after it was asked to stop may still look around.
        fresh = not is_asked(current_context())
        return self._request(ask, reply_to(ask.message), self.timeout, interruptible=fresh)

    def _stop(
        self,
        ask: requests.Ask[requests.Stopped],
        timeout: float | None,
        reply: Reply | None = None,
    ) -> requests.Stopped:
        """The broker keeps the stop's own timeout; beyond that and ours it is out of reach."""
        limit = None if timeout is None else timeout + self.timeout
        # A task that has been asked to stop begins nothing new.
        self._raise_if_asked()
        message = ask.message
        assert isinstance(message, from_client.Stop), "what an Ask[Stopped] sends"
        if message.task_id is None:
            for hold_back in tuple(self._before_stop):
                hold_back(Scope(*message.scope))
        if reply is None:
            reply = reply_to(message)
        return self._request(ask, reply, limit, interruptible=True)

    def _request(
        self, ask: requests.Ask[T], reply: Reply, timeout: float | None, *, interruptible: bool
    ) -> T:
        """An interrupt leaves nothing behind, wherever it comes: so the reply is there before all else."""
        try:
            self._driver.ask(ask.message, reply)
            return self._answer(ask, reply, timeout, interruptible=interruptible)
        except BaseException:
            self._driver.abandon(reply)
            raise

    def _answer(
        self,
        ask: requests.Ask[T],
        reply: Reply,
        timeout: float | None,
        *,
        interruptible: bool = False,
    ) -> T:
        try:
            over = self._driver.wait(reply, timeout, interruptible=interruptible)
            if reply.ends is not None:
                self._driver.wait(reply.ends, self.timeout)
            if not over:
                raise self._unavailable(ask.verb)
            return self._read(ask, reply)
        except BaseException:
            self._driver.abandon(reply)
            raise
