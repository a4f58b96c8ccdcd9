"""The option `progress=` of the client's verbs, and of `QuiesceExecutor.map`."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce import AsyncClient, Client, QuiesceExecutor
from quiesce.testing import bodies
from quiesce.values import Progress
from system import System, until


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)


def last(seen: list[Progress], wanted: Progress) -> None:
    until(lambda: seen[-1:], lambda found: found == [wanted])


def test_spawn_and_spawn_many(client: Client) -> None:
    seen: list[Progress] = []
    client.spawn_many("compute-request", "compaction", bodies.echo, range(30), progress=seen.append)
    last(seen, Progress(30, 30))
    one: list[Progress] = []
    handle = client.spawn(
        "compute-request", "compaction", bodies.half_way, "merging", progress=one.append
    )
    until(lambda: Progress(5, 10, "merging") in one)
    handle.shutdown()
    last(one, Progress(10, 10, "merging"))
    assert (
        client.spawn("compute-request", "compaction", bodies.echo, 1, progress=False).result(20)
        == 1
    )


def test_of_an_async_client(system: System) -> None:
    seen: list[Progress] = []

    async def main() -> None:
        async with AsyncClient(system.address) as client:
            handles = await client.spawn_many(
                "compute-request", "compaction", bodies.echo, range(7), progress=seen.append
            )
            assert await asyncio.gather(*handles) == list(range(7))
            one = await client.spawn(
                "compute-request", "compaction", bodies.echo, 1, progress=seen.append
            )
            assert await one == 1

    asyncio.run(main())
    until(lambda: {Progress(7, 7), Progress(1, 1)} <= set(seen))


@pytest.mark.parametrize(("chunksize", "buffersize"), [(1, None), (4, None), (1, 3), (4, 2)])
def test_map(client: Client, chunksize: int, buffersize: int | None) -> None:
    seen: list[Progress] = []
    with QuiesceExecutor(4, client=client) as executor:
        results = executor.map(
            bodies.echo, range(18), chunksize=chunksize, buffersize=buffersize, progress=seen.append
        )
        assert list(results) == list(range(18))
        last(seen, Progress(18, 18))
        assert [each.done for each in seen] == sorted(each.done for each in seen)


def test_a_map_that_is_given_up_shows_no_more(client: Client) -> None:
    seen: list[Progress] = []
    with QuiesceExecutor(2, client=client) as executor:
        results = executor.map(bodies.echo, range(99), buffersize=2, progress=seen.append)
        assert next(results) == 0
        del results
    assert all(each.total == 99 and each.done < 99 for each in seen)


@pytest.mark.parametrize("progress", ["yes", 1])
def test_what_is_no_progress_is_refused(client: Client, progress: Any) -> None:
    with pytest.raises(TypeError, match="progress must be"):
        client.spawn("compute-request", "compaction", bodies.nothing, progress=progress)
    with pytest.raises(TypeError, match="progress must be"):
        client.spawn_many("compute-request", "compaction", bodies.echo, [1], progress=progress)
    with QuiesceExecutor(1, client=client) as executor, pytest.raises(TypeError):
        executor.map(bodies.echo, [1], progress=progress)
