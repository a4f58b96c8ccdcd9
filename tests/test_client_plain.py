"""Client and TaskHandle against a broker that the test plays itself, over real sockets."""

import asyncio
import gc
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from client_fakes import FakeBroker, ended, stop_report, task_row
from quiesce import context, errors
from quiesce.client import checks, connection, driver, events, outcomes
from quiesce.client.async_client import AsyncClient
from quiesce.client.base import BaseClient
from quiesce.client.client import Client
from quiesce.client.nested import NestedClient, open_client
from quiesce.client.outcomes import missed
from quiesce.client.steps import CONTROL, DATA
from quiesce.client.task_future import TaskFuture
from quiesce.client.waiting import LONG
from quiesce.errors import (
    BrokerUnavailableError,
    PayloadTooLargeError,
    QueueFullError,
    QuiesceError,
    ScopeClosedError,
    ShutdownRequested,
    ShutdownTimeoutError,
    TaskCancelledError,
    TaskCrashedError,
    TaskFailedError,
    TaskLostError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from quiesce.locks import Lock
from quiesce.protocol import from_client, to_client
from quiesce.protocol.callables import pack_exception, pack_function, pack_value
from quiesce.registry.ids import SpawnNumber, TaskId
from quiesce.registry.rows import TIMED_OUT, EndedStopRow, SpawnAnswer, SpawnRow
from quiesce.registry.states import Evidence, Outcome
from quiesce.values import EndedStop, Event, TaskInfo


def work(*_: object) -> Any:
    raise AssertionError("the fake broker runs nothing")


@pytest.fixture
def broker(run_folder: Path) -> Iterator[FakeBroker]:
    broker = FakeBroker(f"ipc://{run_folder}/b")
    yield broker
    broker.stop()


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client(broker.address, timeout=10) as client:
        yield client


def test_spawn_answer_and_result(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work, 1, tenant_id="t")
    spawn = broker.take(from_client.Spawn)
    assert [row.number for row in spawn.rows] == [1]
    assert (spawn.rows[0].name, spawn.rows[0].tenant_id) == ("work", "t")
    assert not handle.done()
    broker.answer(1, 41)
    assert handle.id == TaskId(41)
    assert not handle.wait(0)
    with pytest.raises(TimeoutError, match="41"):
        handle.result(0)
    broker.say(DATA, to_client.Ended([ended(41, result=pack_value([7]))]))
    assert handle.result(10) == [7]
    assert handle.result() is handle.result()
    assert handle.wait()
    assert handle.done()
    assert handle.exception() is None
    assert broker.take(from_client.ResultsTaken).task_ids == [41]


@pytest.mark.parametrize(
    ("outcome", "exception", "expected"),
    [
        ("failed", ValueError("x"), TaskFailedError),
        ("crashed", None, TaskCrashedError),
        ("lost", None, TaskLostError),
        ("cancelled", None, TaskCancelledError),
    ],
)
def test_ends_as_errors(
    broker: FakeBroker,
    client: Client,
    outcome: str,
    exception: Exception | None,
    expected: type[Exception],
) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 5)
    result = b"" if exception is None else pack_exception(exception)
    row = ended(5, outcome=outcome, exit_status=-9, text="Traceback: here", result=result)
    broker.say(DATA, to_client.Ended([row]))
    with pytest.raises(expected, match="here") as caught:
        handle.result(10)
    assert type(caught.value) is expected
    assert type(caught.value.__cause__) is type(exception)
    assert type(handle.exception()) is expected
    if isinstance(caught.value, TaskCrashedError):
        assert caught.value.exit_status == -9


class Leaving:
    """Ends whoever rebuilds it."""

    def __reduce__(self) -> Any:
        return sys.exit, (4,)


def test_a_result_that_would_end_the_program_is_one_that_cannot_be_rebuilt(
    broker: FakeBroker, client: Client
) -> None:
    value, error = client.spawn_many("background", "compaction", work, [1, 2])
    broker.answer(1, 5)
    broker.answer(2, 6)
    rows = [
        ended(5, result=pack_value(Leaving())),
        ended(6, outcome="failed", text="Traceback", result=pickle.dumps(Leaving())),
    ]
    broker.say(DATA, to_client.Ended(rows))
    with pytest.raises(QuiesceError, match="can't be rebuilt here: SystemExit"):
        value.result(10)
    with pytest.raises(TaskFailedError, match="Traceback") as caught:
        error.result(10)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("odd", "error", "words"),
    [
        (math.nan, ValueError, "must be a number of seconds or None"),
        ("1", TypeError, "must be a number of seconds or None"),
        (True, TypeError, "must be a number of seconds or None"),
        (10**400, ValueError, "has no room for so many seconds"),
    ],
)
def test_waits_of_no_length_are_refused(
    broker: FakeBroker, client: Client, odd: Any, error: type[Exception], words: str
) -> None:
    handle = client.spawn("background", "compaction", work)
    for call in (handle.result, handle.exception, handle.wait):
        with pytest.raises(error, match=f"timeout {words}"):
            call(odd)
    assert not handle.wait(-1)
    broker.answer(1, 5)


def test_a_task_that_ran_too_long_is_told_from_one_that_raised_timeout_error(
    broker: FakeBroker, client: Client
) -> None:
    """Its own timeout is said by the broker, in the text; an exception of that class is the task's own."""
    for number, (task_id, text, result, expected) in enumerate(
        [
            (5, f"{TIMED_OUT}its timeout of 2.0 s", b"", TaskTimeoutError),
            (6, "Traceback", pack_exception(TaskTimeoutError("of another")), TaskFailedError),
        ],
        1,
    ):
        handle = client.spawn("background", "compaction", work)
        broker.answer(number, task_id)
        row = ended(task_id, outcome="failed", text=text, result=result)
        broker.say(DATA, to_client.Ended([row]))
        with pytest.raises(expected):
            handle.result(10)


