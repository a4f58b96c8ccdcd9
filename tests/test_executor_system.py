"""QuiesceExecutor with a private broker and pool, used as the standard library's executors are."""

import asyncio
import itertools
import multiprocessing.process
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, as_completed
from pathlib import Path
from typing import Any

import pytest

from quiesce import (
    BrokerUnavailableError,
    Client,
    QuiesceExecutor,
    TaskCrashedError,
    current_client,
    processes,
)
from quiesce.client import private_broker
from quiesce.testing import bodies, leaks, wait_until
from system import System, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executor() -> Iterator[QuiesceExecutor]:
    with QuiesceExecutor(2) as executor:
        pids = [executor.submit(bodies.nothing) for _ in range(8)]
        for future in pids:
            future.result(60)
        until(lambda: len(executor.client.workers()), lambda count: count == 2)
        yield executor


def run_program(text: str, *flags: str, cwd: str | None = None) -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, *flags, "-c", text],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=cwd,
    )
    return ran.returncode, ran.stdout, ran.stderr


INTERRUPTED = """
import pathlib, sys, time
from quiesce import QuiesceExecutor

def work(path):
    try:
        pathlib.Path(path).touch()
        time.sleep(1000)
    finally:
        pathlib.Path(path).unlink()

try:
    with QuiesceExecutor(1) as executor:
        futures = [executor.submit(work, sys.argv[1] + str(number)) for number in range(4)]
        print("submitted", flush=True)
        futures[-1].result()
except KeyboardInterrupt:
    print([future.cancelled() or type(future.exception()).__name__ for future in futures])
"""


def test_ctrl_c_in_the_block_of_a_private_pool_ends_its_calls(tmp_path: Path) -> None:
    """As with processes of the standard library, which get the signal themselves."""
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"{tmp_path}/running-"],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with program:
        try:
            until(lambda: list(tmp_path.iterdir()), bool)
            os.killpg(program.pid, signal.SIGINT)
            printed, _ = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 0
    assert printed.startswith("submitted\n['TaskCancelledError', ")
    assert printed.endswith(", True, True]\n")
    assert list(tmp_path.iterdir()) == []  # its `finally` was run, and no other call


def test_a_private_pool_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(
        "from quiesce import QuiesceExecutor\n"
        "if __name__ == '__main__':\n"
        "    with QuiesceExecutor(1) as executor:\n"
        "        print(executor.submit(pow, 2, 3).result())\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "pool.py")],
        env={**os.environ, "PYTHONDEVMODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "8\n"
    assert "ResourceWarning" not in done.stderr, done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_ends_of_a_block_wait_for_its_calls(
    executor: QuiesceExecutor, error: type[BaseException]
) -> None:
    """Of a private pool any but a KeyboardInterrupt; of another client's all."""
    if error is KeyboardInterrupt:
        block = QuiesceExecutor(1, client=executor.client, runtime="executor", kind="executor")
    else:
        block = QuiesceExecutor(1)
    with pytest.raises(error), block:
        future = block.submit(time.sleep, 0.2)
        until(future.running)
        raise error
    assert future.exception(0) is None


# --- map


@pytest.mark.parametrize("chunksize", [1, 3, 100])
@pytest.mark.parametrize("buffersize", [None, 1, 4])
def test_map_gives_results_in_order(
    executor: QuiesceExecutor, chunksize: int, buffersize: int | None
) -> None:
    found = executor.map(pow, range(10), range(9), chunksize=chunksize, buffersize=buffersize)
    assert list(found) == list(map(pow, range(10), range(9)))


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_with_a_buffer_takes_from_endless_iterables_what_it_needs(
    executor: QuiesceExecutor, chunksize: int
) -> None:
    numbers = itertools.count()
    found = executor.map(str, numbers, chunksize=chunksize, buffersize=2)
    assert next(numbers) == 2 * chunksize
    assert [next(found) for _ in range(2)] == ["0", "1"]
    found.close()  # type: ignore[attr-defined]  # it is a generator, as the standard library's


def test_map_of_coroutines_failures_and_timeouts(executor: QuiesceExecutor) -> None:
    assert list(executor.map(bodies.add_async, [1, 2, 3], [4, 5, 6])) == [5, 7, 9]
    assert list(executor.map(bodies.add_async, [1, 2, 3], [4, 5, 6], chunksize=2)) == [5, 7, 9]
    found = executor.map(divmod, [1, 1, 1], [1, 0, 1])
    assert next(found) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(found)
    with pytest.raises(TimeoutError):
        list(executor.map(time.sleep, [0.5], timeout=0.01))
    problems: list[dict[str, Any]] = [{"chunksize": 0}, {"buffersize": 0}]
    for wrong in problems:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            executor.map(str, [1], **wrong)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(str, [1], buffersize=2.0)  # type: ignore[call-overload]  # on purpose


# --- futures


def test_asyncio_runs_blocking_calls_in_it(executor: QuiesceExecutor) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, pow, 2, n) for n in range(5)]
        async with asyncio.timeout(60):
            return await asyncio.gather(*calls, loop.run_in_executor(executor, os.getpid))

    *powers, pid = asyncio.run(main())
    assert powers == [1, 2, 4, 8, 16]
    assert pid != os.getpid()


