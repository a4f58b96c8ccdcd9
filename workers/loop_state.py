"""What code may set on an event loop for all who use it: here each attempt has its own.

The loop of a worker is that of all its coroutines. What one of them sets for itself must not reach its neighbours,
nor whoever comes after it; what can only be done to all of them is refused. Own is what was set in the context of
the attempt, so a child task inherits it.
"""

import contextvars
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio  # see `loop`

_factory: Final[ContextVar[Any]] = ContextVar("quiesce_task_factory", default=None)
_executor: Final[ContextVar[ThreadPoolExecutor | None]] = ContextVar(
    "quiesce_default_executor", default=None
)
_handler: Final[ContextVar[Any]] = ContextVar("quiesce_exception_handler", default=None)


def own_factory() -> Any:
    """The task factory of the calling code."""
    return _factory.get()


def own_handler(said: dict[str, Any]) -> Any:
    """The exception handler of whoever that belongs to which asyncio has said it of."""
    for thing in (said.get("task"), said.get("future"), said.get("handle")):
        # Since Python 3.12 it is called in that context; before, only a handle gives its own away.
        context = getattr(thing, "_context", None)
        if isinstance(context, contextvars.Context):
            return context.get(_handler)
    return _handler.get()


def make_own(loop: Any) -> None:
    """From now on code that sets something on this loop does so for its own attempt."""
    run_shared = loop.run_in_executor

    def run_in_executor(executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":
        call: asyncio.Future[Any] = run_shared(
            _executor.get() if executor is None else executor, func, *args
        )
        return call

    async def shutdown_default_executor(timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio's
        import asyncio

        own = _executor.get()
        if own is None:
            raise RuntimeError(
                "shutdown_default_executor() would end the threads of all tasks of this worker, which share its "
                "event loop. Leave it out: a task waits for its calls of to_thread when it ends. If you need "
                "threads that you can shut down, make a ThreadPoolExecutor, and give that to "
                "set_default_executor() or run_in_executor()."
            )
        call = run_shared(None, own.shutdown)
        done, _ = await asyncio.wait([call], timeout=timeout)
        if not done:
            text = f"The executor did not finish joining its threads within {timeout} seconds."
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    loop.set_task_factory = _set_factory
    loop.get_task_factory = _factory.get
    loop.set_default_executor = _set_executor
    loop.run_in_executor = run_in_executor
    loop.shutdown_default_executor = shutdown_default_executor
    loop.shutdown_asyncgens = _shutdown_asyncgens
    loop.set_exception_handler = _set_handler
    loop.get_exception_handler = _handler.get


def _set_factory(factory: Any) -> None:
    if factory is not None and not callable(factory):
        raise TypeError("task factory must be a callable or None")
    _factory.set(factory)


def _set_executor(executor: Any) -> None:
    if not isinstance(executor, ThreadPoolExecutor):
        raise TypeError("executor must be ThreadPoolExecutor instance")
    _executor.set(executor)


def _set_handler(handler: Any) -> None:
    if handler is not None and not callable(handler):
        raise TypeError(f"A callable object or None is expected, got {handler!r}")
    _handler.set(handler)


async def _shutdown_asyncgens() -> None:
    raise RuntimeError(
        "shutdown_asyncgens() would close the asynchronous generators of all tasks of this worker, which share its "
        "event loop. Close your own: `async with contextlib.aclosing(generator):`, or `await generator.aclose()`."
    )
