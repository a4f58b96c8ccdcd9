"""Tasks that wait for others: shown while they do, and let go when they are asked to stop. On a real system."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import Client, Evidence, Outcome, TaskCancelledError, TaskHandle, TaskInfo
from quiesce.testing import Witness, bodies, waiting_bodies
from system import System, until


@pytest.fixture
def trigger(tmp_path: Path) -> Path:
    """The other tasks go on until this file is there."""
    return tmp_path / "trigger"


@pytest.fixture
def client(system: System, trigger: Path) -> Iterator[Client]:
    with system.client() as client:
        yield client
        trigger.touch()
        client.shutdown_tasks(timeout=30)
        client.reopen()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness", slots=16)
    yield witness
    witness.close()


def waiting_for(client: Client, handle: TaskHandle[Any], pattern: str) -> None:
    until(lambda: client.task(handle.id).waiting_for, lambda text: re.fullmatch(pattern, text))


# --- what is shown --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "body"),
    [
        ("background", waiting_bodies.wait_for_other),
        ("compute-request", waiting_bodies.wait_for_other),
        ("compute-request", waiting_bodies.await_other),
        ("compute-request", waiting_bodies.wait_in_threads),
    ],
)
def test_a_wait_that_lasts_is_shown_until_it_is_over(
    client: Client, witness: Witness, trigger: Path, runtime: str, body: Any
) -> None:
    handle = client.spawn(runtime, "attach", body, str(trigger), witness.path, 0, tenant_id="w")
    waiting_for(client, handle, r"the end of task \d+ 'ignore_until_file'")
    before = time.monotonic()
    if (
        body is waiting_bodies.wait_in_threads
    ):  # beyond the moment at which the first of its waits ends
        until(time.monotonic, lambda now: now > before + 1.0)
    waiting_for(client, handle, r"the end of task \d+ 'ignore_until_file'")
    trigger.touch()
    handle.result(timeout=30)


def test_a_wait_that_ends_first_is_no_longer_shown(
    client: Client, witness: Witness, trigger: Path
) -> None:
    def wait_then_doze(trigger: str, path: str) -> str:
        waiting_bodies.wait_for_other(trigger, path, 0)
        return bodies.doze(path, 0)

    handle = client.spawn("compute-request", "attach", wait_then_doze, str(trigger), witness.path)
    waiting_for(client, handle, r"the end of task .*")
    trigger.touch()
    waiting_for(client, handle, "")


def test_tasks_that_wait_in_a_ring_are_shown_as_a_cycle_and_stop(client: Client) -> None:
    handle = client.spawn(
        "compute-request",
        "attach",
        waiting_bodies.wait_in_a_ring,
        "a",
        ["b", "c"],
        tenant_id="ring",
        name="holds a",
        unique_key="a",
    )

    def ring() -> list[TaskInfo]:
        return client.tasks(tenant_id="ring")

    tasks = until(
        ring, lambda tasks: len(tasks) == 3 and all("cycle" in t.waiting_for for t in tasks)
    )
    names = [f"{task.id} {task.name!r}" for task in tasks]
    assert tasks[0].waiting_for == (
        f"a cycle of waits: task {names[0]} waits for {names[1]} waits for {names[2]} "
        f"waits for {names[0]}"
    )
    report = client.shutdown_tasks(tenant_id="ring", grace=600, timeout=30)
    assert len(report.tasks) == 3
    with pytest.raises(TaskCancelledError):
        handle.result(timeout=30)


def test_a_task_in_a_stop_is_shown_to_wait_for_it(
    client: Client, witness: Witness, trigger: Path
) -> None:
    handle = client.spawn(
        "background",
        "attach",
        waiting_bodies.block_in,
        "shutdown_tasks",
        str(trigger),
        witness.path,
        0,
    )
    waiting_for(client, handle, r"stop \d+ of \[tenant_id=other\]: 1 task")


# --- they end when they are asked -----------------------------------------------------------------

CALLS = (
    "result",
    "result, with a timeout",
    "wait",
    "exception",
    "shutdown",
    "shutdown_tasks",
    "stopped",
    "events",
    "in a thread",
    "future.result",
    "future.exception",
    "executor.map",
    "executor.shutdown",
)
ASYNC_CALLS = (
    "await",
    "result",
    "wait",
    "exception",
    "shutdown",
    "shutdown_tasks",
    "stopped",
    "events",
)


@pytest.mark.parametrize(
    ("runtime", "body", "how"),
    [
        *(("background", waiting_bodies.block_in, how) for how in CALLS),
        *(("compute-request", waiting_bodies.block_in, how) for how in CALLS),
        *(("compute-request", waiting_bodies.block_in_async, how) for how in ASYNC_CALLS),
    ],
)
def test_a_blocking_call_ends_when_its_task_is_asked_to_stop(
    client: Client, witness: Witness, trigger: Path, runtime: str, body: Any, how: str
) -> None:
    """Nobody forces it, and what it waits for goes on."""
    client.spawn(runtime, "attach", body, how, str(trigger), witness.path, 0, tenant_id="caller")
    until(lambda: witness.read(0).ticks)
    report = client.shutdown_tasks(tenant_id="caller", grace=600, timeout=30)
    (row,) = report.tasks
    assert (row.outcome, row.evidence) == (Outcome.CANCELLED, Evidence.RETURNED)
    assert row.observed_at is not None
    assert len(client.tasks(tenant_id="other")) == 1


@pytest.mark.parametrize("runtime", ["background", "compute-request"])
def test_a_task_that_was_asked_may_still_ask_the_broker(
    client: Client, witness: Witness, runtime: str
) -> None:
    handle = client.spawn(
        runtime, "attach", waiting_bodies.look_around_when_asked, witness.path, 0, tenant_id="tidy"
    )
    until(lambda: witness.read(0).ticks)
    client.shutdown_tasks(tenant_id="tidy", grace=600, timeout=30)
    assert handle.result(timeout=30) == ["True", "1", "running"]


# --- what holds a stop up -------------------------------------------------------------------------


def test_the_log_says_what_holds_a_stop_up_and_where_it_is(
    client: Client, system: System, witness: Witness, trigger: Path
) -> None:
    handle = client.spawn(
        "background",
        "attach",
        bodies.ignore_until_file,
        str(trigger),
        witness.path,
        0,
        tenant_id="deaf",
        timeline_id="l",
        name="hard of hearing",
    )
    until(lambda: witness.read(0).ticks)
    stop = client._driver.ask(_stop("deaf"))
    pid = client.task(handle.id).worker_pid
    text = until(system.text, lambda text: "in ignore_until_file" in text)
    assert "of [tenant_id=deaf] still waits for 1 task:\n" in text
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {handle.id}.1 attach")]
    assert line.startswith(
        f"  {handle.id}.1 attach 'hard of hearing' of deaf/l in process {pid} on "
    )
    assert "never observed; no look for a request is known" in line
    assert f"still waits for task {handle.id}.1 'hard of hearing' in process {pid}" in text
    trigger.touch()
    until(lambda: stop.over)
    until(system.text, lambda text: "of [tenant_id=deaf] is complete after" in text)


def test_a_tenant_forges_no_line_of_the_log_and_of_the_report(
    client: Client, system: System, witness: Witness, trigger: Path
) -> None:
    forged = "  9.9 attach 'forged'"
    handle = client.spawn(
        "background",
        "attach",
        bodies.ignore_until_file,
        *(str(trigger), witness.path, 0),
        tenant_id=f"deaf\n{forged} \x1b[31m",
    )
    until(lambda: witness.read(0).ticks)
    stop = client._driver.ask(_stop(f"deaf\n{forged} \x1b[31m"))
    text = until(system.text, lambda text: f"deaf�{forged} �[31m] still waits for 1 task" in text)
    trigger.touch()
    until(lambda: stop.over)
    report = client.shutdown_tasks(
        tenant_id=f"deaf\n{forged} \x1b[31m", reason=f"\x1b[5m\n{forged}"
    )
    for line in (*text.split("\n"), *str(report).split("\n")):
        assert not line.startswith(forged)
        assert "\x1b" not in line
    assert handle.result(30) == "let go"
    assert client.task(handle.id).tenant_id == f"deaf\n{forged} \x1b[31m"


def _stop(tenant_id: str) -> Any:
    from quiesce.client import requests

    ask = requests.stop(None, tenant_id, None, None, grace=600, timeout=None, reason="")
    return ask.message


# --- history --------------------------------------------------------------------------------------


def test_the_history_of_stops(client: Client, witness: Witness) -> None:
    for slot in (0, 1):
        client.spawn("compute-request", "attach", bodies.doze, witness.path, slot, tenant_id="past")
    until(lambda: min(witness.read(slot).ticks for slot in (0, 1)))
    client.shutdown_tasks(tenant_id="past", timeout=30, reason="for the record")
    *_, ended = client.history(tenant_id="past")
    assert (ended.scope, ended.reason, ended.timed_out) == (
        "tenant_id=past",
        "for the record",
        False,
    )
    assert ended.outcomes == {Outcome.COMPLETED: 2}
    assert ended.evidence == {Evidence.RETURNED: 2}
    assert (ended.remaining, ended.keep_closed) == (0, False)
    assert ended.by.startswith("process ")
    assert ended.requested_at <= ended.completed_at
    assert ended in client.history()
    assert ended not in client.history(tenant_id="somebody else")
