"""The stop of the whole system: in order, faster if asked again, and over by a deadline."""

from typing import Any

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation
from quiesce.registry.scope import Scope
from quiesce.registry.system import phases
from registry_helpers import LEASE, Desk, fact_types, supervisor_id

ORDER = ("listen", "*", "flush")
POOL = supervisor_id("pool")
MARKED = {"kind": "listen", "name": "l", "shutdown_process_on_error": True}


def desk_with(**changes: Any) -> Desk:
    desk = Desk(shutdown_order=ORDER, **changes)
    desk.session()
    return desk


@pytest.fixture
def desk() -> Desk:
    return desk_with()


def stop(desk: Desk, reason: str = "SIGTERM") -> None:
    desk.say(events.SystemStopAsked(reason))


def asked(desk: Desk) -> list[int]:
    return [row[0] for effect in desk.take(effects.AskStops) for row in effect.rows]


def scopes(desk: Desk) -> list[str]:
    return [str(fact.scope) for fact in desk.take(facts.StopOpened)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((), [("a", "b", "c"), ("",)]),
        (("b",), [("b",), ("a", "c"), ("",)]),
        (("b", "*", "a"), [("b",), ("c",), ("a",), ("",)]),
        (("c", "unknown", "b", "a"), [("c",), ("b",), ("a",), (), ("",)]),
    ],
)
def test_phases(order: tuple[str, ...], expected: list[tuple[str, ...]]) -> None:
    assert phases(order, ["a", "b", "c"]) == expected


def test_an_idle_system_stops_at_once(desk: Desk) -> None:
    stop(desk)
    assert desk.take(facts.SystemStopping) == [facts.SystemStopping("SIGTERM", False, False)]
    assert scopes(desk) == ["kind=listen", "kind=gc", "kind=flush", "everything"]
    desk.expect(effects.Log("INFO", "the system stops: SIGTERM"), effects.SystemStopped(False))
    assert desk.registry.state.stopping
    desk.wait(100.0)
    desk.expect()


def test_kinds_stop_in_the_configured_order_then_the_pools(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "flush"}, {"kind": "gc"}, {"kind": "listen"})
    stop(desk)
    assert asked(desk) == [3]
    desk.obey(worker, 3)
    assert asked(desk) == [2]
    desk.obey(worker, 2)
    assert asked(desk) == [1]
    desk.obey(worker, 1)
    assert scopes(desk) == ["everything"]
    assert desk.effects[-2:] == [
        effects.ExitSupervisor(POOL, 2.0),
        effects.ExitWorker(worker),
    ]
    desk.exit(worker, 0)
    assert desk.take(effects.SystemStopped) == []
    desk.say(events.SupervisorGoodbye(POOL))
    desk.expect(effects.SystemStopped(False))


def test_a_phase_waits_for_queued_and_running_tasks_of_all_runtimes(desk: Desk) -> None:
    pool, solo = desk.worker(), desk.worker("solo")
    desk.running(pool, {"kind": "listen"})
    desk.running(solo, {"kind": "listen", "runtime": "solo"})
    desk.spawn({"kind": "listen", "runtime": "solo"})
    stop(desk)
    assert desk.life(3) == "cancelled NEVER_RAN"
    desk.obey(pool, 1)
    assert scopes(desk) == []
    desk.obey(solo, 2)
    assert scopes(desk) == ["kind=gc", "kind=flush", "everything"]


def test_later_kinds_serve_on_until_their_turn(desk: Desk) -> None:
    """Tenant work may still want to flush and upload what it has."""
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    desk.spawn({"kind": "flush", "parent": (1, 1)}, {"kind": "listen"}, {"kind": "gc"})
    answers = desk.answers()
    assert [each.error for each in answers] == [None, "ScopeClosedError", "ScopeClosedError"]
    # Nor would reopen() help.
    assert answers[1].text.endswith(
        "; the whole system stops: spawn again once it has been started again"
    )
    assert [row.task_id for row in desk.assigned(worker)] == [2]
    desk.begin(worker, 2)
    desk.obey(worker, 1)
    assert asked(desk) == [2]
    desk.spawn({"kind": "flush"})
    assert desk.answers()[0].error == "ScopeClosedError"


