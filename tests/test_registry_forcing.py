"""Force after the grace: asked twice, then the process, if nobody else would die in it."""

import math
from typing import Any

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.forcing import PATIENCE
from quiesce.registry.ids import Incarnation
from quiesce.registry.limits import KindLimits, RuntimeLimits
from registry_helpers import GRACE, LEASE, WALL, Desk, supervisor_id

X = {"tenant_id": "x"}
Y = {"tenant_id": "y"}


def desk_with(*, lease: float = LEASE, **pool: Any) -> Desk:
    desk = Desk(
        runtimes=[
            RuntimeLimits(name="pool", slots=3, **pool),
            RuntimeLimits(name="solo", slots=1),
        ],
        lease=lease,
        lease_bound=LEASE,  # nobody renews it here
    )
    desk.session()
    desk.session("B")
    return desk


@pytest.fixture
def desk() -> Desk:
    return desk_with()


def steps(desk: Desk, seconds: float, *, deaf: bool = False) -> list[tuple[float, str]]:
    """What force does in this time: (second, effect). Unless it is `deaf`, the worker acknowledges it."""
    found = []
    until = desk.tick + seconds
    while desk.tick < until:
        found += [
            (desk.tick, type(effect).__name__)
            for effect in wait(desk, 0.5, deaf=deaf)
            if isinstance(effect, effects.ForceTask | effects.KillWorker)
        ]
    return found


def wait(desk: Desk, seconds: float, *, deaf: bool = False) -> list[effects.Effect]:
    """Time passes: what happens, and is acknowledged."""
    desk.wait(seconds)
    happened = list(desk.effects)
    for effect in happened:
        if isinstance(effect, effects.ForceTask) and not deaf:
            desk.seen(effect.worker, effect.task_id)
    desk.effects = happened
    return happened


def stopped(desk: Desk, *rows: dict[str, Any], **wishes: Any) -> Incarnation:
    """Tasks of these rows in one worker, and a stop of x that was heard."""
    worker = desk.worker()
    desk.running(worker, *rows)
    desk.stop(**X, **wishes)
    for task in list(desk.registry.state.tasks.values()):
        if task.ask is not None:
            desk.seen(worker, task.id)
    return worker


def test_a_worker_that_does_not_acknowledge_force_is_killed_next(desk: Desk) -> None:
    """Stopped, or in C code that lets nobody else run: what it does not hear is of no use a second time."""
    stopped(desk, X)
    assert steps(desk, GRACE + 2.0, deaf=True) == [
        (GRACE, "ForceTask"),
        (GRACE + 1, "KillWorker"),
        (GRACE + 2, "KillWorker"),
    ]


def test_the_ladder_for_a_task_in_a_process_of_its_own(desk: Desk) -> None:
    """After its grace it is forced, again a second later, and then its process is killed until it dies."""
    worker = stopped(desk, X)
    assert steps(desk, GRACE - 0.5) == []
    assert steps(desk, 5.0) == [
        (GRACE, "ForceTask"),
        (GRACE + 1, "ForceTask"),
        (GRACE + 2, "KillWorker"),
        (GRACE + 3, "KillWorker"),
        (GRACE + 4, "KillWorker"),
    ]
    desk.exit(worker)
    assert desk.ends() == [(1, "cancelled", "REAPED")]
    assert desk.rows()[1].exit_status == -9
    assert desk.report().report.collateral == []
    assert steps(desk, 10.0) == []


def test_what_is_sent_names_the_attempt(desk: Desk) -> None:
    worker = stopped(desk, X)
    wait(desk, GRACE)
    assert desk.take(effects.ForceTask) == [effects.ForceTask(worker, 1, 1)]
    wait(desk, 2.0)
    kill = effects.KillWorker(supervisor_id("pool"), 1, 1, 1, [])
    assert desk.take(effects.KillWorker) == [kill]


