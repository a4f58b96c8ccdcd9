"""A task in a harness: as in a worker, without one; and how often it looks."""

import asyncio
import functools
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import quiesce
from quiesce import (
    NotInTaskError,
    Outcome,
    QuiesceError,
    ShutdownRequested,
    TaskCancelledError,
    context,
)
from quiesce.testing import NotInTimeError, TaskHarness, wait_until
from quiesce.testing.door_bodies import thread_in_given_context

#: Long enough to be told from everything else, also on a busy machine.
LONG = 0.5


def polls() -> str:
    while not quiesce.is_shutdown_requested():
        time.sleep(0.001)
    return "asked"


def sleeps_by_waiting() -> str:
    while not quiesce.wait_for_shutdown(LONG):
        pass
    return "asked"


def until_checkpoint() -> None:
    while True:
        quiesce.checkpoint()
        time.sleep(0.001)


def by_token() -> str:
    return "asked" if quiesce.shutdown_token().wait() else "not"


def by_child_token() -> str:
    child = quiesce.shutdown_token().child_token()
    while not child.is_cancelled():
        time.sleep(0.001)
    return "asked"


def by_callback() -> str:
    called = threading.Event()
    quiesce.shutdown_token().add_callback(called.set)
    called.wait()
    return "asked"


def by_select() -> str:
    select.select([quiesce.shutdown_token().fileno()], [], [])
    return "asked"


def in_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(polls()))
    thread.start()
    thread.join()
    return found[0]


async def watches() -> str:
    await quiesce.shutdown_watcher()
    return "asked"


async def by_token_in_a_loop() -> str:
    result = await quiesce.shutdown_token().run_until_cancelled(asyncio.sleep(600, "slept"))
    return result or "asked"


async def in_to_thread() -> str:
    return await asyncio.to_thread(polls)


@pytest.mark.parametrize(
    "fn",
    [
        polls,
        sleeps_by_waiting,
        by_token,
        by_child_token,
        by_callback,
        by_select,
        in_a_thread,
        watches,
        by_token_in_a_loop,
        in_to_thread,
    ],
)
def test_a_task_that_looks_all_the_time(fn: Callable[[], Any]) -> None:
    with TaskHarness(fn) as task:
        task.start()
        began = time.monotonic()
        wait_until(lambda: task.checks and time.monotonic() - began > LONG)
        assert task.is_running
        task.request_stop("why")
        assert task.join(20) == "asked"
    assert task.outcome is Outcome.COMPLETED
    assert task.longest_gap < LONG, task.gap_between
    assert task.stop_took is not None
    assert task.stop_took < LONG


def test_the_longest_gap_of_a_task_that_does_not_look() -> None:
    def works_long() -> None:
        quiesce.checkpoint()
        time.sleep(LONG)
        quiesce.checkpoint()

    with TaskHarness(works_long) as task:
        task.start()
        task.join(20)
    assert LONG <= task.longest_gap < 5 * LONG
    before, _, after = task.gap_between.partition(" and ")
    first = works_long.__code__.co_firstlineno
    assert before == f"{__file__}:{first + 1} (works_long)"
    assert after == f"{__file__}:{first + 3} (works_long)"


def test_one_that_never_looks_has_one_gap() -> None:
    with TaskHarness(time.sleep, LONG) as task:
        task.start()
        wait_until(lambda: task.longest_gap > LONG / 2)
        assert task.gap_between == "its start and now"
        task.join(20)
    assert task.longest_gap >= LONG
    assert task.checks == 0
    assert task.reaction is None


def test_what_it_does_after_it_has_seen_the_request_is_no_gap() -> None:
    def tidies_up() -> None:
        quiesce.wait_for_shutdown()
        time.sleep(LONG)

    with TaskHarness(tidies_up) as task:
        task.start()
        wait_until(lambda: task.checks)
        task.request_stop()
        task.join(20)
    assert task.longest_gap < LONG
    assert task.reaction is not None
    assert task.stop_took is not None
    assert task.reaction < LONG <= task.stop_took


def test_a_turn_of_the_loop_that_is_too_long() -> None:
    async def blocks_the_loop() -> str:
        watcher = asyncio.ensure_future(quiesce.shutdown_watcher())
        await asyncio.sleep(0)
        time.sleep(LONG)  # noqa: ASYNC251 - the very mistake that is to be found
        await watcher
        return "asked"

    with TaskHarness(blocks_the_loop) as task:
        task.start()
        wait_until(lambda: task.longest_turn >= LONG)
        task.request_stop()
        assert task.join(20) == "asked"
    assert task.longest_gap >= LONG
    assert "a turn of its event loop" in task.gap_between


def test_a_coroutine_that_awaits_for_long_and_does_not_look() -> None:
    with TaskHarness(asyncio.sleep, LONG) as task:
        task.start()
        task.join(20)
    assert task.longest_gap >= LONG
    assert task.longest_turn < LONG


# --- how it ends


@pytest.mark.parametrize("fn", [until_checkpoint, "raise"])
def test_a_cancelled_end(fn: Any) -> None:
    with TaskHarness(_cancel if fn == "raise" else fn) as task:
        task.request_stop("because")
        task.start()
        with pytest.raises(TaskCancelledError) as raised:
            task.join(20)
        assert isinstance(raised.value.__cause__, ShutdownRequested)
    assert task.outcome is Outcome.CANCELLED


def _cancel() -> NoReturn:
    raise ShutdownRequested(quiesce.shutdown_token().reason)


def test_what_it_raises_is_raised() -> None:
    def fails() -> None:
        raise ValueError("on purpose")

    with TaskHarness(fails) as task:
        task.start()
        with pytest.raises(ValueError, match="on purpose"):
            task.join(20)
    assert task.outcome is Outcome.FAILED