def test_a_cancelled_asyncio_call_that_has_not_begun_never_runs(
    executor: QuiesceExecutor, run_folder: Path
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(executor, time.sleep, 0.3) for _ in range(3)]
        last = loop.run_in_executor(executor, bodies.mark, str(run_folder / "ran"))
        last.cancel()
        await asyncio.gather(*busy)
        with pytest.raises(asyncio.CancelledError):
            await last

    asyncio.run(main())
    executor.submit(bodies.nothing).result(60)
    assert not (run_folder / "ran").exists()


def test_a_dead_process_loses_its_own_call_only(executor: QuiesceExecutor) -> None:
    dead: list[Future[None]] = [executor.submit(os._exit, status) for status in (0, 7)]
    alive = [executor.submit(pow, 2, n) for n in range(20)]
    assert [future.result(60) for future in alive] == [2**n for n in range(20)]
    for future, status in zip(dead, (0, 7), strict=True):
        error = future.exception(60)
        assert isinstance(error, TaskCrashedError)
        assert error.exit_status == status
    assert executor.submit(pow, 2, 5).result(60) == 32
    assert {future.result() for future in as_completed(alive, 60)} == {2**n for n in range(20)}


def test_futures_raise_what_was_raised(executor: QuiesceExecutor) -> None:
    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("here", 5)

    error = executor.submit(fail).exception(60)
    assert isinstance(error, OwnError)
    assert error.args == ("here", 5)
    assert "in fail" in str(error.__cause__)  # the traceback of there
    unpicklable = executor.submit(bodies.unpicklable).exception(60)
    assert unpicklable is not None
    assert "can't be pickled" in str(unpicklable)
    assert isinstance(executor.submit(sys.exit, 3).exception(60), SystemExit)


def test_workers_have_the_authkey_of_their_owner(executor: QuiesceExecutor) -> None:
    def authkey() -> bytes:
        return bytes(multiprocessing.process.current_process().authkey)

    assert executor.submit(authkey).result(60) == authkey()


def test_large_arguments_and_results_travel(executor: QuiesceExecutor) -> None:
    size = 100 * 1024 * 1024
    assert executor.submit(len, bytes(size)).result(60) == size
    assert len(executor.submit(bytes, size).result(60)) == size


def test_the_client_of_an_executor_stops_its_calls() -> None:
    with QuiesceExecutor(1) as private:
        executor = QuiesceExecutor(
            2, client=private.client, runtime="executor", kind="executor", tenant_id="mine"
        )
        with executor:
            future = executor.submit(time.sleep, 100)
            until(lambda: private.client.tasks(tenant_id="mine", state="running"))
            report = executor.client.shutdown_tasks(tenant_id="mine", grace=0)
            assert [task.name for task in report.tasks] == ["sleep"]
            assert future.exception(60) is not None
            assert executor.submit(pow, 2, 3).result(60) == 8


# --- initialisers, and variables


def test_an_initializer_runs_in_each_process_before_its_first_call() -> None:
    def set_up(name: str, value: str) -> None:
        os.environ[name] = value

    with QuiesceExecutor(
        2, initializer=set_up, initargs=("FROM_INITIALIZER", "yes"), env={"FROM_OWNER": "too"}
    ) as executor:
        names = ["FROM_INITIALIZER", "FROM_OWNER"] * 4
        assert list(executor.map(os.getenv, names)) == ["yes", "too"] * 4
        assert list(executor.map(bodies.add_async, [1], [2])) == [3]
        killed: Future[None] = executor.submit(os._exit, 1)
        assert killed.exception(60) is not None
        assert list(executor.map(os.getenv, names)) == ["yes", "too"] * 4


def test_an_initializer_that_fails_breaks_its_executor_alone() -> None:
    with QuiesceExecutor(1) as private:
        where: dict[str, Any] = {
            "client": private.client,
            "runtime": "executor",
            "kind": "executor",
        }
        with QuiesceExecutor(1, initializer=divmod, initargs=(1, 0), **where) as broken:
            with pytest.raises(BrokenExecutor, match="ZeroDivisionError"):
                broken.submit(pow, 2, 3).result(60)
            with pytest.raises(BrokenExecutor):
                broken.submit(pow, 2, 3)
        assert private.submit(pow, 2, 3).result(60) == 8


