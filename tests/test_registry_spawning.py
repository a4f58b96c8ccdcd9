"""Spawns: refused with advice, counted, joined, parked; and handed to workers in turn."""

import pytest

from quiesce.registry import effects, events, facts
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.records import Blob
from registry_helpers import WALL, Desk, answer, assign_row, fact_types, session_id, spawn_row


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.session()
    return desk


def test_a_spawn_is_registered_before_it_starts_and_answered(desk: Desk) -> None:
    desk.spawn()
    desk.expect_facts(facts.TaskRegistered(1, session_id("A"), 1, WALL, spawn_row(1)))
    desk.expect(effects.AnswerSpawns(session_id("A"), [answer(1, 1)]))
    assert desk.life(1) == "queued"


def test_a_free_worker_gets_it_at_once_with_all_that_it_needs(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn({"tenant_id": "x", "timeline_id": "l", "shutdown_process_on_error": True})
    desk.expect(
        effects.AnswerSpawns(session_id("A"), [answer(1, 1)]),
        effects.AssignTasks(
            worker,
            [assign_row(1, 1, tenant_id="x", timeline_id="l", shutdown_process_on_error=True)],
        ),
    )
    assert desk.life(1) == "assigned"


def test_a_session_that_is_not_known_is_asked_for_its_hello() -> None:
    desk = Desk()
    desk.spawn(spawn_row(1))
    desk.expect(effects.WantHello(session_id("A")))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"runtime": "pol"},
            "UnknownRuntimeError",
            "unknown runtime 'pol'; did you mean 'pool'? Known: pool, solo",
        ),
        (
            {"kind": "flash"},
            "UnknownKindError",
            "unknown kind 'flash'; did you mean 'flush'? Known: flush, gc, listen",
        ),
        (
            {"kind": "nosuch"},  # near to none
            "UnknownKindError",
            "unknown kind 'nosuch'. Known: flush, gc, listen",
        ),
        (
            {"arguments": Blob(90), "function": Blob(11), "name": "big"},
            "PayloadTooLargeError",
            (
                "nothing was started: function and arguments of 'big' have 101 bytes, the limit is "
                "100; pass a path or a reference, or raise payload_limit"
            ),
        ),
        (
            {"parent": (7, 1)},
            "TaskCancelledError",
            "nothing was started: the attempt 7.1 that made this spawn has ended",
        ),
    ],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    changes: dict[str, object], error: str, text: str
) -> None:
    desk = Desk(payload_limit=100)
    desk.session()
    desk.spawn(changes)
    desk.expect_facts(facts.SpawnRefused(session_id("A"), 1, error, text))
    desk.expect(effects.AnswerSpawns(session_id("A"), [answer(1, 0, error, text)]))


def test_a_payload_of_just_the_limit_passes() -> None:
    desk = Desk(payload_limit=100)
    desk.session()
    assert desk.spawn({"arguments": Blob(90), "function": Blob(10)}) == 1


def test_an_endless_name_is_cut_before_it_is_compared(desk: Desk) -> None:
    desk.spawn({"kind": "x" * 1_000_000})
    assert len(desk.answers()[0].text) < 300


def test_a_full_queue_refuses_at_once_and_loses_nothing() -> None:
    desk = Desk(runtimes=[RuntimeLimits(name="pool", slots=3, max_queue=2)])
    desk.session()
    desk.spawn({}, {}, {})
    assert [(each.task_id, each.error) for each in desk.answers()] == [
        (1, None),
        (2, None),
        (0, "QueueFullError"),
    ]
    assert desk.answers()[2].text == (
        "nothing was started: the queue of runtime 'pool' holds 2 of at most 2 tasks, and 1 more "
        "were asked for; wait for some to end, or raise max_queue"
    )
    desk.worker()
    assert len(desk.assigned()) == 2
    assert desk.spawn({}) == 3


