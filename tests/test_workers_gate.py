"""An attempt ends when its body and all that it began have ended, and not before."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from quiesce.protocol import from_worker
from quiesce.testing import worker_bodies as bodies
from workers_fakes import FakeBroker, Pool, value_of


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def assert_silent(broker: FakeBroker, path: Path) -> None:
    before = size(path)
    broker.settle(0.1)
    assert size(path) == before


def _lingers(broker: FakeBroker, key: tuple[int, int]) -> bool:
    return any(isinstance(each, from_worker.Lingering) and each[:2] == key for each in broker.log)


THREADS = [bodies.leave_thread, bodies.leave_executor_call, bodies.leave_to_thread]


@pytest.mark.parametrize("fn", THREADS)
def test_threads_hold_the_attempt(
    broker: FakeBroker, tmp_path: Path, fn: Callable[..., object]
) -> None:
    key = broker.run(fn, str(tmp_path))
    lingering = broker.await_message(from_worker.Lingering)
    assert (lingering.task_id, lingering.attempt) == key
    assert "thread" in lingering.what or "executor call of _tick_until" in lingering.what
    assert key not in broker.ended
    before = size(tmp_path / "thread-ticks")
    broker.wait(lambda: size(tmp_path / "thread-ticks") > before, "ticks")
    bodies.mark(str(tmp_path), "thread-go")
    assert value_of(broker.await_end(key)) == "returned"
    assert_silent(broker, tmp_path / "thread-ticks")


def test_a_thread_sees_the_request_of_its_task(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.leave_aware_thread, str(tmp_path))
    broker.await_file(tmp_path / "thread")
    assert key not in broker.ended
    broker.stop(key)
    end = broker.await_end(key)
    assert end.outcome == "completed"
    assert end.observed_age is not None


def test_to_thread_sees_the_request_of_its_task(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.in_to_thread, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    assert value_of(broker.await_end(key)) == "asked"


def test_idle_executors_hold_nothing(broker: FakeBroker) -> None:
    assert broker.call(bodies.idle_executor) == "returned"


def test_child_tasks_are_cancelled_and_awaited(broker: FakeBroker, tmp_path: Path) -> None:
    assert broker.call(bodies.leave_task, str(tmp_path)) == "returned"
    assert (tmp_path / "task-finally").exists()
    assert_silent(broker, tmp_path / "task-ticks")


def test_callbacks_are_cancelled(broker: FakeBroker, tmp_path: Path) -> None:
    assert broker.call(bodies.leave_timer, str(tmp_path)) == "returned"
    assert_silent(broker, tmp_path / "timer-ticks")


def test_system_exit_in_a_child_task_leaves_the_neighbours(
    pool: Pool, broker: FakeBroker, tmp_path: Path
) -> None:
    neighbour = broker.run(bodies.watcher, str(tmp_path), "neighbour")
    if pool.settings.slots > 1:
        broker.await_file(tmp_path / "neighbour")
        assert broker.call(bodies.exit_in_child, str(tmp_path)) == "went on"
    broker.await_file(tmp_path / "neighbour")
    broker.stop(neighbour)
    assert broker.await_end(neighbour).outcome == "completed"
    assert not broker.exits


PROCESSES: list[tuple[Callable[..., object], tuple[object, ...]]] = [
    (bodies.leave_process, ()),
    (bodies.leave_process, ({"ONLY": "this"},)),
    (bodies.leave_daemon, ()),
    (bodies.leave_forked_daemon, ()),
    (bodies.leave_multiprocessing, ("fork",)),
    (bodies.leave_multiprocessing, ("spawn",)),
]
NAMES = ["subprocess", "own environment", "daemon", "forked daemon", "fork", "spawn"]


@pytest.mark.parametrize(("fn", "args"), PROCESSES, ids=NAMES)
def test_processes_hold_the_attempt(
    broker: FakeBroker, tmp_path: Path, fn: Callable[..., object], args: tuple[object, ...]
) -> None:
    key = broker.run(fn, str(tmp_path), *args)
    lingering = broker.await_message(
        from_worker.Lingering, lambda each: "child process" in each.what
    )
    assert (lingering.task_id, lingering.attempt) == key
    broker.wait(lambda: size(tmp_path / "process-ticks"), "ticks")
    assert key not in broker.ended
    bodies.mark(str(tmp_path), "process-go")
    assert value_of(broker.await_end(key)) == "returned"
    assert_silent(broker, tmp_path / "process-ticks")


@pytest.mark.parametrize(("fn", "args"), PROCESSES, ids=NAMES)
def test_force_kills_processes(
    broker: FakeBroker, tmp_path: Path, fn: Callable[..., object], args: tuple[object, ...]
) -> None:
    key = broker.run(fn, str(tmp_path), *args)
    broker.wait(lambda: size(tmp_path / "process-ticks"), "ticks")
    broker.stop(key)
    broker.settle(0.05)
    assert key not in broker.ended
    broker.force(key)
    end = broker.await_end(key)
    assert end.outcome == "completed"  # its body had returned
    assert_silent(broker, tmp_path / "process-ticks")


def test_processes_of_a_fork_server(tmp_path: Path) -> None:
    """They are no children of the worker's; the server itself stays, and goes with the worker."""
    pool = Pool(tmp_path)
    try:
        broker = pool.broker
        broker.await_peer()
        for n in range(2):
            folder = tmp_path / str(n)
            folder.mkdir()
            key = broker.run(bodies.leave_multiprocessing, str(folder), "forkserver")
            broker.wait((folder / "process-ticks").exists, "ticks")
            broker.wait(partial(_lingers, broker, key), "Lingering")
            assert key not in broker.ended
            broker.force(key)
            assert broker.await_end(key).outcome == "completed"
            assert_silent(broker, folder / "process-ticks")
    finally:
        pool.close()


def test_the_next_attempt_is_not_held_by_helpers(broker: FakeBroker) -> None:
    """A resource tracker and a fork server stay for the whole life of the process."""
    assert broker.call(bodies.shell, "exit 3") == 3
    assert broker.call(bodies.shell, "kill -9 $$") == -9
    assert broker.call(bodies.run_process, "raise SystemExit(4)") == 4
    assert broker.call(bodies.async_process, "raise SystemExit(5)") == 5


def test_the_status_of_a_child_is_its_parents(broker: FakeBroker) -> None:
    assert broker.call(bodies.wait_status) == 7


def test_a_forked_child_that_comes_back_is_no_worker(broker: FakeBroker) -> None:
    assert broker.call(bodies.fork_and_return) == "parent"
    assert broker.call(bodies.add, 1, 1) == 2
    assert len(broker.ended) == len(set(broker.ended))


def test_nothing_of_a_stopped_task_is_left_in_the_worker(pool: Pool, broker: FakeBroker) -> None:
    """Descriptors: pidfds and pipes are given back."""
    pid = broker.await_peer().hello.pid
    broker.call(bodies.run_process, "pass")
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(5):
        broker.call(bodies.run_process, "pass")
    broker.wait(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before, "descriptors given back")