def test_a_client_s_stop_works_the_same_meanwhile(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc", "tenant_id": "x"}, {"kind": "flush", "tenant_id": "x"})
    stop(desk)
    desk.stop(tenant_id="x")
    assert asked(desk) == [2]
    desk.obey(worker, 2)
    desk.obey(worker, 1)
    assert [row[0] for row in desk.ends()] == [1, 2]
    assert [type(each).__name__ for each in desk.effects][-2:] == ["ExitSupervisor", "ExitWorker"]


def test_nothing_is_reopened_meanwhile(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    desk.reopen()
    desk.expect_facts()
    assert desk.one(effects.RefuseRequest).error == "ScopeClosedError"


def test_nothing_is_tried_again_meanwhile(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"}, {"kind": "flush", "retries": 5})
    stop(desk)
    desk.end(worker, 2, outcome="failed")
    assert desk.life(2) == "failed RETURNED"


# --- faster ---------------------------------------------------------------------------------------


def test_asked_again_it_asks_everything_and_gives_no_grace(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "listen"}, {"kind": "gc"}, {"kind": "flush"})
    stop(desk)
    assert asked(desk) == [1]
    stop(desk, "SIGTERM again")
    assert scopes(desk) == ["everything"]
    assert asked(desk) == [2, 3]
    assert effects.Log(
        "WARNING", "the system stops faster: everything is asked now and gets no grace"
    ) in desk.take(effects.Log)
    desk.wait(0.0)
    assert [force.task_id for force in desk.take(effects.ForceTask)] == [1, 2, 3]
    assert desk.registry.state.stop_reason == "SIGTERM"


def test_asked_a_third_time_it_is_not_slower(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    stop(desk)
    desk.wait(2.0)
    stop(desk)
    desk.expect_nothing()
    desk.wait(1.0)
    assert desk.take(effects.ExitSupervisor) == [effects.ExitSupervisor(POOL, 0.0)]


def test_haste_does_not_move_a_deadline_that_is_nearer() -> None:
    desk = desk_with(stop_timeout=10.0)
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    desk.wait(9.5)
    stop(desk)
    desk.wait(0.5)
    assert desk.take(effects.ExitSupervisor) == [effects.ExitSupervisor(POOL, 0.0)]


def test_a_failure_stays_one_when_it_is_asked_to_be_faster(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"}, {**MARKED, "kind": "flush"})
    desk.end(worker, 2, outcome="failed")
    stop(desk)
    desk.obey(worker, 1)
    desk.say(events.SupervisorGoodbye(POOL))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(True)]


def test_it_stays_fast_when_something_fails(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"}, {**MARKED, "kind": "flush"})
    stop(desk)
    desk.end(worker, 2, outcome="failed")
    assert desk.registry.state.failed
    stop(desk)
    assert desk.registry.state.fast
    stop(desk)
    desk.expect_nothing()


# --- the deadline ---------------------------------------------------------------------------------


def test_what_does_not_stop_in_time_is_killed_with_its_pool(desk: Desk) -> None:
    """Also kinds whose turn has not come: they end as cancelled, which nobody is blamed for."""
    worker = desk.worker()
    desk.running(
        worker, {"kind": "gc"}, {"kind": "flush", "shutdown_process_on_error": True, "retries": 1}
    )
    stop(desk)
    desk.seen(worker, 1)
    desk.wait(30.0)
    assert effects.Log("WARNING", "2 tasks did not stop in time: their pools are killed") in (
        desk.take(effects.Log)
    )
    assert desk.take(effects.ExitWorker) == [effects.ExitWorker(worker)]
    assert desk.take(effects.ExitSupervisor) == [effects.ExitSupervisor(POOL, 0.0)]
    desk.exit(worker)
    assert [desk.life(1), desk.life(2)] == ["cancelled REAPED"] * 2
    assert [log for log in desk.take(effects.Log) if log.level != "INFO"] == []
    desk.say(events.SupervisorGoodbye(POOL))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(False)]


def test_then_the_broker_goes_alone(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    desk.wait(34.9)
    assert desk.take(effects.SystemStopped) == []
    desk.wait(0.2)
    assert desk.effects[-2:] == [
        effects.Log("ERROR", "1 supervisors did not say goodbye in time"),
        effects.SystemStopped(False),
    ]
    desk.exit(worker)
    assert desk.take(effects.SystemStopped) == []


def test_a_stop_without_a_deadline() -> None:
    desk = desk_with(stop_timeout=float("inf"))
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    desk.wait(200.0)
    assert desk.take(effects.ExitSupervisor) == []
    assert desk.registry.next_deadline() != float("inf")


# --- who comes late -------------------------------------------------------------------------------


def test_who_comes_when_the_pools_leave_is_told_so_too(desk: Desk) -> None:
    desk.worker()
    stop(desk)
    desk.hello(5)
    desk.say(events.WorkerAttached(Incarnation(3)))
    assert desk.take(effects.ExitWorker) == [effects.ExitWorker(Incarnation(3))]
    assert desk.registry.state.workers[Incarnation(3)].exiting
    desk.supervisor(number=2)
    assert desk.registry.state.supervisors[supervisor_id("pool", 2)].exiting
    assert desk.effects == [
        effects.WelcomeSupervisor(supervisor_id("pool", 2), Incarnation(4), 77.0, LEASE),
        effects.ExitSupervisor(supervisor_id("pool", 2), 0.0),
    ]
    desk.supervisor()
    assert desk.take(effects.ExitSupervisor) == [effects.ExitSupervisor(POOL, 0.0)]


def test_a_worker_that_comes_earlier_still_serves(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "gc"})
    stop(desk)
    late = desk.worker()
    desk.spawn({"kind": "flush"})
    assert [row.task_id for row in desk.assigned(late)] == [2]


# --- shutdown_process_on_error --------------------------------------------------------------------


def failed(desk: Desk) -> bool:
    return desk.registry.state.failed


def test_the_failure_of_a_marked_task_stops_the_system(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, MARKED, {"kind": "gc"})
    desk.end(worker, 1, outcome="failed")
    reason = "task 1 listen 'l', marked shutdown_process_on_error, failed"
    assert desk.take(facts.SystemStopping) == [facts.SystemStopping(reason, True, False)]
    assert effects.Log("ERROR", f"the system stops: {reason}") in desk.take(effects.Log)
    assert [row[3] for row in desk.one(effects.AskStops).rows] == [reason]
    desk.obey(worker, 2)
    desk.say(events.SupervisorGoodbye(POOL))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(True)]


def test_the_crash_of_a_marked_task_says_it_differently(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, MARKED)
    desk.exit(worker)
    assert failed(desk)
    assert desk.take(effects.Log)[0].text.endswith("; the whole system stops because of it")


@pytest.mark.parametrize("outcome", ["completed", "cancelled"])
def test_other_ends_of_a_marked_task_stop_nothing(desk: Desk, outcome: str) -> None:
    worker = desk.worker()
    desk.running(worker, MARKED)
    desk.end(worker, 1, outcome=outcome)
    assert not desk.registry.state.stopping


@pytest.mark.parametrize("outcome", ["failed", "crashed"])
def test_nor_does_a_failure_after_it_was_asked_to_stop(desk: Desk, outcome: str) -> None:
    worker = desk.worker()
    desk.running(worker, MARKED)
    desk.stop(kind="listen")
    desk.end(worker, 1, outcome=outcome)
    assert desk.ends() == [(1, outcome, "RETURNED")]
    assert not desk.registry.state.stopping


def test_nor_while_it_has_retries_left(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**MARKED, "retries": 1})
    desk.exit(worker)
    assert not desk.registry.state.stopping
    assert not desk.take(effects.Log)[0].text.endswith("because of it")
    worker = desk.worker()
    desk.begin(worker, 1)
    desk.end(worker, 1, 2, outcome="failed")
    assert failed(desk)


def test_a_failure_during_a_stop_makes_it_a_failure(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"kind": "listen"}, {**MARKED, "kind": "flush"})
    stop(desk)
    desk.end(worker, 2, outcome="failed")
    assert fact_types(desk) == ["TaskEnded", "SystemStopping"]
    desk.obey(worker, 1)
    desk.say(events.SupervisorGoodbye(POOL))
    assert desk.take(effects.SystemStopped) == [effects.SystemStopped(True)]


def test_the_caller_of_the_end_still_gets_its_result_first(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, MARKED)
    desk.end(worker, 1, outcome="failed")
    assert [type(each).__name__ for each in desk.effects][:2] == ["TakeEnds", "SendResults"]


def test_the_system_s_stops_leave_no_reports_behind(desk: Desk) -> None:
    stop(desk)
    assert desk.registry.state.stops == {}
    assert desk.closed()[-1] == (str(Scope()), "kept")
