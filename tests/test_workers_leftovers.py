"""What bodies leave behind in real workers: their end is told when the last of it has ended, or it is undone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.protocol import from_worker, to_worker
from quiesce.registry.rows import EndedRow
from quiesce.testing import (
    leftover_bodies as bodies,
    leftover_processes,
    raising_bodies,
    worker_bodies,
)
from quiesce.testing.leaks import is_running
from workers_fakes import FakeBroker, Key, Pool, value_of


def test_callbacks_of_its_token_are_part_of_a_task(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.token_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert (tmp_path / "callback-over").read_text() == str(key[0])
    assert (tmp_path / "thread-over").exists()


def test_a_callback_that_takes_long_holds_up_its_own_task_alone(
    pool: Pool, broker: FakeBroker, tmp_path: Path
) -> None:
    keys = [broker.run(bodies.long_callback, str(tmp_path))]
    broker.await_file(tmp_path / "begun")
    if pool.settings.slots > 1:
        for name in ("next", "last"):
            (tmp_path / name).mkdir()
            keys.append(broker.run(bodies.long_callback, str(tmp_path / name)))
            broker.await_file(tmp_path / name / "begun")
        watcher = broker.run(worker_bodies.watcher, str(tmp_path), "watcher")
        broker.await_file(tmp_path / "watcher")
    broker.stop(keys[0])
    for name in ("in-callback", "woken"):
        broker.await_file(tmp_path / name)
    # The worker hears, and says what it is about.
    assert any("wait_for_file" in text for text in broker.stacks(keys[0]))
    lingering = broker.await_message(from_worker.Lingering, lambda each: each.task_id == keys[0][0])
    assert lingering.what == "callbacks of its token"
    if pool.settings.slots > 1:
        # So are its neighbours stopped, whose callbacks take as long.
        broker.stop(*keys[1:], watcher)
        assert value_of(broker.await_end(watcher)) == "watched"
        for name in ("next", "last"):
            broker.await_file(tmp_path / name / "in-callback")
            (tmp_path / name / "go").touch()
        for key in keys[1:]:
            assert broker.await_end(key).outcome == "completed"
    assert keys[0] not in broker.ended
    assert not (tmp_path / "third-said").exists()
    (tmp_path / "go").touch()
    assert broker.await_end(keys[0]).outcome == "completed"
    assert (tmp_path / "third-said").read_text() == "first second third"


def test_a_callback_may_wait_for_the_broker(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.associate_in_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    asked = broker.await_message(from_worker.Associate)
    assert (asked.task_id, asked.tenant_id) == (key[0], "elsewhere")
    answer = to_worker.Associated(asked.request, None, "")
    broker.tell(broker.control, broker.where[key].control, answer)
    assert broker.await_end(key).outcome == "completed"


def test_a_child_that_a_callback_forks_is_no_worker(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.fork_in_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    assert broker.await_end(key).outcome == "completed"
    assert (tmp_path / "status").read_text() == "0"


def test_callbacks_run_where_no_thread_can_be_had(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    try:
        key = pool.broker.run(bodies.callback_without_threads, str(tmp_path))
        pool.broker.await_file(tmp_path / "begun")
        pool.broker.stop(key)
        assert value_of(pool.broker.await_end(key)) == "quiesce-control"
    finally:
        pool.close()


def test_callbacks_of_a_call_in_a_pool_are_part_of_its_task(
    broker: FakeBroker, tmp_path: Path
) -> None:
    key = broker.run(bodies.done_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert (tmp_path / "callback-over").read_text() == str(key[0])
    assert (tmp_path / "last-over").read_text() == str(key[0])


def test_the_initializer_of_a_pool_is_part_of_the_task(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.initializer, str(tmp_path))
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert (tmp_path / "initializer-over").read_text() == f"of {key[0]}"


SHARED = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

calls = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
calls.submit(int).result()
"""


def test_a_call_in_a_process_that_others_have_started_is_part_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED, encoding="utf-8")
    pool = Pool(tmp_path, preload=["shared"])
    broker = pool.broker

    def ends_after_its_call(key: Key, name: str) -> EndedRow:
        told = broker.await_message(from_worker.Lingering, lambda each: each.task_id == key[0])
        assert told.what == "executor call of gate_file"
        assert key not in broker.ended
        (tmp_path / f"{name}-go").touch()
        return broker.await_end(key)

    try:
        left = broker.run(bodies.shared_call, str(tmp_path), "left")
        broker.await_file(tmp_path / "left-begun")
        assert ends_after_its_call(left, "left").outcome == "completed"
        assert (tmp_path / "called-back").read_text() == str(left[0])

        awaited = broker.run(bodies.async_shared_call, str(tmp_path), "awaited")
        broker.await_file(tmp_path / "awaited-begun")
        broker.stop(awaited)
        broker.force(awaited)  # the await ends, the call does not
        assert ends_after_its_call(awaited, "awaited").outcome == "cancelled"
    finally:
        pool.close()


