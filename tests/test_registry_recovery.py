"""A broker that dies and comes back: what it had acknowledged is taken up again, and nothing is made up."""

import math

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.forcing import STEP
from quiesce.registry.ids import Incarnation, RequestNumber
from quiesce.registry.leases import default_bound
from quiesce.registry.rows import LEASE_OVER
from registry_helpers import (
    GRACE,
    LEASE,
    WALL,
    Desk,
    fact_types,
    session_id,
    spawn_row,
    supervisor_id,
)

POOL = supervisor_id("pool")
X = {"tenant_id": "x"}
Y = {"tenant_id": "y"}


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    return desk


def back(desk: Desk, worker: int, **words: object) -> None:
    """The supervisor of the pool and this worker say hello to the new broker, the worker with these words."""
    supervisor, serial = desk.places[worker]
    if desk.registry.state.supervisors[supervisor].silent_since is not None:
        desk.supervisor(incarnation=1)
    desk.hello(serial, incarnation=worker, **words)  # type: ignore[arg-type]  # the helper's own
    desk.say(events.WorkerAttached(Incarnation(worker)))


def test_the_epoch_is_a_fact(desk: Desk) -> None:
    desk.restart(epoch=7, run="r", boot_id="b")
    desk.expect_facts(facts.EpochStarted(7, WALL, 0.0, "b", "r", default_bound(LEASE)))
    desk.expect()


def test_queued_tasks_wait_for_the_workers_to_come_back(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {}, {})
    desk.spawn({}, {})
    desk.restart()
    assert [desk.life(task) for task in range(1, 6)] == ["running"] * 3 + ["queued"] * 2
    assert desk.assigned() == []
    back(desk, worker, last_assign=3, begun=[(1, 1), (2, 1), (3, 1)])
    assert desk.assigned() == []
    desk.end(worker, 2)
    assert [row.task_id for row in desk.assigned(worker)] == [4]


def test_what_was_assigned_and_never_received_is_assigned_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn({}, {})
    desk.restart()
    back(desk, worker, last_assign=1, received=[(1, 1)])
    assert [row.task_id for row in desk.assigned(worker)] == [2]


def test_an_end_that_the_broker_took_to_its_grave_is_said_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.restart()
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.end(worker, 1)
    assert desk.life(1) == "completed RETURNED"
    assert desk.take(effects.TakeEnds) == [effects.TakeEnds(worker, [(1, 1)])]


