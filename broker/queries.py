"""Questions, which decide nothing: answered from the registry's state as it stands, never journalled.

Stacks are the one answer that others must give; see `stacks`.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from quiesce.broker.peers import Peer, Peers
from quiesce.broker.stacks import Stacks
from quiesce.protocol import from_client, to_client
from quiesce.protocol.runs import PackedRows
from quiesce.registry import statistics, views
from quiesce.registry.ids import TaskId
from quiesce.registry.machine import Registry
from quiesce.registry.names import undeclared_in
from quiesce.registry.scope import Scope
from quiesce.registry.states import State

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Rows of a list that are made in one turn.
PIECE: Final = 500


class _Listing(NamedTuple):
    """A long list that is being made."""

    peer: Peer
    request: int
    left: Iterator[Any]
    rows: PackedRows


class Queries:
    """Answers what is asked of the broker."""

    def __init__(
        self,
        registry: Registry,
        peers: Peers,
        *,
        address: str,
        version: str,
        durability: str,
        say_malformed: Callable[[str], None],
        say_failed: Callable[[str, Exception], None],
    ) -> None:
        self._registry = registry
        self._peers = peers
        self._address = address
        self._version = version
        self._durability = durability
        #: Told of each message that is none, and of each whose handler failed.
        self.say_malformed = say_malformed
        self.say_failed = say_failed
        #: The one answer that others must give.
        self.stacks = Stacks(registry, peers)
        #: What others count, for `statistics`: the core, its tally, and the journal if it writes anything.
        self.counters: Callable[[], dict[str, Any]] = dict
        self.times: Callable[[], dict[str, Any]] = dict
        self.journal: Callable[[], dict[str, Any]] = dict
        #: Long lists, to be made piece by piece, one after the other.
        self._long: deque[_Listing] = deque()

    def take(self, peer: Peer, message: Any) -> None:
        """Answer one question."""
        answer = _ANSWERS[type(message)](self, peer, message)
        if answer is not None:
            self._peers.send(peer, "control", answer)

    def list_tasks(self, peer: Peer, message: from_client.ListTasks) -> Any:
        if message.state is not None and message.state not in set(State):
            return to_client.Refused(
                message.request,
                "QuiesceError",
                f"unknown state {message.state!r}: expected one of {', '.join(State)}",
            )
        refusal = undeclared_in(self._registry.state, Scope(*message.scope))
        if refusal is not None:
            return to_client.Refused(message.request, *refusal)
        left = views.tasks(self._registry.state, Scope(*message.scope), message.state)
        rows = list(islice(left, PIECE))
        if len(rows) < PIECE:
            return to_client.Tasks(message.request, rows)
        self._long.append(_Listing(peer, message.request, left, PackedRows(rows)))
        return None

    @property
    def busy(self) -> bool:
        """Whether there is something to be done in the next turn, whatever else comes."""
        return bool(self._long)

    def go_on_listing(self) -> bool:
        """A piece of the first long list, if there is one: nobody shall wait for all of it."""
        if not self._long:
            return False
        listing = self._long[0]
        listing.rows.pack(PIECE)
        more = list(islice(listing.left, PIECE))
        listing.rows.extend(more)
        if not more:
            self._long.popleft()
            self._peers.send(
                listing.peer, "control", to_client.Tasks(listing.request, listing.rows)
            )
        return True

    def get_task(self, peer: Peer, message: from_client.GetTask) -> Any:
        del peer
        row = views.task(self._registry.state, TaskId(message.task_id))
        if row is not None:
            return to_client.Tasks(message.request, [row])
        last = self._registry.state.last_task_id
        why = (
            "it has ended and is gone from the history"
            if message.task_id <= last
            else f"the last one spawned is {last}"
        )
        return to_client.Refused(
            message.request, "TaskNotFoundError", f"no task {message.task_id}: {why}"
        )

    def statistics(self, peer: Peer, message: from_client.GetStatistics) -> Any:
        del peer
        now = time.time()
        body = statistics.statistics(self._registry.state, now)
        body["at"] = now
        body["broker"] = {
            "pid": os.getpid(),
            "address": self._address,
            "version": self._version,
            "durability": self._durability,
            "cpu_seconds": time.process_time(),
            "memory_bytes": _memory_bytes(),
            **self.counters(),
        }
        body["times"] = self.times()
        body["journal"] = self.journal()
        return to_client.Statistics(message.request, body)

    def workers(self, peer: Peer, message: from_client.GetWorkers) -> Any:
        del peer
        return to_client.Workers(message.request, views.workers(self._registry.state))

    def broker(self, peer: Peer, message: from_client.GetBroker) -> Any:
        del peer
        state = self._registry.state
        return to_client.Broker(
            message.request,
            os.getpid(),
            state.epoch,
            self._address,
            self._version,
            "stopping" if state.stopping else "running",
            self._durability,
        )

    def closed(self, peer: Peer, message: from_client.GetClosed) -> Any:
        del peer
        return to_client.Closed(message.request, views.closed(self._registry.state))

    def stops(self, peer: Peer, message: from_client.GetStops) -> Any:
        del peer
        return to_client.Stops(message.request, views.stops(self._registry.state))

    def history(self, peer: Peer, message: from_client.GetHistory) -> Any:
        del peer
        state, scope = self._registry.state, Scope(*message.scope)
        refusal = undeclared_in(state, scope)
        if refusal is not None:
            return to_client.Refused(message.request, *refusal)
        return to_client.History(message.request, views.ended_stops(state, scope))

    def subscribe(self, peer: Peer, message: from_client.Subscribe) -> Any:
        self._peers.subscribers[peer.key] = peer
        return to_client.Done(message.request)

    def unsubscribe(self, peer: Peer, message: from_client.Unsubscribe) -> Any:
        self._peers.subscribers.pop(peer.key, None)
        return to_client.Done(message.request)

    # --- stacks -----------------------------------------------------------------------------------

    def get_stacks(self, peer: Peer, message: from_client.GetStacks) -> Any:
        state, scope = self._registry.state, Scope(*message.scope)
        refusal = undeclared_in(state, scope)
        if refusal is not None:
            return to_client.Refused(message.request, *refusal)
        if self.stacks.busy:
            text = "too many questions for stacks wait already; ask again in a few seconds"
            return to_client.Refused(message.request, "QuiesceError", text)
        wanted = sorted(state.index.find(scope, state.tasks))
        if message.task_ids:
            only = set(message.task_ids)
            wanted = [task_id for task_id in wanted if task_id in only]

        def answer(rows: list[to_client.StacksRow]) -> None:
            self._peers.send(peer, "control", to_client.Stacks(message.request, rows))

        self.stacks.ask([state.tasks[task_id] for task_id in wanted], answer)
        return None


def _memory_bytes() -> int:
    """Of this process, as it is resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


_ANSWERS: Final[dict[type, Callable[[Queries, Peer, Any], Any]]] = {
    from_client.ListTasks: Queries.list_tasks,
    from_client.GetTask: Queries.get_task,
    from_client.GetStatistics: Queries.statistics,
    from_client.GetWorkers: Queries.workers,
    from_client.GetBroker: Queries.broker,
    from_client.GetClosed: Queries.closed,
    from_client.GetStops: Queries.stops,
    from_client.GetHistory: Queries.history,
    from_client.GetStacks: Queries.get_stacks,
    from_client.Subscribe: Queries.subscribe,
    from_client.Unsubscribe: Queries.unsubscribe,
}
