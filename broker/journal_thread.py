"""The journal on disk: the loop's side, and the thread that writes.

The loop's thread puts turns into a queue; the journal's thread takes all that is there, commits it as one
row, and hands the effects back. What comes during a commit goes into the next. Snapshots are written and old
rows deleted between commits, a little at a time.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final

from quiesce.broker.histogram import COMMITS, Histogram
from quiesce.broker.journal import JournalFailedError, JournalLimits
from quiesce.broker.journal_space import PACE, is_full
from quiesce.broker.journal_store import Store
from quiesce.protocol.fact_codec import FactError
from quiesce.registry.effects import Effect
from quiesce.registry.facts import Fact

#: Between two pieces of a snapshot: so many times what the last one took, at most so many seconds. The loop's
#: thread needs the interpreter meanwhile: a snapshot of a million tasks takes seconds of it.
REST: Final = 2.0
LONGEST_REST: Final = 0.1


class _Snapshot:
    def __init__(self, frozen: tuple[Any, ...]) -> None:
        self.frozen = frozen


class _Word:
    """What else the loop may say."""


_VOUCH: Final = _Word()
_CLOSE: Final = _Word()

_Turn = tuple[list[Fact], list[Effect]]
_Item = _Turn | _Snapshot | _Word


class DiskJournal:
    """A journal that outlives the broker; see `Journal` for what it promises."""

    def __init__(self, store: Store, durability: str, limits: JournalLimits) -> None:
        self.durability = durability
        self._store = store
        self._limits = limits
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        #: A snapshot has been handed in, and is not done.
        self._snapshotting = False
        #: Turns handed in, and turns whose effects are in `_ready`: equal when nothing is pending.
        self._taken = self._done = 0
        #: Guards what follows, and `_done`.
        self._lock = threading.Lock()
        self._ready: list[Effect] = []
        self._failure: str | None = None
        self._failure_said = False
        #: What the journal's thread has done, counted by it alone.
        self._commits = Histogram(COMMITS)
        self._facts = self._snapshots = 0
        self._thread = threading.Thread(target=self._run, name="quiesce journal", daemon=True)
        self._thread.start()

    # --- the loop's side --------------------------------------------------------------------------

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""
        if not facts:
            with self._lock:
                if self._done == self._taken and self._failure is None:
                    self._hand_back(effects)  # nothing stands before them
                    return
        self._taken += 1
        self._inbox.put((facts, effects))

    def committed(self) -> list[Effect]:
        """What is safe by now."""
        if not self._ready and self._failure is None:
            return []
        with self._lock:
            ready, self._ready = self._ready, []
            if ready:
                if self._failure is None:
                    self.clear_wakeup()
                return ready
            if self._failure is not None:
                self._failure_said = True
                raise JournalFailedError(self._failure)
        return ready

    def fileno(self) -> int:
        """Readable when there is something to take, and for ever once the journal has failed."""
        return self._eventfd

    def clear_wakeup(self) -> None:
        """Make it unreadable."""
        if self._closed:
            return
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass

    def wants_snapshot(self) -> bool:
        """Whether the tail has grown long; not while one is being written, or the disk is full."""
        store, limits = self._store, self._limits
        if self._snapshotting or not store.space.roomy:
            return False
        long = store.tail_facts > max(
            limits.snapshot_facts, 2 * store.snapshot_weight
        ) or store.tail_bytes > max(limits.snapshot_bytes, 2 * store.snapshot_bytes)
        return long and time.monotonic() >= store.paused_until

    def snapshot(self, frozen: tuple[Any, ...]) -> None:
        """Have it written."""
        self._snapshotting = True
        self._inbox.put(_Snapshot(frozen))

    def room(self) -> bool:
        """Whether there is room on the disk for new work."""
        return self._store.space.roomy

    def vouch(self) -> None:
        """Have it noted."""
        self._inbox.put(_VOUCH)

    def figures(self) -> dict[str, Any]:
        """What it has written since the broker's start, for `Client.statistics()`."""
        return {
            "commit": {"bounds": list(COMMITS), **self._commits.plain()},
            "facts": self._facts,
            "snapshots": self._snapshots,
            "tail_facts": self._store.tail_facts,
            "tail_bytes": self._store.tail_bytes,
            "waiting_turns": self._taken - self._done,
            "roomy": self._store.space.roomy,
        }

    def close(self) -> None:
        """Commit what was taken (`committed` still hands out its effects); mark the end as an orderly one."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(_CLOSE)
        self._thread.join()
        os.close(self._eventfd)
        if self._failure is not None and not self._failure_said:
            raise JournalFailedError(self._failure)

    # --- the journal's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
            return
        except JournalFailedError as error:
            text = str(error)
        except FactError as error:
            text = f"a fact can't be written down: {error}"
        except (sqlite3.Error, OSError) as error:
            full = " (the disk is full, its reserve too)" if is_full(error) else ""
            text = f"the journal can't be written{full}: {error}"
        except BaseException as error:  # whatever it is, nobody may wait for it for ever
            text = f"the journal's thread failed: {error!r}"
        with self._lock:
            self._failure = text
            os.eventfd_write(self._eventfd, 1)
        try:
            self._store.abandon()
        except (sqlite3.Error, OSError):
            pass  # it has failed already

    def _work(self) -> None:
        """Until it is closed."""
        job: Iterator[None] | None = None
        go_on_at = 0.0
        while True:
            turns, word = self._take(None if job is None else go_on_at)
            if turns:
                self._commit(turns)
            if word is _CLOSE:
                self._store.close()
                return
            if word is _VOUCH:
                self._store.vouch()
            elif isinstance(word, _Snapshot):
                job = self._store.snapshot(word.frozen)
            began = time.monotonic()
            if job is not None and began >= go_on_at:
                job = self._go_on(job)
                ended = time.monotonic()
                go_on_at = ended + min(LONGEST_REST, REST * (ended - began))
            self._store.keep_short()

    def _take(self, until: float | None) -> tuple[list[_Turn], _Snapshot | _Word | None]:
        """All turns that are there, at most a group of facts, up to a word; and that word. Waits for the first,
        not longer than `until`.
        """
        turns: list[_Turn] = []
        count = 0
        try:
            # With the disk full somebody must look now and then, even if nothing is said.
            timeout = None if self._store.space.roomy else PACE
            if until is not None:
                timeout = max(0.0, until - time.monotonic())
            item = self._inbox.get(timeout=timeout)
            while True:
                if not isinstance(item, tuple):
                    return turns, item
                turns.append(item)
                count += len(item[0])
                if count >= self._limits.group:
                    break
                item = self._inbox.get_nowait()
        except Empty:
            pass
        return turns, None

    def _commit(self, turns: list[_Turn]) -> None:
        facts = [fact for turn in turns for fact in turn[0]]
        if facts:
            began = time.perf_counter()
            self._store.commit(facts)
            self._commits.add(time.perf_counter() - began)
            self._facts += len(facts)
        with self._lock:
            self._done += len(turns)
            self._hand_back([effect for turn in turns for effect in turn[1]])

    def _hand_back(self, effects: list[Effect]) -> None:
        """Under the lock."""
        if effects:
            if not self._ready:
                os.eventfd_write(self._eventfd, 1)
            self._ready += effects

    def _go_on(self, job: Iterator[None]) -> Iterator[None] | None:
        """A little more of the snapshot; a full disk ends it, and the old rows still serve."""
        try:
            next(job)
        except StopIteration:
            self._snapshots += 1
            self._snapshotting = False
            return None
        except (sqlite3.Error, OSError) as error:
            if not is_full(error):
                raise
            self._store.pause_snapshots()
            self._snapshotting = False
            return None
        return job
