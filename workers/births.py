"""The doors through which a worker's code starts processes, and what is noted there."""

import _posixsubprocess
import functools
import multiprocessing.process
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import multiprocess.process

from quiesce.context import TaskContext, current_context
from quiesce.markers import ATTEMPT_MARKER, RUN_MARKER
from quiesce.registry.ids import Attempt, AttemptKey
from quiesce.workers.nursery import Nursery

#: Helpers that multiprocessing keeps for the whole life of a process: no attempt waits for them.
_HELPERS: Final = (b"resource_tracker import main", b"forkserver import main")


def watch_processes(nursery: Nursery, shield: AbstractContextManager[None]) -> None:
    """Watch all doors, for the whole life of this process."""
    doors = _Doors(nursery, shield)
    fork_exec = doors.fork_exec(_posixsubprocess.fork_exec)
    _posixsubprocess.fork_exec = fork_exec
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]  # its own reference
    for name in ("fork", "forkpty"):
        setattr(os, name, doors.fork(getattr(os, name)))
    for name in ("posix_spawn", "posix_spawnp"):
        setattr(os, name, doors.spawn(getattr(os, name)))
    os.system = _system
    for module in (multiprocessing.process, multiprocess.process):
        module.BaseProcess.start = doors.start(module.BaseProcess.start)


class _Doors:
    """Wrappers. Each gives the same as what it wraps."""

    def __init__(self, nursery: Nursery, shield: AbstractContextManager[None]) -> None:
        self._nursery = nursery
        self._shield = shield
        #: The mark of all that `quiesce up` starts, which a task's own environments must not lose; "" if none.
        self._run = os.environ.get(RUN_MARKER, "")

    def _marks(self, task: TaskContext) -> dict[str, str]:
        task_id, attempt = _key(task)
        marks = {ATTEMPT_MARKER: f"{task_id}.{attempt}"}
        return {**marks, RUN_MARKER: self._run} if self._run else marks

    def _task(self) -> TaskContext | None:
        return None if self._nursery.in_child else current_context()

    @contextmanager
    def _birth(self, task: TaskContext | None) -> Iterator[Callable[[int], None]]:
        """Around the start of a process; the body hands over its pid."""
        if self._nursery.in_child:
            yield lambda pid: None
            return
        key = None if task is None else _key(task)
        with self._shield, self._nursery.lock:
            if task is not None:
                task.scope.fork()
            yield lambda pid: self._nursery.add(pid, key)

    def fork_exec(self, raw: Callable[..., int]) -> Callable[..., int]:
        """(argv, executables, close_fds, pass_fds, cwd, environment, ...): so from 3.11 to 3.14."""

        def door(*args: Any) -> int:
            task = self._task()
            if any(helper in os.fsencode(word) for word in args[0] for helper in _HELPERS):
                task = None
            if task is not None:
                args = (*args[:5], _marked_list(args[5], self._marks(task)), *args[6:])
            with self._birth(task) as born:
                pid = raw(*args)
                born(pid)
            return pid

        return door

    def fork(self, raw: Callable[[], Any]) -> Callable[[], Any]:
        """fork and forkpty."""

        @functools.wraps(raw)
        def door() -> Any:
            with self._birth(self._task()) as born:
                result = raw()
                if not self._nursery.in_child:
                    born(result[0] if isinstance(result, tuple) else result)
            return result

        return door

    def spawn(self, raw: Callable[..., int]) -> Callable[..., int]:
        """posix_spawn and posix_spawnp."""

        @functools.wraps(raw)
        def door(path: Any, argv: Any, env: Any, /, **options: Any) -> int:
            task = self._task()
            if task is not None:
                base = os.environ if env is None else env
                env = {**base, **self._marks(task)}
            with self._birth(task) as born:
                pid = raw(path, argv, env, **options)
                born(pid)
            return pid

        return door

    def start(self, raw: Callable[[Any], None]) -> Callable[[Any], None]:
        """Process.start: what a fork server starts is no child of ours, only `start` learns its pid."""

        @functools.wraps(raw)
        def door(process: Any) -> None:
            task = self._task()
            with self._shield:  # an interrupt would leave a process that runs, and nobody can name
                raw(process)
                if task is not None and process.pid is not None:
                    with self._birth(task) as born:
                        born(process.pid)

        return door


def bury(nursery: Nursery, key: AttemptKey) -> None:
    """Reap the children of an ended attempt: first those that the libraries know, as they would."""
    subprocess._cleanup()  # type: ignore[attr-defined]  # what each Popen calls, too
    for module in (multiprocessing.process, multiprocess.process):
        module.active_children()
    nursery.bury(key)


def _system(command: Any) -> int:
    """As os.system, through doors that we watch: the C function forks where nobody sees it."""
    code = subprocess.Popen(command, shell=True, close_fds=False).wait()
    return code << 8 if code >= 0 else -code


def _key(task: TaskContext) -> AttemptKey:
    return task.key[0], Attempt(task.key[1])


def _marked_list(environment: Any, marks: dict[str, str]) -> list[bytes]:
    """As fork_exec takes it: a list of b"NAME=value", or None for our own."""
    given = (
        [name + b"=" + value for name, value in os.environb.items()]
        if environment is None
        else [bytes(each) for each in environment]
    )
    kept = [each for each in given if os.fsdecode(each.partition(b"=")[0]) not in marks]
    return [*kept, *(os.fsencode(f"{name}={value}") for name, value in marks.items())]
