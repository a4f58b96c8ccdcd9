"""A runtime's queue beside a model of it that looks at everything each time, and its cost with many tenants."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quiesce.registry.ids import TaskId
from quiesce.registry.queue import RuntimeQueue

TENANTS = st.sampled_from((None, "x", "y", "z"))
KINDS = st.sampled_from(("gc", "flush", "scan"))
EVERYBODY: Callable[..., bool] = lambda *of: True  # noqa: E731 - it stands for a method


class Model:
    """Tenants in the order of their turns, each with the ids that it has of each kind."""

    def __init__(self) -> None:
        self.turns: list[str | None] = []
        self.lanes: dict[tuple[str | None, str], set[int]] = {}

    def push(self, task_id: int, tenant: str | None, kind: str) -> None:
        if tenant not in self.turns:
            self.turns.append(tenant)
        self.lanes.setdefault((tenant, kind), set()).add(task_id)

    def remove(self, task_ids: set[int], tenant: str | None, kind: str) -> None:
        left = self.lanes[tenant, kind] - task_ids
        if left:
            self.lanes[tenant, kind] = left
            return
        del self.lanes[tenant, kind]
        if all(other != tenant for other, _ in self.lanes):
            self.turns.remove(tenant)

    def take(self, task_ids: set[int], tenant: str | None, kind: str) -> None:
        self.turns.remove(tenant)
        self.turns.append(tenant)
        self.remove(task_ids, tenant, kind)

    def peek(self, full: set[str], at_limit: set[tuple[str | None, str]]) -> int | None:
        for tenant in self.turns:
            firsts = [
                min(ids)
                for (other, kind), ids in self.lanes.items()
                if other == tenant and kind not in full and (tenant, kind) not in at_limit
            ]
            if firsts:
                return min(firsts)
        return None


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = RuntimeQueue()
        self.model = Model()
        self.last = 0
        self.out: list[tuple[int, str | None, str]] = []

    @rule(tenant=TENANTS, kind=KINDS, count=st.integers(1, 3))
    def push(self, tenant: str | None, kind: str, count: int) -> None:
        task_ids = [TaskId(self.last + number) for number in range(1, count + 1)]
        self.last += count
        if count == 1:
            self.queue.push(task_ids[0], tenant, kind)
        else:
            self.queue.push_many(task_ids, tenant, kind)
        for task_id in task_ids:
            self.model.push(task_id, tenant, kind)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        task_id, tenant, kind = data.draw(st.sampled_from(self.out))
        self.out.remove((task_id, tenant, kind))
        self.queue.push(TaskId(task_id), tenant, kind)
        self.model.push(task_id, tenant, kind)

    @precondition(lambda self: self.model.lanes)
    @rule(data=st.data(), many=st.booleans())
    def take(self, data: st.DataObject, many: bool) -> None:
        tenant, kind = data.draw(st.sampled_from(list(self.model.lanes)))
        members = sorted(self.model.lanes[tenant, kind])
        count = data.draw(st.integers(1, len(members))) if many else 1
        taken = [TaskId(each) for each in members[:count]]
        if many:
            self.queue.take_many(taken, tenant, kind)
        else:
            self.queue.take(taken[0], tenant, kind)
        self.model.take({*taken}, tenant, kind)
        self.out += [(task_id, tenant, kind) for task_id in taken]

    @precondition(lambda self: self.model.lanes)
    @rule(data=st.data(), many=st.booleans())
    def remove(self, data: st.DataObject, many: bool) -> None:
        tenant, kind = data.draw(st.sampled_from(list(self.model.lanes)))
        members = sorted(self.model.lanes[tenant, kind])
        gone = data.draw(st.sets(st.sampled_from(members), min_size=1)) if many else {members[-1]}
        if many:
            there = {TaskId(each) for each in gone}
            assert self.queue.remove_many(there | {TaskId(0)}, tenant, kind) == gone
        else:
            self.queue.remove(TaskId(members[-1]), tenant, kind)
        self.model.remove(set(gone), tenant, kind)

    @rule(tenant=TENANTS, kind=st.none() | KINDS)
    def remove_lanes(self, tenant: str | None, kind: str | None) -> None:
        matching = {
            (its_tenant, its_kind): ids
            for (its_tenant, its_kind), ids in self.model.lanes.items()
            if tenant in (None, its_tenant) and kind in (None, its_kind)
        }
        assert self.queue.count(tenant, kind) == sum(map(len, matching.values()))
        out = self.queue.remove_lanes(tenant, kind)
        assert {(each, its_kind): lane.members for each, its_kind, lane in out} == matching
        for (its_tenant, its_kind), ids in matching.items():
            self.model.remove(ids, its_tenant, its_kind)

    @rule(data=st.data())
    def thaw(self, data: st.DataObject) -> None:
        """Into another queue, whose tenants came in another order."""
        copy = RuntimeQueue()
        for (tenant, kind), ids in data.draw(st.permutations(list(self.model.lanes.items()))):
            for task_id in ids:
                copy.push(TaskId(task_id), tenant, kind)
        copy.set_turns(self.queue.turns())
        self.queue = copy

    @rule(full=st.sets(KINDS), at_limit=st.sets(st.tuples(TENANTS, KINDS)))
    def peek(self, full: set[str], at_limit: set[tuple[str | None, str]]) -> None:
        found = self.queue.peek(
            lambda kind: kind not in full, lambda tenant, kind: (tenant, kind) not in at_limit
        )
        assert found == self.model.peek(full, at_limit)

    @invariant()
    def is_as_the_model(self) -> None:
        assert self.queue.turns() == tuple(self.model.turns)
        assert len(self.queue) == sum(map(len, self.model.lanes.values()))
        found = {(tenant, kind): set(ids) for tenant, kind, ids in self.queue.lanes()}
        assert found == self.model.lanes
        assert self.queue.peek(EVERYBODY, EVERYBODY) == self.model.peek(set(), set())


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def crowd(kind: str, count: int) -> RuntimeQueue:
    """A queue in which so many tenants wait, with one task each."""
    queue = RuntimeQueue()
    for number in range(1, count + 1):
        queue.push(TaskId(number), f"tenant {number}", kind)
    return queue


def test_who_may_not_run_costs_those_who_may_nothing() -> None:
    """A thousand tenants wait for a kind that is full; one that came after them wants another."""
    queue = crowd("full", 1000)
    queue.push(TaskId(2000), "late", "gc")
    asked: list[Any] = []

    def has_room(kind: str) -> bool:
        asked.append(kind)
        return kind != "full"

    def allowed(*of: Any) -> bool:
        asked.append(of)
        return True

    assert queue.peek(has_room, allowed) == 2000
    assert len(asked) < 10
    queue.take(TaskId(2000), "late", "gc")
    asked.clear()
    assert queue.peek(has_room, allowed) is None
    assert len(asked) < 10


def test_turns_that_are_over_are_forgotten() -> None:
    """A tenant has its turns with one kind, while its other waits: that is noted once, not once for each turn."""
    queue = crowd("full", 10)
    for number in range(1000, 3000):
        queue.push(TaskId(number), "tenant 1", "gc")
        queue.take(TaskId(number), "tenant 1", "gc")
    assert sum(map(len, queue._waiting.values())) < 200
    assert queue.peek(EVERYBODY, EVERYBODY) == 2


def test_a_stop_of_many_leaves_nothing_to_be_cleared_up() -> None:
    """By the turn that comes next."""
    queue = crowd("gc", 100)
    queue.push(TaskId(200), "tenant 1", "scan")
    assert len(queue.remove_lanes(kind="gc")) == 100
    assert sum(map(len, queue._waiting.values())) == 1
    assert len(queue.remove_lanes()) == 1
    assert sum(map(len, queue._waiting.values())) == 0
