"""Tasks of the background runtime that concern whole tenants: attach, load, sizes, metrics."""

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import quiesce
from quiesce import TaskKind
from quiesce.client import Client, TaskHandle
from quiesce.errors import QuiesceError
from quiesce.examples.pageserver import remote
from quiesce.examples.pageserver.layers import write_atomic
from quiesce.examples.pageserver.names import BACKGROUND
from quiesce.examples.pageserver.reader import TimelineReader
from quiesce.examples.pageserver.tasks_layers import read_page
from quiesce.examples.pageserver.tenant_paths import TenantFile, Work
from quiesce.examples.pageserver.timeline import Timeline


def attach_tenant(work: str, tenant: str) -> dict[str, int]:
    """attach: make a tenant's folder, from its remote copy where there is one, and load it.

    The only task that makes folders of a tenant. Returns what `load_tenant` does.
    """
    place = Work(Path(work))
    plan = place.read_plan(tenant)
    place.tenant(tenant).mkdir(exist_ok=True)
    for done, timeline in enumerate(plan.timelines, start=1):
        quiesce.checkpoint()
        copies = place.remote_timeline(tenant, timeline)
        Timeline(place.timeline(tenant, timeline)).create(remote.index(copies))
        quiesce.report_progress(done, len(plan.timelines), "timelines")
    place.write_tenant(plan)
    load = quiesce.current_client().spawn(
        BACKGROUND, TaskKind.INITIAL_LOAD, load_tenant, work, tenant, tenant_id=tenant
    )
    return load.result()


def load_tenant(work: str, tenant: str) -> dict[str, int]:
    """initial-load: make what is on disk consistent, and the tenant active.

    Returns the number of timelines, of leftover files removed and of bytes of torn log cut.
    """
    place = Work(Path(work))
    description = place.read_tenant(tenant)
    leftovers = cut = 0
    for timeline in description.timelines:
        quiesce.checkpoint()
        area = Timeline(place.timeline(tenant, timeline))
        leftovers += area.remove_leftovers()
        with area.open_log() as log:
            cut += log.cut
    place.write_tenant(replace(description, active=True))
    return {"timelines": len(description.timelines), "leftovers": leftovers, "cut": cut}


def want_logical_size(client: Client, work: str, tenant: str, timeline: str) -> TaskHandle[int]:
    """Ask for a timeline to be measured."""
    return client.spawn(
        BACKGROUND,
        TaskKind.INITIAL_LOGICAL_SIZE_CALCULATION,
        calculate_logical_size,
        work,
        tenant,
        timeline,
        tenant_id=tenant,
        timeline_id=timeline,
        unique_key="logical-size",
    )


def calculate_logical_size(work: str, tenant: str, timeline: str) -> int:
    """initial-logical-size-calculation: add up the pages of a timeline's newest version."""
    place = Work(Path(work))
    area = Timeline(place.timeline(tenant, timeline))
    settings = place.read_tenant(tenant).settings
    size = 0
    with TimelineReader(area, settings.page_size) as reader:
        version = max(reader.available())
        pages = reader.page_count(version)
        for page in range(pages):
            quiesce.checkpoint()
            image, _ = read_page(reader, version, page, work, tenant, timeline)
            size += len(image)
            quiesce.report_progress(page + 1, pages, "pages")
    write_atomic(area.size_file, json.dumps({"version": version, "size": size}).encode())
    return size


def logical_sizes(place: Work, description: TenantFile) -> dict[str, int]:
    """Return {timeline: size} of those that have been measured."""
    sizes: dict[str, int] = {}
    for timeline in description.timelines:
        with contextlib.suppress(FileNotFoundError):
            content = Timeline(place.timeline(description.tenant, timeline)).size_file.read_bytes()
            sizes[timeline] = json.loads(content)["size"]
    return sizes


def calculate_synthetic_size(work: str, tenant: str) -> int | None:
    """calculate-synthetic-size: what a tenant's data and its kept history come to.

    None if it is gone.
    """
    place = Work(Path(work))
    try:
        description = place.read_tenant(tenant)
        total = sum(logical_sizes(place, description).values())
        for timeline in description.timelines:
            quiesce.checkpoint()
            manifest = Timeline(place.timeline(tenant, timeline)).manifest()
            total += sum(layer.size for layer in manifest.layers)
    except FileNotFoundError:
        return None
    return total


class _Gauge:
    """What the metrics of one tenant are read from; the readers go on where they were."""

    def __init__(self, place: Work, tenant: str) -> None:
        self._place = place
        self._description = place.read_tenant(tenant)
        self._areas = {t: Timeline(place.timeline(tenant, t)) for t in self._description.timelines}
        self._readers = {
            timeline: TimelineReader(area, self._description.settings.page_size)
            for timeline, area in self._areas.items()
        }
        self._synthetic: TaskHandle[int | None] | None = None
        self._synthetic_size: int | None = None

    def read(self) -> dict[str, Any]:
        """Return the tenant's metrics. Raises FileNotFoundError if it is gone."""
        last = self._description.settings.versions
        newest: dict[str, int] = {}
        found = dict.fromkeys(("layers", "not_local", "layer_bytes", "collected_versions"), 0)
        for timeline, reader in self._readers.items():
            reader.refresh()
            newest[timeline] = max(reader.available(), default=0)
            manifest = self._areas[timeline].manifest()
            found["layers"] += len(manifest.layers)
            found["layer_bytes"] += sum(layer.size for layer in manifest.layers)
            found["not_local"] += len(self._areas[timeline].missing())
            found["collected_versions"] += manifest.collected_versions
        return {
            "timelines": len(newest),
            "versions": sum(newest.values()),
            "versions_expected": last * len(newest),
            "complete": sum(version == last for version in newest.values()),
            "measured": len(logical_sizes(self._place, self._description)),
            "synthetic_size": self._synthetic_size,
            **found,
        }

    def close(self) -> None:
        """Let go of the tenant's files."""
        for reader in self._readers.values():
            reader.close()

    def ask_for_synthetic_size(self, work: str) -> None:
        """Take the answer to the last wish, and make the next."""
        if self._synthetic is not None:
            if not self._synthetic.done():
                return
            # Refused, stopped or crashed: there is a next time, unless the tenant is gone.
            with contextlib.suppress(QuiesceError):
                self._synthetic_size = self._synthetic.result()
        tenant = self._description.tenant
        self._synthetic = quiesce.current_client().spawn(
            BACKGROUND,
            TaskKind.CALCULATE_SYNTHETIC_SIZE,
            calculate_synthetic_size,
            work,
            tenant,
            tenant_id=tenant,
            unique_key="synthetic-size",
        )


def collect_metrics(work: str, period: float = 0.5) -> None:
    """metrics-collection: write the metrics of all tenants down, again and again.

    Of no tenant itself.
    """
    place = Work(Path(work))
    gauges: dict[str, _Gauge] = {}
    turn = 0
    while not quiesce.wait_for_shutdown(period):
        turn += 1
        document: dict[str, Any] = {"at": time.time(), "turn": turn, "tenants": {}}
        for tenant in place.attached():
            # The tenant may be detached at any moment: this task opens what is there, and makes
            # nothing.
            try:
                if tenant not in gauges:
                    gauges[tenant] = _Gauge(place, tenant)
                document["tenants"][tenant] = gauges[tenant].read()
            except FileNotFoundError:
                continue
            if turn % 4 == 1:
                gauges[tenant].ask_for_synthetic_size(work)
        for gone in gauges.keys() - document["tenants"].keys():
            gauges.pop(gone).close()
        write_atomic(place.metrics_file, json.dumps(document).encode())
