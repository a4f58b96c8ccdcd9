"""What bodies begin in ways that are easily overlooked is part of their task, in real workers."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.protocol import from_worker
from quiesce.testing import door_bodies as bodies, worker_bodies
from workers_fakes import FakeBroker, Pool, value_of

given_contexts = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="threads are given a context since Python 3.14"
)


def assert_silent(broker: FakeBroker, path: Path) -> None:
    before = path.stat().st_size
    broker.settle(0.1)
    assert path.stat().st_size == before


@pytest.mark.parametrize(
    "fn",
    [
        bodies.start_new,
        bodies.equal_threads,
        bodies.excepthook,
        pytest.param(bodies.thread_in_empty_context, marks=given_contexts),
    ],
)
def test_threads_hold_the_attempt(
    broker: FakeBroker, tmp_path: Path, fn: Callable[..., object]
) -> None:
    key = broker.run(fn, str(tmp_path))
    lingering = broker.await_message(from_worker.Lingering)
    assert (lingering.task_id, lingering.attempt) == key
    assert lingering.what.startswith("thread ")
    assert key not in broker.ended
    worker_bodies.mark(str(tmp_path), "thread-go")
    assert value_of(broker.await_end(key)) == "returned"
    assert_silent(broker, tmp_path / "thread-ticks")


@given_contexts
def test_a_thread_is_in_the_context_that_it_is_given_and_in_its_task(broker: FakeBroker) -> None:
    seen, left, task_is_left = broker.call(bodies.thread_in_given_context)
    assert seen == ["given", "thread_in_given_context"]
    assert left == "left"
    assert not task_is_left


def test_a_coroutine_in_a_context_that_knows_of_no_task_is_its_makers(
    broker: FakeBroker, tmp_path: Path
) -> None:
    assert broker.call(bodies.task_in_empty_context, str(tmp_path)) == "returned"
    assert (tmp_path / "task-finally").exists()
    assert_silent(broker, tmp_path / "task-ticks")


def test_a_timer_in_a_context_that_knows_of_no_task_is_its_makers(
    broker: FakeBroker, tmp_path: Path
) -> None:
    assert broker.call(bodies.timer_in_empty_context, str(tmp_path)) == "returned"
    assert_silent(broker, tmp_path / "timer-ticks")


# --- trace and profile functions


TRACED = [
    bodies.leave_tracers,
    bodies.async_leave_tracers,
    bodies.leave_tracers_in_a_pool,
    bodies.thread_with_tracers,
]


@pytest.mark.parametrize("fn", TRACED)
def test_trace_functions_that_a_body_leaves_are_undone(
    broker: FakeBroker, fn: Callable[..., object]
) -> None:
    end = broker.await_end(broker.run(fn))
    assert end.evidence == "RETURNED"
    for _ in range(5):
        assert broker.call(bodies.tracers) == ["none"] * 4
        assert broker.call(bodies.async_tracers) == ["none"] * 8


def test_a_trace_function_for_threads_is_for_those_of_its_task(broker: FakeBroker) -> None:
    assert broker.call(bodies.trace_a_thread) == 2
    assert broker.call(bodies.tracers) == ["none"] * 4


def test_the_threads_of_a_worker_do_not_begin_with_what_a_task_has_set(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    try:
        pool.broker.await_end(pool.broker.run(bodies.leave_tracers))
        assert pool.broker.call(worker_bodies.async_add, 1, 1) == 2
    finally:
        pool.close()


DEBUGGER = """
import sys, threading

def see(*_):
    pass

threading.setprofile(see)
sys.setprofile(see)
"""


@pytest.mark.parametrize("slots", [4, 1])
def test_a_trace_function_that_was_there_before_stays(tmp_path: Path, slots: int) -> None:
    (tmp_path / "debugger.py").write_text(DEBUGGER, encoding="utf-8")
    pool = Pool(tmp_path, slots=slots, preload=["debugger"])
    try:
        for _ in range(3):
            assert pool.broker.call(bodies.tracers) == ["none", "see"] * 2
            assert pool.broker.call(bodies.async_tracers) == ["none", "see"] * 4
            pool.broker.await_end(pool.broker.run(bodies.leave_tracers))
    finally:
        pool.close()
