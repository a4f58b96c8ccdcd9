"""How a worker knows what its attempts begin: the few doors through which all of it goes are watched.

Threads (`Thread.start`, `_thread.start_new_thread`), executor calls (`ThreadPoolExecutor.submit`, on which
`asyncio.to_thread` and `run_in_executor` rest) and processes (`_posixsubprocess.fork_exec`, `os.fork` and
their kin) are attributed by the context variable of the code that calls. Threads and executor calls run
in a copy of that context, so `is_shutdown_requested()` works in them.

Only worker processes install this. In the forked child of a task all of it is inert: the child is just
a process of the attempt, and whatever locks our machinery held when it was forked are never touched.
"""

import _posixsubprocess
import _thread
import contextvars
import functools
import multiprocessing.process
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, thread as futures_thread
from contextlib import contextmanager
from typing import Any, Final

import multiprocess.process

from quiesce.context import current_context
from quiesce.registry.ids import AttemptKey
from quiesce.workers import processes
from quiesce.workers.scope import Scope, name_of

#: Carried by every process that is started in an attempt: "<task>.<attempt>".
MARKER: Final = "QUIESCE_ATTEMPT"
#: Threads that run functions of these modules are the machinery's own: no attempt waits for them.
_OURS: Final = ("quiesce.client", "quiesce.workers", "quiesce.token")
#: Helpers that multiprocessing keeps for the whole life of a process.
_HELPERS: Final = (b"resource_tracker import main", b"forkserver import main")

start_thread: Final = threading.Thread.start
submit: Final = ThreadPoolExecutor.submit


class Nursery:
    """The child processes of this worker, by who started them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By (pid, start): the attempt, or None for what no attempt waits for. Pruned by `attribute`.
        self._born: dict[tuple[int, int], AttemptKey | None] = {}
        #: Set in forked children of this process.
        self.in_child = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.in_child = True

    def add(self, pid: int, key: AttemptKey | None) -> None:
        """A child process was started."""
        process = processes.look(pid)
        if process is not None:
            with self._lock:
                self._born.setdefault((pid, process.start), key)

    def find(self) -> dict[processes.Process, AttemptKey | None]:
        """Every living descendant of this worker that an attempt may wait for, with its attempt.

        None: an orphan that nothing names (its parents have ended, and it was forked without exec).
        Reaps orphans: the worker is a subreaper. Zombies that were started here are left to whoever
        started them.
        """
        here = os.getpid()
        while True:
            below = processes.descendants(here)
            orphans = [
                process.pid
                for process in below.values()
                if process.is_zombie and process.parent == here and not self._is_born(process)
            ]
            # A list, not a generator: each of them is to be reaped, then look again.
            if not any([processes.reap(pid) for pid in orphans]):
                break
        with self._lock:
            alive = {(process.pid, process.start) for process in below.values()}
            self._born = {who: key for who, key in self._born.items() if who in alive}
            born = dict(self._born)
        found: dict[processes.Process, AttemptKey | None] = {}
        for process in below.values():
            if not process.is_zombie:
                counts, key = _attempt_of(process, below, born)
                if counts:
                    found[process] = key
        return found

    def _is_born(self, process: processes.Process) -> bool:
        with self._lock:
            return (process.pid, process.start) in self._born


def _attempt_of(
    process: processes.Process,
    below: dict[int, processes.Process],
    born: dict[tuple[int, int], AttemptKey | None],
) -> tuple[bool, AttemptKey | None]:
    """Whether attempts wait for this process, and which one: by its ancestors, else by its marker."""
    at: processes.Process | None = process
    while at is not None:
        if (at.pid, at.start) in born:
            key = born[(at.pid, at.start)]
            return key is not None, key
        at = below.get(at.parent)
    at = process
    while at is not None:
        marker = processes.environment(at.pid).get(MARKER, "")
        task, _, attempt = marker.partition(".")
        if task.isdigit() and attempt.isdigit():
            return True, (int(task), int(attempt))  # type: ignore[return-value]  # NewTypes of int
        at = below.get(at.parent)
    return True, None


def install(nursery: Nursery) -> None:
    """Watch the doors, for the whole life of this process."""
    _watch_threads(nursery)
    _watch_executors(nursery)
    _watch_processes(nursery)


# --- threads --------------------------------------------------------------------------------------


def _watch_threads(nursery: Nursery) -> None:
    @functools.wraps(start_thread)
    def start(self: threading.Thread) -> None:
        task = None if nursery.in_child else current_context()
        if task is None:
            return start_thread(self)
        target = getattr(self, "_target", None)
        if target is getattr(futures_thread, "_worker", None) or _is_ours(self, target):
            # An executor's thread runs calls of anyone: they are counted one by one.
            return contextvars.Context().run(start_thread, self)
        scope: Scope = task.scope
        original, inside = self.run, _inherited(self)

        def run() -> None:
            try:
                scope.threads[_thread.get_ident()] = self.name
                inside.run(original)
            finally:
                scope.threads.pop(_thread.get_ident(), None)
                scope.release(self)

        self.run = run  # type: ignore[method-assign]  # what a thread object runs is looked up on it
        scope.hold(self, f"thread {self.name!r}")
        try:
            return start_thread(self)
        except BaseException:
            del self.run
            scope.release(self)
            raise

    threading.Thread.start = start  # type: ignore[method-assign]  # the door

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
                inside.run(function, *args, **(kwargs or {}))
            finally:
                scope.threads.pop(_thread.get_ident(), None)
                scope.release(mark)

        scope.hold(mark, f"thread of {name_of(function)}")
        try:
            return raw_start(run, ())
        except BaseException:
            scope.release(mark)
            raise

    _thread.start_new_thread = start_new_thread  # `threading` has its own reference


def _inherited(thread: threading.Thread) -> contextvars.Context:
    """The context for a thread of an attempt: a copy of the caller's, or (3.14) the one it was given."""
    given = getattr(thread, "_context", None)
    return given.copy() if isinstance(given, contextvars.Context) else contextvars.copy_context()


