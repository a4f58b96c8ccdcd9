"""Supervisors and workers: registered once, found again, and what their deaths prove."""

from typing import Any

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.limits import KindLimits
from registry_helpers import LEASE, WALL, Desk, assign_row, fact_types, supervisor_id

POOL = supervisor_id("pool")
X = {"tenant_id": "x"}


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    return desk


def errors(desk: Desk) -> list[str]:
    return [log.text for log in desk.take(effects.Log) if log.level == "ERROR"]


# --- registration ---------------------------------------------------------------------------------


def test_a_supervisor_is_registered_once(desk: Desk) -> None:
    desk.supervisor()
    desk.expect_facts(
        facts.SupervisorRegistered(POOL, 1, "pool", 501, "here", 1, 3, ""),
        facts.SupervisorArmed(POOL),
    )
    desk.expect(effects.WelcomeSupervisor(POOL, Incarnation(1), 77.0, LEASE))
    desk.supervisor()
    desk.expect_facts()
    desk.expect(effects.WelcomeSupervisor(POOL, Incarnation(1), 77.0, LEASE))


def test_a_pool_that_is_not_declared_is_refused(desk: Desk) -> None:
    desk.supervisor(runtime="sole")
    desk.expect_facts()
    desk.expect(
        effects.RefuseSupervisor(
            supervisor_id("sole"),
            "unknown runtime 'sole'; did you mean 'solo'? Known: pool, solo",
            10.0,
        )
    )


def test_a_worker_is_registered_then_reached_then_gets_tasks(desk: Desk) -> None:
    desk.spawn()
    desk.supervisor()
    desk.hello(1)
    desk.expect_facts(facts.WorkerRegistered(2, POOL, 1, "pool", 1001, "here", 3))
    desk.expect(effects.WelcomeWorker(POOL, 1, Incarnation(2)))
    desk.say(events.WorkerAttached(Incarnation(2)))
    desk.expect_facts(facts.WorkerReachable(2), facts.TaskAssigned(1, 2, 1))
    desk.expect(effects.AssignTasks(Incarnation(2), [assign_row(1, 1)]))


def test_the_first_worker_serves_without_waiting_for_other_pools(desk: Desk) -> None:
    desk.spawn({"runtime": "solo"}, {"runtime": "pool"})
    desk.worker("solo")
    assert [row.task_id for row in desk.assigned()] == [1]


def test_a_hello_before_that_of_its_supervisor_is_said_again_later(desk: Desk) -> None:
    desk.hello(1)
    desk.expect_nothing()


def test_a_hello_that_comes_twice_gets_the_same_incarnation(desk: Desk) -> None:
    desk.supervisor()
    desk.hello(1)
    desk.hello(1)
    desk.expect_facts()
    desk.expect(effects.WelcomeWorker(POOL, 1, Incarnation(2)))


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (
            {"serial": 1, "runtime": "solo", "supervisor": POOL},
            "its supervisor runs the pool 'pool', not 'solo'",
        ),
        ({"serial": 1, "incarnation": 7}, "its registration is gone"),
        ({"serial": 9}, "its supervisor has reported its end"),
    ],
)
def test_a_worker_is_refused(desk: Desk, hello: dict[str, Any], text: str) -> None:
    desk.supervisor()
    desk.say(events.WorkerExited(POOL, events.ExitRow(9, 1009, 0, True, [])))
    desk.hello(**hello)
    desk.expect_facts()
    desk.expect(effects.RefuseWorker(POOL, hello["serial"], text))


# --- found again ----------------------------------------------------------------------------------


def test_after_a_new_connection_it_gets_again_what_it_has_not_received(desk: Desk) -> None:
    """In the order of the numbers, and before anything new: it takes no older number after a newer one."""
    worker = desk.worker()
    desk.spawn({}, {})
    desk.hello(1, incarnation=worker, last_assign=1)
    desk.expect(effects.WelcomeWorker)
    desk.spawn()
    assert desk.assigned() == []
    desk.say(events.WorkerAttached(worker))
    assert [row.assign_number for row in desk.assigned(worker)] == [2, 3]


def test_tasks_that_it_has_received_are_not_sent_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.hello(1, incarnation=worker, last_assign=2)
    desk.say(events.WorkerAttached(worker))
    desk.expect_facts(facts.WorkerReachable(worker))
    desk.expect()