def test_a_forced_task_that_ends_is_cancelled_by_nobody_s_fault(desk: Desk) -> None:
    worker = stopped(desk, {**X, "shutdown_process_on_error": True, "retries": 3})
    wait(desk, GRACE + 2)
    desk.exit(worker)
    assert desk.ends() == [(1, "cancelled", "REAPED")]
    assert [log for log in desk.take(effects.Log) if log.level != "INFO"] == []
    assert not desk.registry.state.stopping


# --- neighbours -----------------------------------------------------------------------------------


def test_a_neighbour_is_spared_and_named(desk: Desk) -> None:
    worker = stopped(desk, X, {**Y, "name": "neighbour"})
    assert steps(desk, GRACE + 2)[-1] == (GRACE + 2, "ForceTask")
    assert effects.Log(
        "WARNING",
        "task 1 gc 't' does not stop, and its process 1001 can't be killed: 1 other task runs there "
        "too (2 'neighbour'), and kill_neighbours of runtime 'pool' is false",
    ) in desk.take(effects.Log)
    assert steps(desk, 3.0) == [(GRACE + each, "ForceTask") for each in (3, 4, 5)]
    assert desk.take(effects.Log) == []
    desk.end(worker, 2)
    assert steps(desk, 1.0) == [(GRACE + 6, "KillWorker")]


def test_neighbours_in_the_scope_are_no_reason_to_wait(desk: Desk) -> None:
    stopped(desk, X, X, X)
    assert steps(desk, GRACE + 2.5)[-3:] == [(GRACE + 2, "KillWorker")] * 3


def test_a_neighbour_in_its_own_grace_is_spared(desk: Desk) -> None:
    worker = stopped(desk, X, Y)
    wait(desk, GRACE - 1)
    desk.stop("B", **Y)
    desk.seen(worker, 2)
    assert steps(desk, 3.0)[-1] == (GRACE + 2, "ForceTask")


@pytest.mark.parametrize("lease", [0.3, 0.9, 1.5, GRACE])
@pytest.mark.parametrize("deaf", [False, True])
def test_only_a_worker_that_answers_nothing_is_frozen(lease: float, deaf: bool) -> None:
    """Answers that come at once are far apart for a short lease, and before force nothing was left to answer."""
    desk = desk_with(lease=lease)
    stopped(desk, X, Y)
    happened = steps(desk, GRACE + max(lease, PATIENCE) + 1.0, deaf=deaf)
    kills = [tick for tick, what in happened if what == "KillWorker"]
    assert kills == ([GRACE + max(lease, PATIENCE) + 1.0] if deaf else [])


def test_one_answer_that_is_missing_makes_no_worker_frozen() -> None:
    desk = desk_with(lease=0.5)
    stopped(desk, X, Y)
    wait(desk, GRACE - 0.5)
    for deaf in (False, True) * 5:
        assert {what for _, what in steps(desk, 2.0, deaf=deaf)} == {"ForceTask"}


@pytest.mark.parametrize("late", [0.9, 20.0])
def test_a_broker_that_stood_still_takes_nobody_for_frozen(late: float) -> None:
    """What the worker has answered meanwhile it has not read yet."""
    desk = desk_with(lease=1.5)
    worker = stopped(desk, X, Y)
    assert {what for _, what in steps(desk, GRACE + 2)} == {"ForceTask"}
    desk.tick += 1.0 + late
    desk.say(events.Tick())
    assert desk.take(effects.KillWorker) == []
    desk.seen(worker, 1)
    assert {what for _, what in steps(desk, 5.0)} == {"ForceTask"}


def test_a_process_that_is_being_killed_has_not_failed_to_answer() -> None:
    """Nobody asked it; and who has come since is no less innocent."""
    desk = desk_with(lease=1.5)
    worker = stopped(desk, X)
    assert steps(desk, GRACE + 2)[-1] == (GRACE + 2, "KillWorker")
    desk.running(worker, Y)
    assert {what for _, what in steps(desk, 5.0)} == {"ForceTask"}


