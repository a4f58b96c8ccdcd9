"""Who may be known: how many sessions at once, and which peers are forgotten because the registry knows none such.

A session is kept for `session_timeout` after its last word, since its client may come back. Clients that only
ever say hello, each time in a new session, would fill the memory until then; so there is a bound, and beyond it
a session is forgotten early that has been silent for a while and in which nothing was ever asked for.
"""

from collections.abc import Callable
from typing import Final

from quiesce.broker.peers import PeerKey, Peers
from quiesce.registry import events
from quiesce.registry.ids import SessionId
from quiesce.registry.machine import Registry
from quiesce.registry.records import Session

#: Sessions at once, at most.
SESSIONS: Final = 10_000
#: Seconds of silence after which an empty session may go: a client says something three times as often.
SILENT: Final = 15.0
#: Seconds between two looks for room, if there was none, and between two sweeps of peers.
PACE: Final = 1.0
SWEEP: Final = 15.0


class Admission:
    """Keeps sessions and peers bounded."""

    def __init__(
        self,
        registry: Registry,
        peers: Peers,
        handle: Callable[[events.Event], None],
        tick: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._peers = peers
        self._handle = handle
        self._tick = tick
        self.limit = SESSIONS
        self._look_at = 0.0
        self.sweep_at = tick() + SWEEP
        #: The peers that nobody knew at the last sweep.
        self._unknown: set[PeerKey] = set()
        #: Sessions refused for want of room, and those that were forgotten early to make some.
        self.refused = self.dropped = 0

    def refuses(self, session: SessionId) -> str | None:
        """Why this session can't be opened, None if it can or is open already."""
        sessions = self._registry.state.sessions
        if len(sessions) < self.limit or session in sessions:
            return None
        if self._tick() >= self._look_at:
            self._make_room()
            if len(sessions) < self.limit:
                return None
            self._look_at = self._tick() + PACE
        self.refused += 1
        return (
            f"this broker has {len(sessions)} client sessions, and no room for more: end clients that are not "
            "needed, or wait until those that have gone without a word are forgotten"
        )

    def moved_on(self, session: SessionId) -> None:
        """Its client has said hello in another session, over the same connection: what is empty is over."""
        known = self._registry.state.sessions.get(session)
        if known is not None and _is_empty(known):
            self.dropped += 1
            self._handle(events.SessionGoodbye(session))

    def _make_room(self) -> None:
        """Forget empty sessions that are silent, a twentieth of all at most, the longest silent first."""
        now = self._tick()
        idle = sorted(
            (
                session
                for session in self._registry.state.sessions.values()
                if now - session.last_heard > SILENT and _is_empty(session)
            ),
            key=lambda session: session.last_heard,
        )
        for session in idle[: max(1, self.limit // 20)]:
            self.dropped += 1
            self._handle(events.SessionGoodbye(session.id))

    def sweep(self) -> None:
        """At `sweep_at`: forget the peers whose session, worker or supervisor has not been there for a while."""
        self.sweep_at = self._tick() + SWEEP
        unknown = {key for key in self._peers.by_key if not self._knows(key)}
        for key in unknown & self._unknown:
            self._peers.forget(key)
        self._unknown = unknown - self._unknown

    def _knows(self, key: PeerKey) -> bool:
        state = self._registry.state
        kind, name = key
        if kind == "session":
            return name in state.sessions
        if kind == "supervisor":
            return name in state.supervisors
        supervisor = state.supervisors.get(name[0])
        return supervisor is not None and name[1] in supervisor.workers


def _is_empty(session: Session) -> bool:
    """Nothing was ever asked for in it."""
    return not (session.spawned or session.requests or session.reports or session.blocks)
