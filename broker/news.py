"""Facts into events for subscribers: what `Client.events()` shows."""

from typing import Any, Final

from quiesce.broker.peers import PATIENCE, Peers
from quiesce.protocol import to_client
from quiesce.registry import facts
from quiesce.registry.facts import Fact
from quiesce.registry.rows import SpawnRow
from quiesce.registry.scope import Scope

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


def tell(peers: Peers, happened: list[Fact], now: float) -> None:
    """Send what happened to every subscriber; one that is too slow misses some, and is told how many."""
    subscribers = list(peers.subscribers.values())
    if not subscribers:
        return
    for fact in happened:
        name = NEWS.get(type(fact))
        if name is None:
            continue
        task_id = getattr(fact, "task_id", None)
        data = _plain(fact)
        for peer in subscribers:
            if len(peer.backlog) >= PATIENCE:
                peer.missed += 1
                continue
            missed, peer.missed = peer.missed, 0
            event = to_client.Event(name, now, task_id or None, data, missed)
            peers.send(peer, "control", event)


def _plain(fact: Fact) -> dict[str, Any]:
    """The fact's plain fields; what was spawned by its labels, payloads not at all."""
    data: dict[str, Any] = {}
    for field, value in fact._asdict().items():
        if field in ("task_id", "result", "session", "members"):
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
