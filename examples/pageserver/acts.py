"""Acts of the demo: start, attach, detach. Each leaves in the summary what it found."""

import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from quiesce import TaskKind
from quiesce.client import TaskHandle
from quiesce.examples.pageserver.names import BACKGROUND, COMPUTE, MGMT, WALRECEIVER
from quiesce.examples.pageserver.stage import Stage
from quiesce.examples.pageserver.tasks_compute import listen_for_pages
from quiesce.examples.pageserver.tasks_layers import (
    collect_garbage,
    compact_tenant,
    want_flush,
    want_upload,
)
from quiesce.examples.pageserver.tasks_mgmt import serve_http
from quiesce.examples.pageserver.tasks_tenants import attach_tenant, collect_metrics
from quiesce.examples.pageserver.tasks_walreceiver import manage_receivers
from quiesce.examples.pageserver.wire import Status
from quiesce.values import ShutdownReport, TaskInfo

_WATCH_SECONDS = 3.0


def start_services(stage: Stage) -> None:
    """Start what belongs to no tenant: the two listeners and the metrics."""
    stage.phase("starting the listeners")
    for runtime, kind, body in (
        (COMPUTE, TaskKind.LIBPQ_ENDPOINT_LISTENER, listen_for_pages),
        (MGMT, TaskKind.HTTP_ENDPOINT_LISTENER, serve_http),
        (BACKGROUND, TaskKind.METRICS_COLLECTION, collect_metrics),
    ):
        spawn = partial(stage.client.spawn, runtime, kind, body, stage.root)
        stage.long_tasks.keep(kind, None, spawn)
    stage.wait_until("page service listens", stage.work.pages_socket.exists, 20)
    stage.wait_until("http endpoint listens", stage.work.http_port_file.exists, 20)


def attach_tenants(stage: Stage) -> None:
    """Attach and load all tenants; each begins to receive as soon as it is loaded."""
    stage.phase("attaching and loading all tenants")
    attaching = {
        tenant: stage.client.spawn(
            BACKGROUND, TaskKind.ATTACH, attach_tenant, stage.root, tenant, tenant_id=tenant
        )
        for tenant in stage.plan.tenants
    }
    loaded = {"timelines": 0, "leftovers": 0, "cut": 0}

    def all_attached() -> bool:
        for tenant, attach in list(attaching.items()):
            if attach.done():
                for what, count in attach.result(10).items():
                    loaded[what] += count
                del attaching[tenant]
                _start_tenant(stage, tenant)
        return not attaching

    stage.wait_until("all tenants are attached", all_attached, 60, lambda: list(attaching))
    stage.check(
        loaded["timelines"] == len(stage.plan.files),
        f"{loaded['timelines']} timelines were loaded of {len(stage.plan.files)}",
    )
    stage.summary["attached"] = {"tenants": len(stage.work.attached()), **loaded}


def _start_tenant(stage: Stage, tenant: str) -> None:
    for runtime, kind, body in (
        (WALRECEIVER, TaskKind.WAL_RECEIVER_MANAGER, manage_receivers),
        (BACKGROUND, TaskKind.COMPACTION, compact_tenant),
        (BACKGROUND, TaskKind.GARBAGE_COLLECTOR, collect_garbage),
    ):
        spawn = partial(
            stage.client.spawn, runtime, kind, body, stage.root, tenant, tenant_id=tenant
        )
        stage.long_tasks.keep(kind, tenant, spawn)


