"""Leases of real pools: who hears nothing of the broker asks its tasks to stop, and then is gone in time."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quiesce import processes
from quiesce.protocol import from_supervisor, from_worker
from quiesce.registry.leases import KILL_DELAY, RENEWALS
from quiesce.registry.rows import LEASE_OVER
from quiesce.testing import worker_bodies as bodies
from quiesce.workers.lease_timer import boottime
from quiesce.workers.table import PoolTable
from system import until
from workers_fakes import FakeBroker, Key, Pool, value_of

#: Short enough to wait for, long enough for a busy machine.
LEASE = 3.0
OVER = f"{LEASE_OVER}no broker for 1.5 s: the lease of this pool is half over"

Start = Callable[..., Pool]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts pools; they end with the test, and their orphans are reaped."""
    pools: list[Pool] = []

    def start(lease: float = LEASE, **settings: Any) -> Pool:
        folder = tmp_path / f"pool{len(pools)}"
        folder.mkdir()
        pools.append(Pool(folder, lease, **settings))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()
        for peer in pool.broker.peers.values():
            processes.reap(peer.hello.pid)


@pytest.fixture
def table() -> Iterator[PoolTable]:
    table = PoolTable.create(2)
    yield table
    table.close()


def alive(pid: int) -> bool:
    process = processes.look(pid)
    return process is not None and not process.is_zombie


def half_over(pool: Pool) -> bool:
    return "the lease of this pool is half over" in pool.log()


def await_half(pool: Pool) -> None:
    """The broker stops granting, and is not heard for half a lease."""
    pool.broker.grants = False
    pool.broker.wait(lambda: half_over(pool), "half a lease")
    assert boottime() >= pool.broker.granted_at + pool.broker.lease / 2


def resume(pool: Pool) -> None:
    """The broker grants again, and the pool knows."""
    pool.broker.grants = True
    pool.broker.wait(lambda: "the broker is back" in pool.log(), "the lease to be back")


def seen_by(path: Path) -> float:
    """When the witness last wrote; 0.0 before that."""
    seen = path.read_bytes() if path.exists() else b""
    moment: float = struct.unpack("d", seen)[0] if len(seen) == 8 else 0.0
    return moment


def timers_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/timers").read_text(encoding="ascii").splitlines()
    return sum(line.startswith("ID") for line in lines)


# --- while the broker is there --------------------------------------------------------------------


def test_it_says_that_it_is_armed_and_keeps_its_lease(start: Start, table: PoolTable) -> None:
    pool = start(table_fd=table.fd, processes=2, run="run 7")
    broker = pool.broker
    broker.wait(lambda: len(broker.renewals) > RENEWALS, "renewals for a lease")
    hello = broker.supervisor_hellos[0]
    assert (hello.run, hello.armed) == ("run 7", False)
    assert all(renewal.armed for renewal in broker.renewals)
    moments = [renewal.sent_at for renewal in broker.renewals]
    assert moments == sorted(moments)
    # The first one at once, the others each sixth.
    assert moments[0] < hello.sent_at + 1 < moments[-1] <= boottime()
    until(lambda: table.armed_until, lambda seen: moments[-2] + LEASE <= seen <= boottime() + LEASE)
    assert not half_over(pool)
    if Path("/proc/self/timers").exists():
        pids = [pool.process.pid, *(peer.hello.pid for peer in broker.peers.values())]
        assert [timers_of(pid) for pid in pids] == [1, *[0] * (len(pids) - 1)]


