"""The broker's side of leases: when each supervisor's is over. The arithmetic is in `leases`."""

from quiesce.registry import facts
from quiesce.registry.records import Supervisor
from quiesce.registry.turn import Turn


def renew(turn: Turn, supervisor: Supervisor, armed: bool) -> None:
    """The supervisor has asked, now at the latest: it will not have died before its bound is over.

    Armed, its workers may be given tasks.
    """
    turn.timers.set(("lease", supervisor.id), turn.now.tick + supervisor.bound)
    if armed and not supervisor.armed:
        turn.emit(facts.SupervisorArmed(supervisor.id))
        turn.dirty.add(supervisor.runtime)


def resume(turn: Turn, supervisor: Supervisor) -> None:
    """After a restart: its last lease was granted before the first epoch in which it has been silent."""
    since = turn.now.tick if supervisor.silent_since is None else supervisor.silent_since
    turn.timers.set(("lease", supervisor.id), since + supervisor.bound)


def forget(turn: Turn, supervisor: Supervisor) -> None:
    """It is dead."""
    turn.timers.clear(("lease", supervisor.id))