def test_after_a_new_connection_it_hears_again_what_it_has_not_acknowledged(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, X)
    desk.stop(**X)
    desk.seen(worker, 1)
    desk.hello(1, incarnation=worker, last_assign=2)
    desk.expect(
        effects.WelcomeWorker,
        effects.AskStops(worker, [(2, 1, 2, "shutdown_tasks(tenant_id=x)")]),
        effects.RaiseFlags(POOL, [(1, 2, 1)]),
    )


def test_an_attach_that_comes_twice_changes_nothing(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn()
    desk.say(events.WorkerAttached(worker))
    desk.expect_nothing()


# --- what a death proves --------------------------------------------------------------------------

BEGUN = [{}, {1: "begun"}]


def test_a_task_that_had_begun_has_crashed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {**X, "name": "n"})
    desk.wait(2.0)
    desk.exit(worker, -11, {1: "begun"})
    text = (
        "process 1001 of runtime 'pool' ended with signal 11 while it ran task 1.1 gc 'n' "
        "(tenant 'x', timeline None)"
    )
    assert fact_types(desk) == ["TaskEnded", "WorkerGone"]
    (end,) = desk.take(facts.TaskEnded)
    assert end == (1, "crashed", "REAPED", -11, WALL, WALL + 2.0, text, b"")
    assert [(row.outcome, row.exit_status) for row in desk.results()] == [("crashed", -11)]
    assert errors(desk) == [text]
    assert desk.take(effects.TakeExit) == [effects.TakeExit(POOL, 1)]


@pytest.mark.parametrize(
    ("status", "said"), [(0, "exit status 0"), (3, "exit status 3"), (-9, "signal 9")]
)
def test_no_exit_status_is_innocent(desk: Desk, status: int, said: str) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, status)
    assert desk.life(1) == "crashed REAPED"
    assert f"ended with {said} while" in desk.results()[0].text


