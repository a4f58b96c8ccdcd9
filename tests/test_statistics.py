"""What `statistics()` and `events()` say: all that somebody who shows the system needs to know."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quiesce
from quiesce import Client, Event
from quiesce.broker import news
from quiesce.broker.histogram import Histogram
from quiesce.broker.tally import MEASURES, Tally
from quiesce.protocol import to_client
from quiesce.registry import events
from quiesce.registry.ids import TaskId
from quiesce.registry.machine import Registry
from quiesce.registry.records import Task
from quiesce.registry.states import State
from quiesce.registry.statistics import statistics
from quiesce.testing import Witness, bodies
from quiesce.testing.fuzz import Ears
from registry_helpers import Desk, configuration, spawn_row
from system import System, until


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client
        client.shutdown_tasks(timeout=30)


# --- statistics


def test_counts_by_runtime_kind_tenant_and_outcome(client: Client) -> None:
    for handle in client.spawn_many("walreceiver", "compaction", bodies.echo, range(4)):
        handle.result(20)
    assert client.spawn("walreceiver", "attach", bodies.fail).exception(20) is not None
    for number in range(6):  # two at a time run
        client.spawn(
            "background", "garbage-collector", quiesce.wait_for_shutdown, tenant_id=f"t{number % 2}"
        )
    client.spawn("background", "garbage-collector", quiesce.wait_for_shutdown)
    found = until(client.statistics, lambda found: found["running"] == 2 and found["tasks"] == 7)

    walreceiver = found["runtimes"]["walreceiver"]
    assert walreceiver["ended"] == {"completed": 4, "failed": 1}
    assert walreceiver["spawned"] == 5
    assert walreceiver["kinds"]["compaction"]["ended"] == {"completed": 4}
    assert walreceiver["kinds"]["attach"]["ended"] == {"failed": 1}
    background = found["runtimes"]["background"]
    assert (background["processes"], background["supervisors"], background["slots"]) == (2, 1, 1)
    gc = background["kinds"]["garbage-collector"]
    assert gc["queued"] + gc["held"] == 7
    assert (gc["running"], gc["spawned"], gc["ended"]) == (2, 7, {})
    assert gc["oldest_check"] >= 0
    tenants = {each["tenant_id"]: each["queued"] + each["held"] for each in found["tenants"]}
    assert tenants == {"t0": 3, "t1": 3, None: 1}
    assert found["tenants_total"] == 3
    assert found["spawned_total"] == found["ended_total"] + 7
    assert json.loads(json.dumps(found)) == found


def test_stops_and_times(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    witness = Witness(tmp_path / "witness", slots=1)
    client.spawn(
        "mgmt-request",
        "attach",
        bodies.ignore_until_file,
        str(gate),
        witness.path,
        0,
        tenant_id="x",
    )
    until(lambda: client.statistics()["running"] == 1)
    stop = threading.Thread(
        target=client.shutdown_tasks, kwargs={"tenant_id": "x", "reason": "why"}
    )
    stop.start()
    found = until(client.statistics, lambda found: found["stops"] == 1)
    (row,) = found["open_stops"]
    assert (row["scope"], row["reason"], row["remaining"]) == ("tenant_id=x", "why", 1)
    assert row["requested_at"] <= found["at"]
    assert found["closed"] == 1
    assert found["runtimes"]["mgmt-request"]["kinds"]["attach"]["stopping"] == 1
    # Else it might end before the request has reached it.
    until(lambda: client.statistics()["times"]["stop_delivery"]["rows"])
    gate.touch()
    stop.join(20)
    witness.close()

    times = client.statistics()["times"]
    assert times.keys() == MEASURES.keys()
    for name in ("queue", "run", "stop", "stop_delivery"):
        bounds = times[name]["bounds"]
        (counted,) = [
            each
            for each in times[name]["rows"]
            if (each["runtime"], each["kind"]) == ("mgmt-request", "attach")
        ]
        assert len(counted["counts"]) == len(bounds) + 1
        assert sum(counted["counts"]) == 1
        assert counted["sum"] >= 0
    journal = client.statistics()["journal"]
    assert sum(journal["commit"]["counts"]) > 0
    assert journal["facts"] > 0


def test_many_tenants_are_not_all_named() -> None:
    registry = Registry(**configuration())
    for number in range(1, 151):
        registry.state.tasks[TaskId(number)] = task = Task(TaskId(number), spawn_row(number), 0.0)
        for _ in range(2 if number == 77 else 1):
            registry.state.queues["pool"].push(
                TaskId(number + (1000 if _ else 0)), f"tenant-{number}", task.spawn.kind
            )
    found = statistics(registry.state, 0.0)
    assert (len(found["tenants"]), found["tenants_total"]) == (100, 150)
    assert found["tenants"][0]["tenant_id"] == "tenant-77"
    assert found["runtimes"]["pool"]["kinds"]["gc"]["queued"] == 151


# --- the tally


def test_looks_are_sampled_from_what_supervisors_say() -> None:
    registry = Registry(**configuration())
    task = registry.state.tasks[TaskId(1)] = Task(TaskId(1), spawn_row(), 0.0)
    task.state, task.started_at = State.RUNNING, 90.0
    tally = Tally(registry.state)
    looks: list[tuple[int, int, float | None]] = [
        (1, 1, 0.5),
        (1, 1, None),
        (1, 2, 9.0),
        (7, 1, 9.0),
    ]
    tally.on_usage(events.UsageSaid(b"s", 0.0, 0, 0.0, [(1, 2, 0.0, 0, looks)]), 100.0)
    (row,) = tally.plain()["check_age"]["rows"]
    # Half a second; and ten since it began, without a look.
    assert (sum(row["counts"]), row["sum"], row["kind"]) == (2, 10.5, "gc")


def test_ends_are_measured_and_told_of_without_a_history() -> None:
    desk = Desk(history=0)
    state, ears = desk.registry.state, Ears()
    tally = Tally(state)
    reader = ears.introduce(("session", b"reader"), "control", b"route")
    ears.subscribers[reader.key] = reader
    desk.session()
    worker = desk.worker()
    acme = {"tenant_id": "acme"}
    desk.running(worker, acme, acme, {"tenant_id": "globex"})
    desk.tick = 5.0
    desk.stop(tenant_id="acme", reason="why")
    tally.take(desk.facts)
    desk.obey(worker, 1, 2)
    tally.take(desk.facts)
    news.tell(ears, desk.facts, desk.wall, state)

    times = tally.plain()
    assert [(row["runtime"], row["kind"]) for row in times["run"]["rows"]] == [("pool", "gc")]
    for measure in ("queue", "run", "stop"):
        assert [sum(row["counts"]) for row in times[measure]["rows"]] == [2], measure
    told = [said for _, said in ears.heard if isinstance(said, to_client.Event)]
    ends = [event for event in told if event.type == "task-ended"]
    assert [event.data["tenant_id"] for event in ends] == ["acme", "acme"]
    (stopped,) = [event for event in told if event.type == "stop-ended"]
    assert stopped.data["outcomes"] == {"cancelled": 2}
    desk.spawn()
    assert (state.ended_now, state.stops_ended_now) == ({}, {})


def test_buckets_hold_what_is_at_most_their_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (-1.0, 1.0, 1.5, 2.0, 3.0):
        histogram.add(seconds)
    assert histogram.plain() == {"counts": [2, 2, 1], "sum": 7.5}


# --- events


def test_every_event_says_whom_it_is_about(client: Client) -> None:
    with client.events() as stream:
        handle = client.spawn(
            "walreceiver",
            "compaction",
            quiesce.wait_for_shutdown,
            tenant_id="acme",
            timeline_id="main",
            name="n",
        )
        until(lambda: client.task(handle.id).state == "running")
        client.shutdown_tasks(tenant_id="acme", reason="why")
        seen: list[Event] = []
        for event in stream:
            seen.append(event)
            if event.type == "stop-ended":
                break
    of_task = [event for event in seen if event.task_id == handle.id]
    # The delivery is told again where the look, which is told by an age too, seems to have been before it.
    assert list(dict.fromkeys(event.type for event in of_task)) == [
        "task-registered",
        "task-assigned",
        "task-began",
        "task-asked-to-stop",
        "stop-delivered",
        "stop-observed",
        "task-ended",
    ]
    labels = {
        "kind": "compaction",
        "name": "n",
        "runtime": "walreceiver",
        "tenant_id": "acme",
        "timeline_id": "main",
        "attempt": 1,
    }
    for event in of_task:
        assert labels.items() <= event.data.items(), event
    ended: dict[str, Any] = of_task[-1].data
    assert (ended["outcome"], ended["evidence"]) == ("completed", "RETURNED")
    (opened,) = [event.data for event in seen if event.type == "stop-opened"]
    assert (opened["scope"], opened["reason"], opened["matched"]) == ("tenant_id=acme", "why", 1)
    stopped = seen[-1].data
    assert stopped["scope"] == "tenant_id=acme"
    assert stopped["outcomes"] == {"completed": 1}
    assert (stopped["timed_out"], stopped["remaining"]) == (False, 0)
    assert stopped["by"].startswith("process ")


def test_events_of_workers_say_their_runtime(client: Client) -> None:
    with client.events() as stream:
        crash = client.spawn("background", "compaction", bodies.leave_by, "sigkill")
        assert crash.exception(30) is not None
        seen = {}
        for event in stream:
            if event.type.startswith("worker-"):
                seen[event.type] = event.data
            if "worker-ready" in seen:
                break
    assert seen["worker-ended"]["runtime"] == "background"
    assert seen["worker-ended"]["status"] == -9
    assert seen["worker-started"]["runtime"] == "background"
    assert seen["worker-ready"]["pid"] == seen["worker-started"]["pid"]
