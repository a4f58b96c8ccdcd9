"""Stopped means stopped: whatever is killed, frozen or restarted, on real processes, with a witness as judge."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce import Client, ShutdownReport, TaskCrashedError
from quiesce.testing import Witness, bodies
from quiesce.testing.leaks import descendants, is_running
from quiesce.testing.soak import Soak
from system import System, freeze, until, workers_of

#: A lease that a test can wait for, and how long after it its holder may be called dead.
LEASE = 2.0
BOUND = 3.5


@pytest.fixture
def system(run_folder: Path) -> Iterator[System]:
    system = System(run_folder, broker=f"lease = {LEASE}")
    try:
        yield system
    finally:
        system.stop()


@pytest.fixture
def patient(run_folder: Path) -> Iterator[System]:
    """With a lease that lasts while a slow machine starts a broker."""
    system = System(run_folder)
    try:
        yield system
    finally:
        system.stop()


@pytest.fixture
def witness(run_folder: Path) -> Iterator[Witness]:
    witness = Witness(run_folder / "witness", slots=2000)
    yield witness
    witness.close()


def ticking(witness: Witness, *slots: int) -> None:
    until(lambda: [slot for slot in slots if not witness.read(slot).ticks], lambda left: not left)


def supervisors(client: Client) -> set[int]:
    """Once all five workers are there."""
    workers = until(client.workers, lambda workers: len(workers) == 5)
    return {worker.supervisor_pid for worker in workers}


def stop_elsewhere(
    system: System, **scope: object
) -> tuple[threading.Thread, list[ShutdownReport]]:
    """A client of its own that stops a scope, in a thread; its report comes into the list."""
    reports: list[ShutdownReport] = []

    def stop() -> None:
        with system.client() as client:
            reports.append(client.shutdown_tasks(**scope))  # type: ignore[arg-type]  # a scope

    thread = threading.Thread(target=stop)
    thread.start()
    return thread, reports


def test_a_worker_that_is_frozen(system: System, witness: Witness) -> None:
    with system.client() as client:
        handle = client.spawn(
            "background", "compaction", bodies.doze, witness.path, 0, tenant_id="acme"
        )
        ticking(witness, 0)
        pid = handle.status().worker_pid
        assert pid is not None
        freeze(pid)
        report = client.shutdown_tasks(tenant_id="acme", grace=1.0)
        after = time.monotonic_ns()
        (task,) = report.tasks
        assert (task.outcome, task.evidence, task.exit_status) == ("cancelled", "REAPED", -9)
        assert task.delivered_at is None
        assert not is_running(pid)
    assert witness.ticked_after(after) == []


def test_a_supervisor_that_is_frozen(system: System, witness: Witness) -> None:
    """Nobody kills it but its own kernel."""
    with system.client() as client:
        supervisors(client)
        client.spawn("background", "compaction", bodies.stubborn, witness.path, 0, tenant_id="acme")
        ticking(witness, 0)
        workers = workers_of(client, "background")
        frozen = workers[0].supervisor_pid
        freeze(frozen)
        report = client.shutdown_tasks(tenant_id="acme", grace=0.5)
        after = time.monotonic_ns()
        (task,) = report.tasks
        assert (task.outcome, task.evidence) == ("lost", "FENCED")
        assert [pid for pid in (frozen, *(each.pid for each in workers)) if is_running(pid)] == []
        assert client.spawn("background", "attach", bodies.add, 1, 2).result(timeout=30) == 3
    assert witness.ticked_after(after) == []


def test_a_whole_system_that_is_frozen_is_fenced_by_its_broker(
    system: System, witness: Witness
) -> None:
    """`up` can't reap anybody: what the broker knows, it knows from the lease alone."""
    with system.client() as client:
        supervisors(client)
        client.spawn("background", "compaction", bodies.stubborn, witness.path, 0, tenant_id="acme")
        ticking(witness, 0)
        frozen = workers_of(client, "background")[0].supervisor_pid
        system.signal(signal.SIGSTOP)
        freeze(frozen)
        try:
            report = client.shutdown_tasks(tenant_id="acme", grace=0.0)
            after = time.monotonic_ns()
        finally:
            system.signal(signal.SIGCONT)
        (task,) = report.tasks
        assert (task.outcome, task.evidence, task.exit_status) == ("lost", "FENCED", None)
    assert witness.ticked_after(after) == []


