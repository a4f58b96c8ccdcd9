"""The joblib backend. joblib's own tests of backends are run by scripts/conformance."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quiesce import Client, QuiesceError, processes
from quiesce.testing import leaks
from system import System, until, workers_of

joblib: Any = pytest.importorskip("joblib", reason="joblib is not installed (extra: joblib)")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    import quiesce.joblib

    assert quiesce.joblib.NAME in joblib.parallel.BACKENDS


def test_a_private_pool_is_kept_through_a_block_and_ended_with_it() -> None:
    def call() -> tuple[list[int], set[int]]:
        found = joblib.Parallel()(
            joblib.delayed(lambda n: (n * n, os.getpid()))(n) for n in range(20)
        )
        return [square for square, _ in found], {pid for _, pid in found}

    with joblib.parallel_config(backend="quiesce", n_jobs=2) as config:
        squares, first = call()
        assert squares == [n * n for n in range(20)]
        _, second = call()
        assert os.getpid() not in first
        assert len(first | second) <= 2
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel()(joblib.delayed(divmod)(1, n) for n in (1, 0))
        assert call()[0] == squares
    del config
    gc.collect()  # the traceback of the error holds the frames of joblib, and these the backend
    until(lambda: any(map(leaks.is_running, first | second)), lambda left: not left)


# That is what is tested.
@pytest.mark.filterwarnings("ignore:.*gc'ed in an unexpected thread")
@pytest.mark.filterwarnings("ignore:.*have been cancelled")
def test_a_generator_dropped_in_another_thread_ends_no_other_call() -> None:
    """joblib gives it up in a thread of its own, while the next call on the same pool is under way."""
    with joblib.parallel_config(backend="quiesce", n_jobs=2):
        for _ in range(3):
            sleeps = (joblib.delayed(time.sleep)(0.01) for _ in range(50))
            box = [joblib.Parallel(return_as="generator")(sleeps)]
            next(box[0])
            dropping = threading.Thread(target=box.clear)
            dropping.start()
            dropping.join()
            squares = joblib.Parallel(timeout=60)(joblib.delayed(pow)(n, 2) for n in range(100))
            assert squares == [n * n for n in range(100)]
            for thread in threading.enumerate():
                if thread.name == "GeneratorExitThread":
                    thread.join()


def test_a_pool_that_was_killed_fails_its_call_and_is_replaced_for_the_next() -> None:
    ours = os.getpid()

    def kill_pool() -> None:
        supervisor = processes.look(os.getppid())
        assert supervisor is not None
        # Of calls that follow each other at once, the next may find who has adopted the supervisor, or the worker.
        if supervisor.parent > 1 and ours not in (supervisor.pid, supervisor.parent):
            os.kill(supervisor.parent, signal.SIGKILL)

    with joblib.parallel_config(backend="quiesce", n_jobs=2) as config:
        with pytest.raises(QuiesceError):
            joblib.Parallel()(joblib.delayed(kill_pool)() for _ in range(4))
        assert joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(5)) == [0, 1, 4, 9, 16]
    del config
    gc.collect()  # as above


def test_nested_calls_know_it() -> None:
    def nested_call(size: int) -> tuple[list[int], str]:
        default = type(joblib.parallel.get_active_backend()[0]).__name__
        parallel = joblib.Parallel(n_jobs=2, backend="quiesce")
        return parallel(joblib.delayed(pow)(n, 2) for n in range(size)), default

    found = joblib.Parallel(n_jobs=2, backend="quiesce")(
        joblib.delayed(nested_call)(n) for n in (2, 3)
    )
    assert found == [([0, 1], "ThreadingBackend"), ([0, 1, 4], "ThreadingBackend")]


def test_a_call_that_is_given_up_stops_its_own_tasks(run_folder: Path) -> None:
    system = System(run_folder)
    try:
        with Client(system.address) as client:
            until(lambda: workers_of(client, "background"), lambda ready: len(ready) == 2)
            other = client.spawn("background", "compaction", time.sleep, 1000)
            with joblib.parallel_config(backend="quiesce", n_jobs=-1, client=client):
                assert joblib.effective_n_jobs() == 2
                squares = joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(5))
                assert squares == [0, 1, 4, 9, 16]
                began = time.monotonic()
                with pytest.raises(TypeError):
                    joblib.Parallel()(joblib.delayed(time.sleep)(n) for n in ["a", *[100] * 9])
                assert time.monotonic() - began < 50
            # Given the address by Parallel, and stopped by its timeout.
            parallel = joblib.Parallel(
                n_jobs=2, backend="quiesce", address=system.address, timeout=0.1
            )
            with pytest.raises(multiprocessing.TimeoutError):
                parallel(joblib.delayed(time.sleep)(100) for _ in range(3))
            assert [task.id for task in client.tasks()] == [other.id]
            other.shutdown(grace=0)
    finally:
        system.stop()


def test_options_that_fit_no_pool() -> None:
    with (
        pytest.raises(ValueError, match="client or address"),
        joblib.parallel_config(backend="quiesce", runtime="background"),
    ):
        pass
