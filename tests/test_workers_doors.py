"""What bodies begin in ways that are easily overlooked is part of their task, in real workers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.protocol import from_worker
from quiesce.testing import door_bodies as bodies, worker_bodies
from workers_fakes import FakeBroker, value_of


def assert_silent(broker: FakeBroker, path: Path) -> None:
    before = path.stat().st_size
    broker.settle(0.1)
    assert path.stat().st_size == before


@pytest.mark.parametrize("fn", [bodies.start_new, bodies.equal_threads, bodies.excepthook])
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
