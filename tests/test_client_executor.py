"""QuiesceExecutor: on a broker that the test plays, and with a private one."""

import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client_fakes import FakeBroker, ended
from quiesce.client.async_client import AsyncClient
from quiesce.client.client import Client
from quiesce.client.engine import Engine
from quiesce.client.executor import QuiesceExecutor
from quiesce.client.remote import Done, Initializer, InitializerFailedError, call, chunk
from quiesce.client.steps import DATA
from quiesce.errors import QuiesceError, ScopeClosedError, TaskCrashedError, TaskFailedError
from quiesce.protocol import from_client, to_client
from quiesce.protocol.callables import pack_exception, pack_value


def work(*_: object) -> Any:
    raise AssertionError("the fake broker runs nothing")


@pytest.fixture
def broker(run_folder: Path) -> Iterator[FakeBroker]:
    broker = FakeBroker(f"ipc://{run_folder}/b")
    yield broker
    broker.stop()


def finish(broker: FakeBroker, number: int, **how: Any) -> None:
    broker.answer(number, number)
    broker.say(DATA, to_client.Ended([ended(number, **how)]))


class FalseyError(Exception):
    def __bool__(self) -> bool:
        return False


def test_results_and_original_exceptions(broker: FakeBroker) -> None:
    with Client(broker.address, timeout=10) as client:
        executor = QuiesceExecutor(2, client=client, runtime="r", kind="k")
        with executor:
            good, bad, dead, falsey = (executor.submit(work, i) for i in range(4))
            row = broker.take(from_client.Spawn).rows[0]
            assert (row.runtime, row.kind, row.name) == ("r", "k", "work")
            finish(broker, 1, result=pack_value(5))
            finish(broker, 2, outcome="failed", text="there", result=pack_exception(KeyError("x")))
            finish(broker, 3, outcome="crashed", exit_status=-11)
            finish(broker, 4, outcome="failed", result=pack_exception(FalseyError()))
            assert good.result(10) == 5
            with pytest.raises(KeyError) as caught:
                bad.result(10)
            assert "there" in str(caught.value.__cause__)
            with pytest.raises(TaskCrashedError):
                dead.result(10)
            assert isinstance(falsey.exception(10), FalseyError)
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(work)
        client.reopen()  # it is not closed with the executor


def test_what_has_not_begun_can_be_cancelled(broker: FakeBroker) -> None:
    executor = QuiesceExecutor(1, address=broker.address)
    futures = [executor.submit(work, i) for i in range(5)]
    broker._wait_for(2)
    assert not futures[0].cancel()
    assert futures[3].cancel()
    executor.shutdown(wait=False, cancel_futures=True)
    finish(broker, 1, result=pack_value(1))
    finish(broker, 2, result=pack_value(2))
    executor.shutdown()
    assert [future.cancelled() for future in futures] == [False, False, True, True, True]
    assert [future.result() for future in futures[:2]] == [1, 2]
    broker.take(from_client.Goodbye)


def test_a_stop_overtakes_what_is_held_back(broker: FakeBroker) -> None:
    """Of chunks, too; and it waits for no callback of a future, which may wait for whoever asks for it."""
    go_on = threading.Event()
    report = to_client.StopReport(
        request=1,
        stop_id=1,
        timed_out=False,
        requested_at=0.0,
        completed_at=0.0,
        tasks=[],
        caller=[],
        collateral=[],
        remaining=[],
    )
    broker.script[from_client.Stop] = lambda stop: report._replace(request=stop.request)
    with Client(broker.address, timeout=10) as client:
        executor = QuiesceExecutor(1, client=client, runtime="r", kind="k", tenant_id="a")
        begun = [executor.submit(work, i) for i in range(2)]
        broker._wait_for(2)
        broker.answer(2, 2)
        begun[0].add_done_callback(lambda _: go_on.wait(10))
        finish(broker, 1, result=pack_value(1))
        assert begun[0].result(10) == 1
        # There is room for it, but the thread that would hand it over is in the callback.
        late = [executor.submit(work, 3), executor.submit(chunk, work, [(4,)])]
        client.shutdown_tasks(tenant_id="other")
        assert broker.take(from_client.Stop).last_spawn == 2
        client.shutdown_tasks(tenant_id="a")
        assert broker.take(from_client.Stop).last_spawn == 2
        later = executor.submit(work, 5)
        go_on.set()
        for future in late:
            with pytest.raises(ScopeClosedError, match=r"the stop of \[tenant_id=a\] came before"):
                future.result(10)
        finish(broker, 2, result=pack_value(2))
        finish(broker, 3, result=pack_value(5))
        assert later.result(10) == 5
        executor.shutdown()
        assert not client._before_stop