def test_a_broker_that_is_killed(patient: System, witness: Witness, run_folder: Path) -> None:
    """1,000 queued tasks, 50 running, 3 stops in flight: all of it goes on, and no client notices."""
    system = patient
    log = run_folder / "ran"
    log.touch()
    go = run_folder / "go"
    with system.client() as client:
        alive = supervisors(client)
        running = [
            client.spawn(
                "compute-request",
                "attach",
                bodies.ignore_until_file,
                str(go),
                witness.path,
                slot,
                tenant_id=f"tenant-{slot % 5}",
            )
            for slot in range(50)
        ]
        ticking(witness, *range(50))
        blockers = [
            client.spawn("background", "layer-flush-task", bodies.doze, witness.path, slot)
            for slot in (60, 61)
        ]
        ticking(witness, 60, 61)
        queued = client.spawn_many(
            "background", "attach", bodies.mark, [(str(log),)] * 1000, tenant_id="queued"
        )
        assert queued[-1].id
        stops = [
            stop_elsewhere(system, tenant_id=f"tenant-{number}", grace=60.0) for number in range(3)
        ]
        until(lambda: len(client.stops()), lambda count: count == 3)
        before = client.broker_info()
        os.kill(before.pid, signal.SIGKILL)
        restarted = until(client.broker_info, lambda info: info.pid != before.pid)
        assert restarted.epoch == before.epoch + 1
        assert {row.scope for row in client.stops()} == {
            f"tenant_id=tenant-{number}" for number in range(3)
        }
        ticks = [witness.read(slot).ticks for slot in range(50)]
        until(
            lambda: [witness.read(slot).ticks for slot in range(50)],
            lambda now: min(new - old for new, old in zip(now, ticks, strict=True)) > 0,
        )
        assert supervisors(client) == alive
        go.touch()
        for thread, reports in stops:
            thread.join(timeout=30)
            assert [len(report.tasks) for report in reports] == [10]
            assert {row.outcome for report in reports for row in report.tasks} == {"completed"}
        assert [handle.result(timeout=30) for handle in running] == ["let go"] * 50
        for handle in blockers:
            assert handle.shutdown().tasks[0].outcome == "completed"
        assert [handle.exception(timeout=60) for handle in queued] == [None] * 1000
        assert client.tasks() == []
        after = client.spawn("background", "attach", bodies.add, 1, 2)
        assert after.result(timeout=30) == 3
    assert len(log.read_text().splitlines()) == 1000


def test_a_broker_that_is_killed_again_and_again_loses_no_spawn(
    patient: System, run_folder: Path
) -> None:
    system = patient
    log = run_folder / "ran"
    log.touch()
    with system.client(timeout=60) as client:
        supervisors(client)
        handles = []
        for _ in range(5):
            pid = client.broker_info().pid
            handles += [
                client.spawn("background", "attach", bodies.mark, str(log)) for _ in range(100)
            ]
            os.kill(pid, signal.SIGKILL)
        handles += [client.spawn("background", "attach", bodies.mark, str(log)) for _ in range(100)]
        assert [handle.exception(timeout=60) for handle in handles] == [None] * 600
        assert len({handle.id for handle in handles}) == 600
        assert client.broker_info().epoch >= 6
    assert len(log.read_text().splitlines()) == 600


