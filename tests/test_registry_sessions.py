"""Client sessions: what is kept for them, and what becomes of it when they go."""

import pytest

from quiesce.registry import effects, events, facts
from registry_helpers import Desk, answer, session_id, spawn_row

A = session_id("A")


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    return desk


def test_a_session_is_opened_once() -> None:
    desk = Desk()
    desk.session()
    desk.expect_facts(facts.SessionOpened(A, 77, "here", 0))
    desk.expect(effects.WelcomeSession(A, False))
    desk.session()
    desk.expect_facts()
    desk.expect(effects.WelcomeSession(A, True))


@pytest.mark.parametrize(
    "event",
    [
        events.SessionHeard(A, 0),
        events.SpawnsAsked(A, [spawn_row(1)], False),
    ],
)
def test_who_has_not_said_hello_is_asked_to(event: events.Event) -> None:
    desk = Desk()
    desk.say(event)
    desk.expect_facts()
    desk.expect(effects.WantHello(A))


@pytest.mark.parametrize(
    "event", [events.SessionGoodbye(A), events.SessionAttached(A), events.ResultsTaken(A, [1])]
)
def test_what_a_session_that_is_gone_says_last_is_nothing(event: events.Event) -> None:
    desk = Desk()
    desk.say(event)
    desk.expect_nothing()


# --- answers and results --------------------------------------------------------------------------


def test_answers_are_kept_until_the_client_has_them(desk: Desk) -> None:
    desk.spawn({}, {}, {})
    desk.say(events.SessionHeard(A, 2))
    desk.expect_facts(facts.AnswersForgotten(A, 2))
    desk.expect()
    desk.say(events.SessionHeard(A, 2))
    desk.expect_nothing()
    desk.spawn(spawn_row(2), spawn_row(3))
    assert desk.answers() == [answer(3, 3)]
    desk.say(events.SpawnsAsked(A, [spawn_row(4)], False, 3))
    desk.expect_facts(facts.TaskRegistered, facts.AnswersForgotten(A, 3))
    assert desk.answers() == [answer(4, 4)]