def test_kill_neighbours_names_who_died_with_it() -> None:
    desk = desk_with(kill_neighbours=True)
    worker = stopped(desk, X, Y)
    assert steps(desk, GRACE + 2)[2:] == [(GRACE + 2, "KillWorker")]
    desk.exit(worker)
    assert desk.ends() == [(1, "cancelled", "REAPED")]
    (row,) = desk.report().report.collateral
    assert (row.id, row.outcome, row.evidence, row.exit_status) == (2, "crashed", "REAPED", -9)
    assert row.stopped_at == desk.wall
    assert desk.life(2) == "crashed REAPED"


def test_a_process_that_dies_by_itself_is_no_collateral_of_the_stop(desk: Desk) -> None:
    """Forced, but spared; then a neighbour takes the process down."""
    worker = stopped(desk, X, Y)
    wait(desk, GRACE + 5)
    assert desk.take(effects.KillWorker) == []
    desk.exit(worker, -11)
    assert desk.report().report.collateral == []


def test_a_collateral_task_may_be_tried_again() -> None:
    desk = desk_with(kill_neighbours=True)
    worker = stopped(desk, X, {**Y, "retries": 1})
    wait(desk, GRACE + 2)
    desk.exit(worker)
    assert [row.id for row in desk.report().report.collateral] == [2]
    assert desk.life(2) == "queued"


def test_a_task_marked_shutdown_process_on_error_is_never_collateral() -> None:
    desk = desk_with(kill_neighbours=True)
    stopped(desk, X, {**Y, "shutdown_process_on_error": True})
    assert steps(desk, GRACE + 5)[-1] == (GRACE + 5, "ForceTask")
    desk.stop("B", **Y)
    desk.seen(2, 2)
    # Asked to stop it is no neighbour any more, but has its own grace.
    assert {effect for _, effect in steps(desk, GRACE - 1)} == {"ForceTask"}
    assert "KillWorker" in {effect for _, effect in steps(desk, 2.0)}


# --- the grace ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "first"), [(3.0, 3.0), (0.0, 0.5), (-5.0, 0.5), (None, GRACE), (20.0, 20.0)]
)
def test_the_grace_of_the_call(desk: Desk, grace: float | None, first: float) -> None:
    stopped(desk, X, grace=grace)
    assert steps(desk, 25.0)[0] == (first, "ForceTask")


def test_an_infinite_grace_is_for_ever(desk: Desk) -> None:
    stopped(desk, X, grace=math.inf)
    assert steps(desk, 100.0) == []


def test_the_grace_of_the_runtime_comes_before_that_of_the_kind() -> None:
    desk = desk_with(stop_grace=2.0)
    stopped(desk, X)
    assert steps(desk, 2.5) == [(2.0, "ForceTask")]


def test_the_earliest_grace_of_several_stops_counts(desk: Desk) -> None:
    stopped(desk, X, grace=8.0)
    desk.stop("B", **X, grace=2.0)
    desk.stop("B", **X, grace=30.0)
    assert steps(desk, 2.5) == [(2.0, "ForceTask")]


def test_a_stop_that_waits_for_ever_does_not_hold_up_one_that_does_not(desk: Desk) -> None:
    stopped(desk, X, grace=math.inf)
    wait(desk, 5.0)
    desk.stop("B", **X, grace=2.0)
    assert steps(desk, 2.5) == [(7.0, "ForceTask")]


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_a_new_stop_does_not_move_the_ladder(desk: Desk, grace: float) -> None:
    stopped(desk, X, grace=1.0)
    wait(desk, 1.5)
    desk.stop("B", **X, grace=grace)
    assert steps(desk, 2.0) == [(2.0, "ForceTask"), (3.0, "KillWorker")]


# --- extend_grace ---------------------------------------------------------------------------------