def test_shutdown_requested_though_nobody_asked_is_a_failure() -> None:
    with TaskHarness(_cancel) as task:
        task.start()
        with pytest.raises(ShutdownRequested):
            task.join(20)
    assert task.outcome is Outcome.FAILED


def test_a_task_that_does_not_end_is_told_with_its_stack() -> None:
    end = threading.Event()

    def deaf() -> None:
        end.wait()

    with TaskHarness(deaf, name="deaf one") as task:
        task.start()
        task.request_stop()
        with pytest.raises(NotInTimeError) as raised:
            task.join(0.05)
        text = str(raised.value)
        end.set()
        task.join(20)
    assert "'deaf one' still runs after 0.05 s (it was asked to stop)" in text
    assert "end.wait()" in text


def test_leaving_the_block_asks_and_waits() -> None:
    with TaskHarness(polls) as task:
        task.start()
    assert task.join(0) == "asked"
    with pytest.raises(ZeroDivisionError), TaskHarness(polls) as task:
        task.start()
        raise ZeroDivisionError
    assert not task.is_running


def test_a_task_ends_after_its_threads() -> None:
    end = threading.Event()

    def leaves_a_thread() -> str:
        threading.Thread(target=end.wait).start()
        return "returned"

    with TaskHarness(leaves_a_thread) as task:
        task.start()
        with pytest.raises(NotInTimeError):
            task.join(0.05)
        end.set()
        assert task.join(20) == "returned"
    assert threading.Thread.start.__module__ == "threading"


# --- what it sees and says


def test_what_it_sees_and_says() -> None:
    def talks(value: int, *, more: int) -> Any:
        before = quiesce.current_task()
        quiesce.associate_with("globex", "main")
        quiesce.report_progress(value, more, "half")
        quiesce.extend_grace(2.5)
        return before, quiesce.current_task(), quiesce.current_task_kind()

    with TaskHarness(
        talks, 1, kwargs={"more": 2}, kind="compaction", tenant_id="acme", attempt=3
    ) as task:
        task.start()
        before, after, kind = task.join(20)
    assert (before.tenant_id, before.timeline_id, before.attempt) == ("acme", None, 3)
    assert (after.tenant_id, after.timeline_id) == ("globex", "main")
    assert after.fence == (1, 1, 3)
    assert kind is quiesce.TaskKind.COMPACTION
    assert task.associations == [("globex", "main")]
    assert task.progress == [(1, 2, "half")]
    assert task.extensions == [2.5]


def test_the_reason_is_on_the_token_and_the_task() -> None:
    def why() -> Any:
        quiesce.wait_for_shutdown()
        info = quiesce.current_task()
        assert info is not None
        return quiesce.shutdown_token().reason, info.reason, info.stopping

    with TaskHarness(why) as task:
        task.start()
        task.request_stop("detach")
        task.request_stop("too late")
        assert task.join(20) == ("detach", "detach", True)


def test_there_is_a_client_only_if_one_is_given() -> None:
    with TaskHarness(quiesce.current_client) as task:
        task.start()
        with pytest.raises(QuiesceError, match="give the harness a client="):
            task.join(20)
    mine = object()
    with TaskHarness(quiesce.current_client, client=mine) as task:
        task.start()
        assert task.join(20) is mine


def test_each_of_two_at_once_has_its_own_client() -> None:
    before = list(context._client_factory)
    barrier = threading.Barrier(3)

    def clients() -> list[Any]:
        found = []
        for _ in range(2):  # while both run, and after the other has ended
            barrier.wait(20)
            found.append(quiesce.current_client())
        return found

    first, second = (
        TaskHarness(clients, client="of the first"),
        TaskHarness(clients, client="of the second"),
    )
    with first, second:
        first.start()
        second.start()
        barrier.wait(20)
        barrier.wait(20)
        assert second.join(20) == ["of the second"] * 2
        assert first.join(20) == ["of the first"] * 2
    assert context._client_factory == before


def test_the_others_keep_their_client_when_one_ends() -> None:
    go_on = threading.Event()

    def client() -> Any:
        go_on.wait(20)
        return quiesce.current_client()

    first, second = TaskHarness(polls, client="a"), TaskHarness(client, client="b")
    with first, second:
        first.start()
        second.start()
        first.request_stop()
        assert first.join(20) == "asked"
        go_on.set()
        assert second.join(20) == "b"


async def _later(value: int) -> int:
    return value


@functools.wraps(_later)
def _by_running_it(value: int) -> int:
    return asyncio.run(_later(value))


class _Called:
    async def __call__(self, value: int) -> int:
        return value


@pytest.mark.parametrize("fn", [_later, _by_running_it, _Called(), functools.partial(_later)])
def test_what_is_a_coroutine_function_is_one_as_in_a_worker(fn: Callable[[int], Any]) -> None:
    with TaskHarness(fn, 7) as task:
        task.start()
        assert task.join(20) == 7


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="threads are given a context since Python 3.14"
)
def test_a_thread_is_in_the_context_that_it_is_given_and_in_its_task() -> None:
    with TaskHarness(thread_in_given_context) as task:
        task.start()
        seen, left, task_is_left = task.join(20)
    assert seen == ["given", "thread_in_given_context"]
    assert left == "left"
    assert not task_is_left


def test_outside_nothing_has_changed() -> None:
    with TaskHarness(polls) as task:
        task.start()
        with pytest.raises(NotInTaskError):
            quiesce.shutdown_token()
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(quiesce.current_task()))
        thread.start()
        thread.join()
        assert seen == [None]
