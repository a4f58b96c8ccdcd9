"""The metrics endpoint of a real system: scraped as Prometheus does, and parsed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import quiesce
from quiesce.cli.children import Child
from quiesce.cli.config import BrokerConfig
from quiesce.cli.metrics import families
from quiesce.cli.metrics_process import MetricsProcess
from quiesce.cli.metrics_serve import Exporter
from quiesce.errors import ConfigurationError
from quiesce.testing import bodies
from system import System, running, until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with running(broker='metrics = "127.0.0.1:0"') as system:
        endpoint(system)
        yield system


def endpoint(system: System, number: int = 0) -> str:
    """Where it listens: the log says so."""
    found = until(
        lambda: re.findall(
            r" INFO quiesce.metrics quiesce metrics are at (http://127.*)$",
            system.text(),
            re.MULTILINE,
        ),
        lambda found: len(found) > number,
    )
    return str(found[number])


def scrape(url: str) -> Samples:
    """All samples, by name and labels. Names and types are checked by the parser."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type != "unknown", family.name
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, tuple(sorted(labels.items())))]


def test_a_scrape_says_what_happened(system: System) -> None:
    pool = {"runtime": "compute-request", "kind": "compaction"}
    with system.client() as client:
        for handle in client.spawn_many("compute-request", "compaction", bodies.echo, range(9)):
            handle.result(20)
        failing = client.spawn("compute-request", "compaction", bodies.fail)
        assert failing.exception(20) is not None
        client.spawn(
            "compute-request", "compaction", quiesce.wait_for_shutdown, tenant_id="secret-tenant"
        )
        until(lambda: client.statistics()["running"], lambda running: running == 1)
        url = endpoint(system)
        samples = scrape(url)
        assert value(samples, "quiesce_up") == 1
        assert value(samples, "quiesce_tasks", state="running", **pool) == 1
        assert value(samples, "quiesce_tasks_spawned_total", **pool) == 11
        assert value(samples, "quiesce_tasks_ended_total", outcome="completed", **pool) == 9
        assert value(samples, "quiesce_tasks_ended_total", outcome="failed", **pool) == 1
        assert value(samples, "quiesce_workers", runtime="background", state="ready") == 2
        assert value(samples, "quiesce_broker_restarts_total") == 0
        for name in ("task_queue", "task_run"):
            assert value(samples, f"quiesce_{name}_seconds_count", **pool) == 10
            assert value(samples, f"quiesce_{name}_seconds_bucket", le="+Inf", **pool) == 10
            assert 0 < value(samples, f"quiesce_{name}_seconds_sum", **pool) < 100
        assert value(samples, "quiesce_journal_commit_seconds_count") > 0
        assert value(samples, "quiesce_journal_facts_total") > 11
        assert not [key for key in samples if "secret-tenant" in str(key)]

        until(
            lambda: scrape(url),
            lambda found: (
                value(found, "quiesce_worker_memory_max_bytes", runtime=pool["runtime"])
                > 10_000_000
            ),
        )
        assert value(scrape(url), "quiesce_runtime_cpu_seconds_total", runtime=pool["runtime"]) > 0

        client.shutdown_tasks(tenant_id="secret-tenant")
        samples = until(
            lambda: scrape(url),
            lambda found: value(found, "quiesce_tasks", state="running", **pool) == 0,
        )
        stages = ("stop", "stop_delivery", "stop_observation", "stop_end")
        assert [value(samples, f"quiesce_{name}_seconds_count", **pool) for name in stages] == [
            1
        ] * 4
        total, *parts = (value(samples, f"quiesce_{name}_seconds_sum", **pool) for name in stages)
        assert total == pytest.approx(sum(parts), abs=1e-6)


def test_checks_are_sampled(system: System) -> None:
    pool = {"runtime": "compute-request", "kind": "compaction"}
    with system.client() as client:
        client.spawn("compute-request", "compaction", quiesce.wait_for_shutdown)
        url = endpoint(system)
        found = until(
            lambda: scrape(url),
            lambda found: ("quiesce_check_age_seconds_count", tuple(sorted(pool.items()))) in found,
        )
        assert value(found, "quiesce_check_age_seconds_bucket", le="+Inf", **pool) >= 1
        assert value(found, "quiesce_check_age_max_seconds", **pool) >= 0
        client.shutdown_tasks()


def test_it_outlives_the_broker_and_counts_its_restarts(system: System) -> None:
    labels = {"runtime": "walreceiver", "kind": "garbage-collector", "outcome": "completed"}
    with system.client() as client:
        client.spawn("walreceiver", "garbage-collector", bodies.echo, 1).result(20)
        url = endpoint(system)
        assert value(scrape(url), "quiesce_up") == 1
        pid = client.broker_info().pid
        os.kill(pid, signal.SIGKILL)
        found = until(
            lambda: scrape(url),
            lambda found: (
                ("quiesce_broker_restarts_total", ()) in found
                and value(found, "quiesce_broker_restarts_total") == 1
            ),
        )
        # What the registry counts outlives its broker.
        assert value(found, "quiesce_tasks_ended_total", **labels) == 1
        until(client.workers, lambda workers: {w.state for w in workers} == {"ready"})