def test_a_call_that_is_cancelled_in_a_pool_leaves_nothing(
    broker: FakeBroker, tmp_path: Path
) -> None:
    key = broker.run(bodies.cancelled_call, str(tmp_path))
    end = broker.await_end(key)
    assert end.outcome == "completed"
    assert value_of(end) == str(key[0])  # its callback was the task's
    assert not (tmp_path / "ran").exists()


# --- what is raised at the end


@pytest.mark.parametrize("fn", [bodies.raise_unspeakable, bodies.async_raise_unspeakable])
def test_an_error_that_says_nothing_of_itself_is_an_end(
    broker: FakeBroker, fn: Callable[..., object]
) -> None:
    end = broker.await_end(broker.run(fn))
    assert (end.outcome, end.evidence) == ("failed", "RETURNED")
    assert end.text == "UnspeakableError"
    assert broker.call(worker_bodies.add, 1, 1) == 2


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (bodies.raise_classless, "ClasslessError()"),
        (bodies.raise_nameless, "an error that can't be shown"),
        (bodies.raise_deep, "Group"),
    ],
)
def test_an_error_that_hides_what_it_is_is_an_end(
    broker: FakeBroker, fn: Callable[..., object], text: str
) -> None:
    """It will not say what it is, or is wrapped so often that to ask takes too deep a stack."""
    end = broker.await_end(broker.run(fn))
    assert (end.outcome, end.evidence) == ("failed", "RETURNED")
    assert text in end.text
    assert broker.call(worker_bodies.add, 1, 1) == 2
    assert not broker.exits