# --- what its workers have of their owner


FLAGS = """
import os, sys
from quiesce import QuiesceExecutor
def flags():
    given = [getattr(sys.flags, name) for name in ("optimize", "utf8_mode", "dev_mode", "dont_write_bytecode")]
    variables = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    return given, sys.warnoptions, [entry or os.getcwd() for entry in sys.path], variables
here = flags()
with QuiesceExecutor(1) as executor:
    there = executor.submit(flags).result()
print(here == there or (here, there))
"""


@pytest.mark.parametrize(
    "flags", [(), ("-OO", "-X", "utf8", "-B", "-W", "error::ImportWarning"), ("-X", "utf8=0")]
)
def test_flags_of_the_interpreter_hold_in_the_workers(flags: tuple[str, ...]) -> None:
    """And the variables by which they get them are not those of what a task starts."""
    assert run_program(FLAGS, *flags) == (0, "True\n", "")


SHADOWED = """
import helper
from quiesce import QuiesceExecutor
if __name__ == "__main__":
    with QuiesceExecutor(1) as executor:
        print(helper.who(), executor.submit(helper.who).result())
"""


def test_workers_import_what_their_owner_does(tmp_path: Path) -> None:
    """Not what has the same name in the current folder, be it a module of the standard library's."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "helper.py").write_text("def who(): return 'program'")
    (tmp_path / "program" / "main.py").write_text(SHADOWED)
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "helper.py").write_text("def who(): return 'current folder'")
    (tmp_path / "current" / "ctypes.py").write_text("raise RuntimeError('this is not ctypes')")
    ran = subprocess.run(
        [sys.executable, "../program/main.py"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=tmp_path / "current",
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "program program\n", "")


POWER = """
import os, pathlib, sys
from quiesce import QuiesceExecutor
{before}
with QuiesceExecutor(1) as executor:
    print(executor.submit(pow, 2, 3).result())
"""


@pytest.mark.parametrize("name", ["a 'folder'\N{GRINNING FACE}\x7f\\", "not \udcff utf-8", "gone"])
def test_a_private_pool_starts_in_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    program = POWER.format(before="os.rmdir(os.getcwd())" if name == "gone" else "")
    assert run_program(program, cwd=str(folder)) == (0, "8\n", "")


def test_what_is_no_text_in_the_import_path_is_ignored() -> None:
    program = POWER.format(before="sys.path.append(pathlib.Path('/tmp'))")
    assert run_program(program) == (0, "8\n", "")


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_a_program_without_standard_streams_has_workers(tmp_path: Path, closed: str) -> None:
    program = POWER.format(before="sys.stdout = open('found', 'w')")
    ran = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program],
        timeout=90,
        check=False,
        cwd=tmp_path,
    )
    assert (ran.returncode, (tmp_path / "found").read_text()) == (0, "8\n")


def test_a_private_pool_that_can_not_start_leaves_nothing(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    folder = run_folder / "pool"

    def make(**_: str) -> str:
        folder.mkdir()
        return str(folder)

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    monkeypatch.setattr(private_broker, "_import_path", fail)
    with pytest.raises(OSError, match="no"):
        QuiesceExecutor(1)
    assert not folder.exists()


# --- its ends


def test_a_private_pool_that_is_killed_breaks_its_executor() -> None:
    """What ran, what waited, and what comes; also what goes through its client."""
    with QuiesceExecutor(1) as executor:
        client = executor.client
        other = QuiesceExecutor(1, client=client, runtime="executor", kind="executor")
        futures = [executor.submit(time.sleep, 1000) for _ in range(5)]
        until(lambda: client.tasks(state="running"))
        theirs = other.submit(time.sleep, 1000)
        broker = processes.look(client.broker_info().pid)
        assert broker is not None
        os.kill(broker.parent, signal.SIGKILL)
        for future in futures:
            error = future.exception(60)
            assert type(error) is BrokenExecutor
            assert "the private pool of this executor has ended" in str(error)
            assert "ended with signal 9" in str(error)
        with pytest.raises(BrokenExecutor, match="Make a new executor"):
            executor.submit(pow, 2, 3)
        # Those who only share its client have not closed it: they are told the same.
        for error in (theirs.exception(60), other.submit(pow, 2, 3).exception(60)):
            assert type(error) is BrokerUnavailableError
            assert "the private pool of this executor has ended" in str(error)
        with pytest.raises(BrokerUnavailableError, match="ended with signal 9"):
            client.broker_info()
        other.shutdown()
    assert not Path(client.address.removeprefix("ipc://")).parent.exists()


FORKED = """
import os, sys, warnings
from quiesce import QuiesceExecutor
warnings.filterwarnings("ignore", ".*use of fork")  # since Python 3.12 it is warned of
with QuiesceExecutor(1) as executor:
    print(executor.submit(pow, 2, 3).result(), flush=True)
    child = os.fork()
    if not child:
        try:
            executor.submit(pow, 2, 3)
        except RuntimeError as error:
            print("does not survive a fork" in str(error), flush=True)
        sys.exit(3)  # leaves the block, and comes to what is done at exit
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), executor.submit(pow, 2, 4).result())
"""


def test_a_forked_copy_ends_no_executor_and_waits_for_none() -> None:
    assert run_program(FORKED) == (0, "8\nTrue\n3 16\n", "")


PROGRAM = """
import os, sys, time
from quiesce import QuiesceExecutor
def say(seconds, text):
    time.sleep(seconds)
    print(text, flush=True)
    print(text.upper(), file=sys.stderr, flush=True)
