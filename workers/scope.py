"""All that an attempt has begun and that has not ended: an attempt ends when this is empty.

After neon's `Gate`, which counts guards; ours also names what each guard stands for, so that a stop can
say what it still waits for.
"""

from typing import TYPE_CHECKING, Any, Final, Protocol

from quiesce.locks import Lock
from quiesce.registry.ids import AttemptKey

if TYPE_CHECKING:
    import asyncio  # see `loop`

#: The hold for child processes: one for all, released by the sweep that finds none.
PROCESSES: Final = "child processes"
#: What the callbacks of its tokens are called, while they run.
CALLBACKS: Final = "callbacks of its token"


#: No asyncio tasks: of nearly all scopes.
_NO_TASKS: Final[Any] = frozenset()


class Owner(Protocol):
    """Who is to know what becomes of scopes. By the key of the attempt, which its scope does not refer to: what an
    attempt leaves behind goes with it, and does not wait for the garbage collector.
    """

    def on_empty(self, key: AttemptKey) -> None:
        """All has ended, the body before the last of the others. Once, in whose thread that was."""

    def on_processes(self, key: AttemptKey) -> None:
        """The body has ended, and there may be child processes."""


class Scope:
    """What one attempt has begun. Thread-safe. The body itself is the first hold."""

    __slots__ = (
        "_body_over",
        "_empty",
        "_holds",
        "_key",
        "_lock",
        "_owner",
        "forks",
        "tasks",
        "threads",
        "used_loop",
    )

    def __init__(self, key: AttemptKey, owner: Owner) -> None:
        self._key = key
        self._owner = owner
        # Reentrant: the garbage collector may run user code in here, which may begin something.
        self._lock = Lock()
        #: All and only what goes on, each with words for people.
        self._holds: dict[object, str] = {}
        self._body_over = False
        self._empty = False
        #: By ident: the threads that run code of this attempt now, with their names.
        self.threads: dict[int, str] = {}
        #: The asyncio tasks of this attempt that are not done.
        self.tasks: set[asyncio.Task[Any]] = _NO_TASKS
        #: It has had asyncio tasks: its callbacks may still be in the loop.
        self.used_loop = False
        #: How many child processes it has started or begun to start.
        self.forks = 0

    def hold(self, what: object, words: str) -> bool:
        """Something has begun. False: all had ended before, and nothing of the attempt may begin any more."""
        with self._lock:
            if not self._empty:
                self._holds[what] = words
            return not self._empty

    def release(self, what: object) -> None:
        """It has ended. Twice is harmless."""
        with self._lock:
            now_empty = self._drop(what)
        if now_empty:
            self._owner.on_empty(self._key)

    def _drop(self, what: object) -> bool:
        self._holds.pop(what, None)
        now_empty = self._body_over and not self._holds and not self._empty
        self._empty = self._empty or now_empty
        return now_empty

    def end_body(self) -> bool:
        """The body has ended. True if nothing else goes on: then `on_empty` is *not* called."""
        with self._lock:
            self._body_over = True
            empty = self._empty = not self._holds
            sweep = PROCESSES in self._holds
        if sweep:
            self._owner.on_processes(self._key)
        return empty  # not `self._empty`: by now another thread may have released the last one

    @property
    def body_over(self) -> bool:
        """Whether the body has ended."""
        return self._body_over

    @property
    def is_bare(self) -> bool:
        """Whether nothing that it began goes on, besides the body."""
        with self._lock:
            return not self._holds

    def fork(self) -> None:
        """A child process is about to be started."""
        with self._lock:
            self.forks += 1
            self._holds[PROCESSES] = PROCESSES
            sweep = self._body_over
        if sweep:
            self._owner.on_processes(self._key)

    def no_processes(self, forks: int) -> bool:
        """A sweep that began after `forks` starts has found none. False: one was started meanwhile."""
        with self._lock:
            if self.forks != forks:
                return False
            now_empty = self._drop(PROCESSES)
        if now_empty:
            self._owner.on_empty(self._key)
        return True

    def words(self, processes: str = "") -> str:
        """What goes on, for people."""
        with self._lock:
            held = [
                processes if what is PROCESSES and processes else words
                for what, words in self._holds.items()
            ]
        more = f" and {len(held) - 5} more" if len(held) > 5 else ""
        return ", ".join(held[:5]) + more

    def add_task(self, task: "asyncio.Task[Any]") -> None:
        """An asyncio task of this attempt was made; on its loop's thread."""
        self.used_loop = True
        if self.tasks is _NO_TASKS:
            self.tasks = set()
        self.tasks.add(task)
        self.hold(task, f"coroutine {name_of(task.get_coro())}")
        task.add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        self.release(task)


def name_of(thing: object) -> str:
    """A function's or coroutine's name for people."""
    return str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)