def test_a_spawn_by_an_attempt_that_goes_on_is_taken(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {})
    assert desk.spawn({"parent": (1, 1)}) == 2
    desk.end(worker, 1)
    desk.spawn({"parent": (1, 1)})
    assert desk.answers()[0].error == "TaskCancelledError"


def test_a_spawn_by_an_older_attempt_is_refused(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, {"retries": 1})
    desk.end(worker, 1, outcome="failed")
    desk.spawn({"parent": (1, 1)})
    assert desk.answers()[0].error == "TaskCancelledError"
    assert desk.spawn({"parent": (1, 2)}) == 2


# --- numbers --------------------------------------------------------------------------------------


def test_a_spawn_that_comes_again_gets_the_same_answer_and_no_second_task(desk: Desk) -> None:
    desk.spawn()
    desk.spawn(spawn_row(1))
    desk.expect_facts()
    desk.expect(effects.AnswerSpawns(session_id("A"), [answer(1, 1)]))


def test_a_refusal_that_comes_again_is_refused_again(desk: Desk) -> None:
    desk.spawn({"kind": "gx"})
    first = desk.answers()
    desk.spawn(spawn_row(1, kind="gx"))
    assert desk.answers() == first
    desk.expect_facts()


def test_old_and_new_spawns_in_one_message(desk: Desk) -> None:
    desk.spawn()
    desk.spawn(spawn_row(1), spawn_row(2))
    assert [(each.number, each.task_id) for each in desk.answers()] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("numbers", [(3,), (2, 4), (2, 2), (4, 3)])
def test_a_gap_makes_the_session_say_hello_and_starts_nothing(
    desk: Desk, numbers: tuple[int, ...]
) -> None:
    desk.spawn()
    desk.spawn(*map(spawn_row, numbers))
    desk.expect_facts()
    desk.expect(effects.WantHello(session_id("A")))


def test_sessions_are_numbered_apart(desk: Desk) -> None:
    desk.session("B")
    assert desk.spawn() == 1
    assert desk.spawn(session="B") == 2


# --- all or none ----------------------------------------------------------------------------------


def test_spawn_many_starts_all(desk: Desk) -> None:
    assert desk.spawn({}, {}, {}, atomic=True) == 3


@pytest.mark.parametrize(
    ("odd", "error"),
    [({"kind": "gx"}, "UnknownKindError"), ({"arguments": Blob(200)}, "PayloadTooLargeError")],
)
def test_spawn_many_starts_none_if_one_is_refused(odd: dict[str, object], error: str) -> None:
    desk = Desk(payload_limit=100)
    desk.session()
    desk.spawn({}, odd, {}, atomic=True)
    assert [(each.number, each.error) for each in desk.answers()] == [
        (1, error),
        (2, error),
        (3, error),
    ]
    assert fact_types(desk) == ["SpawnRefused"] * 3
    assert desk.spawn() == 1  # number 4: the refused ones have arrived


def test_spawn_many_starts_none_if_the_queue_has_no_room_for_all() -> None:
    desk = Desk(runtimes=[RuntimeLimits(name="pool", slots=3, max_queue=3)])
    desk.session()
    desk.spawn()
    desk.spawn({}, {}, {}, atomic=True)
    assert {each.error for each in desk.answers()} == {"QueueFullError"}
    assert "holds 1 of at most 3 tasks, and 3 more" in desk.answers()[0].text
    assert desk.spawn({}, {}, atomic=True) == 3


# --- unique keys ----------------------------------------------------------------------------------

KEYED = {"unique_key": "k", "tenant_id": "x"}


def test_a_second_spawn_of_a_key_gets_the_first_task_whatever_the_runtime(desk: Desk) -> None:
    desk.session("B")
    worker = desk.worker()
    desk.running(worker, KEYED)
    desk.spawn({**KEYED, "runtime": "solo"}, session="B")
    desk.expect_facts(facts.SpawnJoined(session_id("B"), 1, 1))
    desk.expect(effects.AnswerSpawns(session_id("B"), [answer(1, 1)]))
    desk.end(worker, 1)
    assert [effect.session for effect in desk.take(effects.SendResults)] == [
        session_id("A"),
        session_id("B"),
    ]


