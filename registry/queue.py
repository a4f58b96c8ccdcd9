"""One runtime's queue: round-robin over tenants, first come first served within a tenant.

A tenant's tasks stand in lanes, one for each kind, so that a kind at its limit does not hold up the others.
"""

from collections import deque
from collections.abc import Callable, Iterator

from quiesce.registry.ids import TaskId

Tenant = str | None


class RuntimeQueue:
    """Task ids that wait. Every id in a lane is QUEUED: whoever ends or moves a task removes it here."""

    __slots__ = ("_lanes", "_size", "_turns")

    def __init__(self) -> None:
        #: tenant -> kind -> ids ascending; no empty lanes, no tenant without lanes.
        self._lanes: dict[Tenant, dict[str, deque[TaskId]]] = {}
        #: The tenants in the order of their turns.
        self._turns: deque[Tenant] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Stand in line: by id within the lane, so that a task that comes back is not last again."""
        lanes = self._lanes.get(tenant)
        if lanes is None:
            lanes = self._lanes[tenant] = {}
            self._turns.append(tenant)
        lane = lanes.setdefault(kind, deque())
        if not lane or lane[-1] < task_id:
            lane.append(task_id)
        else:
            place = next(i for i, other in enumerate(lane) if other > task_id)
            lane.insert(place, task_id)
        self._size += 1

    def peek(self, allowed: Callable[[Tenant, str], bool]) -> TaskId | None:
        """The next task whose (tenant, kind) is allowed, or None if there is none."""
        for tenant in self._turns:
            lanes = self._lanes[tenant]
            kind = min(
                (kind for kind in lanes if allowed(tenant, kind)),
                key=lambda kind, lanes=lanes: lanes[kind][0],  # type: ignore[misc]  # bound early for the loop
                default=None,
            )
            if kind is not None:
                return lanes[kind][0]
        return None

    def take(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Leave the line to be run: the tenant's turn goes to the end."""
        self._turns.remove(tenant)
        self._turns.append(tenant)
        self.remove(task_id, tenant, kind)

    def remove(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Leave the line. Cheap at both ends of a lane, else linear in the lane."""
        lanes = self._lanes[tenant]
        lane = lanes[kind]
        if lane[0] == task_id:
            lane.popleft()
        elif lane[-1] == task_id:
            lane.pop()
        else:
            lane.remove(task_id)
        self._size -= 1
        if not lane:
            del lanes[kind]
            if not lanes:
                del self._lanes[tenant]
                self._turns.remove(tenant)

    def ids(self) -> Iterator[TaskId]:
        """All that wait, in no particular order."""
        for lanes in self._lanes.values():
            for lane in lanes.values():
                yield from lane

    def turns(self) -> tuple[Tenant, ...]:
        """The order of the tenants' turns, for `freeze`."""
        return tuple(self._turns)

    def set_turns(self, turns: tuple[Tenant, ...]) -> None:
        """The inverse, for `thaw`: the same tenants, in this order."""
        self._turns = deque(turns)
