"""Supervisors and workers as processes: deaths, their proof, replacements, and the ends of whole pools."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import processes
from quiesce.protocol import from_supervisor, from_worker, to_supervisor, to_worker
from quiesce.testing import leftover_bodies, leftover_processes, worker_bodies as bodies
from quiesce.workers import predecessor
from quiesce.workers.table import PoolTable
from workers_fakes import FakeBroker, Key, Pool, value_of

Start = Callable[..., Pool]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts pools; they end with the test."""
    pools: list[Pool] = []

    def start(**settings: Any) -> Pool:
        folder = tmp_path / f"pool{len(pools)}"
        folder.mkdir()
        pools.append(Pool(folder, **settings))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def alive(pid: int) -> bool:
    process = processes.look(pid)
    return process is not None and not process.is_zombie


def phases(row: from_supervisor.WorkerExitedRow) -> list[tuple[int, str]]:
    return [(each.task_id, each.phase) for each in row.attempts]


def silent(broker: FakeBroker, path: Path) -> bool:
    before = path.stat().st_size
    broker.settle(0.1)
    return path.stat().st_size == before


@pytest.mark.parametrize(
    ("fn", "args", "status"),
    [
        (bodies.leave_by_exit, (0,), 0),
        (bodies.leave_by_exit, (3,), 3),
        (bodies.segfault, (), -11),
    ],
)
def test_a_dead_worker_is_reported_and_replaced(
    start: Start, tmp_path: Path, fn: Callable[..., object], args: tuple[object, ...], status: int
) -> None:
    pool = start(slots=2)
    broker = pool.broker
    peer = broker.await_peer()
    rows = [
        broker.row(peer, bodies.until_asked, str(tmp_path)),
        broker.row(peer, fn, *args),
        broker.row(peer, bodies.nothing),
    ]
    # The third waits for a slot.
    broker.assign(peer, rows[0])
    broker.await_file(tmp_path / "begun")
    broker.assign(peer, *rows[1:])
    broker.wait(lambda: broker.exits, "the exit")
    row = broker.exits[1]
    assert (row.serial, row.pid, row.status, row.table_known) == (1, peer.hello.pid, status, True)
    assert phases(row) == [(1, "begun"), (2, "begun")]
    assert broker.await_peer(2).hello.serial == 2
    assert broker.call(bodies.add, 1, 2) == 3
    assert f"ended with status {status} and is replaced" in pool.log()


def test_a_process_in_which_an_import_was_interrupted_is_replaced(
    start: Start, tmp_path: Path
) -> None:
    """What is there of the package already would not be put into it again: no later import of it could succeed."""
    package = tmp_path / "half"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from .first import *\nfrom .second import *\nnames = first.names + second.names\n"
    )
    (package / "first.py").write_text("names = ['first']\n")
    (package / "second.py").write_text(
        "from quiesce.testing.worker_bodies import mark, wait_for_file\n"
        f"mark({str(tmp_path)!r}, 'begun')\n"
        f"wait_for_file({str(tmp_path / 'go')!r})\n"
        "names = ['second']\n"
    )
    pool = start(slots=1)
    broker = pool.broker
    key = broker.run(leftover_bodies.import_names, str(tmp_path), "half")
    broker.await_file(tmp_path / "begun")
    broker.stop(key)
    broker.force(key)
    assert broker.await_end(key).outcome == "cancelled"
    (tmp_path / "go").touch()
    peer = broker.await_peer(2)
    row = broker.row(peer, leftover_bodies.import_names, str(tmp_path), "half")
    broker.assign(peer, row)
    assert value_of(broker.await_end((row.task_id, row.attempt))) == ["first", "second"]
    assert "an import was interrupted" in pool.log()


