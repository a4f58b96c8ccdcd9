"""AsyncClient and AsyncTaskHandle against a broker that the test plays itself."""

import asyncio
import gc
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_fakes import FakeBroker, ended, stop_report, task_row
from quiesce.client.async_client import AsyncClient
from quiesce.client.async_handle import AsyncTaskHandle
from quiesce.client.client import Client
from quiesce.client.events import AsyncEventStream
from quiesce.client.steps import CONTROL, DATA
from quiesce.errors import (
    BrokerUnavailableError,
    QueueFullError,
    ShutdownTimeoutError,
    TaskFailedError,
)
from quiesce.protocol import from_client, to_client
from quiesce.protocol.callables import pack_exception, pack_value


def work(*_: object) -> Any:
    raise AssertionError("the fake broker runs nothing")


@pytest.fixture
def broker(run_folder: Path) -> Iterator[FakeBroker]:
    broker = FakeBroker(f"ipc://{run_folder}/b")
    yield broker
    broker.stop()


def run(broker: FakeBroker, body: Callable[[AsyncClient], Awaitable[None]]) -> None:
    """`body` in a loop of its own, with a client of this broker."""

    async def main() -> None:
        async with asyncio.timeout(20), AsyncClient(broker.address, timeout=10) as client:
            await body(client)

    asyncio.run(main())


async def off_loop(call: Callable[[], object]) -> None:
    await asyncio.to_thread(call)


def test_a_client_that_was_not_entered_says_so(broker: FakeBroker) -> None:
    async def main() -> None:
        client = AsyncClient(broker.address)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.spawn("background", "compaction", work),
            lambda: client.spawn_many("background", "compaction", work, [1]),
            client.tasks,
            client.shutdown_tasks,
        ]
        with pytest.raises(RuntimeError, match="has not been entered"):
            client.events()
        for call in calls:
            with pytest.raises(RuntimeError, match="has not been entered"):
                await call()
        assert "not connected" in repr(client)
        await client.close()

    asyncio.run(main())


def test_another_loop_is_told_so_before_anything_is_sent(broker: FakeBroker) -> None:
    client = AsyncClient(broker.address, timeout=10)
    with asyncio.Runner() as own, asyncio.Runner() as other:

        async def enter() -> AsyncTaskHandle[Any]:
            await client.__aenter__()
            return await client.spawn("background", "compaction", work)

        handle = own.run(enter())
        broker.answer(1, 5)

        async def look() -> None:
            for call in (client.tasks, client.shutdown_tasks, handle.result, handle.shutdown):
                with pytest.raises(RuntimeError, match="belongs to another event loop"):
                    await call()

        other.run(look())
        other.run(client.close())  # that can be done in any
    assert broker.count(from_client.Stop) == broker.count(from_client.ListTasks) == 0


def test_await_a_handle(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("background", "compaction", work)
        assert not handle.done()
        broker.answer(1, 5)
        assert await handle.id == 5
        assert await handle.id() == 5
        assert not await handle.wait(0.001)
        with pytest.raises(TimeoutError):
            await handle.result(0.001)
        broker.say(DATA, to_client.Ended([ended(5, result=pack_value("r"))]))
        assert await handle == "r"
        assert await handle.result() == "r"
        assert await handle.exception() is None
        broker.script[from_client.GetTask] = lambda m: to_client.Tasks(m.request, [task_row(5)])
        assert (await handle.status()).id == 5
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, tasks=[5])
        report = await handle.shutdown(reason="moved")
        assert (report.tasks[0].id, report.reason) == (5, "moved")

    run(broker, body)
    broker.take(from_client.Goodbye)


