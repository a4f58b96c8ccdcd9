"""Short tasks are handed ahead to real workers of one slot; what can't begin there runs elsewhere."""

import time
from collections.abc import Iterator

import pytest

import quiesce
from quiesce import Client
from quiesce.testing import Cluster, wait_until


def short_or_not(wait: bool) -> str:
    """One function, as workers see it: that was short so far, and for once is not."""
    if wait:
        quiesce.wait_for_shutdown()
    return "asked" if wait else "short"


def busy_or_not(seconds: float) -> None:
    """The same without looking, in Python."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        Cluster(runtimes={"background": {"processes": 2, "slots": 1}}) as cluster,
        cluster.client() as client,
    ):
        # Several messages of ends, each of which says that they were short.
        for _ in range(12):
            for handle in client.spawn_many("background", "attach", short_or_not, [(False,)] * 8):
                assert handle.result(30) == "short"
            for other in client.spawn_many("background", "attach", busy_or_not, [(0.0,)] * 8):
                assert other.result(30) is None
        yield client


def test_what_waits_behind_a_long_body_is_given_back_and_runs_elsewhere(client: Client) -> None:
    flags = [True] + [False] * 60
    long, *others = client.spawn_many("background", "attach", short_or_not, [(f,) for f in flags])
    assert [handle.result(30) for handle in others] == ["short"] * 60
    assert not long.done()
    assert long.status().state == "running"
    assert [row.outcome for row in long.shutdown(timeout=30).tasks] == ["completed"]


def test_a_stop_of_what_waits_ahead_does_not_wait_for_the_body_before_it(client: Client) -> None:
    """Both workers are busy in Python, and hold what they were handed ahead."""
    rows = [(30.0,), (30.0,), *[(0.0,)] * 40]
    handles = client.spawn_many("background", "attach", busy_or_not, rows, tenant_id="acme")
    wait_until(lambda: [handle.status().state for handle in handles[:2]] == ["running"] * 2)
    waiting = client.spawn_many("background", "attach", busy_or_not, [(0.0,)] * 5, tenant_id="b")
    ids = [handle.id for handle in waiting]  # now they are registered
    report = client.shutdown_tasks(tenant_id="b", timeout=30)
    assert {row.id: row.evidence for row in report.tasks} == dict.fromkeys(ids, "NEVER_RAN")
    report = client.shutdown_tasks(tenant_id="acme", grace=0.2, timeout=30)
    forced = {row.id: row.outcome for row in report.tasks}
    assert {forced[handle.id] for handle in handles[:2]} == {"cancelled"}
