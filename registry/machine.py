"""The registry: a pure state machine. Events in; facts and effects out.

    facts, effects = registry.handle(event, now)

No sockets, clock, randomness or processes. `handle` decides, by the handlers of one event each, and applies
what it has decided; `apply` alone changes the state, so that replaying the facts gives the same registry.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from quiesce.registry import (
    attempts,
    events,
    forcing,
    freezing,
    invariants,
    leases,
    pools,
    recovery,
    sessions,
    spawning,
    stopping,
)
from quiesce.registry.ahead import Ahead
from quiesce.registry.apply import apply
from quiesce.registry.effects import Effect
from quiesce.registry.events import Event, Instant
from quiesce.registry.facts import Fact
from quiesce.registry.ids import SessionId, StopId, TaskId
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.scheduling import schedule
from quiesce.registry.state import ALIKE, ROOM, State
from quiesce.registry.system import SystemStop
from quiesce.registry.timers import Timers
from quiesce.registry.turn import Turn

Handler = Callable[[Turn, Any], None]


class HalfDoneError(Exception):
    """A handler has failed after it had decided something: what stands is neither what was before nor what was
    to be. Only recovery from the journal, which holds nothing of it, is right.
    """


def on_continue(turn: Turn, event: events.Continue) -> None:
    if isinstance(event.of, bytes):
        sessions.go_on(turn, event.of)
    else:
        stopping.go_on(turn, event.of)


HANDLERS: Final[dict[type, Handler]] = {
    events.EpochBegan: recovery.on_epoch_began,
    events.RoomSaid: spawning.on_room_said,
    events.SessionHello: sessions.on_session_hello,
    events.SessionAttached: sessions.on_session_attached,
    events.SessionHeard: sessions.on_session_heard,
    events.SessionGoodbye: sessions.on_session_goodbye,
    events.ResultsTaken: sessions.on_results_taken,
    events.SpawnsAsked: spawning.on_spawns_asked,
    events.StopAsked: stopping.on_stop_asked,
    events.Continue: on_continue,
    events.ReleaseAsked: stopping.on_release_asked,
    events.ReopenAsked: stopping.on_reopen_asked,
    events.SupervisorHello: pools.on_supervisor_hello,
    events.LeaseRenewed: pools.on_lease_renewed,
    events.SupervisorGoodbye: pools.on_supervisor_goodbye,
    events.WorkerHello: pools.on_worker_hello,
    events.WorkerAttached: pools.on_worker_attached,
    events.WorkerExited: pools.on_worker_exited,
    events.UsageSaid: pools.on_usage_said,
    events.TasksBegun: attempts.on_tasks_begun,
    events.TasksEnded: attempts.on_tasks_ended,
    events.TasksGivenBack: attempts.on_tasks_given_back,
    events.StopsSeen: attempts.on_stops_seen,
    events.TaskLingers: attempts.on_task_lingers,
    events.AssociateAsked: attempts.on_associate_asked,
    events.GraceAsked: attempts.on_grace_asked,
    events.ProgressSaid: attempts.on_progress_said,
    events.WaitsSaid: attempts.on_waits_said,
}


class Registry:
    """All tasks, and every rule about them.

    Args:
        runtimes: the declared runtimes.
        kinds: the declared kinds.
        shutdown_order: kinds in the order in which a stop of the system asks them; "*" for all others.
        stop_timeout: seconds after which a stop of the system kills what is left.
        session_timeout: seconds of silence after which a client session is forgotten.
        history: how many ended tasks are kept to be listed.
        payload_limit: bytes of function and arguments that one spawn may have.
        lease: seconds for which a supervisor lives without the broker.
        lease_bound: seconds after which its silence proves it dead; see `leases`.
        alike: so many tasks of which the same is said make one fact; see `facts.singly`.
        room: what the journal wants before spawns are taken, for people.
    """

    def __init__(
        self,
        *,
        runtimes: Iterable[RuntimeLimits],
        kinds: Iterable[KindLimits],
        shutdown_order: tuple[str, ...] = (),
        stop_timeout: float = 30.0,
        session_timeout: float = 300.0,
        history: int = 10_000,
        payload_limit: int = 64 * 1024 * 1024,
        lease: float = leases.LEASE,
        lease_bound: float | None = None,
        alike: int = ALIKE,
        room: str = ROOM,
    ) -> None:
        self.state = State(
            {runtime.name: runtime for runtime in runtimes},
            {kind.name: kind for kind in kinds},
            history_limit=history,
            payload_limit=payload_limit,
            lease=lease,
            lease_bound=lease_bound,
            alike=alike,
            room=room,
        )
        self.timers = Timers()
        self.ahead = Ahead(self.state)
        self.system = SystemStop(shutdown_order, stop_timeout)
        self.session_timeout = session_timeout

    def handle(self, event: Event, now: Instant) -> tuple[list[Fact], list[Effect]]:
        """Decide what follows from one event.

        Returns:
            The facts, applied already, in order; and the effects, to be carried out in order once the facts
            are durable (those of `effects.HASTY` at once).

        Raises:
            HalfDoneError: something failed, a fault of ours, after facts had been applied.
            Exception: whatever else fails; then nothing was decided.
        """
        self.state.begin_turn()
        turn = Turn(self.state, self.timers, now)
        try:
            self._decide(turn, event)
        except Exception as error:
            if turn.begun:
                raise HalfDoneError(f"{type(event).__name__}: {error!r}") from error
            raise
        self.ahead.see(turn.facts)
        return turn.facts, turn.effects

    def _decide(self, turn: Turn, event: Event) -> None:
        kind = type(event)
        if kind is events.Tick:
            self._on_tick(turn)
        elif kind is events.SystemStopAsked:
            self._on_system_stop_asked(turn, event.reason)  # type: ignore[union-attr]  # narrowed by kind
        else:
            HANDLERS[kind](turn, event)
            if kind is events.EpochBegan and self.state.stopping:
                self.system.resume(turn)
        self._settle(turn)

    def apply(self, fact: Fact) -> None:
        """Replay one fact of the past."""
        self.state.begin_turn()
        apply(self.state, fact)
        self.ahead.see([fact])

    def freeze(self, *, volatile: bool = True, payloads: bool = False) -> tuple[Any, ...]:
        """The whole of it as plain, hashable tuples; see `freezing`.

        Args:
            volatile: False leaves out what no fact speaks of (timers, telemetry, progress of a stop of the
                system), so that a replay of the facts freezes to the same.
            payloads: True keeps them as they are, for a journal.
        """
        return freezing.freeze(self, volatile=volatile, payloads=payloads)

    def snapshot(self) -> tuple[Any, ...]:
        """The same for a journal, quickly as far as it was frozen ahead."""
        ready = self.ahead.take()
        return freezing.freeze(self, volatile=False, payloads=True, ready=ready)

    @classmethod
    def thaw(cls, frozen: tuple[Any, ...], **configuration: Any) -> "Registry":
        """The inverse of `freeze`, under the same configuration: the arguments of Registry."""
        registry = cls(**configuration)
        freezing.thaw(registry, frozen)
        return registry

    def check(self) -> None:
        """Raise RegistryFault if an invariant does not hold; see `invariants`."""
        invariants.check(self)

    def next_deadline(self) -> float | None:
        """The tick by which `handle(Tick())` must be called next; None: only other events matter."""
        return self.timers.next()

    def _on_system_stop_asked(self, turn: Turn, reason: str) -> None:
        if self.state.stopping:
            self.system.hurry(turn)
        else:
            self.system.begin(turn, reason, failed=False)

    def _on_tick(self, turn: Turn) -> None:
        while (popped := self.timers.pop(turn.now.tick)) is not None:
            (what, key), when = popped
            if what == "resend":
                stopping.on_resend_due(turn, TaskId(int(key)))
            elif what == "force":
                forcing.on_force_due(turn, TaskId(int(key)), when)
            elif what == "limit":
                attempts.on_limit_due(turn, TaskId(int(key)))
            elif what == "late":
                pools.on_late_due(turn, TaskId(int(key)))
            elif what == "lease":
                pools.on_lease_due(turn, key)  # type: ignore[arg-type]  # supervisors are named by bytes
            elif what == "certain":
                stopping.on_certain_due(turn)
            elif what == "stop":
                stopping.on_stop_due(turn, StopId(int(key)))
            elif what == "word":
                stopping.on_word_due(turn, StopId(int(key)))
            elif what == "session":
                sessions.on_session_due(
                    turn,
                    SessionId(key),  # type: ignore[arg-type]  # sessions are named by bytes
                    self.session_timeout,
                    when,
                )
            else:
                self.system.on_due(turn)

    def _settle(self, turn: Turn) -> None:
        """Follow up until nothing follows any more: freed keys, complete stops, the system's stop, free slots."""
        while True:
            if turn.unparked:
                parked, turn.unparked = turn.unparked, []
                for session, row in parked:
                    known = self.state.sessions.get(session)  # it may have died with the holder
                    if known is not None and row.number not in known.answers:
                        spawning.decide(turn, session, row)
            elif turn.touched:
                touched, turn.touched = turn.touched, set()
                for stop_id in sorted(touched):
                    stopping.check(turn, stop_id)
            elif turn.fatal is not None:
                reason, turn.fatal = turn.fatal, None
                self.system.begin(turn, reason, failed=True)
            elif self.state.stopping and self.system.advance(turn):
                continue
            elif turn.dirty:
                schedule(turn)
            else:
                break
