"""What a task sees of itself; part of `quiesce.values`, and apart from it since every worker loads this.

Times and states as there.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from quiesce.registry.ids import TaskId
from quiesce.registry.states import Evidence, Outcome, State


class TaskKind(StrEnum):
    """The sixteen kinds of the default configuration. A configuration may add others, as plain strings."""

    LIBPQ_ENDPOINT_LISTENER = "libpq-endpoint-listener"
    HTTP_ENDPOINT_LISTENER = "http-endpoint-listener"
    PAGE_REQUEST_HANDLER = "page-request-handler"
    WAL_RECEIVER_MANAGER = "wal-receiver-manager"
    WAL_RECEIVER_CONNECTION = "wal-receiver-connection"
    GARBAGE_COLLECTOR = "garbage-collector"
    COMPACTION = "compaction"
    INITIAL_LOGICAL_SIZE_CALCULATION = "initial-logical-size-calculation"
    LAYER_FLUSH_TASK = "layer-flush-task"
    REMOTE_UPLOAD_TASK = "remote-upload-task"
    REMOTE_DOWNLOAD_TASK = "remote-download-task"
    INITIAL_LOAD = "initial-load"
    ATTACH = "attach"
    METRICS_COLLECTION = "metrics-collection"
    DOWNLOAD_ALL_REMOTE_LAYERS = "download-all-remote-layers"
    CALCULATE_SYNTHETIC_SIZE = "calculate-synthetic-size"


class Fence(NamedTuple):
    """Grows with every new owner of a task: hand it to storage that refuses writes of older fences."""

    epoch: int
    incarnation: int
    attempt: int


class Progress(NamedTuple):
    """What a task last said of its progress with `report_progress`."""

    done: float
    total: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """One task as the registry knew it at one moment. `waiting_for` says what holds it up, in words."""

    id: TaskId
    attempt: int
    kind: str
    name: str
    runtime: str
    tenant_id: str | None = None
    timeline_id: str | None = None
    state: State = State.QUEUED
    stopping: bool = False
    lingering: bool = False
    outcome: Outcome | None = None
    evidence: Evidence | None = None
    exit_status: int | None = None
    reason: str = ""
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    last_check_at: float | None = None
    progress: Progress | None = None
    host: str = ""
    worker_pid: int | None = None
    waiting_for: str = ""
    #: Only on `current_task()`; None elsewhere.
    fence: Fence | None = None
