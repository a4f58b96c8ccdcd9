"""`quiesce top` on a real system, driven by Textual's pilot: what it shows, and what its keys do."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList, Static

import quiesce
from quiesce import Client, ShutdownTimeoutError, TaskInfo
from quiesce.cli.top import filters
from quiesce.cli.top.app import TopApp
from quiesce.cli.top.filters import Filter, FilterError
from quiesce.cli.top.grid import Grid, fit
from quiesce.cli.top.source import Trend, document, take
from quiesce.cli.top.views import TASKS, bar, spark
from quiesce.testing import bodies, worker_bodies
from system import System, until, workers_of

T = TypeVar("T")
TENANTS = 10


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
    # The test may have closed it.
    with system.client() as other:
        other.shutdown_tasks(timeout=30)
        other.reopen()


def busy(client: Client, count: int = 20) -> None:
    """So many tasks of ten tenants, all running."""
    for number in range(count):
        client.spawn(
            ("compute-request", "mgmt-request", "walreceiver")[number % 3],
            ("compaction", "garbage-collector")[number % 2],
            quiesce.wait_for_shutdown,
            tenant_id=f"tenant-{number % TENANTS}",
            name=f"task-{number}",
        )
    until(lambda: client.statistics()["running"], lambda running: running == min(count, 192))


def drive(
    client: Client,
    scenario: Callable[[TopApp, "Pilot[None]"], Coroutine[Any, Any, None]],
    *,
    size: tuple[int, int] = (100, 30),
    wanted: Filter | None = None,
) -> TopApp:
    """Run it in a terminal of this size, and end it: its threads, too."""
    app = TopApp(client, interval=0.1, wanted=wanted)

    async def run() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await seen(pilot, lambda: app.snapshot is not None)
            await scenario(app, pilot)

    try:
        asyncio.run(run())
    finally:
        client.close()
        app.feeder.join(10)
    return app


async def seen(pilot: "Pilot[None]", read: Callable[[], T], patience: float = 20.0) -> T:
    """Wait until it is true; at the deadline say what it was last."""
    deadline = time.monotonic() + patience
    while not (found := read()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {patience} s it was still {found!r}")
        await pilot.pause(0.02)
    return found


def lines(grid: Grid) -> list[str]:
    """What stands there."""
    return [grid.render_line(y).text.rstrip() for y in range(grid.size.height)]


def main(app: TopApp) -> Grid:
    return app.screen_stack[0].query_one("#main", Grid)


def said(app: TopApp, selector: str) -> str:
    """The text of a line."""
    return str(app.screen_stack[0].query_one(selector, Static).content)


# --- what it shows


def test_it_shows_500_tasks_of_10_tenants_in_80_columns(client: Client) -> None:
    busy(client, 500)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: len(main(app).rows) == 500)
        shown = lines(main(app))
        assert shown[0].split()[:5] == ["ID▴", "STATE", "KIND", "NAME", "TENANT"]
        assert {"AGE", "LOOKED"} < set(shown[0].split())
        assert "running" in shown[1]
        assert "tenant-0" in shown[1]
        assert max(map(len, shown)) <= 80
        assert "500 tasks" in said(app, "#summary")
        assert "192 running" in said(app, "#summary")
        runtimes = lines(app.query_one("#runtimes", Grid))
        assert [line.split()[0] for line in runtimes] == [
            "RUNTIME",
            "compute-request",
            "mgmt-request",
            "walreceiver",
            "background",
        ]
        # To the end and back; the cursor stays on its row while others come and go.
        await pilot.press("end")
        assert main(app).current is not None
        assert main(app).current is main(app).rows[-1]
        await pilot.press("home", "down")
        assert main(app).current is main(app).rows[1]

    drive(client, scenario, size=(80, 24))


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (120, 40), (200, 60)])
def test_every_view_fits(client: Client, size: tuple[int, int], tmp_path: Path) -> None:
    busy(client, 30)
    # A stop that waits: for a task that does not look.
    gate = tmp_path / "gate"
    client.spawn("mgmt-request", "attach", worker_bodies.wait_for_file, str(gate), tenant_id="deaf")
    until(lambda: client.statistics()["running"], lambda running: running == 31)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        stopping.start()
        await seen(pilot, lambda: "stop [tenant_id=deaf]" in said(app, "#stops"))
        assert size[0] < 80 or "waits for 1 task" in said(app, "#stops")
        for key, word in (
            ("1", "running"),
            ("2", "tenant-3"),
            ("3", "compaction"),
            ("4", "ready"),
            ("5", "[tenant"),
        ):
            await pilot.press(key)
            await seen(pilot, lambda: len(main(app).rows) > 0)
            shown = lines(main(app))
            assert size[1] < 24 or any(word in line for line in shown), shown
            assert max(map(len, shown)) <= size[0]
        gate.touch()
        await seen(pilot, lambda: not app.query_one("#stops").display)
        await seen(pilot, lambda: not stopping.is_alive())  # its report comes a moment later

    stopping = threading.Thread(target=client.shutdown_tasks, args=(None, "deaf"))
    try:
        drive(client, scenario, size=size)
    finally:
        gate.touch()
        stopping.join(20)


def test_a_task_shows_its_progress_and_its_stack(client: Client) -> None:
    client.spawn("compute-request", "compaction", bodies.half_way, "merging", tenant_id="acme")
    until(lambda: [task for task in client.tasks() if task.progress is not None])

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: re.search(r" 50% ━+ +merging", lines(main(app))[1]))
        await pilot.press("enter")
        await seen(pilot, lambda: "half_way" in str(app.screen.query_one("#text", Static).content))
        text = str(app.screen.query_one("#text", Static).content)
        assert text.startswith("running; ")
        assert "progress 5/10 merging" in text
        assert "quiesce.wait_for_shutdown()" in text
        await pilot.press("escape")
        assert len(app.screen_stack) == 1

    drive(client, scenario, size=(160, 30))


# --- keys


def test_tasks_can_be_filtered_and_sorted(client: Client) -> None:
    busy(client)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: len(main(app).rows) == 20)
        await pilot.press("slash")
        app.screen.query_one(Input).value = "color=red"
        await pilot.press("enter")
        assert "there is no field 'color'" in str(app.screen.query_one("#said", Static).content)
        app.screen.query_one(Input).value = "tenant=tenant-3 task"
        await pilot.press("enter")
        await seen(pilot, lambda: len(main(app).rows) == 2)
        assert "tenant=tenant-3 task  2 of 20" in said(app, "#tabs")
        await pilot.press("escape")
        await seen(pilot, lambda: len(main(app).rows) == 20)
        await pilot.press("k")  # the kind of the first one
        await seen(pilot, lambda: len(main(app).rows) == 10)
        await pilot.press("t")
        await seen(pilot, lambda: len(main(app).rows) == 2)
        await pilot.press("t", "k")
        await seen(pilot, lambda: len(main(app).rows) == 20)

        ids = [row.key for row in main(app).rows]
        assert ids == sorted(ids)  # type: ignore[type-var]  # ids of tasks
        await pilot.press("S")
        assert [row.key for row in main(app).rows] == ids[::-1]
        await pilot.press("s", "s", "s")  # by name
        names = [row.of.name for row in main(app).rows]
        assert names == sorted(names)

        await pilot.press("2")
        await seen(pilot, lambda: len(main(app).rows) == 10)
        chosen = main(app).current
        assert chosen is not None
        await pilot.press("enter")
        assert app.view == "tasks"
        assert {row.of.tenant_id for row in main(app).rows} == {chosen.of}

    drive(client, scenario)


def test_pause_holds_the_picture(client: Client) -> None:
    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: main(app).rows == [])
        await pilot.press("p")
        client.spawn("compute-request", "compaction", quiesce.wait_for_shutdown)
        before = app.snapshot
        await seen(pilot, lambda: client.statistics()["running"] == 1)
        await pilot.pause(0.3)
        assert app.snapshot is before
        assert "paused" in said(app, "#title")
        await pilot.press("p")
        await seen(pilot, lambda: len(main(app).rows) == 1)

    drive(client, scenario)


def test_a_stop_asks_first_and_says_what_it_would_stop(client: Client) -> None:
    busy(client)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: len(main(app).rows) == 20)
        await pilot.press("x")
        choices = app.screen.query_one(OptionList)
        texts = [str(choices.get_option_at_index(n).prompt) for n in range(choices.option_count)]
        first = main(app).rows[0].of
        assert texts[0] == f"task {first.id} alone (task-0)"
        assert texts[2] == "[tenant_id=tenant-0]: 2 tasks"
        await pilot.press("down", "down", "enter")
        await pilot.pause()
        text = "\n".join(str(each.content) for each in app.screen.query(Static))
        assert "stop [tenant_id=tenant-0]?" in text
        assert "as of now 2 tasks:" in text
        assert "task-0" in text
        assert "task-10" in text
        assert app.focused is app.screen.query_one("#no", Button)
        await pilot.press("enter")  # on "No"
        assert len(app.screen_stack) == 1
        assert app.going_on == []

        await pilot.press("x", "down", "down", "enter")
        await pilot.pause()
        app.screen.query_one("#reason", Input).value = "detach"
        await pilot.press("k", "y")
        await seen(pilot, lambda: len(main(app).rows) == 18)
        await seen(pilot, lambda: app.reports)
        assert app.reports[0][1].startswith("stopped 2 tasks of tenant_id=tenant-0 in ")
        assert "reason: detach" in app.reports[0][1]
        closed = await seen(pilot, lambda: [] if app.snapshot is None else app.snapshot.closed)
        assert [(each.tenant_id, each.holder) for each in closed] == [("tenant-0", "kept")]

        await pilot.press("5")
        await seen(pilot, lambda: any("ended" in line for line in lines(main(app))))
        await pilot.press("o", "enter")
        await pilot.pause()
        await pilot.press("y")
        await seen(pilot, lambda: app.snapshot is not None and not app.snapshot.closed)

        await pilot.press("1", "x", "enter")  # the first task alone
        await pilot.pause()
        app.screen.query_one("#reason", Input).value = "in the way"
        await pilot.press("y")
        await seen(pilot, lambda: len(main(app).rows) == 17)
        await seen(pilot, lambda: len(app.reports) == 2)
        assert "reason: in the way" in app.reports[1][1]

    drive(client, scenario)


def test_quitting_leaves_a_stop_that_goes_on(
    system: System, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    client.spawn("mgmt-request", "attach", worker_bodies.wait_for_file, str(gate), tenant_id="deaf")
    until(lambda: client.statistics()["running"], lambda running: running == 1)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: len(main(app).rows) == 1)
        await pilot.press("2", "x")
        await pilot.pause()
        await pilot.press("y")
        await seen(pilot, lambda: app.snapshot is not None and app.snapshot.stops)
        await pilot.press("q")

    app = drive(client, scenario)
    assert [str(target) for target in app.going_on] == ["[tenant_id=deaf]"]
    gate.touch()
    with system.client() as other:
        until(other.stops, lambda stops: not stops)


# --- a broker that goes away


@pytest.mark.slow
def test_a_broker_goes_away_and_comes_back(run_folder: Path) -> None:
    system = System(run_folder)
    with system.client() as client:
        until(lambda: len(workers_of(client, "background")), lambda count: count == 2)
        client.timeout = 0.5

        async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
            broker = client.statistics()["broker"]["pid"]
            os.kill(broker, signal.SIGSTOP)
            await seen(pilot, lambda: "no broker for" in said(app, "#title"))
            assert app.screen_stack[0].has_class("stale")
            assert lines(app.query_one("#runtimes", Grid))[1].startswith("compute-request")
            os.kill(broker, signal.SIGKILL)  # `up` starts another one
            await seen(pilot, lambda: app.trouble is None)
            await seen(pilot, lambda: "epoch 2" in said(app, "#title"))
            assert not app.screen_stack[0].has_class("stale")

            # Another system, with the same address.
            assert await asyncio.to_thread(system.stop) == 0
            await seen(pilot, lambda: app.trouble is not None)
            again = System(run_folder)
            try:
                await seen(pilot, lambda: app.trouble is None, 60)
                await seen(pilot, lambda: "epoch 3" in said(app, "#title"))
            finally:
                assert await asyncio.to_thread(again.stop) == 0

        try:
            drive(client, scenario)
        finally:
            system.stop()


# --- the parts


def test_one_snapshot_as_json(system: System, client: Client) -> None:
    busy(client)
    done = subprocess.run(
        [sys.executable, "-m", "quiesce", "top", "--json", "--tenant", "tenant-1"],
        env={**os.environ, "QUIESCE_ADDRESS": system.address},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {task["tenant_id"] for task in found["tasks"]} == {"tenant-1"}
    assert found["statistics"]["running"] == 20
    assert {each["tenant_id"] for each in found["statistics"]["tenants"]} == {
        f"tenant-{number}" for number in range(TENANTS)
    }
    assert len(found["workers"]) == 5
    assert (found["stops"], found["closed"], found["unlisted"]) == ([], [], 0)


def test_a_long_queue_is_not_listed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.cli.top.source.LISTED", 3)
    client.spawn_many("background", "compaction", bodies.half_way, ["x"] * 9)
    until(lambda: client.statistics()["running"], lambda running: running == 2)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: "queued are not listed" in said(app, "#tabs"))
        # Some of them are with a worker already.
        assert {row.of.state for row in main(app).rows} <= {"running", "assigned"}
        await pilot.press("1", "x")
        await pilot.pause()
        choices = app.screen.query_one(OptionList)
        prompt = str(choices.get_option_at_index(1).prompt)
        assert "and what of the" in prompt
        await pilot.press("escape")

    drive(client, scenario)


def test_rates_are_taken_over_some_seconds(client: Client) -> None:
    trend = Trend()
    trend.add(take(client))
    assert trend.rate().ended == 0
    handles = client.spawn_many("compute-request", "compaction", bodies.echo, range(50))
    assert [handle.result(20) for handle in handles] == list(range(50))
    snapshot = take(client)
    trend.add(snapshot)
    assert trend.rate().ended > 0
    assert trend.rate(("runtime", "compute-request")).spawned > 0
    assert trend.rate(("kind", "compute-request", "compaction")).ended > 0
    assert trend.rate(("runtime", "no such")).ended == 0
    assert list(trend.ended)[-1] > 0
    assert json.dumps(document(snapshot)["statistics"])


def test_columns_go_by_their_rank() -> None:
    wanted = [len(column.title) for column in TASKS]
    assert all(fit(TASKS, wanted, 300))
    narrow = fit(TASKS, wanted, 40)
    assert narrow[0] > 0
    assert narrow[TASKS.index(next(c for c in TASKS if c.title == "PID"))] == 0
    for width in range(1, 200):
        widths = [each for each in fit(TASKS, wanted, width) if each]
        assert len(widths) == 1 or sum(widths) + 2 * (len(widths) - 1) <= width
    # Ten tenants can be told from one another, and what is short takes no more than it needs.
    wanted = [4, 8, 24, 8, 9, 5, 15, 4, 6, 20, 6, 0]
    titles = (column.title for column in TASKS)
    given = dict(zip(titles, fit(TASKS, wanted, 78), strict=True))
    assert (given["NAME"], given["TENANT"], given["PROGRESS"]) == (8, 9, 9)
    assert given["KIND"] > 14
    assert fit(TASKS, [0] * len(TASKS), 80) == [0] * len(TASKS)


def test_filters_read_what_people_type() -> None:
    task = TaskInfo(
        id=quiesce.TaskId(7), attempt=1, kind="gc", name="Nightly", runtime="pool", tenant_id="acme"
    )
    for text in ("", "tenant=acme", "night", "kind=gc NIGHT", "state=queued", "runtime=pool 7"):
        assert filters.parse(text).matches(task), text
    for text in ("tenant=other", "timeline=x", "daily", "state=stopping", "pid=3"):
        assert not filters.parse(text).matches(task), text
    for text in ("colour=red", "tenant="):
        with pytest.raises(FilterError):
            filters.parse(text)
    wanted = filters.parse("tenant=acme")
    assert wanted.scope() == (None, "acme", None, None)
    assert filters.parse("acme").scope() is None
    assert str(wanted.toggled("kind", "gc")) == "tenant=acme kind=gc"
    assert not wanted.toggled("tenant", "acme")


def test_bars_and_lines() -> None:
    assert [bar(share, 4) for share in (0, 0.5, 0.6, 1, 2)] == [
        "    ",
        "━━  ",
        "━━╸ ",
        "━━━━",
        "━━━━",
    ]
    assert spark([0, 1, 2, 4], 3) == "▂▄█"
    assert spark([0, 0], 5) == "▁▁"


def test_a_stop_that_fails_is_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(client, 1)

    def too_late(*_: object, **__: object) -> None:
        raise ShutdownTimeoutError("it took too long", quiesce.ShutdownReport())

    monkeypatch.setattr(client, "shutdown_tasks", too_late)

    async def scenario(app: TopApp, pilot: "Pilot[None]") -> None:
        await seen(pilot, lambda: len(main(app).rows) == 1)
        await pilot.press("2", "x")
        await pilot.pause()
        await pilot.press("y")
        await seen(pilot, lambda: [each.message for each in app._notifications])
        assert [each.message for each in app._notifications] == ["it took too long"]
        assert app.going_on == []

    drive(client, scenario)
