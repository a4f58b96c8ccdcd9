"""How often a task looks whether it is asked to stop: clocks behind what it looks with.

A look is `is_shutdown_requested`, `checkpoint`, or `is_cancelled` of the task's token or one below it. While
something waits for the token (a thread, a callback, a descriptor that was asked for), the task looks all the time;
while a coroutine waits for it, at each turn of its event loop.
"""

import asyncio
import selectors
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Any, Final

from quiesce.token import CancellationToken
from quiesce.token_tree import Node, Watch

#: Code of these modules is not where a task looks, but what it looks with.
_INSIDE: Final = (
    "quiesce.token",
    "quiesce.token_tree",
    "quiesce.context",
    "quiesce.testing.checks",
    "quiesce.testing.harness",
    "asyncio",
    "selectors",
    "threading",
    "contextvars",
)

Place = tuple[CodeType, int] | str


class Checks:
    """The longest time between two looks. Thread-safe; what any thread of the task looks counts for all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: When it last looked; None: it is not measured, before its start and after it has seen the request.
        self._since: float | None = None
        self._place: Place = "its start"
        #: Waits of threads, and what is told without waiting.
        self._waits = 0
        #: Waits of coroutines.
        self._loop_waits = 0
        self._longest = 0.0
        self._between: tuple[Place, Place] = ("", "")
        #: Its loop polls just now.
        self._polls = False
        #: Looks so far.
        self.count = 0
        #: The longest turn of its event loop.
        self.longest_turn = 0.0

    # --- what happens

    def begin(self) -> None:
        """The body starts."""
        self._since = time.monotonic()

    def end(self, place: str) -> None:
        """The body has ended, or has seen the request: what follows is not measured."""
        with self._lock:
            self._close(time.monotonic(), place)
            self._since = None

    def look(self) -> None:
        """The task looks, here."""
        now, place = time.monotonic(), _here()
        with self._lock:
            self.count += 1
            self._close(now, place)

    def wait_begins(self, on_loop: bool) -> None:
        """It waits for the request."""
        now, place = time.monotonic(), _here()
        with self._lock:
            self.count += 1
            self._close(now, place)
            if on_loop:
                self._loop_waits += 1
            else:
                self._waits += 1

    def wait_ends(self, on_loop: bool) -> None:
        """It goes on to do something else."""
        now = time.monotonic()
        with self._lock:
            if on_loop:
                self._loop_waits -= 1
                if self._polls and self._since is not None:
                    self._since = now  # it has waited until now; else the loop's turn counts from its beginning
            else:
                if self._waits == 1 and self._since is not None:
                    self._since, self._place = now, _here()
                self._waits -= 1

    def turn_ends(self, began: float) -> None:
        """Its loop has had a turn since `began`, and polls."""
        now = time.monotonic()
        with self._lock:
            if self._since is not None:
                self.longest_turn = max(self.longest_turn, now - began)
            self._polls = True
            if self._loop_waits:
                self._close(now, "a turn of its event loop")

    def turn_begins(self) -> float:
        """It has polled."""
        now = time.monotonic()
        with self._lock:
            self._polls = False
            if self._loop_waits and self._since is not None:
                self._since = now
        return now

    def _close(self, now: float, place: Place) -> None:
        if self._since is None:
            return
        gap = now - self._since
        if not self._waits and gap > self._longest:
            self._longest, self._between = gap, (self._place, place)
        self._since, self._place = now, place

    # --- what came of it

    @property
    def longest(self) -> float:
        """In seconds, up to this moment if it still runs."""
        with self._lock:
            if self._since is None or self._waits:
                return self._longest
            return max(self._longest, time.monotonic() - self._since)

    @property
    def between(self) -> str:
        """Where it looked last before the longest gap, and where next."""
        with self._lock:
            ends = self._between
            if (
                self._since is not None
                and not self._waits
                and time.monotonic() - self._since > self._longest
            ):
                ends = (self._place, "now")
        return f"{_words(ends[0])} and {_words(ends[1])}" if ends[0] else ""


def _here() -> Place:
    """The innermost line that is the task's own."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in _INSIDE and not module.startswith("asyncio."):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return "its event loop"


def _words(place: Place) -> str:
    if isinstance(place, str):
        return place
    code, line = place
    return f"{code.co_filename}:{line} ({code.co_name})"


class Words(dict[int, int]):
    """In place of the pool's shared table: a count that is written is a look."""

    def __init__(self, checks: Checks, check_index: int) -> None:
        super().__init__({0: 0, 1: 0})
        self._checks = checks
        self._check_index = check_index

    def __setitem__(self, index: int, value: int) -> None:
        super().__setitem__(index, value)
        if index == self._check_index:
            self._checks.look()


class _Waiting(dict[Any, Any]):
    """What waits for a token, by key. A wait begins when it enters."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self._checks = checks
        self._on_loop: dict[Any, bool] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self:
            on_loop = asyncio._get_running_loop() is not None
            self._on_loop[key] = on_loop
            self._checks.wait_begins(on_loop)
        super().__setitem__(key, value)

    def pop(self, key: Any, *default: Any) -> Any:
        on_loop = self._on_loop.pop(key, None)  # whoever gets this one says so
        if on_loop is not None:
            self._checks.wait_ends(on_loop)
        return super().pop(key, *default)


class _Children(dict[Node, None]):
    """Tokens below one that is watched are watched, too."""

    def __init__(self, observe: Any) -> None:
        super().__init__()
        self._observe = observe

    def __setitem__(self, node: Node, value: None) -> None:
        self._observe(node)
        super().__setitem__(node, value)


def observe(token: CancellationToken, checks: Checks) -> None:
    """From now on, looks at this token and those below it, and waits for them, are noted."""

    def look(node: Node) -> bool:
        checks.look()
        return bool(slot.__get__(node))

    slot: Any = Node.__dict__["cancelled"]
    mark = property(look, slot.__set__)
    #: Laid out as its base, so that a node can become one.
    kind: type[Node] = type("ObservedNode", (Node,), {"__slots__": (), "cancelled": mark})

    def take(node: Node) -> None:
        if isinstance(node, kind):
            return
        node.__class__ = kind
        there, node.children = node.children, _Children(take)
        for child in there:
            node.children[child] = None
        watch: Watch | None = node.watch() if node.watch is not None else None
        if watch is not None:
            watch.wakers = _Waiting(checks)
            watch.callbacks = _Waiting(checks)

    take(token._node)


class TimedSelector(selectors.EpollSelector):
    """Of an event loop, whose turns are measured."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self._checks = checks
        self._began = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As ever."""
        self._checks.turn_ends(self._began)
        try:
            return super().select(timeout)
        finally:
            self._began = self._checks.turn_begins()
