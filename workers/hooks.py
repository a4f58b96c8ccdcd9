"""How a worker knows what its attempts begin: the few doors through which all of it goes are watched.

Threads (`Thread.start`, `_thread.start_new_thread`), executor calls (`ThreadPoolExecutor.submit`, on which
`asyncio.to_thread` and `run_in_executor` rest, and `ProcessPoolExecutor.submit`) and processes
(`_posixsubprocess.fork_exec`, `os.fork` and their kin) are attributed by the context variable of the code that
calls. Threads and calls in threads run in a copy of that context, so `is_shutdown_requested()` works in them.

Only worker processes install this. In the forked child of a task all of it is inert: the child is just
a process of the attempt, and whatever locks our machinery held when it was forked are never touched.
"""

import _thread
import contextvars
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, thread as futures_thread
from contextlib import AbstractContextManager
from typing import Any, Final

from quiesce.context import current_context, entrance
from quiesce.workers import forked, tracing
from quiesce.workers.births import watch_processes
from quiesce.workers.nursery import Nursery
from quiesce.workers.scope import Scope, name_of

#: Threads that run private functions of these modules are the machinery's own: no attempt waits for them. Their
#: public ones (`Thread(target=handle.result)`) are called by a task, and part of it.
_OURS: Final = ("quiesce.client", "quiesce.workers", "quiesce.token")

#: By module: the executors of the standard library whose calls run in other processes or interpreters.
_ELSEWHERE: Final = {
    "concurrent.futures.process": "ProcessPoolExecutor",
    "concurrent.futures.interpreter": "InterpreterPoolExecutor",  # since Python 3.14
}

start_thread: Final = threading.Thread.start
submit: Final[Any] = ThreadPoolExecutor.submit