def test_refusals_and_failures(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        refused, failed = await client.spawn_many("background", "compaction", work, [1, 2])
        broker.refuse(1, "QueueFullError", "no room")
        broker.answer(2, 2)
        end = ended(2, outcome="failed", result=pack_exception(KeyError("k")))
        broker.say(DATA, to_client.Ended([end]))
        with pytest.raises(QueueFullError):
            await refused
        with pytest.raises(TaskFailedError) as caught:
            await failed
        assert isinstance(caught.value.__cause__, KeyError)
        assert isinstance(await failed.exception(), TaskFailedError)

    run(broker, body)


def test_a_stop_returns_when_its_handles_are_done(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("background", "compaction", work)
        broker.answer(1, 5)
        await handle.id
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, tasks=[5])
        stop = asyncio.ensure_future(handle.shutdown())
        await off_loop(lambda: broker.take(from_client.Stop))
        await client.reopen()  # its answer comes after the report
        assert not stop.done()
        broker.say(DATA, to_client.Ended([ended(5, outcome="cancelled")]))
        assert (await stop).tasks[0].id == 5
        assert handle.done()

    run(broker, body)


def test_many_waits_at_once_and_a_cancelled_one(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        handles = [await client.spawn("background", "compaction", work) for _ in range(50)]
        waits = [asyncio.ensure_future(handle.result()) for handle in handles]
        await asyncio.sleep(0)
        waits[7].cancel()
        await off_loop(lambda: broker.answer_all(50))
        ends = [ended(number, result=pack_value(number)) for number in range(1, 51)]
        broker.say(DATA, to_client.Ended(ends))
        found = await asyncio.gather(*waits, return_exceptions=True)
        assert isinstance(found[7], asyncio.CancelledError)
        assert [x for i, x in enumerate(found) if i != 7] == [n for n in range(1, 51) if n != 8]
        assert await handles[7] == 8
        assert broker.count(from_client.Stop) == 0

    run(broker, body)


def test_stopped(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=4)
        async with client.stopped(tenant_id="t") as report:
            assert report.scope == "tenant_id=t"
        assert broker.take(from_client.Release).stop_id == 4
        with pytest.raises(KeyError):
            async with client.stopped():
                raise KeyError
        assert broker.take(from_client.Release).stop_id == 4
        broker.script[from_client.Stop] = lambda m: stop_report(
            m.request, timed_out=True, remaining=[1]
        )
        with pytest.raises(ShutdownTimeoutError):
            await client.shutdown_tasks(timeout=1)

    run(broker, body)


def test_a_block_that_is_given_up_while_ends_are_on_their_way_is_released(
    broker: FakeBroker,
) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("background", "compaction", work)
        broker.answer(1, 5)
        await handle.id
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=6, tasks=[5])

        async def block() -> None:
            async with client.stopped(tenant_id="t"):
                raise AssertionError("must not be entered")

        task = asyncio.ensure_future(block())
        await off_loop(lambda: broker.take(from_client.Stop))
        await client.reopen()  # its answer comes after the report
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.to_thread(broker.take, from_client.Release)).stop_id == 6

    run(broker, body)


