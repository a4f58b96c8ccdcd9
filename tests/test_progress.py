"""Bars and calls that show how far tasks are: counts of many, and what one says of itself."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import quiesce
from cli_system import BACKGROUND, CommandSystem
from quiesce import Client
from quiesce.client import progress as module
from quiesce.client.progress import Meter, counting, follow
from quiesce.testing import Witness, bodies, leftover_bodies
from quiesce.values import Progress
from system import System, until


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)


def ended(meter: Meter) -> None:
    """By itself, and with its thread."""
    meter._thread.join(20)
    assert not meter._thread.is_alive()


# --- counts


def test_many_tasks_are_counted(client: Client) -> None:
    seen: list[Progress] = []
    handles = client.spawn_many("compute-request", "compaction", bodies.echo, range(200))
    meter = follow(client, [handle._record for handle in handles], seen.append)
    assert [handle.result(20) for handle in handles] == list(range(200))
    ended(meter)
    assert seen[-1] == Progress(200, 200)
    assert [each.done for each in seen] == sorted(each.done for each in seen)


def test_those_that_fail_are_told_apart(client: Client) -> None:
    seen: list[Progress] = []
    good = client.spawn_many("compute-request", "compaction", bodies.echo, range(3))
    bad = client.spawn_many("compute-request", "compaction", bodies.fail, ["a", "b"])
    refused = client.spawn("compute-request", "no such kind", bodies.nothing)
    with pytest.raises(quiesce.UnknownKindError):
        refused.wait(20)
    records = [handle._record for handle in (*good, *bad)]
    meter = follow(client, [*records, refused._record], seen.append)
    ended(meter)
    assert seen[-1] == Progress(6, 6, "3 not completed")


def test_nothing_to_count_ends_at_once(client: Client) -> None:
    seen: list[Progress] = []
    ended(follow(client, [], seen.append))
    assert seen == [Progress(0, 0)]


def test_a_closed_client_ends_it(system: System) -> None:
    seen: list[Progress] = []
    with system.client() as client:
        handles = client.spawn_many("compute-request", "compaction", bodies.half_way, ["x", "y"])
        one = client.spawn("compute-request", "compaction", bodies.half_way, "z")
        meters = [
            follow(client, [handle._record for handle in handles], seen.append),
            follow(client, [one._record], seen.append),
        ]
        until(lambda: client.statistics()["running"] == 3)
    for meter in meters:
        ended(meter)
    assert Progress(2, 2, "2 not completed") in seen
    with system.client() as client:
        client.shutdown_tasks()


def test_it_keeps_no_client_alive(system: System) -> None:
    client = system.client()
    handle = client.spawn("compute-request", "compaction", bodies.half_way, "x")
    until(lambda: client.statistics()["running"] == 1)
    meter = follow(client, [handle._record], lambda progress: None)
    del client, handle
    ended(meter)
    until(
        lambda: [t for t in threading.enumerate() if t.name == "quiesce-client"], lambda t: t == []
    )
    with system.client() as client:
        client.shutdown_tasks()


def test_in_a_task_it_is_shown_until_that_has_ended(client: Client, tmp_path: Path) -> None:
    with Witness(tmp_path / "witness", slots=3) as witness:
        triggers = [tmp_path / "first", tmp_path / "second"]
        names = [str(each) for each in triggers]
        client.spawn(
            "compute-request",
            "attach",
            leftover_bodies.show_progress,
            witness.path,
            "mgmt-request",
            names,
            tenant_id="shows",
        )
        until(lambda: witness.read(0).ticks, lambda ticks: ticks == 1)
        triggers[0].touch()
        until(lambda: witness.read(0).ticks, lambda ticks: ticks == 2)
        (row,) = client.shutdown_tasks(tenant_id="shows", timeout=30).tasks
        after = time.monotonic_ns()
        assert row.evidence == "RETURNED"
        triggers[1].touch()  # the task that it would be called for goes on

        def threads() -> list[str]:
            return [thread.name for thread in threading.enumerate()]

        until(
            lambda: client.spawn("compute-request", "attach", threads).result(20),
            lambda names: "quiesce-progress" not in names,
        )
        assert witness.read(0).at_ns < after


# --- one task


def test_one_task_says_how_far_it_is(client: Client) -> None:
    seen: list[Progress] = []
    handle = client.spawn("compute-request", "compaction", bodies.half_way, "merging")
    meter = follow(client, [handle._record], seen.append)
    until(lambda: Progress(5, 10, "merging") in seen)
    handle.shutdown()
    ended(meter)
    assert seen[-1] == Progress(10, 10, "merging")


def test_one_that_says_nothing_ends_at_one(client: Client) -> None:
    seen: list[Progress] = []
    handle = client.spawn("compute-request", "compaction", bodies.nothing)
    ended(follow(client, [handle._record], seen.append))
    assert seen[-1] == Progress(1, 1)
    failing = client.spawn("compute-request", "compaction", bodies.fail)
    ended(follow(client, [failing._record], seen.append))
    assert seen[-1] == Progress(0, 1, "(not completed)")


# --- the meter


def test_it_shows_at_most_ten_times_a_second() -> None:
    seen: list[float] = []
    meter = Meter(1000, lambda progress: seen.append(time.monotonic()))
    for _ in range(1000):
        meter.count()
        time.sleep(0.0005)  # so that it lasts for several pictures
    ended(meter)
    pauses = [after - before for before, after in pairwise(seen)]
    assert len(seen) > 2
    assert min(pauses) >= module.PACE * 0.99


def test_a_call_that_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(progress: Progress) -> None:
        raise ValueError("on purpose")

    meter = Meter(3, broken)
    ended(meter)
    for _ in range(3):
        meter.count()
    assert [record.message for record in caplog.records] == [
        "progress can't be shown any more; the tasks go on"
    ]


def test_what_is_no_progress_is_refused() -> None:
    with pytest.raises(
        TypeError, match="progress must be True, False, None or callable, not 'yes'"
    ):
        Meter(1, "yes")  # type: ignore[arg-type]  # that is the point


def test_futures_are_counted() -> None:
    seen: list[Progress] = []
    meter = Meter(5, seen.append)
    futures: list[Future[Any]] = []

    def begin(*args: Any) -> Future[Any]:
        futures.append(Future())
        return futures[-1]

    get = counting(lambda: begin, meter, lambda fn, *args: len(args))
    counted = get()
    assert counted is not None
    first, second, third = counted("fn", 1, 2), counted("fn", 3), counted("fn", 4, 5)
    first.set_result(None)
    second.set_exception(ValueError())
    third.cancel()
    ended(meter)
    assert seen[-1] == Progress(5, 5, "3 not completed")
    assert counting(lambda: None, meter, len)() is None


def test_a_client_loads_no_rich() -> None:
    code = (
        "import sys, quiesce; from quiesce.client import progress, executor, client;"
        "sys.exit('rich' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# --- the bar


def on_a_terminal(code: str, env: dict[str, str] | None = None, *words: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words] if code else [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=slave,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm", **(env or {})},
        )
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # nobody holds the other side any more
                break
            shown += part
        assert process.wait(20) == 0, shown
    finally:
        os.close(master)
    return shown.decode()


def test_a_bar_on_a_terminal() -> None:
    code = (
        "from quiesce.client.progress import Meter\n"
        "meter = Meter(4, True, '[bold]name')\n"
        "for n in range(4): meter.count(bad=n == 2)\n"
        "meter._thread.join()\n"
    )
    text = on_a_terminal(code)
    assert "[bold]name" in text
    assert "4/4" in text
    assert "1 not completed" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


def test_the_cursor_is_back_when_the_program_ends_early() -> None:
    code = (
        "import time\n"
        "from quiesce.client.progress import Meter\n"
        "meter = Meter(4, True, 'name'); meter.count(); time.sleep(0.3)\n"
    )
    text = on_a_terminal(code)
    assert "1/4" in text
    assert text.count("\x1b[?25h") == 1


def test_no_bar_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    meter = Meter(1, True, "name")
    meter.count()
    ended(meter)
    assert capfd.readouterr() == ("", "")


def test_spawn_wait_progress(run_folder: Path) -> None:
    system = CommandSystem(run_folder, BACKGROUND)
    (run_folder / "steps.py").write_text(
        "import time, quiesce\n"
        "def steps():\n"
        "    for n in range(30):\n"
        "        quiesce.report_progress(n, 30, 'stepping')\n"
        "        time.sleep(0.1)\n"
    )
    up = system.up()
    try:
        env = {
            "QUIESCE_ADDRESS": f"ipc://{run_folder}/q",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env["PYTHONPATH"], str(run_folder))))
        words = ("spawn", "steps:steps", "--kind", "compaction", "--wait", "--progress")
        text = on_a_terminal("", env, "quiesce", *words)
        assert "stepping" in text
        assert "30/30" in text
        assert "goes with --wait" in system.run(*words[:4], "--progress", code=2).stderr
        up.terminate()
        assert up.wait(30) == 0
    finally:
        system.close()