def install(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    """Watch the doors, for the whole life of this process.

    Within `shield` no interrupt raises: what is begun and what is known of it never differ.
    """
    _watch_threads(nursery, shield)
    _watch_raw_threads(nursery, shield)
    _watch_executors(nursery, shield)
    _watch_executors_elsewhere(nursery, shield)
    watch_processes(nursery, shield)
    tracing.watch()


# --- threads --------------------------------------------------------------------------------------


def _watch_threads(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    @functools.wraps(start_thread)
    def start(self: threading.Thread) -> None:
        task = None if nursery.in_child else current_context()
        if task is None or self.ident is not None:
            return start_thread(self)
        target = getattr(self, "_target", None)
        scope: Scope = task.scope
        if target is getattr(futures_thread, "_worker", None):
            # An executor's thread runs calls of anyone: they are counted one by one.
            with shield:
                return _start_in_pool(self, scope)
        if _is_ours(self, target):
            return contextvars.Context().run(start_thread, self)
        # Not the thread itself: those of a class of the task's own may be equal to each other.
        original, enter, mark = self.run, entrance(self), object()

        def run() -> None:
            try:
                scope.threads[_thread.get_ident()] = self.name
                try:
                    tracing.apart(forked.call, nursery, enter, _traced, original)
                except BaseException:
                    # Here, since what `threading.excepthook` does is part of the attempt, too.
                    enter(self._invoke_excepthook, self)  # type: ignore[attr-defined]  # the same since 3.8
            finally:
                scope.threads.pop(_thread.get_ident(), None)
                scope.release(mark)

        with shield:
            self.run = run  # type: ignore[method-assign]  # what a thread object runs is looked up on it
            scope.hold(mark, f"thread {self.name!r}")
            try:
                start_thread(self)
            except BaseException:
                del self.run
                scope.release(mark)
                raise

    threading.Thread.start = start  # type: ignore[method-assign]  # the door


def _watch_raw_threads(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    raw_start = _thread.start_new_thread

    def start_new_thread(function: Any, args: Any, kwargs: Any = None, /) -> int:
        task = None if nursery.in_child else current_context()
        if task is None:
            return raw_start(function, args, kwargs or {})
        scope: Scope = task.scope
        inside, mark = contextvars.copy_context(), object()

        def run() -> None:
            try:
                scope.threads[_thread.get_ident()] = name_of(function)
                call = functools.partial(_traced, function, *args, **(kwargs or {}))
                tracing.apart(forked.call, nursery, inside.run, call)
            finally:
                scope.threads.pop(_thread.get_ident(), None)
                scope.release(mark)

        with shield:
            scope.hold(mark, f"thread of {name_of(function)}")
            try:
                return raw_start(run, ())
            except BaseException:
                scope.release(mark)
                raise

    _thread.start_new_thread = start_new_thread  # `threading` has its own reference
    _thread.start_new = start_new_thread  # its old name


def _traced(function: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
    tracing.begin_thread()
    function(*args, **kwargs)


def _start_in_pool(thread: Any, scope: Scope) -> None:
    """A thread of a ThreadPoolExecutor: its initializer is part of the attempt whose call has it started."""
    inside, mark = contextvars.copy_context(), object()

    def counted(initializer: Callable[..., object]) -> Callable[..., None]:
        scope.hold(mark, f"initializer {name_of(initializer)}")

        def initialize(*args: Any) -> None:
            try:
                scope.threads[_thread.get_ident()] = thread.name
                tracing.apart(inside.run, initializer, *args)
            finally:
                scope.threads.pop(_thread.get_ident(), None)
                scope.release(mark)

        return initialize

    executor, context, *more = thread._args
    if getattr(context, "initializer", None) is not None:  # since Python 3.14
        context.initializer = counted(context.initializer)
    elif len(more) == 2 and more[0] is not None:
        thread._args = (executor, context, counted(more[0]), more[1])
    try:
        contextvars.Context().run(start_thread, thread)
    except BaseException:
        scope.release(mark)
        raise


def _is_ours(thread: threading.Thread, target: Any) -> bool:
    if not getattr(target, "__name__", "_").startswith("_"):
        return False
    home = getattr(target, "__module__", None) or type(thread).__module__
    return any(home == ours or home.startswith(ours + ".") for ours in _OURS)


def _watch_executors(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    """Calls that run in threads of this process: in the context of their attempt."""

    @functools.wraps(submit)
    def counted(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        task = None if nursery.in_child else current_context()
        if task is None:
            return submit(self, fn, *args, **kwargs)
        scope: Scope = task.scope
        inside, mark = contextvars.copy_context(), object()

        def call() -> Any:
            try:
                scope.threads[_thread.get_ident()] = threading.current_thread().name
                work = functools.partial(inside.run, fn, *args, **kwargs)
                return tracing.apart(forked.call, nursery, work)
            finally:
                scope.threads.pop(_thread.get_ident(), None)

        with shield:
            scope.hold(mark, f"executor call of {_called(fn)}")
            try:
                future = submit(self, call)
            except BaseException:
                scope.release(mark)
                raise
            _release_last(future, inside, lambda: scope.release(mark))
        return future

    ThreadPoolExecutor.submit = counted  # type: ignore[assignment,method-assign]  # the door


def _watch_executors_elsewhere(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    """Calls that run in processes or interpreters which the attempt may not have started: they are waited for."""

    def watch(executor: Any) -> None:
        # Not what it inherits: that would send `call` there.
        submit_there = vars(executor).get("submit", submit)

        @functools.wraps(submit_there)
        def held(self: Executor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            task = None if nursery.in_child else current_context()
            if task is None:
                return submit_there(self, fn, *args, **kwargs)
            scope: Scope = task.scope
            inside, mark = contextvars.copy_context(), object()
            with shield:
                scope.hold(mark, f"executor call of {_called(fn)}")
                try:
                    future = submit_there(self, fn, *args, **kwargs)
                except BaseException:
                    scope.release(mark)
                    raise
                _release_last(future, inside, lambda: scope.release(mark))
            return future

        executor.submit = held

    def init_subclass(cls: type[Any], /, **options: Any) -> None:
        super(Executor, cls).__init_subclass__(**options)
        if _ELSEWHERE.get(cls.__module__) == cls.__name__:
            watch(cls)

    for module, name in _ELSEWHERE.items():
        if module in sys.modules:
            watch(getattr(sys.modules[module], name))
    # The others are made when somebody imports them, which most tasks never do, and which takes long.
    Executor.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]  # the door


def _release_last(future: Any, inside: contextvars.Context, release: Callable[[], None]) -> None:
    """When it is done, or cancelled before it has run: after its callbacks, which are part of the attempt, too."""
    invoke = future._invoke_callbacks

    def invoke_inside() -> None:
        try:
            inside.copy().run(invoke)
        finally:
            release()

    with future._condition:
        if not future.done():
            future._invoke_callbacks = invoke_inside
            return
    release()  # nobody else has it yet: whoever adds a callback runs it at once


def _called(fn: Any) -> str:
    """What a call runs: `asyncio.to_thread` wraps it in partial(Context.run, function)."""
    while isinstance(fn, functools.partial):
        wraps = isinstance(getattr(fn.func, "__self__", None), contextvars.Context)
        fn = fn.args[0] if wraps and fn.args else fn.func
    return name_of(fn)
