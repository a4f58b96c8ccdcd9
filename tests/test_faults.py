"""Processes that die at the wrong moment, signals, and what is left behind: nothing."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce import Client, Outcome, TaskCrashedError, TaskFailedError
from quiesce.testing import Witness, bodies
from quiesce.testing.leaks import descendants, is_running
from system import System, until, workers_of


@pytest.fixture
def system(run_folder: Path) -> Iterator[System]:
    system = System(run_folder)
    try:
        yield system
    finally:
        system.stop()


@pytest.fixture
def witness(run_folder: Path) -> Iterator[Witness]:
    witness = Witness(run_folder / "witness", slots=64)
    yield witness
    witness.close()


def ticking(witness: Witness, slots: list[int]) -> None:
    until(lambda: [slot for slot in slots if not witness.read(slot).ticks], lambda left: not left)


def processes(client: Client, system: System) -> list[int]:
    """The pids of the broker, the supervisors and the workers."""
    workers = until(client.workers, lambda workers: len(workers) == 5)
    supervisors = {worker.supervisor_pid for worker in workers}
    return [client.broker_info().pid, *supervisors, *(worker.pid for worker in workers)]


def orphans() -> list[int]:
    """What runs and is a child of ours by now, whoever started it."""
    ours = (each for each in descendants(os.getpid()) if each.parent == os.getpid())
    return [each.pid for each in ours if is_running(each.pid)]


def busy(client: Client, witness: Witness) -> None:
    """Every runtime has something to do, in every way."""
    bodies_of = {
        "background": bodies.spin,
        "compute-request": bodies.wander,
        "mgmt-request": bodies.with_process,
        "walreceiver": bodies.in_thread,
    }
    for slot, (runtime, body) in enumerate(bodies_of.items()):
        client.spawn(runtime, "attach", body, witness.path, slot, tenant_id="busy")
    ticking(witness, [0, 1, 2, 3])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_stops_in_order_and_leaves_nothing(
    system: System, witness: Witness, number: int, group: bool
) -> None:
    with system.client() as client:
        pids = processes(client, system)
        busy(client, witness)
        system.signal(number, group=group)
        assert system.wait() == 0, system.text()
        after = time.monotonic_ns()
    assert [pid for pid in pids if is_running(pid)] == []
    assert witness.ticked_after(after) == []
    assert not (system.folder / "run").exists()


def test_a_second_signal_is_faster(system: System, witness: Witness, run_folder: Path) -> None:
    with system.client() as client:
        pids = processes(client, system)
        client.spawn(
            "compute-request",
            "attach",
            bodies.ignore_until_file,
            str(run_folder / "never"),
            witness.path,
            0,
        )
        ticking(witness, [0])
        system.signal(signal.SIGINT)
        until(lambda: client.broker_info().state, lambda state: state == "stopping")
        system.signal(signal.SIGINT)
        system.wait(15)
    assert [pid for pid in pids if is_running(pid)] == []


def test_sigquit_ends_at_once(system: System, witness: Witness) -> None:
    with system.client() as client:
        pids = processes(client, system)
        busy(client, witness)
        system.signal(signal.SIGQUIT)
        assert system.wait(10) != 0
    assert [pid for pid in pids if is_running(pid)] == []
    assert not (system.folder / "run").exists()


def test_kill_of_up_takes_everything_with_it(system: System, witness: Witness) -> None:
    with system.client() as client:
        pids = processes(client, system)
        for slot, runtime in enumerate(("background", "compute-request")):
            client.spawn(runtime, "attach", bodies.spin, witness.path, slot)
        ticking(witness, [0, 1])
        system.process.kill()
        system.wait()
        until(lambda: [pid for pid in pids if is_running(pid)], lambda left: not left)
    # Nobody was left to remove these.
    for path in (*(system.folder / "run").iterdir(), system.folder / "state" / "lock"):
        path.unlink()


def test_the_next_up_ends_what_tasks_of_a_killed_one_had_started(
    system: System, witness: Witness
) -> None:
    """Before its broker is ready. Children with an environment of their own, and forked workers, too."""
    with system.client() as client:
        pids = processes(client, system)
        for slot, (runtime, body) in enumerate(
            {
                "mgmt-request": bodies.with_process,
                "background": bodies.with_fork,
                "walreceiver": bodies.with_bare_process,
            }.items()
        ):
            client.spawn(runtime, "attach", body, witness.path, slot)
        ticking(witness, [0, 1, 2])
        system.process.kill()
        system.wait()
        until(lambda: [pid for pid in pids if is_running(pid)], lambda left: not left)
    until(orphans, lambda left: len(left) >= 3)
    following = System(system.folder)
    try:
        with following.client():
            after = time.monotonic_ns()
        assert set(orphans()) - {following.process.pid} == set()
        assert witness.ticked_after(after) == []
        assert "killed what an earlier `quiesce up`, which was killed, had left" in following.text()
    finally:
        assert following.stop() == 0
    assert not (system.folder / "run").exists()


def test_a_killed_broker_comes_back_and_supervisors_stay(system: System) -> None:
    with system.client() as client:
        pids = processes(client, system)
        supervisors = {worker.supervisor_pid for worker in client.workers()}
        first = client.broker_info()
    assert first.pid == pids[0]
    os.kill(first.pid, signal.SIGKILL)
    until(system.text, lambda text: "the broker is back: pid" in text)
    with system.client() as client:
        second = client.broker_info()
        assert second.pid != first.pid
        assert second.epoch > first.epoch
        workers = until(client.workers, lambda workers: len(workers) == 5)
        assert {worker.supervisor_pid for worker in workers} == supervisors
    assert system.process.poll() is None
    assert system.stop() == 0, system.text()
    assert not (system.folder / "run").exists()


def test_a_killed_supervisor_is_replaced_and_its_tasks_are_crashed(
    system: System, witness: Witness
) -> None:
    with system.client() as client:
        processes(client, system)
        running, neighbour = (
            client.spawn("background", "attach", bodies.doze, witness.path, slot) for slot in (0, 1)
        )
        other = client.spawn("walreceiver", "attach", bodies.doze, witness.path, 2)
        ticking(witness, [0, 1, 2])
        first, _ = workers_of(client, "background")
        queued = [client.spawn("background", "attach", bodies.add, n, n) for n in range(20)]
        os.kill(first.supervisor_pid, signal.SIGKILL)
        for handle in (running, neighbour):
            with pytest.raises(TaskCrashedError) as raised:
                handle.result(timeout=30)
            assert raised.value.exit_status == -signal.SIGKILL
        assert [handle.result(timeout=30) for handle in queued] == [2 * n for n in range(20)]
        assert not other.done()
        assert {worker.supervisor_pid for worker in workers_of(client, "background")} != {
            first.supervisor_pid
        }


@pytest.mark.parametrize("how", ["fail", "sigkill"])
def test_a_failing_task_marked_so_stops_the_whole_system(
    system: System, witness: Witness, how: str
) -> None:
    with system.client() as client:
        pids = processes(client, system)
        busy(client, witness)
        body = bodies.fail if how == "fail" else bodies.leave_by
        fatal = client.spawn(
            "background", "compaction", body, how, shutdown_process_on_error=True, name="vital"
        )
        with pytest.raises((TaskFailedError, TaskCrashedError)):
            fatal.result(timeout=30)
        assert system.wait() == 1, system.text()
    assert [pid for pid in pids if is_running(pid)] == []
    text = system.text()
    assert "the system stops" in text
    assert "vital" in text


def test_the_first_task_runs_without_waiting_for_the_other_pools(run_folder: Path) -> None:
    """The other pools never come up: their preload fails."""
    more = '\n[runtimes.broken]\nprocesses = 1\npreload = ["no_such_module_at_all"]\n'
    system = System(run_folder, more=more)
    try:
        with system.client() as client:
            assert client.spawn("background", "attach", bodies.add, 1, 2).result(timeout=30) == 3
    finally:
        system.process.send_signal(signal.SIGQUIT)
        system.wait()


def test_many_kills_crash_only_what_had_begun(system: System, run_folder: Path) -> None:
    """Workers are killed at random moments under a stream of short tasks: each task ends once, truly."""
    log = run_folder / "ran"
    log.touch()
    with system.client() as client:
        processes(client, system)
        handles = []
        for _ in range(12):
            handles += [
                client.spawn("background", "attach", bodies.mark, str(log)) for _ in range(25)
            ]
            for worker in workers_of(client, "background")[:1]:
                with contextlib.suppress(ProcessLookupError):  # killed before, in the last round
                    os.kill(worker.pid, signal.SIGKILL)
        outcomes = {"completed": 0, "crashed": 0}
        for handle in handles:
            assert handle.wait(timeout=60)
            info = client.task(handle.id)
            assert info.outcome in (Outcome.COMPLETED, Outcome.CRASHED), info
            outcomes[info.outcome] += 1
        assert client.tasks() == []
    ran = len(log.read_text().splitlines())
    assert outcomes["completed"] <= ran <= outcomes["completed"] + outcomes["crashed"]