@pytest.mark.parametrize(
    "other", [{"tenant_id": "y"}, {"timeline_id": "l"}, {"kind": "flush"}, {"unique_key": "K"}]
)
def test_a_key_counts_within_kind_tenant_and_timeline(desk: Desk, other: dict[str, str]) -> None:
    desk.spawn(KEYED)
    assert desk.spawn({**KEYED, **other}) == 2


def test_a_key_is_free_again_once_its_holder_has_ended(desk: Desk) -> None:
    worker = desk.worker()
    desk.running(worker, KEYED)
    desk.end(worker, 1)
    assert desk.spawn(KEYED) == 2


def test_the_key_stays_with_the_labels_of_the_spawn(desk: Desk) -> None:
    """associate_with moves the task, not the name under which it was spawned."""
    worker = desk.worker()
    desk.running(worker, KEYED)
    desk.associate(worker, 1, "y")
    desk.spawn(KEYED)
    assert desk.answers()[0].task_id == 1
    assert desk.spawn({**KEYED, "tenant_id": "y"}) == 2


def stopping_holder(desk: Desk) -> int:
    """A task that holds the key and is asked to stop, by name so that no scope is closed."""
    worker = desk.worker()
    desk.running(worker, KEYED)
    desk.stop(task_id=1)
    return worker


def test_a_spawn_whose_holder_is_stopping_waits_for_its_proof(desk: Desk) -> None:
    worker = stopping_holder(desk)
    row = spawn_row(2, **KEYED)
    desk.spawn(row)
    desk.expect_facts(facts.SpawnParked(session_id("A"), 1, row))
    desk.expect()
    desk.obey(worker, 1)
    assert desk.answers() == [answer(2, 2)]
    assert desk.life(2) == "assigned"
    assert len(desk.registry.state.parked) == 0


def test_the_first_parked_spawn_starts_and_the_others_join_it(desk: Desk) -> None:
    worker = stopping_holder(desk)
    desk.session("B")
    desk.spawn(KEYED)
    desk.spawn(KEYED, session="B")
    desk.obey(worker, 1)
    assert [each.task_id for each in desk.answers()] == [2, 2]


def test_a_parked_spawn_that_comes_again_stays_parked_once(desk: Desk) -> None:
    worker = stopping_holder(desk)
    desk.spawn(KEYED)
    desk.spawn(spawn_row(2, **KEYED))
    desk.expect_nothing()
    desk.obey(worker, 1)
    assert len(desk.answers()) == 1


def test_a_holder_in_a_later_slice_of_a_stop_is_stopping_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 1)
    desk.spawn({**KEYED, "runtime": "solo"}, {**KEYED, "unique_key": "l", "runtime": "solo"})
    desk.stop(runtime="solo")
    desk.spawn({**KEYED, "unique_key": "l"})
    assert fact_types(desk) == ["SpawnParked"]
    desk.go_on()
    assert desk.life(3) == "queued"


def test_parked_spawns_of_a_session_that_is_gone_are_dropped(desk: Desk) -> None:
    """Nobody was told that they were taken, so none of them may run; nor answer a later session."""
    worker = stopping_holder(desk)
    desk.session("B")
    desk.spawn(KEYED, session="B")
    desk.say(events.SessionGoodbye(session_id("B")))
    assert len(desk.registry.state.parked) == 0
    desk.session("B")
    desk.obey(worker, 1)
    assert desk.answers() == []
    assert desk.registry.state.tasks == {}
    assert desk.registry.state.sessions[session_id("B")].spawned == 0


