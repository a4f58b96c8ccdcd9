"""Every event that a worker may say of an attempt, in every state that the attempt may be in.

The table says which facts and effects follow. The worker may be right, or speak of the past: then nothing
follows, but that its ends are taken, so that it stops to say them, and its calls answered.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.ids import Incarnation, StopId
from quiesce.registry.leases import default_bound
from quiesce.registry.machine import HANDLERS
from quiesce.registry.moving import RegistryFault, move
from quiesce.registry.states import LEGAL, State
from registry_helpers import GRACE, LEASE, WALL, Desk, ended_row


class Case(NamedTuple):
    """Who speaks of what."""

    worker: Incarnation
    task: int
    attempt: int


# --- the states -----------------------------------------------------------------------------------


def unknown(desk: Desk) -> Case:
    return Case(desk.worker(), 99, 1)


def queued(desk: Desk) -> Case:
    worker = desk.worker("solo")
    desk.running(worker, {"runtime": "solo"})
    return Case(worker, desk.spawn({"runtime": "solo"}), 1)


def assigned(desk: Desk) -> Case:
    worker = desk.worker()
    return Case(worker, desk.spawn(), 1)


def running(desk: Desk) -> Case:
    worker = desk.worker()
    desk.running(worker, {})
    return Case(worker, 1, 1)


def asked(state: Callable[[Desk], Case]) -> Callable[[Desk], Case]:
    def ask(desk: Desk) -> Case:
        case = state(desk)
        desk.stop(task_id=case.task)
        return case

    return ask


def delivered(desk: Desk) -> Case:
    case = asked(running)(desk)
    desk.seen(case.worker, case.task)
    return case


def observed(desk: Desk) -> Case:
    case = asked(running)(desk)
    desk.seen(case.worker, case.task, observed_age=0.0)
    return case


def forced(desk: Desk) -> Case:
    case = observed(desk)
    desk.wait(GRACE)
    assert len(desk.take(effects.ForceTask)) == 1
    return case


def lingering(desk: Desk) -> Case:
    case = running(desk)
    desk.say(events.TaskLingers(*case, what="a thread"))
    return case


def ended(desk: Desk) -> Case:
    case = running(desk)
    desk.end(case.worker, case.task)
    return case


def superseded(desk: Desk) -> Case:
    """The worker speaks of attempt 1 of a task that it runs in attempt 2."""
    worker = desk.worker()
    desk.running(worker, {"retries": 1})
    desk.end(worker, 1, outcome="failed")
    desk.begin(worker, 1)
    return Case(worker, 1, 1)


def elsewhere(desk: Desk) -> Case:
    """The worker speaks of a task that another one holds."""
    case = running(desk)
    return Case(desk.worker(), case.task, 1)


def orphan(desk: Desk) -> Case:
    """The worker is dead; by its table the task had ended."""
    case = running(desk)
    desk.exit(case.worker, -9, {case.task: "completed"})
    return case


def dead(desk: Desk) -> Case:
    """The worker is dead, and so is the task."""
    case = running(desk)
    desk.exit(case.worker)
    return case


def never(desk: Desk) -> Case:
    """No worker of this incarnation was ever registered."""
    del desk
    return Case(Incarnation(77), 1, 1)


STATES: dict[str, Callable[[Desk], Case]] = {
    "unknown": unknown,
    "queued": queued,
    "assigned": assigned,
    "running": running,
    "asked assigned": asked(assigned),
    "asked running": asked(running),
    "delivered": delivered,
    "observed": observed,
    "forced": forced,
    "lingering": lingering,
    "ended": ended,
    "superseded": superseded,
    "elsewhere": elsewhere,
    "orphan": orphan,
    "dead": dead,
    "never": never,
}

# --- the events -----------------------------------------------------------------------------------

EVENTS: dict[str, Callable[[Case], events.Event]] = {
    "begun": lambda case: events.TasksBegun(case.worker, [(case.task, case.attempt, 0.0)]),
    "ended": lambda case: events.TasksEnded(case.worker, [ended_row(case.task, case.attempt)]),
    "delivered": lambda case: events.StopsSeen(
        case.worker, [(case.task, case.attempt, "running", 0.0, None)]
    ),
    "observed": lambda case: events.StopsSeen(
        case.worker, [(case.task, case.attempt, "running", 0.0, 0.0)]
    ),
    "lingers": lambda case: events.TaskLingers(*case, what="a thread"),
    "associate": lambda case: events.AssociateAsked(
        case.worker, 1, case.task, case.attempt, "x", None
    ),
    "grace": lambda case: events.GraceAsked(*case, seconds=1.0),
    "progress": lambda case: events.ProgressSaid(
        case.worker, [(case.task, case.attempt, 1.0, None, "")]
    ),
    "waits": lambda case: events.WaitsSaid(case.worker, [(case.task, case.attempt, 7)]),
}

#: Said of the past, or of nothing.
PAST = ("unknown", "queued", "ended", "superseded", "elsewhere", "dead", "never")
#: What follows, as "facts > effects", in the states that are not PAST; "" is nothing.
FOLLOWS: dict[str, dict[str, str]] = {
    "begun": {"assigned": "TaskBegan >", "asked assigned": "TaskBegan >"},
    "ended": {
        "assigned": "TaskEnded > TakeEnds SendResults",
        "running": "TaskEnded > TakeEnds SendResults",
        "asked assigned": "TaskEnded StopEnded > TakeEnds SendResults AnswerStop",
        "asked running": "TaskEnded StopEnded > TakeEnds SendResults AnswerStop",
        "delivered": "TaskEnded StopEnded > TakeEnds SendResults AnswerStop",
        "observed": "TaskEnded StopEnded > TakeEnds SendResults AnswerStop",
        "forced": "TaskEnded StopEnded > TakeEnds SendResults Log AnswerStop",
        "lingering": "TaskEnded > TakeEnds SendResults",
        "orphan": "TaskEnded > TakeEnds SendResults",
    },
    "delivered": {"asked assigned": "StopDelivered >", "asked running": "StopDelivered >"},
    "observed": {
        "asked assigned": "StopDelivered StopObserved >",
        "asked running": "StopDelivered StopObserved >",
        "delivered": "StopObserved >",
    },
    "lingers": {state: "TaskLingering >" for state in STATES if state not in (*PAST, "lingering")},
    "associate": {
        state: "TaskAssociated > AnswerAssociate" for state in STATES if state not in PAST
    },
    "grace": {
        "asked assigned": "ForceMoved >",
        "asked running": "ForceMoved >",
        "delivered": "ForceMoved >",
        "observed": "ForceMoved >",
    },
    "progress": {},
    "waits": {},
}
#: And in those that are.
FOLLOWS_PAST = {"ended": "> TakeEnds", "associate": "> AnswerAssociate"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_what_follows(event: str, state: str) -> None:
    desk = Desk()
    desk.session()
    case = STATES[state](desk)
    before = desk.registry.freeze()
    desk.say(EVENTS[event](case))
    expected = FOLLOWS_PAST.get(event, "") if state in PAST else FOLLOWS[event].get(state, "")
    if event == "ended" and state in ("dead", "never"):
        expected = ""  # nobody is there to be told
    said = [type(fact).__name__ for fact in desk.facts]
    done = [type(effect).__name__ for effect in desk.effects]
    assert " ".join([*said, ">", *done]) == (expected or ">").strip()
    if state in PAST:
        assert desk.registry.freeze() == before
    if event == "associate" and state in PAST:
        assert desk.one(effects.AnswerAssociate) == (
            case.worker,
            1,
            "TaskNotFoundError",
            "this attempt has ended",
        )


@pytest.mark.parametrize("state", ["asked running", "delivered", "observed"])
def test_grace_moves_the_time_of_force_alone(state: str) -> None:
    desk = Desk()
    desk.session()
    case = STATES[state](desk)
    before = desk.registry.timers.when(("force", case.task))
    assert before is not None
    desk.say(EVENTS["grace"](case))
    assert desk.registry.timers.when(("force", case.task)) == before + 1.0


@pytest.mark.parametrize("state", ["assigned", "running", "orphan", "forced"])
def test_progress_is_shown_and_decides_nothing(state: str) -> None:
    desk = Desk()
    desk.session()
    case = STATES[state](desk)
    desk.say(EVENTS["progress"](case))
    desk.expect_nothing()
    assert desk.task(case.task).progress == (1.0, None, "")


@pytest.mark.parametrize("state", STATES)
def test_an_end_that_is_said_twice_is_taken_twice_and_recorded_once(state: str) -> None:
    desk = Desk()
    desk.session()
    case = STATES[state](desk)
    desk.say(EVENTS["ended"](case))
    alive = case.worker in desk.registry.state.workers
    before = desk.registry.freeze()
    desk.say(EVENTS["ended"](case))
    desk.expect_facts()
    desk.expect(*([effects.TakeEnds] if alive else []))
    assert desk.registry.freeze() == before


def test_it_no_longer_lingers() -> None:
    desk = Desk()
    desk.session()
    case = lingering(desk)
    desk.say(events.TaskLingers(*case, what=""))
    desk.expect_facts(facts.TaskLingering(1, ""))


@pytest.mark.parametrize(
    ("outcome", "attempts"), [("failed", 3), ("crashed", 3), ("completed", 1), ("cancelled", 1)]
)
def test_retries(outcome: str, attempts: int) -> None:
    """A failure is tried again, in the labels of the spawn, until its retries are used up."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.spawn({"retries": 2, "tenant_id": "x"})
    for attempt in range(1, attempts + 1):
        assert (desk.task(1).attempt, desk.task(1).tenant_id) == (attempt, "x")
        desk.begin(worker, 1)
        desk.say(events.AssociateAsked(worker, 1, 1, attempt, "y", None))
        desk.end(worker, 1, attempt, outcome=outcome)
    assert desk.life(1) == f"{outcome} RETURNED"
    assert [each.attempt for each in desk.registry.state.history.values()] == [attempts]


