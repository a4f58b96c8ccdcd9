"""What bodies leave behind in real workers: their end is told when the last of it has ended, or it is undone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.testing import leftover_bodies as bodies
from workers_fakes import FakeBroker, Pool, value_of


@pytest.fixture(scope="module", params=[4, 1], ids=["shared", "alone"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("p"), slots=request.param)
    pool.broker.await_peer()  # so that all its processes and sockets are there before the first test
    yield pool
    pool.close()


@pytest.fixture
def broker(pool: Pool) -> FakeBroker:
    pool.broker.await_peer()
    pool.broker.log.clear()
    return pool.broker


def test_callbacks_of_its_token_are_part_of_a_task(broker: FakeBroker, tmp_path: Path) -> None:
    key = broker.run(bodies.token_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert (tmp_path / "callback-over").read_text() == str(key[0])
    assert (tmp_path / "thread-over").exists()


def test_callbacks_of_a_call_in_a_pool_are_part_of_its_task(
    broker: FakeBroker, tmp_path: Path
) -> None:
    key = broker.run(bodies.done_callback, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    end = broker.await_end(key)
    assert (end.outcome, end.evidence) == ("completed", "RETURNED")
    assert (tmp_path / "callback-over").read_text() == str(key[0])
    assert (tmp_path / "last-over").read_text() == str(key[0])


def test_a_call_that_is_cancelled_in_a_pool_leaves_nothing(
    broker: FakeBroker, tmp_path: Path
) -> None:
    key = broker.run(bodies.cancelled_call, str(tmp_path))
    end = broker.await_end(key)
    assert end.outcome == "completed"
    assert value_of(end) == str(key[0])  # its callback was the task's
    assert not (tmp_path / "ran").exists()
