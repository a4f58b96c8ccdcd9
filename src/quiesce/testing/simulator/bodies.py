"""What task bodies do, drawn by chance."""

from typing import TYPE_CHECKING, Any

from quiesce.registry.scope import Scope
from quiesce.registry.states import Outcome

if TYPE_CHECKING:
    from quiesce.testing.simulator.attempts import Attempt
    from quiesce.testing.simulator.world import World


class Bodies:
    """Decides for all attempts."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._engine = world.engine
        #: No new mischief: what runs ends when it is asked.
        self.calm = False

    def begin(self, attempt: "Attempt") -> None:
        """What it is going to do."""
        engine = self._engine
        random = engine.random.random
        chance = random()
        if chance < 0.30:
            engine.after(0.2 * random(), self._end_by_itself, attempt)
        elif chance < 0.36 and not self.calm:
            attempt.deaf = 1 + int(3 * random())  # 3: no force but the kill reaches it
            if attempt.deaf == 3:
                attempt.deaf = 1000
        elif chance < 0.42:
            engine.after(0.02 * random(), self._associate, attempt)
        elif chance < 0.47 and not self.calm:
            engine.after(0.02 * random(), self._spawn, attempt)
        elif chance < 0.49 and not self.calm:
            engine.after(0.02 * random(), self._stop, attempt)
        elif chance < 0.50 and not self.calm:
            engine.after(0.2 * random(), self._crash, attempt)
        # The others run until they are asked.

    def react(self, attempt: "Attempt") -> None:
        """It has seen the request."""
        engine = self._engine
        chance = engine.random.random()
        if chance < 0.03 and not self.calm:
            worker = attempt.worker
            worker.do(worker.caught_up().extend_grace(attempt.key, 0.5))
            engine.after(engine.random.random(), worker.close, attempt, Outcome.CANCELLED)
        elif chance < 0.15:
            engine.after(
                0.05 * engine.random.random(), attempt.worker.close, attempt, Outcome.COMPLETED
            )
        elif chance < 0.25:
            attempt.worker.close(attempt, Outcome.FAILED)
        else:
            attempt.worker.close(attempt, Outcome.CANCELLED)

    def associated(self, attempt: "Attempt") -> None:
        """associate_with has returned."""
        if self._engine.random.random() < 0.3:
            self._engine.after(0.01, self._end_by_itself, attempt)

    def _goes_on(self, attempt: "Attempt", call: Any) -> bool:
        """Whether it is still in its body, and the process runs; else it is done later, or never."""
        worker = attempt.worker
        if not worker.alive or attempt.over is not None:
            return False
        if worker.frozen:
            worker.defer(call, attempt)
            return False
        return worker.attempts.get(attempt.key) is attempt

    def _end_by_itself(self, attempt: "Attempt") -> None:
        if self._goes_on(attempt, self._end_by_itself):
            chance = self._engine.random.random()
            outcome = Outcome.COMPLETED if chance < 0.6 else Outcome.FAILED
            if chance > 0.95:
                outcome = Outcome.CRASHED
            attempt.worker.close(attempt, outcome)

    def _crash(self, attempt: "Attempt") -> None:
        """os._exit, a segmentation fault: with everybody else in the process."""
        if self._goes_on(attempt, self._crash):
            self._engine.fault("task ends its process", attempt)
            attempt.worker.die(self._engine.random.choice((0, 1, -11)))

    def _associate(self, attempt: "Attempt") -> None:
        if self._goes_on(attempt, self._associate):
            worker, random = attempt.worker, self._engine.random
            tenant = self._world.tenant()
            timeline = random.choice((None, "main"))
            attempt.request, effects = worker.caught_up().associate(attempt.key, tenant, timeline)
            worker.do(effects)

    def _spawn(self, attempt: "Attempt") -> None:
        if self._goes_on(attempt, self._spawn) and not self.calm:
            client = attempt.worker.nested()
            tenant = attempt.labels[1]
            attempt.unanswered += 1
            client.spawn_for(attempt, tenant)

    def _stop(self, attempt: "Attempt") -> None:
        if self._goes_on(attempt, self._stop) and not attempt.asked and not self.calm:
            random = self._engine.random
            tenant = attempt.labels[1] if random.random() < 0.5 else self._world.tenant()
            attempt.worker.nested().stop_for(attempt, Scope(tenant_id=tenant))
