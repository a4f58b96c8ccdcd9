"""Client sessions: opened, heard of, closed, expired."""

import math
from typing import Final

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation, SessionId
from quiesce.registry.records import Session
from quiesce.registry.results import told
from quiesce.registry.timers import HELD_UP
from quiesce.registry.turn import Turn

#: Seconds between two looks at whether a session has expired. Clients are heard of more often than that.
LOOK: Final = 15.0
#: Seconds until one that was found silent is looked at once more: whoever lives says so each five seconds.
AGAIN: Final = 6.0
#: When a session was heard last that was found silent for too long once.
DOUBTED: Final = -math.inf
#: Results that one slice sends again, so that nobody else waits long.
SLICE: Final = 2000


def on_session_hello(turn: Turn, event: events.SessionHello) -> None:
    """Open a session, or take it up again: what it may have missed is sent again."""
    session = turn.state.sessions.get(event.session)
    known = session is not None
    if session is None and event.resumed:
        # It has expired. Opened anew under its old name, its spawns of before would run again.
        turn.send(effects.WelcomeSession(event.session, False))
        return
    if session is None:
        turn.emit(facts.SessionOpened(event.session, event.pid, event.host, event.worker))
        session = turn.state.sessions[event.session]
        turn.timers.set(("session", event.session), turn.now.tick + LOOK)
    session.last_heard = turn.now.tick
    turn.send(effects.WelcomeSession(event.session, known))
    _tell_all(turn, session)


def on_session_attached(turn: Turn, event: events.SessionAttached) -> None:
    """Its results, by way of the journal: an end that it does not hold yet may still be lost."""
    session = turn.state.sessions.get(event.session)
    if session is not None:
        _tell_all(turn, session)


def _tell_all(turn: Turn, session: Session) -> None:
    """Whatever it has not taken, from the first on: nobody knows what has arrived of the slices before."""
    going, session.untold = bool(session.untold), list(session.results)
    if not going:
        _tell(turn, session)


def _tell(turn: Turn, session: Session) -> None:
    """A slice of that."""
    left = filter(session.results.__contains__, session.untold[:SLICE])
    turn.send_results(session.id, told(session, left))
    del session.untold[:SLICE]
    if session.untold:
        turn.send(effects.Again(session.id))


def go_on(turn: Turn, session_id: SessionId) -> None:
    session = turn.state.sessions.get(session_id)
    if session is not None:
        _tell(turn, session)


def on_session_heard(turn: Turn, event: events.SessionHeard) -> None:
    session = heard(turn, event.session, event.answered_through)
    if session is not None:
        forget_answers(turn, session, event.answered_through)


def heard(turn: Turn, session_id: SessionId, answered_through: int) -> Session | None:
    """A client is alive, and says that it has all answers up to this one. None: its session is over; it is told."""
    session = turn.state.sessions.get(session_id)
    if session is None:
        turn.send(effects.WantHello(session_id))
        return None
    if answered_through > session.spawned:
        # It has answers to spawns that are not known here: the journal has lost them, as durability "crash" may
        # when the machine goes down. Their numbers leave a gap that nobody can fill, so the session is over.
        turn.log(
            "WARNING",
            f"the client session of pid {session.pid} on {session.host} has spawned what the journal has lost: "
            "forgotten",
        )
        close(turn, session)
        turn.send(effects.WantHello(session_id))
        return None
    session.last_heard = turn.now.tick
    return session


def forget_answers(turn: Turn, session: Session, through: int) -> None:
    """The client has the answers up to this one."""
    first = session.answers.first()
    if first is not None and first <= through:
        turn.emit(facts.AnswersForgotten(session.id, through))


def on_results_taken(turn: Turn, event: events.ResultsTaken) -> None:
    session = turn.state.sessions.get(event.session)
    if session is None:
        return
    taken = [task_id for task_id in event.task_ids if task_id in session.results]
    if taken:
        turn.emit(facts.ResultsForgotten(event.session, taken))


def on_session_goodbye(turn: Turn, event: events.SessionGoodbye) -> None:
    session = turn.state.sessions.get(event.session)
    if session is not None:
        close(turn, session)


def close(turn: Turn, session: Session) -> None:
    """The session ends. Its tasks go on; its open stops run to their end; its parked spawns are dropped; the
    scopes of its `stopped()` blocks stay closed, as kept, because nobody has said that the block is done: a
    process that is proved dead may have left the files half removed.
    """
    turn.timers.clear(("session", session.id))
    turn.touched.update(session.requests.values())  # they need not wait for its spawns any more
    for stop_id in sorted(session.blocks):
        turn.emit(facts.BlockReleased(stop_id, True))
    turn.emit(facts.SessionClosed(session.id))


def close_those_of(turn: Turn, worker: Incarnation) -> None:
    """A worker has been reaped, and with it the clients that lived in it."""
    for session in [each for each in turn.state.sessions.values() if each.worker == worker]:
        close(turn, session)


def on_session_due(turn: Turn, session_id: SessionId, timeout: float, when: float) -> None:
    """Look whether the session has been silent for too long: twice in a row, so that a client that slept as long as
    the broker has until the next. And not if this look, due at `when`, is late itself: then it is the broker that
    did not listen.
    """
    session = turn.state.sessions.get(session_id)
    if session is None:
        return
    look = LOOK
    is_silent = turn.now.tick - session.last_heard > timeout and turn.now.tick - when <= HELD_UP
    if is_silent and session.last_heard != DOUBTED:
        session.last_heard, look = DOUBTED, AGAIN
    elif is_silent:
        turn.log(
            "WARNING",
            f"the client session of pid {session.pid} on {session.host} has been silent for over "
            f"{timeout:.0f} s: forgotten",
        )
        close(turn, session)
        return
    turn.timers.set(("session", session_id), turn.now.tick + look)
