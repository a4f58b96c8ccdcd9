"""One runtime's queue: round-robin over tenants, first come first served within a tenant.

A tenant's tasks stand in lanes, one for each kind, so that a kind at its limit does not hold up the
others.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from quiesce.registry.ids import TaskId
from quiesce.registry.sets import take_out

Tenant = str | None


class Lane:
    """Ids, the lowest first, so that a task that comes back is not last again."""

    __slots__ = ("back", "line", "members")

    def __init__(self, members: Iterable[TaskId] = ()) -> None:
        #: All and only the ids that wait here.
        self.members: set[TaskId] = set(members)
        #: Those that came in their order, and (a heap) those that came back, all of them; and in both some that
        #: have left from the middle, never one of these first.
        self.line: deque[TaskId] = deque(sorted(self.members))
        self.back: list[TaskId] = []

    def push(self, task_id: TaskId) -> None:
        """Stand in line."""
        self.members.add(task_id)
        if not self.line or task_id > self.line[-1]:
            self.line.append(task_id)
        else:
            heapq.heappush(self.back, task_id)

    def push_many(self, task_ids: Sequence[TaskId]) -> None:
        """Stand in line, in this order, which is that of the ids."""
        if self.line and task_ids[0] <= self.line[-1]:
            for task_id in task_ids:
                self.push(task_id)
        else:
            self.members.update(task_ids)
            self.line.extend(task_ids)

    def take_many(self, task_ids: Sequence[TaskId]) -> None:
        """These, of those that wait here the first, leave."""
        take_out(self.members, task_ids)
        self._tidy()

    def remove(self, task_id: TaskId) -> None:
        """Leave, from wherever: a stop takes a timeline's tasks out of the middle of long lanes."""
        self.members.remove(task_id)
        self._tidy()

    def _tidy(self) -> None:
        line, back, members = self.line, self.back, self.members
        while line and line[0] not in members:
            line.popleft()
        while back and back[0] not in members:
            heapq.heappop(back)
        there = len(line) + len(back)
        if there > 64 and there > 4 * len(members):
            self._sort()

    def _sort(self) -> None:
        self.line, self.back = deque(sorted(self.members)), []

    def remove_many(self, task_ids: set[TaskId]) -> set[TaskId]:
        """Those of them that wait here leave both. Costs what the smaller holds."""
        members = self.members
        if members <= task_ids:
            task_ids -= members
            self.members, self.line, self.back = set(), deque(), []
            return members
        out = members & task_ids
        task_ids -= out
        if 8 * len(out) > len(members):
            members -= out
            self._sort()
        else:
            take_out(members, out)
            self._tidy()
        return out

    def in_order(self) -> Iterator[TaskId]:
        """All who wait here, the next first."""
        there: Iterable[TaskId] = self.line
        if self.back:  # what came back may still stand in the line, too
            there = (
                each for each, _ in itertools.groupby(heapq.merge(self.line, sorted(self.back)))
            )
        elif len(self.line) == len(self.members):
            return iter(self.line)
        return filter(self.members.__contains__, there)

    def first(self) -> TaskId:
        """The next; there is one."""
        if not self.back:
            return self.line[0]
        return min(self.line[0], self.back[0]) if self.line else self.back[0]

    def firsts(self, count: int | None) -> list[TaskId]:
        """The next so many, or all."""
        return list(itertools.islice(self.in_order(), count))