def test_a_system_that_is_killed_goes_on_where_it_was(run_folder: Path, witness: Witness) -> None:
    """`kill -9` of `quiesce up`: everything is dead at once, and the next one knows it."""
    first = System(run_folder)
    with first.client() as client:
        pids = {client.broker_info().pid, *supervisors(client)}
        pids |= {worker.pid for worker in client.workers()}
        client.shutdown_tasks(tenant_id="closed", keep_closed=True)
        running = client.spawn("mgmt-request", "attach", bodies.with_process, witness.path, 0)
        again = client.spawn(
            "walreceiver", "attach", bodies.doze, witness.path, 1, restart="on-failure"
        )
        busy = [
            client.spawn("background", "attach", bodies.doze, witness.path, slot) for slot in (2, 3)
        ]
        ticking(witness, 0, 1, 2, 3)
        queued = [client.spawn("background", "attach", bodies.add, n, n) for n in range(20)]
        assert queued[-1].id
        family = descendants(first.process.pid)
        first.process.kill()
        first.wait()
        until(lambda: [pid for pid in pids if is_running(pid)], lambda left: not left)
        second = System(run_folder)
        try:
            assert [handle.result(timeout=30) for handle in queued] == [2 * n for n in range(20)]
            assert not any(
                is_running(each.pid) for each in family if "testing.witness" in each.command
            )
            for handle in (running, *busy):
                with pytest.raises(TaskCrashedError):
                    handle.result(timeout=30)
            until(again.status, lambda info: info.state == "running" and info.attempt == 2)
            assert [each.scope for each in client.closed_scopes()] == ["tenant_id=closed"]
            assert again.shutdown().tasks[0].attempt == 2
        finally:
            second.stop()


def test_what_is_stopped_in_order_is_open_again_afterwards(run_folder: Path) -> None:
    for epoch in (1, 2):
        system = System(run_folder)
        try:
            with system.client() as client:
                assert client.broker_info().epoch == epoch
                assert client.closed_scopes() == []
                assert client.spawn("background", "attach", bodies.add, 1, 2).result(30) == 3
                assert len(client.tasks(state="ended")) == epoch
        finally:
            assert system.stop() == 0


def test_a_lease_that_is_over_proves_the_end_of_what_tasks_had_started_too(
    system: System, witness: Witness
) -> None:
    """With `up` frozen nobody reaps that: the broker ends it before it says FENCED."""
    with system.client() as client:
        supervisors(client)
        handle = client.spawn(
            "background", "attach", bodies.with_process, witness.path, 0, tenant_id="acme"
        )
        ticking(witness, 0)
        (worker,) = [each for each in client.workers() if each.pid == handle.status().worker_pid]
        below = descendants(worker.pid)
        assert below
        freeze(system.process.pid)
        os.kill(worker.supervisor_pid, signal.SIGKILL)
        report = client.shutdown_tasks(tenant_id="acme", grace=0.1)
        assert [task.evidence for task in report.tasks] == ["FENCED"]
        assert not [each.pid for each in below if is_running(each.pid)]
        os.kill(system.process.pid, signal.SIGCONT)


def test_tasks_are_asked_to_stop_when_no_broker_has_been_there_for_half_a_lease(
    system: System, witness: Witness
) -> None:
    with system.client() as client:
        supervisors(client)
        slots = {"background": 0, "compute-request": 1}
        for runtime, slot in slots.items():
            body = bodies.doze if runtime == "background" else bodies.wander
            client.spawn(runtime, "attach", body, witness.path, slot, restart="always")
        ticking(witness, 0, 1)
        pid = client.broker_info().pid
        freeze(pid)
        frozen = time.monotonic_ns()
        # Nobody else can be asked while the broker is frozen.
        until(system.text, lambda log: log.count(" ended: completed") == len(slots))
        os.kill(pid, signal.SIGCONT)
        asked = min(witness.read(slot).at_ns for slot in slots.values()) - frozen
        assert asked / 1e9 < LEASE
        # Restarted by their policy, once the broker is back.
        until(
            lambda: [task.attempt for task in client.tasks(state="running")],
            lambda now: now == [2, 2],
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SOAK_SEEDS", "1"))))
@pytest.mark.parametrize("network", [False, True])
def test_random_faults(seed: int, network: bool) -> None:
    """No false "stopped", no call that hangs, an even account. `SOAK_SECONDS=600 SOAK_SEEDS=5` looks longer."""
    seconds = float(os.environ.get("SOAK_SECONDS", "5"))
    result = Soak(seed, seconds=seconds, network=network, disk=os.geteuid() == 0).run()
    assert result.ok, str(result)
    assert result.stops["of tasks"] > 0