def _is_ours(thread: threading.Thread, target: Any) -> bool:
    home = getattr(target, "__module__", None) or type(thread).__module__
    return any(home == ours or home.startswith(ours + ".") for ours in _OURS)


def _watch_executors(nursery: Nursery) -> None:
    @functools.wraps(submit)
    def counted(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        task = None if nursery.in_child else current_context()
        if task is None:
            return submit(self, fn, *args, **kwargs)
        scope: Scope = task.scope
        inside, mark = contextvars.copy_context(), object()

        def call() -> Any:
            try:
                scope.threads[_thread.get_ident()] = threading.current_thread().name
                return inside.run(fn, *args, **kwargs)
            finally:
                scope.threads.pop(_thread.get_ident(), None)

        scope.hold(mark, f"executor call of {_called(fn)}")
        try:
            future = submit(self, call)
        except BaseException:
            scope.release(mark)
            raise
        # Also when it is cancelled before it has run.
        future.add_done_callback(lambda _: scope.release(mark))
        return future

    ThreadPoolExecutor.submit = counted  # type: ignore[method-assign]  # the door


def _called(fn: Any) -> str:
    """What a call runs: `asyncio.to_thread` wraps it in partial(Context.run, function)."""
    while isinstance(fn, functools.partial):
        wraps = isinstance(getattr(fn.func, "__self__", None), contextvars.Context)
        fn = fn.args[0] if wraps and fn.args else fn.func
    return name_of(fn)


# --- processes ------------------------------------------------------------------------------------


def _watch_processes(nursery: Nursery) -> None:
    @contextmanager
    def birth(exempt: bool = False) -> Iterator[Callable[[int], None]]:
        """Around the start of a process; the body hands over its pid."""
        task = None if nursery.in_child or exempt else current_context()
        if task is None:
            key = None
        else:
            key = (task.info.id, _attempt(task))
            task.scope.fork()

        def born(pid: int) -> None:
            if pid > 0 and not nursery.in_child:
                nursery.add(pid, key)  # type: ignore[arg-type]  # an attempt's number is an int in TaskInfo

        try:
            yield born
        finally:
            if task is not None and not nursery.in_child:
                task.scope.fork()  # again: a sweep that began in between may have missed it

    def marked(environment: Any) -> Any:
        """The environment for a child of the current attempt, as a mapping like the given one."""
        task = None if nursery.in_child else current_context()
        if task is None:
            return environment
        marker = f"{task.info.id}.{_attempt(task)}"
        base = os.environ if environment is None else environment
        return {**base, MARKER: marker}

    raw_fork_exec = _posixsubprocess.fork_exec

    def fork_exec(*args: Any) -> int:
        # (argv, executables, close_fds, pass_fds, cwd, environment, ...): so from 3.11 to 3.14.
        words = [os.fsencode(each) for each in args[0]]
        exempt = any(helper in word for word in words for helper in _HELPERS)
        if not exempt and current_context() is not None and not nursery.in_child:
            args = (*args[:5], _marked_list(args[5], marked), *args[6:])
        with birth(exempt) as born:
            pid = raw_fork_exec(*args)
            born(pid)
        return pid

    _posixsubprocess.fork_exec = fork_exec
    if hasattr(subprocess, "_fork_exec"):
        subprocess._fork_exec = fork_exec

    def watch_fork(name: str) -> None:
        raw = getattr(os, name)

        @functools.wraps(raw)
        def door() -> Any:
            with birth() as born:
                result = raw()
                born(result[0] if isinstance(result, tuple) else result)
            return result

        setattr(os, name, door)

    def watch_spawn(name: str) -> None:
        raw = getattr(os, name)

        @functools.wraps(raw)
        def door(path: Any, argv: Any, env: Any, /, **options: Any) -> int:
            with birth() as born:
                pid: int = raw(path, argv, marked(env), **options)
                born(pid)
            return pid

        setattr(os, name, door)

    for name in ("fork", "forkpty"):
        watch_fork(name)
    for name in ("posix_spawn", "posix_spawnp"):
        watch_spawn(name)

    raw_system = os.system

    @functools.wraps(raw_system)
    def system(command: Any) -> int:
        with birth():  # it leaves no child, but may leave orphans
            return raw_system(command)

    os.system = system
    for module in (multiprocessing.process, multiprocess.process):
        _watch_start(module.BaseProcess, nursery)


def _watch_start(base: Any, nursery: Nursery) -> None:
    """Processes that a fork server starts are not our children: attribute them by what `start` learns."""
    raw = base.start

    @functools.wraps(raw)
    def start(self: Any) -> None:
        task = None if nursery.in_child else current_context()
        if task is not None:
            task.scope.fork()
        raw(self)
        if task is not None:
            nursery.add(self.pid, (task.info.id, _attempt(task)))  # type: ignore[arg-type]  # as above
            task.scope.fork()

    base.start = start


def _attempt(task: Any) -> int:
    return int(task.info.attempt)


def _marked_list(environment: Any, marked: Callable[[Any], Any]) -> list[bytes]:
    """As fork_exec takes it: a list of b"NAME=value", or None for our own."""
    if environment is None:
        pairs = dict(os.environb)
    else:
        split = (bytes(each).partition(b"=") for each in environment)
        pairs = {name: value for name, _, value in split}
    pairs[os.fsencode(MARKER)] = os.fsencode(marked({})[MARKER])
    return [name + b"=" + value for name, value in pairs.items()]
