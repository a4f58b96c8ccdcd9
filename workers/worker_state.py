"""All that a worker session remembers, and what holds of it at every moment."""

import math
from typing import Any, Self

from quiesce.protocol import from_worker
from quiesce.registry.ids import AttemptKey
from quiesce.registry.rows import AssignRow
from quiesce.workers.worker_effects import RESEND, Asked, Held, Identity


class WorkerState:
    """The state of a session, to be frozen to and thawed from plain tuples, cheaply."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        #: What Registered gave; 0 until then.
        self.incarnation = 0
        #: The newest epoch seen. Messages of an older one are ignored.
        self.epoch = 0
        #: The broker has answered our last Hello, and no connection was lost since.
        self.registered = False
        #: When Hello is said again; None if none is due.
        self.hello_at: float | None = None
        self.hello_interval = RESEND
        #: The highest number of an assignment that has arrived.
        self.last_assign = 0
        #: All and only the attempts that arrived and were neither handed over nor stopped, oldest first.
        self.received: dict[AttemptKey, AssignRow] = {}
        #: All and only the attempts given to a thread or the loop of which nothing runs, as far as is known. Each
        #: has a slot; or, while nothing runs, they are to have the one slot in a row.
        self.handed: dict[AttemptKey, AssignRow] = {}
        #: All and only the attempts that have begun and not ended: when each began.
        self.running: dict[AttemptKey, float] = {}
        #: The running ones that are being loaded, their bodies not begun.
        self.loading: dict[AttemptKey, AssignRow] = {}
        #: All and only the running ones of which the broker has not been told that they have begun.
        self.untold: dict[AttemptKey, None] = {}
        #: None of them is to be told of before this.
        self.tell_at = math.inf
        #: The running ones that were asked to stop.
        self.asked: dict[AttemptKey, Asked] = {}
        #: The asked ones that have asked for more time: how many seconds in all.
        self.extending: dict[AttemptKey, float] = {}
        #: The running ones that wait for other tasks: for which, and how many of their calls do.
        self.waiting: dict[AttemptKey, dict[int, int]] = {}
        #: The running ones whose body has ended, and what they wait for.
        self.lingering: dict[AttemptKey, str] = {}
        #: All and only the attempts whose end the broker has not taken.
        self.held: dict[AttemptKey, Held] = {}
        #: Those of them that have never been sent.
        self.unsent: list[AttemptKey] = []
        #: None of the others is to be sent again before this.
        self.resend_at = math.inf
        #: Attempts that must never begin here, until the assignment of that number has passed.
        self.tombstones: dict[AttemptKey, int] = {}
        #: All and only the assignments that were given back and that the broker has not taken back yet.
        self.given_back: dict[tuple[int, int, int], None] = {}
        #: When an attempt was last handed over, or one was received while none waited, or one began that others
        #: were to follow in a row.
        self.flowed_at = 0.0
        #: With one slot: when to ask whether one of what was handed has begun, and lasts.
        self.look_at = math.inf
        #: Calls of associate_with without an answer.
        self.associating: dict[int, from_worker.Associate] = {}
        self.last_request = 0
        #: What each running attempt last said of its progress and has not been sent.
        self.progress: dict[AttemptKey, tuple[float, float | None, str]] = {}
        self.progress_at = 0.0
        #: When Exit came; None before. Nothing begins any more.
        self.exiting_since: float | None = None
        #: Nothing may begin now: the lease of the pool is half over.
        self.lease_is_over = False

    # --- for the simulator and the explorer -------------------------------------------------------

    def freeze(self) -> tuple[Any, ...]:
        """All of its state but the identity, as plain tuples."""
        return (
            self.incarnation,
            self.epoch,
            self.registered,
            self.hello_at,
            self.hello_interval,
            self.last_assign,
            tuple((key, tuple(row)) for key, row in self.received.items()),
            tuple((key, tuple(row)) for key, row in self.handed.items()),
            tuple(self.running.items()),
            tuple((key, tuple(row)) for key, row in self.loading.items()),
            tuple((key, tuple(asked)) for key, asked in self.asked.items()),
            tuple((key, tuple(others.items())) for key, others in self.waiting.items()),
            tuple(self.lingering.items()),
            tuple((key, tuple(held)) for key, held in self.held.items()),
            tuple(self.unsent),
            self.resend_at,
            tuple(self.tombstones.items()),
            tuple((request, tuple(asked)) for request, asked in self.associating.items()),
            self.last_request,
            tuple(self.progress.items()),
            self.progress_at,
            self.exiting_since,
            self.lease_is_over,
            tuple(self.given_back),
            self.flowed_at,
            tuple(self.untold),
            self.tell_at,
            self.look_at,
            tuple(self.extending.items()),
        )

    @classmethod
    def thaw(cls, identity: Identity, frozen: tuple[Any, ...]) -> Self:
        """The inverse of `freeze`."""
        session = cls(identity)
        (
            session.incarnation,
            session.epoch,
            session.registered,
            session.hello_at,
            session.hello_interval,
            session.last_assign,
            received,
            handed,
            running,
            loading,
            asked,
            waiting,
            lingering,
            held,
            unsent,
            session.resend_at,
            tombstones,
            associating,
            session.last_request,
            progress,
            session.progress_at,
            session.exiting_since,
            session.lease_is_over,
            given_back,
            session.flowed_at,
            untold,
            session.tell_at,
            session.look_at,
            extending,
        ) = frozen
        session.extending = dict(extending)
        session.given_back = dict.fromkeys(given_back)
        session.received = {key: AssignRow(*row) for key, row in received}
        session.handed = {key: AssignRow(*row) for key, row in handed}
        session.running = dict(running)
        session.loading = {key: AssignRow(*row) for key, row in loading}
        session.untold = dict.fromkeys(untold)
        session.asked = {key: Asked(*row) for key, row in asked}
        session.waiting = {key: dict(others) for key, others in waiting}
        session.lingering = dict(lingering)
        session.held = {key: Held(*row) for key, row in held}
        session.unsent = list(unsent)
        session.tombstones = dict(tombstones)
        session.associating = {request: from_worker.Associate(*row) for request, row in associating}
        session.progress = dict(progress)
        return session

    def check(self) -> None:
        """Assert what the attributes say of themselves. For tests."""
        places: list[dict[AttemptKey, Any]] = [
            self.received,
            self.handed,
            self.running,
            self.held,
            self.tombstones,
        ]
        keys = [key for place in places for key in place]
        assert len(keys) == len(set(keys)), f"an attempt is in two places: {keys}"
        assert set(self.unsent) <= self.held.keys()
        assert self.loading.keys() <= self.running.keys()
        assert self.untold.keys() <= self.running.keys()
        assert all(self.tell_at <= self.running[key] + 1.0 for key in self.untold)
        assert self.asked.keys() <= self.running.keys()
        assert self.extending.keys() <= self.asked.keys()
        assert self.waiting.keys() <= self.running.keys()
        assert all(
            others and min(others.values()) > 0 and 0 not in others
            for others in self.waiting.values()
        )
        assert self.lingering.keys() <= self.running.keys()
        row_in_hand = self.identity.slots == 1 and not self.running
        assert row_in_hand or len(self.handed) + len(self.running) <= self.identity.slots
        begun = sum(held.begun_at is not None for held in self.held.values())
        assert len(self.handed) + len(self.running) + begun <= self.identity.capacity
        assert not self.handed or (self.exiting_since is None and not self.lease_is_over)
        assert not any(asked.told and asked.lease for asked in self.asked.values())
        assert not self.lease_is_over or self.asked.keys() == self.running.keys()
        assert all(number > self.last_assign for number in self.tombstones.values())
