"""Chunks of `QuiesceExecutor.map` that share a task: on a broker that the test plays, which runs them itself."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_fakes import FakeBroker, ended
from quiesce import Client
from quiesce.client import remote, sharing
from quiesce.client.executor import QuiesceExecutor
from quiesce.client.steps import DATA
from quiesce.errors import PayloadTooLargeError, ShutdownRequested, TaskCrashedError
from quiesce.protocol import from_client, to_client
from quiesce.protocol.callables import (
    pack_arguments,
    pack_exception,
    pack_value,
    unpack_arguments,
    unpack_value,
)
from quiesce.registry.rows import SpawnRow
from quiesce.testing import Cluster

#: More room and a higher limit than any results here come to.
AMPLE = (2**20, 2**30)


def inverse(number: int) -> float:
    return 1 / number


def ends(error: type[BaseException]) -> None:
    raise error


async def ends_async(error: type[BaseException]) -> None:
    raise error


async def inverse_async(number: int) -> float:
    return 1 / number


def packed(fn: Any, *chunks: list[int]) -> list[bytes]:
    return [pack_arguments((fn, tuple((item,) for item in chunk))) for chunk in chunks]


def results(done: remote.Done) -> list[Any]:
    return [unpack_value(each) for each in done.results]


# --- in the worker


def test_what_a_task_does_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All, or as many as there was time for, and room for what they gave; one at least."""
    chunks = packed(inverse, [1, 2], [4])
    monkeypatch.setattr(remote, "SECONDS", 60.0)
    done = remote.chunks(chunks, *AMPLE)
    assert results(done) == [[1.0, 0.5], [0.25]]
    assert 0 <= done.seconds < 60
    done = asyncio.run(remote.chunks_async(packed(inverse_async, [1], [2]), *AMPLE))
    assert results(done) == [[1], [0.5]]
    with monkeypatch.context() as patch:
        patch.setattr(remote, "SECONDS", 0.0)
        assert results(remote.chunks(chunks, *AMPLE)) == [[1.0, 0.5]]
    assert results(remote.chunks(chunks, 1, 2**30)) == [[1.0, 0.5]]


def test_a_chunk_that_fails_behind_others_keeps_what_they_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 60.0)
    with pytest.raises(remote.PartlyDoneError, match="1 chunks") as caught:
        remote.chunks(packed(inverse, [1], [2, 0], [3]), *AMPLE)
    assert [unpack_value(each) for each in caught.value.results] == [[1.0]]
    assert type(caught.value.__cause__) is ZeroDivisionError
    with pytest.raises(remote.PartlyDoneError) as caught:
        asyncio.run(remote.chunks_async(packed(inverse_async, [0], [1]), *AMPLE))
    assert caught.value.results == []
    with pytest.raises(ZeroDivisionError):  # alone in its task, it is as any call
        remote.chunks(packed(inverse, [0]), *AMPLE)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_chunk_may_raise_what_ends_programs(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 60.0)
    both = [*packed(inverse, [1]), pack_arguments((ends, ((error,),)))]
    with pytest.raises(remote.PartlyDoneError) as caught:
        remote.chunks(both, *AMPLE)
    assert [unpack_value(each) for each in caught.value.results] == [[1.0]]
    assert type(caught.value.__cause__) is error


def test_what_stops_a_task_is_no_failure_of_its_chunk() -> None:
    asked = [pack_arguments((ends, ((ShutdownRequested,),))), *packed(inverse, [1])]
    with pytest.raises(ShutdownRequested):
        remote.chunks(asked, *AMPLE)
    cancelled = [pack_arguments((ends_async, ((asyncio.CancelledError,),)))] * 2
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(remote.chunks_async(cancelled, *AMPLE))


def test_a_result_that_does_not_fit_beside_others_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 60.0)
    with pytest.raises(remote.PartlyDoneError) as caught:
        remote.chunks(packed(bytes, [1], [4000]), 1000, 4096)
    assert [unpack_value(each) for each in caught.value.results] == [[bytes(1)]]
    assert type(caught.value.__cause__) is PayloadTooLargeError
    # Alone it is as any call: whoever packs it says whether it is too large.
    assert results(remote.chunks(packed(bytes, [5000], [1]), 1000, 4096)) == [[bytes(5000)]]


@pytest.mark.slow
def test_what_fits_alone_fits_with_others() -> None:
    """Arguments and results near the limit of their broker."""
    with (
        Cluster(
            runtimes={"background": {"processes": 1, "slots": 1}}, payload_limit=16384
        ) as cluster,
        Client(cluster.address) as client,
        QuiesceExecutor(1, client=client) as executor,
    ):
        assert set(executor.map(len, [bytes(3000)] * 400, chunksize=4)) == {3000}
        assert set(executor.map(bytes, [3000] * 400, chunksize=4)) == {bytes(3000)}


def test_no_chunk_is_begun_in_a_task_that_is_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(task: object) -> None:
        raise ShutdownRequested("why")

    monkeypatch.setattr(remote, "SECONDS", 60.0)
    monkeypatch.setattr(remote, "raise_if_asked", asked)
    assert results(remote.chunks(packed(inverse, [1]), *AMPLE)) == [[1.0]]
    with pytest.raises(ShutdownRequested):
        remote.chunks(packed(inverse, [1], [2]), *AMPLE)


# --- in the client


