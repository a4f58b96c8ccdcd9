"""Facts into events for subscribers: what `Client.events()` shows, and docs/observing.md documents.

Each event says who it is about, so that a reader needs to ask nothing else to follow what happens.
"""

from typing import Any, Final

from quiesce.broker.peers import PATIENCE, Peer, Peers
from quiesce.protocol import to_client
from quiesce.registry import facts
from quiesce.registry.facts import Fact, singly
from quiesce.registry.ids import Incarnation, StopId, TaskId
from quiesce.registry.rows import SpawnRow
from quiesce.registry.scope import Scope
from quiesce.registry.state import State

#: The facts that make news, and what it is called.
NEWS: Final[dict[type, str]] = {
    facts.TaskRegistered: "task-registered",
    facts.TaskAssigned: "task-assigned",
    facts.TaskBegan: "task-began",
    facts.TaskRequeued: "task-requeued",
    facts.TaskAssociated: "task-associated",
    facts.TaskAsked: "task-asked-to-stop",
    facts.StopDelivered: "stop-delivered",
    facts.StopObserved: "stop-observed",
    facts.TaskLingering: "task-lingering",
    facts.TaskEnded: "task-ended",
    facts.SpawnRefused: "spawn-refused",
    facts.StopOpened: "stop-opened",
    facts.StopEnded: "stop-ended",
    facts.BlockReleased: "block-released",
    facts.ScopesReopened: "scopes-reopened",
    facts.SupervisorRegistered: "supervisor-started",
    facts.SupervisorGone: "supervisor-ended",
    facts.WorkerRegistered: "worker-started",
    facts.WorkerReachable: "worker-ready",
    facts.WorkerGone: "worker-ended",
    facts.SystemStopping: "system-stopping",
}
_LABELS: Final = ("kind", "name", "runtime", "tenant_id", "timeline_id")


def tell(peers: Peers, happened: list[Fact], now: float, state: State) -> None:
    """Send what happened to every subscriber; one that is too slow misses some, and is told how many."""
    subscribers = list(peers.subscribers.values())
    for fact in singly(happened):
        name = NEWS.get(type(fact))
        if name is None:
            continue
        #: By how many each has missed.
        ready: dict[int, list[Peer]] = {}
        for peer in subscribers:
            if len(peer.backlog) >= PATIENCE:
                peer.missed += 1
            else:
                ready.setdefault(peer.missed, []).append(peer)
                peer.missed = 0
        if not ready:
            continue
        task_id = getattr(fact, "task_id", None)
        data = _plain(fact)
        _add_labels(data, fact, state)
        for missed, those in ready.items():
            event = to_client.Event(name, now, task_id or None, data, missed)
            peers.send_all(those, "control", event)


def _plain(fact: Fact) -> dict[str, Any]:
    """The fact's plain fields; what was spawned by its labels, payloads not at all."""
    data: dict[str, Any] = {}
    for field, value in fact._asdict().items():
        if field in ("task_id", "result", "session", "members", "queued"):
            continue
        if isinstance(value, SpawnRow):
            data.update(
                kind=value.kind,
                name=value.name,
                runtime=value.runtime,
                tenant_id=value.tenant_id,
                timeline_id=value.timeline_id,
            )
        elif isinstance(value, Scope):
            data[field] = str(value)
        elif isinstance(value, bytes):
            data[field] = value.hex()
        elif value is None or isinstance(value, (str, int, float, bool)):
            data[field] = value
    return data


def _add_labels(data: dict[str, Any], fact: Fact, state: State) -> None:
    """What the fact itself leaves to the state, which it has changed already."""
    task_id = getattr(fact, "task_id", None)
    if task_id:
        _add_task(data, TaskId(task_id), state)
    if isinstance(fact, facts.StopOpened):
        data["matched"] = len(fact.members) + (fact.queued or 0)
    elif isinstance(fact, facts.StopEnded):
        ended = state.stops_ended_now[StopId(fact.stop_id)]
        data.update(
            scope=str(ended.scope),
            reason=ended.reason,
            requested_at=ended.requested_at,
            outcomes=dict(ended.outcomes),
            remaining=ended.remaining,
            by=ended.by,
        )
    elif isinstance(fact, (facts.WorkerReachable, facts.WorkerGone)):
        worker = state.workers.get(Incarnation(fact.worker))
        if worker is not None:
            data.update(runtime=worker.runtime, pid=worker.pid)
        elif isinstance(fact, facts.WorkerGone) and fact.supervisor in state.supervisors:
            data["runtime"] = state.supervisors[fact.supervisor].runtime


def _add_task(data: dict[str, Any], task_id: TaskId, state: State) -> None:
    task, ended = state.tasks.get(task_id), state.ended_now.get(task_id)
    if task is not None:
        spawn = task.spawn
        labels = (spawn.kind, spawn.name, spawn.runtime, task.tenant_id, task.timeline_id)
        attempt = task.attempt
    elif ended is not None:
        labels = (ended.kind, ended.name, ended.runtime, ended.tenant_id, ended.timeline_id)
        attempt = ended.attempt
    else:
        return
    data.setdefault("attempt", attempt)
    for name, value in zip(_LABELS, labels, strict=True):
        data.setdefault(name, value)