@pytest.mark.parametrize(
    ("fn", "said", "fits"),
    [
        (bodies.async_convert, "RuntimeError: can't clean up", (4, 1)),
        (bodies.convert, "RuntimeError: can't clean up", (1,)),
        (bodies.leave, "SystemExit: can't clean up", (1,)),
    ],
)
def test_a_forced_end_is_cancelled_whatever_is_raised(
    pool: Pool,
    broker: FakeBroker,
    tmp_path: Path,
    fn: Callable[..., object],
    said: str,
    fits: tuple[int, ...],
) -> None:
    if pool.settings.slots not in fits:
        pytest.skip("synchronous code that shares its process can't be forced")
    key = broker.run(fn, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    before = pool.log().count("ERROR")
    broker.stop(key)
    broker.force(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("cancelled", "RETURNED")
    assert said in end.text
    assert pool.log().count("ERROR") == before


# --- logging that fails


def test_an_end_comes_also_when_it_cannot_be_logged(broker: FakeBroker) -> None:
    broker.call(bodies.filter_badly)
    try:
        for fn in (worker_bodies.fail, worker_bodies.async_raise):
            argument = ValueError if fn is worker_bodies.async_raise else "no good"
            assert broker.await_end(broker.run(fn, argument)).outcome == "failed"
        assert broker.await_end(broker.run(bodies.raise_unspeakable)).outcome == "failed"
    finally:
        broker.call(bodies.filter_no_more)


def test_a_worker_that_cannot_log_hears_requests_to_stop(
    broker: FakeBroker, tmp_path: Path
) -> None:
    broker.call(bodies.filter_badly)
    try:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            key = broker.run(bodies.fail_in_callback, str(tmp_path / name))
            broker.await_file(tmp_path / name / "begun")
            broker.stop(key)
            assert broker.await_end(key).outcome == "completed"
    finally:
        broker.call(bodies.filter_no_more)
    assert not broker.exits


# --- streams


def test_a_worker_ends_whatever_has_become_of_its_streams(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    try:
        broker = pool.broker
        peer = broker.await_peer()
        broker.call(bodies.spoil_the_end)
        broker.tell(broker.control, peer.control, to_worker.Exit(broker.epoch))
        broker.wait(lambda: broker.exits, "the exit")
        assert broker.exits[1].status == 0
    finally:
        pool.close()


# --- signals


def test_what_a_body_in_the_main_thread_does_to_signals_is_undone(
    pool: Pool, broker: FakeBroker
) -> None:
    if pool.settings.slots != 1:
        pytest.skip("signal handlers are for bodies in the main thread")
    before = broker.call(bodies.signals)
    changed = broker.call(bodies.meddle_with_all_signals)
    assert all(now != then for now, then in zip(changed, before, strict=True))
    assert broker.call(bodies.signals) == before


def test_a_timer_that_a_body_leaves_hits_nobody_else(pool: Pool, broker: FakeBroker) -> None:
    """However close to its end it is over: in the body, or never."""
    if pool.settings.slots != 1:
        pytest.skip("signal handlers are for bodies in the main thread")
    for n in range(100):
        end = broker.await_end(broker.run(bodies.leave_alarm, (n + 1) * 1e-6))
        assert end.outcome == "completed" or "TimeoutError: my own" in end.text
        assert broker.call(worker_bodies.add, n, 1) == n + 1
    assert not broker.exits


@pytest.mark.parametrize(
    ("body", "step"),
    [(raising_bodies.alarm_while_it_reports, 2e-6), (raising_bodies.trace_while_it_reports, 2)],
)
def test_a_handler_that_raises_costs_no_other_task_its_end(
    pool: Pool, broker: FakeBroker, body: Callable[[float], None], step: float
) -> None:
    """Whatever of ours the body calls at that moment, and whoever has run before it in a row."""
    if pool.settings.slots != 1:
        pytest.skip("signal handlers are for bodies in the main thread")
    peer = broker.await_peer()
    broker.assigns_again = True  # a slow machine
    for n in range(150):
        some = (0, 0, 0, (n + 1) * step, 0, 0)
        rows = [broker.row(peer, body, each) for each in some]
        broker.assign(peer, *rows)
        for row, each in zip(rows, some, strict=True):
            end = broker.await_end((row.task_id, row.attempt))
            assert end.outcome == ("failed" if each else "completed"), end.text
    assert not broker.exits


# --- the loop


def test_a_task_factory_is_for_the_task_that_sets_it(broker: FakeBroker, tmp_path: Path) -> None:
    (made,) = broker.call(bodies.set_task_factory, str(tmp_path))
    assert made.endswith("left_behind")
    assert (tmp_path / "cancelled").exists()
    assert broker.call(worker_bodies.async_add, 1, 1) == 2
    assert broker.call(bodies.gather_some) == [0, 1, 2]
    assert not (tmp_path / "made-2").exists()


def test_a_default_executor_is_for_the_task_that_sets_it(broker: FakeBroker) -> None:
    *names, closed = broker.call(bodies.set_default_executor)
    assert names == ["mine_0"] * 3
    assert "after shutdown" in closed
    assert broker.call(bodies.in_default_executor).startswith("quiesce-to-thread")


def test_what_all_coroutines_of_a_worker_share_is_closed_by_none(broker: FakeBroker) -> None:
    said = broker.call(bodies.shut_down_what_is_shared)
    assert [each.split("(")[0] for each in said] == [
        "shutdown_default_executor",
        "shutdown_asyncgens",
    ]
    assert all("all tasks of this worker" in each for each in said)
    assert broker.call(bodies.in_default_executor).startswith("quiesce-to-thread")


def test_an_exception_handler_is_for_the_task_that_sets_it(pool: Pool, broker: FakeBroker) -> None:
    heard = broker.call(bodies.set_exception_handler)
    assert heard == ["ValueError('soon')", "ValueError('later')"]
    assert not broker.call(bodies.fail_in_a_loop_callback)
    broker.wait(lambda: "ValueError: on purpose, in a callback" in pool.log(), "the log")


# --- processes


def test_an_interrupt_hides_no_process_that_just_begins(tmp_path: Path) -> None:
    """Of a fork server: no child of the worker, which learns its pid last."""
    pool = Pool(tmp_path, slots=1)  # the server stays, and goes with the worker
    try:
        broker = pool.broker
        key = broker.run(leftover_processes.start_slowly, str(tmp_path))
        pid = int(broker.await_file(tmp_path / "begun"))
        broker.stop(key)
        broker.force(key)
        broker.stacks(key)  # by then it has been forced
        worker_bodies.mark(str(tmp_path), "go")
        assert broker.await_end(key).outcome == "cancelled"
        assert not is_running(pid)
    finally:
        pool.close()


# --- forked children that come back


@pytest.mark.parametrize(("how", "status"), [("returns", 0), ("leaves", 3), ("raises", 1)])
@pytest.mark.parametrize(
    "fn",
    [
        leftover_processes.fork_in_coroutine,
        leftover_processes.fork_in_child_task,
        leftover_processes.fork_in_to_thread,
        leftover_processes.fork_in_thread,
        leftover_processes.fork_in_plain_thread,
    ],
)
def test_a_forked_child_that_comes_back_ends(
    broker: FakeBroker, fn: Callable[..., object], how: str, status: int
) -> None:
    """It is no worker, wherever it was forked; what runs beside it goes on."""
    assert broker.call(fn, how) == status
    assert broker.call(worker_bodies.async_add, 1, 1) == 2
    assert not broker.exits


def test_a_forked_child_that_waits_on_the_loop_ends(broker: FakeBroker) -> None:
    """Nothing can come that it waits for: the descriptors and timers of the loop are the worker's."""
    assert broker.call(leftover_processes.fork_in_child_task, "waits") == 0