executor = QuiesceExecutor(1)
"""


@pytest.mark.parametrize(
    "rest",
    [
        "executor.submit(say, 0.2, 'one'); executor.submit(say, 0, 'two')",
        "executor.submit(say, 0.2, 'one'); executor.submit(say, 0, 'two'); executor.shutdown(wait=False)",
        "executor.submit(say, 0.2, 'one'); executor.submit(say, 0, 'two'); del executor",
        # As CPython takes the thread after a KeyboardInterrupt in `is_alive` or `join`.
        """executor.submit(say, 0.2, 'one'); executor.submit(say, 0, 'two')
executor._engine.thread.is_alive = lambda: False""",
    ],
)
def test_what_was_submitted_is_run_and_prints_where_its_owner_does(rest: str) -> None:
    assert run_program(PROGRAM + rest) == (0, "one\ntwo\n", "ONE\nTWO\n")


def test_a_call_that_kills_its_process_says_nothing_on_the_terminal() -> None:
    program = PROGRAM + "print(type(executor.submit(os._exit, 1).exception()).__name__)"
    assert run_program(program) == (0, "TaskCrashedError\n", "")


def test_no_calls_are_taken_once_the_interpreter_ends() -> None:
    code, out, err = run_program(
        """
import atexit
@atexit.register
def last():
    try:
        executor.submit(pow, 2, 3)
    except RuntimeError as error:
        print(error)
from quiesce import QuiesceExecutor
executor = QuiesceExecutor(1)
"""
    )
    assert (code, out, err) == (0, "cannot schedule new futures after interpreter shutdown\n", "")


def test_an_owner_that_is_killed_leaves_nothing() -> None:
    program = PROGRAM + (
        "print(executor.submit(os.getpid).result(), executor.client.broker_info().pid,"
        " executor.client.address.removeprefix('ipc://'), flush=True)\n"
        "executor.submit(time.sleep, 1000).result()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        worker, broker, folder = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        pids = (int(worker), int(broker))
        until(lambda: any(map(leaks.is_running, pids)), lambda left: not left)
        until(Path(folder).parent.exists, lambda there: not there)


def test_what_a_task_has_left_waiting_is_not_begun_after_its_end(run_folder: Path) -> None:
    def submit(gate: Path) -> None:
        executor = QuiesceExecutor(
            1, client=current_client(), runtime="background", kind="compaction"
        )
        sys.left_waiting = [executor.submit(wait_until, gate.exists) for _ in range(4)]  # type: ignore[attr-defined]  # a place of the process
        wait_until(lambda: len(executor.client.tasks()) == 3)

    def errors() -> list[str]:
        """In the same process: what became of them."""
        left: list[Future[Any]] = sys.left_waiting  # type: ignore[attr-defined]  # a place of the process
        return [type(future.exception(60)).__name__ for future in left]

    system = System(run_folder)
    try:
        with Client(system.address) as client:
            gate = run_folder / "gate"
            client.spawn("compute-request", "compaction", submit, gate).result(60)
            gate.touch()
            found = client.spawn("compute-request", "compaction", errors).result(90)
            assert found == ["NoneType", "NoneType", "TaskCancelledError", "TaskCancelledError"]
    finally:
        system.stop()


def test_a_private_pool_of_a_task_has_ended_when_the_task_has(run_folder: Path) -> None:
    def use_one() -> tuple[int, int]:
        executor = QuiesceExecutor(1)  # dropped without a shutdown
        return executor.submit(os.getpid).result(60), executor.client.broker_info().pid

    system = System(run_folder)
    try:
        with Client(system.address) as client:
            task = client.spawn("background", "compaction", use_one)
            for pid in task.result(90):
                assert not leaks.is_running(pid)
    finally:
        system.stop()