def test_only_what_is_parked_by_the_one_that_is_gone_is_dropped(desk: Desk) -> None:
    worker = stopping_holder(desk)
    desk.session("B")
    desk.spawn({}, session="B")
    desk.spawn(KEYED, session="B")
    desk.spawn(KEYED, KEYED)
    desk.say(events.SessionGoodbye(session_id("B")))
    assert len(desk.registry.state.parked) == 2
    desk.obey(worker, 1)
    assert [each.number for each in desk.answers()] == [2, 3]


def test_only_what_is_parked_in_the_scope_is_refused(desk: Desk) -> None:
    worker = stopping_holder(desk)
    desk.spawn(KEYED, {**KEYED, "runtime": "solo"}, KEYED)
    desk.stop(runtime="solo")
    assert [each.number for each in desk.answers()] == [3]
    desk.obey(worker, 1)
    assert [each.number for each in desk.answers()] == [2, 4]


def test_a_client_that_dies_with_the_holder_has_nothing_started(desk: Desk) -> None:
    """It lived in the same process: its parked spawn goes the same moment as what it waited for."""
    worker = stopping_holder(desk)
    desk.say(events.SessionHello(session_id("N"), 1001, "here", worker))
    desk.say(events.SpawnsAsked(session_id("N"), [spawn_row(1, **KEYED)], False))
    assert len(desk.registry.state.parked) == 1
    desk.exit(worker)
    assert desk.registry.state.tasks == {}


def test_a_stop_refuses_the_parked_spawns_of_its_scope(desk: Desk) -> None:
    """Its holder is elsewhere, so the spawn would start after the report."""
    worker = stopping_holder(desk)
    desk.associate(worker, 1, "elsewhere")
    desk.spawn(KEYED)
    desk.stop(tenant_id="x")
    assert [(each.number, each.error) for each in desk.answers()] == [(2, "ScopeClosedError")]
    assert desk.report().report.tasks == []
    desk.obey(worker, 1)
    assert desk.registry.state.tasks == {}


def test_parked_spawns_count_against_the_queue() -> None:
    desk = Desk(runtimes=[RuntimeLimits(name="pool", slots=3, max_queue=2)])
    desk.session()
    worker = stopping_holder(desk)
    desk.spawn(KEYED, KEYED, KEYED)
    assert [each.error for each in desk.answers()] == ["QueueFullError"]
    assert "and 2 wait for a unique_key" in desk.answers()[0].text
    desk.obey(worker, 1)
    assert len(desk.answers()) == 2


def test_a_stopping_holder_can_not_wait_for_its_own_end(desk: Desk) -> None:
    """Its worker reports no end before its spawns are answered."""
    stopping_holder(desk)
    desk.spawn({**KEYED, "parent": (1, 1)})
    assert desk.answers()[0].error == "TaskCancelledError"
    assert "can't wait for its own end" in desk.answers()[0].text


@pytest.mark.parametrize("how", ["by name", "by its scope", "as it ran too long", "as it came"])
def test_a_task_that_is_asked_to_stop_waits_for_no_holder(desk: Desk, how: str) -> None:
    """Else its end would take as long as that of somebody else's task."""
    worker = stopping_holder(desk)
    parent = desk.spawn({"tenant_id": "y", "timeout": 5.0})
    desk.begin(worker, parent)
    desk.stop(tenant_id="z", keep_closed=True)
    desk.spawn({**KEYED, "parent": (parent, 1)}, KEYED)
    assert len(desk.registry.state.parked) == 2
    if how == "by name":
        desk.stop(task_id=parent)
    elif how == "by its scope":
        desk.stop(tenant_id="y")
    elif how == "as it ran too long":
        desk.wait(5.0)
    else:
        desk.associate(worker, parent, "z")
    assert [(each.number, each.error) for each in desk.answers()] == [(3, "TaskCancelledError")]
    assert len(desk.registry.state.parked) == 1
    desk.spawn({**KEYED, "parent": (parent, 1)})
    assert "does not wait for the end of task 1, which holds" in desk.answers()[0].text
    desk.spawn({"parent": (parent, 1)})
    assert desk.answers()[0].task_id