def test_a_supervisor_that_was_stopped_for_a_while_asks_first(start: Start, tmp_path: Path) -> None:
    pool = start(lease=4.0)
    broker = pool.broker
    broker.await_peer()
    key = broker.run(bodies.until_asked, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    pool.process.send_signal(signal.SIGSTOP)
    broker.wait(lambda: boottime() > broker.granted_at + 2.5, "more than half a lease to pass")
    before = len(broker.renewals)
    pool.process.send_signal(signal.SIGCONT)
    broker.wait(lambda: len(broker.renewals) > before + 2, "renewals")
    assert not half_over(pool)
    assert key not in broker.ended
    broker.stop(key)
    assert broker.await_end(key).text == ""


# --- half a lease ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [4, 1])
def test_what_runs_is_asked_to_stop(start: Start, tmp_path: Path, slots: int) -> None:
    fns: list[Callable[..., Any]] = [bodies.wait_for_it, bodies.until_asked, bodies.watcher]
    pool = start(slots=slots, processes=2 if slots > 1 else len(fns))
    broker = pool.broker
    broker.await_peer(pool.settings.processes)
    peers = list(broker.peers.values())
    keys: list[Key] = []
    for n, fn in enumerate(fns):
        (folder := tmp_path / str(n)).mkdir()
        row = broker.row(peers[n % len(peers)], fn, str(folder))
        broker.assign(peers[n % len(peers)], row)
        keys.append((row.task_id, row.attempt))
        broker.await_file(folder / "begun")
    await_half(pool)
    ends = [broker.await_end(key) for key in keys]
    assert boottime() < broker.granted_at + LEASE
    assert [(end.outcome, end.evidence, end.text) for end in ends] == [
        ("completed", "RETURNED", OVER)
    ] * len(keys)
    assert all(end.observed_age is not None for end in ends)
    assert value_of(ends[0]) == OVER.removeprefix(LEASE_OVER)
    # The workers are as they were, and of use again.
    resume(pool)
    assert broker.call(bodies.add, 1, 2) == 3
    assert not broker.exits
    assert {
        each.rows[0].state for each in broker.log if isinstance(each, from_worker.StopSeen)
    } == (set())


@pytest.mark.parametrize("slots", [4, 1])
def test_callbacks_do_not_run_in_the_midst_of_a_task(
    start: Start, tmp_path: Path, slots: int
) -> None:
    """The task sees the flag first, and by saying so lets the worker know: not in its own thread."""
    pool = start(slots=slots)
    pool.broker.await_peer()
    key = pool.broker.run(bodies.callback_thread, str(tmp_path))
    pool.broker.await_file(tmp_path / "begun")
    await_half(pool)
    # Of those that run callbacks; which one is nobody's promise: there are more where the first comes late.
    assert value_of(pool.broker.await_end(key)).startswith("quiesce-callbacks-")


def test_a_broker_that_comes_back_finds_all_alive(start: Start, tmp_path: Path) -> None:
    """What has not ended stays asked, and a stop of it is acknowledged as any other."""
    pool = start()
    broker = pool.broker
    broker.await_peer()
    keys = [broker.run(bodies.gate_file, str(tmp_path), name) for name in ("one", "two")]
    for name in ("one", "two"):
        broker.await_file(tmp_path / f"{name}-begun")
    await_half(pool)
    first = broker.granted_at + LEASE
    resume(pool)
    new = broker.run(bodies.until_asked, str(tmp_path), "new")
    broker.await_file(tmp_path / "new")
    broker.wait(lambda: boottime() > first + 0.5, "the end of the first lease")
    broker.log.clear()
    broker.stop(keys[1])
    seen = broker.await_message(from_worker.StopSeen).rows[0]
    assert (seen.task_id, seen.attempt, seen.state) == (*keys[1], "running")
    assert seen.delivered_age < LEASE / 2
    for name in ("one", "two"):
        bodies.mark(str(tmp_path), f"{name}-go")
    assert [broker.await_end(key).text for key in keys] == [OVER, ""]
    broker.settle(0.1)
    assert new not in broker.ended
    broker.stop(new)
    assert broker.await_end(new).text == ""
    assert not broker.exits


def test_nothing_begins_until_the_lease_is_back(start: Start, tmp_path: Path) -> None:
    """Neither what waits for the loop, nor what comes meanwhile. What waits for a slot is given back."""
    pool = start(slots=3)
    broker = pool.broker
    broker.await_peer()
    spinning = broker.run(bodies.spin_loop, str(tmp_path))
    broker.await_file(tmp_path / "spinning")
    sign = bodies.LoadSign(str(tmp_path), "ticks")
    loaded = broker.run(bodies.tick_and_wait, sign)
    broker.await_file(tmp_path / "loaded-ticks")
    busy = broker.run(bodies.gate_file, str(tmp_path), "busy")
    broker.await_file(tmp_path / "busy-begun")
    received = broker.run(bodies.add, 1, 2)
    broker.await_message(from_worker.GivenBack, lambda said: said.rows[0][:2] == received)
    await_half(pool)
    came = broker.run(bodies.add, 3, 4)
    for name in ("go", "busy-go"):
        bodies.mark(str(tmp_path), name)
    assert [broker.await_end(key).text for key in (spinning, busy)] == [OVER, OVER]
    broker.settle(0.3)
    assert not (tmp_path / "ticks").exists()
    assert not {loaded, received, came} & {*broker.begun, *broker.ended}
    resume(pool)
    assert value_of(broker.await_end(came)) == 7
    broker.await_file(tmp_path / "ticks")
    broker.stop(loaded)
    assert broker.await_end(loaded).text == ""
    assert broker.begun.count(loaded) <= 1  # told with its end, if that comes soon


# --- a whole lease --------------------------------------------------------------------------------


def pids_of(pool: Pool) -> list[int]:
    return [peer.hello.pid for peer in pool.broker.peers.values()]


def stop_processes(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


WAYS: dict[str, Callable[[Pool], None]] = {
    "silent": lambda pool: None,
    "gone": lambda pool: pool.broker.close(),
    "supervisor stopped": lambda pool: stop_processes(pool.process.pid),
    "a worker stopped": lambda pool: stop_processes(pids_of(pool)[0]),
    "all stopped": lambda pool: stop_processes(pool.process.pid, *pids_of(pool)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_after_a_lease_all_are_gone(
    start: Start, table: PoolTable, tmp_path: Path, way: Callable[[Pool], None]
) -> None:
    pool = start(lease=2.0, processes=2, table_fd=table.fd)
    broker = pool.broker
    broker.await_peer(2)
    witnesses = [tmp_path / f"witness{n}" for n in range(2)]
    for peer, path in zip(list(broker.peers.values()), witnesses, strict=True):
        broker.assign(peer, broker.row(peer, bodies.witness, str(tmp_path), path.name))
    broker.wait(lambda: all(seen_by(path) for path in witnesses), "the witnesses")
    broker.grants = False
    until(lambda: table.armed_until >= broker.granted_at + 2.0)
    pids = pids_of(pool)
    way(pool)
    assert pool.process.wait(timeout=20) == -signal.SIGKILL
    ended = boottime()
    until(lambda: [pid for pid in pids if alive(pid)], lambda left: not left)
    # What the table says is what the broker may rely on.
    armed_until = table.armed_until
    assert armed_until >= broker.granted_at + 2.0
    assert armed_until - 0.002 <= ended < armed_until + KILL_DELAY
    assert all(seen_by(path) < armed_until + KILL_DELAY for path in witnesses)
    before = [seen_by(path) for path in witnesses]
    until(lambda: boottime() > ended + 0.2)
    assert before == [seen_by(path) for path in witnesses]
    if way is WAYS["silent"]:
        assert half_over(pool)
        assert all(
            moment > armed_until - 0.5 for moment in before
        )  # they lived as long as they might
    broker.peers = {}
    for pid in pids:
        processes.reap(pid)


def test_an_idle_pool_dies_too(start: Start) -> None:
    """It can't tell; who started it starts another."""
    pool = start(lease=1.0)
    broker = pool.broker
    broker.await_peer()
    broker.grants = False
    assert pool.process.wait(timeout=20) == -signal.SIGKILL
    until(lambda: [pid for pid in pids_of(pool) if alive(pid)], lambda left: not left)


def test_without_a_lease_there_is_no_timer(start: Start, tmp_path: Path) -> None:
    """A pool waits for its broker for ever, as long as that has granted nothing."""
    pool = start(lease=0.0)
    broker = pool.broker
    broker.wait(lambda: len(broker.renewals) > 2, "requests")
    assert not any(renewal.armed for renewal in broker.renewals)
    broker.lease = LEASE
    broker.wait(lambda: broker.renewals[-1].armed, "the first lease")


def test_a_broker_that_restarts_grants_again(start: Start, tmp_path: Path) -> None:
    pool = start()
    pool.broker.await_peer()
    running = pool.broker.run(bodies.until_asked, str(tmp_path))
    pool.broker.await_file(tmp_path / "begun")
    first = pool.broker.granted_at + LEASE
    pool.broker.close()
    successor = FakeBroker(pool.folder, LEASE)
    pool.broker = successor
    successor.epoch += 1
    successor.last_incarnation = 200
    hello = successor.await_message(from_supervisor.Hello)
    assert hello.armed
    successor.await_peer()
    successor.wait(lambda: boottime() > first + 0.5, "the end of the first lease")
    assert pool.process.poll() is None
    assert not half_over(pool)
    assert running not in successor.ended


@pytest.mark.slow
def test_many_starts_do_not_starve_a_short_lease(start: Start) -> None:
    pool = start(lease=3.0, processes=10)
    broker = pool.broker
    broker.await_peer(10, patience=60.0)
    broker.wait(lambda: len(broker.renewals) > RENEWALS, "renewals for a lease")
    moments = [renewal.sent_at for renewal in broker.renewals]
    gaps = [after - before for before, after in pairwise(moments)]
    assert max(gaps) < 1.5
    assert not half_over(pool)
