"""What is said of many tasks at once leads to where the same said of each leads."""

from collections import defaultdict
from itertools import chain
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from quiesce.registry import effects, events, facts
from quiesce.registry.effects import Effect
from quiesce.registry.ids import Incarnation, SpawnNumber, TaskId
from quiesce.registry.limits import KindLimits
from quiesce.registry.rows import AlikeSpawns, EndedRow, one_by_one
from quiesce.registry.scheduling import deal
from quiesce.registry.states import State as TaskState
from registry_helpers import Desk, answer, ended_row, session_id, spawn_row

SOLO = {"runtime": "solo"}


@pytest.fixture
def desk() -> Desk:
    """With one client."""
    found = Desk()
    found.session("A")
    return found


def end_all(desk: Desk, worker: int, task_ids: list[int], **changes: Any) -> None:
    """One message says that they have ended."""
    rows = [ended_row(each, int(desk.task(each).attempt), **changes) for each in task_ids]
    desk.say(events.TasksEnded(Incarnation(worker), rows))


# --- spawns ---------------------------------------------------------------------------------------


def test_spawns_that_are_alike_are_one_fact(desk: Desk) -> None:
    desk.spawn({}, {}, {}, {})
    fact = desk.one(facts.TasksRegistered)
    assert (fact.first, fact.last, fact.number, fact.arguments) == (1, 4, 1, [])
    assert desk.answers() == [answer(n, n) for n in (1, 2, 3, 4)]


def test_they_may_differ_in_their_arguments(desk: Desk) -> None:
    desk.spawn(*({"arguments": bytes([n])} for n in range(4)))
    assert desk.one(facts.TasksRegistered).arguments == [b"\0", b"\1", b"\2", b"\3"]
    assert [desk.task(n).spawn.arguments for n in (1, 2, 3, 4)] == [b"\0", b"\1", b"\2", b"\3"]


def test_few_are_told_singly(desk: Desk) -> None:
    desk.spawn({}, {}, {})
    desk.expect_facts(*[facts.TaskRegistered] * 3)


@pytest.mark.parametrize(
    "other",
    [{"name": "other"}, {"tenant_id": "T"}, {"retries": 1}, {"function": b"g"}, {"timeout": 9.0}],
)
def test_what_differs_is_told_apart(desk: Desk, other: dict[str, Any]) -> None:
    desk.spawn({}, {}, {}, {}, other, {}, {}, {}, {})
    desk.expect_facts(facts.TasksRegistered, facts.TaskRegistered, facts.TasksRegistered)
    assert [desk.task(n).spawn.number for n in (1, 5, 6)] == [1, 5, 6]


def test_each_with_a_unique_key_is_looked_at(desk: Desk) -> None:
    desk.spawn(*[{"unique_key": "one"}] * 4)
    desk.expect_facts(facts.TaskRegistered, *[facts.SpawnJoined] * 3)


def test_one_that_is_too_large_is_refused_alone() -> None:
    desk = Desk(payload_limit=10)
    desk.session("A")
    desk.spawn({}, {}, {}, {"arguments": b"a" * 9}, {})
    assert [row.error for row in desk.answers()] == [None] * 3 + ["PayloadTooLargeError", None]


def test_as_many_as_there_is_room_for(desk: Desk) -> None:
    desk.spawn(*[{}] * 998)
    desk.spawn(*[{}] * 4)
    assert [row.error for row in desk.answers()] == [None] * 2 + ["QueueFullError"] * 2


def test_none_of_a_closed_scope(desk: Desk) -> None:
    desk.stop(kind="gc", keep_closed=True)
    desk.spawn(*[{}] * 4)
    assert [row.error for row in desk.answers()] == ["ScopeClosedError"] * 4
    assert desk.registry.state.tasks == {}


def test_what_comes_again_is_answered_again(desk: Desk) -> None:
    desk.spawn(*[{}] * 4)
    said = desk.answers()
    rows = [desk.task(n).spawn._replace(number=SpawnNumber(n)) for n in (1, 2, 3, 4)]
    desk.say(events.SpawnsAsked(session_id("A"), rows, False))
    assert desk.answers() == said
    assert desk.facts == []


# --- assignments ----------------------------------------------------------------------------------


def test_a_worker_is_handed_many_by_one_fact(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{}] * 6)
    assert desk.one(facts.TasksAssigned) == facts.TasksAssigned(worker, 1, [1, 2, 3, 4, 5])
    assert [(row.assign_number, row.task_id) for row in desk.assigned(worker)] == [
        (n, n) for n in range(1, 6)
    ]
    assert desk.life(6) == "queued"


