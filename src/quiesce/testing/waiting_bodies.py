"""Task bodies for tests that wait for other tasks, or block in a call of a client."""

import asyncio
import threading
import time
from typing import Any

import quiesce
from quiesce.testing.bodies import PAUSE, ignore_until_file
from quiesce.testing.witness import opened


def wait_for_other(trigger: str, path: str, slot: int) -> str:
    """Wait for a task that goes on until a file is there."""
    return str(_other(trigger, path, slot).result())


def wait_in_threads(trigger: str, path: str, slot: int) -> None:
    """Two threads wait for one task; one of them gives up soon."""
    other = _other(trigger, path, slot)
    threads = [
        threading.Thread(target=other.result),
        threading.Thread(target=other.wait, args=(1.5,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def await_other(trigger: str, path: str, slot: int) -> str:
    """The same as a coroutine."""
    return str(await _other(trigger, path, slot))


def wait_in_a_ring(own: str, others: list[str]) -> None:
    """Wait for the holder of the next unique key, which does the same: the last waits for the first."""
    client = quiesce.current_client()
    first, *rest = others
    handle = client.spawn(
        "compute-request",
        "attach",
        wait_in_a_ring,
        first,
        [*rest, own],
        tenant_id="ring",
        name=f"holds {first}",
        unique_key=first,
    )
    handle.result()


def _other(trigger: str, path: str, slot: int) -> Any:
    """A task of another tenant that nobody stops before its file is there."""
    handle = quiesce.current_client().spawn(
        "walreceiver", "attach", ignore_until_file, trigger, path, slot + 1, tenant_id="other"
    )
    _until_it_ticks(path, slot + 1)
    return handle


def _until_it_ticks(path: str, slot: int) -> None:
    while not opened(path).read(slot).ticks:
        time.sleep(PAUSE)


def block_in(how: str, trigger: str, path: str, slot: int) -> None:
    """Wait for ever in one of the calls that wait for other tasks."""
    other = _other(trigger, path, slot)
    client = quiesce.current_client()
    opened(path).tick(slot)
    if how == "result":
        other.result()
    elif how == "result, with a timeout":
        other.result(timeout=600)
    elif how == "wait":
        other.wait()
    elif how == "exception":
        other.exception()
    elif how == "shutdown":
        other.shutdown(grace=600)
    elif how == "shutdown_tasks":
        client.shutdown_tasks(tenant_id="other", grace=600)
    elif how == "stopped":
        with client.stopped(tenant_id="other", grace=600):
            pass
    elif how == "events":
        for _ in client.events():
            pass
    elif how == "in a thread":
        thread = threading.Thread(target=other.result)
        thread.start()
        thread.join()
        quiesce.checkpoint()
    else:
        _block_in_executor(how, trigger, path, slot + 2)


def _block_in_executor(how: str, trigger: str, path: str, slot: int) -> None:
    executor = quiesce.QuiesceExecutor(
        2, client=quiesce.current_client(), runtime="walreceiver", kind="attach"
    )
    future = executor.submit(ignore_until_file, trigger, path, slot)
    if how == "future.result":
        future.result()
    elif how == "future.exception":
        future.exception(timeout=600)
    elif how == "executor.map":
        list(executor.map(ignore_until_file, [trigger], [path], [slot]))
    elif how == "executor.shutdown":
        executor.shutdown()
    raise ValueError(how)


async def block_in_async(how: str, trigger: str, path: str, slot: int) -> None:
    """The same, of AsyncClient."""
    address = quiesce.current_client().address
    async with quiesce.AsyncClient(address) as client:
        other = await client.spawn(
            "walreceiver", "attach", ignore_until_file, trigger, path, slot + 1, tenant_id="other"
        )
        await asyncio.to_thread(_until_it_ticks, path, slot + 1)
        opened(path).tick(slot)
        if how == "await":
            await other
        elif how == "result":
            await other.result(timeout=600)
        elif how == "wait":
            await other.wait()
        elif how == "exception":
            await other.exception()
        elif how == "shutdown":
            await other.shutdown(grace=600)
        elif how == "shutdown_tasks":
            await client.shutdown_tasks(tenant_id="other", grace=600)
        elif how == "stopped":
            async with client.stopped(tenant_id="other", grace=600):
                pass
        elif how == "events":
            async for _ in client.events():
                pass


def look_around_when_asked(path: str, slot: int) -> list[str]:
    """Wait until asked, then use the calls that only ask the broker: cleaning up may need them."""
    opened(path).tick(slot)
    quiesce.wait_for_shutdown()
    client = quiesce.current_client()
    task = quiesce.current_task()
    assert task is not None
    client.reopen(tenant_id="nobody")
    return [
        str(client.task(task.id).stopping),
        str(len(client.tasks(tenant_id=task.tenant_id))),
        client.broker_info().state,
    ]
