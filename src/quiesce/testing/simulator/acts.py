"""What the programs of users do all the time: spawn, stop, reopen, hold scopes closed; drawn by chance."""

from typing import TYPE_CHECKING, Any

from quiesce.registry.scope import Scope
from quiesce.testing.simulator.attempts import SHORT
from quiesce.testing.simulator.client import Client, row
from quiesce.testing.simulator.process import Clock
from quiesce.testing.simulator.truths import Call, Labels

if TYPE_CHECKING:
    from quiesce.testing.simulator.world import World


class ActiveClient(Client):
    """One program of a user, busy until the world is calm."""

    def __init__(self, world: "World", host: str, clock: Clock) -> None:
        super().__init__(world, host, clock)
        #: The tenants that it works for.
        self.tenants = [world.tenant() for _ in range(4)]
        self.engine.after(world.plan.pace * self.engine.random.random(), self.act)

    def act(self) -> None:
        """One thing, then a pause."""
        if not self.alive or self.world.calm:
            return
        if self.frozen:
            self.defer(self.act)
            return
        engine = self.engine
        random = engine.random.random
        engine.after(2 * self.world.plan.pace * random(), self.act)
        if len(self.calls) > 8 or len(self.spawned) > 100:
            if len(self.spawned) > 100:
                self._stop_scope()
            return
        chance = random()
        if chance < 0.42:
            self.spawn(
                [row(self._labels(), **self._options()) for _ in range(1 + int(3 * random()))]
            )
        elif chance < 0.46:
            self.spawn_many(row(self._labels()), 1 + int(3 * random()))
        elif chance < 0.48:
            # In workers of one slot such follow each other in a row.
            labels = ("scan", *self._labels()[1:3], "brief")
            self.spawn_many(row(labels, function=SHORT), 5 + int(60 * random()))
        elif chance < 0.93:
            self._stop_scope()
        elif chance < 0.97:
            known = [each.task_id for each in self.spawned.values() if each.task_id]
            if known:
                task_id = known[int(random() * len(known))]
                self.stop(Scope(), task_id=task_id, grace=self._grace())
        else:
            tenant = self._tenant()
            self.reopen(Scope(tenant_id=tenant) if random() < 0.9 else Scope())

    def _tenant(self) -> str:
        return self.tenants[int(4 * self.engine.random.random())]

    def _labels(self) -> Labels:
        random = self.engine.random.random
        chance = random()
        timeline = None if chance < 0.5 else ("main" if chance < 0.8 else "dev")
        return (self.world.kind(), self._tenant(), timeline, self.world.runtime())

    def _options(self) -> dict[str, Any]:
        chance = self.engine.random.random()
        if chance < 0.7:
            return {}
        if chance < 0.8:
            return {"retries": 1 + int(2 * self.engine.random.random())}
        if chance < 0.85:
            return {"restart": "always" if chance < 0.82 else "on-failure"}
        if chance < 0.92:
            return {"unique_key": "one"}
        return {"timeout": 0.2}

    def _grace(self) -> float | None:
        chance = self.engine.random.random()
        return None if chance < 0.7 else (0.0 if chance < 0.9 else 0.1)

    def _scope(self) -> Scope:
        random = self.engine.random.random
        chance = random()
        tenant = self._tenant()
        if chance < 0.68:
            return Scope(tenant_id=tenant)
        if chance < 0.8:
            return Scope(tenant_id=tenant, timeline_id="main")
        if chance < 0.9:
            return Scope(kind=self.world.kind(), tenant_id=tenant)
        if chance < 0.998:
            return Scope(tenant_id=tenant, runtime=self.world.runtime())
        if chance < 0.999:
            return Scope(kind=self.world.kind())
        if chance < 0.9998:
            return Scope(runtime=self.world.runtime())
        return Scope()

    def _stop_scope(self) -> None:
        random = self.engine.random.random
        scope, grace = self._scope(), self._grace()
        chance = random()
        if chance < 0.85:
            self.stop(scope, grace=grace)
        elif chance < 0.92:
            self.stop(scope, grace=grace, timeout=0.5 * random())
        elif chance < 0.97 and scope.tenant_id is not None:
            self.stop(scope, grace=grace, hold=True)
        elif scope.tenant_id is not None:
            self.stop(scope, grace=grace, keep_closed=True)
        else:
            self.stop(scope)

    def told(self, call: Call) -> None:
        """After a block's body it is released; what was kept closed is opened some time."""
        if call.hold and self.blocks:
            self.engine.after(0.1 * self.engine.random.random(), self._leave_block, self.blocks[-1])
        elif call.keep:
            self.engine.after(self.engine.random.random(), self._open, call.scope)

    def _leave_block(self, stop_id: int) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.defer(self._leave_block, stop_id)
        elif stop_id in self.blocks:
            self.release(stop_id)

    def _open(self, scope: Scope) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.defer(self._open, scope)
        else:
            self.reopen(scope)
