"""One task function in this process, without a broker, under the same rules as in a worker."""

import asyncio
import contextvars
import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from quiesce import context
from quiesce.context import TaskContext
from quiesce.errors import QuiesceError, TaskCancelledError
from quiesce.protocol.callables import is_async
from quiesce.registry.ids import TaskId
from quiesce.registry.states import Outcome, State
from quiesce.testing.checks import Checks, TimedSelector, Words, observe
from quiesce.testing.failures import NotInTimeError
from quiesce.values import Fence, Progress, TaskInfo

_FLAG: Final = 0
_CHECK: Final = 1
_KEY: Final = 1
#: Seconds that leaving the block gives a task to end.
_PATIENCE: Final = 10.0

_start_thread: Final = threading.Thread.start
#: Guards what is below.
_patching: Final = threading.Lock()
#: All and only the harnesses whose task may start threads now.
_active: Final[set["TaskHarness"]] = set()
#: What `current_client()` called before the first of them; it still serves tasks of a worker that runs tests.
_factory_before: Final[list[Callable[[], Any]]] = []


class TaskHarness:
    """Runs `fn(*args)` as a task would run, in a thread (a coroutine function: on an event loop in a thread).

        with TaskHarness(compact, path, tenant_id="acme") as task:
            task.start()
            task.request_stop("why")
            assert task.join(5) == "asked"
        assert task.longest_gap < 0.05

    All of `quiesce.is_shutdown_requested` and its like works in it, in coroutines, `to_thread` calls and threads
    that it starts too. It ends when it and these threads have ended. What differs from a worker: nothing is sent
    anywhere, so `associate_with` succeeds; nobody forces it; child processes are its own affair; and there is a
    `quiesce.current_client()` only if `client` is given.

    Leaving the block asks it to stop if it still runs, and waits for its end.

    Attributes:
        progress: all that it has reported.
        associations: (tenant_id, timeline_id) of each `associate_with`.
        extensions: seconds of each `extend_grace`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        kind: str = "attach",
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        name: str | None = None,
        runtime: str = "test",
        attempt: int = 1,
        client: Any = None,
    ) -> None:
        self.progress: list[Progress] = []
        self.associations: list[tuple[str | None, str | None]] = []
        self.extensions: list[float] = []
        self._call = functools.partial(fn, *args, **dict(kwargs or {}))
        self._is_async = is_async(fn)  # as a worker sees it
        self._client = client
        self._checks = Checks()
        self._asked_at: float | None = None
        self._seen_at: float | None = None
        self._ended_at: float | None = None
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        #: Those that the task has started.
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="quiesce-harness", daemon=True)
        info = TaskInfo(
            id=TaskId(1),
            attempt=attempt,
            kind=str(kind),
            name=name or str(getattr(fn, "__qualname__", repr(fn))),
            runtime=runtime,
            tenant_id=tenant_id,
            timeline_id=timeline_id,
            state=State.RUNNING,
            created_at=time.time(),
            started_at=time.time(),
            fence=Fence(1, 1, attempt),
        )
        self._task = TaskContext(
            key=(info.id, info.attempt),
            describe=lambda: info,
            port=_Port(self),
            words=Words(self._checks, _CHECK),
            flag_index=_FLAG,
            check_index=_CHECK,
            flag_key=_KEY,
        )
        observe(self._task.root, self._checks)

    # --- its life

    def start(self) -> "TaskHarness":
        """Begin, once."""
        with _patching:
            if not _active:
                _factory_before[:] = context._client_factory
                context.set_client_factory(_client_here)
                threading.Thread.start = _start  # type: ignore[method-assign]  # the door
            _active.add(self)
        contextvars.Context().run(_start_thread, self._thread)
        return self

    def _run(self) -> None:
        context.enter(self._task)
        self._checks.begin()
        try:
            if self._is_async:
                self._value = self._run_loop()
            else:
                self._value = self._call()
        except BaseException as error:
            self._error = error
        for thread in self._threads:  # grows while we wait
            thread.join()
        self._ended_at = time.monotonic()
        self._checks.end("its end")
        with _patching:
            _active.discard(self)
            if not _active:
                context._client_factory[:] = _factory_before
                if threading.Thread.start is _start:
                    threading.Thread.start = _start_thread  # type: ignore[method-assign]  # as it was
        self._over.set()

    def _run_loop(self) -> Any:
        def make_loop() -> asyncio.AbstractEventLoop:
            return asyncio.SelectorEventLoop(TimedSelector(self._checks))

        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(self._call(), context=contextvars.copy_context())

    def _current_client(self) -> Any:
        if self._client is None:
            raise QuiesceError(
                "current_client(): this task runs in a TaskHarness, where there is no broker; give the harness "
                "a client=, or test the task in a quiesce.testing.Cluster"
            )
        return self._client

    def request_stop(self, reason: str = "") -> None:
        """Ask the task to stop, as `shutdown_tasks` would. Only the first time counts."""
        if self._asked_at is not None:
            return
        self._asked_at = time.monotonic()
        self._task.update(stopping=True, reason=reason)
        self._task.words[_FLAG] = _KEY
        self._task.root.cancel(reason)

    def join(self, timeout: float | None = None) -> Any:
        """Wait for its end, and for that of the threads that it started; gives what the function returned.

        Raises:
            NotInTimeError: it still runs after `timeout` seconds; the text says how it looked, and has its stacks.
            TaskCancelledError: it was asked to stop, and ended by ShutdownRequested or CancelledError.
            Otherwise what the function raised.
        """
        if not self._over.wait(timeout):
            raise NotInTimeError(
                f"the task {self.info.name!r} still runs after {timeout:g} s"
                f"{'' if self._asked_at is None else ' (it was asked to stop)'}; "
                f"it looked {self._checks.count} times; the longest gap is {self.longest_gap:.3f} s, "
                f"between {self._checks.between}; its stacks:\n{self._stacks()}"
            )
        if self.outcome is Outcome.CANCELLED:
            assert self._error is not None
            raise TaskCancelledError(
                f"the task {self.info.name!r} was asked to stop, and ended by {type(self._error).__name__}"
            ) from self._error
        if self._error is not None:
            raise self._error
        return self._value

    def _stacks(self) -> str:
        frames = sys._current_frames()
        rows = []
        for thread in (self._thread, *self._threads):
            frame = frames.get(thread.ident or 0)
            if frame is not None:
                rows += [f"thread {thread.name!r}:", *traceback.format_stack(frame)]
        return "\n".join(rows)

    def __enter__(self) -> "TaskHarness":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.ident is None or self._over.is_set():
            return
        self.request_stop("the block of the TaskHarness is left")
        if not self._over.wait(_PATIENCE):
            try:
                self.join(0)
            except NotInTimeError as trouble:
                if error is None:
                    raise
                error.add_note(str(trouble))

    # --- what is known

    @property
    def info(self) -> TaskInfo:
        """What `quiesce.current_task()` gives in it."""
        return self._task.info

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._thread.ident is not None and not self._over.is_set()

    @property
    def outcome(self) -> Outcome | None:
        """What a broker would call its end: completed, failed, cancelled or crashed. None while it runs."""
        from quiesce.workers.attempt import judge

        if not self._over.is_set():
            return None
        return judge(self._error, self._asked_at is not None)

    @property
    def checks(self) -> int:
        """How often it has looked."""
        return self._checks.count

    @property
    def longest_gap(self) -> float:
        """The longest time, in seconds, in which nothing of the task could see a request.

        From its start until it sees the request, or its end, or now. For a coroutine function the longest turn of
        its event loop counts as well: for as long nobody else there sees anything either.
        """
        return max(self._checks.longest, self._checks.longest_turn)

    @property
    def longest_turn(self) -> float:
        """The longest turn of its event loop, in seconds; 0.0 without one."""
        return self._checks.longest_turn

    @property
    def gap_between(self) -> str:
        """Where it looked before and after the longest gap between looks: `FILE:LINE (function) and ...`."""
        return self._checks.between

    @property
    def reaction(self) -> float | None:
        """Seconds from `request_stop` until the task saw it; None if it has not."""
        if self._asked_at is None or self._seen_at is None:
            return None
        return self._seen_at - self._asked_at

    @property
    def stop_took(self) -> float | None:
        """Seconds from `request_stop` until its end; None if there is not both."""
        if self._asked_at is None or self._ended_at is None:
            return None
        return self._ended_at - self._asked_at

    def _observed(self) -> None:
        self._seen_at = time.monotonic()
        self._checks.end("its look at the request")

    def _inherits(self, thread: threading.Thread) -> None:
        """The task has just begun to start this thread: it is part of it, and sees what it sees."""
        enter, original = context.entrance(thread), thread.run
        thread.run = lambda: enter(original)  # type: ignore[assignment,method-assign]  # looked up on it
        self._threads.append(thread)


def _start(self: threading.Thread) -> None:
    """In place of Thread.start while a task runs in a harness: its threads get its context."""
    task = context.current_context()
    owner = next((each for each in list(_active) if each._task is task), None)
    target = getattr(self, "_target", None)
    if owner is not None and getattr(target, "__module__", "") != "concurrent.futures.thread":
        owner._inherits(self)
    _start_thread(self)


def _client_here() -> Any:
    """In place of the process's own client while tasks run in harnesses: that of the harness of the task."""
    task = context.current_context()
    if task is not None and isinstance(task.port, _Port):
        return task.port.harness._current_client()
    return _factory_before[0]()


class _Port:
    """What a task asks of its worker is noted."""

    def __init__(self, harness: TaskHarness) -> None:
        self.harness = harness

    def associate(self, task: TaskContext, tenant_id: str | None, timeline_id: str | None) -> None:
        self.harness.associations.append((tenant_id, timeline_id))
        task.update(tenant_id=tenant_id, timeline_id=timeline_id)

    def report_progress(
        self, task: TaskContext, done: float, total: float | None, note: str
    ) -> None:
        self.harness.progress.append(Progress(done, total, note))

    def wait_began(self, task: TaskContext, other: int) -> None:
        pass

    def wait_ended(self, task: TaskContext, other: int) -> None:
        pass

    def extend_grace(self, task: TaskContext, seconds: float) -> None:
        self.harness.extensions.append(seconds)

    def observed(self, task: TaskContext) -> None:
        self.harness._observed()