def test_a_retry_says_so() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"retries": 2, "name": "n"})
    desk.end(worker, 1, outcome="failed")
    desk.expect_facts(facts.TaskRequeued(1, 2, 1), facts.TaskAssigned(1, worker, 2))
    desk.expect(
        effects.TakeEnds(worker, [(1, 1)]),
        effects.Log("WARNING", "task 1.1 gc 'n' failed; 2 retries left: it is queued again"),
        effects.AssignTasks,
    )


@pytest.mark.parametrize(
    ("spawned", "moved"), [("x", "x"), ("x", "y"), ("y", "x")], ids=["both", "its spawn", "itself"]
)
def test_a_failure_in_a_closed_scope_is_not_tried_again(spawned: str, moved: str) -> None:
    """Its next attempt would start in the scope that somebody keeps closed."""
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"retries": 2, "tenant_id": spawned})
    desk.associate(worker, 1, moved)
    desk.stop(tenant_id="x", hold=True, caller=(1, 1))
    desk.end(worker, 1, outcome="failed")
    assert desk.life(1) == "failed RETURNED"


def test_a_new_attempt_starts_afresh() -> None:
    desk = Desk()
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"retries": 1})
    desk.say(events.TaskLingers(worker, 1, 1, "a thread"))
    desk.end(worker, 1, outcome="failed")
    task = desk.task(1)
    assert (task.lingering, task.started_at, task.attempt, task.retries) == ("", None, 2, 0)
    assert task.assign_number == 2


# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "started"), [(0.5, 4.5), (99.0, 2.0)], ids=["as said", "not before its spawn"]
)
def test_when_it_began(age: float, started: float) -> None:
    for late in (False, True):
        desk = Desk()
        desk.session()
        desk.wait(2.0)
        worker = desk.worker()
        desk.spawn()
        desk.wait(3.0)
        if late:  # the word of its beginning was lost
            desk.end(worker, 1, begun_age=age)
            assert desk.one(facts.TaskEnded).started_at == WALL + started
        else:
            desk.say(events.TasksBegun(worker, [(1, 1, age)]))
            desk.expect_facts(facts.TaskBegan(1, WALL + started))


@pytest.mark.parametrize(
    ("begun_age", "ended_age", "at"),
    [(1.0, 0.5, 4.5), (1.0, 99.0, 4.0), (None, 0.5, 4.5), (None, 99.0, 2.0)],
)
def test_when_it_ended(begun_age: float | None, ended_age: float, at: float) -> None:
    """Not before it began, nor before its spawn."""
    desk = Desk()
    desk.session()
    desk.wait(2.0)
    worker = desk.worker()
    desk.spawn()
    desk.wait(3.0)
    desk.end(worker, 1, begun_age=begun_age, ended_age=ended_age)
    assert desk.one(facts.TaskEnded).at == WALL + at


def test_the_history_is_bounded() -> None:
    desk = Desk(history=2)
    desk.session()
    worker = desk.worker()
    desk.running(worker, {}, {}, {})
    for task in (2, 1, 3):
        desk.end(worker, task)
    assert list(desk.registry.state.history) == [1, 3]


# --- completeness ---------------------------------------------------------------------------------


def test_every_event_is_handled() -> None:
    """Those of the broker and of time have no handler of their own kind."""
    known = set(HANDLERS) | {events.EpochBegan, events.SystemStopAsked, events.Tick}
    assert known == set(events.Event.__args__)


def test_the_epoch_is_noted() -> None:
    desk = Desk()
    desk.say(events.EpochBegan(7))
    desk.expect_facts(facts.EpochStarted(7, desk.wall, desk.tick, "", "", default_bound(LEASE)))
    assert (desk.registry.state.epoch, desk.registry.state.epoch_at) == (7, desk.wall)


def test_ticks_and_slices_for_nothing_are_harmless() -> None:
    desk = Desk()
    desk.say(events.Tick())
    desk.expect_nothing()
    desk.say(events.Continue(StopId(1)))
    desk.expect_nothing()


@pytest.mark.parametrize("came", State)
@pytest.mark.parametrize("to", State)
def test_the_table_of_transitions_is_kept(came: State, to: State) -> None:
    desk = Desk()
    desk.session()
    desk.spawn({"name": "n", "tenant_id": "x"})
    task = desk.task(1)
    task.state = came
    if to in LEGAL[came]:
        move(task, to)
        assert task.state is to
        return
    with pytest.raises(RegistryFault, match=r"can't go from .* to .*: task 1\.1 \(gc 'n' of"):
        move(task, to)
    assert task.state is came