def test_a_worker_is_told_to_stop_what_the_registry_has_given_up_on(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.hello(1, incarnation=worker, last_assign=1, begun=[(1, 1), (9, 1)], received=[(1, 2)])
    why = "the registry has given up on this attempt"
    assert desk.take(effects.AskStops) == [
        effects.AskStops(Incarnation(worker), [(9, 1, 1, why), (1, 2, 1, why)])
    ]


def test_a_silent_worker_is_not_a_missing_one(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.expect_facts(facts.SupervisorReturned(POOL))
    desk.wait(1000.0)
    assert desk.life(1) == "running"


def test_a_death_in_between_is_reported(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.exit(worker, -11, {1: "begun", 2: "completed"})
    assert desk.life(1) == "crashed REAPED"
    desk.restart()
    desk.wait(0.3)
    assert desk.life(2) == "completed RETURNED"


# --- clients --------------------------------------------------------------------------------------


def test_spawns_that_are_sent_again_are_recognised(desk: Desk) -> None:
    desk.spawn({}, {})
    desk.restart()
    desk.say(events.SessionHello(session_id("A"), 77, "here", 0, resumed=True))
    assert desk.take(effects.WelcomeSession) == [effects.WelcomeSession(session_id("A"), True)]
    rows = [spawn_row(1), spawn_row(2), spawn_row(3)]
    desk.say(events.SpawnsAsked(session_id("A"), rows, False))
    assert [row.task_id for row in desk.answers()] == [1, 2, 3]
    assert fact_types(desk) == ["TaskRegistered"]


def test_results_are_kept_until_taken(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.end(worker, 1, result=b"one")
    desk.end(worker, 2, result=b"two")
    desk.say(events.ResultsTaken(session_id("A"), [2]))
    desk.restart()
    desk.say(events.SessionHello(session_id("A"), 77, "here", 0, resumed=True))
    assert [row.result for row in desk.results()] == [b"one"]


def test_a_session_does_not_expire_while_there_is_no_broker() -> None:
    desk = Desk(session_timeout=60.0)
    desk.session()
    desk.tick += 1000.0
    desk.restart()
    desk.wait(50.0)
    assert session_id("A") in desk.registry.state.sessions
    desk.wait(50.0)
    assert session_id("A") not in desk.registry.state.sessions


# --- stops ----------------------------------------------------------------------------------------


def test_an_open_stop_goes_on(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, Y)
    desk.stop(**X, reason="detach")
    desk.restart()
    assert desk.closed() == [("tenant_id=x", "stop")]
    desk.spawn(X)
    assert desk.answers()[0].error == "ScopeClosedError"
    back(desk, worker, last_assign=2, begun=[(1, 1), (2, 1)])
    desk.restart()
    supervisor, serial = desk.places[worker]
    desk.supervisor(incarnation=1)
    desk.hello(serial, incarnation=worker, last_assign=2, begun=[(1, 1), (2, 1)])
    (asked,) = desk.take(effects.AskStops)
    assert asked.rows == [(1, 1, 2, "detach")]
    assert desk.take(effects.RaiseFlags) == [effects.RaiseFlags(supervisor, [(serial, 1, 1)])]
    desk.obey(worker, 1)
    assert [row.id for row in desk.report().report.tasks] == [1]
    assert desk.closed() == []


def test_it_is_answered_once_if_it_is_asked_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.restart()
    desk.stop(**X, request=RequestNumber(1))
    desk.expect_nothing()
    desk.obey(worker, 1)
    assert desk.report().request == 1
    desk.restart()
    desk.stop(**X, request=RequestNumber(1))
    assert [row.id for row in desk.report().report.tasks] == [1]


def test_one_that_was_complete_is_answered_at_once(desk: Desk) -> None:
    """The journal had the last end, and not the report."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.replayed.apply(
        facts.TaskEnded(1, "cancelled", "RETURNED", None, WALL, WALL, "", b"")  # and then it died
    )
    desk.restart()
    assert desk.report().timed_out is False
    assert fact_types(desk) == ["EpochStarted", "StopEnded"]


def test_its_slices_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 1)
    desk.spawn(X, X, X)
    desk.stop(**X)
    desk.restart()
    desk.go_on()
    assert desk.report().timed_out is False
    assert [desk.life(task) for task in (1, 2, 3)] == ["cancelled NEVER_RAN"] * 3


def test_its_timeout_counts_on_the_wall(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=10.0)
    desk.tick += 4.0
    desk.restart()
    desk.wait(5.9)
    assert desk.take(effects.AnswerStop) == []
    desk.wait(0.2)
    assert desk.report().timed_out


@pytest.mark.parametrize(("down", "left"), [(4.0, 6.0), (60.0, 0.0)])
def test_the_grace_counts_on_the_wall(desk: Desk, down: float, left: float) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.tick += down
    desk.restart()
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.wait(max(0.0, left - 0.1))
    assert left == 0 or desk.take(effects.ForceTask) == []
    desk.wait(0.2)
    assert desk.take(effects.ForceTask) != [] or left == 0


@pytest.mark.parametrize("away", [0.0, 0.5, 1.5, 7.5])
def test_force_waits_until_the_worker_is_there_again(away: float) -> None:
    """Its grace was over while there was no broker. What can't reach it yet is no reason to kill it unasked: its
    `finally` shall run.
    """
    desk = Desk(lease=10.0)
    desk.session()
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.tick += GRACE + 1.0
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.wait(away)
    assert [*desk.take(effects.ForceTask), *desk.take(effects.KillWorker)] == []
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.wait(STEP)
    desk.one(effects.ForceTask)
    desk.seen(worker, 1)
    desk.wait(STEP)
    desk.one(effects.ForceTask)
    desk.seen(worker, 1)
    desk.wait(STEP)
    desk.one(effects.KillWorker)


def test_force_waits_for_a_worker_no_longer_than_a_lease() -> None:
    """It may be stopped, and never come back; its supervisor kills it then."""
    desk = Desk(lease=10.0)
    desk.session()
    worker = desk.worker()
    desk.running(worker, X, {})
    desk.stop(**X)
    desk.tick += GRACE
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.wait(10.0)
    assert [*desk.take(effects.ForceTask), *desk.take(effects.KillWorker)] == []
    desk.wait(2 * STEP)
    desk.one(effects.KillWorker)


def test_what_a_worker_lost_with_its_connection_is_not_held_against_it(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.wait(GRACE)
    desk.one(effects.ForceTask)
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.wait(STEP)
    desk.one(effects.ForceTask)
    desk.wait(STEP)
    desk.one(effects.KillWorker)


def test_a_wall_clock_that_is_set_back_makes_nothing_wait_longer(desk: Desk) -> None:
    """By an hour, while there is no broker: grace and timeout begin anew at most."""
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, timeout=GRACE + 20.0)
    desk.wait(5.0)
    desk.step = -3600.0
    desk.restart()
    timers = desk.registry.timers
    assert timers.when(("force", 1)) == pytest.approx(desk.tick + GRACE)
    assert timers.when(("stop", 1)) == pytest.approx(desk.tick + GRACE + 20.0)


def test_what_is_never_forced_is_not_forced_after_a_restart(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X, grace=math.inf, timeout=1.0)
    desk.wait(2.0)
    desk.restart()
    desk.wait(100.0)
    assert desk.take(effects.ForceTask) == []


def test_what_a_task_asked_for_counts(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.say(events.GraceAsked(worker, 1, 1, 5.0))
    desk.restart()
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.say(events.GraceAsked(worker, 1, 1, 5.0))  # the worker can't know who has heard it
    assert fact_types(desk) == []
    desk.seen(worker, 1)
    desk.wait(GRACE + 4.9)
    assert desk.take(effects.ForceTask) == []
    desk.wait(0.2)
    assert desk.take(effects.ForceTask) != []


def test_what_it_asked_for_while_nobody_heard_it_counts_though_its_grace_is_over(
    desk: Desk,
) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.stop(**X)
    desk.seen(worker, 1)
    desk.tick += GRACE + 1.0
    desk.restart()
    desk.wait(0.5)
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    desk.say(events.GraceAsked(worker, 1, 1, 5.0))
    desk.wait(5.0)
    assert desk.take(effects.ForceTask) == []
    desk.wait(STEP)
    assert desk.take(effects.ForceTask) != []


def test_a_tasks_own_timeout_counts_on(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"timeout": 5.0})
    desk.tick += 3.0
    desk.restart()
    back(desk, worker, last_assign=1, begun=[(1, 1)])
    begun(desk, worker, 3.0)
    desk.wait(1.9)
    assert fact_types(desk) == []
    desk.wait(0.2)
    assert desk.one(facts.TaskAsked).timed_out


def begun(desk: Desk, worker: Incarnation, age: float) -> None:
    """Said again to the new broker: the task has run for so long."""
    desk.say(events.TasksBegun(worker, [(1, 1, age)]))


def test_a_limit_is_not_called_over_before_the_worker_has_said_that_the_task_still_runs() -> None:
    """It may have ended in time, while there was no broker."""
    desk = Desk(lease=10.0)
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 5.0, "retries": 1})
    desk.tick += 7.0
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.wait(1.0)
    desk.expect_nothing()
    desk.exit(worker, phases={1: "completed"})  # its process has ended, too
    desk.wait(1.0)
    assert desk.life(1) == "completed RETURNED"


def test_how_long_it_has_run_its_worker_knows_best() -> None:
    """The wall clock was set forward while there was no broker, or back."""
    for step in (100.0, -100.0):
        desk = Desk(lease=10.0)
        desk.session()
        worker = desk.worker()
        desk.running(worker, {"timeout": 5.0})
        desk.tick += 1.0
        desk.step += step
        desk.restart()
        back(desk, worker, last_assign=1, begun=[(1, 1)])
        begun(desk, worker, 1.5)
        desk.wait(3.4)
        desk.expect_nothing()
        desk.wait(0.2)
        assert desk.one(facts.TaskAsked).timed_out


def test_a_limit_of_a_task_whose_worker_answers_nothing_is_over_after_a_lease() -> None:
    desk = Desk(lease=10.0)
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"timeout": 5.0})
    desk.tick += 7.0
    desk.restart()
    desk.supervisor(incarnation=1)
    desk.wait(9.9)
    desk.expect_nothing()
    desk.wait(0.2)
    assert desk.one(facts.TaskAsked).timed_out


def test_kept_scopes_stay_closed(desk: Desk) -> None:
    desk.stop(**X, keep_closed=True)
    desk.restart()
    assert desk.closed() == [("tenant_id=x", "kept")]


# --- what may be missing --------------------------------------------------------------------------


def test_a_journal_with_a_gap_answers_no_stop_before_all_of_then_are_dead(desk: Desk) -> None:
    desk = Desk(lease=8.0, lease_bound=10.0)
    desk.session()
    desk.restart(complete=False)
    desk.session()
    desk.stop(**X)
    assert desk.take(effects.AnswerStop) == []
    desk.wait(9.9)
    assert desk.take(effects.AnswerStop) == []
    desk.wait(0.2)
    assert desk.report().timed_out is False


def test_a_supervisor_of_then_is_refused(desk: Desk) -> None:
    desk.restart(complete=False)
    desk.supervisor(incarnation=5)
    assert desk.one(effects.RefuseSupervisor).grace == min(10.0, LEASE / 4)
    desk.supervisor(number=2)
    assert desk.take(effects.WelcomeSupervisor) != []


def test_a_supervisor_that_is_known_is_refused_too() -> None:
    """Its workers may run what the journal has lost; so it must end, and by its lease it has when that counts."""
    desk = Desk(lease=8.0, lease_bound=10.0)
    desk.session()
    worker = desk.worker()
    desk.running(worker, {})
    desk.restart(complete=False)
    desk.supervisor(incarnation=1)
    desk.expect(effects.RefuseSupervisor)
    desk.expect_facts()
    desk.hello(1, incarnation=worker, begun=[(1, 1), (9, 1)])
    desk.expect_nothing()
    desk.session()
    desk.stop()
    desk.wait(9.9)
    assert desk.life(1) == "running"
    desk.wait(0.2)
    assert desk.life(1) == "lost FENCED"
    assert desk.ends() == [(1, "lost", "FENCED")]
    desk.supervisor(incarnation=1)
    desk.expect(effects.RefuseSupervisor)


def test_the_stop_of_the_whole_system_does_not_wait_for_that(desk: Desk) -> None:
    desk.restart(complete=False)
    desk.say(events.SystemStopAsked("SIGTERM"))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(False)]


# --- leases ---------------------------------------------------------------------------------------


@pytest.fixture
def leased() -> Desk:
    desk = Desk(lease=8.0, lease_bound=10.0)
    desk.session()
    return desk


def test_a_lease_counts_from_the_first_epoch_that_did_not_hear_of_its_supervisor(
    leased: Desk,
) -> None:
    """However often the broker is started again."""
    worker = leased.worker()
    leased.running(worker, {})
    leased.tick += 5.0
    leased.restart()
    leased.wait(4.0)
    leased.restart()
    leased.wait(5.9)
    assert leased.life(1) == "running"
    leased.wait(0.2)
    assert leased.life(1) == "lost FENCED"


def test_on_another_boot_it_counts_from_that(leased: Desk) -> None:
    worker = leased.worker()
    leased.running(worker, {})
    leased.restart()
    leased.wait(4.0)
    leased.tick = 2.0  # the clock of another boot
    leased.restart(boot_id="another")
    leased.wait(9.9)
    assert leased.life(1) == "running"
    leased.wait(0.2)
    assert leased.life(1) == "lost FENCED"


def test_who_is_heard_of_again_has_a_lease_again(leased: Desk) -> None:
    worker = leased.worker()
    leased.running(worker, {})
    leased.restart()
    leased.wait(6.0)
    leased.supervisor(incarnation=1)
    leased.wait(9.9)
    assert leased.life(1) == "running"


def test_workers_of_a_silent_supervisor_get_nothing(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn({}, {}, {}, {})
    desk.restart()
    desk.hello(1, incarnation=worker, last_assign=3, received=[(1, 1), (2, 1), (3, 1)])
    desk.say(events.WorkerAttached(Incarnation(worker)))
    desk.begin(worker, 1)
    desk.end(worker, 1)
    assert desk.assigned() == []
    desk.supervisor(incarnation=1)
    assert [row.task_id for row in desk.assigned()] == [4]


# --- earlier runs ---------------------------------------------------------------------------------


def test_what_an_earlier_run_had_started_is_dead(desk: Desk) -> None:
    desk.supervisor(run="old")
    desk.hello(1)
    worker = desk.one(effects.WelcomeWorker).incarnation
    desk.places[worker] = (POOL, 1)
    desk.say(events.WorkerAttached(worker))
    desk.running(worker, X, {"retries": 1})
    desk.stop(**X)
    desk.restart(run="new", swept=("older", "old"))
    assert desk.life(1) == "cancelled REAPED"
    assert [row.exit_status for row in desk.report().report.tasks] == [-9]
    assert desk.life(2) == "queued"
    assert desk.registry.state.supervisors == {}


def test_what_another_run_has_started_lives(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.restart(run="new", swept=("old", ""))
    assert desk.life(1) == "running"


# --- the stop of the whole system -----------------------------------------------------------------


def test_a_broker_of_the_same_run_goes_on_stopping(desk: Desk) -> None:
    desk.restart(run="r")
    worker = desk.worker()
    desk.running(worker, {})
    desk.say(events.SystemStopAsked("SIGTERM"))
    desk.restart(run="r")
    assert desk.registry.state.stopping
    desk.obey(worker, 1)
    assert desk.take(effects.ExitSupervisor) != []
    desk.say(events.SupervisorGoodbye(POOL))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(False)]


@pytest.mark.parametrize("done", [False, True])
def test_a_broker_of_another_run_starts_afresh(desk: Desk, done: bool) -> None:
    desk.restart(run="r")
    worker = desk.worker()
    desk.running(worker, {})
    desk.stop(**Y, keep_closed=True)
    desk.say(events.SystemStopAsked("SIGTERM"))
    if done:
        desk.obey(worker, 1)
    desk.restart(run="s")
    assert not desk.registry.state.stopping
    if not done:
        desk.obey(worker, 1)
    assert desk.closed() == [("tenant_id=y", "kept")]
    desk.spawn({})
    assert desk.answers()[0].error is None


# --- the journal's disk, and a changed configuration ----------------------------------------------


def test_a_full_disk_refuses_spawns_and_nothing_else(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.say(events.RoomSaid(False))
    desk.spawn({})
    assert desk.answers()[0].error == "QueueFullError"
    assert "no room on the broker's disk" in desk.answers()[0].text
    desk.stop(**X)
    desk.obey(worker, 1)
    assert desk.report().timed_out is False
    desk.say(events.RoomSaid(True))
    desk.spawn({})
    assert desk.answers()[0].error is None


def test_what_a_full_disk_wants_is_said() -> None:
    wanted = "32 MiB free on the disk of /state"
    desk = Desk(room=wanted)
    desk.session()
    desk.say(events.RoomSaid(False))
    desk.expect(
        effects.Log(
            "WARNING",
            f"the journal has no room on its disk: spawns are refused until it has {wanted}",
        )
    )
    desk.spawn({})
    assert desk.answers()[0].text.endswith(f"Make room: it wants {wanted}")


def test_a_runtime_that_is_not_declared_any_more_keeps_its_tasks(desk: Desk) -> None:
    desk.spawn({"runtime": "solo", **X}, {})
    desk.configuration = {
        **desk.configuration,
        "runtimes": [each for each in desk.configuration["runtimes"] if each.name != "solo"],
        "kinds": [],
    }
    desk.thorough = False
    desk.restart()
    assert desk.life(1) == "queued"
    desk.spawn({"runtime": "solo"})
    assert desk.answers()[0].error == "UnknownRuntimeError"
    desk.stop(runtime="solo")
    assert desk.report().timed_out is False
    assert desk.life(1) == "cancelled NEVER_RAN"


# --- what its pool had asked to stop, for want of a broker -----------------------------------------


@pytest.mark.parametrize(
    ("spawn", "outcome", "life"),
    [
        ({}, "cancelled", "cancelled RETURNED"),
        ({}, "completed", "completed RETURNED"),
        ({"restart": "on-failure"}, "completed", "completed RETURNED"),
        ({"restart": "on-failure"}, "cancelled", "assigned"),
        ({"restart": "always"}, "cancelled", "assigned"),
        ({"restart": "always"}, "completed", "assigned"),
        ({"retries": 1}, "cancelled", "assigned"),
        ({"retries": 1}, "completed", "completed RETURNED"),
    ],
)
def test_a_policy_runs_again_what_its_pool_interrupted(
    desk: Desk, spawn: dict[str, object], outcome: str, life: str
) -> None:
    worker = desk.worker()
    desk.running(worker, spawn)
    desk.end(worker, 1, outcome=outcome, text=f"{LEASE_OVER}no broker for 15 s")
    assert desk.life(1) == life


def test_but_not_what_was_stopped_as_well(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"restart": "always", **X})
    desk.stop(**X)
    desk.end(worker, 1, outcome="cancelled", text=f"{LEASE_OVER}no broker for 15 s")
    assert desk.life(1) == "cancelled RETURNED"
