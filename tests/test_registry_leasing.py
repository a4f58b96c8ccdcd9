"""The broker's side of leases: granted at once, over when nothing was heard for the bound."""

import pytest

from quiesce.registry import effects, events, facts
from registry_helpers import WALL, Desk, fact_types, supervisor_id

POOL = supervisor_id("pool")
X = {"tenant_id": "x"}
#: The lease here, and after how long a silence its supervisor is dead.
L, LB = 8.0, 10.0


@pytest.fixture
def desk() -> Desk:
    desk = Desk(lease=L, lease_bound=LB)
    desk.session()
    return desk


def renew(desk: Desk, sent_at: float = 5.0, *, armed: bool = True) -> None:
    desk.say(events.LeaseRenewed(POOL, sent_at, armed))


def test_a_lease_is_granted_with_what_it_was_asked_with(desk: Desk) -> None:
    desk.supervisor()
    renew(desk, 123.5)
    desk.expect_facts()
    desk.expect(effects.GrantLease(POOL, 123.5, L))


def test_nobody_knows_who_asks(desk: Desk) -> None:
    renew(desk)
    desk.expect(effects.WantSupervisor(POOL))


def test_before_the_kernel_would_kill_its_supervisor_a_worker_gets_no_task(desk: Desk) -> None:
    desk.supervisor(armed=False)
    worker = desk.worker()
    desk.spawn()
    assert desk.assigned() == []
    renew(desk, armed=False)
    assert desk.assigned() == []
    renew(desk)
    desk.expect_facts(facts.SupervisorArmed(POOL), facts.TaskAssigned(1, worker, 1))


def test_it_is_renewed(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    for _ in range(4):
        desk.wait(LB - 0.5)
        assert fact_types(desk) == []
        renew(desk)
    assert desk.life(1) == "running"


def test_whoever_is_silent_for_the_bound_is_dead(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    desk.wait(LB - 0.1)
    assert desk.life(1) == "running"
    desk.wait(0.2)
    assert fact_types(desk) == ["TaskEnded", "WorkerGone", "SupervisorGone"]
    assert desk.life(1) == "lost FENCED"
    assert desk.results()[0].outcome == "lost"
    assert "out of reach" in desk.results()[0].text
    assert desk.one(facts.TaskEnded).exit_status is None


def test_a_stop_gets_its_proof(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, {})
    desk.stop(**X, grace=1.0)
    desk.wait(LB - 0.1)
    assert desk.take(effects.AnswerStop) == []
    desk.wait(0.2)
    (row,) = desk.report().report.tasks
    assert (row.outcome, row.evidence, row.exit_status) == ("lost", "FENCED", None)
    assert row.stopped_at == WALL + LB


def test_what_was_lost_runs_again_by_its_retries(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1})
    desk.wait(LB + 0.1)
    assert desk.life(1) == "queued"
    assert desk.task(1).attempt == 2


def test_what_was_stopped_never_runs_again(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1, "restart": "always", **X})
    desk.stop(**X)
    desk.wait(LB + 0.1)
    assert desk.life(1) == "lost FENCED"


def test_one_that_comes_too_late_is_refused(desk: Desk) -> None:
    desk.worker()
    desk.wait(LB + 0.1)
    desk.supervisor(incarnation=1)
    desk.expect(effects.RefuseSupervisor(POOL, "its end was reported before", L / 4))
    renew(desk)
    desk.expect(effects.WantSupervisor(POOL))


def test_what_a_worker_says_after_its_end_is_not_heard(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    desk.wait(LB + 0.1)
    desk.end(worker, 1)
    assert desk.life(1) == "lost FENCED"
    desk.hello(1, incarnation=worker)
    desk.expect_nothing()


def test_its_system_stops_for_a_task_marked_so(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"shutdown_process_on_error": True})
    desk.wait(LB + 0.1)
    assert desk.registry.state.failed


@pytest.mark.parametrize("fenced", [False, True])
def test_a_predecessor_may_have_been_ended_by_its_lease(desk: Desk, fenced: bool) -> None:
    worker = desk.worker()
    desk.running(worker, {}, {})
    rows = [events.ExitRow(1, 1001, -9, True, [events.Phase(1, 1, "begun")])]
    rows[0].attempts.append(events.Phase(2, 1, "begun"))
    desk.supervisor(number=2, predecessor=events.Predecessor(POOL, 501, -9, fenced, rows))
    assert desk.life(1) == ("lost FENCED" if fenced else "crashed REAPED")
    assert desk.take(facts.TaskEnded)[0].exit_status == -9


def test_what_had_not_begun_there_runs_elsewhere(desk: Desk) -> None:
    desk.worker()
    desk.spawn({})
    rows = [events.ExitRow(1, 1001, -9, True, [])]
    desk.supervisor(number=2, predecessor=events.Predecessor(POOL, 501, -9, True, rows))
    assert desk.life(1) == "queued"


def test_a_worker_that_answers_nothing_for_a_lease_takes_its_neighbours_along(desk: Desk) -> None:
    """No task in it can be reached, and a stop must end."""
    worker = desk.worker()
    desk.running(worker, X, {})
    desk.stop(**X, grace=1.0)
    kills = []
    for _ in range(12):
        desk.wait(1.0)
        kills += [desk.tick] if desk.take(effects.KillWorker) else []
        renew(desk)
    assert kills[0] == L + 1.0


def test_a_worker_that_answers_is_spared_for_its_neighbours(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X, {})
    desk.stop(**X, grace=1.0)
    for _ in range(20):
        desk.wait(1.0)
        assert desk.take(effects.KillWorker) == []
        desk.seen(worker, 1)
        renew(desk)


def test_a_longer_lease_of_an_earlier_broker_still_counts(desk: Desk) -> None:
    """Its timer was armed by that one, and never moves back."""
    worker = desk.worker()
    desk.running(worker, {})
    desk.configuration = {**desk.configuration, "lease": 1.0, "lease_bound": 2.0}
    desk.thorough = False
    desk.restart()
    desk.wait(LB - 0.1)
    assert desk.life(1) == "running"
    desk.wait(0.2)
    assert desk.life(1) == "lost FENCED"
