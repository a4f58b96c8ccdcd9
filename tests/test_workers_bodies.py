"""Bodies in real workers: how each kind of end is told, and how requests to stop and force reach them."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.errors import PayloadTooLargeError, ShutdownRequested
from quiesce.protocol import from_worker
from quiesce.testing import worker_bodies as bodies
from workers_fakes import FakeBroker, Pool, error_of, value_of


def test_results_come_back(broker: FakeBroker) -> None:
    assert broker.call(bodies.add, 2, 3) == 5
    assert broker.call(bodies.async_add, 2, 3) == 5
    assert broker.call(lambda: 7) == 7


def test_a_body_knows_who_it_is(broker: FakeBroker) -> None:
    task_id, kind, tenant, timeline, fence, pid = broker.call(bodies.who)
    peer = broker.await_peer()
    assert (task_id, 1) in broker.ended
    assert (kind, tenant, timeline) == ("compaction", "tenant-a", "timeline-b")
    assert fence == (broker.epoch, peer.incarnation, 1)
    assert pid == peer.hello.pid


@pytest.mark.parametrize(
    ("fn", "args", "outcome", "said"),
    [
        (bodies.fail, ("no good",), "failed", "ValueError: no good"),
        (bodies.raise_it, (SystemExit,), "crashed", "SystemExit"),
        (bodies.raise_it, (KeyboardInterrupt,), "crashed", "KeyboardInterrupt"),
        (bodies.raise_it, (GeneratorExit,), "crashed", "GeneratorExit"),
        (bodies.raise_it, (ShutdownRequested,), "failed", "ShutdownRequested"),
        (bodies.raise_group, (), "failed", "ShutdownRequested"),
        (bodies.async_raise, (SystemExit,), "crashed", "SystemExit"),
        (bodies.async_raise, (KeyboardInterrupt,), "crashed", "KeyboardInterrupt"),
        (bodies.async_raise, (ValueError,), "failed", "ValueError"),
        (bodies.async_raise, (ShutdownRequested,), "failed", "ShutdownRequested"),
        (bodies.cancel_itself, (), "failed", "CancelledError"),
        (bodies.unpicklable, (), "failed", "can't be pickled"),
        (bodies.add, (1,), "failed", "missing 1 required positional argument"),
        (bodies.async_add, (1,), "failed", "missing 1 required positional argument"),
        (bodies.big, (65 * 2**20,), "failed", "exceeds the limit of 67108864 bytes"),
    ],
)
def test_ends_without_a_result(
    broker: FakeBroker, fn: object, args: tuple[object, ...], outcome: str, said: str
) -> None:
    assert callable(fn)
    row = broker.await_end(broker.run(fn, *args))
    assert (row.outcome, row.evidence) == (outcome, "RETURNED")
    assert said in row.text
    assert "quiesce/workers" not in row.text  # the worker's own frames help nobody
    # The process lives on.
    assert broker.call(bodies.add, 1, 1) == 2
    assert not broker.exits


def test_a_large_result_is_an_error_of_its_own(broker: FakeBroker) -> None:
    row = broker.await_end(broker.run(bodies.big, 65 * 2**20))
    assert isinstance(error_of(row), PayloadTooLargeError)
    assert len(broker.call(bodies.big, 2**20)) == 2**20


def test_a_function_that_is_not_there(broker: FakeBroker) -> None:
    peer = broker.await_peer()
    row = broker.row(peer, bodies.nothing)._replace(function=b"Rno_such_module:fn")
    broker.assign(peer, row)
    end = broker.await_end((row.task_id, row.attempt))
    assert end.outcome == "failed"
    assert "no_such_module" in end.text
    assert "app_dir" in end.text


@pytest.mark.parametrize(
    "fn", [bodies.until_asked, bodies.wait_for_it, bodies.busy, bodies.watcher]
)
def test_a_request_to_stop_arrives(broker: FakeBroker, tmp_path: Path, fn: object) -> None:
    assert callable(fn)
    key = broker.run(fn, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key, reason="enough")
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert end.observed_age is not None
    broker.await_message(
        from_worker.StopSeen,
        lambda each: any(row[:2] == key and row.observed_age is not None for row in each.rows),
    )
    seen = [
        row for each in broker.log if isinstance(each, from_worker.StopSeen) for row in each.rows
    ]
    assert {row.state for row in seen if row[:2] == key} == {"running"}
    if fn is bodies.wait_for_it:
        assert value_of(end) == "enough"


def test_a_stop_that_raises_is_cancelled(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.until_checkpoint, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("cancelled", "RETURNED")
    # Forced or asked: no crash, so no ERROR.


@pytest.mark.parametrize("fn", [bodies.until_asked, bodies.watcher])
def test_a_begin_is_told_at_once(
    broker: FakeBroker, tmp_path: Path, fn: Callable[..., object]
) -> None:
    key = broker.run(fn, str(tmp_path))
    broker.wait(lambda: key in broker.begun, "its begin")
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    assert broker.await_end(key).outcome == "completed"


def test_the_flag_alone_is_enough(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.until_checkpoint, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.flag(key)
    end = broker.await_end(key)
    assert end.outcome == "cancelled"
    assert end.observed_age is not None


def test_a_request_overtakes_its_task(broker: FakeBroker, tmp_path: Path) -> None:
    peer = broker.await_peer()
    row = broker.row(peer, bodies.mark, str(tmp_path), "ran")
    key = (row.task_id, row.attempt)
    broker.stop(key)
    seen = broker.await_message(from_worker.StopSeen)
    assert [(each.task_id, each.state) for each in seen.rows] == [(row.task_id, "never-began")]
    broker.assign(peer, row)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence, end.begun_age) == ("cancelled", "NEVER_RAN", None)
    assert not (tmp_path / "ran").exists()
    assert key not in broker.begun


def test_a_received_task_that_has_not_begun_never_runs(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = pool.broker
    monkeypatch.setattr(broker, "assigns_again", True)  # should this take long
    peer = broker.await_peer()
    rows = [broker.row(peer, bodies.gate_file, str(tmp_path), str(n)) for n in range(5)]
    running = pool.settings.slots
    broker.assign(peer, *rows)
    for n in range(running):
        broker.await_file(tmp_path / f"{n}-begun")
    last = (rows[-1].task_id, rows[-1].attempt)
    broker.stop(last)
    # All slots are busy; with one of them, the main thread too.
    broker.await_message(from_worker.StopSeen, lambda each: each.rows[0].task_id == last[0])
    for n in range(5):
        bodies.mark(str(tmp_path), f"{n}-go")
    ends = [broker.await_end((row.task_id, row.attempt)) for row in rows]
    assert [end.evidence for end in ends] == ["RETURNED"] * 4 + ["NEVER_RAN"]
    assert not (tmp_path / "4-begun").exists()


def test_a_stop_is_read_while_a_large_payload_comes_in(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.until_asked, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    large = broker.run(len, bytes(60 * 2**20))
    broker.stop(key)
    assert broker.await_end(key).outcome == "completed"
    assert value_of(broker.await_end(large)) == 60 * 2**20


@pytest.mark.parametrize(
    ("fn", "fits"),
    [(bodies.async_deaf, (4, 1)), (bodies.async_stubborn, (4, 1)), (bodies.deaf, (1,))],
)
def test_force_ends_what_does_not_look(
    pool: Pool, broker: FakeBroker, tmp_path: Path, fn: object, fits: tuple[int, ...]
) -> None:
    if pool.settings.slots not in fits:
        pytest.skip("synchronous code that shares its process can't be forced")
    assert callable(fn)
    key = broker.run(fn, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    broker.force(key)
    if fn is bodies.async_stubborn:
        broker.await_file(tmp_path / "swallowed")
        broker.force(key)
    else:
        broker.await_file(tmp_path / "finally")
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("cancelled", "RETURNED")
    assert broker.call(bodies.add, 1, 1) == 2


def test_late_interrupts_hit_nothing_else(pool: Pool, broker: FakeBroker, tmp_path: Path) -> None:
    """Force after force, while bodies come and go: each ends as cancelled or completed, the next is whole."""
    if pool.settings.slots != 1:
        pytest.skip("interrupts are for bodies in the main thread")
    for n in range(50):
        folder = tmp_path / str(n)
        folder.mkdir()
        key = broker.run(bodies.until_asked, str(folder))
        broker.await_file(folder / "begun")
        broker.stop(key)
        for _ in range(n % 4):
            broker.force(key)
        assert broker.await_end(key).outcome in ("completed", "cancelled")
        assert broker.call(bodies.add, n, 1) == n + 1
    assert not broker.exits


def test_associate_changes_what_the_body_sees(broker: FakeBroker) -> None:
    from quiesce.protocol import to_worker

    key = broker.run(bodies.associate, "other", None)
    message = broker.await_message(from_worker.Associate)
    assert (message.tenant_id, message.timeline_id) == ("other", None)
    assert (message.task_id, message.attempt) == key
    answer = to_worker.Associated(message.request, None, "")
    broker.tell(broker.control, broker.where[key].control, answer)
    assert value_of(broker.await_end(key)) == ("other", None)


def test_a_body_sees_that_it_is_asked_and_why(broker: FakeBroker, tmp_path: Path) -> None:
    from quiesce.protocol import to_worker

    key = broker.run(bodies.asked_and_associated, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key, reason="detach")
    message = broker.await_message(from_worker.Associate)
    answer = to_worker.Associated(message.request, None, "")
    broker.tell(broker.control, broker.where[key].control, answer)
    assert value_of(broker.await_end(key)) == [
        (False, "", "tenant-a"),
        (True, "detach", "tenant-a"),
        (True, "detach", "other"),
    ]


def test_a_refused_associate_raises(broker: FakeBroker) -> None:
    from quiesce.protocol import to_worker

    key = broker.run(bodies.associate, "other", None)
    message = broker.await_message(from_worker.Associate)
    answer = to_worker.Associated(message.request, "TaskNotFoundError", "gone")
    broker.tell(broker.control, broker.where[key].control, answer)
    end = broker.await_end(key)
    assert end.outcome == "failed"
    assert "TaskNotFoundError: gone" in end.text


def test_what_a_task_leaves_in_its_context_goes_with_it(pool: Pool, broker: FakeBroker) -> None:
    if pool.settings.slots > 1:
        pytest.skip("another thread may still be on its way out of the first task")
    assert broker.call(bodies.keep_in_context) is None
    assert not broker.call(bodies.is_left)


def test_progress_is_thinned_out(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.progress, str(tmp_path))
    broker.await_file(tmp_path / "reported")
    broker.await_message(
        from_worker.Progress, lambda each: each.rows == [(*key, 999.0, 1000.0, "counting")]
    )
    assert sum(isinstance(each, from_worker.Progress) for each in broker.log) <= 2
    bodies.mark(str(tmp_path), "go")
    broker.await_end(key)


def test_stacks_of_threads_and_coroutines(pool: Pool, broker: FakeBroker, tmp_path: Path) -> None:
    if pool.settings.slots == 1:
        pytest.skip("one case is enough")
    keys = [
        broker.run(bodies.watcher, str(tmp_path), "coroutine"),
        broker.run(bodies.wait_for_file, str(tmp_path / "go")),
    ]
    broker.await_file(tmp_path / "coroutine")

    def both() -> bool:
        texts = "\n".join(broker.stacks(*keys))
        return "await shutdown_watcher()" in texts and "in wait_for_file" in texts

    broker.wait(both, "the stacks of both tasks")  # the second one may just begin
    broker.stop(keys[0])
    bodies.mark(str(tmp_path), "go")
    for key in keys:
        broker.await_end(key)


def test_stacks_while_the_loop_is_blocked(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.block_loop, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    assert "wait_for_file" in "".join(broker.stacks(key))
    bodies.mark(str(tmp_path), "go")
    broker.await_end(key)


def test_logs_name_the_task_and_whoever_logs(pool: Pool, broker: FakeBroker) -> None:
    broker.call(bodies.log_something, "a library speaks")
    line = next(line for line in pool.log().splitlines() if "a library speaks" in line)
    assert "WARNING" in line
    assert f"[task={broker.last_task} kind=compaction tenant=tenant-a timeline=timeline-b]" in line


def test_logs_of_failures_say_who_is_marked_to_take_the_system_down(
    pool: Pool, broker: FakeBroker
) -> None:
    peer = broker.await_peer()
    rows = [broker.row(peer, bodies.fail, "f1"), broker.row(peer, bodies.fail, "f2", fatal=True)]
    broker.assign(peer, *rows)
    for row in rows:
        broker.await_end((row.task_id, row.attempt))
    errors = [line for line in pool.log().splitlines() if " ERROR " in line]
    plain = next(line for line in errors if f"[task={rows[0].task_id} " in line)
    fatal = next(line for line in errors if f"[task={rows[1].task_id} " in line)
    assert "marked" not in plain
    assert fatal.endswith("failed (marked shutdown_process_on_error)")
    for said in (plain, fatal):
        assert f"{said}\nTraceback (most recent call last):\n" in pool.log()


def test_ends_are_sent_again_until_they_are_taken(broker: FakeBroker) -> None:
    broker.take_ends = False
    try:
        key = broker.run(bodies.nothing)
        broker.await_end(key)
        broker.wait(
            lambda: sum(isinstance(each, from_worker.Ended) for each in broker.log) >= 2,
            "Ended again",
        )
    finally:
        broker.take_ends = True
    broker.log.clear()
    broker.await_message(from_worker.Ended)  # this one is answered


def test_an_unknown_worker_says_hello_again(broker: FakeBroker, tmp_path: Path) -> None:
    from quiesce.protocol import to_worker

    peer = broker.await_peer()
    key = broker.run(bodies.watcher, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    hello_wanted = to_worker.HelloWanted(broker.epoch)
    for _ in range(3):
        broker.tell(broker.control, peer.control, hello_wanted)
    hello = broker.await_message(from_worker.Hello)
    assert hello.incarnation == peer.incarnation
    assert hello.begun == [key]
    assert hello.last_assign == peer.last_assign
    broker.await_message(from_worker.Attach)
    broker.stop(key)
    assert broker.await_end(key).outcome == "completed"


def test_threads_of_the_test_process_are_its_own() -> None:
    """The hooks are installed in workers only."""
    assert threading.Thread.start.__module__ == "threading"
    assert signal.getsignal(signal.SIGRTMAX - 3) is signal.SIG_DFL
