"""What the thread of a QuiesceExecutor is told: calls, their ends, and what concerns all of them."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from quiesce.client.records import SpawnRecord
from quiesce.registry.ids import Attempt, TaskId


class Call(NamedTuple):
    """`number`: in the order of all calls. `parent`: the attempt that made it.

    `together`: of a chunk of a `map`, what runs several of them in one task; None: it is none. Nothing of a call
    is hashed or compared: its function is anybody's object.
    """

    number: int
    parent: tuple[TaskId, Attempt] | None
    future: "Future[Any]"
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    together: Callable[..., Any] | None


class Ended(NamedTuple):
    """A task. `chunks`: those that share it, for what it leaves undone; otherwise it is one call."""

    futures: "tuple[Future[Any], ...]"
    chunks: tuple[Call, ...]
    record: SpawnRecord


class Stopped(NamedTuple):
    """A stop has overtaken the calls that are held back."""


class ShutDown(NamedTuple):
    """No more calls come."""

    cancel_futures: bool


class PoolEnded(NamedTuple):
    """The private pool has, though nobody asked it to: nothing more can be run, for this reason."""

    why: str


Message = Call | Ended | Stopped | ShutDown | PoolEnded
