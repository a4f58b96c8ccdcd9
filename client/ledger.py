"""The records of a client by their keys: from what the session machine says to who waits for it.

Written by the I/O thread alone; records themselves are guarded by the lock, since others wait on them.
"""

from collections import Counter, deque
from collections.abc import Container, Iterable
from functools import partial
from typing import Final

from quiesce.client.records import Ends, Reply, SpawnRecord, Trouble, log, log_unseen
from quiesce.client.steps import Answered, Replied, TasksEnded
from quiesce.client.waiting import Waitable, Waker, wait_for
from quiesce.locks import Lock
from quiesce.protocol import to_client
from quiesce.registry.rows import SpawnAnswer

#: So many refused spawns are kept, to say at the end which nobody has looked at.
_REFUSED: Final = 1000


class Ledger:
    """See the module. What says so is called under the lock."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        #: By key: all and only the spawns that are not over; the requests whose answer is still of use.
        self._spawns: dict[int, SpawnRecord] = {}
        self._replies: dict[int, Reply] = {}
        self._refused: deque[SpawnRecord] = deque(maxlen=_REFUSED)
        #: By attempt: its nested spawns without an answer (also those not entered yet), and who waits for
        #: there to be none. Guarded by the lock.
        self._open: Counter[tuple[int, int]] = Counter()
        self._settled: dict[tuple[int, int], Waitable] = {}
        #: To be called soon, outside of the lock.
        self._wakers: list[Waker] = []

    # --- from any thread ---------------------------------------------------------------------

    def expect(self, parent: tuple[int, int], count: int) -> None:
        """Under the lock: so many spawns of this attempt are on their way."""
        self._open[parent] += count

    def refuse_here(self, records: list[SpawnRecord], trouble: Trouble) -> None:
        """Under the lock: these were never handed over, and nobody waits for them yet."""
        self._refused.extend(records[:1])  # they share what has been seen
        for record in records:
            record.give_up(trouble, [])

    def wait_settled(self, parent: tuple[int, int], timeout: float) -> bool:
        """Whether no spawn of this attempt is without an answer within `timeout` seconds."""
        with self._lock:
            if not self._open[parent]:
                return True
            settled = self._settled.setdefault(parent, Waitable())
        return wait_for(settled, self._lock, timeout, interruptible=False)

    # --- the I/O thread ----------------------------------------------------------------------

    def enter_spawns(self, first: int, records: Iterable[SpawnRecord]) -> None:
        """These have the keys from `first` on."""
        self._spawns.update(enumerate(records, first))

    def enter_reply(self, key: int, reply: Reply) -> None:
        """This request has that key."""
        reply.key = key
        self._replies[key] = reply

    def forget_reply(self, reply: Reply) -> None:
        """Its answer is of no use any more, unless it brings a scope that is to be released."""
        if not reply.holds:
            self._replies.pop(reply.key, None)

    def on_answered(self, effect: Answered) -> None:
        """What has become of spawns: of all that one message tells, under the lock once."""
        spawns, wakers = self._spawns, self._wakers
        refused: list[SpawnAnswer] = []
        with self._lock:
            for row in effect.rows:
                key, task_id, _, _ = row
                if not task_id:
                    refused.append(row)
                    continue
                record = spawns[key]
                record.task_id = task_id
                if record.awaited is not None:
                    record.awaited.finish(wakers)
                if record.parent is not None:
                    self._settle(record.parent)
        for row in refused:
            self.give_up((row.number,), (row.error or "QuiesceError", row.text))

    def on_ended(self, effect: TasksEnded) -> None:
        """These tasks have ended; likewise."""
        spawns, wakers = self._spawns, self._wakers
        with self._lock:
            for keys, row in effect.ends:
                for key in keys:
                    record = spawns.pop(key)
                    record.result = row
                    record.over = True  # after the result, which is read without the lock
                    if record.wakers is not None:
                        record.finish(wakers)

    def on_replied(self, effect: Replied) -> Reply | None:
        """The reply, if nobody waits for it any more."""
        reply = self._replies.pop(effect.key, None)
        if reply is None:
            return None
        message = effect.message
        if isinstance(message, to_client.StopReport) and effect.ends:
            reply.ends = self._expect_ends(effect.ends, message)
        with self._lock:
            if isinstance(message, to_client.Refused):
                reply.trouble = (message.error, message.text)
            else:
                reply.answer = message
            reply.finish(self._wakers)
            return reply if reply.orphan else None

    def _expect_ends(self, keys: tuple[int, ...], report: to_client.StopReport) -> Ends:
        ended = {row.id for row in report.tasks}
        ends = Ends(len(keys))
        for key in keys:
            record = self._spawns[key]
            answered = partial(self._on_answer_expected, record, ended, ends)
            if not record.answer(self._lock).add_waker(self._lock, answered):
                self._expect_end(record, ends)
        return ends

    def _on_answer_expected(self, record: SpawnRecord, ended: Container[int], ends: Ends) -> None:
        if record.task_id in ended:
            self._expect_end(record, ends)
        else:  # refused, or none of the stop's
            self._on_end_expected(ends)

    def _expect_end(self, record: SpawnRecord, ends: Ends) -> None:
        arrived = partial(self._on_end_expected, ends)
        if not record.add_waker(self._lock, arrived):
            arrived()

    def _on_end_expected(self, ends: Ends) -> None:
        ends.left -= 1
        if not ends.left:
            self.finish(ends)

    def finish(self, thing: Waitable) -> None:
        """It is over, if it wasn't."""
        with self._lock:
            if not thing.over:
                thing.finish(self._wakers)

    def give_up(self, keys: Iterable[int], trouble: Trouble) -> None:
        """Of these spawns nothing more will be heard."""
        self._give_up([self._spawns.pop(key) for key in keys], trouble)

    def fail_replies(self, replies: Iterable[Reply], trouble: Trouble) -> None:
        """None of all requests, nor of `replies`, will be answered."""
        with self._lock:
            for reply in (*replies, *self._replies.values()):
                if not reply.over:
                    reply.trouble = trouble
                    reply.finish(self._wakers)
        self._replies.clear()

    def fail_spawns(
        self, records: list[SpawnRecord], unanswered: Trouble, answered: Trouble
    ) -> int:
        """Of all spawns, `records` included, nothing more will be heard; how many had no answer."""
        records = [*self._spawns.values(), *records]
        self._spawns.clear()
        without = [record for record in records if not record.answered]
        self._give_up([record for record in records if record.answered], answered)
        self._give_up(without, unanswered)
        return len(without)

    def log_unseen(self) -> None:
        """The last moment to say what nobody has looked at."""
        log_unseen(self._refused)
        self._refused.clear()

    def call_soon(self, waker: Waker) -> None:
        """Have it called with the others."""
        self._wakers.append(waker)

    def ring(self) -> None:
        """Wake who waits, outside of the lock."""
        while self._wakers:
            wakers, self._wakers = self._wakers, []
            for waker in wakers:
                try:
                    waker()
                except Exception:
                    log.exception("a callback of a quiesce client has failed")

    def _give_up(self, records: list[SpawnRecord], trouble: Trouble) -> None:
        for record in records:
            with self._lock:
                if not record.answered and record.parent is not None:
                    self._settle(record.parent)
                record.give_up(trouble, self._wakers)
        log_unseen(record for record in records if record.dropped)
        self._refused.extend(record for record in records if not record.task_id)

    def _settle(self, parent: tuple[int, int]) -> None:
        """Under the lock: one spawn fewer of this attempt is unanswered."""
        self._open[parent] -= 1
        if not self._open[parent]:
            del self._open[parent]
            settled = self._settled.pop(parent, None)
            if settled is not None:
                settled.finish(self._wakers)
