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

#: Seconds that supervisors get to say goodbye once nothing runs any more.
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
    """Where the stop of the system stands. Rebuilt from `State.stopping` by beginning again."""

    __slots__ = ("order", "pending", "phase", "timeout")

    def __init__(self, order: tuple[str, ...], timeout: float) -> None:
        self.order = order
        self.timeout = timeout
        #: -1 before it has begun; past the last phase the pools are told to exit.
        self.phase = -1
        #: The stops of the present phase.
        self.pending: set[int] = set()

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

    def hurry(self, turn: Turn) -> None:
        """Said again: everything at once, no grace."""
        if self.phase >= len(self._phases(turn.state)):
            return
        turn.emit(facts.SystemStopping("", False, True))
        turn.log("WARNING", "the system stops faster: everything is asked now and gets no grace")
        self.phase = len(self._phases(turn.state)) - 1
        self.pending = {self._stop(turn, Scope(), 0.0)}
        turn.timers.set(("system", 0), turn.now.tick + HURRY)

    def advance(self, turn: Turn) -> None:
        """Go on to the next phase when the stops of this one are complete."""
        if not turn.state.stopping:
            return
        plan = self._phases(turn.state)
        while self.phase < len(plan):
            self.pending &= set(turn.state.open_stops)
            if self.pending:
                return
            self.phase += 1
            if self.phase == len(plan):
                self._end_pools(turn, 2.0)
                return
            for kind in plan[self.phase]:
                self.pending.add(self._stop(turn, Scope(kind=kind or None), None))
        if not turn.state.supervisors:
            turn.timers.clear(("system", 0))
            turn.send(effects.SystemStopped(turn.state.failed))

    def on_due(self, turn: Turn) -> None:
        """Out of time: first what still runs is killed with its pools, then the broker goes alone."""
        if self.phase < len(self._phases(turn.state)):
            left = len(turn.state.tasks)
            turn.log("WARNING", f"{left} tasks did not stop in time: their pools are killed")
            self.phase = len(self._phases(turn.state))
            self._end_pools(turn, 0.0)
            return
        turn.log("ERROR", f"{len(turn.state.supervisors)} supervisors did not say goodbye in time")
        turn.send(effects.SystemStopped(turn.state.failed))

    def _phases(self, state: State) -> list[tuple[str, ...]]:
        return phases(self.order, list(state.kinds))

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
        for worker in turn.state.workers.values():
            worker.exiting = True
            if worker.status is None and worker.attached:
                turn.send(effects.ExitWorker(worker.incarnation))
        for supervisor in turn.state.supervisors.values():
            supervisor.exiting = True
            turn.send(effects.ExitSupervisor(supervisor.id, grace))
        turn.timers.set(("system", 0), turn.now.tick + grace + GOODBYE)
        if not turn.state.supervisors:
            turn.send(effects.SystemStopped(turn.state.failed))