def test_refusals_are_raised_by_each_look(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.refuse(1, "QueueFullError", "no room")
    for look in (lambda: handle.id, handle.wait, handle.result):
        with pytest.raises(QueueFullError, match="no room"):
            look()
    assert isinstance(handle.exception(), QueueFullError)
    assert handle.done()


def test_a_refusal_that_nobody_saw_is_logged(
    broker: FakeBroker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    handles = client.spawn_many("background", "compaction", work, range(3))
    broker.refuse_all("ScopeClosedError", "closed", numbers=range(1, 4))
    assert broker.until(lambda: all(handle.done() for handle in handles))
    assert not caplog.records
    handles.clear()
    gc.collect()
    assert [(record.levelno, record.name) for record in caplog.records] == [
        (logging.WARNING, "quiesce")
    ]
    seen = client.spawn("background", "compaction", work)
    broker.refuse(4, "ScopeClosedError", "closed")
    with pytest.raises(ScopeClosedError):
        seen.result(10)
    caplog.clear()
    del seen
    gc.collect()
    assert not caplog.records
    unseen = client.spawn("background", "compaction", work)
    broker.refuse(5, "ScopeClosedError", "closed")
    assert broker.until(unseen.done)
    client.close()
    assert len(caplog.records) == 1


def test_too_large_is_refused_here_and_takes_no_number(broker: FakeBroker, client: Client) -> None:
    large = client.spawn("background", "compaction", work, b"x" * 70_000_000)
    small = client.spawn("background", "compaction", work)
    with pytest.raises(PayloadTooLargeError, match="64000000") as caught:
        large.wait()
    assert "7000" in str(caught.value)
    many = client.spawn_many("background", "compaction", work, [b"x", b"x" * 70_000_000])
    with pytest.raises(PayloadTooLargeError, match="item 1"):
        many[0].result()
    broker.answer(1, 3)
    assert small.id == 3


def test_too_many_together_are_refused_here(
    broker: FakeBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TOGETHER_LIMIT", 2)
    with pytest.raises(
        PayloadTooLargeError, match=r"3 spawns of .*work were asked for.* limit is 2"
    ):
        client.spawn_many("background", "compaction", work, range(3))[0].result()
    two = client.spawn_many("background", "compaction", work, range(2))
    assert broker.take(from_client.SpawnMany).common.number == 1
    broker.answer(1, 3)
    broker.answer(2, 4)
    assert [handle.id for handle in two] == [3, 4]


def test_what_is_asked_again_is_looked_at_again(
    broker: FakeBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked and packed before is used for the same objects only, found where they were."""

    def spawned(fn: Callable[..., Any], **options: Any) -> SpawnRow:
        client.spawn("background", "compaction", fn, **options)
        (row,) = broker.take(from_client.Spawn).rows
        broker.answer(row.number, 10 + row.number)
        return row

    first = spawned(work, retries=1, name="a")
    assert spawned(work, retries=1, name="a") == first._replace(number=SpawnNumber(2))
    assert spawned(work, retries=1, name="b").name == "b"
    with pytest.raises(TypeError, match="retries"):
        client.spawn("background", "compaction", work, retries=True, name="a")
    original, by_name = work, pack_function(work)
    assert spawned(original).function == by_name
    monkeypatch.setattr(sys.modules[__name__], "work", lambda: None)
    assert spawned(original).function != by_name


def test_a_held_handle_does_not_hold_the_arguments(broker: FakeBroker, client: Client) -> None:
    sent = client.spawn("background", "compaction", work, b"x")
    broker.answer(1, 3)
    assert sent.id == 3
    refused = client.spawn("background", "compaction", work, b"x" * 70_000_000)
    assert [handle._record.row for handle in (sent, refused)] == [None, None]


def test_a_held_handle_does_not_hold_the_packed_result(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 5)
    broker.say(DATA, to_client.Ended([ended(5, result=pack_value(b"x" * 1000))]))
    assert handle.exception(10) is None
    assert len(handle.result()) == 1000
    assert handle._record.result is None
    assert handle.exception() is None  # it is not taken for one whose result is lost
    assert handle.result() is handle.result()
    assert "completed" in repr(handle)


_both_rebuild = threading.Barrier(2)


class Slow:
    """Rebuilt by two threads at once."""

    def __reduce__(self) -> Any:
        return _rebuild_slowly, ()


def _rebuild_slowly() -> object:
    _both_rebuild.wait(10)
    return object()


def test_threads_that_ask_at_once_get_the_same_object(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 5)
    broker.say(DATA, to_client.Ended([ended(5, result=pack_value(Slow()))]))
    asked = [in_thread(handle.result) for _ in range(2)]
    for thread, _ in asked:
        thread.join(10)
    (one,), (other,) = (found for _, found in asked)
    assert type(one) is object
    assert one is other


def test_spawn_many(broker: FakeBroker, client: Client) -> None:
    assert client.spawn_many("background", "compaction", work, []) == []
    handles = client.spawn_many("background", "compaction", work, [(1, 2), 3, [4]])
    message = broker.take(from_client.SpawnMany)
    assert message.common.number == 1
    assert len(message.arguments) == 3
    answers = [SpawnAnswer(SpawnNumber(n), TaskId(10 + n), None, "") for n in (1, 2, 3)]
    broker.say(DATA, to_client.SpawnAnswers(answers))
    assert [handle.id for handle in handles] == [11, 12, 13]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"tenant_id": 3}, TypeError),
        ({"tenant_id": "\ud800"}, ValueError),
        ({"timeline_id": b"x"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": "2"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"restart": "sometimes"}, ValueError),
        ({"shutdown_process_on_error": 1}, TypeError),
        ({"kwargs": [1]}, TypeError),
        ({"name": 5}, TypeError),
        ({"name": "x" * 5000}, PayloadTooLargeError),
        ({"timeout": 10**400}, ValueError),
        ({"unique_key": 5}, TypeError),
    ],
)
def test_wrong_arguments_are_told_at_once(
    client: Client, wrong: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        client.spawn("background", "compaction", work, **wrong)  # type: ignore[call-arg,call-overload]  # wrong on purpose


def test_more_wrong_arguments(client: Client) -> None:
    with pytest.raises(TypeError, match="callable"):
        client.spawn("background", "compaction", 3)  # type: ignore[call-overload]  # on purpose
    with pytest.raises(TypeError, match="kind"):
        client.spawn("background", None, work)  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(ValueError, match="grace"):
        client.shutdown_tasks(grace=-1)
    with pytest.raises(ValueError, match="state"):
        client.tasks(state="stuck")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="task id"):
        client.task("7")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="keep_closed"):
        client.shutdown_tasks(keep_closed="no")  # type: ignore[arg-type]  # wrong on purpose
    long = "x" * 5000
    for call in (
        lambda: client.spawn(long, "compaction", work),
        lambda: client.spawn("background", long, work),
        lambda: client.tasks(tenant_id=long),
        lambda: client.shutdown_tasks(reason=long),
    ):
        with pytest.raises(PayloadTooLargeError, match="5000 characters"):
            call()


def test_a_function_whose_name_can_not_travel(broker: FakeBroker, client: Client) -> None:
    def odd() -> None:
        pass

    odd.__qualname__ = "odd\ud800é"
    assert client.spawn("background", "compaction", odd).name == r"odd\ud800é"
    assert broker.take(from_client.Spawn).rows[0].name == r"odd\ud800é"
    broker.answer(1, 1)


# --- stops ---------------------------------------------------------------------------------------


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Run `call` in a thread; its outcome goes into the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # handed to the test
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_a_stop_names_the_last_spawn_and_gives_the_report(
    broker: FakeBroker, client: Client
) -> None:
    for _ in range(3):
        client.spawn("background", "compaction", work)
    thread, found = in_thread(lambda: client.shutdown_tasks(tenant_id="t", reason="why", grace=2))
    stop = broker.take(from_client.Stop)
    assert stop == from_client.Stop(
        1, (None, "t", None, None), None, 2.0, None, False, False, "why", 3, None
    )
    broker.answer_all(3)
    broker.say(CONTROL, stop_report(1, tasks=[9]))
    thread.join()
    (report,) = found
    assert report.tasks[0].id == 9
    assert report.scope == "tenant_id=t"
    assert report.reason == "why"


def test_a_stop_that_times_out_carries_its_report(broker: FakeBroker, client: Client) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(
        m.request, remaining=[4], timed_out=True
    )
    with pytest.raises(ShutdownTimeoutError, match=r"4 \(work\).*stays closed") as caught:
        client.shutdown_tasks(timeout=0.5)
    assert caught.value.report is not None
    assert [task.id for task in caught.value.report.remaining] == [4]
    with pytest.raises(ShutdownTimeoutError), client.stopped(timeout=0.5):
        pytest.fail("the block must not be entered")
    assert broker.count(from_client.Release) == 0


def test_a_stop_of_nothing_that_times_out_says_what_it_waits_for(
    broker: FakeBroker, client: Client
) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, timed_out=True)
    with pytest.raises(ShutdownTimeoutError, match=r"spawns made before it .* stays closed"):
        client.shutdown_tasks(tenant_id="t", timeout=0)


def test_stopped_releases_also_when_the_body_raises(broker: FakeBroker, client: Client) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=77)
    with client.stopped(tenant_id="t") as report:
        assert report.scope == "tenant_id=t"
        assert broker.count(from_client.Release) == 0
    assert broker.take(from_client.Release).stop_id == 77
    with pytest.raises(KeyError), client.stopped(tenant_id="t"):
        raise KeyError
    assert broker.take(from_client.Release).stop_id == 77


def test_a_held_scope_whose_block_was_never_entered_is_released(
    broker: FakeBroker, client: Client
) -> None:
    broker.mute.add(from_client.Stop)
    client.timeout = 0.05
    unavailable = pytest.raises(BrokerUnavailableError, match="the stop of tenant_id=t")
    with unavailable, client.stopped(tenant_id="t", timeout=0.05):
        pytest.fail("the block must not be entered")
    client.timeout = 10
    request = broker.take(from_client.Stop).request
    broker.say(CONTROL, stop_report(request, stop_id=5))
    assert broker.take(from_client.Release).stop_id == 5


@pytest.mark.parametrize("wrong", [math.nan, -1, True, "1", Fraction(1), 10**400])
def test_a_stop_with_a_wrong_argument_stops_nothing(
    broker: FakeBroker, client: Client, wrong: Any
) -> None:
    handle = client.spawn("background", "compaction", work)
    for name in ("timeout", "grace"):
        with pytest.raises((TypeError, ValueError), match=name):
            handle.shutdown(**{name: wrong})  # before the task is known, too
    broker.answer(1, 8)
    assert handle.id == 8
    with pytest.raises((TypeError, ValueError), match="timeout"):
        handle.shutdown(timeout=wrong)
    client.reopen()  # a stop would have been sent before
    assert broker.count(from_client.Stop) == 0


def test_what_arrives_after_a_rejection_is_of_nobody(
    broker: FakeBroker,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one turn: the refusal of a broker, and what the broker before it had sent."""
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 7)
    assert handle.id == TaskId(7)
    connection = client._driver._connection
    receive, arrived = connection.receive, list[tuple[str, Any]]()

    def receive_both(limit: int) -> list[tuple[str, Any]]:
        arrived.extend(receive(limit))
        both = sorted(arrived, key=itemgetter(0)) if len({name for name, _ in arrived}) == 2 else []
        if both:
            arrived.clear()
        return both

    assert CONTROL < DATA, "what is said first is taken first"
    monkeypatch.setattr(connection, "receive", receive_both)
    broker.say(DATA, to_client.Ended([ended(7, result=pack_value(1))]))
    broker.say(CONTROL, to_client.Refused(0, "ProtocolError", "another version"))
    with pytest.raises(errors.ProtocolError, match="another version"):
        handle.result(10)
    assert broker.until(lambda: client._driver.ended.over)
    with pytest.raises(errors.ProtocolError, match="another version"):
        client.spawn("background", "compaction", work)
    assert "has failed" not in caplog.text


def test_a_client_whose_making_is_interrupted_ends(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the wait for its thread to have begun, which begins all the same."""
    before = set(threading.enumerate())

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Interrupted)
        with pytest.raises(
            KeyboardInterrupt
        ) as interrupt:  # kept, as by an interactive interpreter
            Client(broker.address)
    assert broker.until(lambda: set(threading.enumerate()) <= before)
    assert interrupt.traceback


class _Interrupt:
    """Raises KeyboardInterrupt when the thread has entered and left so many functions of the client."""

    def __init__(self, number: int, last: str) -> None:
        self.left = number
        #: The return from this one is the end of all.
        self._last = last
        self._folder = f"{os.sep}client{os.sep}"

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if event not in ("call", "return") or self._folder not in frame.f_code.co_filename:
            return self
        if frame.f_code.co_name == self._last and event == "return":
            sys.settrace(None)
            return None
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt  # as a handler of a signal does, at such places among others
        return self


@pytest.mark.parametrize("way", ["in", "out"])
def test_an_interrupt_on_the_way_leaves_no_scope_closed(
    broker: FakeBroker, client: Client, way: str
) -> None:
    """Wherever it comes, the broker hears of the end of each block whose stop it has heard of."""
    stops: list[int] = []

    def answer(message: from_client.Stop) -> to_client.StopReport:
        stops.append(message.request)
        return stop_report(message.request, stop_id=message.request)

    def release(message: from_client.Release) -> to_client.Done:
        if message.stop_id in stops:
            stops.remove(message.stop_id)
        return to_client.Done(message.request)

    broker.script[from_client.Stop] = answer
    broker.script[from_client.Release] = release
    number, interrupted = 0, True
    before = sys.gettrace()
    while interrupted:
        number += 1
        block = client.stopped(tenant_id="t")
        if way == "out":
            block.__enter__()
        interrupt = _Interrupt(number, "__enter__" if way == "in" else "__exit__")
        if way == "out":
            interrupt.left += 1  # the call of __exit__ itself, before anything of it has run
        sys.settrace(interrupt)
        try:
            if way == "in":
                block.__enter__()
            else:
                block.__exit__(None, None, None)
            interrupted = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if way == "in" and not interrupted:
            block.__exit__(None, None, None)
        client.reopen()  # its answer comes after that of the stop, if there was one
        assert broker.until(lambda: not stops), f"interrupt {number} left the scope closed"
    assert number > 10


def test_a_closed_client_keeps_nothing_of_what_it_refuses(client: Client) -> None:
    client.close()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="closed"):
            client.tasks()
    assert not client._driver._mail.commands


def test_a_block_is_left_once(broker: FakeBroker, client: Client) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=77)
    block = client.stopped(tenant_id="t")
    with pytest.raises(RuntimeError, match="not entered, or has been left"):
        block.__exit__(None, None, None)
    with block:
        pass
    with pytest.raises(RuntimeError, match="not entered, or has been left"):
        block.__exit__(None, None, None)
    assert broker.take(from_client.Release).stop_id == 77
    assert broker.count(from_client.Release) == 1


def test_handle_shutdown(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 8)
    assert handle.id == 8
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, tasks=[8])
    thread, found = in_thread(
        lambda: (handle.shutdown(grace=1, timeout=5, reason="moved"), handle.done())
    )
    stop = broker.take(from_client.Stop)
    assert (stop.task_id, stop.grace, stop.reason) == (8, 1.0, "moved")
    client.reopen()  # its answer comes after the report
    assert found == []
    broker.say(DATA, to_client.Ended([ended(8, outcome="cancelled")]))
    thread.join(10)
    ((report, done),) = found
    assert (report.tasks[0].id, report.reason, done) == (8, "moved", True)


def test_the_stop_of_a_task_that_runs_out_of_time_names_the_timeout_that_was_asked_for(
    broker: FakeBroker, client: Client
) -> None:
    """Not what was left of it once the task's id was known."""
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 8)
    broker.script[from_client.Stop] = lambda m: stop_report(
        m.request, remaining=[8], timed_out=True
    )
    with pytest.raises(ShutdownTimeoutError, match=r"not ended within 3 s: 1 of 1 task goes on"):
        handle.shutdown(timeout=3)
    assert broker.take(from_client.Stop).timeout < 3  # type: ignore[operator]  # it is given


def test_a_stop_waits_for_the_ends_of_spawns_that_were_not_answered_before_it(
    broker: FakeBroker, client: Client
) -> None:
    handles = [client.spawn("background", "compaction", work) for _ in range(3)]
    thread, found = in_thread(client.shutdown_tasks)
    request = broker.take(from_client.Stop).request
    broker.say(CONTROL, stop_report(request, tasks=[11, 12]))
    client.reopen()
    assert found == []
    broker.answer(1, 11)
    broker.refuse(2, "QueueFullError", "no room")
    broker.answer(3, 13)  # another broker's idea of order: not of this stop
    assert handles[2].id == 13
    assert found == []
    broker.say(DATA, to_client.Ended([ended(11)]))
    thread.join(10)
    assert [task.id for task in found[0].tasks] == [11, 12]
    assert [handle.done() for handle in handles] == [True, True, False]
    assert isinstance(handles[1].exception(), errors.QueueFullError)


def test_a_report_whose_ends_do_not_come_is_given_all_the_same(
    broker: FakeBroker, client: Client
) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 8)
    assert handle.id == 8
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, tasks=[8])
    client.timeout = 0.05
    assert client.shutdown_tasks().tasks[0].id == 8
    assert not handle.done()


WAITS = "the task, to look: …; its grace is over, but its process can't be killed: 1 other task runs there"


def test_a_stop_that_times_out_says_what_its_first_tasks_wait_for(
    broker: FakeBroker, client: Client
) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(
        m.request, remaining=range(4, 11), timed_out=True, waiting_for=WAITS
    )
    with pytest.raises(ShutdownTimeoutError) as caught:
        client.shutdown_tasks(timeout=0.5)
    text = str(caught.value)
    assert f"4 (work; waits for {WAITS}), 5 (work; waits" in text
    assert text.count("waits for") == 5
    assert " and 2 more. The scope stays closed" in text


def test_a_client_closed_inside_its_block_leaves_the_scope_to_the_broker(
    broker: FakeBroker,
) -> None:
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=77)
    with Client(broker.address, timeout=10) as client, client.stopped(tenant_id="t"):
        client.close()
    broker.take(from_client.Goodbye)
    assert broker.count(from_client.Release) == 0


