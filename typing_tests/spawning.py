"""What type checkers must know of spawning. Never run; checked by tests/test_typing.py with mypy and pyright.

Lines marked with `# error:` must be errors, and no others may be.
"""

import functools
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future
from typing import Any, assert_type

import quiesce
from quiesce import (
    AsyncClient,
    AsyncTaskHandle,
    CancellationToken,
    Client,
    QuiesceExecutor,
    ShutdownReport,
    TaskHandle,
    TaskId,
    TaskInfo,
    TaskKind,
)


def join(left: int, right: int) -> str:
    return f"{left}{right}"


def scale(value: float, by: float = 2.0) -> float:
    return value * by


def named(value: int, *, suffix: str = "") -> str:
    return f"{value}{suffix}"


def needs_a_name(value: int, *, suffix: str) -> str:
    return f"{value}{suffix}"


def total(*values: int) -> int:
    return sum(values)


async def fetch(url: str) -> bytes:
    return url.encode()


class Job:
    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, times: int = 1) -> list[int]:
        return [self.size] * times


def spawn(client: Client) -> None:
    assert_type(client.spawn("background", "compaction", join, 1, 2), TaskHandle[str])
    assert_type(client.spawn("background", TaskKind.COMPACTION, fetch, "u"), TaskHandle[bytes])
    assert_type(client.spawn("r", "k", scale, 1.0), TaskHandle[float])
    assert_type(client.spawn("r", "k", scale, 1.0, 3.0), TaskHandle[float])
    assert_type(client.spawn("r", "k", named, 1), TaskHandle[str])
    assert_type(client.spawn("r", "k", total, 1, 2, 3), TaskHandle[int])
    assert_type(client.spawn("r", "k", Job, 1), TaskHandle[Job])
    assert_type(client.spawn("r", "k", Job(1).run), TaskHandle[list[int]])
    assert_type(client.spawn("r", "k", time.sleep, 1), TaskHandle[None])
    assert_type(client.spawn("r", "k", functools.partial(join, 1), 2), TaskHandle[str])
    assert_type(client.spawn("r", "k", lambda: 3), TaskHandle[int])
    assert_type(client.spawn("r", "k", os.getpid), TaskHandle[int])

    # With options, and with keyword arguments.
    assert_type(client.spawn("r", "k", join, 1, 2, tenant_id="t", retries=2), TaskHandle[str])
    assert_type(client.spawn("r", "k", needs_a_name, 1, kwargs={"suffix": "x"}), TaskHandle[str])
    assert_type(client.spawn("r", "k", fetch, kwargs={"url": "u"}, timeout=3), TaskHandle[bytes])

    client.spawn("r", "k", join, "1", 2)  # error: not a str
    client.spawn("r", "k", join, 1)  # error: one is missing
    client.spawn("r", "k", join, 1, 2, 3)  # error: one too many
    client.spawn("r", "k", fetch, 1)  # error: not an int
    client.spawn("r", "k", scale, "1")  # error: not a str
    client.spawn("r", "k", needs_a_name, 1)  # error: a keyword is missing
    client.spawn("r", "k", join, 1, 2, tenant="t")  # error: no such option
    client.spawn("r", "k", join, 1, 2, retries="2")  # error: not a str
    client.spawn("r", "k", join, 1, 2, restart="allways")  # error: a typo
    client.spawn("r", "k", join(1, 2))  # error: called, not handed over


def spawn_many(client: Client) -> None:
    assert_type(client.spawn_many("r", "k", join, [(1, 2), (3, 4)]), list[TaskHandle[str]])
    assert_type(
        client.spawn_many("r", "k", join, zip([1], [2], strict=True)), list[TaskHandle[str]]
    )
    assert_type(client.spawn_many("r", "k", fetch, ["a", "b"]), list[TaskHandle[bytes]])
    assert_type(client.spawn_many("r", "k", total, range(3)), list[TaskHandle[int]])
    assert_type(
        client.spawn_many("r", "k", needs_a_name, [1], kwargs={"suffix": "x"}, name="n"),
        list[TaskHandle[str]],
    )
    client.spawn_many("r", "k", fetch, [1, 2])  # error: not ints
    client.spawn_many("r", "k", join, [(1, "2")])  # error: not a str
    client.spawn_many("r", "k", join, [1])  # error: two each


