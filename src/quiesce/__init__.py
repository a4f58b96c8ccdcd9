"""quiesce: process pools with one truthful registry of tasks.

Stop exactly the tasks you name, and know when they have stopped. See the README for a first program.
Names are imported on first use (PEP 562), so that a worker loads neither the client nor the command line.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Which module each public name lives in.
_HOME = {
    "quiesce.client": ("AsyncClient", "AsyncTaskHandle", "Client", "QuiesceExecutor", "TaskHandle"),
    "quiesce.context": (
        "associate_with",
        "checkpoint",
        "current_client",
        "current_task",
        "current_task_id",
        "current_task_kind",
        "extend_grace",
        "is_shutdown_requested",
        "report_progress",
        "shutdown_token",
        "shutdown_watcher",
        "wait_for_shutdown",
    ),
    "quiesce.errors": (
        "BrokerUnavailableError",
        "ConfigurationError",
        "NotAuthorizedError",
        "NotInTaskError",
        "PayloadTooLargeError",
        "ProtocolError",
        "QueueFullError",
        "QuiesceError",
        "RegistryCorruptError",
        "ScopeClosedError",
        "ShutdownRequested",
        "ShutdownTimeoutError",
        "TaskCancelledError",
        "TaskCrashedError",
        "TaskFailedError",
        "TaskLostError",
        "TaskNotFoundError",
        "TaskTimeoutError",
        "UnknownKindError",
        "UnknownRuntimeError",
    ),
    "quiesce.registry.ids": ("TaskId",),
    "quiesce.registry.states": ("Evidence", "Outcome", "State"),
    "quiesce.task_info": ("Fence", "Progress", "TaskInfo", "TaskKind"),
    "quiesce.token": ("CancellationToken",),
    "quiesce.values": (
        "BrokerInfo",
        "ClosedScope",
        "EndedStop",
        "Event",
        "ShutdownReport",
        "StoppedTask",
        "TaskStacks",
        "WorkerInfo",
    ),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted([*_WHERE, "__version__"])  # noqa: PLE0605 - one table serves both

if TYPE_CHECKING:
    from quiesce.client import (
        AsyncClient as AsyncClient,
        AsyncTaskHandle as AsyncTaskHandle,
        Client as Client,
        QuiesceExecutor as QuiesceExecutor,
        TaskHandle as TaskHandle,
    )
    from quiesce.context import (
        associate_with as associate_with,
        checkpoint as checkpoint,
        current_client as current_client,
        current_task as current_task,
        current_task_id as current_task_id,
        current_task_kind as current_task_kind,
        extend_grace as extend_grace,
        is_shutdown_requested as is_shutdown_requested,
        report_progress as report_progress,
        shutdown_token as shutdown_token,
        shutdown_watcher as shutdown_watcher,
        wait_for_shutdown as wait_for_shutdown,
    )
    from quiesce.errors import (
        BrokerUnavailableError as BrokerUnavailableError,
        ConfigurationError as ConfigurationError,
        NotAuthorizedError as NotAuthorizedError,
        NotInTaskError as NotInTaskError,
        PayloadTooLargeError as PayloadTooLargeError,
        ProtocolError as ProtocolError,
        QueueFullError as QueueFullError,
        QuiesceError as QuiesceError,
        RegistryCorruptError as RegistryCorruptError,
        ScopeClosedError as ScopeClosedError,
        ShutdownRequested as ShutdownRequested,
        ShutdownTimeoutError as ShutdownTimeoutError,
        TaskCancelledError as TaskCancelledError,
        TaskCrashedError as TaskCrashedError,
        TaskFailedError as TaskFailedError,
        TaskLostError as TaskLostError,
        TaskNotFoundError as TaskNotFoundError,
        TaskTimeoutError as TaskTimeoutError,
        UnknownKindError as UnknownKindError,
        UnknownRuntimeError as UnknownRuntimeError,
    )
    from quiesce.registry.ids import TaskId as TaskId
    from quiesce.registry.states import Evidence as Evidence, Outcome as Outcome, State as State
    from quiesce.token import CancellationToken as CancellationToken
    from quiesce.values import (
        BrokerInfo as BrokerInfo,
        ClosedScope as ClosedScope,
        EndedStop as EndedStop,
        Event as Event,
        Fence as Fence,
        Progress as Progress,
        ShutdownReport as ShutdownReport,
        StoppedTask as StoppedTask,
        TaskInfo as TaskInfo,
        TaskKind as TaskKind,
        TaskStacks as TaskStacks,
        WorkerInfo as WorkerInfo,
    )


def __getattr__(name: str) -> Any:
    home = _WHERE.get(name)
    if home is None:
        raise AttributeError(f"module 'quiesce' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
