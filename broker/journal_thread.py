"""The journal on disk: the loop's side, and the thread that writes.

The loop's thread puts turns into a queue; the journal's thread takes all that is there, commits it as one
row, and hands the effects back. What comes during a commit goes into the next. Snapshots are written and old
rows deleted between commits, a little at a time.

But for a commit that waits for no sync that is a long way round: two threads wake each other for what takes
some microseconds. So the loop may say (`commit_here`) that it can stand a disk that stalls; then it commits
itself, at the end of each turn, what is small, as long as the journal's thread has nothing to commit. The store has
a lock: who has it writes.

What the loop has committed is safe from its own death. If it must be safe from the machine's, too, the thread syncs
it, and nobody waits for that but who is to be told so: the binding effects, which keep their order.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final

from quiesce.broker.histogram import COMMITS, Histogram
from quiesce.broker.journal import JournalFailedError, JournalLimits
from quiesce.broker.journal_rows import SYNCED
from quiesce.broker.journal_space import PACE, is_full
from quiesce.broker.journal_store import Store
from quiesce.protocol.fact_codec import FactError
from quiesce.protocol.frames import Frame
from quiesce.registry import facts as fact_types
from quiesce.registry.effects import BINDING, Effect
from quiesce.registry.facts import Fact, weight

#: Facts that the loop commits itself, at most, and bytes of their payloads.
SMALL: Final = 2_000
LIGHT: Final = 2**20
#: Facts with payloads, and which these are.
_PAYLOADS: Final[dict[type, Callable[[Any], Iterable[Sized]]]] = {
    fact_types.TaskRegistered: lambda fact: fact.row[-2:],
    fact_types.SpawnParked: lambda fact: fact.row[-2:],
    fact_types.TasksRegistered: lambda fact: (*fact.row[-2:], *fact.arguments),
    fact_types.TaskEnded: lambda fact: (fact.result,),
    fact_types.TasksCompleted: lambda fact: fact.results,
}

#: Between two pieces of a snapshot: so many times what the last one took, at most so many seconds. The loop's
#: thread needs the interpreter meanwhile: a snapshot of a million tasks takes seconds of it.
REST: Final = 2.0
LONGEST_REST: Final = 0.1


class _Snapshot:
    def __init__(self, frozen: tuple[Any, ...]) -> None:
        self.frozen = frozen


class _Bound:
    """What may leave once all rows up to this one are on the disk."""

    def __init__(self, seq: int, effects: list[Effect]) -> None:
        self.seq = seq
        self.effects = effects


class _Word:
    """What else the loop may say."""


_VOUCH: Final = _Word()
_SHORTEN: Final = _Word()
_CLOSE: Final = _Word()

_Turn = tuple[list[Fact], list[Effect]]
_Item = _Turn | _Bound | _Snapshot | _Word


class DiskJournal:
    """A journal that outlives the broker; see `Journal` for what it promises."""

    def __init__(self, store: Store, durability: str, limits: JournalLimits) -> None:
        self.durability = durability
        self._store = store
        self._limits = limits
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        #: What is to come behind a sync that the loop is about to ask for.
        self._behind: list[_Item] | None = None
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        #: A snapshot has been handed in, and is not done.
        self._snapshotting = False
        #: It has been handed in, and the journal's thread has not begun it: what is committed by then is in it.
        self._cut_due = False
        #: Turns handed in, and turns whose effects are in `_ready`: equal when nothing is pending.
        self._taken = self._done = 0
        #: How often the thread was asked for a sync, and has made it (each counted by one of the two alone).
        self._asked = self._synced = 0
        #: Guards what follows, and `_done`.
        self._lock = threading.Lock()
        self._ready: list[Effect] = []
        #: The loop was told of them.
        self._woken = False
        self._failure: str | None = None
        self._failure_said = False
        #: What the journal's thread has done, counted by it alone.
        self._commits = Histogram(COMMITS)
        self._facts = self._snapshots = 0
        #: Held by whoever uses the store.
        self._store_lock = threading.Lock()
        #: Around a commit in the loop's thread; None: all are the journal's.
        self._aside: Callable[[], AbstractContextManager[None]] | None = None
        #: The turns that the loop has not committed yet.
        self._open: list[_Turn] = []
        self._thread = threading.Thread(target=self._run, name="quiesce journal", daemon=True)
        self._thread.start()

    # --- the loop's side --------------------------------------------------------------------------

    def commit_here(self, aside: Callable[[], AbstractContextManager[None]]) -> None:
        """From now on `committed` may commit by itself, within `aside()`: it may take as long as the disk stalls.

        Not with every commit synced: then others had better come in meanwhile.
        """
        if self.durability != "power-loss":
            self._aside = aside

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""
        if self._aside is not None:
            self._open.append((facts, effects))
        else:
            self._hand_over(facts, effects)

    def _hand_over_open(self) -> None:
        turns, self._open = self._open, []
        for facts, effects in turns:
            self._hand_over(facts, effects)

    def _hand_over(self, facts: list[Fact], effects: list[Effect]) -> None:
        if not facts:
            with self._lock:
                if self._done == self._taken and not self._binds and self._failure is None:
                    self._hand_back(effects)  # nothing stands before them
                    return
        self._taken += 1
        self._put((facts, effects))

    def _put(self, item: _Item) -> None:
        if self._behind is None:
            self._inbox.put(item)
        else:
            self._behind.append(item)

    def committed(self) -> list[Effect]:
        """What is safe by now."""
        if self._open:
            self._settle()
        if not self._ready and self._failure is None:
            return []
        with self._lock:
            ready, self._ready = self._ready, []
            if self._woken and self._failure is None:
                self.clear_wakeup()
            if ready:
                return ready
            if self._failure is not None:
                self._failure_said = True
                raise JournalFailedError(self._failure)
        return ready

    def _settle(self) -> None:
        """Commit the open turns here, or have it done."""
        if not (self._is_small(self._open) and self._store_lock.acquire(blocking=False)):
            self._hand_over_open()
            return
        assert self._aside is not None, "what is open was to be committed here"
        try:
            # The thread has the lock while it works, and what it works on was taken before.
            if self._done != self._taken or self._cut_due or self._failure is not None:
                self._hand_over_open()
                return
            turns, self._open = self._open, []
            self._taken += len(turns)
            with self._bound(turns) as effects, self._aside():
                try:
                    self._commit(turns, later=True)
                    self._store.space.look()
                    long = self._store.is_long or not self._store.space.roomy
                except Exception as error:
                    self._fail(error)
                    return
            with self._lock:
                # Nobody is to be woken: they are asked for now.
                self._done += len(turns)
                self._ready += effects
        finally:
            self._store_lock.release()
        if long:
            self._put(_SHORTEN)

    @contextmanager
    def _bound(self, turns: list[_Turn]) -> Iterator[list[Effect]]:
        """Within, these turns are committed. Then they are synced if need be, and what is binding leaves; gives the
        effects that need not wait for that.
        """
        effects = [effect for turn in turns for effect in turn[1]]
        binding = [effect for effect in effects if type(effect) in BINDING]
        if SYNCED.isdisjoint(type(fact) for turn in turns for fact in turn[0]) and not (
            binding and self._binds
        ):
            yield effects
            return
        self._asked += 1
        behind: list[_Item] = []
        self._behind = behind
        try:
            yield [effect for effect in effects if type(effect) not in BINDING]
        finally:
            self._behind = None
            for item in (_Bound(self._store.last.seq, binding), *behind):
                self._put(item)

    @property
    def _binds(self) -> bool:
        """Whether something is not on the disk yet that is to be."""
        return self._asked != self._synced

    @staticmethod
    def _is_small(turns: list[_Turn]) -> bool:
        """Whether these turns do not take long, and something may leave before they are synced."""
        count = size = 0
        for facts, _ in turns:
            for fact in facts:
                kind = type(fact)
                if kind is fact_types.EpochStarted:
                    return False
                payloads = _PAYLOADS.get(kind)
                if payloads is not None:
                    if Frame in map(type, payloads(fact)):
                        return False
                    size += sum(map(len, payloads(fact)))
                count += weight(fact)
        return count <= SMALL and size <= LIGHT

    @property
    def behind(self) -> bool:
        """Whether something that was taken is not safe yet."""
        return self._done != self._taken or self._binds or bool(self._open)

    def fileno(self) -> int:
        """Readable when there is something to take, and for ever once the journal has failed."""
        return self._eventfd

    def clear_wakeup(self) -> None:
        """Make it unreadable."""
        if self._closed:
            return
        self._woken = False
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
        self._hand_over_open()
        self._snapshotting = self._cut_due = True
        self._put(_Snapshot(frozen))

    def room(self) -> bool:
        """Whether there is room on the disk for new work."""
        return self._store.space.roomy

    def vouch(self) -> None:
        """Have it noted."""
        self._put(_VOUCH)

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
        self._hand_over_open()
        self._put(_CLOSE)
        self._thread.join()
        os.close(self._eventfd)
        if self._failure is not None and not self._failure_said:
            raise JournalFailedError(self._failure)

    # --- the journal's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # whatever it is, nobody may wait for it for ever
            with self._store_lock:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing is written any more. With the store's lock."""
        if isinstance(error, JournalFailedError):
            text = str(error)
        elif isinstance(error, FactError):
            text = f"a fact can't be written down: {error}"
        elif isinstance(error, sqlite3.Error | OSError):
            full = " (the disk is full, its reserve too)" if is_full(error) else ""
            text = f"the journal can't be written{full}: {error}"
        else:
            text = f"the journal failed: {error!r}"
        with self._lock:
            if self._failure is not None:
                return
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
            if isinstance(word, _Bound) and not turns:
                self._sync(word)
                continue
            with self._store_lock:
                if self._failure is not None:
                    return
                if turns:
                    self._commit(turns)
                    with self._lock:
                        self._done += len(turns)
                        self._hand_back([effect for turn in turns for effect in turn[1]])
                if word is _CLOSE:
                    self._store.close()
                    return
                if word is _VOUCH:
                    self._store.vouch()
                elif isinstance(word, _Snapshot):
                    # Its first step is now: it stands for all that was committed, and for nothing that comes.
                    job, go_on_at = self._store.snapshot(word.frozen), 0.0
                began = time.monotonic()
                if job is not None and began >= go_on_at:
                    job = self._go_on(job)
                    self._cut_due = False
                    ended = time.monotonic()
                    go_on_at = ended + min(LONGEST_REST, REST * (ended - began))
            if isinstance(word, _Bound):
                self._sync(word)
            if self._store.is_long:
                self._store.sync_log()  # the loop may commit meanwhile; the rest takes less long
            with self._store_lock:
                if self._failure is None:
                    self._store.keep_short()

    def _sync(self, bound: _Bound) -> None:
        """Have its rows on the disk, and let go. Without the store's lock: the loop commits meanwhile."""
        self._store.bind(bound.seq)
        with self._lock:
            self._synced += 1
            if self._failure is None:
                self._hand_back(bound.effects)

    def _take(self, until: float | None) -> tuple[list[_Turn], _Bound | _Snapshot | _Word | None]:
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

    def _commit(self, turns: list[_Turn], *, later: bool = False) -> None:
        facts = [fact for turn in turns for fact in turn[0]]
        if facts:
            began = time.perf_counter()
            self._store.commit(facts, later=later)
            self._commits.add(time.perf_counter() - began)
            self._facts += len(facts)

    def _hand_back(self, effects: list[Effect]) -> None:
        """Under the lock."""
        if effects:
            if not self._woken:
                self._woken = True
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