class Played:
    """The tasks of an executor: one more than it has workers at a time, until some have ended."""

    def __init__(self, address: str, workers: int = 1) -> None:
        self.broker = FakeBroker(address)
        self.workers = workers
        self.executor = QuiesceExecutor(workers, address=address)
        self._rows: list[SpawnRow] = []
        #: What the last task was told of its room.
        self.bounds: list[int] = []

    def task(self) -> tuple[int, list[bytes]]:
        """The next task: its number and its chunks."""
        if not self._rows:
            self._rows += self.broker.take(from_client.Spawn).rows
        row = self._rows.pop(0)
        (chunks, *self.bounds), _ = unpack_arguments(bytes(row.arguments))  # type: ignore[call-overload]  # bytes here
        return row.number, chunks

    def finish(self, number: int, **how: Any) -> None:
        self.broker.answer(number, number)
        self.broker.say(DATA, to_client.Ended([ended(number, **how)]))

    def run(self, number: int, chunks: list[bytes], *, only: int | None = None) -> None:
        """As the worker does it; `only` so many of its chunks."""
        try:
            done = remote.chunks(chunks[:only], *self.bounds)
        except remote.PartlyDoneError as error:
            self.finish(number, outcome="failed", text="there", result=pack_exception(error))
        else:
            self.finish(number, result=pack_value(done))

    def run_one_each(self) -> None:
        """The first tasks, of a chunk each; now it is known that they are short."""
        for _ in range(self.workers + 1):
            number, chunks = self.task()
            assert len(chunks) == 1
            self.run(number, chunks)


@pytest.fixture
def workers() -> int:
    return 1


@pytest.fixture
def played(run_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> Iterator[Played]:
    monkeypatch.setattr(remote, "SECONDS", 60.0)  # no chunk is long
    played = Played(f"ipc://{run_folder}/b", workers)
    yield played
    played.executor.client._end(0)  # whatever a test that failed has left
    played.executor.shutdown()
    played.broker.stop()


def test_short_chunks_share_a_task(played: Played) -> None:
    found = played.executor.map(inverse, range(1, 21), chunksize=2)
    played.run_one_each()
    number, chunks = played.task()
    assert len(chunks) == 8
    played.run(number, chunks)
    assert list(found) == [1 / number for number in range(1, 21)]


def test_chunks_of_another_function_are_tried_one_by_one(played: Played) -> None:
    found = played.executor.map(inverse, range(1, 5), chunksize=2)
    played.run_one_each()
    assert len(list(found)) == 4
    other = played.executor.map(float, range(8), chunksize=2)
    played.run_one_each()
    played.run(*played.task())
    assert list(other) == list(range(8))


@pytest.mark.parametrize("workers", [2])
def test_no_worker_is_left_without_chunks_that_another_holds(played: Played) -> None:
    found = played.executor.map(inverse, range(1, 23), chunksize=2)
    tasks = [played.task() for _ in range(3)]
    for place in range(3):
        played.run(*tasks[place])
        tasks.append(played.task())
    assert [len(chunks) for _, chunks in tasks[3:]] == [4, 2, 1]
    played.run(*tasks[3])
    for task in (*tasks[4:], played.task()):
        played.run(*task)
    assert list(found) == [1 / number for number in range(1, 23)]


def test_what_a_task_gives_back_is_handed_over_again(played: Played) -> None:
    """Also when all that has not been handed over is cancelled meanwhile."""
    found = played.executor.map(inverse, range(1, 21), chunksize=2)
    played.run_one_each()
    number, chunks = played.task()
    done = remote.Done(remote.chunks(chunks[:1], *AMPLE).results, 1e9)  # they have become long
    played.finish(number, result=pack_value(done))
    again = [played.task() for _ in range(2)]
    played.executor.shutdown(wait=False, cancel_futures=True)
    for number, (chunk,) in again:
        assert chunk == chunks.pop(1)
        played.run(number, [chunk])
    again = [played.task()]
    assert again[0][1] == chunks[1:]
    played.run(*again[0])
    assert list(found) == [1 / number for number in range(1, 21)]


def test_a_failure_is_that_of_its_chunk(played: Played) -> None:
    numbers = [1, 2, 3, 4, 5, 0, 7, 8]
    futures = [played.executor.submit(remote.chunk, inverse, ((each,),)) for each in numbers]
    played.run_one_each()
    for size in (6, 2):
        number, chunks = played.task()
        assert len(chunks) == size
        played.run(number, chunks)
    with pytest.raises(ZeroDivisionError) as caught:
        futures.pop(5).result(10)
    assert "there" in str(caught.value.__cause__)
    numbers.remove(0)
    assert [future.result(10) for future in futures] == [[1 / each] for each in numbers]


def test_a_dead_process_takes_the_chunks_of_its_task(played: Played) -> None:
    futures = [played.executor.submit(remote.chunk, inverse, ((1,),)) for _ in range(3)]
    played.run_one_each()
    number, chunks = played.task()
    played.finish(number, outcome="crashed", exit_status=-9)
    for future in futures[2 : 2 + len(chunks)]:
        with pytest.raises(TaskCrashedError):
            future.result(10)


def test_large_chunks_do_not_share_one(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_BYTES", 1000)
    chunk = tuple((number,) for number in range(1, 301))
    futures = [played.executor.submit(remote.chunk, inverse, chunk) for _ in range(6)]
    played.run_one_each()
    for _ in range(4):
        number, chunks = played.task()
        assert len(chunks) == 1
        played.run(number, chunks)
    for future in futures:
        assert len(future.result(10)) == 300


def test_a_chunk_that_can_not_be_sent_fails_alone(played: Played) -> None:
    good = [played.executor.submit(remote.chunk, inverse, ((1,),)) for _ in range(2)]
    bad = played.executor.submit(remote.chunk, inverse, ((threading.Lock(),),))
    last = played.executor.submit(remote.chunk, inverse, ((4,),))
    played.run_one_each()
    played.run(*played.task())
    with pytest.raises(TypeError, match="can't be sent"):
        bad.result(10)
    assert [future.result(10) for future in (*good, last)] == [[1.0], [1.0], [0.25]]
