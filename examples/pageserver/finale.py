"""The last acts of the demo: complete the streams, settle, verify everything, stop the system."""

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quiesce import TaskKind
from quiesce.client import TaskHandle
from quiesce.examples.pageserver import remote
from quiesce.examples.pageserver.names import BACKGROUND, RUNTIMES
from quiesce.examples.pageserver.source import SourceFile
from quiesce.examples.pageserver.stage import FalsityError, Stage
from quiesce.examples.pageserver.system import System
from quiesce.examples.pageserver.tasks_layers import (
    collect_garbage,
    download_all_layers,
    want_flush,
    want_upload,
)
from quiesce.examples.pageserver.tasks_tenants import logical_sizes
from quiesce.examples.pageserver.timeline import Timeline
from quiesce.examples.pageserver.verify import verify


def finish_streams(stage: Stage) -> None:
    """Wait until all that remains has every version and was measured; end the load."""
    stage.phase("receiving the rest")
    expected = {file.tenant for file in stage.remaining()}

    def behind() -> list[str]:
        metrics = stage.metrics()
        return [
            tenant
            for tenant in sorted(expected)
            if tenant not in metrics
            or metrics[tenant]["complete"] < metrics[tenant]["timelines"]
            or metrics[tenant]["measured"] < metrics[tenant]["timelines"]
        ]

    stage.wait_until(
        "all streams are complete", lambda: not behind(), 120, lambda: f"behind: {behind()}"
    )
    # The last thing that a connection does is to seal its log.
    stage.wait_until(
        "all connections have ended",
        lambda: not stage.client.tasks(kind=TaskKind.WAL_RECEIVER_CONNECTION),
        60,
    )
    stage.load.stop()


def settle(stage: Stage) -> None:
    """Stop the housekeeping by kind; bring every timeline to its final form: remote only."""
    stage.phase("stopping compaction and garbage collection by kind")
    stopped = 0
    for kind in (TaskKind.COMPACTION, TaskKind.GARBAGE_COLLECTOR):
        stage.long_tasks.let_go(kind=kind)
        report = stage.client.shutdown_tasks(kind=kind, reason="the demo settles")
        stopped += len(report.tasks)
        stage.check(not stage.client.tasks(kind=kind), f"{kind} tasks are alive after their stop")
    stage.phase("flushing, collecting, uploading")
    files = stage.remaining()
    areas = {file: Timeline(stage.work.timeline(file.tenant, file.timeline)) for file in files}
    _repeat(
        stage,
        "all logs are flushed",
        lambda: [file for file in files if areas[file].sealed()],
        lambda file: want_flush(stage.client, stage.root, file.tenant, file.timeline),
    )
    _collect_once(stage, sorted({file.tenant for file in files}))

    def unsettled() -> list[SourceFile]:
        return [
            file
            for file in files
            if not remote.is_settled(
                areas[file], stage.work.remote_timeline(file.tenant, file.timeline)
            )
            or len(areas[file].missing()) < len(areas[file].manifest().layers)
        ]

    _repeat(
        stage,
        "all layers are uploaded, and only remote",
        unsettled,
        lambda file: want_upload(stage.client, stage.root, file.tenant, file.timeline, drop=True),
    )
    manifests = [area.manifest() for area in areas.values()]
    stage.summary["settled"] = {
        "housekeeping_tasks_stopped_by_kind": stopped,
        "layers": sum(len(manifest.layers) for manifest in manifests),
        "layers_only_remote": sum(len(area.missing()) for area in areas.values()),
        "compactions": sum(manifest.compactions for manifest in manifests),
        "versions_collected": sum(manifest.collected_versions for manifest in manifests),
        "records_collected": sum(manifest.collected_records for manifest in manifests),
    }
    _download_one_tenant(stage, files[0].tenant)


def _repeat(
    stage: Stage,
    what: str,
    left: Callable[[], list[SourceFile]],
    wish: Callable[[SourceFile], TaskHandle[Any]],
) -> None:
    """Spawn a task for each timeline that is left, until none is, judged by what is on disk."""
    for _ in range(5):
        todo = left()
        if not todo:
            return
        _await_all(stage, what, [wish(file) for file in todo])
    raise FalsityError(f"{what}: {len(left())} timelines are left after five rounds")


def _await_all(stage: Stage, what: str, handles: list[TaskHandle[Any]]) -> list[Any]:
    stage.wait_until(
        what,
        lambda: all(handle.done() for handle in handles),
        60,
        lambda: f"{sum(not handle.done() for handle in handles)} tasks are not done",
    )
    return [handle.result(10) for handle in handles]


def _collect_once(stage: Stage, tenants: list[str]) -> None:
    handles = [
        stage.client.spawn(
            BACKGROUND,
            TaskKind.GARBAGE_COLLECTOR,
            collect_garbage,
            stage.root,
            tenant,
            kwargs={"rounds": 1},
            tenant_id=tenant,
        )
        for tenant in tenants
    ]
    _await_all(stage, "garbage is collected", handles)


