"""Workers whose tasks are short are handed more than they have slots for, and give back what they can't begin."""

from typing import Any

import pytest

from quiesce.registry import effects, events, scheduling
from quiesce.registry.ids import Incarnation, TaskId
from quiesce.registry.scheduling import deal
from registry_helpers import Desk


@pytest.fixture
def desk() -> Desk:
    """With one client."""
    found = Desk()
    found.session("A")
    return found


def quick(desk: Desk, runtime: str = "solo") -> Incarnation:
    """A worker of one slot that has run so many tasks in no time that it may be handed some ahead."""
    worker = desk.worker(runtime)
    for _ in range(10):
        task = desk.spawn({"runtime": runtime})
        desk.end(worker, task, begun_age=10e-6)
    return worker


def give_back(desk: Desk, worker: int, task_id: int, number: int) -> None:
    attempt = int(desk.task(task_id).attempt)
    desk.say(events.TasksGivenBack(Incarnation(worker), [(task_id, attempt, number)]))


def test_a_worker_that_nobody_knows_gets_what_it_has_slots_for(desk: Desk) -> None:
    worker = desk.worker("solo")
    desk.spawn(*({"runtime": "solo"},) * 3)
    assert len(desk.assigned(worker)) == 1


def test_who_is_quick_is_handed_some_ahead(desk: Desk) -> None:
    worker = quick(desk)
    desk.spawn(*({"runtime": "solo"},) * 3)
    assert len(desk.assigned(worker)) == 3


def test_a_call_of_a_function_that_it_does_not_know_is_not(desk: Desk) -> None:
    """Nobody knows how long it takes, and whether it lets anything be given back."""
    worker = quick(desk)
    desk.spawn(*({"runtime": "solo"},) * 2, {"runtime": "solo", "function": b"another"})
    assert len(desk.assigned(worker)) == 2


def test_behind_one_that_is_handed_over_now_nothing_waits(desk: Desk) -> None:
    worker = quick(desk)
    desk.spawn({"runtime": "solo", "function": b"another"}, *({"runtime": "solo"},) * 5)
    assert len(desk.assigned(worker)) == 1


@pytest.mark.parametrize("first_is_quick", [False, True])
def test_what_goes_one_by_one_is_not_dealt_out_first(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, first_is_quick: bool
) -> None:
    """That looks at as many as the workers may hold, at each end again."""
    dealt: list[int] = []

    def noted(task_ids: list[TaskId], free: list[tuple[int, Incarnation, int]]) -> Any:
        dealt.append(len(task_ids))
        return deal(task_ids, free)

    monkeypatch.setattr(scheduling, "deal", noted)
    worker = quick(desk)
    first = desk.spawn() + 1
    long = {"runtime": "solo", "function": b"f" * 2000}  # too long to be remembered
    desk.spawn(*[{"runtime": "solo"} if first_is_quick else long, long] * 25)
    for task in (first, first + 1, first + 2):
        desk.end(worker, task, begun_age=10e-6)
        assert len(desk.assigned(worker)) == 1
    assert dealt == []


def test_behind_one_nothing_waits(desk: Desk) -> None:
    worker = quick(desk)
    first = desk.spawn({"runtime": "solo", "function": b"another"})
    desk.spawn(*({"runtime": "solo"},) * 2)
    assert desk.assigned(worker) == []
    desk.end(worker, first, begun_age=10e-6)
    assert len(desk.assigned(worker)) == 2
    desk.spawn(*({"runtime": "solo", "function": b"another"},) * 2)
    assert len(desk.assigned(worker)) == 2


def test_where_tasks_share_a_process_functions_do_not_matter(desk: Desk) -> None:
    worker = quick(desk, "pool")
    desk.spawn(*({"function": b"%d" % number} for number in range(7)))
    assert len(desk.assigned(worker)) == 7


def test_a_slow_task_ends_that_at_once(desk: Desk) -> None:
    worker = quick(desk)
    task = desk.spawn({"runtime": "solo"})
    desk.end(worker, task, begun_age=1.0)
    desk.spawn(*({"runtime": "solo"},) * 3)
    assert len(desk.assigned(worker)) == 1


def test_what_is_given_back_waits_again_and_the_worker_gets_no_more_than_it_can_begin(
    desk: Desk,
) -> None:
    worker = quick(desk)
    first, second = (desk.spawn({"runtime": "solo"}) for _ in range(2))
    desk.begin(worker, first)
    number = desk.task(second).assign_number
    give_back(desk, worker, second, number)
    assert desk.one(effects.TakeGivenBack).rows == [(second, 1, number)]
    assert desk.life(second) == "queued"
    other = desk.worker("solo")
    assert [row.task_id for row in desk.assigned(other)] == [second]


def test_a_stop_finds_what_was_given_back(desk: Desk) -> None:
    worker = quick(desk)
    tasks = [desk.spawn({"runtime": "solo"}) for _ in range(2)]
    desk.begin(worker, tasks[0])
    desk.stop(runtime="solo")
    give_back(desk, worker, tasks[1], desk.task(tasks[1]).assign_number)
    assert desk.life(tasks[1]) == "cancelled NEVER_RAN"


def test_a_dead_worker_gives_nothing_back_that_has_ended_there(desk: Desk) -> None:
    """The two contradict each other, and the account of the process was kept to the end."""
    worker = desk.worker()
    desk.spawn({})
    number = desk.task(1).assign_number
    desk.exit(worker, -9, {1: "completed"})
    give_back(desk, worker, 1, number)
    assert desk.life(1) == "assigned"
    desk.wait(1.0)
    assert [(each.task_id, each.outcome) for each in desk.results()] == [(1, "completed")]


def test_what_is_given_back_twice_is_taken_back_once(desk: Desk) -> None:
    """It was assigned again meanwhile, to the same worker in the same attempt, and may have begun there."""
    worker = quick(desk)
    first, second = (desk.spawn({"runtime": "solo"}) for _ in range(2))
    number = desk.task(second).assign_number
    desk.begin(worker, first)
    give_back(desk, worker, second, number)
    desk.end(worker, first)
    assert [row.task_id for row in desk.assigned(worker)] == [second]
    give_back(desk, worker, second, number)
    assert (desk.life(second), desk.assigned()) == ("assigned", [])
    assert desk.one(effects.TakeGivenBack).rows == [(second, 1, number)]
