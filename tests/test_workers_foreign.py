"""Child processes of tasks that may not be killed, can't be looked for, or are too many: they harm nobody else."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.protocol import from_worker
from quiesce.testing import leftover_processes as bodies, worker_bodies
from quiesce.testing.leaks import is_running
from workers_fakes import FakeBroker, Key, Pool, value_of

#: Root without the right to signal what is not its own.
POWERLESS = ("setpriv", "--bounding-set=-kill")

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can start processes of other users",
)


@pytest.fixture
def powerless(tmp_path: Path) -> Iterator[Pool]:
    """A pool that may not signal processes of other users."""
    pool = Pool(tmp_path, by=POWERLESS)
    pool.broker.await_peer()
    yield pool
    pool.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Pool]:
    """A pool of its own: its worker goes through hardships."""
    pool = Pool(tmp_path)
    pool.broker.await_peer()
    yield pool
    pool.close()


def lingers(broker: FakeBroker, key: Key, words: str) -> str:
    """Wait until it is said that the attempt waits for something which is called so; gives all of that."""
    what: str = broker.await_message(
        from_worker.Lingering, lambda each: each[:2] == key and words in each[2]
    ).what
    return what


@needs_root
def test_a_child_that_may_not_be_killed_holds_its_task_alone(
    powerless: Pool, tmp_path: Path
) -> None:
    broker = powerless.broker
    key = broker.run(bodies.leave_foreign, str(tmp_path))
    pid = int(broker.await_file(tmp_path / "foreign"))
    broker.stop(key)
    lingers(broker, key, f"child process {pid} (sleep 1000)")
    broker.force(key)
    lingers(broker, key, f"child process {pid} (sleep 1000; it runs as another user)")
    broker.force(key)
    broker.stacks(key)  # by then it has been forced
    assert broker.call(worker_bodies.add, 1, 1) == 2
    assert key not in broker.ended
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)
    assert broker.await_end(key).outcome == "completed"
    assert not broker.exits
    assert (
        powerless.log().count(f"child process {pid} (sleep 1000) of task 1.1 can't be killed") == 1
    )


@needs_root
def test_the_end_of_a_worker_waits_for_what_may_not_be_killed(
    powerless: Pool, tmp_path: Path
) -> None:
    """Nothing else does: the pool goes on."""
    broker = powerless.broker
    key = broker.run(bodies.leave_foreign, str(tmp_path))
    pid = int(broker.await_file(tmp_path / "foreign"))
    os.kill(broker.where[key].hello.pid, signal.SIGKILL)
    broker.await_peer(2)
    broker.wait(lambda: f"process {pid} (sleep 1000)" in powerless.log(), "words about it")
    assert broker.call(worker_bodies.add, 1, 1) == 2
    assert not broker.exits
    os.kill(pid, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    assert broker.exits[1].status == -9
    assert powerless.log().count(f"process {pid} (sleep 1000), left by a worker that died") == 1


@needs_root
def test_up_waits_for_what_may_not_be_killed() -> None:
    """As for any other, but it says so once, and does not look all the time."""
    code = """
        import os, signal, subprocess
        from quiesce.cli.children import Orphans, reap_all

        said = []
        orphans = Orphans(said.append)
        child = subprocess.Popen(["sleep", "1000"], user=65534, group=65534)
        for _ in range(2):
            assert [each.pid for each in orphans.kill(set())] == [child.pid]
        words = f"{child.pid} (sleep 1000; it runs as another user)"
        print(orphans.only_wait, orphans.words() == words, len(said), words in said[0])
        print(child.pid, flush=True)
        child.wait()
        print(orphans.kill(set()), orphans.only_wait)
    """
    command = [*POWERLESS, sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True True 1 True\n"
        os.kill(int(process.stdout.readline()), signal.SIGKILL)
        assert process.stdout.read() == "[] False\n"
    assert process.returncode == 0


def test_a_task_that_uses_up_descriptors_harms_nobody(shared: Pool, tmp_path: Path) -> None:
    """One that has had children, which can't be looked for now, ends later."""
    broker = shared.broker
    key = broker.run(bodies.had_a_child, str(tmp_path))
    broker.await_file(tmp_path / "had")
    eater = broker.run(bodies.use_up_descriptors, str(tmp_path))
    broker.await_file(tmp_path / "eaten")
    broker.force(key)
    broker.wait(lambda: "can't be looked at for now" in shared.log(), "words about it")
    worker_bodies.mark(str(tmp_path), "go")
    lingers(broker, key, "child processes, which can't be looked at")
    assert key not in broker.ended
    worker_bodies.mark(str(tmp_path), "sick-of-it")
    for each in (eater, key):
        assert broker.await_end(each).outcome == "completed"
    assert not broker.exits
    assert shared.log().count("can't be looked at for now") == 1