def test_it_goes_on_with_its_numbers(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn()
    desk.spawn(*[{}] * 4)
    assert desk.one(facts.TasksAssigned).number == 2
    assert [row.assign_number for row in desk.assigned(worker)] == [2, 3, 4, 5]


def test_who_holds_the_least_gets_the_next(desk: Desk) -> None:
    one = desk.worker("pool", slots=6)
    desk.spawn({}, {})
    two = desk.worker("pool", slots=6)
    desk.spawn(*[{}] * 6)
    assert [row.task_id for row in desk.assigned(two)] == [3, 4, 6, 8]
    assert [row.task_id for row in desk.assigned(one)] == [5, 7]


def test_limits_are_kept() -> None:
    desk = Desk(kinds=[KindLimits(name="gc", max_running=3)])
    desk.session("A")
    desk.worker("pool", slots=9)
    desk.spawn(*[{}] * 6)
    assert len(desk.assigned()) == 3


def test_tenants_have_their_turns(desk: Desk) -> None:
    desk.spawn(*[{"tenant_id": "T"}] * 4, *[{"tenant_id": "U"}] * 4)
    desk.worker("pool", slots=4)
    assert [row.task_id for row in desk.assigned()] == [1, 5, 2, 6]


def test_who_came_back_is_first_again(desk: Desk) -> None:
    worker = desk.worker("pool", slots=4)
    desk.spawn(*[{}] * 8)
    desk.exit(worker, phases={})
    desk.worker("pool", slots=5)
    assert [row.task_id for row in desk.assigned()] == [1, 2, 3, 4, 5]


# --- ends -----------------------------------------------------------------------------------------


def test_ends_of_which_no_more_is_to_be_said_are_one_fact(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{}] * 5)
    end_all(desk, worker, [1, 2, 3, 4, 5])
    assert desk.one(facts.TasksCompleted).task_ids == [1, 2, 3, 4, 5]
    assert [row.task_id for row in desk.results()] == [1, 2, 3, 4, 5]
    assert [desk.life(n) for n in (1, 5)] == ["completed RETURNED"] * 2


def test_an_end_that_is_said_twice_in_one_message_counts_once(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{}] * 5)
    rows = [*map(ended_row, (1, 2, 3, 4, 1)), ended_row(4, outcome="failed", text="no")]
    desk.say(events.TasksEnded(Incarnation(worker), rows))
    assert desk.one(facts.TasksCompleted).task_ids == [1, 2, 3, 4]
    assert [desk.life(n) for n in (4, 5)] == ["completed RETURNED", "assigned"]


def test_they_are_told_in_their_order(desk: Desk) -> None:
    worker = desk.worker("pool", slots=9)
    desk.spawn(*[{}] * 9)
    rows = [ended_row(n) for n in range(1, 10)]
    rows[4] = ended_row(5, outcome="failed", text="no")
    desk.say(events.TasksEnded(Incarnation(worker), rows))
    desk.expect_facts(facts.TasksCompleted, facts.TaskEnded, facts.TasksCompleted)
    assert [row.task_id for row in desk.results()] == list(range(1, 10))


def test_each_of_them_is_told_as_what_it_was(desk: Desk) -> None:
    """Together they end, but by different clients, tenants and times they came."""
    desk.session("B")
    worker = desk.worker("pool", slots=6)
    desk.spawn({}, {"tenant_id": "T"}, {"name": "x"})
    desk.wait(3.0)
    desk.spawn({"name": "x"}, {"tenant_id": "T"}, session="B")
    desk.spawn({})
    desk.wait(1.0)
    rows = [ended_row(n, begun_age=0.9, ended_age=n / 10, result=bytes([n])) for n in range(1, 7)]
    desk.say(events.TasksEnded(Incarnation(worker), rows))
    now = desk.wall
    told = {
        effect.session: list(one_by_one(effect.rows)) for effect in desk.take(effects.SendResults)
    }
    assert {name: [row.task_id for row in each] for name, each in told.items()} == {
        session_id("A"): [1, 2, 3, 6],
        session_id("B"): [4, 5],
    }
    assert all(row.result == bytes([row.task_id]) for each in told.values() for row in each)
    history = desk.registry.state.history
    assert list(history) == [1, 2, 3, 4, 5, 6]
    ended = list(history.values())
    assert [each.tenant_id for each in ended] == [None, "T", None, None, "T", None]
    assert [each.name for each in ended] == ["t", "t", "x", "x", "t", "t"]
    assert [now - each.created_at for each in ended] == pytest.approx([4.0] * 3 + [1.0] * 3)
    assert [now - (each.started_at or 0.0) for each in ended] == pytest.approx([0.9] * 6)
    assert [now - each.ended_at for each in ended] == pytest.approx(
        [each.id / 10 for each in ended]
    )


