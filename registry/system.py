"""The stop of the whole system: kinds in the configured order, then everything, then the pools, then the end.

The order is a list of kinds; "*" stands for all kinds that it does not name. Each kind's stop is an ordinary
stop whose scope stays closed, so it works the same while pools drain and clients stop scopes of their own.
"""

from typing import Final

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import RequestNumber
from quiesce.registry.scope import Scope
from quiesce.registry.state import State
from quiesce.registry.stopping import SYSTEM, open_stop
from quiesce.registry.turn import Turn

#: Seconds that workers get to exit by themselves once nothing runs any more.
WORKERS: Final = 2.0
#: Seconds after that for supervisors to say goodbye.
GOODBYE: Final = 5.0
#: Seconds that a hurried stop (the second signal) gives before it kills.
HURRY: Final = 3.0
#: The phase after the last kind: everything.
EVERYTHING: Final = ("",)


def phases(order: tuple[str, ...], kinds: list[str]) -> list[tuple[str, ...]]:
    """The kinds of each phase; the last phase is everything, whatever its kind."""
    named = [kind for kind in order if kind in kinds]
    others = tuple(sorted(set(kinds) - set(named)))
    result: list[tuple[str, ...]] = []
    for name in order if "*" in order else (*order, "*"):
        if name == "*":
            result.append(others)
        elif name in kinds:
            result.append((name,))
    return [*result, EVERYTHING]


class SystemStop:
    """Where the stop of the system stands. All of it is volatile."""

    __slots__ = ("order", "over", "pending", "phase", "timeout")

    def __init__(self, order: tuple[str, ...], timeout: float) -> None:
        self.order = order
        self.timeout = timeout
        #: -1 before it has begun; past the last phase the pools are told to exit.
        self.phase = -1
        #: The stops of the present phase that are open.
        self.pending: set[int] = set()
        #: The broker has been told to exit.
        self.over = False

    def begin(self, turn: Turn, reason: str, *, failed: bool) -> None:
        """Begin, or, when it has begun, note a failure."""
        state = turn.state
        if state.stopping:
            if failed and not state.failed:
                turn.emit(facts.SystemStopping(reason, True, False))
            return
        turn.emit(facts.SystemStopping(reason, failed, False))
        turn.log("ERROR" if failed else "INFO", f"the system stops: {reason}")
        turn.timers.set(("system", 0), turn.now.tick + self.timeout)
        self.advance(turn)

    def resume(self, turn: Turn) -> None:
        """The broker was started again in the midst of it: all is asked again, in order."""
        turn.log("WARNING", f"the system goes on stopping: {turn.state.stop_reason}")
        fast = turn.state.fast
        turn.timers.set(("system", 0), turn.now.tick + (HURRY if fast else self.timeout))
        if fast:
            self._stop_everything(turn, 0.0)

    def hurry(self, turn: Turn) -> None:
        """Said again: everything at once, no grace."""
        if turn.state.fast or self.phase >= len(self._phases(turn.state)):
            return
        turn.emit(facts.SystemStopping("", False, True))
        turn.log("WARNING", "the system stops faster: everything is asked now and gets no grace")
        self._stop_everything(turn, 0.0)
        present = turn.timers.when(("system", 0))
        hurried = turn.now.tick + HURRY
        if present is None or hurried < present:
            turn.timers.set(("system", 0), hurried)

    def advance(self, turn: Turn) -> bool:
        """Go on when the stops of this phase are complete, to the next phase, the pools, the end.

        Returns:
            Whether it did, so that more may follow.
        """
        state = turn.state
        self.pending &= state.open_stops.keys()
        if self.over or self.pending:
            return False
        plan = self._phases(state)
        if self.phase >= len(plan):
            if state.supervisors:
                return False
            self._over(turn)
        elif self.phase + 1 < len(plan):
            self.phase += 1
            for kind in plan[self.phase]:
                self.pending.add(self._stop(turn, Scope(kind=kind or None), None))
        else:
            self._end_pools(turn, WORKERS)
        return True

    def on_due(self, turn: Turn) -> None:
        """Out of time: first what still runs is killed with its pools, then the broker goes alone."""
        state = turn.state
        if self.phase < len(self._phases(state)):
            turn.log(
                "WARNING", f"{len(state.tasks)} tasks did not stop in time: their pools are killed"
            )
            self._stop_everything(turn, 0.0)  # so that they end as cancelled, not as crashed
            self._end_pools(turn, 0.0)
        else:
            turn.log("ERROR", f"{len(state.supervisors)} supervisors did not say goodbye in time")
            self._over(turn)

    def _phases(self, state: State) -> list[tuple[str, ...]]:
        return phases(self.order, list(state.kinds))

    def _stop_everything(self, turn: Turn, grace: float) -> None:
        self.phase = len(self._phases(turn.state)) - 1
        self.pending = {self._stop(turn, Scope(), grace)}

    def _stop(self, turn: Turn, scope: Scope, grace: float | None) -> int:
        return open_stop(
            turn,
            events.StopAsked(
                session=SYSTEM,
                request=RequestNumber(0),
                scope=scope,
                task_id=None,
                grace=grace,
                timeout=None,
                keep_closed=True,
                hold=False,
                reason=turn.state.stop_reason,
                last_spawn=0,
                caller=None,
            ),
        )

    def _end_pools(self, turn: Turn, grace: float) -> None:
        self.phase = len(self._phases(turn.state))
        self.pending.clear()
        turn.state.leaving = True
        # Supervisors first, or they would replace the workers that go.
        for supervisor in turn.state.supervisors.values():
            supervisor.exiting = True
            turn.send(effects.ExitSupervisor(supervisor.id, grace))
        for worker in turn.state.workers.values():
            worker.exiting = True
            if worker.status is None and worker.attached:
                turn.send(effects.ExitWorker(worker.incarnation))
        turn.timers.set(("system", 0), turn.now.tick + grace + GOODBYE)

    def _over(self, turn: Turn) -> None:
        self.over = True
        turn.timers.clear(("system", 0))
        turn.send(effects.SystemStopped(turn.state.failed))