def test_the_children_of_a_dead_worker_are_dead_before_it_is_reported(
    start: Start, tmp_path: Path
) -> None:
    broker = start().broker
    peer = broker.await_peer()
    ticks = [tmp_path / str(n) / "process-ticks" for n in range(3)]
    kinds = [bodies.leave_process, bodies.leave_daemon, bodies.leave_forked_daemon]
    for path, fn in zip(ticks, kinds, strict=True):
        path.parent.mkdir()
        broker.run(fn, str(path.parent))
    for path in ticks:
        broker.wait(path.exists, str(path))
    os.kill(peer.hello.pid, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == -9
    assert all(silent(broker, path) for path in ticks)


def test_neighbours_keep_their_children(start: Start, tmp_path: Path) -> None:
    """What falls to the supervisor is a dead worker's: orphans of the living stay with them."""
    broker = start(processes=2).broker
    broker.await_peer(2)
    first, second = broker.peers.values()
    row = broker.row(first, bodies.leave_forked_daemon, str(tmp_path))
    broker.assign(first, row)
    broker.wait((tmp_path / "process-ticks").exists, "ticks")
    os.kill(second.hello.pid, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    broker.settle(0.1)
    assert not silent(broker, tmp_path / "process-ticks")
    bodies.mark(str(tmp_path), "process-go")
    assert broker.await_end((row.task_id, row.attempt)).outcome == "completed"


def test_an_exit_is_told_until_it_is_taken(start: Start) -> None:
    pool = start()
    broker = pool.broker
    broker.take_exits = False
    os.kill(broker.await_peer().hello.pid, signal.SIGKILL)
    # In the spare place.
    broker.await_peer(2)

    def told() -> int:
        return sum(isinstance(each, from_supervisor.WorkerExited) for each in broker.log)

    broker.wait(lambda: told() >= 2, "the exit, twice")
    broker.take_exits = True
    broker.tell(broker.control, broker.supervisor, to_supervisor.ExitTaken(1))
    broker.settle(0.1)
    before = told()
    broker.settle(0.7)
    assert told() == before
    assert broker.call(bodies.add, 1, 2) == 3


def test_kill_hits_only_what_has_begun(start: Start, tmp_path: Path) -> None:
    broker = start(slots=2).broker
    peer = broker.await_peer()
    running = broker.run(bodies.stone_deaf, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    over = broker.run(bodies.nothing)
    broker.await_end(over)
    broker.kill(over)
    broker.where[(999, 1)] = peer
    broker.kill((999, 1))
    broker.settle(0.2)
    assert not broker.exits
    assert broker.call(bodies.add, 1, 2) == 3
    broker.kill(running)
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == -9
    assert phases(broker.exits[1])[:1] == [(running[0], "begun")]


def test_kill_spares_who_has_begun_meanwhile(start: Start, tmp_path: Path) -> None:
    broker = start(slots=3).broker
    broker.await_peer()
    deaf = broker.run(bodies.stone_deaf, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    neighbour = broker.run(bodies.until_asked, str(tmp_path), "neighbour")
    broker.await_file(tmp_path / "neighbour")
    broker.kill(deaf, (999, 1), neighbour)
    broker.settle(0.2)
    assert not broker.exits
    assert broker.call(bodies.add, 1, 2) == 3  # and it goes on
    broker.stop(neighbour)
    broker.await_end(neighbour)
    broker.kill(deaf, (999, 1), neighbour)
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == -9


def _block_the_loop(broker: FakeBroker, folder: Path) -> tuple[Key, list[Key]]:
    """One coroutine computes; those behind it are loaded and wait for the loop."""

    async def by_value(sign: bodies.LoadSign) -> None:
        await bodies.tick_and_wait(sign)

    assert broker.call(lambda: 7) == 7  # what loads functions by value is imported
    broker.begun.clear()
    spinning = broker.run(bodies.spin_loop, str(folder))
    broker.await_file(folder / "spinning")
    functions = [bodies.tick_and_wait, by_value] * 3
    signs = [bodies.LoadSign(str(folder), f"ticks{n}") for n in range(len(functions))]
    waiting = [broker.run(fn, sign) for fn, sign in zip(functions, signs, strict=True)]
    for _, name in (sign.state for sign in signs):
        broker.await_file(folder / f"loaded-{name}")
    broker.settle(0.2)
    assert broker.begun == [spinning]
    return spinning, waiting


def test_a_blocked_loop_holds_up_no_stop(start: Start, tmp_path: Path) -> None:
    broker = start(slots=16).broker
    spinning, waiting = _block_the_loop(broker, tmp_path)
    broker.stop(*waiting)
    ends = [broker.await_end(key) for key in waiting]
    assert {(end.outcome, end.evidence, end.begun_age) for end in ends} == {
        ("cancelled", "NEVER_RAN", None)
    }

    def seen() -> list[Any]:
        heard = (each for each in broker.log if isinstance(each, from_worker.StopSeen))
        return [row for each in heard for row in each.rows]

    # On the other socket: it may come after the ends.
    broker.wait(lambda: len(seen()) >= len(waiting), "what became of the requests")
    assert {row.state for row in seen()} == {"never-began"}
    assert spinning not in broker.ended
    bodies.mark(str(tmp_path), "go")
    assert broker.await_end(spinning).outcome == "completed"
    assert broker.call(bodies.async_add, 1, 2) == 3
    assert not list(tmp_path.glob("ticks*"))


def test_what_waits_for_a_blocked_loop_has_not_begun(start: Start, tmp_path: Path) -> None:
    broker = start(slots=16).broker
    spinning, waiting = _block_the_loop(broker, tmp_path)
    peer = broker.await_peer()
    broker.tell(broker.control, peer.control, to_worker.HelloWanted(broker.epoch))
    hello = broker.await_message(from_worker.Hello, lambda each: each.incarnation)
    assert (hello.begun, sorted(hello.received)) == ([spinning], waiting)
    os.kill(peer.hello.pid, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    assert phases(broker.exits[1]) == [(spinning[0], "begun")]


def test_what_waited_for_the_loop_begins_with_it(start: Start, tmp_path: Path) -> None:
    broker = start(slots=16).broker
    spinning, waiting = _block_the_loop(broker, tmp_path)
    bodies.mark(str(tmp_path), "go")
    broker.wait(lambda: len(list(tmp_path.glob("ticks*"))) == len(waiting), "their first steps")
    broker.wait(lambda: sorted(broker.begun) == [spinning, *waiting], "their begins")
    broker.stop(*waiting)
    for key in waiting:
        assert broker.await_end(key).outcome == "completed"


def test_what_has_ended_is_known_from_the_table(start: Start) -> None:
    broker = start().broker
    broker.take_ends = False
    pid = broker.await_peer().hello.pid
    keys = [broker.run(fn) for fn in (bodies.nothing, bodies.fail, bodies.cancel_itself)]
    keys.append(broker.run(bodies.raise_it, SystemExit))
    for key in keys:
        broker.await_end(key)
    os.kill(pid, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    assert sorted(phases(broker.exits[1])) == [
        (keys[0][0], "completed"),
        (keys[1][0], "failed"),
        (keys[2][0], "failed"),
        (keys[3][0], "crashed"),
    ]


def test_exit_ends_the_pool_in_order(start: Start, tmp_path: Path) -> None:
    pool = start(processes=2)
    broker = pool.broker
    broker.await_peer(2)
    key = broker.run(bodies.until_asked, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.tell(broker.control, broker.supervisor, to_supervisor.Exit(broker.epoch, 10.0))
    # SIGTERM asks what runs to stop; its end is still told and taken.
    assert broker.await_end(key).outcome == "completed"
    broker.await_message(from_supervisor.Goodbye)
    broker.wait(lambda: pool.process.poll() is not None, "the end")
    assert pool.process.returncode == 0
    assert [row.status for row in broker.exits.values()] == [0, 0]
    assert "replaced" not in pool.log()


def test_exit_kills_what_does_not_end(start: Start, tmp_path: Path) -> None:
    pool = start()
    broker = pool.broker
    broker.await_peer()
    broker.run(bodies.stone_deaf, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    assert pool.end(grace=0.2) == 0
    assert broker.exits[1].status == -9


def test_a_worker_told_to_exit_ends(start: Start) -> None:
    pool = start()
    broker = pool.broker
    peer = broker.await_peer()
    broker.tell(broker.control, peer.control, to_worker.Exit(broker.epoch))
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == 0
    assert "replaced" not in pool.log()


def test_a_refused_worker_ends(start: Start) -> None:
    pool = start()
    broker = pool.broker
    peer = broker.await_peer()
    broker.tell(broker.control, peer.control, to_worker.Refused("your end was reported"))
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == 1
    assert "your end was reported" in pool.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pool_in_a_terminal_ends_by_signal(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    pool = start(parent_pid=0)
    broker = pool.broker
    broker.await_peer()
    key = broker.run(bodies.until_checkpoint, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    pool.process.send_signal(number)
    assert broker.await_end(key).outcome == "cancelled"
    broker.wait(lambda: pool.process.poll() is not None, "the end")
    assert pool.process.returncode == 0


def test_sigquit_ends_at_once(start: Start, tmp_path: Path) -> None:
    pool = start(parent_pid=0)
    broker = pool.broker
    broker.await_peer()
    broker.run(bodies.stone_deaf, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    pool.process.send_signal(signal.SIGQUIT)
    broker.wait(lambda: pool.process.poll() is not None, "the end", patience=3.0)
    assert broker.exits[1].status == -9


def test_sigint_is_for_up_alone(start: Start) -> None:
    pool = start()
    broker = pool.broker
    peer = broker.await_peer()
    for pid in (pool.process.pid, peer.hello.pid):
        os.kill(pid, signal.SIGINT)
    assert broker.call(bodies.add, 1, 2) == 3
    assert not broker.exits


def test_workers_die_with_their_supervisor(start: Start, tmp_path: Path) -> None:
    """And the table, which outlives it, tells what they were doing."""
    table = PoolTable.create(2)
    pool = start(processes=2, table_fd=table.fd)
    broker = pool.broker
    broker.await_peer(2)
    key = broker.run(bodies.stone_deaf, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    pids = [peer.hello.pid for peer in broker.peers.values()]
    pool.process.kill()
    pool.process.wait()
    broker.wait(lambda: not any(alive(pid) for pid in pids), "the workers' end")
    told = predecessor.parse(predecessor.describe(table, pool.process.pid, -9))
    assert told is not None
    assert told.supervisor == broker.supervisor_hellos[0].supervisor
    assert sorted(each.pid for each in told.workers) == sorted(pids)
    assert [row for each in told.workers for row in each.attempts] == [(*key, "begun")]
    account = predecessor.describe(table, pool.process.pid, -9)
    for pid in pids:
        processes.reap(pid)
    successor = start(processes=2, table_fd=table.fd, predecessor=account)
    successor.broker.await_peer(2)
    assert successor.broker.supervisor_hellos[0].predecessor == told
    successor.close()
    table.close()


@pytest.mark.parametrize("fn", [leftover_processes.change_user, leftover_processes.outlive_parent])
def test_a_worker_dies_with_its_supervisor_whatever_a_task_has_become(
    start: Start, tmp_path: Path, fn: Callable[..., object]
) -> None:
    """The kernel forgets that it shall when the credentials of a process change."""
    if fn is leftover_processes.change_user and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    pool = start(slots=1)
    broker = pool.broker
    pid = broker.await_peer().hello.pid
    key = broker.run(fn, str(tmp_path))
    broker.await_file(tmp_path / "changed")
    broker.stacks(key)  # by then its control thread has had a turn
    pool.process.kill()
    broker.wait(lambda: not alive(pid), "the worker's end")
    processes.reap(pid)


def test_a_supervisor_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is gone before it could be compared, or dies later."""
    code = textwrap.dedent(
        f"""
        import os, subprocess, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from workers_fakes import Pool
        pool = Pool(Path({str(tmp_path)!r}))
        peer = pool.broker.await_peer()
        print(pool.process.pid, peer.hello.pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    broker = FakeBroker(tmp_path)
    broker.wait(lambda: not any(alive(pid) for pid in pids), "their end")
    broker.close()
    for pid in pids:
        processes.reap(pid)


def test_an_orphaned_supervisor_ends_at_once(start: Start) -> None:
    pool = start(parent_pid=1)
    assert pool.process.wait(timeout=10) == -9


def test_starts_that_fail_back_off(start: Start) -> None:
    pool = start(preload=("no_such_module",))
    broker = pool.broker
    broker.wait(lambda: len(broker.exits) >= 3, "three failed starts")
    assert [row.status for row in broker.exits.values()][:3] == [1, 1, 1]
    assert "no_such_module" in pool.log()


def test_preload_and_app_dir(start: Start, tmp_path: Path) -> None:
    (tmp_path / "some_preload.py").write_text("VALUE = 42\n", encoding="utf-8")
    broker = start(app_dir=str(tmp_path), preload=("some_preload",)).broker
    broker.await_peer()

    def loaded() -> Any:
        import sys

        return sys.modules["some_preload"].VALUE, sys.path[0]

    assert broker.call(loaded) == (42, str(tmp_path))


def test_titles(start: Start) -> None:
    pool = start(title="page request worker")
    peer = pool.broker.await_peer()
    assert processes.command(peer.hello.pid) == "page request worker"
    assert processes.command(pool.process.pid) == "quiesce supervisor: background"


def test_usage_is_told(start: Start, tmp_path: Path) -> None:
    broker = start().broker
    peer = broker.await_peer()
    key = broker.run(bodies.until_asked, str(tmp_path))

    def checked(message: Any) -> bool:
        return any(row[:2] == key and row[2] is not None for row in message.workers[0].checks)

    usage = broker.await_message(from_supervisor.Usage, lambda each: each.workers and checked(each))
    assert usage.workers[0].pid == peer.hello.pid
    assert usage.workers[0].cpu_seconds > 0
    assert usage.workers[0].memory_bytes > 1e6
    assert 0 <= usage.workers[0].checks[0][2] < 3
    broker.stop(key)
    broker.await_end(key)


def test_a_broker_that_comes_back_hears_everything(start: Start, tmp_path: Path) -> None:
    pool = start()
    broker = pool.broker
    peer = broker.await_peer()
    running = broker.run(bodies.watcher, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    meanwhile = broker.run(bodies.wait_for_file, str(tmp_path / "go"))
    broker.wait(lambda: meanwhile in broker.begun, "its begin")
    broker.close()
    bodies.mark(str(tmp_path), "go")
    successor = FakeBroker(pool.folder)
    pool.broker = successor
    successor.epoch += 1
    successor.last_incarnation = 200
    hello = successor.await_message(from_worker.Hello)
    assert (hello.incarnation, hello.serial) == (peer.incarnation, peer.hello.serial)
    assert running in hello.begun
    again = successor.await_peer()
    assert value_of(successor.await_end(meanwhile)) == str(tmp_path / "go")
    assert successor.await_message(from_supervisor.Hello).incarnation == 7
    successor.where[running] = again
    again.last_assign = peer.last_assign
    successor.stop(running)
    assert successor.await_end(running).outcome == "completed"


def test_a_pool_may_start_before_its_broker(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.broker.close()
    pool.broker = FakeBroker(tmp_path)
    assert pool.broker.call(bodies.add, 1, 2) == 3
    pool.close()


NESTED = """
import threading
from pathlib import Path

class Client:
    def __init__(self, address, incarnation):
        self.address, self.incarnation, self.parents = address, incarnation, []
        self.go = Path(__file__).parent / "acknowledged"

    def spawned(self, task_id):
        self.parents.append(task_id)

    def wait_spawned(self, parent, timeout):
        while parent[0] in self.parents and not self.go.exists():
            threading.Event().wait(0.005)
        return True

def open_client(address, incarnation):
    return Client(address, incarnation)
"""


def test_an_end_waits_for_the_nested_spawns(start: Start, tmp_path: Path) -> None:
    (tmp_path / "some_client.py").write_text(NESTED, encoding="utf-8")
    broker = start(app_dir=str(tmp_path), client_factory="some_client:open_client").broker
    broker.await_peer()
    key = broker.run(bodies.nested, str(tmp_path))
    broker.await_file(tmp_path / "begun")
    broker.settle(0.2)
    assert key not in broker.ended
    assert broker.call(bodies.add, 1, 2) == 3  # neighbours do not wait
    bodies.mark(str(tmp_path), "acknowledged")
    assert value_of(broker.await_end(key)) == "spawned"


def test_the_resource_tracker_comes_when_somebody_needs_it(start: Start) -> None:
    pool = start(processes=2)
    broker = pool.broker

    def trackers() -> list[int]:
        below = processes.children(pool.process.pid)
        return [each.pid for each in below if "resource_tracker" in processes.command(each.pid)]

    assert broker.call(bodies.add, 1, 2) == 3
    assert trackers() == []
    names = [broker.call(bodies.leave_memory) for _ in range(2)]
    broker.wait(trackers, "the tracker")
    assert all(Path("/dev/shm", name).exists() for name in names)
    (tracker,) = trackers()
    pool.end()
    assert not alive(tracker)
    assert not any(Path("/dev/shm", name).exists() for name in names)


def test_what_a_killed_worker_has_left_is_removed_with_its_pool(start: Start) -> None:
    """Even if the tracker has not been started by then: what is in its pipe counts."""
    pool = start()
    broker = pool.broker
    name = broker.call(bodies.leave_memory)
    pid = broker.await_peer().hello.pid
    os.kill(pid, signal.SIGKILL)
    pool.end()
    assert not Path("/dev/shm", name).exists()