def detach_busy_tenant(stage: Stage) -> None:
    """Detach the tenant with most tasks under load, remove its files, see that none comes back."""
    live = Counter(task.tenant_id for task in stage.client.tasks() if task.tenant_id is not None)
    candidates = [t for t in stage.plan.tenants if t not in stage.detached]
    tenant = max(candidates, key=lambda name: (live[name], name))
    stage.phase(f"detaching {tenant} under load")
    stage.load.add_for(tenant)
    served = stage.load.tally.pages_of(tenant)
    stage.wait_until(
        f"pages of {tenant} are being served",
        lambda: (
            stage.load.tally.pages_of(tenant) >= served + 20
            and bool(stage.client.tasks(kind=TaskKind.PAGE_REQUEST_HANDLER, tenant_id=tenant))
        ),
        20,
    )
    folder = stage.work.tenant(tenant)
    before = stage.client.tasks(tenant_id=tenant)
    # The application's part: it must not start again what it has stopped.
    stage.long_tasks.let_go(tenant=tenant)
    stage.detached.add(tenant)
    clock = time.monotonic()
    with stage.client.stopped(tenant_id=tenant, reason="detach") as report:
        took = time.monotonic() - clock
        stage.view.say(str(report), "cyan")
        _check_report(stage, tenant, report, before)
        still = _files(folder)
        time.sleep(0.3)
        stage.check(
            _files(folder) == still, f"files of {tenant} changed after its tasks had stopped"
        )
        refused = sum(_is_refused(stage, tenant, number) for number in range(3))
        # Without ignore_errors: if anything still wrote here, this would be where it shows.
        shutil.rmtree(folder)
        copies = _files(stage.work.remote / tenant)
    stage.summary["detached"] = {
        "tenant": tenant,
        "tasks_stopped": len(report.tasks),
        "outcomes": dict(Counter(str(task.outcome) for task in report.tasks)),
        "evidence": dict(Counter(str(task.evidence) for task in report.tasks)),
        "collateral": len(report.collateral),
        "stop_seconds": round(took, 3),
        "files_removed": len(still),
        "bytes_removed": sum(size for size, _ in still.values()),
        "spawns_refused_meanwhile": refused,
        "stayed_away": False,
        "watched_seconds": 0.0,
        "requests_refused_since": 0,
    }
    _watch_detached(stage, tenant, copies)


def _check_report(
    stage: Stage, tenant: str, report: ShutdownReport, before: list[TaskInfo]
) -> None:
    stage.check(not report.remaining, f"the stop of {tenant} left {len(report.remaining)} tasks")
    stage.check(
        all(task.evidence is not None for task in report.tasks),
        f"the stop of {tenant} reports ends without evidence",
    )
    # A handler may learn only now that it is about this tenant: it comes in asked to stop, and goes.
    alive = [task for task in stage.client.tasks(tenant_id=tenant) if not task.stopping]
    stage.check(not alive, f"{len(alive)} tasks of {tenant} go on after its stop")
    # What was alive just before has either ended by itself, which the registry knows, or is in
    # the report.
    reported = {task.id for task in report.tasks}
    for task in before:
        if task.id not in reported:
            ended = stage.client.task(task.id)
            stage.check(ended.state == "ended", f"{task.name} of {tenant} is {ended.state}")


def _is_refused(stage: Stage, tenant: str, number: int) -> bool:
    """Try to bring the tenant back while it is being detached."""
    timeline = stage.plan.tenants[tenant][0].timeline

    def spawn() -> TaskHandle[Any]:
        if number == 0:
            return stage.client.spawn(
                BACKGROUND, TaskKind.ATTACH, attach_tenant, stage.root, tenant, tenant_id=tenant
            )
        if number == 1:
            return want_flush(stage.client, stage.root, tenant, timeline)
        return want_upload(stage.client, stage.root, tenant, timeline)

    outcome = stage.try_spawn(spawn)
    return stage.check(outcome == "refused", f"a spawn into {tenant} was not refused: {outcome}")


def _watch_detached(stage: Stage, tenant: str, copies: dict[str, tuple[int, int]]) -> None:
    """Watch for a while, with clients still asking, that nothing of the tenant comes back."""
    asked = stage.load.tally.counts().get(Status.UNKNOWN, 0)
    began = time.monotonic()
    folder = stage.work.tenant(tenant)
    stayed = True
    while stayed and time.monotonic() - began < _WATCH_SECONDS:
        stayed = stage.check(not folder.exists(), f"something made {folder} again")
        stage.tick()
        time.sleep(0.02)
    stayed &= stage.check(
        _files(stage.work.remote / tenant) == copies,
        f"something changed the remote copy of {tenant}",
    )
    refused = stage.load.tally.counts().get(Status.UNKNOWN, 0) - asked
    stage.check(refused > 0, f"no client asked for {tenant} after it was detached")
    stage.summary["detached"] |= {
        "stayed_away": stayed,
        "watched_seconds": round(time.monotonic() - began, 1),
        "requests_refused_since": refused,
    }


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return {path: (size, time of the last change)} of all files below a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            state = path.stat()
            found[str(path)] = (state.st_size, state.st_mtime_ns)
    return found