def test_a_beginning_that_was_never_reported_is_dated_by_the_end(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn({}, {})
    desk.wait(2.0)
    desk.exit(worker, -9, {1: "begun", 2: "completed"})
    assert desk.one(facts.TaskEnded).started_at == WALL + 2.0
    desk.wait(0.3)
    assert desk.one(facts.TaskEnded).started_at == WALL + 2.3


def test_a_beginning_that_was_reported_keeps_its_date(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.wait(2.0)
    desk.exit(worker, -9, {1: "completed"})
    desk.wait(0.3)
    assert desk.one(facts.TaskEnded).started_at == WALL


def test_a_dead_worker_can_not_attach(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, -9, {1: "completed"})
    desk.say(events.WorkerAttached(worker))
    desk.expect_nothing()


def test_what_goes_back_to_the_queue_makes_room_under_its_limit() -> None:
    """Its place goes to a task of the same kind in a pool that lives."""
    desk = Desk(kinds=[KindLimits(name="gc", max_running=1)])
    desk.session()
    pool, solo = desk.worker(), desk.worker("solo")
    desk.spawn({"runtime": "pool"}, {"runtime": "solo"})
    desk.exit(pool)
    assert [desk.life(1), desk.life(2)] == ["queued", "assigned"]
    assert [row.task_id for row in desk.assigned(solo)] == [2]


@pytest.mark.parametrize(
    ("state", "phase", "known", "expected"),
    [
        ("assigned", None, True, "queued"),
        ("assigned", None, False, "crashed REAPED"),
        ("assigned", "begun", True, "crashed REAPED"),
        ("assigned", "nonsense", True, "crashed REAPED"),
        ("assigned", "completed", True, "completed RETURNED"),
        ("running", None, True, "crashed REAPED"),
        ("running", None, False, "crashed REAPED"),
        ("running", "begun", True, "crashed REAPED"),
        ("running", "completed", True, "completed RETURNED"),
        ("running", "failed", True, "failed RETURNED"),
        ("running", "cancelled", True, "cancelled RETURNED"),
        ("running", "crashed", True, "crashed RETURNED"),
        ("asked", None, True, "cancelled NEVER_RAN"),
        ("asked", None, False, "cancelled REAPED"),
        ("asked", "begun", True, "cancelled REAPED"),
        ("asked running", "begun", True, "cancelled REAPED"),
        ("asked running", "completed", True, "completed RETURNED"),
    ],
)
def test_what_a_table_says_of_a_task(
    desk: Desk, state: str, phase: str | None, known: bool, expected: str
) -> None:
    worker = desk.worker()
    desk.spawn(X)
    if state.endswith("running"):
        desk.begin(worker, 1)
    if state.startswith("asked"):
        desk.stop(**X)
    desk.exit(worker, -9, {} if phase is None else {1: phase}, table_known=known)
    if phase in ("completed", "failed", "cancelled", "crashed"):
        assert desk.life(1) == state.removeprefix("asked ").replace("asked", "assigned")
        desk.wait(0.3)
    assert desk.life(1) == expected
    assert desk.registry.state.pool["pool"] == {}
    assert desk.registry.state.workers == {}


def test_what_it_had_not_begun_runs_elsewhere_in_the_same_attempt(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.spawn({"retries": 0})
    other = desk.worker()
    desk.exit(worker, -9, {1: "begun"})
    assert desk.life(1) == "crashed REAPED"
    assert [(row.task_id, row.attempt) for row in desk.assigned(other)] == [(2, 1)]
    assert len(errors(desk)) == 1


def test_other_workers_go_on(desk: Desk) -> None:
    first, second = desk.worker(), desk.worker()
    desk.spawn({}, {})
    desk.begin(first, 1)
    desk.begin(second, 2)
    desk.exit(first)
    assert desk.life(2) == "running"


def test_an_exit_that_is_said_again_is_only_taken_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker)
    desk.exit(worker)
    desk.expect_facts()
    desk.expect(effects.TakeExit(POOL, 1))


def test_an_exit_before_the_hello_refuses_the_hello(desk: Desk) -> None:
    desk.supervisor()
    desk.say(events.WorkerExited(POOL, events.ExitRow(4, 1004, 1, True, [])))
    desk.expect_facts(facts.WorkerGone(0, POOL, 4, 1, []))
    desk.hello(4)
    desk.expect(effects.RefuseWorker)
    assert desk.registry.state.workers == {}


def test_an_exit_by_an_unknown_supervisor_is_taken(desk: Desk) -> None:
    desk.say(events.WorkerExited(b"unknown.", events.ExitRow(1, 1001, 1, True, [])))
    desk.expect(effects.TakeExit(b"unknown.", 1))
    desk.expect_facts()


# --- an end that died with its process ------------------------------------------------------------


def test_an_end_that_is_still_on_its_way_wins(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, -9, {1: "completed"})
    desk.expect_facts(facts.WorkerGone(worker, POOL, 1, -9, [(1, "completed")]))
    desk.wait(0.2)
    desk.end(worker, 1, result=b"the result")
    assert [row.result for row in desk.results()] == [b"the result"]
    desk.wait(1.0)
    desk.expect()
    assert desk.registry.state.workers == {}


def test_of_two_ends_on_their_way_one_may_come(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    desk.exit(worker, -9, {1: "completed", 2: "completed"})
    desk.end(worker, 1, result=b"the result")
    desk.wait(0.3)
    assert [(row.task_id, row.result) for row in desk.results()] == [(2, b"")]


def test_an_end_that_does_not_come_is_known_from_the_table(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, -9, {1: "completed"})
    desk.wait(0.25)
    desk.expect()
    desk.wait(0.05)
    (row,) = desk.results()
    assert (row.outcome, row.evidence, row.exit_status, row.result) == (
        "completed",
        "RETURNED",
        -9,
        b"",
    )
    assert row.text == (
        "it ended as completed, but process 1001 died before it had handed over the result"
    )
    desk.end(worker, 1)
    desk.expect_nothing()


def test_a_beginning_that_is_still_on_its_way_changes_nothing(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn()
    desk.exit(worker, -9, {1: "failed"})
    desk.begin(worker, 1)
    assert desk.life(1) == "running"
    desk.wait(0.3)
    assert desk.life(1) == "failed RETURNED"


def test_a_task_that_had_failed_is_tried_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1})
    desk.exit(worker, -9, {1: "failed"})
    desk.wait(0.3)
    assert desk.life(1) == "queued"
    assert desk.task(1).attempt == 2
    desk.worker()
    assert [(row.task_id, row.attempt) for row in desk.assigned()] == [(1, 2)]


def test_a_stop_waits_for_it_and_nobody_asks_a_dead_process(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.exit(worker, -9, {1: "completed"})
    desk.stop(**X, grace=0.1)
    desk.expect()
    desk.wait(0.2)
    desk.expect()
    desk.wait(0.1)
    assert desk.ends() == [(1, "completed", "RETURNED")]


def test_what_it_had_asked_for_is_granted_even_now(desk: Desk) -> None:
    """It said so before it died; the stop of that tenant must see it."""
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, -9, {1: "completed"})
    desk.stop(**X, timeout=5.0, last_spawn=9)
    desk.associate(worker, 1, "x")
    assert desk.registry.state.waited[TaskId(1)] == {1}
    desk.wait(0.3)
    assert desk.life(1) == "completed RETURNED"


# --- supervisors that end -------------------------------------------------------------------------


def successor(desk: Desk, *rows: events.ExitRow) -> None:
    desk.supervisor(number=2, predecessor=events.Predecessor(POOL, 501, -9, False, list(rows)))


def test_a_predecessor_was_reaped_with_its_workers(desk: Desk) -> None:
    first, second = desk.worker(), desk.worker()
    desk.spawn({}, {"retries": 0}, {})
    desk.begin(first, 1)
    desk.begin(second, 2)
    successor(desk, events.ExitRow(1, 1001, -9, True, [events.Phase(1, 1, "begun")]))
    assert fact_types(desk) == [
        *["TaskEnded", "TaskRequeued", "WorkerGone"],
        *["TaskEnded", "WorkerGone"],
        *["SupervisorGone", "SupervisorRegistered", "SupervisorArmed"],
    ]
    assert [desk.life(task) for task in (1, 2, 3)] == ["crashed REAPED", "crashed REAPED", "queued"]
    assert errors(desk)[0] == (
        "the supervisor of pool 'pool' (pid 501) died (status -9); its workers went with it, a "
        "successor has taken over"
    )


def test_a_predecessor_that_is_not_known_says_nothing(desk: Desk) -> None:
    successor(desk)
    assert fact_types(desk) == ["SupervisorRegistered", "SupervisorArmed"]


def test_the_successor_says_it_once(desk: Desk) -> None:
    desk.worker()
    successor(desk)
    successor(desk)
    desk.expect_facts()


def test_the_last_words_of_a_predecessor_bring_nothing_back(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    successor(desk)
    desk.supervisor()
    desk.expect_facts()
    desk.expect(effects.RefuseSupervisor(POOL, "its end was reported before", 10.0))
    desk.hello(1, incarnation=worker)
    desk.expect_nothing()
    desk.end(worker, 1)
    desk.expect_nothing()
    desk.say(events.WorkerAttached(worker))
    desk.expect_nothing()
    desk.say(events.SupervisorGoodbye(POOL))
    desk.expect_nothing()


def test_a_goodbye_ends_what_is_left(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.say(events.SupervisorGoodbye(POOL))
    assert fact_types(desk) == ["TaskEnded", "WorkerGone", "SupervisorGone"]
    assert desk.life(1) == "crashed REAPED"


def test_a_goodbye_after_all_workers_have_been_reported(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.exit(worker, -9, {1: "completed"})
    desk.say(events.SupervisorGoodbye(POOL))
    desk.expect_facts(facts.SupervisorGone(POOL))
    desk.wait(0.3)
    assert desk.life(1) == "completed RETURNED"


# --- telemetry ------------------------------------------------------------------------------------


def test_usage_is_written_down_without_a_fact(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.wait(5.0)
    usage = events.UsageSaid(
        POOL,
        1.5,
        2000,
        0.5,
        [(1, 1001, 2.5, 3000, [(1, 1, 0.25), (7, 1, 0.0)]), (9, 1009, 1, 1, [])],
    )
    desk.say(usage)
    desk.expect_nothing()
    assert desk.task(1).last_check_at == WALL + 4.75
    known = desk.registry.state.workers[worker]
    assert (known.cpu_seconds, known.memory_bytes) == (2.5, 3000)
    pool = desk.registry.state.supervisors[POOL]
    assert (pool.cpu_seconds, pool.memory_bytes, pool.ended_cpu) == (1.5, 2000, 0.5)
    desk.worker()
    for serial, attempt in ((1, 2), (2, 1)):
        desk.say(usage._replace(workers=[(serial, 1000, 2.5, 3000, [(1, attempt, 9.0)])]))
        assert desk.task(1).last_check_at == WALL + 4.75
    desk.say(usage._replace(supervisor=b"unknown."))
    desk.expect_nothing()