def test_a_parked_spawn_may_be_refused_when_its_time_comes(desk: Desk) -> None:
    worker = stopping_holder(desk)
    parent = desk.spawn({})
    desk.begin(worker, parent)
    desk.spawn({**KEYED, "parent": (parent, 1)})
    desk.end(worker, parent)
    desk.obey(worker, 1)
    assert desk.answers()[0].error == "TaskCancelledError"


# --- the queue ------------------------------------------------------------------------------------


def run_all(desk: Desk, worker: int, count: int) -> list[int]:
    """End what the worker has, one by one; the order in which all were handed out."""
    order: list[int] = [
        task.id for task in desk.registry.state.tasks.values() if task.worker == worker
    ]
    while len(order) < count:
        running = [each.id for each in desk.registry.state.tasks.values() if each.worker == worker]
        desk.end(worker, running[0])
        order += [row.task_id for row in desk.assigned(worker)]
    return order


def test_tenants_take_turns(desk: Desk) -> None:
    """x has four tasks before y and z have any; nobody waits for all of them."""
    desk.spawn(
        *[
            {"tenant_id": tenant, "runtime": "solo"}
            for tenant in ("x", "x", "x", "x", "y", "y", "z")
        ]
    )
    worker = desk.worker("solo")
    order = run_all(desk, worker, 7)
    assert order == [1, 5, 7, 2, 6, 3, 4]


def test_a_tenant_is_served_first_come_first_served_whatever_the_kind(desk: Desk) -> None:
    desk.spawn(*[{"kind": kind, "runtime": "solo"} for kind in ("gc", "flush", "gc", "flush")])
    assert run_all(desk, desk.worker("solo"), 4) == [1, 2, 3, 4]


def test_tasks_go_to_the_worker_that_holds_the_least(desk: Desk) -> None:
    first, second = desk.worker(), desk.worker()
    desk.spawn({}, {}, {}, {})
    assert [row.task_id for row in desk.assigned(first)] == [1, 3]
    assert [row.task_id for row in desk.assigned(second)] == [2, 4]


def test_no_worker_gets_more_than_its_slots(desk: Desk) -> None:
    worker = desk.worker()
    desk.spawn({}, {}, {}, {})
    assert len(desk.assigned(worker)) == 3
    desk.end(worker, 2)
    assert [row.task_id for row in desk.assigned(worker)] == [4]


@pytest.mark.parametrize(
    "limit",
    [{"max_running": 1}, {"max_running_per_tenant": 1}],
    ids=lambda limit: next(iter(limit)),
)
def test_a_kind_at_its_limit_holds_up_nobody_else(limit: dict[str, int]) -> None:
    desk = Desk(kinds=[KindLimits(name="gc", **limit), KindLimits(name="flush")])
    desk.session()
    worker = desk.worker()
    one, other = {"tenant_id": "x", "kind": "gc"}, {"tenant_id": "x", "kind": "flush"}
    desk.spawn(one, one, other)
    assert [row.task_id for row in desk.assigned(worker)] == [1, 3]
    desk.end(worker, 1)
    assert [row.task_id for row in desk.assigned(worker)] == [2]


def test_a_limit_per_tenant_lets_the_others_run() -> None:
    desk = Desk(kinds=[KindLimits(name="gc", max_running_per_tenant=1)])
    desk.session()
    worker = desk.worker()
    desk.spawn({"tenant_id": "x"}, {"tenant_id": "x"}, {"tenant_id": "y"}, {})
    assert [row.task_id for row in desk.assigned(worker)] == [1, 3, 4]


