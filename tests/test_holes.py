"""The holes of the ancestor, closed: each test is one way in which a stop could lie, or never end."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import (
    Client,
    Evidence,
    Outcome,
    ScopeClosedError,
    ShutdownReport,
    TaskCancelledError,
    TaskCrashedError,
)
from quiesce.testing import Witness, bodies
from quiesce.testing.leaks import is_running
from system import System, until, workers_of


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)
        client.reopen()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness", slots=64)
    yield witness
    witness.close()


def ticking(witness: Witness, slots: list[int]) -> None:
    until(lambda: [slot for slot in slots if not witness.read(slot).ticks], lambda left: not left)


class Stop(threading.Thread):
    """A stop in a thread of its own."""

    def __init__(self, client: Client, **arguments: Any) -> None:
        super().__init__(daemon=True)
        self.report: ShutdownReport | None = None
        self.returned_at = 0
        self._client = client
        self._arguments = arguments
        self.start()

    def run(self) -> None:
        self.report = self._client.shutdown_tasks(**self._arguments)
        self.returned_at = time.monotonic_ns()

    def result(self) -> ShutdownReport:
        self.join(30)
        assert self.report is not None, "the stop did not return"
        return self.report


def stopping(client: Client, task_id: int) -> None:
    """Wait until the registry has marked the task."""
    until(lambda: client.task(task_id), lambda info: info.stopping)


def test_a_stop_between_registering_and_starting_wins(client: Client, witness: Witness) -> None:
    """Queued behind two busy workers: it never runs, and that is what the report says."""
    busy = [client.spawn("background", "attach", bodies.doze, witness.path, n) for n in (0, 1)]
    ticking(witness, [0, 1])
    queued = client.spawn(
        "background", "compaction", bodies.doze, witness.path, 2, tenant_id="early"
    )
    assert queued.status().state == "queued"
    (row,) = client.shutdown_tasks(tenant_id="early", timeout=30).tasks
    assert (row.id, row.outcome, row.evidence) == (
        queued.id,
        Outcome.CANCELLED,
        Evidence.NEVER_RAN,
    )
    with pytest.raises(TaskCancelledError):
        queued.result(timeout=30)
    for handle in busy:
        handle.shutdown(timeout=30)
    assert client.spawn("background", "attach", bodies.add, 1, 1).result(timeout=30) == 2
    assert witness.read(2).ticks == 0


def test_a_second_stop_of_the_same_task_waits_too(
    client: Client, system: System, witness: Witness, tmp_path: Path
) -> None:
    trigger = tmp_path / "go"
    handle = client.spawn(
        "compute-request",
        "attach",
        bodies.ignore_until_file,
        str(trigger),
        witness.path,
        0,
        tenant_id="twice",
    )
    ticking(witness, [0])
    with system.client() as other:
        first = Stop(client, tenant_id="twice")
        stopping(client, handle.id)
        second = Stop(other, tenant_id="twice")
        third = Stop(other, kind="attach")
        until(lambda: client.statistics()["stops"], lambda stops: stops == 3)
        count = witness.read(0).ticks
        until(lambda: witness.read(0).ticks, lambda now: now > count + 3)
        assert [stop.report for stop in (first, second, third)] == [None] * 3
        trigger.touch()
        for stop in (first, second, third):
            (row,) = stop.result().tasks
            assert (row.id, row.evidence) == (handle.id, Evidence.RETURNED)
            assert witness.read(0).at_ns <= stop.returned_at


def test_a_task_that_stops_its_own_scope_is_left_out_and_named(
    client: Client, witness: Witness
) -> None:
    neighbour = client.spawn(
        "compute-request", "attach", bodies.doze, witness.path, 1, tenant_id="self"
    )
    ticking(witness, [1])
    caller = client.spawn(
        "compute-request", "attach", bodies.stop_own_tenant, witness.path, 0, tenant_id="self"
    )
    assert caller.result(timeout=30) == [caller.id]
    assert neighbour.done()
    assert client.task(caller.id).outcome == Outcome.COMPLETED


def test_a_spawn_after_the_scan_is_refused(
    client: Client, system: System, witness: Witness, tmp_path: Path
) -> None:
    trigger = tmp_path / "go"
    handle = client.spawn(
        "compute-request",
        "attach",
        bodies.ignore_until_file,
        str(trigger),
        witness.path,
        0,
        tenant_id="late",
    )
    ticking(witness, [0])
    stop = Stop(client, tenant_id="late")
    stopping(client, handle.id)
    with system.client() as other:
        slipped = other.spawn(
            "compute-request", "attach", bodies.doze, witness.path, 1, tenant_id="late"
        )
        with pytest.raises(ScopeClosedError):
            slipped.result(timeout=30)
    trigger.touch()
    assert [row.id for row in stop.result().tasks] == [handle.id]
    assert witness.read(1).ticks == 0


def test_an_associate_after_the_scan_joins_the_wait(
    client: Client, witness: Witness, tmp_path: Path
) -> None:
    hold, trigger = tmp_path / "hold", tmp_path / "associate"
    inside = client.spawn(
        "compute-request",
        "attach",
        bodies.ignore_until_file,
        str(hold),
        witness.path,
        0,
        tenant_id="target",
    )
    outside = client.spawn(
        "mgmt-request",
        "attach",
        bodies.wait_for_file_then_associate,
        str(trigger),
        "target",
        witness.path,
        1,
    )
    ticking(witness, [0, 1])
    stop = Stop(client, tenant_id="target")
    stopping(client, inside.id)
    trigger.touch()
    assert outside.result(timeout=30) == "asked"
    assert stop.report is None
    hold.touch()
    report = stop.result()
    assert sorted(row.id for row in report.tasks) == [inside.id, outside.id]
    assert witness.ticked_after(stop.returned_at) == []


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
def test_a_task_ended_from_outside_leaves_no_entry(
    client: Client, witness: Witness, runtime: str
) -> None:
    handle = client.spawn(runtime, "attach", bodies.doze, witness.path, 0, tenant_id="killed")
    ticking(witness, [0])
    pid = handle.status().worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TaskCrashedError):
        handle.result(timeout=30)
    assert client.tasks(tenant_id="killed") == []
    assert client.shutdown_tasks(tenant_id="killed", timeout=30).tasks == ()


def test_a_request_that_overtakes_its_task_wins(client: Client, tmp_path: Path) -> None:
    """A 40 MB payload is on its way to the worker when the stop, on its own socket, arrives first."""
    started = tmp_path / "started"
    payload = bytes(40_000_000)

    def body(data: bytes) -> int:
        started.touch()
        return len(data)

    for _ in range(3):
        handle = client.spawn("background", "attach", body, payload, tenant_id="overtaken")
        until(lambda h=handle: h.status().state, lambda state: state != "queued")  # type: ignore[misc]  # bound early
        report = client.shutdown_tasks(tenant_id="overtaken", timeout=30)
        for row in report.tasks:
            if row.evidence == Evidence.NEVER_RAN:
                assert not started.exists()
        started.unlink(missing_ok=True)


# --- a body that has returned, while what it began goes on ----------------------------------------


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
@pytest.mark.parametrize("body", [bodies.leave_thread, bodies.leave_process])
def test_a_task_has_not_ended_while_what_it_began_goes_on(
    client: Client, witness: Witness, runtime: str, body: Any
) -> None:
    handle = client.spawn(runtime, "attach", body, witness.path, 0, 1.5, tenant_id="linger")
    ticking(witness, [0])
    info = until(handle.status, lambda info: info.lingering)
    assert info.state == "running"
    assert not handle.done()
    report = client.shutdown_tasks(tenant_id="linger", timeout=30)
    after = time.monotonic_ns()
    (row,) = report.tasks
    assert row.evidence == Evidence.RETURNED
    assert witness.ticked_after(after) == []


def test_a_call_in_to_thread_outlives_its_coroutine_and_is_waited_for(
    client: Client, witness: Witness
) -> None:
    client.spawn(
        "compute-request", "attach", bodies.leave_to_thread, witness.path, 0, 2.0, tenant_id="tt"
    )
    ticking(witness, [0])
    report = client.shutdown_tasks(tenant_id="tt", timeout=30)
    after = time.monotonic_ns()
    assert [row.evidence for row in report.tasks] == [Evidence.RETURNED]
    assert witness.ticked_after(after) == []


def test_a_child_coroutine_ends_with_its_body(client: Client, witness: Witness) -> None:
    handle = client.spawn("compute-request", "attach", bodies.leave_coroutine, witness.path, 0)
    assert handle.result(timeout=30) == "returned, False"
    after = time.monotonic_ns()
    client.spawn("compute-request", "attach", bodies.add_async, 1, 1).result(timeout=30)
    assert witness.ticked_after(after) == []


def test_a_child_process_is_killed_when_the_grace_is_over(client: Client, witness: Witness) -> None:
    client.spawn(
        "compute-request", "attach", bodies.with_process, witness.path, 0, tenant_id="child"
    )
    ticking(witness, [0])
    report = client.shutdown_tasks(tenant_id="child", grace=0.2, timeout=30)
    after = time.monotonic_ns()
    assert [row.evidence for row in report.tasks] == [Evidence.RETURNED]
    assert witness.ticked_after(after) == []


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
def test_a_killed_workers_child_processes_are_gone_when_its_end_is_known(
    client: Client, witness: Witness, runtime: str
) -> None:
    handle = client.spawn(runtime, "attach", bodies.with_process, witness.path, 0)
    ticking(witness, [0])
    pid = handle.status().worker_pid
    assert pid is not None
    (child,) = _children(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TaskCrashedError):
        handle.result(timeout=30)
    after = time.monotonic_ns()
    assert not is_running(child)
    assert witness.ticked_after(after) == []
    until(lambda: workers_of(client, runtime), lambda ready: all(w.pid != pid for w in ready))


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