def tasks(client: Client, state: quiesce.State) -> None:
    assert_type(client.tasks(state="running"), list[TaskInfo])
    assert_type(client.tasks(state=state), list[TaskInfo])
    client.spawn("r", "k", join, 1, 2, restart="on-failure")
    client.tasks(state="runing")  # error: a typo


def handle(task: TaskHandle[str]) -> None:
    assert_type(task.result(), str)
    assert_type(task.result(1.0), str)
    assert_type(task.id, TaskId)
    assert_type(task.wait(1), bool)
    assert_type(task.exception(), quiesce.QuiesceError | None)
    assert_type(task.status(), TaskInfo)
    assert_type(task.shutdown(grace=1), ShutdownReport)
    of_anything(task)  # its result is only read, so a handle of a str will do


def of_anything(task: TaskHandle[object]) -> None:
    assert_type(task.result(), object)


async def in_asyncio(client: AsyncClient, task: AsyncTaskHandle[str]) -> None:
    assert_type(await client.spawn("r", "k", join, 1, 2), AsyncTaskHandle[str])
    assert_type(await client.spawn("r", "k", fetch, "u", tenant_id="t"), AsyncTaskHandle[bytes])
    assert_type(await client.spawn("r", "k", fetch, kwargs={"url": "u"}), AsyncTaskHandle[bytes])
    assert_type(await client.spawn_many("r", "k", fetch, ["a"]), list[AsyncTaskHandle[bytes]])
    assert_type(await client.spawn_many("r", "k", join, [(1, 2)]), list[AsyncTaskHandle[str]])
    await client.spawn("r", "k", join, 1)  # error: one is missing
    await client.spawn_many("r", "k", fetch, [1])  # error: not an int

    assert_type(await task, str)
    assert_type(await task.result(1), str)
    assert_type(await task.id, TaskId)
    assert_type(await client.tasks(), list[TaskInfo])
    assert_type(await client.shutdown_tasks(tenant_id="t"), ShutdownReport)
    async with AsyncClient() as entered:
        assert_type(entered, AsyncClient)
    async with client.stopped(tenant_id="t") as report:
        assert_type(report, ShutdownReport)
    events: AsyncIterator[quiesce.Event] = client.events()
    async for event in events:
        assert_type(event, quiesce.Event)


async def awaited_from_a_plain_handle(task: TaskHandle[str]) -> None:
    assert_type(await task, str)


def executor(pool: QuiesceExecutor) -> None:
    base: Executor = pool
    assert_type(base.submit(join, 1, 2), Future[str])
    assert_type(pool.submit(join, 1, right=2), Future[str])
    assert_type(pool.submit(fetch, "u"), Future[bytes])
    assert_type(pool.submit(needs_a_name, 1, suffix="x").result(), str)
    assert_type(pool.map(join, [1], [2], chunksize=2), Iterator[str])
    assert_type(pool.map(fetch, ["u"], buffersize=3), Iterator[bytes])
    assert_type(pool.client, Client)
    with QuiesceExecutor(2, initializer=print, initargs=("here",)) as entered:
        assert_type(entered, QuiesceExecutor)
    pool.submit(join, 1)  # error: one is missing
    pool.submit(join, "1", 2)  # error: not a str
    pool.submit(fetch, 1)  # error: not an int
    pool.map(3, [1])  # error: no function


async def inside_a_task(token: CancellationToken) -> None:
    assert_type(quiesce.is_shutdown_requested(), bool)
    assert_type(quiesce.shutdown_token(), CancellationToken)
    assert_type(quiesce.current_task(), TaskInfo | None)
    assert_type(quiesce.current_client(), Client)
    assert_type(quiesce.current_client().spawn("r", "k", join, 1, 2), TaskHandle[str])
    assert_type(await token.run_until_cancelled(fetch("u")), bytes | None)
    await quiesce.shutdown_watcher()
    anything: Any = token.add_callback(lambda: None)
    del anything