def test_a_block_that_nobody_leaves_is_collected_in_silence(
    broker: FakeBroker, client: Client
) -> None:
    """That it is silent, the filter of warnings checks: what is raised there would be one."""
    broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=77)
    block = client.stopped(tenant_id="t")
    block.__enter__()
    with pytest.raises(RuntimeError, match="entered already"):
        block.__enter__()
    del block
    gc.collect()
    block = client.stopped(tenant_id="t")
    block.__enter__()
    client.close()
    del block
    gc.collect()
    assert broker.count(from_client.Release) == 0


def test_the_end_of_a_block_reaches_a_broker_that_was_away(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"
    with FakeBroker(address) as broker:
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=77)
        client = Client(address, timeout=10)
        block = client.stopped(tenant_id="t")
        block.__enter__()
    assert broker.until(lambda: client._driver.silence() is not None)
    client.timeout = 0.01
    with pytest.raises(BrokerUnavailableError, match="block"):
        block.__exit__(None, None, None)
    with FakeBroker(address, epoch=2, known=True) as broker:
        assert broker.take(from_client.Release).stop_id == 77
        client.timeout = 10
        client.close()


# --- queries -------------------------------------------------------------------------------------


def test_queries(broker: FakeBroker, client: Client) -> None:
    broker.script[from_client.ListTasks] = lambda m: to_client.Tasks(m.request, [task_row(3)])
    (task,) = client.tasks(kind="compaction", state="running")
    assert task.id == 3
    assert broker.take(from_client.ListTasks).scope == ("compaction", None, None, None)
    broker.script[from_client.GetTask] = lambda m: to_client.Refused(
        m.request, "TaskNotFoundError", "no task 3"
    )
    with pytest.raises(TaskNotFoundError, match="no task 3"):
        client.task(3)
    broker.script[from_client.GetStatistics] = lambda m: to_client.Statistics(m.request, {"a": 1})
    assert client.statistics() == {"a": 1}
    broker.script[from_client.GetBroker] = lambda m: to_client.Broker(
        m.request, 5, 1, broker.address, "0.1.0", "running", "crash"
    )
    assert client.broker_info().pid == 5
    client.reopen(tenant_id="t")
    broker.script[from_client.GetWorkers] = lambda m: to_client.Workers(m.request, [])
    broker.script[from_client.GetClosed] = lambda m: to_client.Closed(m.request, [])
    broker.script[from_client.GetStops] = lambda m: to_client.Stops(m.request, [])
    broker.script[from_client.GetStacks] = lambda m: to_client.Stacks(m.request, [])
    assert not (client.workers())
    assert not (client.closed_scopes())
    assert not (client.stops())
    assert not (client.stacks())
    broker.script[from_client.GetHistory] = lambda m: to_client.History(
        m.request,
        [
            EndedStopRow(
                *(7, None, "t", None, None, None, "why", 1.0, 2.0, True),
                *([("completed", 2)], [("REAPED", 2)], 1, True, "process 5 on h"),
            ),
            EndedStopRow(
                *(8, "gc", "t", None, "background", 12, "", 2.0, 3.0, False),
                *([], [], 0, False, "the system"),
            ),
        ],
    )
    first, second = client.history(tenant_id="t")
    assert first == EndedStop(
        id=7,
        scope="tenant_id=t",
        reason="why",
        requested_at=1.0,
        completed_at=2.0,
        timed_out=True,
        outcomes={Outcome.COMPLETED: 2},
        evidence={Evidence.REAPED: 2},
        remaining=1,
        keep_closed=True,
        by="process 5 on h",
    )
    assert (second.id, second.scope) == (8, "task 12")
    assert broker.take(from_client.GetHistory).scope == (None, "t", None, None)


