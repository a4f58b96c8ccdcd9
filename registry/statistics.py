"""What the registry counts, for `Client.statistics()`: a pure read of the state, as plain values fit for JSON.

`docs/observing.md` documents every field: whoever shows the system lives on these and on the events alone. It
costs what workers hold and how many (tenant, kind) wait, not how many tasks do.
"""

import heapq
from typing import Any, Final

from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState

#: Tenants and stops that are named; those that are left out are counted.
TENANTS: Final = 100
STOPS: Final = 20

Counts = dict[str, Any]


def statistics(state: State, wall: float) -> dict[str, Any]:
    """Counts of everything: by runtime, in it by kind, and by tenant. `wall`: this moment."""
    runtimes = _runtimes(state)
    sizes: dict[str | None, int] = {}
    for name, queue in state.queues.items():
        of_kind: dict[str, int] = {}
        for tenant, kind, size in queue.sizes():
            of_kind[kind] = of_kind.get(kind, 0) + size
            sizes[tenant] = sizes.get(tenant, 0) + size
        for kind, size in of_kind.items():
            _kind_of(runtimes[name], kind)["queued"] = size
    tenants: dict[str | None, Counts] = {}
    _count_held(state, wall, runtimes, tenants)
    for tenant, row in tenants.items():
        row["queued"] = sizes.get(tenant, 0)
        sizes[tenant] = row["queued"] + row["held"]
    kinds: dict[str, int] = {}
    for runtime in runtimes.values():
        for kind, row in runtime["kinds"].items():
            if row["running"]:
                kinds[kind] = kinds.get(kind, 0) + row["running"]
    largest = heapq.nlargest(TENANTS, sizes, key=sizes.__getitem__)
    return {
        "epoch": state.epoch,
        "started_at": state.epoch_at,
        "state": "stopping" if state.stopping else "running",
        "tasks": len(state.tasks),
        "queued": sum(each["queued"] for each in runtimes.values()),
        "running": sum(each["running"] for each in runtimes.values()),
        "stopping": sum(each["stopping"] for each in runtimes.values()),
        "spawned_total": state.spawned_total,
        "ended_total": sum(state.ended_total.values()),
        "runtimes": runtimes,
        "running_kinds": dict(sorted(kinds.items())),
        "tenants": [tenants.get(each) or _tenant(each, sizes[each]) for each in largest],
        "tenants_total": len(sizes),
        "sessions": len(state.sessions),
        "stops": len(state.open_stops),
        "open_stops": _open_stops(state),
        "closed": len(state.closures),
    }


def _runtimes(state: State) -> dict[str, Counts]:
    """The declared ones, and those that the configuration has lost but that have tasks."""
    runtimes: dict[str, Counts] = {}
    lost = {name for name in (*state.queues, *state.pool) if state.index.has(runtime=name)}
    for name in (*state.runtimes, *sorted(lost - state.runtimes.keys())):
        limits = state.runtime(name)
        pool = state.pool[name].values()
        supervisors = [each for each in state.supervisors.values() if each.runtime == name]
        runtimes[name] = {
            "processes": len(pool),
            "supervisors": len(supervisors),
            "slots": limits.slots,
            "queued": len(state.queues[name]),
            "held": sum(len(worker.tasks) for worker in pool),
            "running": 0,
            "stopping": 0,
            "oldest_check": 0.0,
            "spawned": 0,
            "ended": {},
            "cpu_seconds": sum(each.cpu_seconds + each.ended_cpu for each in supervisors)
            + sum(worker.cpu_seconds for worker in pool),
            "memory_bytes": sum(each.memory_bytes for each in supervisors)
            + sum(worker.memory_bytes for worker in pool),
            "kinds": {},
        }
    for (name, kind, outcome), count in sorted(state.ended_total.items()):
        if name in runtimes:
            row = _kind_of(runtimes[name], kind)
            row["ended"][outcome] = count
            row["spawned"] += count
            ended = runtimes[name]["ended"]
            ended[outcome] = ended.get(outcome, 0) + count
            runtimes[name]["spawned"] += count
    for (name, kind), count in sorted(state.live_total.items()):
        if name in runtimes:
            _kind_of(runtimes[name], kind)["spawned"] += count
            runtimes[name]["spawned"] += count
    return runtimes


def _kind_of(runtime: Counts, kind: str) -> Counts:
    found: Counts | None = runtime["kinds"].get(kind)
    if found is None:
        found = {"queued": 0, "held": 0, "running": 0, "stopping": 0}
        found |= {"oldest_check": 0.0, "spawned": 0, "ended": {}}
        runtime["kinds"][kind] = found
    return found


def _tenant(tenant: str | None, queued: int) -> Counts:
    return {"tenant_id": tenant, "queued": queued, "held": 0, "running": 0, "stopping": 0}


def _count_held(
    state: State,
    wall: float,
    runtimes: dict[str, Counts],
    tenants: dict[str | None, Counts],
) -> None:
    """What workers hold: assigned or running."""
    for worker in state.workers.values():
        for task_id in worker.tasks:
            task = state.tasks[task_id]
            runtime = runtimes[task.spawn.runtime]
            kind = _kind_of(runtime, task.spawn.kind)
            tenant = tenants.get(task.tenant_id)
            if tenant is None:
                tenant = tenants[task.tenant_id] = _tenant(task.tenant_id, 0)
            rows = (kind, tenant)
            for row in rows:
                row["held"] += 1
            if task.state is TaskState.RUNNING:
                for row in (runtime, *rows):
                    row["running"] += 1
                looked = wall - (task.last_check_at or task.started_at or wall)
                for row in (runtime, kind):
                    row["oldest_check"] = max(row["oldest_check"], looked)
            if task.ask is not None:
                for row in (runtime, *rows):
                    row["stopping"] += 1


def _open_stops(state: State) -> list[Counts]:
    """The oldest."""
    return [
        {
            "id": stop.id,
            "scope": str(stop.scope) if stop.task_id is None else f"task={stop.task_id}",
            "reason": stop.reason,
            "requested_at": stop.at,
            "remaining": state.left_of(stop),
        }
        for stop, _ in zip(state.open_stops.values(), range(STOPS), strict=False)
    ]
