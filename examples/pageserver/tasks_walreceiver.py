"""Tasks of the walreceiver runtime: one manager per tenant, one connection per timeline."""

import asyncio
from pathlib import Path

import quiesce
from quiesce import TaskKind
from quiesce.client import Client, TaskHandle
from quiesce.errors import (
    ScopeClosedError,
    TaskCancelledError,
    TaskCrashedError,
    TaskLostError,
)
from quiesce.examples.pageserver import versions
from quiesce.examples.pageserver.names import WALRECEIVER
from quiesce.examples.pageserver.source import Settings, SourceFile
from quiesce.examples.pageserver.tasks_layers import want_flush
from quiesce.examples.pageserver.tasks_tenants import want_logical_size
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.timeline import Timeline


def want_connection(
    client: Client, work: str, tenant: str, timeline: str
) -> TaskHandle[dict[str, int]]:
    """Ask for a timeline's stream to be received. There is at most one connection at a time."""
    return client.spawn(
        WALRECEIVER,
        TaskKind.WAL_RECEIVER_CONNECTION,
        receive_wal,
        work,
        tenant,
        timeline,
        tenant_id=tenant,
        timeline_id=timeline,
        unique_key="connection",
    )


def manage_receivers(work: str, tenant: str) -> int:
    """wal-receiver-manager: keep a connection per timeline until each stream is complete; then
    stand by.

    A connection whose process died is made anew, and resumes where its log ends. Where a manager
    itself died, its connections may live on in other processes: the successor asks for all of
    them, and `unique_key` gives it those that live. Returns how many connections it made anew.
    """
    client = quiesce.current_client()
    timelines = Work(Path(work)).read_tenant(tenant).timelines
    connections = {
        timeline: want_connection(client, work, tenant, timeline) for timeline in timelines
    }
    again = 0
    while connections:
        # Raises ShutdownRequested when this task is asked to stop, as every blocking call in a
        # task does.
        next(iter(connections.values())).wait(0.5)
        for timeline, connection in list(connections.items()):
            if not connection.done():
                continue
            del connections[timeline]
            try:
                connection.result()
            except (TaskCrashedError, TaskLostError):
                again += 1
                connections[timeline] = want_connection(client, work, tenant, timeline)
            except (TaskCancelledError, ScopeClosedError):
                # Somebody stopped it: that is to be respected, not undone.
                continue
    quiesce.wait_for_shutdown()
    return again


async def receive_wal(work: str, tenant: str, timeline: str) -> dict[str, int]:
    """wal-receiver-connection: append a timeline's stream to its log, from where the log ends.

    The stream is made from the timeline's file here; a real one would come from a peer. A
    coroutine, as it mostly waits: hundreds of them share one process. Returns the records
    appended and the bytes of torn log cut.
    """
    file, settings, original, area = _open_stream(Work(Path(work)), tenant, timeline)
    length = versions.stream_length(len(original), file.key, settings.versions, settings.page_size)
    pause = settings.stream_seconds / length
    token = quiesce.shutdown_token()
    client = quiesce.current_client()
    appended = 0
    with area.open_log() as log:
        for record in versions.stream(
            original, file.key, settings.versions, settings.page_size, after=log.position
        ):
            log.append(record)
            appended += 1
            if record.is_commit:
                if log.segment_bytes >= settings.segment_bytes:
                    log.roll()
                    want_flush(client, work, tenant, timeline)
                if not area.size_file.exists():
                    want_logical_size(client, work, tenant, timeline)
            await token.run_until_cancelled(asyncio.sleep(pause))
            quiesce.checkpoint()
        log.roll()
        want_flush(client, work, tenant, timeline)
        cut = log.cut
    return {"appended": appended, "cut": cut}


def _open_stream(
    place: Work, tenant: str, timeline: str
) -> tuple[SourceFile, Settings, bytes, Timeline]:
    description = place.read_tenant(tenant)
    file = description.timelines[timeline]
    area = Timeline(place.timeline(tenant, timeline))
    return file, description.settings, Path(file.path).read_bytes(), area