@pytest.mark.parametrize(
    "value",
    [
        EndedStop(id=1, scope="", reason="", requested_at=1.0, completed_at=2.0),
        Event(type="task-ended", at=1.0, data={"outcome": "failed"}),
        outcomes.task_info(task_row(3)),
        outcomes.shutdown_report(stop_report(1, tasks=[3]), "t", ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_can_be_members_of_sets(value: object) -> None:
    assert {value, pickle.loads(pickle.dumps(value))} == {value}


def test_stacks_of_tasks_by_their_ids(broker: FakeBroker, client: Client) -> None:
    broker.script[from_client.GetStacks] = lambda m: to_client.Stacks(m.request, [])
    for task_ids, sent in ((None, []), ([3, 1], [3, 1]), ([], [0])):
        assert client.stacks(task_ids=task_ids) == []
        assert broker.take(from_client.GetStacks).task_ids == sent
    with pytest.raises(ValueError, match="from 1"):
        client.stacks(task_ids=[0])


def test_no_answer_within_the_timeout(broker: FakeBroker, client: Client) -> None:
    broker.mute.add(from_client.GetBroker)
    client.timeout = 0.05
    with pytest.raises(BrokerUnavailableError, match="broker_info"):
        client.broker_info()
    handle = client.spawn("background", "compaction", work)
    with pytest.raises(BrokerUnavailableError, match="spawn of work"):
        _ = handle.id
    broker.answer(1, 3)
    client.timeout = 10
    assert handle.id == 3


def test_events(broker: FakeBroker, client: Client) -> None:
    stream = client.events()
    broker.take(from_client.Subscribe)
    broker.say(CONTROL, to_client.Event("task-ended", 1.5, 3, {"a": 1}, 2))
    mark, event = next(stream), next(stream)
    assert (mark.type, mark.data) == ("missed", {"count": 2})
    assert (event.type, event.task_id, event.data) == ("task-ended", 3, {"a": 1})
    broker.say(CONTROL, to_client.HelloWanted(1))
    mark = next(stream)
    assert (mark.type, mark.data["count"]) == ("missed", None)
    assert "some events may be missing" in mark.data["text"]
    thread, found = in_thread(lambda: list(stream))
    stream.close()
    thread.join()
    assert found == [[]]
    broker.take(from_client.Unsubscribe)
    other = client.events()
    client.close()
    assert list(other) == []


def test_a_stream_holds_its_client(broker: FakeBroker) -> None:
    stream = Client(broker.address, timeout=10).events()
    broker.take(from_client.Subscribe)
    gc.collect()
    broker.say(CONTROL, to_client.Event("e", 1.0, None, {}, 0))
    assert next(stream).type == "e"
    stream.close()
    gc.collect()
    broker.take(from_client.Goodbye)


@pytest.mark.parametrize("kind", [events.EventStream, events.AsyncEventStream])
def test_a_stream_that_was_not_made_goes_in_silence(
    kind: type[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(TypeError):
        kind()
    gc.collect()
    assert said == []


def test_a_slow_reader_is_told_how_many_unless_nobody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "LIMIT", 1)
    inbox = events.Inbox(Lock())
    others = [Event(type="x", at=float(number)) for number in range(3)]
    for gone, count in ((missed(4, 0.0), 6), (missed(None, 0.0), None)):
        inbox.feed([gone, *others])
        told = inbox.take()
        assert isinstance(told, Event)
        assert (told.type, told.at, told.data["count"]) == ("missed", 1.0, count)
        assert inbox.take() == others[-1]


# --- connections ---------------------------------------------------------------------------------


def test_no_broker(run_folder: Path) -> None:
    with pytest.raises(BrokerUnavailableError, match=r"quiesce up") as caught:
        Client(f"ipc://{run_folder}/none", timeout=0.1)
    assert f"{run_folder}/none" in str(caught.value)


def test_the_broker_may_start_later(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"
    thread, found = in_thread(lambda: Client(address, timeout=30))
    with FakeBroker(address) as broker:
        thread.join()
        (client,) = found
        assert isinstance(client, Client)
        client.close()
        broker.take(from_client.Goodbye)


def test_another_version_is_refused(broker: FakeBroker) -> None:
    broker.version = 99
    with pytest.raises(errors.ProtocolError, match="99"):
        Client(broker.address, timeout=10)


def test_a_restarted_broker_gets_everything_that_is_unanswered(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"
    with FakeBroker(address) as broker:
        client = Client(address, timeout=10)
        first = client.spawn("background", "compaction", work)
        broker.answer(1, 1)
        assert first.id == 1
        second = client.spawn("background", "compaction", work)
        broker.mute.add(from_client.ListTasks)
        broker.take(from_client.Spawn)
        thread, found = in_thread(client.tasks)
        request = broker.take(from_client.ListTasks).request
    with FakeBroker(address, epoch=2, known=True) as broker:
        broker.script[from_client.ListTasks] = lambda m: to_client.Tasks(m.request, [])
        again = broker.take(from_client.Spawn)
        assert [row.number for row in again.rows] == [2]
        assert again.answered_through == 1
        assert broker.take(from_client.ListTasks).request == request
        thread.join()
        assert found == [[]]
        broker.say(DATA, to_client.Ended([ended(1, result=pack_value("r"))]))
        assert first.result(10) == "r"
        broker.answer(2, 2)
        assert second.id == 2
        client.close()


def test_hello_wanted_on_one_channel(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.take(from_client.Spawn)
    hellos = broker.count(from_client.Hello)
    broker.say(DATA, to_client.HelloWanted(1))
    assert broker.take(from_client.Spawn).rows[0].number == 1
    assert broker.count(from_client.Hello) == hellos + 2  # control first, then data
    broker.answer(1, 4)
    assert handle.id == 4


def test_a_forgotten_session_makes_unanswered_spawns_unknown(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"
    with FakeBroker(address) as broker:
        client = Client(address, timeout=10)
        first = client.spawn("background", "compaction", work)
        broker.answer(1, 1)
        assert first.id == 1
        second = client.spawn("background", "compaction", work)
        broker.take(from_client.Spawn)
        session = broker.hellos[-1].session
    with FakeBroker(address, epoch=2) as broker:
        with pytest.raises(BrokerUnavailableError, match="unknown"):
            second.result(10)
        with pytest.raises(BrokerUnavailableError, match="by its id"):
            first.result(10)
        assert first.id == 1
        third = client.spawn("background", "compaction", work)
        assert broker.take(from_client.Spawn).rows[0].number == 1
        broker.answer(1, 9)
        assert third.id == 9
        assert broker.hellos[-1].session != session
        client.close()


def test_closing_waits_for_the_answers(broker: FakeBroker) -> None:
    with Client(broker.address, timeout=10) as client:
        handle = client.spawn("background", "compaction", work)
        other = client.spawn("background", "compaction", work)
        broker.take(from_client.Spawn)
        thread = threading.Thread(target=broker.answer_all, args=(2,))
        thread.start()
    thread.join()
    assert (handle.id, other.id) == (1, 2)
    with pytest.raises(BrokerUnavailableError, match="closed"):
        handle.result()
    with pytest.raises(RuntimeError, match="closed"):
        client.tasks()
    client.close()


def test_closing_without_the_answers_says_that_they_are_unknown(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(broker.address, timeout=10)
    handle = client.spawn("background", "compaction", work)
    client.timeout = 0.05
    with pytest.raises(BrokerUnavailableError, match=r"1 spawn.*unknown"):
        client.close()
    with pytest.raises(BrokerUnavailableError, match="unknown"):
        handle.result()


def test_closing_ends_the_waits_of_other_threads(broker: FakeBroker, client: Client) -> None:
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 1)
    thread, found = in_thread(handle.result)
    stopper, stopped = in_thread(client.shutdown_tasks)
    broker.mute.add(from_client.Stop)
    broker.take(from_client.Stop)
    client.close()
    thread.join()
    stopper.join()
    assert [type(error) for error in (*found, *stopped)] == [BrokerUnavailableError] * 2


def test_a_client_that_nobody_closes_says_goodbye_when_it_goes(broker: FakeBroker) -> None:
    client = Client(broker.address, timeout=10)
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 1)
    del client
    gc.collect()
    assert handle.id == 1  # it holds its client
    del handle
    gc.collect()
    broker.take(from_client.Goodbye)


def test_acknowledgements_of_results_wait_for_company_but_not_if_they_are_many(
    broker: FakeBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_ACK_AFTER", 1000.0)
    monkeypatch.setattr(driver, "_ACK_MANY", 3)
    handles = [client.spawn("background", "compaction", work) for _ in range(3)]
    for number in (1, 2, 3):
        broker.answer(number, 40 + number)
    for task_id in (41, 42):
        broker.say(DATA, to_client.Ended([ended(task_id, result=pack_value(None))]))
    assert handles[1].result(10) is None
    client.reopen()  # whatever was to be sent before has been by now
    assert broker.count(from_client.ResultsTaken) == 0
    broker.say(DATA, to_client.Ended([ended(43, result=pack_value(None))]))
    assert broker.take(from_client.ResultsTaken).task_ids == [41, 42, 43]


def test_results_that_nobody_is_there_to_be_told_of_keep_no_thread_awake(
    broker: FakeBroker, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake, in_a_row = threading.Event(), 0
    poll = connection.Connection.poll

    def counting(self: connection.Connection, timeout: float) -> None:
        nonlocal in_a_row
        in_a_row = 0 if timeout > 0 else in_a_row + 1
        if in_a_row > 100:
            awake.set()
        poll(self, timeout)

    monkeypatch.setattr(connection.Connection, "poll", counting)
    monkeypatch.setattr(driver, "_ACK_AFTER", 0.1)
    client = Client(broker.address, timeout=10)
    handle = client.spawn("background", "compaction", work)
    broker.answer(1, 1)
    broker.say(DATA, to_client.Ended([ended(1, result=pack_value(None))]))
    assert handle.result(10) is None
    broker.stop()
    assert not awake.wait(0.5)  # an acknowledgement has been due for long
    client.close()


def test_a_fork_is_told(client: Client) -> None:
    pid = os.fork()
    if not pid:
        try:
            client.spawn("background", "compaction", work)
        except RuntimeError as error:
            os._exit(7 if "fork" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def in_a_fork(client: BaseClient, do: Callable[[], None]) -> None:
    """`do` it in a child that was forked while another thread held the lock: nobody releases it there."""
    with client._driver.lock:
        pid = os.fork()
        if not pid:
            signal.alarm(30)  # whatever it waits for
            try:
                do()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nothing_hangs_in_a_fork(broker: FakeBroker, client: Client) -> None:
    stream = client.events()
    ended_one, other = (client.spawn("background", "compaction", work) for _ in range(2))
    broker.answer(1, 5)
    broker.answer(2, 6)
    broker.say(DATA, to_client.Ended([ended(5, result=pack_value(7))]))
    assert ended_one.wait(10)
    assert other.id == 6
    client._driver.payload_limit = 1_000_000

    async def wait() -> None:
        await other

    def do() -> None:
        for call in (
            lambda: next(stream),
            lambda: asyncio.run(wait()),
            other.result,
            lambda: client.spawn("background", "compaction", work, bytes(2_000_000)),
        ):
            with pytest.raises(RuntimeError, match="does not survive a fork"):
                call()
        with stream:
            pass
        assert ended_one.result() == 7
        client.close()

    in_a_fork(client, do)


def test_no_coroutine_hangs_in_a_fork(broker: FakeBroker) -> None:
    async def body() -> None:
        async with AsyncClient(broker.address, timeout=10) as client:
            stream = client.events()
            handle = await client.spawn("background", "compaction", work)
            broker.answer(1, 5)
            await handle.id

            def step(coroutine: Coroutine[Any, Any, object]) -> None:
                coroutine.send(None)  # there is no loop in a child

            def do() -> None:
                for coroutine in (handle.result(), handle.wait(), anext(stream)):
                    with pytest.raises(RuntimeError, match="does not survive a fork"):
                        step(coroutine)
                with pytest.raises(StopIteration):
                    step(stream.aclose())

            in_a_fork(client, do)
            broker.say(DATA, to_client.Ended([ended(5, result=pack_value(7))]))
            assert await handle == 7

    asyncio.run(body())


def test_garbage_from_the_broker_is_dropped(
    broker: FakeBroker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    broker.say_frames(CONTROL, [b"\xc1garbage"])
    client.reopen()
    assert "dropped" in caplog.text


def test_spawns_that_wait_together_travel_together(broker: FakeBroker, client: Client) -> None:
    broker.say(DATA, to_client.HelloWanted(1))
    handles = [client.spawn("background", "compaction", work, i) for i in range(600)]
    broker.answer_all(600)
    assert [handle.id for handle in handles] == list(range(1, 601))


# --- without a broker -----------------------------------------------------------------------------

UNKNOWN = r"no broker has answered for \d+\.\d s: what became of the task is unknown"


def test_a_wait_without_a_broker_does_not_say_that_the_task_goes_on(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"
    with FakeBroker(address) as broker:
        client = Client(address, timeout=10)
        handle = client.spawn("background", "compaction", work)
        with pytest.raises(TimeoutError, match="its spawn still waits"):
            handle.result(0)
        broker.answer(1, 82)
        assert handle.id == 82
        with pytest.raises(TimeoutError, match=r"task 82 \(work\) .* 0 s; it goes on$"):
            handle.result(0)
        thread, found = in_thread(handle.result)
    assert broker.until(lambda: client._driver.silence() is not None)
    for look in (handle.result, handle.exception):
        with pytest.raises(TimeoutError, match=rf"task 82 \(work\) .* 0 s; {UNKNOWN}$"):
            look(0)
    assert not handle.wait(0)
    assert thread.is_alive()
    assert found == []  # who waits for ever still does
    with FakeBroker(address, epoch=2, known=True) as broker:
        broker.say(DATA, to_client.Ended([ended(82, result=pack_value("r"))]))
        thread.join()
        assert found == ["r"]
        client.close()


def test_a_broker_that_is_connected_and_silent_counts_as_none(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.mute.add(from_client.Heartbeat)
    with Client(broker.address, timeout=10) as client:
        handle = client.spawn("background", "compaction", work)
        broker.answer(1, 82)
        assert handle.id == 82
        assert client._driver.silence() is None
        monkeypatch.setattr(driver, "HEARTBEAT", 0.01)
        assert broker.until(lambda: client._driver.silence() is not None)
        with pytest.raises(TimeoutError, match=UNKNOWN):
            handle.result(0)


LATE = """
import sys
from quiesce import Client
from quiesce.client import records

client = Client(sys.argv[1], timeout=10)
handles = [client.spawn("background", "compaction", print, i) for i in range(20)]
assert handles[-1].id
records.kept = handles  # in a cycle with its module: both are left to the end
records.itself = records
"""


def test_handles_that_outlive_the_modules_are_silent(broker: FakeBroker) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", LATE, broker.address], stderr=subprocess.PIPE, text=True
    )
    broker.answer_all(20)
    _, said = program.communicate(timeout=30)
    assert (program.returncode, said) == (0, "")


# --- inside a task -------------------------------------------------------------------------------


class _Port:
    def __init__(self) -> None:
        self.seen = threading.Event()
        self.waits: list[tuple[str, int]] = []

    def associate(self, *_: object) -> None: ...
    def report_progress(self, *_: object) -> None: ...
    def extend_grace(self, *_: object) -> None: ...

    def wait_began(self, task: object, other: int) -> None:
        self.waits.append(("began", other))

    def wait_ended(self, task: object, other: int) -> None:
        self.waits.append(("ended", other))

    def observed(self, task: object) -> None:
        self.seen.set()


@pytest.fixture
def task() -> Iterator[context.TaskContext]:
    info = TaskInfo(id=TaskId(70), attempt=2, kind="compaction", name="me", runtime="background")
    task = context.TaskContext(
        key=(info.id, info.attempt),
        describe=lambda: info,
        port=_Port(),
        words=[0, 0],
        flag_index=0,
        check_index=1,
        flag_key=1,
    )
    token = context.enter(task)
    yield task
    context.leave(token)


@pytest.mark.parametrize(
    ("mute", "call"),
    [
        (None, lambda client: client.spawn("background", "compaction", work).id),
        (from_client.ListTasks, lambda client: client.tasks()),
        (from_client.GetTask, lambda client: client.task(1)),
        (from_client.Reopen, lambda client: client.reopen(tenant_id="t")),
        (from_client.GetStacks, lambda client: client.stacks()),
    ],
)
def test_what_waits_for_a_silent_broker_ends_with_the_task_too(
    broker: FakeBroker, task: context.TaskContext, mute: Any, call: Callable[[Client], object]
) -> None:
    """Unless it was asked before: a task that cleans up may still ask the broker something."""
    with open_client(broker.address, 12) as client:
        if mute is not None:
            broker.mute.add(mute)

        def ask_to_stop() -> None:
            broker.take(mute or from_client.Spawn)
            task.root.cancel("go")

        thread = threading.Thread(target=ask_to_stop)
        thread.start()
        with pytest.raises(ShutdownRequested, match="go"):
            call(client)
        thread.join()
        if mute is not None:
            client.timeout = 0.05
            with pytest.raises(BrokerUnavailableError):
                call(client)
        else:
            broker.answer(1, 1)
        token = context.enter(None)
        client.close()
        context.leave(token)


def test_a_wait_that_lasts_is_told_to_the_worker_once_its_task_is_known(
    broker: FakeBroker, task: context.TaskContext
) -> None:
    with open_client(broker.address, 12) as client:
        handle = client.spawn("background", "compaction", work)
        port = task.port
        assert isinstance(port, _Port)
        assert not handle.wait(0.1)
        assert not handle.wait(LONG + 0.1)
        assert port.waits == []  # nobody knows yet what it waits for
        broker.answer(1, 41)
        assert handle.id == 41
        assert not handle.wait(0.1)
        assert port.waits == []
        assert not handle.wait(LONG + 0.1)
        assert port.waits == [("began", 41), ("ended", 41)]

        async def wait() -> None:
            await asyncio.wait_for(handle, LONG + 0.5)

        with pytest.raises(TimeoutError):
            asyncio.run(wait())
        assert port.waits == 2 * [("began", 41), ("ended", 41)]
        token = context.enter(None)
        client.close()
        context.leave(token)


def test_inside_a_task_rows_name_it_and_waits_end_with_it(
    broker: FakeBroker, task: context.TaskContext
) -> None:
    client = open_client(broker.address, 12)
    assert isinstance(client, NestedClient)
    assert {hello.worker for hello in broker.hellos} == {12}
    with client:
        handle = client.spawn("background", "compaction", work)
    assert broker.take(from_client.Spawn).rows[0].parent == (70, 2)
    assert not client.wait_spawned((70, 2), 0)
    broker.answer(1, 1)
    assert client.wait_spawned((70, 2), 10)
    assert client.wait_spawned((70, 3), 0)
    broker.mute.add(from_client.Stop)

    def ask_to_stop() -> None:
        broker.take(from_client.Stop)
        task.root.cancel("go")

    threading.Thread(target=ask_to_stop).start()

    with pytest.raises(ShutdownRequested, match="go"):
        client.shutdown_tasks(tenant_id="t")
    assert task.port.seen.is_set()  # type: ignore[attr-defined]  # the port of this test
    for call in (handle.result, handle.wait, handle.exception, client.shutdown_tasks):
        with pytest.raises(ShutdownRequested):
            call()
    broker.say(DATA, to_client.Ended([ended(1, result=pack_value(3))]))
    assert broker.until(handle.done)
    assert handle.result() == 3  # nothing to wait for
    token = context.enter(None)
    client.close()
    context.leave(token)


async def _awaited(handle: Any) -> object:
    return await handle


def _future_of(handle: Any) -> TaskFuture:
    """As an executor would have it for this task."""
    future = TaskFuture()
    future.spawned = (handle._client, handle._record)
    future.set_exception(TaskCancelledError("stopped"))
    return future


@pytest.mark.parametrize(
    "call",
    [
        lambda handle: handle.result(),
        lambda handle: handle.exception(),
        lambda handle: asyncio.run(_awaited(handle)),
        lambda handle: _future_of(handle).result(),
        lambda handle: _future_of(handle).exception(),
    ],
)
def test_a_parent_learns_of_its_own_stop_before_that_of_its_child(
    broker: FakeBroker, task: context.TaskContext, call: Callable[[Any], object]
) -> None:
    """One stop covers both, and the end of the child has overtaken the request to the parent."""
    client = open_client(broker.address, 12)
    handles = [client.spawn("background", "compaction", work) for _ in range(3)]
    for number, handle in enumerate(handles, 1):
        broker.answer(number, number)
        broker.say(DATA, to_client.Ended([ended(number, outcome="cancelled")]))
        assert broker.until(handle.done)

    def says(**of_us: Any) -> None:
        row = task_row(70)._replace(**of_us)
        broker.script[from_client.GetTask] = lambda m: to_client.Tasks(m.request, [row])

    for others in ({"attempt": 2, "stopping": False}, {"attempt": 1, "stopping": True}):
        says(**others)
        error = handles[0].exception()  # it alone was stopped
        assert isinstance(error, TaskCancelledError)
        broker.take(from_client.GetTask)
    says(attempt=2, stopping=True)

    def ask_to_stop() -> None:
        broker.take(from_client.GetTask)
        task.root.cancel("go")

    thread = threading.Thread(target=ask_to_stop)
    thread.start()
    with pytest.raises(ShutdownRequested, match="go"):
        call(handles[1])
    thread.join()
    # Who has seen it, and cleans up, is told of the child.
    asked = broker.count(from_client.GetTask)
    assert isinstance(handles[2].exception(), TaskCancelledError)
    assert broker.count(from_client.GetTask) == asked
    token = context.enter(None)
    client.close()
    context.leave(token)
