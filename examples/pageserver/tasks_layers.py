"""Tasks of the background runtime on layers: flush, compaction, garbage, upload, download.

Each function below that a task runs has a `want_…` beside it, which spawns it. The short ones
carry a `unique_key`: while one is alive, a second wish for the same thing gets the first one's
handle. A wish that comes just as the work ends can be lost that way, so nothing relies on one
wish: the compaction loop looks at what is there, and asks again.
"""

from pathlib import Path

import quiesce
from quiesce import TaskKind
from quiesce.client import Client, TaskHandle
from quiesce.errors import TaskCrashedError, TaskLostError
from quiesce.examples.pageserver import remote
from quiesce.examples.pageserver.names import BACKGROUND
from quiesce.examples.pageserver.reader import LayerNotLocalError, TimelineReader
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.timeline import Timeline


def want_flush(client: Client, work: str, tenant: str, timeline: str) -> TaskHandle[int]:
    """Ask for what is sealed of a timeline's log to be moved to a layer."""
    return client.spawn(
        BACKGROUND,
        TaskKind.LAYER_FLUSH_TASK,
        flush_timeline,
        work,
        tenant,
        timeline,
        tenant_id=tenant,
        timeline_id=timeline,
        unique_key="flush",
    )


def flush_timeline(work: str, tenant: str, timeline: str) -> int:
    """layer-flush-task: move the sealed log to a layer, and ask for its upload.

    Returns the records moved.
    """
    moved = 0
    area = Timeline(Work(Path(work)).timeline(tenant, timeline))
    while area.sealed():
        quiesce.checkpoint()
        moved += area.flush()
    if moved:
        want_upload(quiesce.current_client(), work, tenant, timeline)
    return moved


def want_upload(
    client: Client, work: str, tenant: str, timeline: str, drop: bool = False
) -> TaskHandle[tuple[int, int]]:
    """Ask for a timeline's layers to be copied to the remote store, or with `drop` moved there."""
    return client.spawn(
        BACKGROUND,
        TaskKind.REMOTE_UPLOAD_TASK,
        upload_timeline,
        work,
        tenant,
        timeline,
        drop,
        tenant_id=tenant,
        timeline_id=timeline,
        # Also where it is to drop: two uploads of one timeline at once would remove each other's
        # copies.
        unique_key="upload",
    )


def upload_timeline(work: str, tenant: str, timeline: str, drop: bool = False) -> tuple[int, int]:
    """remote-upload-task: bring the remote copy up to date.

    Returns the layers copied and dropped here.
    """
    place = Work(Path(work))
    area = Timeline(place.timeline(tenant, timeline))
    copies = place.remote_timeline(tenant, timeline)
    copied = remote.upload(area, copies, quiesce.checkpoint)
    return copied, remote.drop_local(area, copies) if drop else 0


def want_download(
    client: Client, work: str, tenant: str, timeline: str, name: str
) -> TaskHandle[int]:
    """Ask for one layer. All who want the same one at the same time share a task."""
    return client.spawn(
        BACKGROUND,
        TaskKind.REMOTE_DOWNLOAD_TASK,
        download_layer,
        work,
        tenant,
        timeline,
        name,
        tenant_id=tenant,
        timeline_id=timeline,
        unique_key=name,
    )


def download_layer(work: str, tenant: str, timeline: str, name: str) -> int:
    """remote-download-task: fetch one layer from the remote store. Returns the bytes fetched."""
    place = Work(Path(work))
    return remote.download(
        Timeline(place.timeline(tenant, timeline)),
        place.remote_timeline(tenant, timeline),
        name,
        quiesce.checkpoint,
    )


def download_all_layers(work: str, tenant: str) -> int:
    """download-all-remote-layers: fetch whatever a tenant has only remotely.

    Returns the layers fetched.
    """
    place = Work(Path(work))
    client = quiesce.current_client()
    wishes = [
        want_download(client, work, tenant, timeline, name)
        for timeline in place.read_tenant(tenant).timelines
        for name in Timeline(place.timeline(tenant, timeline)).missing()
    ]
    fetched = 0
    for done, wish in enumerate(wishes, start=1):
        # Waiting ends with ShutdownRequested if this task is asked to stop meanwhile.
        fetched += wish.result() > 0
        quiesce.report_progress(done, len(wishes), "layers")
    return fetched


def read_page(
    reader: TimelineReader, version: int, page: int, work: str, tenant: str, timeline: str
) -> tuple[bytes, list[str]]:
    """Read a page from inside a task of any runtime; a layer that is not here is fetched in the
    background.

    Returns the page, and the ids of the download tasks that it waited for.
    """
    waited: list[str] = []
    while True:
        try:
            return reader.read(version, page), waited
        except LayerNotLocalError as missing:
            wish = want_download(quiesce.current_client(), work, tenant, timeline, missing.name)
            try:
                wish.result(timeout=60)
            except (TaskCrashedError, TaskLostError):
                if len(waited) >= 5:
                    raise
            waited.append(str(wish.id))
            reader.refresh()


def compact_tenant(work: str, tenant: str, period: float = 1.0) -> int:
    """compaction: merge a tenant's layers, for as long as the tenant is here.

    Returns the merges made.
    """
    place = Work(Path(work))
    client = quiesce.current_client()
    merges = 0
    while not quiesce.wait_for_shutdown(period):
        for timeline in place.read_tenant(tenant).timelines:
            quiesce.checkpoint()
            area = Timeline(place.timeline(tenant, timeline))
            if area.sealed():
                want_flush(client, work, tenant, timeline)
            elif area.compact():
                merges += 1
                want_upload(client, work, tenant, timeline)
    return merges


def collect_garbage(work: str, tenant: str, period: float = 1.5, rounds: int | None = None) -> int:
    """garbage-collector: drop a tenant's old versions, for ever or so many times.

    Returns the records dropped.
    """
    place = Work(Path(work))
    client = quiesce.current_client()
    dropped = 0
    while rounds is None or rounds > 0:
        if rounds is None:
            if quiesce.wait_for_shutdown(period):
                break
        else:
            rounds -= 1
        description = place.read_tenant(tenant)
        for timeline in description.timelines:
            quiesce.checkpoint()
            records = Timeline(place.timeline(tenant, timeline)).collect(
                description.settings.retained
            )
            if records:
                dropped += records
                want_upload(client, work, tenant, timeline)
    return dropped
