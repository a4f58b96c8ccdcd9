"""How far tasks are, for people: a bar of Rich's on standard error, or a call of the user's.

The I/O thread of a client only counts; a thread of its own shows, a few times a second and never after the end.
Rich is imported when the first bar is drawn.
"""

import atexit
import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

from quiesce.client import requests
from quiesce.client.base import BaseClient
from quiesce.client.records import SpawnRecord, log
from quiesce.context import TaskContext, current_context
from quiesce.errors import QuiesceError, ShutdownRequested
from quiesce.values import Progress

#: True: a bar, if standard error is a terminal. A callable: is given a `Progress`, in a thread of its own, at
#: most ten times a second, and once more at the end.
Show = bool | Callable[[Progress], object] | None

#: Seconds between two pictures; and between two questions about a task that reports its own progress.
PACE: Final = 0.1
ASK: Final = 0.5
#: Seconds that an end waits for the last picture.
_LAST: Final = 2.0


class Sink(Protocol):
    """What shows."""

    def show(self, progress: Progress) -> bool:
        """The next picture. False: nobody is left to look, and it was not shown."""

    def close(self) -> None:
        """It was the last one."""


def checked(show: object) -> None:
    """TypeError if it is no Show."""
    if show is not None and not isinstance(show, bool) and not callable(show):
        raise TypeError(f"progress must be True, False, None or callable, not {show!r}")


class Meter:
    """Counts up to `total`, and shows it. Begins with the first count, ends with the last, or by `close`."""

    def __init__(self, total: int, show: Show, name: str = "") -> None:
        checked(show)
        self._show = show
        self._name = name
        #: Whose doing it is, if a task's.
        self._task = current_context()
        self._context = contextvars.copy_context()
        self._news = threading.Condition()
        #: What follows is guarded by it.
        self._progress = Progress(0, total)
        self._left = total
        self._bad = 0
        self._changed = True
        self.over = total == 0
        #: Set when something may be over: for whoever waits to ask again.
        self.wake = threading.Event()
        self._thread = threading.Thread(target=self._main, name="quiesce-progress", daemon=True)
        self._thread.start()
        # A bar hides the cursor: whoever ends the interpreter gets it back.
        atexit.register(self.close)

    # --- from any thread

    def count(self, number: int = 1, *, bad: bool = False) -> None:
        """So many more have ended; `bad`: not as they should have."""
        with self._news:
            self._left -= number
            self._bad += number if bad else 0
            total = self._progress.total or 0
            note = f"{self._bad} not completed" if self._bad else ""
            self._progress = Progress(total - self._left, total, note)
            self._changed = True
            self.over = self.over or self._left <= 0
            self._news.notify()

    def put(self, progress: Progress, *, over: bool = False) -> None:
        """What a task says of itself."""
        with self._news:
            self._changed = self._changed or progress != self._progress or over
            self._progress = progress
            self.over = self.over or over
            self._news.notify()

    def stop(self) -> None:
        """End now, after a last picture."""
        with self._news:
            self.over = True
            self._news.notify()
        self.wake.set()

    def close(self) -> None:
        """`stop`, and wait for it."""
        self.stop()
        self.join()

    def join(self) -> None:
        """What it counts has ended: wait until that is shown, too."""
        if threading.current_thread() is not self._thread:
            self._thread.join(_LAST)

    # --- its thread

    def _main(self) -> None:
        sink: Sink | None = None
        try:
            if self._show is True:
                sink = Bar(self._name)
            elif self._task is None:
                sink = Called(self._show)
            else:
                sink = CalledInTask(self._show, self._task, self._context)
            while True:
                with self._news:
                    while not self._changed and not self.over:
                        self._news.wait()
                    self._changed = False
                    progress, over = self._progress, self.over
                if not sink.show(progress):
                    self.stop()
                    return
                if over:
                    return
                time.sleep(PACE)
        except ShutdownRequested:  # by the call, in a task that is asked to stop
            self.stop()
        except Exception:
            log.exception("progress can't be shown any more; the tasks go on")
        finally:
            if sink is not None:
                sink.close()
            atexit.unregister(self.close)


