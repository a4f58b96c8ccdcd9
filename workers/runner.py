"""Runs the bodies of attempts, and sees each through to its end.

    load -> body (main thread, own thread, or loop) -> verdict -> all that it began has ended -> finish

An attempt may be stopped until it begins, so both the load and the body ask first (`Gate`).

`finish` waits for the nested spawns, so it never runs on the loop's thread or the control thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from quiesce.errors import ShutdownRequested
from quiesce.protocol.callables import Loaded, known_function, load_function, unpack_arguments
from quiesce.protocol.frames import Frame, payload_view
from quiesce.registry.states import Outcome
from quiesce.seldom import Seldom
from quiesce.workers import logs, loop as loops, task_logs, tracing
from quiesce.workers.attempt import (
    COMPLETED,
    NOTHING,
    Attempt,
    Verdict,
    Where,
    bare_verdict,
    verdict_of,
)
from quiesce.workers.forked import leave_child
from quiesce.workers.hands import Hands, Work
from quiesce.workers.interrupt import Interrupt
from quiesce.workers.nursery import Nursery
from quiesce.workers.scope import name_of

if TYPE_CHECKING:
    import asyncio  # see `loop`

_log: Final = logging.getLogger("quiesce.task")
_own_log: Final = logging.getLogger("quiesce.worker")

#: Results of these types are pickled on the loop's thread; others elsewhere, since they may be large.
_SMALL: Final = (type(None), bool, int, float)


class Gate(Protocol):
    """Whom to ask before anything of an attempt begins. Any thread."""

    def may_load(self, attempt: Attempt) -> bool:
        """It begins, with the loading of its function. False: it was stopped, and nothing of it may run."""

    def may_wait(self, attempt: Attempt) -> bool:
        """Its function is a coroutine's, and waits for the loop. False: it was asked to stop, and ends now."""

    def may_run(self, attempt: Attempt) -> bool:
        """Its body begins. False: it was stopped before, and nothing of it may run."""

    def runs(self, attempt: Attempt) -> None:
        """Its function is loaded, and called at once."""