def _download_one_tenant(stage: Stage, tenant: str) -> None:
    """Fetch one tenant's layers as a whole; those of the others come when they are needed."""
    fetched = stage.client.spawn(
        BACKGROUND,
        TaskKind.DOWNLOAD_ALL_REMOTE_LAYERS,
        download_all_layers,
        stage.root,
        tenant,
        tenant_id=tenant,
    )
    (count,) = _await_all(stage, f"all layers of {tenant} are downloaded", [fetched])
    missing = sum(
        len(Timeline(stage.work.timeline(tenant, file.timeline)).missing())
        for file in stage.plan.tenants[tenant]
    )
    stage.check(missing == 0, f"{missing} layers of {tenant} are still only remote")
    stage.summary["settled"]["downloaded_as_a_whole"] = {"tenant": tenant, "layers": count}


def verify_all(stage: Stage) -> None:
    """Read back every version of every timeline that remains."""
    stage.phase("verifying every kept version of every timeline")
    files = stage.remaining()
    with ThreadPoolExecutor(1) as executor:
        reading = executor.submit(verify, stage.work.pages_socket, files, stage.settings)
        stage.wait_until("everything is read back", reading.done, 120)
        found = reading.result()
    for wrong in found.wrong[:10]:
        stage.check(False, wrong)
    if len(found.wrong) > 10:
        stage.check(False, f"and {len(found.wrong) - 10} more versions")
    for tenant in sorted({file.tenant for file in files}):
        description = stage.work.read_tenant(tenant)
        sizes = logical_sizes(stage.work, description)
        for timeline, file in description.timelines.items():
            stage.check(
                sizes.get(timeline) == file.size,
                f"{tenant}/{timeline} was measured as {sizes.get(timeline)} bytes, not {file.size}",
            )
    stage.summary["verified"] = {
        "timelines": found.timelines,
        "of_timelines": len(files),
        "versions": found.versions,
        "equal_to_the_file": found.originals,
        "pages": found.pages,
        "bytes": found.size,
        "collected_versions_refused": found.collected,
        "waits_for_a_download": found.download_waits,
        "download_tasks_waited_for": len(found.downloads),
        "wrong": len(found.wrong),
    }
    stage.check(
        found.timelines == len(files) and found.versions > 0,
        f"{found.timelines} of {len(files)} timelines are right",
    )


def ask_status(stage: Stage) -> None:
    """Ask the http endpoint, and compare its answer with what is known."""
    port = int(stage.work.http_port_file.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=10) as answer:
        status = json.load(answer)
    expected = sorted({file.tenant for file in stage.remaining()})
    stage.check(
        status["attached"] == expected,
        f"the http endpoint says that {status['attached']} are attached, not {expected}",
    )
    stage.summary["http_status"] = {"tenants": len(status["attached"]), "tasks": status["tasks"]}


def look_back(stage: Stage) -> None:
    """Note what the clients met, which runtimes and kinds ran, and who belongs to the system."""
    stage.load.stop()
    tally = stage.load.tally
    for wrong in tally.wrong[:10]:
        stage.check(False, wrong)
    stage.check(tally.counts().get("ok", 0) > 0, "no page was served under load")
    stage.summary["page_requests_under_load"] = {**tally.counts(), "wrong": len(tally.wrong)}
    stage.seen.look(stage.client, history=True)
    kinds = {str(kind) for kind in TaskKind}
    stage.check(
        kinds <= stage.seen.kinds, f"no task ran of {', '.join(sorted(kinds - stage.seen.kinds))}"
    )
    stage.check(
        set(RUNTIMES) <= stage.seen.runtimes,
        f"no task ran in {', '.join(sorted(set(RUNTIMES) - stage.seen.runtimes))}",
    )
    for tenant in stage.detached:
        stage.check(
            not stage.work.tenant(tenant).exists(), f"something made the folder of {tenant} again"
        )
    stage.summary["tasks"] = {
        "runtimes": len(stage.seen.runtimes & set(RUNTIMES)),
        "kinds": len(stage.seen.kinds & kinds),
        "ended": len(stage.seen.ended),
        "outcomes": stage.seen.outcomes(),
        "long_tasks_spawned_again": dict(stage.long_tasks.spawned_again),
    }
    stage.system.note_processes(stage.client)


def stop_system(stage: Stage, system: System) -> None:
    """Stop `up` with SIGTERM; the client is closed by now. See its exit status, and who is left."""
    stage.view.say("stopping the system with SIGTERM")
    running = len(system.seen)
    status = system.stop()
    left = system.left()
    stage.check(status == 0, f"`quiesce up` exited with {status}:\n{system.tail()}")
    stage.check(not left, f"processes of the system are left: {left}")
    stage.summary["stopped"] = {
        "exit_status": status,
        "processes_seen": running,
        "processes_left": len(left),
    }