class Called:
    """A callable of the user's."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def show(self, progress: Progress) -> bool:
        """Call it."""
        self._call(progress)
        return True

    def close(self) -> None:
        """Nothing."""


class CalledInTask(Called):
    """A callable of a task's: a part of it while it is called, and called no more when the task has ended."""

    def __init__(self, call: Any, task: TaskContext, context: contextvars.Context) -> None:
        super().__init__(call)
        self._task = task
        self._context = context

    def show(self, progress: Progress) -> bool:
        """Call it, in the task's context."""
        scope = self._task.scope
        if scope is not None and not scope.hold(self, "a call of `progress`"):
            return False
        try:
            return self._context.run(super().show, progress)
        finally:
            if scope is not None:
                scope.release(self)


class Bar:
    """A bar of Rich's, which draws nothing where standard error is no terminal."""

    def __init__(self, name: str) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(),
            rich.TextColumn("{task.fields[count]}", markup=False),
            rich.TimeElapsedColumn(),
            rich.TextColumn("{task.fields[note]}", markup=False, style="yellow"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task(name, total=None, count="", note="")
        self._bar.start()

    def show(self, progress: Progress) -> bool:
        """Draw it."""
        done, total, note = progress
        count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        self._bar.update(
            self._row, completed=done, total=total, count=count, note=note, refresh=True
        )
        return True

    def close(self) -> None:
        """It stays where it is; what is written next stands below."""
        self._bar.stop()


# --- tasks ----------------------------------------------------------------------------------------


def follow(client: BaseClient, records: Iterable[SpawnRecord], show: Show) -> Meter:
    """Show how many of these have ended; of one alone, what it says with `report_progress`."""
    records = list(records)
    if len(records) == 1:
        return _follow_one(client, records[0], show)
    meter = Meter(len(records), show, records[0].name if records else "")
    for record in records:
        ended = partial(_ended, meter, record)
        if not record.add_waker(client._driver.lock, ended):
            ended()
    return meter


def _ended(meter: Meter, record: SpawnRecord) -> None:
    meter.count(bad=not record.completed)


def _follow_one(client: BaseClient, record: SpawnRecord, show: Show) -> Meter:
    meter = Meter(1, show, record.name)
    if not record.add_waker(client._driver.lock, meter.wake.set):
        meter.wake.set()
    # Weak: a client that nobody holds may go.
    asking = (weakref.ref(client), record, meter)
    threading.Thread(target=_ask_again, args=asking, name="quiesce-asks", daemon=True).start()
    return meter


def _ask_again(client: "weakref.ref[BaseClient]", record: SpawnRecord, meter: Meter) -> None:
    said: Progress | None = None
    while not record.over and not meter.over:
        try:
            found = _ask(client, record)
        except QuiesceError:  # no broker, or the task is gone from the history
            found = None
        except RuntimeError:  # closed
            break
        if found is not None:
            said = found
            meter.put(said)
        meter.wake.wait(ASK)
    completed, note = record.completed, "" if said is None else said.note
    if record.over and not completed:
        note = f"{note} (not completed)".strip()
    if said is None:
        said = Progress(int(completed), 1)
    elif completed and said.total is not None:
        said = Progress(said.total, said.total)
    meter.put(said._replace(note=note), over=True)


def _ask(client: "weakref.ref[BaseClient]", record: SpawnRecord) -> Progress | None:
    """What it says; None: nothing yet. RuntimeError: nobody is left to ask."""
    alive = client()
    if alive is None:
        raise RuntimeError("the client is gone")
    if not record.task_id:
        return None
    ask = requests.get_task(record.task_id)
    reply = alive._driver.ask(ask.message)
    if not alive._driver.wait(reply, ASK):
        alive._driver.abandon(reply)
        return None
    return alive._read(ask, reply).progress


def counting(
    submit: Callable[[], Callable[..., Any] | None], meter: Meter, size: Callable[..., int]
) -> Callable[[], Callable[..., Any] | None]:
    """A `submit` whose futures are counted when they are done: so many as `size` says of the arguments."""

    def get() -> Callable[..., Any] | None:
        begin = submit()
        if begin is None:
            return None

        def begin_counted(*args: Any) -> Any:
            future = begin(*args)
            future.add_done_callback(partial(_done, meter, size(*args)))
            return future

        return begin_counted

    return get


def _done(meter: Meter, number: int, future: Any) -> None:
    meter.count(number, bad=future.cancelled() or future.exception() is not None)