def test_a_result_is_sent_at_once_and_again_until_it_is_taken(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.end(worker, 2, outcome="failed", text="Traceback", result=b"error")
    (row,) = desk.results()
    assert tuple(row) == (2, 1, "failed", "RETURNED", None, "Traceback", b"error")
    desk.session()
    desk.expect(effects.WelcomeSession(A, True), effects.SendResults(A, [row]))
    desk.say(events.ResultsTaken(A, [1, 2, 7]))
    desk.expect_facts(facts.ResultsForgotten(A, [2]))
    desk.say(events.ResultsTaken(A, [1, 2, 7]))
    desk.expect_nothing()
    desk.session()
    assert desk.results() == []


def test_a_client_that_can_be_reached_again_gets_what_it_has_not_taken(desk: Desk) -> None:
    desk.say(events.SessionAttached(A))
    desk.expect_nothing()
    worker = desk.worker()
    desk.running(worker, {})
    desk.end(worker, 1)
    (row,) = desk.results()
    desk.say(events.SessionAttached(A))
    desk.expect_facts()
    desk.expect(effects.SendResults(A, [row]))
    assert effects.SendResults not in effects.HASTY  # the end may not be in the journal yet
    desk.say(events.ResultsTaken(A, [1]))
    desk.say(events.SessionAttached(A))
    desk.expect_nothing()


@pytest.fixture
def waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Five results wait for a session that has come back, and is told of two at a time; a sixth task runs."""
    monkeypatch.setattr("quiesce.registry.sessions.SLICE", 2)
    for _ in range(2):
        desk.running(desk.worker(), {}, {}, {})
    for task in range(1, 6):
        desk.end(1 + task // 4 + 1, task, result=bytes([task]))
    desk.say(events.SessionAttached(A))
    return desk


def told(desk: Desk) -> list[int]:
    return [row.task_id for row in desk.results()]


def test_many_results_are_sent_again_in_slices(waited_for: Desk) -> None:
    assert told(waited_for) == [1, 2]
    assert waited_for.one(effects.Again) == effects.Again(A)
    waited_for.end(3, 6)
    assert told(waited_for) == [6]  # at once
    waited_for.say(events.ResultsTaken(A, [1, 2, 3]))
    waited_for.go_on()
    assert told(waited_for) == [4, 5]
    assert waited_for.again == []


def test_who_comes_back_between_two_slices_gets_all_from_the_first_on(waited_for: Desk) -> None:
    waited_for.end(3, 6)
    waited_for.say(events.ResultsTaken(A, [1]))
    waited_for.say(events.SessionAttached(A))
    waited_for.expect_nothing()  # the next slice is under way
    waited_for.go_on()
    assert told(waited_for) == [2, 3, 4, 5, 6]


def test_a_session_that_leaves_between_two_slices_is_told_no_more(waited_for: Desk) -> None:
    waited_for.say(events.SessionGoodbye(A))
    waited_for.go_on()
    waited_for.expect_nothing()


def test_the_results_of_one_turn_go_together(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.exit(worker)
    assert [len(effect.rows) for effect in desk.take(effects.SendResults)] == [2]


def test_who_comes_back_on_data_gets_its_results_again(desk: Desk) -> None:
    """As an effect: the driver lets it wait for the journal."""
    worker = desk.worker()
    desk.running(worker, {})
    desk.end(worker, 1)
    (row,) = desk.results()
    desk.say(events.SessionAttached(A))
    desk.expect_facts()
    desk.expect(effects.SendResults(A, [row]))
    desk.say(events.ResultsTaken(A, [1]))
    desk.say(events.SessionAttached(A))
    desk.expect_nothing()
    desk.say(events.SessionAttached(session_id("B")))
    desk.expect_nothing()


# --- the end of a session -------------------------------------------------------------------------


def test_the_tasks_of_a_session_that_leaves_go_on(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.say(events.SessionGoodbye(A))
    desk.expect_facts(facts.SessionClosed(A))
    desk.expect()
    desk.end(worker, 1)
    assert desk.take(effects.SendResults) == []
    assert desk.life(1) == "completed RETURNED"


def test_its_results_and_reports_are_dropped(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.end(worker, 1)
    desk.stop(tenant_id="x")
    desk.say(events.SessionGoodbye(A))
    assert desk.registry.state.stops == {}
    assert desk.registry.state.sessions == {}


def test_its_open_stops_run_to_their_end(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"tenant_id": "x"})
    desk.stop(tenant_id="x")
    desk.say(events.SessionGoodbye(A))
    assert desk.closed() == [("tenant_id=x", "stop")]
    desk.obey(worker, 1)
    assert desk.closed() == []


def test_a_session_that_is_silent_for_too_long_is_forgotten(desk: Desk) -> None:
    desk.wait(301.0)
    desk.expect()
    desk.wait(14.0)  # found once
    desk.expect_facts()
    desk.wait(6.0)
    desk.expect_facts(facts.SessionClosed(A))
    desk.expect(
        effects.Log(
            "WARNING",
            "the client session of pid 77 on here has been silent for over 300 s: forgotten",
        )
    )
    assert desk.registry.next_deadline() is None


def test_a_broker_that_was_held_up_forgets_nobody_for_it(desk: Desk) -> None:
    """It could not listen, or the whole machine slept: whoever lives has until the next look to say so."""
    desk.session("B")
    desk.tick += 3600.0
    desk.say(events.Tick())
    desk.expect_facts()
    desk.wait(5.0)
    desk.say(events.SessionHeard(A, 0))
    desk.wait(30.0)
    assert [*desk.registry.state.sessions] == [A]


def test_who_slept_as_long_as_the_broker_has_until_the_next_look(desk: Desk) -> None:
    """A machine that was suspended, with a look of the broker's due in its first moment."""
    desk.tick += 314.9
    desk.registry.timers.set(("session", A), desk.tick)
    desk.wait(0.1)
    desk.expect_facts()
    desk.wait(5.0)
    desk.say(events.SessionHeard(A, 0))
    desk.wait(20.0)
    assert A in desk.registry.state.sessions


@pytest.mark.parametrize("sign", ["heard", "hello", "spawn", "stop"])
def test_every_sign_of_life_counts(desk: Desk, sign: str) -> None:
    desk.wait(290.0)
    match sign:
        case "heard":
            desk.say(events.SessionHeard(A, 0))
        case "hello":
            desk.session()
        case "spawn":
            desk.spawn()
        case "stop":
            desk.stop(tenant_id="x")
    desk.wait(290.0)
    assert A in desk.registry.state.sessions
    desk.wait(55.0)
    assert A not in desk.registry.state.sessions


def test_the_spawns_of_an_expired_session_are_not_run_when_they_come_again(desk: Desk) -> None:
    desk.spawn({}, {})
    desk.wait(400.0)
    desk.spawn(spawn_row(3))
    desk.expect(effects.WantHello(A))
    desk.session()
    desk.expect(effects.WelcomeSession(A, False))
    desk.spawn(spawn_row(3))
    desk.expect(effects.WantHello(A))
    assert len(desk.registry.state.tasks) == 2


def test_a_session_that_was_welcomed_before_is_never_opened_anew(desk: Desk) -> None:
    """It has expired: however often it asks, its spawns of before must not run again."""
    for _ in range(2):
        desk.say(events.SessionHello(session_id("Z"), 1, "here", 0, resumed=True))
        desk.expect(effects.WelcomeSession(session_id("Z"), False))
        desk.expect_facts()


@pytest.mark.parametrize(
    "event", [events.SessionHeard(A, 5), events.SpawnsAsked(A, [spawn_row(6)], False, 5)]
)
def test_a_session_whose_spawns_the_journal_has_lost_is_over(
    desk: Desk, event: events.Event
) -> None:
    """Asked to send them again it could not: it has their answers. It would be asked for ever."""
    desk.spawn({}, {})
    stop = desk.stop(last_spawn=7)
    desk.say(event)
    desk.expect_facts(facts.SessionClosed(A), facts.StopEnded)
    desk.expect(effects.Log, effects.WantHello(A))
    assert stop not in desk.registry.state.stops
    desk.say(events.SessionHello(A, 77, "here", 0, resumed=True))
    desk.expect(effects.WelcomeSession(A, False))