@pytest.mark.parametrize(
    ("spawn", "row"),
    [
        ({}, {"outcome": "failed"}),
        ({}, {"text": "something"}),
        ({"timeout": 5.0}, {}),
        ({"restart": "always"}, {}),
    ],
)
def test_an_end_from_which_something_may_follow_is_told_singly(
    desk: Desk, spawn: dict[str, Any], row: dict[str, Any]
) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[spawn] * 5)
    end_all(desk, worker, [1, 2, 3, 4, 5], **row)
    assert desk.take(facts.TasksCompleted) == []


def test_what_a_stop_waits_for_is_told_singly(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{}] * 5)
    desk.stop(kind="gc")
    end_all(desk, worker, [1, 2, 3, 4, 5])
    assert desk.take(facts.TasksCompleted) == []
    assert [row[0] for row in desk.ends()] == [1, 2, 3, 4, 5]


def test_a_dead_workers_last_words_are_told_singly(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{}] * 5)
    desk.begin(worker, 1, 2, 3, 4, 5)
    desk.exit(worker, phases=dict.fromkeys((1, 2, 3, 4, 5), "completed"))
    end_all(desk, worker, [1, 2, 3, 4, 5])
    assert desk.take(facts.TasksCompleted) == []
    assert desk.registry.state.workers == {}


# --- all of it ------------------------------------------------------------------------------------

LABELS = st.fixed_dictionaries(
    {},
    optional={
        "runtime": st.sampled_from(["pool", "solo"]),
        "kind": st.sampled_from(["gc", "flush"]),
        "tenant_id": st.sampled_from(["T", "U"]),
        "arguments": st.sampled_from([b"1", b"2"]),
        "unique_key": st.just("k"),
        "timeout": st.just(50.0),
        "retries": st.just(1),
    },
)
BATCHES = st.tuples(LABELS, st.integers(1, 6)).map(lambda pair: [pair[0]] * pair[1])
SPAWNS = st.lists(BATCHES, min_size=1, max_size=3).map(lambda batches: [*chain(*batches)])
OUTCOMES = st.sampled_from(["completed", "completed", "completed", "failed"])
STEPS = st.one_of(
    st.tuples(st.just("spawn"), SPAWNS),
    st.tuples(st.just("end"), st.lists(OUTCOMES, min_size=1, max_size=8)),
    st.tuples(st.just("begin"), st.integers(1, 8)),
    st.tuples(st.just("exit"), st.integers(0, 3)),
    st.tuples(st.just("worker"), st.sampled_from(["pool", "solo"])),
    st.tuples(st.just("stop"), st.fixed_dictionaries({"kind": st.sampled_from(["gc", "flush"])})),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 60.0])),
)


def take(desk: Desk, step: tuple[str, Any]) -> None:
    """One step, which what stands makes a definite one."""
    what, how = step
    state = desk.registry.state
    workers = [each for each in state.workers.values() if each.status is None]
    if what == "spawn":
        desk.spawn(*how)
    elif what == "worker":
        desk.worker(how)
    elif what == "stop":
        desk.stop(**how, timeout=20.0)
    elif what == "wait":
        desk.wait(how)
    elif what == "exit" and workers:
        desk.exit(workers[how % len(workers)].incarnation, phases={})
    elif what == "begin":
        for worker in workers:
            held = [n for n in worker.tasks if state.tasks[n].state is TaskState.ASSIGNED]
            desk.begin(worker.incarnation, *held[:how])
    elif what == "end":
        for worker in workers:
            rows: list[EndedRow] = []
            for outcome, task_id in zip(how, list(worker.tasks), strict=False):
                attempt = int(state.tasks[task_id].attempt)
                result = b"r" if len(how) % 2 else bytes([task_id % 3])
                age = 10e-6 * (1 + task_id % 2)
                made = {"outcome": outcome, "begun_age": age, "result": result}
                rows.append(ended_row(task_id, attempt, **made))
            desk.say(events.TasksEnded(worker.incarnation, rows))
    desk.go_on()