class RuntimeQueue:
    """Task ids that wait to be assigned. Whoever moves, ends or marks a task removes it here.

    Nothing costs more where more tenants wait, or more tasks of a kind that is at its limit.
    """

    __slots__ = ("_lanes", "_numbers", "_size", "_turns", "_waiting")

    def __init__(self) -> None:
        #: tenant -> kind -> lane; no empty lanes, no tenant without lanes.
        self._lanes: dict[Tenant, dict[str, Lane]] = {}
        #: The turn of each of these tenants; the lowest is the next, and they stand in that order.
        self._turns: dict[Tenant, int] = {}
        self._numbers = itertools.count()
        #: For each kind a heap of all tenants that have a lane of it, by their turns, and of what was true before.
        #: Where one tenant has all lanes nothing needs to be true.
        self._waiting: dict[str, list[tuple[int, Tenant]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Stand in line."""
        self._lane(tenant, kind).push(task_id)
        self._size += 1

    def push_many(self, task_ids: Sequence[TaskId], tenant: Tenant, kind: str) -> None:
        """All these stand in line, in the order of their ids."""
        self._lane(tenant, kind).push_many(task_ids)
        self._size += len(task_ids)

    def _lane(self, tenant: Tenant, kind: str) -> Lane:
        lanes = self._lanes.get(tenant)
        if lanes is None:
            lanes = self._lanes[tenant] = {}
            self._turns[tenant] = next(self._numbers)
            if len(self._turns) == 2:
                self._wait_all(next(iter(self._turns)))
        lane = lanes.get(kind)
        if lane is None:
            lane = lanes[kind] = Lane()
            if len(self._turns) > 1:
                self._wait(tenant, kind)
        return lane

    def _wait_all(self, tenant: Tenant) -> None:
        for kind in self._lanes[tenant]:
            self._wait(tenant, kind)

    def _wait(self, tenant: Tenant, kind: str) -> None:
        """This lane waits for the tenant's turn."""
        waiting = self._waiting.setdefault(kind, [])
        if len(waiting) > 2 * len(self._turns) + 64:  # most of it is of before
            waiting[:] = (entry for entry in set(waiting) if self._is_true(entry, kind))
            heapq.heapify(waiting)
        heapq.heappush(waiting, (self._turns[tenant], tenant))

    def _is_true(self, entry: tuple[int, Tenant], kind: str) -> bool:
        turn, tenant = entry
        return self._turns.get(tenant) == turn and kind in self._lanes[tenant]

    def alike(self) -> tuple[str, Iterator[TaskId]] | None:
        """If all are of one tenant and kind: the kind, and they in their order."""
        if len(self._lanes) != 1:
            return None
        (lanes,) = self._lanes.values()
        if len(lanes) != 1:
            return None
        ((kind, lane),) = lanes.items()
        return kind, lane.in_order()

    def peek(
        self, has_room: Callable[[str], bool], allowed: Callable[[Tenant, str], bool]
    ) -> TaskId | None:
        """The next task of which the kind has room, and is allowed for its tenant; None if there is none."""
        if len(self._lanes) == 1:
            ((tenant, lanes),) = self._lanes.items()
        else:
            firsts = [
                first
                for kind in self._waiting
                if has_room(kind) and (first := self._first(kind, allowed)) is not None
            ]
            if not firsts:
                return None
            _, tenant = min(firsts)
            lanes = self._lanes[tenant]
        found = [
            lane.first() for kind, lane in lanes.items() if has_room(kind) and allowed(tenant, kind)
        ]
        return min(found, default=None)

    def _first(
        self, kind: str, allowed: Callable[[Tenant, str], bool]
    ) -> tuple[int, Tenant] | None:
        """Whose turn it is of those who may have one more of this kind, with the turn."""
        waiting = self._waiting[kind]
        passed: list[tuple[int, Tenant]] = []
        while waiting and (not self._is_true(waiting[0], kind) or not allowed(waiting[0][1], kind)):
            entry = heapq.heappop(waiting)
            if self._is_true(entry, kind):
                passed.append(entry)
        first = waiting[0] if waiting else None
        for entry in passed:
            heapq.heappush(waiting, entry)
        return first

    def take(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Leave the line to be run: the tenant's turn goes to the end."""
        self.remove(task_id, tenant, kind)
        self._has_had_turn(tenant)

    def take_many(self, task_ids: Sequence[TaskId], tenant: Tenant, kind: str) -> None:
        """The first of this lane leave the line to be run."""
        self._lanes[tenant][kind].take_many(task_ids)
        self._size -= len(task_ids)
        self._drop_empty(tenant, kind)
        self._has_had_turn(tenant)

    def _has_had_turn(self, tenant: Tenant) -> None:
        if len(self._turns) > 1 and self._turns.pop(tenant, None) is not None:
            self._turns[tenant] = next(self._numbers)
            self._wait_all(tenant)

    def remove(self, task_id: TaskId, tenant: Tenant, kind: str) -> None:
        """Leave the line."""
        self._lanes[tenant][kind].remove(task_id)
        self._size -= 1
        self._drop_empty(tenant, kind)

    def remove_many(self, task_ids: set[TaskId], tenant: Tenant, kind: str) -> set[TaskId]:
        """Those that wait in this lane leave it, and `task_ids`."""
        out = self._lanes[tenant][kind].remove_many(task_ids)
        self._size -= len(out)
        self._drop_empty(tenant, kind)
        return out

    def remove_lanes(
        self, tenant: Tenant = None, kind: str | None = None
    ) -> list[tuple[Tenant, str, Lane]]:
        """The lanes of this tenant and this kind (None: of all) are taken out, each with all that wait in it."""
        if tenant is None:  # nobody has one of these any more
            self._waiting = {
                each: those for each, those in self._waiting.items() if kind not in (None, each)
            }
        out: list[tuple[Tenant, str, Lane]] = []
        for each in list(self._lanes) if tenant is None else [tenant] * (tenant in self._lanes):
            lanes = self._lanes[each]
            if kind is None:
                out += [(each, its_kind, lane) for its_kind, lane in lanes.items()]
                lanes.clear()
            elif kind in lanes:
                out.append((each, kind, lanes.pop(kind)))
            if not lanes:
                del self._lanes[each], self._turns[each]
        self._size -= sum(len(lane.members) for _, _, lane in out)
        return out

    def _drop_empty(self, tenant: Tenant, kind: str) -> None:
        lanes = self._lanes[tenant]
        if not lanes[kind].members:
            del lanes[kind]
            if not lanes:
                del self._lanes[tenant], self._turns[tenant]

    def count(self, tenant: Tenant = None, kind: str | None = None) -> int:
        """How many of this tenant and this kind (None: of all) wait."""
        if tenant is kind is None:
            return self._size
        there = self._lanes.values() if tenant is None else [self._lanes.get(tenant, {})]
        if kind is None:
            return sum(len(lane.members) for lanes in there for lane in lanes.values())
        return sum(len(lanes[kind].members) for lanes in there if kind in lanes)

    def sizes(self) -> Iterator[tuple[Tenant, str, int]]:
        """How many wait where."""
        for tenant, lanes in self._lanes.items():
            for kind, lane in lanes.items():
                yield tenant, kind, len(lane.members)

    def lanes(self) -> Iterator[tuple[Tenant, str, list[TaskId]]]:
        """Who waits where, for the checker of invariants."""
        for tenant, lanes in self._lanes.items():
            for kind, lane in lanes.items():
                yield tenant, kind, sorted(lane.members)

    def turns(self) -> tuple[Tenant, ...]:
        """The order of the tenants' turns, for `freeze`."""
        return tuple(self._turns)

    def set_turns(self, turns: tuple[Tenant, ...]) -> None:
        """The inverse, for `thaw`: the same tenants, in this order."""
        for tenant in turns:
            self._has_had_turn(tenant)