def extend(desk: Desk, worker: Incarnation, seconds: float) -> None:
    """So many in all."""
    desk.say(events.GraceAsked(worker, 1, 1, seconds))
    desk.expect()


def test_more_time_is_a_fact(desk: Desk) -> None:
    worker = stopped(desk, X)
    extend(desk, worker, 5.0)
    desk.expect_facts(facts.ForceMoved(1, WALL + GRACE + 5, 5.0))
    extend(desk, worker, 6.0)
    desk.expect_facts(facts.ForceMoved(1, WALL + GRACE + 6, 6.0))


def test_what_is_said_again_gives_no_more_time(desk: Desk) -> None:
    """A worker whose broker has died does not know what that one has heard. (0.1 + 0.2 is not 0.3.)"""
    worker = stopped(desk, X)
    said = 0.0
    for more in (0.1, 0.2, 0.4):
        said += more
        extend(desk, worker, said)
        desk.expect_facts(facts.ForceMoved(1, WALL + GRACE + said, said))
    for again in (said, 0.1):
        extend(desk, worker, again)
        desk.expect_facts()
    assert steps(desk, GRACE + 1.0) == [(GRACE + 1.0, "ForceTask")]


def test_a_task_may_ask_for_more_time(desk: Desk) -> None:
    worker = stopped(desk, X)
    extend(desk, worker, 5.0)
    assert steps(desk, GRACE + 5.5) == [(GRACE + 5, "ForceTask")]


def test_but_only_for_twice_the_configured_grace_in_all(desk: Desk) -> None:
    worker = stopped(desk, X, grace=1.0)
    extend(desk, worker, 15.0)
    extend(desk, worker, 1015.0)
    extend(desk, worker, 2015.0)
    assert steps(desk, 1 + 2 * GRACE + 0.5) == [(1 + 2 * GRACE, "ForceTask")]


def test_the_configured_grace_of_the_runtime_bounds_it() -> None:
    desk = desk_with(stop_grace=2.0)
    worker = stopped(desk, X)
    extend(desk, worker, 1000.0)
    assert steps(desk, 6.5) == [(6.0, "ForceTask")]


def test_what_was_granted_counts_for_later_stops_too(desk: Desk) -> None:
    worker = stopped(desk, X)
    extend(desk, worker, 5.0)
    desk.stop("B", **X, grace=1.0)
    assert steps(desk, 6.5) == [(6.0, "ForceTask")]


def test_a_kind_that_is_never_forced_may_ask_for_ever() -> None:
    desk = Desk(kinds=[KindLimits(name="gc", stop_grace=math.inf)])
    desk.session()
    worker = stopped(desk, X, grace=1.0)
    extend(desk, worker, math.inf)
    desk.expect_facts(facts.ForceMoved(1, None, math.inf))
    assert steps(desk, 100.0) == []
    assert desk.registry.next_deadline() != math.inf


@pytest.mark.parametrize("seconds", [0.0, -3.0, float("nan")])
def test_nonsense_extends_nothing(desk: Desk, seconds: float) -> None:
    worker = stopped(desk, X)
    extend(desk, worker, seconds)
    assert steps(desk, GRACE + 0.5) == [(GRACE, "ForceTask")]


def test_what_is_never_forced_needs_no_more_time(desk: Desk) -> None:
    worker = stopped(desk, X, grace=math.inf)
    extend(desk, worker, 5.0)
    assert steps(desk, 50.0) == []


def test_too_late_for_more_time(desk: Desk) -> None:
    worker = stopped(desk, X)
    wait(desk, GRACE)
    extend(desk, worker, 5.0)
    assert steps(desk, 2.0)[0] == (GRACE + 1, "ForceTask")


def test_a_task_that_is_not_asked_has_no_grace_to_extend(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, X)
    extend(desk, worker, 5.0)
    desk.stop(**X)
    desk.seen(worker, 1)
    assert steps(desk, GRACE + 0.5) == [(GRACE, "ForceTask")]