class Ending:
    """Whoever rebuilds one ends, unless it takes care."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_what_ends_whoever_rebuilds_it_fails_its_call_alone(broker: FakeBroker) -> None:
    executor = QuiesceExecutor(4, address=broker.address)
    value, error, good = (executor.submit(work, i) for i in range(3))
    shared = executor.submit(chunk, work, [(4,)])
    finish(broker, 1, result=pack_value(Ending()))
    finish(broker, 2, outcome="failed", result=pickle.dumps(Ending()))
    finish(broker, 4, result=pack_value(Done([pack_value([Ending()])], 0.1)))
    for future in (value, shared):
        with pytest.raises(QuiesceError, match="can't be rebuilt here: SystemExit"):
            future.result(10)
    with pytest.raises(TaskFailedError):
        error.result(10)
    finish(broker, 3, result=pack_value(3))
    assert good.result(10) == 3
    executor.shutdown()


def test_callbacks_may_submit_and_bad_arguments_fail_their_call_alone(broker: FakeBroker) -> None:
    executor = QuiesceExecutor(1, address=broker.address)
    second: list[Future[Any]] = []
    first = executor.submit(work)
    first.add_done_callback(lambda _: second.append(executor.submit(work)))
    unsendable = executor.submit(work, (i for i in range(3)))
    finish(broker, 1, result=pack_value(1))
    finish(broker, 2, result=pack_value(2))
    assert first.result(10) == 1
    assert broker.until(lambda: bool(second))
    assert second[0].result(10) == 2
    with pytest.raises(TypeError):
        unsendable.result(10)
    executor.shutdown()


@dataclass
class Unhashable:
    number: int

    def __call__(self) -> None:
        pass


class Incomparable:
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise ValueError("this can't be compared")

    def __call__(self) -> None:
        pass


class Unbound:
    """As the proxies of some libraries are outside of what they are for."""

    def __call__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}: not bound")


@pytest.mark.parametrize("initializer", [None, print])
def test_odd_callables_are_called_or_fail_alone(broker: FakeBroker, initializer: Any) -> None:
    executor = QuiesceExecutor(2, address=broker.address, initializer=initializer)
    callables: tuple[Callable[[], None], ...] = (Unhashable(1), Incomparable())
    for number, odd in enumerate(callables, 1):
        future = executor.submit(odd)
        finish(broker, number, result=pack_value(number))
        assert future.result(10) == number
    with pytest.raises(RuntimeError, match="not bound"):
        executor.submit(Unbound()).result(10)
    last = executor.submit(work)
    finish(broker, 3, result=pack_value(3))
    assert last.result(10) == 3
    executor.shutdown()


@pytest.mark.parametrize("step", ["_begin", "_resolve"])
def test_an_executor_that_fails_inside_leaves_no_future_open(
    broker: FakeBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """Neither the one that it was just about, beginning or ending it, nor the others."""

    def fail(*_: object) -> None:
        raise SystemError("a bug")

    executor = QuiesceExecutor(2, address=broker.address)
    other = executor.submit(work)
    broker.answer(1, 1)
    monkeypatch.setattr(Engine, step, fail)
    future = executor.submit(work)
    if step == "_resolve":
        finish(broker, 2, result=pack_value(2))
    for each in (future, other):
        with pytest.raises(BrokenExecutor, match="failed inside"):
            each.result(10)
    executor.shutdown()
    assert "a QuiesceExecutor has failed" in caplog.text


def test_a_thread_that_python_takes_for_ended_is_given_calls(broker: FakeBroker) -> None:
    """As after a KeyboardInterrupt in `Thread.is_alive` or `join`."""
    executor = QuiesceExecutor(1, address=broker.address)
    executor._engine.thread.is_alive = lambda: False  # type: ignore[method-assign]  # that of CPython
    future = executor.submit(work)
    finish(broker, 1, result=pack_value(1))
    assert future.result(10) == 1
    executor.shutdown()


@pytest.mark.parametrize("wait", [1, 2])
def test_an_executor_whose_making_is_interrupted_ends(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, wait: int
) -> None:
    """In each of the waits: for the thread to have begun, and for it to be connected."""
    before = set(threading.enumerate())
    waits: list[threading.Event] = []

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread():
                waits.append(self)
                if len(waits) == wait:
                    raise KeyboardInterrupt
            return super().wait(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            QuiesceExecutor(1, address=broker.address)
    assert len(waits) == wait
    broker.take(from_client.Goodbye)
    assert broker.until(lambda: set(threading.enumerate()) <= before)


def leave_once(done: list[int]) -> None:
    done.append(3)
    sys.exit(3)


def test_wrong_arguments(broker: FakeBroker) -> None:
    wrongs: tuple[dict[str, Any], ...] = (
        {"max_workers": 0},
        {"runtime": "r"},
        {"client": object(), "address": "x"},
    )
    for wrong in wrongs:
        with pytest.raises(ValueError):
            QuiesceExecutor(**wrong)
    with pytest.raises(TypeError):
        QuiesceExecutor(2, address=broker.address, initializer=3)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match=r"quiesce\.Client"):
        QuiesceExecutor(2, client=AsyncClient(broker.address))  # type: ignore[arg-type]  # on purpose


def test_the_initializer_runs_once_in_a_process_and_may_break_the_executor(
    broker: FakeBroker,
) -> None:
    done: list[int] = []
    for _ in range(2):
        assert call(Initializer("key", done.append, (1,)), max, (1, 2), {}) == 2
    assert done == [1]
    with pytest.raises(BrokenExecutor, match="ZeroDivisionError"):
        call(Initializer("other", divmod, (1, 0)), max, (1, 2), {})
    for _ in range(2):  # it is not run again
        with pytest.raises(BrokenExecutor, match=r"SystemExit\(3\)"):
            call(Initializer("third", leave_once, (done,)), max, (1, 2), {})
    assert done == [1, 3]
    executor = QuiesceExecutor(1, address=broker.address, initializer=divmod, initargs=(1, 0))
    initializer = executor._engine._initializer
    assert initializer is not None
    # Calls may have pools of their own that are broken, also by an initializer.
    errors = [BrokenExecutor("of the call"), InitializerFailedError("of its pool", "other")]
    for number, own in enumerate(errors, 1):
        future = executor.submit(work)
        finish(broker, number, outcome="failed", result=pack_exception(own))
        with pytest.raises(type(own), match="of"):
            future.result(10)
    future = executor.submit(work)
    ours = InitializerFailedError("no", initializer.key)
    finish(broker, 3, outcome="failed", result=pack_exception(ours))
    with pytest.raises(BrokenExecutor, match="no"):
        future.result(10)
    with pytest.raises(BrokenExecutor, match="no"):
        executor.submit(work)
    executor.shutdown()


def test_an_initializer_whose_globals_nobody_would_see_is_warned_of(broker: FakeBroker) -> None:
    found: dict[str, Any] = {"__name__": "__main__", "connection": None}
    exec("def connect(to):\n global connection\n connection = to", found)  # as a script has it
    with pytest.warns(RuntimeWarning, match="sets connection, which no call will see"):
        QuiesceExecutor(1, address=broker.address, initializer=found["connect"]).shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QuiesceExecutor(1, address=broker.address, initializer=lambda: None).shutdown()
        QuiesceExecutor(1, address=broker.address, initializer=os.putenv).shutdown()


def test_an_executor_that_is_dropped_ends(broker: FakeBroker) -> None:
    executor = QuiesceExecutor(1, address=broker.address)
    thread = executor._engine.thread
    del executor
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_private_broker() -> None:
    with QuiesceExecutor(2) as executor:
        assert list(executor.map(pow, [2, 3], [5, 2])) == [32, 9]
        pid = executor.submit(os.getpid).result(30)
        assert pid != os.getpid()
        dead: Future[None] = executor.submit(os._exit, 3)
        with pytest.raises(TaskCrashedError) as caught:
            dead.result(30)
        assert caught.value.exit_status == 3
        assert executor.submit(lambda: 7).result(30) == 7
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(30)


@pytest.mark.slow
def test_a_private_broker_of_a_program_that_forgets_it_ends_with_the_program() -> None:
    program = """
from quiesce import QuiesceExecutor
executor = QuiesceExecutor(1)
future = executor.submit(pow, 2, 5)
future.add_done_callback(lambda f: print(f.result(), flush=True))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "32\n", "")
