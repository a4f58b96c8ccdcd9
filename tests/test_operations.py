"""Every operation of the ancestor, on a real system: broker, pools, worker processes, clients."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quiesce
from quiesce import (
    Client,
    Evidence,
    Outcome,
    ScopeClosedError,
    ShutdownTimeoutError,
    TaskCancelledError,
    TaskCrashedError,
    TaskFailedError,
    TaskKind,
    TaskTimeoutError,
    UnknownKindError,
    UnknownRuntimeError,
)
from quiesce.testing import Witness, bodies
from system import System, until, workers_of


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)
        client.reopen()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness", slots=1024)
    yield witness
    witness.close()


def ticking(witness: Witness, slots: list[int]) -> None:
    """Wait until all of these have ticked."""
    until(lambda: [slot for slot in slots if not witness.read(slot).ticks], lambda left: not left)


# --- spawn ----------------------------------------------------------------------------------------


def test_spawn_runs_sync_and_async_bodies_in_every_runtime(client: Client) -> None:
    for runtime in ("compute-request", "mgmt-request", "walreceiver", "background"):
        sync = client.spawn(runtime, TaskKind.ATTACH, bodies.add, 1, 2)
        coroutine = client.spawn(runtime, "compaction", bodies.add_async, 3, kwargs={"right": 4})
        assert sync.result(timeout=30) == 3
        assert coroutine.result(timeout=30) == 7
        assert sync.id < coroutine.id


def test_a_closure_and_a_lambda_travel_by_value(client: Client) -> None:
    base = 40
    assert client.spawn("background", "attach", lambda x: base + x, 2).result(timeout=30) == 42


def test_a_task_sees_itself_and_nobody_else_does(client: Client) -> None:
    handle = client.spawn(
        "background",
        TaskKind.COMPACTION,
        bodies.who,
        tenant_id="t1",
        timeline_id="l1",
        name="myself",
    )
    seen: dict[str, Any] = handle.result(timeout=30)
    assert seen["id"] == handle.id
    assert seen["kind"] is TaskKind.COMPACTION
    assert (seen["tenant_id"], seen["timeline_id"], seen["name"]) == ("t1", "l1", "myself")
    assert seen["attempt"] == 1
    assert seen["fence"].epoch >= 1
    assert seen["fence"].incarnation >= 1
    assert seen["thread"]  # slots = 1: the process's main thread is the task's own
    assert quiesce.current_task() is None
    assert quiesce.current_task_id() is None
    assert quiesce.current_task_kind() is None


def test_unknown_names_are_refused_with_the_nearest(client: Client) -> None:
    with pytest.raises(UnknownRuntimeError, match="background"):
        client.spawn("backgruond", "compaction", bodies.nothing).result(timeout=30)
    with pytest.raises(UnknownKindError, match="compaction"):
        client.spawn("background", "compactoin", bodies.nothing).result(timeout=30)


def test_spawn_many_is_all_or_none(client: Client) -> None:
    handles = client.spawn_many(
        "compute-request", "page-request-handler", bodies.add, [(n, n) for n in range(200)]
    )
    assert [handle.result(timeout=30) for handle in handles] == [2 * n for n in range(200)]
    before = client.statistics()["spawned_total"]
    refused = client.spawn_many("background", "no-such-kind", bodies.nothing, [(), ()])
    for handle in refused:
        with pytest.raises(UnknownKindError):
            handle.result(timeout=30)
    assert client.statistics()["spawned_total"] == before


def test_a_task_leaves_the_live_registry_and_stays_in_the_history(client: Client) -> None:
    handle = client.spawn("background", "attach", bodies.nothing, tenant_id="leaver")
    handle.result(timeout=30)
    assert client.tasks(tenant_id="leaver") == []
    (ended,) = client.tasks(tenant_id="leaver", state="ended")
    assert (ended.id, ended.outcome, ended.evidence) == (
        handle.id,
        Outcome.COMPLETED,
        Evidence.RETURNED,
    )
    assert ended.created_at is not None
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.created_at <= ended.started_at <= ended.ended_at


def test_the_log_says_start_and_end_at_debug_and_failure_at_error(
    client: Client, system: System
) -> None:
    good = client.spawn("background", "attach", bodies.nothing, tenant_id="log-t", name="good-one")
    good.result(timeout=30)
    bad = client.spawn(
        "background", "attach", bodies.fail, "loudly", tenant_id="log-t", timeline_id="log-l"
    )
    with pytest.raises(TaskFailedError):
        bad.result(timeout=30)
    text = until(system.text, lambda text: "loudly" in text)
    debug = [line for line in text.splitlines() if "DEBUG" in line and "good-one" in line]
    assert len(debug) >= 2, text
    errors = [line for line in text.splitlines() if "ERROR" in line and f"{bad.id}" in line]
    assert any("attach" in line and "log-t" in line and "log-l" in line for line in errors), text
    assert "Traceback" in text


# --- error and panic ------------------------------------------------------------------------------


def test_an_exception_is_failed_with_its_remote_traceback(client: Client) -> None:
    handle = client.spawn("background", "attach", bodies.fail, "this way")
    with pytest.raises(TaskFailedError, match="this way") as raised:
        handle.result(timeout=30)
    assert "bodies.py" in str(raised.value)
    assert isinstance(raised.value.__cause__, ValueError)
    assert client.task(handle.id).outcome == Outcome.FAILED


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("os._exit(0)", 0),
        ("os._exit(7)", 7),
        ("segfault", -signal.SIGSEGV),
        ("sigkill", -signal.SIGKILL),
    ],
)
def test_a_dead_process_is_crashed_with_its_status_and_replaced(
    client: Client, runtime: str, how: str, status: int
) -> None:
    dying = client.spawn(runtime, "attach", bodies.leave_by, how)
    with pytest.raises(TaskCrashedError) as raised:
        dying.result(timeout=30)
    assert raised.value.exit_status == status
    info = client.task(dying.id)
    assert (info.outcome, info.evidence, info.exit_status) == (
        Outcome.CRASHED,
        Evidence.REAPED,
        status,
    )
    assert client.spawn(runtime, "attach", bodies.add, 1, 1).result(timeout=30) == 2
    wanted = 2 if runtime == "background" else 1
    until(lambda: len(workers_of(client, runtime)), lambda ready: ready == wanted)


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
@pytest.mark.parametrize("how", ["sys.exit", "KeyboardInterrupt"])
@pytest.mark.parametrize("body", [bodies.leave_by, bodies.leave_loop_by])
def test_an_escaped_exit_is_crashed_and_the_process_lives_on(
    client: Client, witness: Witness, runtime: str, how: str, body: Any
) -> None:
    pids = {worker.pid for worker in workers_of(client, runtime)}
    neighbour = None
    if runtime == "compute-request":
        neighbour = client.spawn(runtime, "attach", bodies.wander, witness.path, 0)
        ticking(witness, [0])
    leaving = client.spawn(runtime, "attach", body, how)
    with pytest.raises(TaskCrashedError) as raised:
        leaving.result(timeout=30)
    assert raised.value.exit_status is None
    info = client.task(leaving.id)
    assert (info.outcome, info.evidence) == (Outcome.CRASHED, Evidence.RETURNED)
    if neighbour is not None:
        count = witness.read(0).ticks
        until(lambda: witness.read(0).ticks, lambda now: now > count + 3)
        assert not neighbour.done()
    assert {worker.pid for worker in workers_of(client, runtime)} == pids


def test_what_cannot_be_pickled_is_said_and_the_pool_serves_on(client: Client) -> None:
    with pytest.raises(TaskFailedError, match="pickle"):
        client.spawn("background", "attach", bodies.unpicklable).result(timeout=30)
    with pytest.raises(TaskFailedError, match="can't be sent"):
        client.spawn("background", "attach", bodies.fail_unpicklably).result(timeout=30)
    assert client.spawn("background", "attach", bodies.add, 1, 1).result(timeout=30) == 2


def test_payloads_over_the_limit_are_refused_and_large_ones_pass(client: Client) -> None:
    with pytest.raises(quiesce.PayloadTooLargeError, match="67108864"):
        client.spawn("background", "attach", bodies.echo, bytes(100_000_000)).result(timeout=60)
    with pytest.raises(TaskFailedError) as raised:
        client.spawn("background", "attach", bodies.large, 100_000_000).result(timeout=60)
    assert isinstance(raised.value.__cause__, quiesce.PayloadTooLargeError)
    size = 30_000_000
    assert client.spawn("background", "attach", bodies.echo, bytes(size)).result(60) == bytes(size)


def test_a_killed_worker_takes_only_its_own_tasks(client: Client, witness: Witness) -> None:
    """Both single-slot workers run a task, others wait in the queue; one worker is killed."""
    running = [
        client.spawn("background", "attach", bodies.doze, witness.path, slot) for slot in (0, 1)
    ]
    ticking(witness, [0, 1])
    queued = [client.spawn("background", "compaction", bodies.add, n, n) for n in range(10)]
    victim = running[0].status()
    assert victim.worker_pid is not None
    os.kill(victim.worker_pid, signal.SIGKILL)
    with pytest.raises(TaskCrashedError) as raised:
        running[0].result(timeout=30)
    assert raised.value.exit_status == -signal.SIGKILL
    assert not running[1].done()
    assert [handle.result(timeout=30) for handle in queued] == [2 * n for n in range(10)]
    count = witness.read(1).ticks
    until(lambda: witness.read(1).ticks, lambda now: now > count + 3)
    client.shutdown_tasks(kind="attach", timeout=30)


def test_retries_start_a_new_attempt(client: Client, tmp_path: Path) -> None:
    counter = tmp_path / "attempts"

    def flaky() -> int:
        with counter.open("a") as file:
            file.write("x")
        if len(counter.read_text()) < 3:
            raise ValueError("not yet")
        return len(counter.read_text())

    handle = client.spawn("background", "attach", flaky, retries=5)
    assert handle.result(timeout=30) == 3
    assert client.task(handle.id).attempt == 3


def test_a_task_that_runs_longer_than_its_timeout_has_failed(
    client: Client, witness: Witness
) -> None:
    handle = client.spawn("background", "attach", bodies.doze, witness.path, 0, timeout=0.3)
    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.3 s"):
        handle.result(timeout=30)
    assert client.task(handle.id).outcome == Outcome.FAILED


def test_a_restarted_task_comes_back_after_its_process_died_and_stops_for_good(
    client: Client, witness: Witness
) -> None:
    handle = client.spawn(
        "background",
        "wal-receiver-manager",
        bodies.doze,
        witness.path,
        0,
        tenant_id="again",
        restart="on-failure",
    )
    ticking(witness, [0])
    pid = handle.status().worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    again = until(handle.status, lambda info: info.attempt == 2 and info.state == "running")
    assert again.worker_pid != pid
    client.shutdown_tasks(tenant_id="again", timeout=30)
    assert handle.result(timeout=30) == "asked"


# --- associate_with -------------------------------------------------------------------------------


def test_associate_with_moves_a_task_between_scopes(client: Client, witness: Witness) -> None:
    handle = client.spawn(
        "compute-request",
        "page-request-handler",
        bodies.associate_then_doze,
        "new",
        "line",
        witness.path,
        0,
        tenant_id="old",
    )
    ticking(witness, [0])
    info = client.task(handle.id)
    assert (info.tenant_id, info.timeline_id) == ("new", "line")
    assert client.shutdown_tasks(tenant_id="old", timeout=30).tasks == ()
    assert not handle.done()
    report = client.shutdown_tasks(tenant_id="new", timeout=30)
    assert [row.id for row in report.tasks] == [handle.id]
    assert handle.result(timeout=30) == "asked"


def test_associate_with_none_clears(client: Client, witness: Witness) -> None:
    handle = client.spawn(
        "compute-request",
        "attach",
        bodies.associate_then_doze,
        None,
        None,
        witness.path,
        0,
        tenant_id="old",
        timeline_id="line",
    )
    ticking(witness, [0])
    assert client.task(handle.id).tenant_id is None
    assert client.shutdown_tasks(tenant_id="old", timeout=30).tasks == ()
    assert not handle.done()


def test_associate_outside_of_a_task_is_an_error() -> None:
    with pytest.raises(quiesce.NotInTaskError):
        quiesce.associate_with("a", None)


# --- shutdown_tasks -------------------------------------------------------------------------------


def test_a_stop_matches_by_and_and_none_matches_anything(client: Client, witness: Witness) -> None:
    labels = [
        ("attach", "a", "1"),
        ("attach", "a", "2"),
        ("compaction", "a", "1"),
        ("attach", "b", "1"),
        ("attach", None, None),
    ]
    handles = [
        client.spawn(
            "walreceiver",
            kind,
            bodies.doze,
            witness.path,
            slot,
            tenant_id=tenant,
            timeline_id=timeline,
        )
        for slot, (kind, tenant, timeline) in enumerate(labels)
    ]
    ticking(witness, [0, 1, 2, 3, 4])
    report = client.shutdown_tasks(kind="attach", tenant_id="a", timeline_id="1", timeout=30)
    assert [row.id for row in report.tasks] == [handles[0].id]
    report = client.shutdown_tasks(tenant_id="a", timeout=30)
    assert [row.id for row in report.tasks] == [handles[1].id, handles[2].id]
    assert not handles[3].done()
    assert not handles[4].done()
    report = client.shutdown_tasks(kind=TaskKind.ATTACH, runtime="walreceiver", timeout=30)
    assert [row.id for row in report.tasks] == [handles[3].id, handles[4].id]


@pytest.mark.parametrize(
    ("runtime", "body"),
    [
        ("background", bodies.spin),
        ("background", bodies.doze),
        ("background", bodies.wander),
        ("compute-request", bodies.spin),
        ("compute-request", bodies.doze),
        ("compute-request", bodies.wander),
        ("compute-request", bodies.by_token),
        ("compute-request", bodies.by_select),
        ("background", bodies.by_select),
        ("compute-request", bodies.in_thread),
        ("compute-request", bodies.in_child_tasks),
        ("background", bodies.in_thread),
        ("background", bodies.until_checkpoint),
    ],
)
def test_every_sort_of_task_sees_the_stop(
    client: Client, witness: Witness, runtime: str, body: Any
) -> None:
    handle = client.spawn(runtime, "attach", body, witness.path, 0, tenant_id="seen")
    ticking(witness, [0])
    report = client.shutdown_tasks(tenant_id="seen", timeout=30, reason="because")
    after = time.monotonic_ns()
    (row,) = report.tasks
    assert row.id == handle.id
    assert row.evidence == Evidence.RETURNED
    assert row.outcome in (Outcome.COMPLETED, Outcome.CANCELLED)
    times = [row.requested_at, row.delivered_at, row.observed_at, row.stopped_at]
    known = [at for at in times if at is not None]
    assert len(known) == 4
    assert known == sorted(known)
    assert witness.ticked_after(after) == []
    assert str(report)


def test_two_hundred_of_four_hundred_stop_and_the_others_tick_on(
    client: Client, witness: Witness
) -> None:
    # 64 slots in each of three runtimes: 192 at once, so the other half waits in the queues.
    handles = {}
    for slot in range(400):
        runtime = ("compute-request", "mgmt-request", "walreceiver")[slot % 3]
        tenant = "stopped" if slot % 2 else "kept"
        handles[slot] = client.spawn(
            runtime, "attach", bodies.wander, witness.path, slot, tenant_id=tenant
        )
    until(lambda: sum(1 for s in range(400) if witness.read(s).ticks), lambda n: n >= 150)
    assert all(handle.id for handle in handles.values())  # a spawn that comes later is refused
    report = client.shutdown_tasks(tenant_id="stopped", timeout=60)
    after = time.monotonic_ns()
    assert len(report.tasks) == 200
    assert {row.evidence for row in report.tasks} == {Evidence.RETURNED, Evidence.NEVER_RAN}
    kept = list(range(0, 400, 2))
    until(lambda: sum(1 for s in kept if witness.read(s).at_ns > after), lambda n: n >= 190)
    assert [slot for slot in witness.ticked_after(after) if slot % 2] == []
    assert not any(handles[slot].done() for slot in kept)


def test_a_stop_that_runs_out_of_time_says_what_is_left_and_keeps_the_scope_closed(
    client: Client, witness: Witness, tmp_path: Path
) -> None:
    trigger = tmp_path / "go"
    handle = client.spawn(
        "compute-request",
        "attach",
        bodies.ignore_until_file,
        str(trigger),
        witness.path,
        0,
        tenant_id="stubborn",
    )
    ticking(witness, [0])
    with pytest.raises(ShutdownTimeoutError) as raised:
        client.shutdown_tasks(tenant_id="stubborn", timeout=0.3)
    assert raised.value.report is not None
    (left,) = raised.value.report.remaining
    assert left.id == handle.id
    assert left.delivered_at is not None
    assert left.observed_at is None
    with pytest.raises(ScopeClosedError):
        client.spawn("background", "attach", bodies.nothing, tenant_id="stubborn").result(30)
    trigger.touch()
    assert handle.result(timeout=30) == "let go"
    client.shutdown_tasks(tenant_id="stubborn", timeout=30)
    client.spawn("background", "attach", bodies.nothing, tenant_id="stubborn").result(30)


def test_keep_closed_and_reopen(client: Client) -> None:
    client.shutdown_tasks(tenant_id="shut", keep_closed=True, timeout=30)
    (closed,) = client.closed_scopes()
    assert "shut" in closed.scope
    with pytest.raises(ScopeClosedError, match="reopen"):
        client.spawn("background", "attach", bodies.nothing, tenant_id="shut").result(30)
    client.reopen(tenant_id="shut")
    client.spawn("background", "attach", bodies.nothing, tenant_id="shut").result(30)


def test_a_stopped_block_keeps_the_scope_closed_to_its_end(client: Client) -> None:
    with client.stopped(tenant_id="blocked", reason="detach") as report:
        assert report.remaining == ()
        with pytest.raises(ScopeClosedError, match="detach"):
            client.spawn("background", "attach", bodies.nothing, tenant_id="blocked").result(30)
    client.spawn("background", "attach", bodies.nothing, tenant_id="blocked").result(30)


def test_a_handle_stops_its_own_task_only(client: Client, witness: Witness) -> None:
    first, second = (
        client.spawn("compute-request", "attach", bodies.doze, witness.path, slot, tenant_id="h")
        for slot in (0, 1)
    )
    ticking(witness, [0, 1])
    report = first.shutdown(timeout=30)
    assert [row.id for row in report.tasks] == [first.id]
    assert not second.done()
    client.spawn("background", "attach", bodies.nothing, tenant_id="h").result(30)


def test_a_stop_does_not_overtake_the_callers_own_spawns(client: Client) -> None:
    """Spawns that were made before the stop are all in it or refused by it: none starts after it."""
    for _ in range(20):
        handles = [
            client.spawn("background", "attach", time.sleep, 0.001, tenant_id="race")
            for _ in range(50)
        ]
        client.shutdown_tasks(tenant_id="race", timeout=30)
        after = client.statistics()["spawned_total"]
        assert client.tasks(tenant_id="race") == []
        for handle in handles:
            with contextlib.suppress(ScopeClosedError, TaskCancelledError):
                handle.result(timeout=30)
        assert client.statistics()["spawned_total"] == after


def test_a_scope_of_an_unknown_name_is_refused_rather_than_found_empty(client: Client) -> None:
    """A typo must not pass for "nothing runs"."""
    with pytest.raises(UnknownKindError, match="compaction"):
        client.shutdown_tasks(kind="compacton", timeout=30)
    with pytest.raises(UnknownRuntimeError, match="background"):
        client.shutdown_tasks(runtime="backgroud", timeout=30)
    with pytest.raises(UnknownKindError):
        client.reopen(kind="compacton")
    with pytest.raises(UnknownKindError):
        client.tasks(kind="compacton")
    with pytest.raises(UnknownRuntimeError):
        client.stacks(runtime="backgroud")


# --- waiting for others ---------------------------------------------------------------------------


def test_a_task_waits_for_a_task_of_another_runtime(client: Client) -> None:
    handle = client.spawn(
        "background", "attach", bodies.spawn_and_wait, "compute-request", "attach"
    )
    assert handle.result(timeout=30) == 3


def test_a_second_wish_for_the_same_download_gets_the_first(
    client: Client, witness: Witness
) -> None:
    wishes = [
        client.spawn(
            runtime,
            "remote-download-task",
            bodies.doze,
            witness.path,
            0,
            tenant_id="u",
            unique_key="layer-1",
        )
        for runtime in ("background", "compute-request", "background")
    ]
    ticking(witness, [0])
    assert len({wish.id for wish in wishes}) == 1
    other = client.spawn(
        "background", "remote-download-task", bodies.add, 1, 1, tenant_id="u", unique_key="layer-2"
    )
    assert other.result(timeout=30) == 2
    client.shutdown_tasks(tenant_id="u", timeout=30)
    assert [wish.result(timeout=30) for wish in wishes] == ["asked"] * 3


# --- seeing it ------------------------------------------------------------------------------------


def test_titles_and_cpu_show_what_each_class_costs(client: Client) -> None:
    titles = {
        worker.runtime: Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        for worker in client.workers()
    }
    assert titles == {
        "compute-request": "compute request worker",
        "mgmt-request": "mgmt request worker",
        "walreceiver": "walreceiver worker",
        "background": "background op worker",
    }
    runtimes = until(
        lambda: client.statistics()["runtimes"],
        lambda runtimes: all(runtime["cpu_seconds"] > 0 for runtime in runtimes.values()),
    )
    assert set(runtimes) == set(titles)


def test_stacks_show_where_tasks_are(client: Client, witness: Witness) -> None:
    client.spawn("compute-request", "attach", bodies.doze, witness.path, 0, tenant_id="st")
    client.spawn("compute-request", "attach", bodies.wander, witness.path, 1, tenant_id="st")
    ticking(witness, [0, 1])
    stacks = client.stacks(tenant_id="st")
    text = "\n".join(text for row in stacks for text in row.stacks)
    assert len(stacks) == 2
    assert re.search(r"in doze", text), text
    assert re.search(r"wander", text), text


def test_is_shutdown_requested_outside_of_a_task_warns() -> None:
    with pytest.warns(RuntimeWarning, match="outside of a task"):
        assert not quiesce.is_shutdown_requested()