def test_a_task_that_uses_up_threads_harms_nobody(shared: Pool, tmp_path: Path) -> None:
    """What needs one waits; but for a coroutine where none has run yet: it fails."""
    broker = shared.broker
    other = broker.run(worker_bodies.gate_file, str(tmp_path), "other")
    broker.await_file(tmp_path / "other-begun")
    eater = broker.run(bodies.use_up_threads, str(tmp_path))
    broker.await_file(tmp_path / "no-threads")
    worker_bodies.mark(str(tmp_path), "other-go")
    broker.await_end(other)
    coroutine = broker.await_end(broker.run(worker_bodies.async_add, 1, 1))
    assert (coroutine.outcome, "can't start new thread" in coroutine.text) == ("failed", True)
    other = broker.run(worker_bodies.gate_file, str(tmp_path), "another")
    broker.await_file(tmp_path / "another-begun")
    waiting = [broker.run(worker_bodies.add, 1, number) for number in range(2)]
    broker.wait(lambda: "can't start new thread: what needs one waits" in shared.log(), "words")
    assert not broker.ended.keys() & {*waiting}
    worker_bodies.mark(str(tmp_path), "another-go")  # its thread takes them
    for number, key in enumerate(waiting):
        assert value_of(broker.await_end(key)) == 1 + number
    broker.await_end(other)
    worker_bodies.mark(str(tmp_path), "sick-of-it")
    assert broker.await_end(eater).outcome == "completed"
    assert broker.call(worker_bodies.async_add, 1, 1) == 2
    assert not broker.exits


def test_children_that_begin_while_descriptors_are_used_up_are_waited_for(
    shared: Pool, tmp_path: Path
) -> None:
    """That is: a process whose descriptor can't be had is not taken for one that has ended."""
    broker = shared.broker
    eater = broker.run(bodies.use_up_descriptors, str(tmp_path))
    broker.await_file(tmp_path / "eaten")
    key = broker.run(bodies.leave_sleeping)
    lingers(broker, key, "child processes, which can't be looked at")
    worker_bodies.mark(str(tmp_path), "sick-of-it")
    assert broker.await_end(eater).outcome == "completed"
    (pid,) = re.findall("child process ([0-9]+) ", lingers(broker, key, "(sleep 1000)"))
    assert key not in broker.ended
    os.kill(int(pid), signal.SIGKILL)
    assert broker.await_end(key).outcome == "completed"
    assert not broker.exits


def test_a_task_may_have_more_children_than_its_worker_descriptors(
    shared: Pool, tmp_path: Path
) -> None:
    """Nor does it use up those of the supervisor, to whom they fall."""
    broker = shared.broker
    worker = broker.await_peer().hello.pid
    for pid in (worker, shared.process.pid):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (150, 150))
    key = broker.run(bodies.leave_sleeping, 200)
    lingers(broker, key, "and 197 more")
    assert len(os.listdir(f"/proc/{worker}/fd")) < 150
    os.kill(worker, signal.SIGKILL)
    broker.wait(lambda: broker.exits, "the exit")
    broker.await_peer(2)
    assert broker.call(worker_bodies.add, 1, 1) == 2
    assert "can't be looked at" not in shared.log()
