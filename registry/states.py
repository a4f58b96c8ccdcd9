"""The states of a task and the one table of its legal transitions.

    QUEUED -> ASSIGNED -> RUNNING -> ENDED

ASSIGNED goes back to QUEUED when the worker ended before it began the task; RUNNING goes back to
QUEUED only as a new attempt. `stopping` is a mark on the first three, not a state. Whatever changes
a task's state consults LEGAL; nothing else may.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a task is in its life."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    ENDED = "ended"

    #: What may follow, as LEGAL says; tuples, since members of an enumeration are slow to hash.
    leads_to: "tuple[State, ...]"


class Outcome(StrEnum):
    """How a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    LOST = "lost"


class Evidence(StrEnum):
    """How the broker knows that a task has ended."""

    #: The worker reported that the body and all that it began have ended.
    RETURNED = "RETURNED"
    #: No instruction of the attempt was ever executed.
    NEVER_RAN = "NEVER_RAN"
    #: The process that ran it was reaped, with all its descendants.
    REAPED = "REAPED"
    #: The lease of its host proves it dead.
    FENCED = "FENCED"


#: From each state, the states it may go to.
LEGAL: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.ASSIGNED, State.ENDED}),
    State.ASSIGNED: frozenset({State.RUNNING, State.QUEUED, State.ENDED}),
    State.RUNNING: frozenset({State.ENDED, State.QUEUED}),
    State.ENDED: frozenset(),
}
for _state, _next in LEGAL.items():
    _state.leads_to = tuple(_next)
