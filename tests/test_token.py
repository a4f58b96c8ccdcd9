"""CancellationToken: the tree, each way to wait, and what may come between any two of its steps."""

import asyncio
import contextlib
import copy
import gc
import logging
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn

import pytest

from quiesce import token as token_module, token_tree
from quiesce.token import CancellationToken
from quiesce.token_tree import Callback, Node, Watch

#: How long something that is to happen may take before the test fails, in seconds.
PATIENCE = 10.0


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true, by looking; for what offers no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"last seen: {seen!r}"
        time.sleep(0.0005)


@contextlib.contextmanager
def running(*functions: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """Run each function in a thread; at the end all must have returned, without an error."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(PATIENCE)
    assert not [thread for thread in threads if thread.is_alive()]
    assert errors == []


def waiting(token: CancellationToken) -> int:
    return len(token._watch.wakers)


def is_readable(token: CancellationToken) -> bool:
    return select.select([token], [], [], 0)[0] == [token]


def parts_alive() -> int:
    """How many nodes and watches there are in this process."""
    gc.collect()
    return sum(isinstance(thing, Node | Watch) for thing in gc.get_objects())


def descriptors() -> set[str]:
    # The listing has a descriptor of its own, which is closed by the time of the second look.
    return {
        number for number in os.listdir("/proc/self/fd") if os.path.lexists(f"/dev/fd/{number}")
    }


@pytest.fixture
def token() -> CancellationToken:
    return CancellationToken()


class TestOneToken:
    def test_begins_not_cancelled(self, token: CancellationToken) -> None:
        assert not token.is_cancelled()
        assert token.reason is None

    def test_cancel_is_final_and_the_first_reason_wins(self, token: CancellationToken) -> None:
        token.cancel("tenant is leaving")
        token.cancel("too late")
        assert token.is_cancelled()
        assert token.reason == "tenant is leaving"

    def test_reason_defaults_to_the_empty_string(self, token: CancellationToken) -> None:
        token.cancel()
        token.cancel("too late")
        assert token.reason == ""

    def test_a_reason_that_is_no_string_changes_nothing(self, token: CancellationToken) -> None:
        wrong: Any = ValueError("as given by Future.add_done_callback")
        with pytest.raises(TypeError, match="is a str, not ValueError"):
            token.cancel(wrong)
        assert not token.is_cancelled()
        token.cancel("right")
        assert token.reason == "right"

    def test_repr_tells_the_state(self, token: CancellationToken) -> None:
        assert ": not cancelled>" in repr(token)
        token.cancel("why")
        assert ": cancelled, reason='why'>" in repr(token)

    @pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_a_token_stays_in_its_process(
        self, token: CancellationToken, send: Callable[[object], object]
    ) -> None:
        with pytest.raises(TypeError, match=r"can't leave its process.*quiesce\.shutdown_token"):
            send(token)

    def test_nor_inside_something_else(self, token: CancellationToken) -> None:
        with pytest.raises(TypeError, match="can't leave its process"):
            pickle.dumps({"token": token.child_token()})


class TestIdentity:
    def test_equal_if_and_only_if_of_the_same_node(self, token: CancellationToken) -> None:
        twin = token.clone()
        assert twin is not token
        assert twin == token
        assert hash(twin) == hash(token)
        assert len({twin, token, twin.clone()}) == 1
        others = [CancellationToken(), token.child_token(), token.child_token()]
        assert len({token, *others}) == 4
        assert all(other != token for other in others)
        assert token != "a token"

    def test_clones_are_cancelled_both_ways(self) -> None:
        first, second = CancellationToken(), CancellationToken()
        first.clone().cancel("by the clone")
        clone = second.clone()
        second.cancel("by the original")
        assert first.reason == "by the clone"
        assert clone.reason == "by the original"

    def test_a_clone_keeps_all_of_the_node(self, token: CancellationToken) -> None:
        child = token.child_token()
        calls: list[int] = []
        child.add_callback(lambda: calls.append(1))
        number = child.fileno()
        clone = child.clone()
        del child
        token.cancel()
        assert clone.is_cancelled()
        assert calls == [1]
        assert clone.fileno() == number
        assert is_readable(clone)


class TestTree:
    def test_cancel_goes_down_and_never_up(self, token: CancellationToken) -> None:
        child, sibling = token.child_token(), token.child_token()
        grandchild = child.child_token()
        child.cancel("a branch")
        assert [child.reason, grandchild.reason] == ["a branch", "a branch"]
        assert [token.reason, sibling.reason] == [None, None]
        token.cancel("all")
        assert [token.reason, sibling.reason] == ["all", "all"]
        assert [child.reason, grandchild.reason] == ["a branch", "a branch"]

    def test_child_of_a_cancelled_token_is_born_cancelled(self, token: CancellationToken) -> None:
        token.cancel("before")
        child = token.child_token()
        assert child.reason == "before"
        assert child.child_token().reason == "before"
        assert child.wait(0)

    def test_passes_a_dropped_token_in_the_middle(self, token: CancellationToken) -> None:
        middle = token.child_token()
        leaves = [middle.child_token() for _ in range(3)]
        del middle
        assert parents(leaves) == {token._node}
        token.cancel("from above")
        assert [leaf.reason for leaf in leaves] == ["from above"] * 3

    def test_passes_middle_tokens_dropped_in_any_order(self) -> None:
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
            tokens = [CancellationToken()]
            for _ in range(4):
                tokens.append(tokens[-1].child_token())
            root, *middle, leaf = tokens
            del tokens
            slots: list[CancellationToken | None] = [*middle]
            del middle
            for index in order:
                slots[index] = None
            assert parents([leaf]) == {root._node}
            root.cancel("from above")
            assert leaf.reason == "from above"

    def test_passes_a_middle_token_that_only_the_garbage_collector_finds(
        self, token: CancellationToken
    ) -> None:
        middle = token.child_token()
        cycle: list[object] = [middle]
        cycle.append(cycle)
        leaf = middle.child_token()
        del middle, cycle
        assert parents([leaf]) != {token._node}
        gc.collect()
        assert parents([leaf]) == {token._node}
        token.cancel("from above")
        assert leaf.reason == "from above"

    def test_dropping_tokens_cancels_nothing(self) -> None:
        token = CancellationToken()
        child = token.child_token()
        child.child_token()  # dropped at once
        grandchild = child.child_token()
        del token
        assert not child.is_cancelled()
        del child
        assert not grandchild.is_cancelled()
        assert parents([grandchild]) == {None}

    def test_depth_is_not_limited_by_the_stack(self, token: CancellationToken) -> None:
        tokens = [token]
        for _ in range(20_000):
            tokens.append(tokens[-1].child_token())
        token.cancel("deep")
        assert tokens[-1].reason == "deep"
        tokens.reverse()
        del tokens[:-1]
        more = [CancellationToken()]
        for _ in range(20_000):
            more.append(more[-1].child_token())
        more.clear()  # from the root on


def parents(tokens: list[CancellationToken]) -> set[Node | None]:
    return {each._node.parent for each in tokens}


class TestNothingLeaks:
    def test_a_parent_does_not_grow_by_children_that_came_and_went(
        self, token: CancellationToken
    ) -> None:
        before = parts_alive()
        for _ in range(20_000):
            child = token.child_token()
            child.add_callback(child.cancel)  # the callback refers to its own token
            child.child_token()
        del child
        assert parts_alive() == before
        assert token._node.children == {}

    def test_generations_that_came_and_went(self, token: CancellationToken) -> None:
        before = parts_alive()
        heir = token
        for _ in range(5_000):
            heir = heir.child_token()
        assert parts_alive() == before + 2
        token.cancel("still heard")
        assert heir.reason == "still heard"

    def test_children_that_outlive_their_parents(self) -> None:
        before = parts_alive()
        children = []
        for _ in range(1_000):
            parent = CancellationToken()
            children.append(parent.child_token())
            del parent
        assert parts_alive() == before + 2 * len(children)
        children.clear()
        assert parts_alive() == before

    def test_cancelled_trees(self) -> None:
        before = parts_alive()
        for _ in range(200):
            root = CancellationToken()
            children = [root.child_token() for _ in range(5)]
            root.cancel()
            root.child_token()
            assert root._node.children == {}
        del root, children
        assert parts_alive() == before

    def test_descriptors_that_came_and_went(self, token: CancellationToken) -> None:
        before = descriptors()
        for number in range(2_000):
            child = token.child_token()
            child.fileno()
            if number % 2:
                child.cancel()
        child.add_callback(child.cancel)
        del child
        gc.collect()
        assert descriptors() == before
        assert waiting(token) == 0

    def test_a_descriptor_ends_with_its_own_token_though_descendants_live(
        self, token: CancellationToken
    ) -> None:
        before = descriptors()
        middle = token.child_token()
        leaf = middle.child_token()
        middle.fileno()
        del middle
        assert descriptors() == before
        assert not leaf.is_cancelled()

    def test_nothing_is_said_at_the_end_of_the_interpreter(self) -> None:
        code = """if True:
            from quiesce.token import CancellationToken
            token = CancellationToken()
            child = token.child_token()
            leaf = child.child_token()
            child.fileno(), leaf.fileno()
            child.add_callback(child.cancel)
            CancellationToken.last = child
            cycle = [token, leaf]
            cycle.append(cycle)
        """
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestWait:
    def test_true_at_once_if_cancelled(self, token: CancellationToken) -> None:
        token.cancel()
        assert token.wait()
        assert token.wait(0)

    @pytest.mark.parametrize("timeout", [0, 0.0, -1, -5.5, 0.001])
    def test_false_when_the_time_is_up(self, token: CancellationToken, timeout: float) -> None:
        assert not token.wait(timeout)
        assert waiting(token) == 0

    def test_a_timeout_is_in_seconds(self, token: CancellationToken) -> None:
        begin = time.monotonic()
        assert not token.wait(0.05)
        assert 0.05 <= time.monotonic() - begin < PATIENCE

    @pytest.mark.parametrize("timeout", [None, PATIENCE, float("inf"), threading.TIMEOUT_MAX])
    def test_all_threads_are_woken(self, token: CancellationToken, timeout: float | None) -> None:
        child = token.child_token()
        answers: list[bool] = []
        with running(*[lambda: answers.append(child.wait(timeout))] * 5):
            until(lambda: waiting(child) == 5)
            assert answers == []
            token.cancel()
        assert answers == [True] * 5
        assert waiting(child) == 0

    def test_threads_are_woken_before_the_first_callback(self, token: CancellationToken) -> None:
        woken = threading.Event()
        child = token.child_token()
        order: list[object] = []
        token.add_callback(lambda: order.append(woken.wait(PATIENCE)))

        def wait() -> None:
            if child.wait(PATIENCE):
                woken.set()

        with running(wait):
            until(lambda: waiting(child) == 1)
            token.cancel()
        assert order == [True]

    def test_an_exception_from_a_signal_handler_leaves_nothing_behind(
        self, token: CancellationToken
    ) -> None:
        class Interrupted(BaseException):
            pass

        def handler(*_: object) -> NoReturn:
            raise Interrupted

        main = threading.get_ident()

        def send() -> None:
            until(lambda: waiting(token) == 1)
            signal.pthread_kill(main, signal.SIGUSR1)

        with handling(signal.SIGUSR1, handler), running(send), pytest.raises(Interrupted):
            token.wait(PATIENCE)
        assert waiting(token) == 0


class TestCancelled:
    def test_at_once_if_cancelled(self, token: CancellationToken) -> None:
        token.cancel()
        waiter = token.cancelled()
        with pytest.raises(StopIteration):
            waiter.send(None)  # no loop, and no turn of one

    def test_needs_a_loop_to_wait(self, token: CancellationToken) -> None:
        waiter = token.cancelled()
        with pytest.raises(RuntimeError, match="no running event loop"):
            waiter.send(None)

    def test_cancelled_by_the_loop_itself(self, token: CancellationToken) -> None:
        async def main() -> None:
            waiter = asyncio.create_task(token.child_token().cancelled())
            await asyncio.sleep(0)
            assert not waiter.done()
            token.cancel()
            await asyncio.wait_for(waiter, PATIENCE)

        asyncio.run(main())

    def test_many_waiters_on_several_loops_each_once(self, token: CancellationToken) -> None:
        child = token.child_token()
        woken: list[tuple[int, int]] = []
        troubles: list[object] = []

        async def wait(loop: int, number: int) -> None:
            await child.cancelled()
            woken.append((loop, number))

        async def main(loop: int) -> None:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: troubles.append(context)
            )
            await asyncio.gather(*(wait(loop, number) for number in range(20)))
            for _ in range(3):
                await asyncio.sleep(0)  # a second waking would come now

        with running(*(partial(asyncio.run, main(loop)) for loop in range(4))):
            until(lambda: waiting(child) == 80)
            assert woken == []
            with running(*[token.cancel] * 4):
                pass
        assert sorted(woken) == [(loop, number) for loop in range(4) for number in range(20)]
        assert troubles == []
        assert waiting(child) == 0

    def test_a_cancelled_waiter_leaves_nothing_behind(self, token: CancellationToken) -> None:
        troubles: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda *args: troubles.append(args))
            waiters = [asyncio.create_task(token.cancelled()) for _ in range(3)]
            await asyncio.sleep(0)
            assert waiting(token) == 3
            waiters[0].cancel()
            await asyncio.wait(waiters[:1])
            assert waiting(token) == 2
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(token.cancelled(), 0.001)
            assert waiting(token) == 2
            waiters[1].cancel()
            token.cancel()  # at the same moment
            await asyncio.wait(waiters)
            assert [waiter.cancelled() for waiter in waiters] == [True, True, False]

        asyncio.run(main())
        assert troubles == []
        assert waiting(token) == 0

    def test_a_closed_loop_does_not_break_cancel(
        self, token: CancellationToken, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # else it logs that it loses a pending task
        lost = loop.create_task(token.cancelled())
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        called: list[int] = []
        with running(token.wait):
            until(lambda: waiting(token) == 2)
            token.add_callback(lambda: called.append(1))
            token.cancel()
        assert called == [1]
        assert not lost.done()
        assert caplog.records == []

    def test_a_loop_that_fails_is_logged_and_breaks_nothing(
        self, token: CancellationToken, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(asyncio.SelectorEventLoop):
            def call_soon_threadsafe(self, *_args: object, **_more: object) -> NoReturn:
                raise RuntimeError("broken")

        loop = Broken()
        loop.set_exception_handler(lambda *_: None)
        lost = loop.create_task(token.cancelled())
        loop.call_soon(loop.stop)
        loop.run_forever()
        with running(token.wait):
            until(lambda: waiting(token) == 2)
            token.cancel()
        assert [record.name for record in caplog.records] == ["quiesce"]
        assert not lost.done()
        loop.close()


class TestRunUntilCancelled:
    def test_returns_the_result(self, token: CancellationToken) -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            return "result"

        async def main() -> None:
            assert await token.run_until_cancelled(work()) == "result"
            assert await token.run_until_cancelled(asyncio.create_task(work())) == "result"
            many: asyncio.Future[list[str]] = asyncio.gather(*[work()])
            assert await token.run_until_cancelled(many) == ["result"]

        asyncio.run(main())
        assert waiting(token) == 0

    def test_raises_what_the_awaitable_raises(self, token: CancellationToken) -> None:
        async def work(error: BaseException) -> None:
            raise error

        async def main() -> None:
            with pytest.raises(ValueError, match="mine"):
                await token.run_until_cancelled(work(ValueError("mine")))
            with pytest.raises(asyncio.CancelledError):  # its own, for nobody cancelled the token
                await token.run_until_cancelled(work(asyncio.CancelledError()))

        asyncio.run(main())
        assert waiting(token) == 0

    @pytest.mark.parametrize("as_task", [False, True])
    def test_cancels_and_awaits_the_awaitable(
        self, token: CancellationToken, as_task: bool
    ) -> None:
        story: list[str] = []

        async def work() -> str:
            try:
                await asyncio.Event().wait()
            finally:
                story.append("cancelled")
                await asyncio.sleep(0.001)
                story.append("tidied up")
            return "never"

        async def main() -> None:
            awaitable = asyncio.create_task(work()) if as_task else work()
            assert await token.run_until_cancelled(awaitable) is None
            story.append("returned")
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)  # the cancel does not come back

        with running(lambda: asyncio.run(main())):
            until(lambda: waiting(token) == 1)
            token.child_token().cancel("not ours")
            token.cancel()
        assert story == ["cancelled", "tidied up", "returned"]
        assert waiting(token) == 0

    def test_never_starts_a_coroutine_if_cancelled(self, token: CancellationToken) -> None:
        started: list[int] = []

        async def work() -> None:
            started.append(1)

        async def main() -> None:
            run_until_cancelled: Callable[[Any], Any] = token.run_until_cancelled
            assert await run_until_cancelled(work()) is None
            gc.collect()

        token.cancel()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # as "coroutine 'work' was never awaited"
            asyncio.run(main())
        assert caught == []
        assert started == []

    def test_cancels_and_awaits_a_task_if_cancelled(self, token: CancellationToken) -> None:
        story: list[str] = []

        async def work() -> None:
            story.append("started")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                story.append("tidied up")

        async def fails() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("while tidying up")

        async def main() -> None:
            run_until_cancelled: Callable[[Any], Any] = token.run_until_cancelled
            begun, failing = asyncio.create_task(work()), asyncio.create_task(fails())
            await asyncio.sleep(0)
            fresh = asyncio.create_task(work())
            token.cancel()
            for task in (fresh, begun):
                assert await run_until_cancelled(task) is None
            assert begun.cancelled()
            assert fresh.cancelled()
            with pytest.raises(ValueError, match="while tidying up"):
                await token.run_until_cancelled(failing)

        asyncio.run(main())
        assert story == ["started", "tidied up"]

    def test_cancelling_the_caller_is_no_none(self, token: CancellationToken) -> None:
        story: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                story.append("tidied up")

        async def main(also_the_token: bool) -> None:
            caller = asyncio.create_task(token.run_until_cancelled(work()))
            await asyncio.sleep(0)
            caller.cancel()
            if also_the_token:
                token.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()

        asyncio.run(main(also_the_token=False))
        assert story == ["tidied up"]
        asyncio.run(main(also_the_token=True))
        assert waiting(token) == 0

    @pytest.mark.parametrize("stubborn", ["value", "error"])
    def test_an_awaitable_that_refuses(self, token: CancellationToken, stubborn: str) -> None:
        async def work() -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if stubborn == "error":
                    raise ValueError("instead") from None
            return "value"

        async def main() -> None:
            asyncio.get_running_loop().call_soon(token.cancel)
            if stubborn == "error":
                with pytest.raises(ValueError, match="instead"):
                    await token.run_until_cancelled(work())
            else:
                assert await token.run_until_cancelled(work()) is None
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)

        asyncio.run(main())

    def test_a_result_before_the_cancel_counts(self, token: CancellationToken) -> None:
        async def work() -> str:
            token.cancel()
            return "result"

        async def main() -> None:
            assert await token.run_until_cancelled(work()) == "result"
            for _ in range(3):
                await asyncio.sleep(0)  # the waking comes now, and must not cancel the caller

        asyncio.run(main())

    def test_what_is_no_awaitable(self, token: CancellationToken) -> None:
        async def work() -> None: ...

        wrong: Any = work

        async def main() -> None:
            with pytest.raises(TypeError, match="without calling it"):
                await token.run_until_cancelled(wrong)

        asyncio.run(main())
        token.cancel()
        asyncio.run(main())

    def test_outside_of_a_task(self, token: CancellationToken) -> None:
        loop = asyncio.new_event_loop()
        errors: list[BaseException] = []

        def step() -> None:
            try:
                token.run_until_cancelled(loop.create_future()).send(None)
            except RuntimeError as error:
                errors.append(error)
            loop.stop()

        loop.call_soon(step)
        loop.run_forever()
        loop.close()
        assert "in an asyncio task" in str(errors)
        assert waiting(token) == 0


def meet(begun: threading.Event, go_on: threading.Event) -> None:
    begun.set()
    assert go_on.wait(PATIENCE)


class TestCallbacks:
    def test_run_once_in_order_ancestors_first(self, token: CancellationToken) -> None:
        calls: list[str] = []
        child = token.child_token()
        child.add_callback(lambda: calls.append("child"))
        for name in ("first", "second", "third"):
            token.add_callback(partial(calls.append, name))
        token.cancel()
        token.cancel()
        child.cancel()
        assert calls == ["first", "second", "third", "child"]

    def test_the_same_function_may_be_added_twice(self, token: CancellationToken) -> None:
        calls: list[int] = []
        fn = partial(calls.append, 1)
        token.add_callback(fn)
        remove = token.add_callback(fn)
        token.add_callback(fn)
        remove()
        token.cancel()
        assert calls == [1, 1]

    def test_all_descendants_are_marked_before_the_first_runs(
        self, token: CancellationToken
    ) -> None:
        child = token.child_token()
        seen: list[object] = []
        token.add_callback(lambda: seen.extend([child.reason, is_readable(child)]))
        child.fileno()
        token.cancel("why")
        assert seen == ["why", True]

    def test_at_once_in_the_callers_thread_if_cancelled(self, token: CancellationToken) -> None:
        threads: list[int] = []
        begun, go_on = threading.Event(), threading.Event()
        token.add_callback(partial(meet, begun, go_on))
        with running(token.cancel):
            assert begun.wait(PATIENCE)  # another thread is busy with the callbacks
            token.add_callback(lambda: threads.append(threading.get_ident()))()
            assert threads == [threading.get_ident()]
            go_on.set()
        assert threads == [threading.get_ident()]

    def test_a_removed_one_does_not_run(self, token: CancellationToken) -> None:
        calls: list[int] = []
        removes = [token.add_callback(partial(calls.append, n)) for n in range(3)]
        removes[1]()
        removes[1]()
        assert len(token._watch.callbacks) == 2
        token.cancel()
        assert calls == [0, 2]
        for remove in removes:
            remove()

    def test_an_exception_is_logged_and_does_not_stop_the_others(
        self, token: CancellationToken, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls: list[str] = []

        def fail() -> NoReturn:
            raise ValueError("mine")

        child = token.child_token()
        token.add_callback(lambda: calls.append("before"))
        token.add_callback(fail)
        token.add_callback(lambda: calls.append("after"))
        child.add_callback(lambda: calls.append("below"))
        token.cancel()
        assert calls == ["before", "after", "below"]
        token.add_callback(fail)
        assert [(record.name, record.levelno) for record in caplog.records] == [
            ("quiesce", logging.ERROR)
        ] * 2
        assert all(record.exc_info and "fail" in record.message for record in caplog.records)

    def test_what_is_no_exception_comes_out_after_the_others_have_run(
        self, token: CancellationToken, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls: list[str] = []

        def leave(code: int) -> NoReturn:
            raise SystemExit(code)

        child = token.child_token()
        token.add_callback(lambda: leave(1))
        token.add_callback(lambda: leave(2))
        token.add_callback(lambda: calls.append("after"))
        child.add_callback(lambda: calls.append("below"))
        with pytest.raises(SystemExit, match="1"):
            token.cancel()
        assert calls == ["after", "below"]
        assert [record.name for record in caplog.records] == ["quiesce"]  # the second
        with pytest.raises(SystemExit, match="3"):
            token.add_callback(lambda: leave(3))
        token.cancel()

    def test_a_callback_may_use_the_token(self, token: CancellationToken) -> None:
        calls: list[object] = []
        removes: list[Callable[[], None]] = []

        def use() -> None:
            token.cancel("again")
            removes[0]()  # itself
            removes[2]()  # one that has not begun
            token.add_callback(lambda: calls.append("nested"))
            calls.append(token.child_token().reason)
            calls.append(token.wait())

        removes.append(token.add_callback(use))
        removes.append(token.add_callback(lambda: calls.append("later")))
        removes.append(token.add_callback(lambda: calls.append("removed")))
        token.cancel("first")
        assert calls == ["nested", "first", True, "later"]

    def test_many_callbacks_that_cancel_do_not_nest(self, token: CancellationToken) -> None:
        depth: list[int] = []

        def cancel() -> None:
            depth.append(1)
            token.cancel()
            assert len(depth) == 1
            depth.pop()

        for _ in range(2_000):
            token.add_callback(cancel)
        token.cancel()
        assert depth == []

    def test_remove_waits_for_one_that_runs_in_another_thread(
        self, token: CancellationToken
    ) -> None:
        story: list[str] = []
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            meet(begun, go_on)
            story.append("ended")

        remove = token.add_callback(slow)

        def take_back() -> None:
            remove()
            story.append("removed")

        with running(token.cancel):
            assert begun.wait(PATIENCE)
            with running(take_back, take_back) as removers:
                removers[0].join(0.02)
                assert removers[0].is_alive()
                go_on.set()
        assert story == ["ended", "removed", "removed"]

    def test_a_second_cancel_does_not_wait_for_callbacks(self, token: CancellationToken) -> None:
        begun, go_on = threading.Event(), threading.Event()
        token.add_callback(partial(meet, begun, go_on))
        with running(token.cancel):
            assert begun.wait(PATIENCE)
            token.cancel()
            assert not go_on.is_set()
            go_on.set()

    def test_one_that_is_added_as_the_last_one_ends_is_not_forgotten(
        self, token: CancellationToken
    ) -> None:
        """As when another thread adds it after the look at the callbacks, and can't run it itself."""
        calls: list[str] = []
        watch = token._watch

        class Baton:
            def acquire(self, blocking: bool) -> bool:
                taken: bool = baton.acquire(blocking)
                return taken

            def release(self) -> None:
                if "late" not in calls and not watch.callbacks:
                    watch.callbacks[Callback(partial(calls.append, "late"))] = None
                    assert watch.fire() is None
                    assert calls == ["first"]
                baton.release()

        baton: Any = watch._baton
        stand_in: Any = Baton()
        watch._baton = stand_in
        token.add_callback(lambda: calls.append("first"))
        token.cancel()
        assert calls == ["first", "late"]

    def test_callbacks_last_as_long_as_the_token_or_remove(self, token: CancellationToken) -> None:
        calls: list[str] = []
        dropped, kept = token.child_token(), token.child_token()
        leaf = dropped.child_token()
        dropped.add_callback(lambda: calls.append("dropped"))
        remove = kept.add_callback(lambda: calls.append("kept"))
        del dropped, kept
        token.cancel()
        assert calls == ["kept"]
        assert leaf.is_cancelled()
        remove()

    def test_what_can_not_be_called_is_refused(self, token: CancellationToken) -> None:
        wrong: Any = "a name"
        with pytest.raises(TypeError, match="'a name'"):
            token.add_callback(wrong)


class TestDescriptor:
    # The tokens are no fixtures: pytest would hold them, and their descriptors, for too long.

    def test_readable_once_cancelled(self) -> None:
        token = CancellationToken()
        child = token.child_token()
        number = child.fileno()
        assert child.fileno() == number
        assert not is_readable(child)
        token.cancel()
        assert is_readable(child)
        assert child.fileno() == number

    def test_readable_if_cancelled_before_the_first_use(self) -> None:
        token = CancellationToken()
        token.cancel()
        assert is_readable(token)

    def test_wakes_a_poll(self) -> None:
        token = CancellationToken()
        poll = select.poll()
        poll.register(token, select.POLLIN)
        events: list[tuple[int, int]] = []
        with running(lambda: events.extend(poll.poll(PATIENCE * 1000))):
            token.cancel()
        assert events == [(token.fileno(), select.POLLIN)]

    def test_stays_readable(self) -> None:
        token = CancellationToken()
        number = token.fileno()
        token.cancel()
        for _ in range(3):
            os.read(number, 8)
            assert select.select([number], [], [], 0)[0] == [number]
            token.cancel()
            assert is_readable(token)

    def test_made_at_the_first_use_and_closed_with_the_last_token(self) -> None:
        before = descriptors()
        token = CancellationToken()
        assert descriptors() == before
        clone = token.clone()
        number = token.fileno()
        assert descriptors() == before | {str(number)}
        del token
        assert clone.fileno() == number
        del clone
        assert descriptors() == before

    def test_is_not_inherited(self) -> None:
        token = CancellationToken()
        assert not os.get_inheritable(token.fileno())

    def test_threads_that_race_for_it_get_the_same_one(self) -> None:
        before = descriptors()
        with switching_fast():
            for _ in range(50):
                token = CancellationToken()
                barrier = threading.Barrier(4)
                numbers: list[int] = []

                def ask(
                    token: CancellationToken = token,
                    barrier: threading.Barrier = barrier,
                    numbers: list[int] = numbers,
                ) -> None:
                    barrier.wait(PATIENCE)
                    numbers.append(token.fileno())

                with running(*[ask] * 3):
                    barrier.wait(PATIENCE)
                    token.cancel()
                assert len(set(numbers)) == 1
                assert is_readable(token)
        del token, ask
        assert descriptors() == before

    def test_without_descriptors_left_the_token_goes_on(self) -> None:
        token = CancellationToken()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                token.fileno()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not is_readable(token)
        token.cancel()
        assert is_readable(token)


class TestDropGuard:
    def test_cancels_at_the_end_of_the_block(self, token: CancellationToken) -> None:
        with token.drop_guard("the block has ended"):
            assert not token.is_cancelled()
        assert token.reason == "the block has ended"

    def test_cancels_when_the_block_raises(self, token: CancellationToken) -> None:
        with pytest.raises(ValueError, match="mine"), token.drop_guard():
            raise ValueError("mine")
        assert token.reason == ""

    def test_disarmed(self, token: CancellationToken) -> None:
        with token.drop_guard() as guard:
            assert guard.disarm() is token
            guard.disarm()
        assert not token.is_cancelled()

    def test_one_that_is_not_entered_cancels_nothing(self, token: CancellationToken) -> None:
        token.drop_guard()
        gc.collect()
        assert not token.is_cancelled()


class TestACancelBetweenTheLookAndTheWait:
    """A cancel from another thread after the first look, when the waiter is not yet entered."""

    @pytest.fixture
    def token(self, monkeypatch: pytest.MonkeyPatch) -> CancellationToken:
        token = CancellationToken()

        def cancel_and_make(fn: Callable[..., None], *args: object) -> Callable[[], None]:
            token.cancel()
            return partial(fn, *args)

        monkeypatch.setattr(token_module, "partial", cancel_and_make)
        return token

    def test_wait(self, token: CancellationToken) -> None:
        begin = time.monotonic()
        assert token.wait(PATIENCE)
        assert time.monotonic() - begin < PATIENCE

    def test_cancelled(self, token: CancellationToken) -> None:
        asyncio.run(asyncio.wait_for(token.cancelled(), PATIENCE))
        assert token.is_cancelled()

    def test_run_until_cancelled(self, token: CancellationToken) -> None:
        async def work() -> NoReturn:
            raise AssertionError("started")

        asyncio.run(token.run_until_cancelled(work()))
        assert token.is_cancelled()


@contextlib.contextmanager
def handling(number: signal.Signals, handler: Callable[..., object]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def switching_fast() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class TestSignalsAndGarbage:
    def test_a_signal_handler_wakes_the_thread_it_interrupts(
        self, token: CancellationToken
    ) -> None:
        main = threading.get_ident()

        def send() -> None:
            until(lambda: waiting(token) == 1)
            signal.pthread_kill(main, signal.SIGUSR1)

        with handling(signal.SIGUSR1, lambda *_: token.cancel("signal")), running(send):
            assert token.wait(PATIENCE)
        assert token.reason == "signal"

    def test_a_signal_handler_wakes_the_loop_it_interrupts(self, token: CancellationToken) -> None:
        main = threading.get_ident()

        def send() -> None:
            until(lambda: waiting(token) == 1)
            signal.pthread_kill(main, signal.SIGUSR1)

        async def wait() -> None:
            await asyncio.wait_for(token.cancelled(), PATIENCE)

        with handling(signal.SIGUSR1, lambda *_: token.cancel("signal")), running(send):
            asyncio.run(wait())
        assert token.reason == "signal"

    def test_signals_and_collections_at_any_moment(self) -> None:
        """The handler and the collector cancel what the main thread is working on."""
        current: list[CancellationToken] = []
        handled: list[int] = []

        def handler(*_: object) -> None:
            handled.append(1)
            for each in current[:1]:
                each.cancel("signal")
                assert all(token.is_cancelled() for token in current)

        class Cancels:
            def __init__(self, token: CancellationToken) -> None:
                self.token = token
                self.itself = self

            def __del__(self) -> None:
                self.token.cancel("garbage")

        calls: list[int] = []
        rounds = added = 0
        thresholds = gc.get_threshold()
        deadline = time.monotonic() + 0.4
        with handling(signal.SIGALRM, handler):
            gc.set_threshold(20)
            signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
            try:
                while time.monotonic() < deadline:
                    rounds += 1
                    root = CancellationToken()
                    current.append(root)
                    Cancels(root)
                    for _ in range(5):
                        child = current[-1].child_token().child_token()  # over a dropped one
                        child.add_callback(lambda: calls.append(1))
                        added += 1
                        child.add_callback(child.cancel)()
                        child.wait(0.00001)
                        current.append(child)
                    root.cancel("main")
                    assert all(token.is_cancelled() for token in current)
                    current.clear()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                gc.set_threshold(*thresholds)
        assert rounds > 10
        assert handled
        assert len(calls) == added


class Interrupted(BaseException):
    pass


@cache
def code_under_test() -> list[CodeType]:
    functions = []
    parts = (token_module, token_tree)
    for thing in (thing for part in parts for thing in vars(part).values()):
        if getattr(thing, "__module__", None) in {part.__name__ for part in parts}:
            members = vars(thing).values() if isinstance(thing, type) else [thing]
            functions += [getattr(member, "fget", member) for member in members]
    found = [each.__code__ for each in functions if isinstance(each, FunctionType)]
    for code in found:  # grows meanwhile, by the functions inside functions
        found += [each for each in code.co_consts if isinstance(each, CodeType)]
    return found


if sys.version_info >= (3, 12):  # sys.settrace misses instructions there

    @contextlib.contextmanager
    def at_each_instruction(call: Callable[[], object]) -> Iterator[None]:
        """Before each instruction of the module under test, `call()`, which may raise."""
        tool, instruction = 4, sys.monitoring.events.INSTRUCTION
        codes = code_under_test()
        sys.monitoring.use_tool_id(tool, __name__)
        sys.monitoring.register_callback(tool, instruction, lambda *_: call())
        for code in codes:
            sys.monitoring.set_local_events(tool, code, instruction)
        try:
            yield
        finally:
            for code in codes:
                sys.monitoring.set_local_events(tool, code, 0)
            sys.monitoring.register_callback(tool, instruction, None)
            sys.monitoring.free_tool_id(tool)

else:

    @contextlib.contextmanager
    def at_each_instruction(call: Callable[[], object]) -> Iterator[None]:
        """Before each instruction of the module under test, `call()`, which may raise."""
        codes = {*code_under_test()}

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            if event == "opcode":
                call()
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


def interrupt(work: Callable[[], object], step: int, act: Callable[[], object]) -> bool:
    """Do `work`, and `act` before its instruction number `step`, as a signal handler would.

    Returns whether there were that many.
    """
    count = 0
    thread = threading.get_ident()

    def at_instruction() -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count == step:
            count += 1  # not again, while it acts
            act()

    gc.disable()  # else it destroys tokens of other families, in the middle of this one's work
    try:
        with at_each_instruction(at_instruction):
            work()
    finally:
        gc.enable()
    return count > step


def below(node: Node) -> list[Node]:
    found = [node]
    for each in found:  # grows meanwhile
        found += each.children
    return found


#: From the top; those below the child are siblings.
FAMILY = ["root", "middle", "child", "leaf", "heard", "late leaf"]


class Family:
    """A small tree, of which all but one can be dropped, and what was seen to run."""

    def __init__(self) -> None:
        self.tokens: dict[str, CancellationToken] = {}
        above = self.tokens["root"] = CancellationToken()
        for name in FAMILY[1:4]:
            above = self.tokens[name] = above.child_token()
        self.calls: list[str] = []
        self.reasons: dict[str, str] = {}
        self.cancels = self.late = 0
        self.removed = False
        self.tokens["heard"] = self.tokens["child"].child_token()
        self.remove = self.tokens["heard"].add_callback(self.called)
        self.tokens["child"].fileno()

    def called(self) -> None:
        self.calls.append("called after remove()" if self.removed else "called")

    def cancel(self, name: str) -> None:
        token = self.tokens.get(name)
        if token is not None:
            self.cancels += 1
            token.cancel(f"{name} {self.cancels}")
            below = set(FAMILY[FAMILY.index(name) :]) & set(self.tokens)
            self.see_reasons()
            assert below & set(self.tokens) <= set(self.reasons)

    def see_reasons(self) -> None:
        """The reason of each token stays what it was when it was first seen."""
        for name, token in list(self.tokens.items()):
            reason = token.reason
            if reason is not None:
                assert self.reasons.setdefault(name, reason) == reason

    def drop(self, name: str) -> None:
        self.tokens.pop(name, None)

    def drop_middle_and_cancel_root(self) -> None:
        self.drop("middle")
        self.cancel("root")

    def take_back(self) -> None:
        self.remove()
        self.removed = True

    def bear(self) -> None:
        if "child" in self.tokens:
            parent = self.tokens["child"]
            if parent.is_cancelled():
                assert parent.child_token().is_cancelled()
            self.tokens["late leaf"] = born = parent.child_token()
            if parent.is_cancelled():
                assert born.is_cancelled()

    def late_callback(self) -> None:
        if "child" in self.tokens:
            self.late += 1
            self.tokens["child"].add_callback(partial(self.calls.append, f"late {self.late}"))

    def late_descriptor(self) -> None:
        if "leaf" in self.tokens:
            self.tokens["leaf"].fileno()

    def check_at_the_end(self) -> None:
        root = self.tokens.get("root")
        self.see_reasons()
        for reason in self.reasons.values():
            giver = reason.partition(" ")[0]
            assert self.reasons.get(giver, reason) == reason
        if root is not None:
            assert [node for node in below(root._node) if node.gone] == []
            leaves = [self.tokens.get(name) for name in ("leaf", "heard", "late leaf")]
            root.cancel("end")
            assert all(leaf is None or leaf.is_cancelled() for leaf in leaves)
            assert all(is_readable(leaf) for leaf in leaves if leaf is not None)
            assert root._node.children == {}
        assert len(self.calls) == len(set(self.calls))
        assert "called after remove()" not in self.calls
        if root is not None and not self.removed:
            assert "called" in self.calls
        if root is not None and "child" in self.tokens:
            assert len(self.calls) == self.late + ("called" in self.calls)


ACTS: dict[str, Callable[[Family], object]] = {
    "cancel root": lambda family: family.cancel("root"),
    "cancel child": lambda family: family.cancel("child"),
    "drop root": lambda family: family.drop("root"),
    "drop middle": lambda family: family.drop("middle"),
    "drop child": lambda family: family.drop("child"),
    "drop leaf": lambda family: family.drop("leaf"),
    "drop middle and cancel root": Family.drop_middle_and_cancel_root,
    "child token": Family.bear,
    "add_callback": Family.late_callback,
    "remove": Family.take_back,
    "fileno": Family.late_descriptor,
}


#: These have no steps that others don't have.
NO_OUTER = {"cancel child", "drop middle and cancel root"}


class TestBetweenAnyTwoSteps:
    """One thing is done in the middle of another: before each single instruction of it in turn."""

    @pytest.mark.parametrize("outer", [act for act in ACTS if act not in NO_OUTER])
    def test_done_by_a_signal_handler(self, outer: str) -> None:
        for inner in ACTS:
            # A handler that removes what it has interrupted just before its start comes too late.
            if (outer.partition(" ")[0], inner) != ("cancel", "remove"):
                self.exhaust(outer, inner, lambda act: act())

    @pytest.mark.parametrize("outer", ["cancel root", "drop middle", "child token", "remove"])
    @pytest.mark.parametrize("inner", ["cancel root", "drop middle", "drop child"])
    def test_done_by_another_thread(self, outer: str, inner: str) -> None:
        def in_a_thread(act: Callable[[], object]) -> None:
            with running(act):
                pass

        self.exhaust(outer, inner, in_a_thread)

    def exhaust(self, outer: str, inner: str, do: Callable[[Callable[[], object]], object]) -> None:
        step, more = 0, True
        while more:
            step += 1
            family = Family()
            more = interrupt(
                partial(ACTS[outer], family),
                step,
                partial(do, partial(ACTS[inner], family)),
            )
            try:
                family.check_at_the_end()
            except AssertionError as error:
                raise AssertionError(f"{inner}, before step {step} of: {outer}") from error
        assert step > 10

    def test_a_cancel_that_was_cut_short_is_finished_by_the_next(self) -> None:
        def cut() -> NoReturn:
            raise Interrupted

        step, more, lost = 0, True, 0
        while more:
            step += 1
            family = Family()
            more = True
            middle = family.tokens["middle"]
            with running(middle.wait):
                until(partial(waiting, middle))
                try:
                    more = interrupt(partial(family.cancel, "root"), step, cut)
                except Interrupted:
                    family.cancel("root")
            assert is_readable(family.tokens["child"])
            lost += family.calls == []
            assert len(family.calls) <= 1
        assert step > 100
        # A callback that was just about to run: better never than twice.
        assert lost < 20


class TestRaces:
    def test_threads_that_cancel_add_remove_and_wait(self) -> None:
        kinds = 4
        begin = time.monotonic()
        with switching_fast():
            for _ in range(60):
                race = Race(threads=2 * kinds)
                with running(
                    *[race.cancel, race.call, race.take_back, race.wait] * 2,
                ):
                    pass
                race.check()
                if time.monotonic() - begin > 1.5:
                    break

    def test_tokens_that_come_and_go_while_they_are_cancelled(self) -> None:
        before = parts_alive()
        begin = time.monotonic()
        with switching_fast():
            for _ in range(60):
                root = CancellationToken()
                barrier = threading.Barrier(5)
                leaves: list[CancellationToken] = []

                def grow(
                    root: CancellationToken = root,
                    barrier: threading.Barrier = barrier,
                    leaves: list[CancellationToken] = leaves,
                ) -> None:
                    barrier.wait(PATIENCE)
                    heir = root
                    for _ in range(20):
                        branch = heir.child_token()
                        heir = branch.child_token()
                        leaves.append(branch.child_token())
                        del branch

                with running(*[grow] * 4):
                    barrier.wait(PATIENCE)
                    root.cancel("end")
                assert [leaf.reason for leaf in leaves] == ["end"] * 80
                leaves.clear()
                assert [node for node in root._node.children if node.gone] == []
                if time.monotonic() - begin > 1.5:
                    break
        del root, grow
        assert parts_alive() == before


class Race:
    """One token, and its child, that threads fall upon at the same moment."""

    def __init__(self, threads: int) -> None:
        self.token = CancellationToken()
        self.child = self.token.child_token()
        self.barrier = threading.Barrier(threads)
        self.added: list[object] = []
        self.called: list[object] = []
        self.removed: set[object] = set()
        self.too_late: list[object] = []
        self.answers: list[bool] = []

    def cancel(self) -> None:
        self.barrier.wait(PATIENCE)
        self.token.cancel("race")
        assert self.child.reason == "race"

    def add(self) -> tuple[object, Callable[[], None]]:
        key = object()

        def call() -> None:
            self.too_late += [key] if key in self.removed else []
            self.called.append(key)

        remove = self.child.add_callback(call)
        self.added.append(key)
        return key, remove

    def call(self) -> None:
        self.barrier.wait(PATIENCE)
        for _ in range(20):
            self.add()

    def take_back(self) -> None:
        mine = [self.add() for _ in range(20)]
        self.barrier.wait(PATIENCE)
        for key, remove in mine:
            remove()
            self.removed.add(key)

    def wait(self) -> None:
        self.barrier.wait(PATIENCE)
        self.answers.append(self.child.wait(PATIENCE))
        self.answers.append(self.token.wait(PATIENCE))

    def check(self) -> None:
        assert self.answers == [True] * 4
        assert self.too_late == []
        assert len(self.called) == len(set(self.called))
        assert set(self.added) - self.removed <= set(self.called)
        assert waiting(self.child) == 0
        assert self.child._watch.callbacks == {}