def test_a_limit_holds_across_runtimes_and_its_end_frees_all_of_them() -> None:
    desk = Desk(kinds=[KindLimits(name="gc", max_running=1)])
    desk.session()
    pool, solo = desk.worker(), desk.worker("solo")
    desk.spawn({"runtime": "pool"}, {"runtime": "solo"})
    assert desk.life(2) == "queued"
    desk.end(pool, 1)
    assert [row.task_id for row in desk.assigned(solo)] == [2]


def test_a_task_that_leaves_its_tenant_makes_room_there() -> None:
    desk = Desk(kinds=[KindLimits(name="gc", max_running_per_tenant=1)])
    desk.session()
    worker = desk.worker()
    desk.running(worker, {"tenant_id": "x"})
    desk.spawn({"tenant_id": "x"}, {"tenant_id": "y"})
    assert desk.life(2) == "queued"
    desk.associate(worker, 1, None)
    assert [row.task_id for row in desk.assigned(worker)] == [2]


def test_what_comes_back_stands_where_it_stood(desk: Desk) -> None:
    first = desk.worker("solo")
    desk.spawn({"runtime": "solo"}, {"runtime": "solo"}, {"runtime": "solo"})
    desk.exit(first)
    second = desk.worker("solo")
    assert [row.task_id for row in desk.assigned(second)] == [1]


def test_a_long_lane_loses_tasks_from_its_middle(desk: Desk) -> None:
    """Half of a lane ends by a stop of one timeline; the others are run in their order."""
    desk.thorough = False
    desk.spawn(*[{"runtime": "solo", "timeline_id": str(number % 2)} for number in range(600)])
    desk.stop(timeline_id="0")
    desk.thorough = True
    assert len(desk.report().report.tasks) == 300
    assert run_all(desk, desk.worker("solo"), 4) == [2, 4, 6, 8]


def test_what_is_parked_for_one_runtime_leaves_the_others_their_queues() -> None:
    desk = Desk(
        runtimes=[
            RuntimeLimits(name="pool", slots=3, max_queue=100),
            RuntimeLimits(name="solo", slots=1, max_queue=2),
        ]
    )
    desk.session()
    stopping_holder(desk)
    desk.spawn(*[KEYED] * 5)
    assert desk.registry.state.parked.in_runtime == {"pool": 5}
    assert desk.spawn({"runtime": "solo"}) == 2


def test_a_parked_spawn_is_decided_once() -> None:
    """The end of its holder, by the table, and the timeout of who made it come due in one turn."""
    desk = Desk()
    desk.session()
    desk.session("B")
    holder, parent = desk.worker("pool", slots=1), desk.worker("pool", slots=1)
    desk.spawn({**KEYED, "timeout": 5.0, "retries": 1})
    desk.begin(holder, 1)
    desk.spawn({"timeout": 5.3})
    desk.begin(parent, 2)
    desk.wait(5.0)
    desk.spawn({**KEYED, "parent": (2, 1)}, session="B")
    assert len(desk.registry.state.parked) == 1
    desk.exit(holder, phases={1: "failed"})
    desk.tick += 0.5
    desk.say(events.Tick())
    decided = [fact for fact in desk.facts if fact.__class__.__name__.startswith("Spawn")]
    assert [type(fact) for fact in decided] == [facts.SpawnRefused]
    assert [row.error for row in desk.answers()] == ["TaskCancelledError"]


def test_a_task_forgets_the_sessions_that_had_joined_it(desk: Desk) -> None:
    """One that runs for weeks, and that somebody makes sure of every minute."""
    desk.spawn(KEYED)
    for number in range(20):
        desk.session(f"visitor {number}")
        desk.spawn(KEYED, session=f"visitor {number}")
        desk.say(events.SessionGoodbye(session_id(f"visitor {number}")))
    assert len(desk.task(1).watchers) <= 2
    desk.session("B")
    desk.spawn(KEYED, session="B")
    assert desk.task(1).watchers == (session_id("A"), session_id("B"))