def test_a_stop_that_is_cancelled_on_the_way_into_its_block_is_released(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        broker.mute.add(from_client.Stop)

        async def block() -> None:
            async with client.stopped(tenant_id="t"):
                raise AssertionError("must not be entered")

        task = asyncio.ensure_future(block())
        stop = await asyncio.to_thread(broker.take, from_client.Stop)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        broker.say(CONTROL, stop_report(stop.request, stop_id=6))
        assert (await asyncio.to_thread(broker.take, from_client.Release)).stop_id == 6

    run(broker, body)


@pytest.mark.parametrize("wrong", [math.nan, -1, True, "1", 10**400])
def test_a_stop_with_a_wrong_argument_stops_nothing(broker: FakeBroker, wrong: Any) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("background", "compaction", work)
        broker.answer(1, 8)
        assert await handle.id == 8
        with pytest.raises((TypeError, ValueError), match="timeout"):
            await handle.shutdown(timeout=wrong)
        await client.reopen()  # a stop would have been sent before
        assert broker.count(from_client.Stop) == 0

    run(broker, body)


def test_queries_and_timeouts(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        broker.script[from_client.ListTasks] = lambda m: to_client.Tasks(m.request, [task_row(3)])
        assert [task.id for task in await client.tasks()] == [3]
        await client.reopen(tenant_id="t")
        client.timeout = 0.02
        broker.mute.add(from_client.GetStatistics)
        with pytest.raises(BrokerUnavailableError, match="statistics"):
            await client.statistics()

    run(broker, body)


def test_events(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        stream = client.events()
        await asyncio.to_thread(broker.take, from_client.Subscribe)
        for number in range(3):
            broker.say(CONTROL, to_client.Event("e", float(number), None, {}, 0))
        found = []
        async for event in stream:
            found.append(event.at)
            if len(found) == 3:
                break
        assert found == [0.0, 1.0, 2.0]
        await stream.aclose()
        assert [event async for event in stream] == []
        await asyncio.to_thread(broker.take, from_client.Unsubscribe)

    run(broker, body)


def test_a_stream_is_made_in_the_loop_or_leaves_nothing(broker: FakeBroker) -> None:
    async def body(client: AsyncClient) -> None:
        def make() -> None:
            with pytest.raises(RuntimeError, match="event loop"):
                client.events()

        await asyncio.to_thread(make)
        gc.collect()  # a coroutine that nobody awaits would warn, which is an error
        assert client._driver._listeners == []
        await client.reopen()  # the request would have been sent before
        assert broker.count(from_client.Subscribe) == 0

    run(broker, body)


def test_a_client_closed_inside_its_block_leaves_the_scope_to_the_broker(
    broker: FakeBroker,
) -> None:
    async def body(client: AsyncClient) -> None:
        broker.script[from_client.Stop] = lambda m: stop_report(m.request, stop_id=4)
        kept = client.stopped(tenant_id="t")
        await kept.__aenter__()
        del kept
        gc.collect()
        async with client.stopped(tenant_id="t"):
            await client.close()

    run(broker, body)
    broker.take(from_client.Goodbye)
    assert broker.count(from_client.Release) == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_block_of_a_cancelled_task_is_left_in_silence(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """Cancelled once it waits for the answers to its spawns; again, it waits no more."""
    said: list[dict[str, Any]] = []
    clients: list[AsyncClient] = []

    async def use() -> None:
        async with AsyncClient(broker.address, timeout=10) as client:
            clients.append(client)
            handle = await client.spawn("background", "compaction", work)
            stream = client.events()
            assert isinstance(stream, AsyncEventStream)
            await handle

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: said.append(what))
        asyncio.get_running_loop().slow_callback_duration = 60  # says nothing of a slow machine
        broker.mute.add(from_client.Subscribe)
        task = asyncio.ensure_future(use())
        await asyncio.to_thread(broker.take, from_client.Subscribe)
        await asyncio.to_thread(broker.take, from_client.Spawn)
        task.cancel()
        assert await asyncio.to_thread(broker.until, lambda: clients[0]._driver.closing)
        if times == 1:
            broker.answer(1, 1)
        else:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gc.collect()

    began = time.monotonic()
    asyncio.run(main(), debug=True)
    clients[0]._driver.join(5)
    assert clients[0]._driver.ended.over
    assert time.monotonic() - began < 5  # not the client's timeout
    broker.take(from_client.Goodbye)
    assert said == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_wait_without_a_broker_does_not_say_that_the_task_goes_on(run_folder: Path) -> None:
    address = f"ipc://{run_folder}/b"

    async def main() -> None:
        with FakeBroker(address) as broker:
            client = await AsyncClient(address, timeout=10).__aenter__()
            handle = await client.spawn("background", "compaction", work)
            broker.answer(1, 5)
            assert await handle.id == 5
        assert broker.until(lambda: client._driver.silence() is not None)
        for look in (handle.result, handle.exception):
            with pytest.raises(TimeoutError, match="no broker has answered"):
                await look(0)
        await client.close()

    asyncio.run(main())


def test_no_broker(run_folder: Path) -> None:
    async def main() -> None:
        with pytest.raises(BrokerUnavailableError, match="quiesce up"):
            async with AsyncClient(f"ipc://{run_folder}/none", timeout=0.1):
                raise AssertionError("must not be entered")
        await AsyncClient(f"ipc://{run_folder}/none").close()

    asyncio.run(main())


def test_a_plain_handle_can_be_awaited_too(broker: FakeBroker) -> None:
    with Client(broker.address, timeout=10) as client:
        handle = client.spawn("background", "compaction", work)
        broker.answer(1, 1)

        async def main() -> Any:
            end = to_client.Ended([ended(1, result=pack_value("r"))])
            threading.Thread(target=broker.say, args=(DATA, end)).start()
            return await handle

        assert asyncio.run(main()) == "r"