class Runner:
    """One for a worker process."""

    def __init__(
        self,
        slots: int,
        nursery: Nursery,
        interrupt: Interrupt,
        gate: Gate,
        finish: Callable[[Attempt, Verdict], None],
        on_linger: Callable[[], None],
        on_shortage: Callable[[], None] = lambda: None,
        ends_at_once: Callable[[Attempt], bool] = lambda attempt: False,
    ) -> None:
        """`finish` is called once for each attempt, in a thread that may wait unless it `ends_at_once`.

        `on_linger`: a body has ended, and not all that it began; in any thread.

        `on_shortage`: no thread can be started, so `look` is to be called soon; in any thread.
        """
        self._inline = slots == 1
        self._nursery = nursery
        self._interrupt = interrupt
        self._gate = gate
        self._finish = finish
        self._on_linger = on_linger
        self._on_shortage = on_shortage
        self._ends_at_once = ends_at_once
        self.limit = 2**63
        self._hands = Hands("quiesce-slot")
        #: That no thread can be started.
        self._shortage = Seldom()
        #: Attempts that have used the loop and are over, but for what they have left there. Any thread appends.
        self._to_purge: deque[Attempt] = deque()
        self.loop = loops.LoopThread(nursery, threads=4 * slots + 32)

    # --- the body ---------------------------------------------------------------------------------

    def start(self, attempt: Attempt) -> None:
        """Run an attempt if it is not stopped before it begins. With one slot this may last as long as its body."""
        if self._inline:
            self._load_and_run(attempt, _MAIN_THREAD)
        else:
            self._have_done(self._hands.queue, lambda: self._load_and_run(attempt, Where.THREAD))

    def start_soon(self, attempt: Attempt) -> bool:
        """With several slots: the same, if a thread is awake that takes it by and by; whether one is."""
        return self._hands.leave(lambda: self._load_and_run(attempt, Where.THREAD))

    @property
    def is_waiting(self) -> bool:
        """Whether something was started that no thread has taken yet."""
        return self._hands.is_waiting

    def look(self) -> bool:
        """See to what waits, in each millisecond; whether something does."""
        try:
            return self._hands.look()
        except RuntimeError as error:
            self._tell_shortage(error)
            return True

    def _have_done(self, hand_over: Callable[[Work], None], work: Work) -> None:
        """By one of our threads; if none can be started, by one that is there, or later."""
        try:
            hand_over(work)
        except RuntimeError as error:
            self._tell_shortage(error)
            self._on_shortage()

    def _tell_shortage(self, error: RuntimeError) -> None:
        if self._shortage.is_time():
            text = "%s: what needs one waits until a thread of this process ends, or one can be started"
            logs.say(_own_log.warning, text, error)

    def _load_and_run(self, attempt: Attempt, where: Where) -> None:
        known = known_function(attempt.row.function)
        # What needs neither to be loaded nor the loop begins at once.
        ask = self._gate.may_load if known is None or known[1] else self._gate.may_run
        if ask(attempt):
            self.run(attempt, known, where)

    def run(self, attempt: Attempt, known: Loaded | None, where: Where = Where.MAIN_THREAD) -> None:
        """It has begun: load its function, if that is not known, and call it here."""
        attempt.where = where
        ident, threads = threading.get_ident(), attempt.scope.threads
        threads[ident] = threading.current_thread().name
        interrupt = self._interrupt if where is _MAIN_THREAD else None
        value, error = guarded(self._load_and_call, attempt, known, interrupt)
        if self._nursery.in_child:
            leave_child(error)
        threads.pop(ident, None)
        if not isinstance(value, _Coroutine):
            self._end_body(attempt, value, error, here=True)
        elif self._gate.may_wait(attempt):
            attempt.where = Where.LOOP
            try:
                self.loop.call(self._start_on_loop, attempt, value)
            except RuntimeError as failure:  # its thread can't be started
                self._end_body(attempt, None, failure, here=True)
        else:
            self._end_body(attempt, None, ShutdownRequested(_TOO_LATE), here=True)

    def _load_and_call(self, attempt: Attempt, known: Loaded | None) -> Any:
        """In the attempt's context: what loading imports and rebuilds is its doing, too."""
        row = attempt.row
        task_logs.enter_task(attempt.task, row)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s begins", attempt.words())
        function, calls_coroutine = known or load_function(bytes(_view(row.function)))
        task_logs.adopt_structlog()
        args, kwargs = unpack_arguments(_view(row.arguments))
        if attempt.task.is_asked:
            raise ShutdownRequested(_TOO_LATE)
        if calls_coroutine:
            return _Coroutine(function, args, kwargs)
        if known is None and not self._nursery.in_child:
            self._gate.runs(attempt)
        return function(*args, **kwargs)

    def _start_on_loop(self, attempt: Attempt, body: "_Coroutine") -> None:
        running = self.loop.running
        assert running is not None, "we are on its thread"
        coro: Any = self._body(attempt, body)
        coro.__qualname__ = body.name
        attempt.root = loops.make_root(running, coro, attempt.context)
        attempt.root.add_done_callback(lambda root: self._on_root_done(attempt, root))

    async def _body(self, attempt: Attempt, body: "_Coroutine") -> Any:
        """Its first step may come long after `_start_on_loop`: neighbours have their turns in between."""
        if not self._gate.may_run(attempt):
            return _REFUSED
        if attempt.is_asked:
            raise ShutdownRequested(_TOO_LATE)
        coro = body.function(*body.args, **body.kwargs)
        del body  # the arguments are the body's alone
        before = tracing.now()
        try:
            value = await coro
        except BaseException as error:
            if self._nursery.in_child:
                leave_child(error)
            raise
        finally:
            while True:
                try:
                    tracing.put_back(before)
                    break
                except BaseException:  # see there
                    continue
        if self._nursery.in_child:
            leave_child(None)
        return value

    def _on_root_done(self, attempt: Attempt, root: "asyncio.Task[Any]") -> None:
        """On the loop's thread: what the body left behind is cancelled, and awaited by the scope."""
        value, error = None, None
        try:
            value = root.result()
        except BaseException as raised:
            error = raised
        if value is _REFUSED:
            return  # its end was told when it was stopped
        # Held until the verdict: else the last child's end could come first.
        attempt.scope.hold(attempt, "its end")
        loops.cancel_children(attempt.scope, root)
        self._pack_and_end(attempt, value, error)

    def _pack_and_end(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        def end() -> None:
            self._end_body(attempt, value, error)
            attempt.scope.release(attempt)

        if error is None and isinstance(value, _SMALL):
            end()
        else:
            self._have_done(self._hands.give, end)

    def _end_body(
        self, attempt: Attempt, value: Any, error: BaseException | None, *, here: bool = False
    ) -> None:
        """Judge and pack (user code too: it may begin things), then wait for all that it began.

        `here`: this thread may wait.
        """
        if error is None and value is None:  # no code of the task's has a part in that
            attempt.verdict = NOTHING
        else:
            attempt.verdict = self._verdict(attempt, value, error)
        if not attempt.scope.end_body():
            self._on_linger()
        elif here and not attempt.scope.used_loop:
            self._end(attempt)
        else:
            self.on_empty(attempt)

    def _verdict(self, attempt: Attempt, value: Any, error: BaseException | None) -> Verdict:
        asked, forced = attempt.is_asked, attempt.forced
        try:
            return attempt.context.copy().run(verdict_of, value, error, asked, forced, self.limit)
        except BaseException as failure:
            logs.say(_log.exception, "the verdict on %s can't be packed", attempt.words())
            return bare_verdict(failure if error is None else error, asked, forced)

    # --- after the body ---------------------------------------------------------------------------

    def on_empty(self, attempt: Attempt) -> None:
        """All that the attempt began has ended. Called once, in any thread."""
        running = self.loop.running
        if attempt.scope.used_loop and running is not None:
            self._to_purge.append(attempt)
            self.loop.call(self._purge_then_end)
        elif self._inline and threading.get_ident() == threading.main_thread().ident:
            self._end(attempt)
        else:
            self._have_done(self._hands.give, lambda: self._end(attempt))

    def _purge_then_end(self) -> None:
        """Of all that wait for it: of many that end together each call but the first finds nothing to do."""
        attempts: list[Attempt] = []
        while self._to_purge:
            attempts.append(self._to_purge.popleft())
        running = self.loop.running
        if attempts and running is not None:
            loops.purge(running, {attempt.task for attempt in attempts})
        for attempt in attempts:
            if self._ends_at_once(attempt):
                self._end(attempt)
            else:
                self._have_done(self._hands.give, partial(self._end, attempt))

    def _end(self, attempt: Attempt) -> None:
        verdict = attempt.verdict
        assert verdict is not None, "the scope empties only after the body has ended"
        quiet = verdict.outcome is COMPLETED or verdict.outcome in _QUIET
        if not quiet or _log.isEnabledFor(logging.DEBUG):
            attempt.context.copy().run(logs.say, _tell, attempt, verdict)
        self._finish(attempt, verdict)

    # --- force ------------------------------------------------------------------------------------

    def force(self, attempt: Attempt) -> None:
        """The grace is over: CancelledError into coroutines, an interrupt into what has the main thread."""
        if attempt.where is Where.LOOP:
            self.loop.call(self._cancel_all, attempt)
        elif attempt.where is Where.MAIN_THREAD and not attempt.scope.body_over:
            self._interrupt.send(attempt)
        elif attempt.scope.used_loop:
            self.loop.call(self._cancel_all, attempt)

    def _cancel_all(self, attempt: Attempt) -> None:
        if attempt.root is not None and not attempt.root.done():
            attempt.root.cancel()
        else:
            loops.cancel_children(attempt.scope)


#: To look up a member of an enumeration costs more than to store it.
_MAIN_THREAD: Final = Where.MAIN_THREAD
#: Of these ends only those who debug want to hear.
_QUIET: Final = frozenset({Outcome.COMPLETED, Outcome.CANCELLED})
#: What the task of an attempt gives that was stopped before it began.
_REFUSED: Final = object()
_TOO_LATE: Final = "asked to stop before its body began"


class _Coroutine:
    """A body for the loop."""

    __slots__ = ("args", "function", "kwargs", "name")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        #: What people know it by.
        self.name = name_of(function)


def _view(payload: Sized) -> bytes:
    if isinstance(payload, bytes):
        return payload
    return payload_view(payload) if isinstance(payload, Frame) else b""


def guarded(
    call: Callable[[Attempt, Loaded | None], Any],
    attempt: Attempt,
    known: Loaded | None,
    interrupt: Interrupt | None,
) -> tuple[Any, BaseException | None]:
    """The value of `call` in the attempt's context, or what it raised.

    Between `arm` and `disarm` an interrupt may raise.

    The outer `try` catches one that hits the few instructions of ours after the body: it is disarmed by
    the handler itself, so that it comes once. So it does what a signal handler of the body's own raises there.
    """
    value: Any = None
    error: BaseException | None = None
    try:
        try:
            if interrupt is not None:
                interrupt.arm(attempt)
            value = tracing.apart(attempt.context.run, call, attempt, known)
        except BaseException as raised:
            error = raised
        if interrupt is not None:
            interrupt.disarm()
    except BaseException as late:
        if interrupt is not None:
            interrupt.disarm()
        error = late if error is None else error
    return value, error


def _tell(attempt: Attempt, verdict: Verdict) -> None:
    """The log line of an end. A forced or requested end is no error."""
    outcome, words = verdict.outcome, attempt.words()
    if outcome in _QUIET:
        _log.debug("%s ended: %s", words, outcome.value)
        return
    text = f"{words} {outcome.value}"
    if attempt.row.shutdown_process_on_error:
        # Only the broker knows whether it is run again, and it says so if the system stops.
        text += " (marked shutdown_process_on_error)"
    if _log.isEnabledFor(logging.ERROR):
        # As `exc_info` would have it, which nobody kept: the traceback apart from the message.
        path, line, function, _ = _log.findCaller()
        record = _log.makeRecord(
            _log.name, logging.ERROR, path, line, "%s", (text,), None, function
        )
        record.exc_text = verdict.text.rstrip("\n")
        _log.handle(record)
