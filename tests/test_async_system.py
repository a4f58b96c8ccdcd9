"""AsyncClient on a real system: what awaiting promises, and what cancelling it leaves alone."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import AsyncClient, Outcome, ScopeClosedError, TaskCancelledError, TaskFailedError
from quiesce.testing import Witness, bodies
from system import System

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness", slots=8)
    yield witness
    witness.close()


def run(system: System, body: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), AsyncClient(system.address) as client:
            await body(client)

    asyncio.run(main(), debug=True)


async def becomes(read: Callable[[], Awaitable[object]], wanted: bool = True) -> None:
    """Until what is read is true, or false; the deadline is that of `run`."""
    while bool(await read()) is not wanted:  # noqa: ASYNC110 - it happens in other processes
        await asyncio.sleep(0.005)


async def running(client: AsyncClient, tenant_id: str) -> None:
    await becomes(lambda: client.tasks(tenant_id=tenant_id, state="running"))


def test_results_failures_and_many_at_once(system: System) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("compute-request", "attach", bodies.add_async, 2, 3)
        assert await handle == 5
        assert await handle == 5
        handles = await client.spawn_many(
            "compute-request", "attach", bodies.add, [(n, n) for n in range(50)]
        )
        assert await asyncio.gather(*handles) == [2 * n for n in range(50)]
        failing = await client.spawn("compute-request", "attach", bodies.fail, "here")
        with pytest.raises(TaskFailedError, match="here"):
            await failing
        assert await (await client.spawn("background", "attach", lambda: "by value")) == "by value"

    run(system, body)


def test_cancelling_an_await_leaves_the_task_alone_until_it_is_asked(
    system: System, witness: Witness
) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn(
            "background", "attach", bodies.doze, witness.path, 0, tenant_id="await"
        )
        for wait in (handle.result, handle.wait, handle.exception):
            waiting = asyncio.ensure_future(wait())
            await running(client, "await")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await handle
        assert (await handle.status()).state == "running"
        report = await handle.shutdown()
        assert [task.id for task in report.tasks] == [await handle.id]
        assert await handle.wait(30)

    run(system, body)


def test_a_stop_goes_on_when_nobody_awaits_it(system: System, run_folder: Path) -> None:
    end = run_folder / "end"

    async def body(client: AsyncClient) -> None:
        witness = Witness(run_folder / "witness", slots=1)
        handle = await client.spawn(
            "background",
            "attach",
            bodies.ignore_until_file,
            str(end),
            witness.path,
            0,
            tenant_id="stop",
        )
        await running(client, "stop")
        stop = asyncio.ensure_future(client.shutdown_tasks(tenant_id="stop", grace=float("inf")))
        await becomes(client.stops)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        refused = await client.spawn("background", "attach", bodies.nothing, tenant_id="stop")
        with pytest.raises(ScopeClosedError):
            await refused
        end.touch()
        assert await handle.wait(30)
        await becomes(client.stops, False)
        again = await client.spawn("background", "attach", bodies.nothing, tenant_id="stop")
        await again
        witness.close()

    run(system, body)


def test_a_cancelled_way_into_a_stopped_block_opens_the_scope_again(
    system: System, witness: Witness
) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn(
            "background", "attach", bodies.doze, witness.path, 0, tenant_id="block"
        )
        await running(client, "block")
        async with client.stopped(tenant_id="block") as report:
            assert [task.outcome for task in report.tasks] == [Outcome.COMPLETED]
            closed = await client.spawn("background", "attach", bodies.nothing, tenant_id="block")
            with pytest.raises(ScopeClosedError):
                await closed
        assert await handle.wait(30)
        await (await client.spawn("background", "attach", bodies.nothing, tenant_id="block"))

    run(system, body)


def test_events_are_iterated_until_the_client_is_closed(system: System) -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        async with asyncio.timeout(60):
            async with AsyncClient(system.address) as client:
                began = asyncio.Event()

                async def listen() -> None:
                    async for event in client.events():
                        seen.append(event.type)
                        began.set()

                listener = asyncio.ensure_future(listen())
                while not began.is_set():
                    await (await client.spawn("background", "attach", bodies.nothing))
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(began.wait(), 0.05)
                waiting = await client.spawn(
                    "background", "attach", bodies.nothing, tenant_id="gone"
                )
                await waiting
            await listener  # it has ended with the client
        return seen

    assert any("task" in kind for kind in asyncio.run(main(), debug=True))


def test_a_stopped_task_raises_where_it_is_awaited(system: System) -> None:
    async def body(client: AsyncClient) -> None:
        handle = await client.spawn("background", "attach", bodies.add, 1, 2, tenant_id="q")
        await handle
        doomed = await client.spawn(
            "compute-request", "attach", asyncio.sleep, 1000, tenant_id="doomed"
        )
        waiting = asyncio.ensure_future(doomed.result())
        await running(client, "doomed")
        await client.shutdown_tasks(tenant_id="doomed", grace=0)
        with pytest.raises(TaskCancelledError):
            await waiting

    run(system, body)
