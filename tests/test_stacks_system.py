"""Stacks of what does not answer: interpreters stuck in C code, stopped processes, and the file they write into."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import Client, TaskCrashedError, TaskHandle
from quiesce.protocol import from_client, to_client
from quiesce.testing import Witness, bodies
from system import System, freeze, until


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)
        client.reopen()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness", slots=16)
    yield witness
    witness.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@contextlib.contextmanager
def stuck(client: Client, runtime: str, fifo: Path) -> Iterator[TaskHandle[str]]:
    """A task that holds its interpreter through the body; then it is let go, and returns."""
    handle = client.spawn(runtime, "attach", bodies.hold_interpreter, str(fifo), tenant_id="stuck")
    until(lambda: in_read(handle))
    try:
        yield handle
    finally:
        fd = os.open(fifo, os.O_RDWR)
        os.write(fd, b"x")
        assert handle.result(timeout=30) == "let go"
        os.close(fd)


def in_read(handle: TaskHandle[Any]) -> bool:
    """Whether some thread of its process waits in the kernel for the pipe."""
    pid = handle.status().worker_pid
    waits = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")] if pid else []
    return any("pipe_read" in each for each in waits)


def file_of(pid: int) -> Path:
    """The file into which this process writes its stacks."""
    (found,) = [
        path
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if "quiesce-stacks" in str(os.readlink(path))
    ]
    return found


def text_of(client: Client, tenant_id: str) -> str:
    (row,) = client.stacks(tenant_id=tenant_id)
    return "\n".join(row.stacks)


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
def test_an_interpreter_that_is_stuck_in_c_shows_its_stacks(
    client: Client, witness: Witness, fifo: Path, runtime: str
) -> None:
    client.spawn("walreceiver", "attach", bodies.doze, witness.path, 0, tenant_id="stuck")
    until(lambda: witness.read(0).ticks)
    with stuck(client, runtime, fifo) as handle:
        for _ in range(2):  # what was written for the first is gone by then
            began = time.monotonic()
            rows = {row.name: row for row in client.stacks(tenant_id="stuck")}
            assert time.monotonic() - began < 1.5
            assert set(rows) == {"hold_interpreter", "doze"}
            (text,) = rows["hold_interpreter"].stacks
            first, rest = text.split("\n", 1)
            pid = handle.status().worker_pid
            assert first == (
                f"all of process {pid}, by faulthandler, since its interpreter did not answer:"
            )
            assert rest.count("in hold_interpreter") == 1
            assert rest.rstrip().splitlines()[-1].startswith("  File ")
            assert any("in doze" in text for text in rows["doze"].stacks)
            assert file_of(pid or 0).stat().st_size == 0


def test_many_who_ask_at_once_are_all_answered(client: Client, fifo: Path) -> None:
    with stuck(client, "background", fifo):
        message = from_client.GetStacks(0, (None, "stuck", None, None), [])
        asks = [client._driver.ask(message) for _ in range(8)]
        until(lambda: [ask for ask in asks if not ask.over], lambda left: not left)
        for ask in asks:
            assert isinstance(ask.answer, to_client.Stacks)
            ((text,),) = [row.stacks for row in ask.answer.rows]
            assert "in hold_interpreter" in text


def test_a_stopped_process_is_said_to_be_stopped(client: Client, witness: Witness) -> None:
    handle = client.spawn("background", "attach", bodies.doze, witness.path, 0, tenant_id="halted")
    until(lambda: witness.read(0).ticks)
    pid = handle.status().worker_pid
    assert pid is not None
    freeze(pid)
    try:
        assert text_of(client, "halted") == f"no stack: process {pid} is stopped (SIGSTOP)\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "in doze" in text_of(client, "halted")


def test_a_silent_supervisor_is_said_to_be_silent(
    client: Client, witness: Witness, fifo: Path
) -> None:
    with stuck(client, "background", fifo) as handle:
        pid = handle.status().worker_pid
        (supervisor,) = {w.supervisor_pid for w in client.workers() if w.pid == pid}
        freeze(supervisor)
        try:
            text = text_of(client, "stuck")
        finally:
            os.kill(supervisor, signal.SIGCONT)
        assert text == (
            "no stack: neither its process nor the supervisor of that has answered within 2 s\n"
        )


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("own faulthandler", "in hold_interpreter"),
        ("block signals", "which blocks all signals"),
        ("unregister", "no longer has the handler that writes its stacks"),
    ],
)
def test_a_task_that_meddles_with_signals_harms_nobody(
    client: Client, fifo: Path, how: str, shown: str
) -> None:
    handle = client.spawn(
        "background", "attach", bodies.meddle_with_signals, str(fifo), how, tenant_id="stuck"
    )
    until(lambda: in_read(handle))
    assert shown in text_of(client, "stuck")
    assert handle.status().state != "ended"  # it may hold the interpreter before "running" is told
    fd = os.open(fifo, os.O_RDWR)
    os.write(fd, b"x")
    assert isinstance(handle.exception(timeout=30), TaskCrashedError)
    os.close(fd)


def test_stacks_of_some_tasks_alone(client: Client, witness: Witness) -> None:
    handles = [
        client.spawn("compute-request", "attach", bodies.doze, witness.path, slot)
        for slot in range(3)
    ]
    until(lambda: min(witness.read(slot).ticks for slot in range(3)))
    wanted = [handles[0].id, handles[2].id]
    assert [row.id for row in client.stacks(task_ids=wanted)] == wanted
    assert client.stacks(task_ids=[]) == []
    assert [row.id for row in client.stacks(tenant_id="nobody", task_ids=wanted)] == []
