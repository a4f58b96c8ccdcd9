"""What the metrics endpoint says: `Client.statistics()` and `Client.workers()` as families of Prometheus.

Labels are names of the configuration (runtimes, kinds) and words of ours (outcomes, states): never a tenant or a
task, so that there are only so many series. Needs prometheus-client: the extra `metrics`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from quiesce.values import WorkerInfo

#: The histograms of `statistics()["times"]`: their names here, and what they say.
_TIMES: Final = {
    "queue": ("task_queue", "From the spawn of a task to the beginning of its first attempt"),
    "run": ("task_run", "From the beginning of the last attempt of a task to its end"),
    "stop": ("stop", "From the request to stop a task to its end"),
    "stop_delivery": ("stop_delivery", "From the request to stop to its arrival at the worker"),
    "stop_observation": ("stop_observation", "From the arrival of the request to the task's look"),
    "stop_end": ("stop_end", "From the task's look to its end"),
    "check_age": ("check_age", "How long ago running tasks had last looked, sampled"),
}
_POOL: Final = ("runtime", "kind")


def families(
    statistics: Mapping[str, Any] | None, workers: Iterable[WorkerInfo], took: float
) -> Iterator[Metric]:
    """Everything, `took` seconds after it was asked for; without `statistics`: that no broker answers."""
    yield _gauge("up", "Whether the broker answers", 0 if statistics is None else 1)
    yield _gauge("scrape_seconds", "How long the broker took to answer", took)
    if statistics is None:
        return
    yield from _broker(statistics)
    yield from _tasks(statistics["runtimes"])
    yield from _pools(statistics["runtimes"], list(workers))
    for measure, (name, text) in _TIMES.items():
        found = statistics["times"][measure]
        family = HistogramMetricFamily(f"quiesce_{name}_seconds", text, labels=_POOL)
        for row in found["rows"]:
            labels = [row["runtime"], row["kind"]]
            family.add_metric(labels, _buckets(found["bounds"], row["counts"]), row["sum"])
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quiesce_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"quiesce_{name}", text, value=value)


def _buckets(bounds: list[float], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    buckets, total = [], 0
    for bound, count in zip([*bounds, math.inf], counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == math.inf else repr(float(bound)), float(total)))
    return buckets


def _broker(statistics: Mapping[str, Any]) -> Iterator[Metric]:
    broker, journal = statistics["broker"], statistics["journal"]
    stopping = statistics["state"] == "stopping"
    yield _counter(
        "broker_restarts", "Brokers on this state, after the first", statistics["epoch"] - 1
    )
    yield _gauge("broker_start_time_seconds", "When this broker started", statistics["started_at"])
    yield _gauge("stopping", "Whether the whole system is being stopped", int(stopping))
    yield _counter("broker_cpu_seconds", "CPU time of this broker", broker["cpu_seconds"])
    yield _gauge("broker_memory_bytes", "Resident memory of the broker", broker["memory_bytes"])
    yield _gauge("broker_peers", "Clients, workers and supervisors", broker["peers"])
    yield _gauge("broker_sessions", "Sessions of clients", statistics["sessions"])
    text = "Messages that were dropped because they made no sense"
    yield _counter("broker_malformed_messages", text, broker["malformed_messages"])
    text = "Messages for peers that could not be reached"
    yield _counter("broker_undeliverable_messages", text, broker["undeliverable_messages"])
    yield _gauge("stops_in_progress", "Stops that wait for tasks to end", statistics["stops"])
    yield _gauge("closed_scopes", "Scopes that are closed", statistics["closed"])
    if not journal:
        return
    commit = journal["commit"]
    family = HistogramMetricFamily("quiesce_journal_commit_seconds", "One commit of the journal")
    family.add_metric([], _buckets(commit["bounds"], commit["counts"]), commit["sum"])
    yield family
    yield _counter("journal_facts", "Facts that were written down", journal["facts"])
    yield _counter("journal_snapshots", "Snapshots of the registry", journal["snapshots"])
    yield _gauge("journal_tail_facts", "Facts since the last snapshot", journal["tail_facts"])
    yield _gauge("journal_tail_bytes", "Their size", journal["tail_bytes"])
    yield _gauge("journal_roomy", "Whether the disk has room for new tasks", int(journal["roomy"]))


def _tasks(runtimes: Mapping[str, Any]) -> Iterator[Metric]:
    now = GaugeMetricFamily("quiesce_tasks", "Live tasks", labels=(*_POOL, "state"))
    stopping = GaugeMetricFamily(
        "quiesce_tasks_stopping", "Tasks with a worker that are asked to stop", labels=_POOL
    )
    oldest = GaugeMetricFamily(
        "quiesce_check_age_max_seconds",
        "How long the running task that has not looked for longest has not looked",
        labels=_POOL,
    )
    spawned = CounterMetricFamily(
        "quiesce_tasks_spawned", "Tasks that were registered", labels=_POOL
    )
    ended = CounterMetricFamily(
        "quiesce_tasks_ended", "Tasks that have ended", labels=(*_POOL, "outcome")
    )
    for runtime, of in runtimes.items():
        for kind, row in of["kinds"].items():
            assigned = row["held"] - row["running"]
            for state, count in (
                ("queued", row["queued"]),
                ("assigned", assigned),
                ("running", row["running"]),
            ):
                now.add_metric([runtime, kind, state], count)
            stopping.add_metric([runtime, kind], row["stopping"])
            oldest.add_metric([runtime, kind], row["oldest_check"])
            spawned.add_metric([runtime, kind], row["spawned"])
            for outcome, count in row["ended"].items():
                ended.add_metric([runtime, kind, outcome], count)
    yield from (now, stopping, oldest, spawned, ended)


def _pools(runtimes: Mapping[str, Any], workers: list[WorkerInfo]) -> Iterator[Metric]:
    count = GaugeMetricFamily("quiesce_workers", "Worker processes", labels=("runtime", "state"))
    slots = GaugeMetricFamily("quiesce_slots", "Tasks at once in one worker", labels=("runtime",))
    cpu = CounterMetricFamily(
        "quiesce_runtime_cpu_seconds", "CPU time of a pool: all its processes", labels=("runtime",)
    )
    memory = GaugeMetricFamily(
        "quiesce_runtime_memory_bytes", "Resident memory of a pool", labels=("runtime",)
    )
    largest = GaugeMetricFamily(
        "quiesce_worker_memory_max_bytes", "Of its largest worker", labels=("runtime",)
    )
    for runtime, of in runtimes.items():
        own = [worker for worker in workers if worker.runtime == runtime]
        for state in ("starting", "ready", "exiting"):
            count.add_metric([runtime, state], sum(worker.state == state for worker in own))
        slots.add_metric([runtime], of["slots"])
        cpu.add_metric([runtime], of["cpu_seconds"])
        memory.add_metric([runtime], of["memory_bytes"])
        largest.add_metric([runtime], max((worker.memory_bytes for worker in own), default=0))
    yield from (count, slots, cpu, memory, largest)