def told(desk: Desk) -> dict[Any, list[Any]]:
    """Who is told what, each in its order."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for effect in desk.effects:
        rows: list[Effect] | Any = effect
        to: Any = type(effect)
        if isinstance(effect, (effects.AnswerSpawns, effects.SendResults, effects.AssignTasks)):
            to, rows = (type(effect), effect[0]), effect.rows
        found[to] += rows if isinstance(rows, list) else [rows]
    return found


def stands(desk: Desk) -> tuple[Any, ...]:
    """All of it, but for the numbers of the spawns: rows that are alike are one row."""
    head, tasks, *rest = desk.registry.freeze()
    return (head, [(task[0], task[1][1:], *task[2:]) for task in tasks], *rest)


def lead_to(steps: list[tuple[str, Any]], least: int) -> list[Any]:
    """What is told and what stands after each step, if so many that are alike make one fact."""
    desk = Desk(alike=least)
    desk.session("A")
    for runtime, slots in (("pool", 8), ("pool", 3), ("solo", 1)):
        desk.worker(runtime, slots=slots)
    found = []
    for step in steps:
        take(desk, step)
        found.append((told(desk), stands(desk)))
    return found


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(st.lists(STEPS, max_size=12))
def test_it_is_the_same_however_many_make_one_fact(steps: list[tuple[str, Any]]) -> None:
    singly = lead_to(steps, 10**9)
    for least in (1, 2, 4):
        same = lead_to(steps, least) == singly
        assert same, least


@pytest.mark.parametrize("own", [False, True])
def test_each_result_is_told_now_and_again_until_it_is_taken(desk: Desk, own: bool) -> None:
    worker = desk.worker("pool", slots=6)
    desk.spawn(*[{}] * 6)
    results = [bytes([n * own]) for n in range(6)]
    rows = [ended_row(n, result=each) for n, each in enumerate(results, 1)]
    desk.say(events.TasksEnded(Incarnation(worker), rows))
    told = [(row.task_id, row.result) for row in desk.results()]
    assert told == list(enumerate(results, 1))
    desk.say(events.ResultsTaken(session_id("A"), [1, 4]))
    desk.say(events.SessionAttached(session_id("A")))
    again = [(row.task_id, row.result) for row in desk.results()]
    assert again == [told[place] for place in (1, 2, 4, 5)]


def test_many_ends_of_an_earlier_attempt_are_only_taken(desk: Desk) -> None:
    worker = desk.worker("pool", slots=5)
    desk.spawn(*[{"retries": 1}] * 5)
    end_all(desk, worker, [1, 2, 3, 4, 5], outcome="failed")
    assert [row.attempt for row in desk.assigned(worker)] == [2] * 5
    rows = [ended_row(each, 1, begun_age=0.5) for each in (1, 2, 3, 4, 5)]
    desk.say(events.TasksEnded(Incarnation(worker), rows))
    assert desk.facts == []
    assert desk.one(effects.TakeEnds).rows == [(each, 1) for each in (1, 2, 3, 4, 5)]


def test_spawns_are_the_same_as_one_and_one_by_one(desk: Desk) -> None:
    """Those that come for the first time, and those that come again."""
    other = Desk()
    other.session("A")
    row = spawn_row(1, arguments=b"\1")
    runs = [AlikeSpawns(row, 3), AlikeSpawns(spawn_row(4), 4, [b"\1", b"", b"\2", b"\3"])]
    for said in (runs, runs[1:], [AlikeSpawns(row, 9)], [AlikeSpawns(spawn_row(11), 4)]):
        desk.say(events.SpawnsAsked(session_id("A"), said, False))
        other.say(events.SpawnsAsked(session_id("A"), list(one_by_one(said)), False))
        assert desk.effects == other.effects
        assert stands(desk) == stands(other)
    assert desk.one(effects.WantHello)
    assert [desk.task(n).spawn.arguments for n in range(1, 10)] == [
        *[b"\1"] * 3,
        *(b"\1", b"", b"\2", b"\3"),
        *[b"\1"] * 2,
    ]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
)
def test_many_are_dealt_out_as_one_after_the_other(
    workers: list[tuple[int, int]], share: float
) -> None:
    free = [
        (held, Incarnation(number), held + room) for number, (held, room) in enumerate(workers, 1)
    ]
    count = int(share * sum(room for _, room in workers))
    task_ids = [TaskId(number) for number in range(1, count + 1)]
    hands: dict[int, list[int]] = {}
    left = list(free)
    for task_id in task_ids:
        held, who, most = min(left)
        hands.setdefault(who, []).append(task_id)
        left.remove((held, who, most))
        if held + 1 < most:
            left.append((held + 1, who, most))
    dealt = deal(task_ids, free)
    assert dealt == hands
    assert list(dealt) == list(hands), "in the order of their first ones"
