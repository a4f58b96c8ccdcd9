"""Every error that quiesce raises, in one place; all are re-exported on `quiesce`.

`ShutdownRequested` is here too, but is a signal and no error: it is a BaseException, so that
`except Exception` in a task body does not swallow it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quiesce.values import ShutdownReport


class QuiesceError(Exception):
    """The base of all errors of quiesce."""


class ConfigurationError(QuiesceError):
    """A setting is unknown or has an unusable value; the text says where and what was expected."""


class BrokerUnavailableError(QuiesceError):
    """No broker answered in time. What was asked may or may not have been done; see the text."""


class ProtocolError(QuiesceError):
    """A peer sent no message of this protocol, or one of a version that this side can't speak."""


class NotInTaskError(QuiesceError):
    """A function that speaks of the current task was called outside of any task."""


class UnknownRuntimeError(QuiesceError):
    """The broker's configuration declares no such runtime; the text names the nearest that it does."""


class UnknownKindError(QuiesceError):
    """The broker's configuration declares no such task kind; the text names the nearest that it does."""


class ScopeClosedError(QuiesceError):
    """A spawn into a closed scope: nothing was started. The end of the stop, or `reopen`, opens it."""


class QueueFullError(QuiesceError):
    """The runtime's queue has no room for this spawn: nothing was started, nothing that was queued is lost."""


class PayloadTooLargeError(QuiesceError):
    """Arguments or a result exceed the payload limit; the text gives both sizes in bytes."""


class TaskFailedError(QuiesceError):
    """The task raised. The text has the remote traceback; `__cause__` is the original, if it can be rebuilt."""


class TaskCrashedError(QuiesceError):
    """The task's process died under it, or an exception that ends processes escaped from it.

    `exit_status` is the process's exit status (negative: the signal, as in `subprocess`), or None where
    the process lives on.
    """

    def __init__(self, message: str, exit_status: int | None = None) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class TaskLostError(QuiesceError):
    """The task's host is out of reach, and its lease proves that it runs no more."""


class TaskCancelledError(QuiesceError):
    """The task was asked to stop and did, or was stopped before it began. No result."""


class TaskTimeoutError(QuiesceError):
    """The task itself ran longer than the `timeout` it was spawned with.

    A wait for a task that runs out of time raises the builtin TimeoutError instead, and the task goes on.
    """


class TaskNotFoundError(QuiesceError):
    """The broker knows no task of that id: never spawned, or ended and gone from its bounded history."""


class NotAuthorizedError(QuiesceError):
    """The broker refused this peer's key."""


class RegistryCorruptError(QuiesceError):
    """The registry's state breaks its own rules; the broker stops rather than guess."""


class ShutdownTimeoutError(QuiesceError):
    """A stop did not end within its timeout. `.report` says what is left; the scope stays closed."""

    def __init__(self, message: str, report: "ShutdownReport | None" = None) -> None:
        super().__init__(message)
        self.report = report


class ShutdownRequested(BaseException):
    """Raised in a task that was asked to stop, by `checkpoint()` and by blocking calls."""


__all__ = [
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
]