def test_a_dead_endpoint_is_started_again_and_disturbs_nobody(system: System) -> None:
    with system.client() as client:
        url = endpoint(system)
        assert value(scrape(url), "quiesce_up") == 1
        (pid,) = (
            int(each)
            for each in Path(f"/proc/{system.process.pid}/task/{system.process.pid}/children")
            .read_text()
            .split()
            if b"metrics" in Path(f"/proc/{each}/cmdline").read_bytes()
        )
        os.kill(pid, signal.SIGKILL)
        again = endpoint(system, 1)
        assert value(scrape(again), "quiesce_up") == 1
        assert client.spawn("compute-request", "compaction", bodies.echo, 7).result(20) == 7
    assert "the metrics ended (killed by SIGKILL); starting them again in 1 s" in system.text()


def test_without_a_broker_it_says_so(run_folder: Path) -> None:
    exporter = Exporter(f"ipc://{run_folder}/none")
    (up, _) = exporter.collect()
    assert [sample.value for sample in up.samples] == [0]
    assert exporter.collect() is exporter.collect()  # a second is not over
    exporter.close()


def test_the_broker_never_loads_it() -> None:
    """Nor do supervisors and workers: it is a process of its own."""
    code = (
        "import sys, quiesce.broker.serve, quiesce.workers.supervisor, quiesce.workers.worker;"
        "sys.exit(', '.join({'prometheus_client', 'quiesce.cli', 'rich', 'textual', 'structlog'} & "
        "sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_it_can_not_listen(run_folder: Path) -> None:
    """Everything else goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        system = System(run_folder, broker=f'metrics = "127.0.0.1:{port}"')
        try:
            until(system.text, lambda text: "starting them again in 2 s" in text)
            with system.client() as client:
                assert client.spawn("mgmt-request", "attach", bodies.echo, 7).result(20) == 7
        finally:
            assert system.stop() == 0
    text = system.text()
    said = (
        f"the metrics can't be served at 127.0.0.1:{port}: Address already in use. Choose another"
    )
    assert said in text
    assert "the metrics ended (exit status 4)" in text


def test_prometheus_client_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        assert name == "prometheus_client"

    monkeypatch.setattr("quiesce.cli.metrics_process.find_spec", nothing)
    with pytest.raises(ConfigurationError, match=r"pip install 'quiesce\[metrics\]'"):
        MetricsProcess(BrokerConfig(address="ipc:///x", metrics="127.0.0.1:1"))


def test_restarts_are_paced() -> None:
    process = MetricsProcess(BrokerConfig(address="ipc:///x", metrics="[::1]:1"))
    started: list[str] = []

    def start(settings: str) -> Child:
        started.append(settings)
        return None  # type: ignore[return-value]  # nobody looks at it

    now = 100.0
    pauses = []
    for _ in range(9):
        process.start_if_due(now, start)
        process.start_if_due(now, start)  # one at a time
        process.ended(1, now)
        pauses.append((process.start_at or 0) - now)
        now += pauses[-1]
    assert len(started) == 9
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert json.loads(started[0]) == {
        "address": "ipc:///x",
        "host": "::1",
        "port": 1,
        "log_format": "console",
        "log_file": "",
    }
    process.start_if_due(now, start)
    process.ended(1, now + 1000)
    assert process.start_at == now + 1001


def test_buckets_are_cumulative() -> None:
    rows = [{"runtime": "r", "kind": "k", "counts": [1, 0, 2], "sum": 3.5}]
    empty: dict[str, Any] = {"bounds": [1.0], "rows": []}
    names = ("queue", "run", "stop", "stop_delivery", "stop_observation", "stop_end", "check_age")
    statistics = {
        "epoch": 1,
        "started_at": 0.0,
        "state": "running",
        "sessions": 0,
        "stops": 0,
        "closed": 0,
        "runtimes": {},
        "broker": {
            "cpu_seconds": 0,
            "memory_bytes": 0,
            "peers": 0,
            "malformed_messages": 0,
            "undeliverable_messages": 0,
        },
        "journal": {},
        "times": {**dict.fromkeys(names, empty), "run": {"bounds": [0.5, 2.0], "rows": rows}},
    }
    (run,) = (
        each for each in families(statistics, [], 0.0) if each.name == "quiesce_task_run_seconds"
    )
    shown = [(sample.labels.get("le"), sample.value) for sample in run.samples]
    assert shown == [("0.5", 1), ("2.0", 1), ("+Inf", 3), (None, 3), (None, 3.5)]
