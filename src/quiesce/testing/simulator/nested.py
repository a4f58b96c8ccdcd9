"""The client in a worker process, through which its tasks spawn and stop others."""

from typing import TYPE_CHECKING

from quiesce.registry.scope import Scope
from quiesce.testing.simulator.client import Client, row
from quiesce.testing.simulator.truths import Call

if TYPE_CHECKING:
    from quiesce.testing.simulator.attempts import Attempt
    from quiesce.testing.simulator.worker import Worker


class NestedClient(Client):
    """Lives and dies with its worker."""

    kind = "nested"

    def __init__(self, worker: "Worker") -> None:
        super().__init__(worker.world, worker.host, worker.clock, worker.session.incarnation)
        self.is_nested = True

    def spawn_for(self, attempt: "Attempt", tenant: str | None) -> None:
        """A task spawns another; it ends only once that is answered."""
        world = self.world
        labels = (world.kind(), tenant, None, world.runtime())
        self.spawn([row(labels, parent=attempt.key)], attempt)

    def stop_for(self, attempt: "Attempt", scope: Scope) -> None:
        """A task stops a scope that may cover itself, and waits for that."""
        attempt.stopping = True
        self.stop(scope, timeout=self.engine.random.choice((None, 1.0)), attempt=attempt)

    def told(self, call: Call) -> None:
        """Its stop has returned."""
        if call.attempt is not None:
            call.attempt.stopping = False
