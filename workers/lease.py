"""The lease of a supervisor, as it sees it itself: a pure part of its session.

It asks (Hello, Renew) at `a`; the answer lets it live until `a` + L. From the first answer on a timer of the
kernel ends it at the last such moment, and its workers with it; see `quiesce.registry.leases` for why the broker
may rely on that. If half a lease goes by without an answer, what runs is asked to stop and nothing begins,
until the next answer. That is all the supervisor does about a broker that is away, so one whose workers run
nothing ends by its timer, too: whoever started it starts another.

All moments are seconds of CLOCK_BOOTTIME, since that is what the timer counts.
"""

from typing import Any, Final, NamedTuple

from quiesce.registry.leases import HALF, RENEWALS

#: Seconds between two requests before there is a lease.
ASK_EVERY: Final = 0.5
#: A longer lease, in seconds, is a mistake of the broker's.
LONGEST: Final = 86400.0
#: Part of a lease that the answer may take once the supervisor itself was away (stopped, suspended).
PATIENCE: Final = 1 / 12


class ArmLease(NamedTuple):
    """Have the kernel end this process at `until`, in seconds of CLOCK_BOOTTIME. `lease` is L."""

    until: float
    lease: float


class AskForLease(NamedTuple):
    """The lease is half over: ask all that runs to stop, and let nothing begin."""

    reason: str


class LeaseIsBack(NamedTuple):
    """What begins now may run. What was asked to stop stays asked."""


LeaseEffects = list[ArmLease | AskForLease | LeaseIsBack]


def half_over(lease: float) -> str:
    """Why tasks are asked to stop, for people."""
    return f"no broker for {lease * HALF:.3g} s: the lease of this pool is half over"


class Lease:
    """What is known of it."""

    def __init__(self) -> None:
        #: L of the newest grant; 0.0 before the first.
        self.length = 0.0
        #: The `a` of the newest grant.
        self.granted_at = 0.0
        #: When the timer ends this process. None: there is no lease yet, and the timer is not armed.
        self.armed_until: float | None = None
        #: When it is asked for again, if the broker is there.
        self.ask_at = 0.0
        #: It is not called half over before this.
        self.judge_at = 0.0
        self.is_half_over = False
        #: Since when the broker owes an answer, or can't be asked. None: it owes none.
        self.waits_since: float | None = None

    @property
    def is_armed(self) -> bool:
        """Whether the timer runs: from the first grant on, for good."""
        return self.armed_until is not None

    @property
    def ask_every(self) -> float:
        """Seconds between two requests."""
        return self.length / RENEWALS or ASK_EVERY

    def asked(self, now: float) -> None:
        """A request leaves."""
        self.ask_at = now + self.ask_every
        self.waits(now)

    def waits(self, now: float) -> None:
        """A request leaves, or none can: the connection is gone."""
        if self.waits_since is None:
            self.waits_since = now

    def granted(self, sent_at: float, length: float, now: float) -> LeaseEffects:
        """The request of `sent_at` is answered. An answer that came too late, or to nothing we said, is none.

        A broker that was away answers what was asked meanwhile, the oldest first. Once the lease was half over only
        an answer brings it back that outlasts the way to the next: what begins by it is not asked to stop at once.
        """
        until = sent_at + length
        if not (sent_at <= now < until and length <= LONGEST):
            return []
        effects: LeaseEffects = []
        if sent_at >= self.granted_at:
            self.granted_at, self.length = sent_at, length
            self.waits_since = None
        if self.armed_until is None or until > self.armed_until:
            self.armed_until = until
            effects.append(ArmLease(until, self.length))
        if self.is_half_over and now <= self._half() - self.ask_every:
            self.is_half_over = False
            effects.append(LeaseIsBack())
        return effects

    def tick(self, now: float) -> LeaseEffects:
        """Once `due` has come; everything that had arrived before is to be told first.

        Who notices late that half of the lease is over was away itself, and its last requests are old; and so was
        who is owed no answer but to what it has just asked. It asks once more, and waits a moment for the answer.
        """
        due = self.due()
        if due is None or now < due:
            return []
        patience = self.length * PATIENCE
        asked = now if self.waits_since is None else self.waits_since
        was_away = now > due + patience or now < asked + patience
        if was_away and self.judge_at <= self._half():
            # If it would be dead by then: half of what is left is for its tasks.
            self.judge_at = min(now + patience, (now + (self.armed_until or now)) / 2)
            return []
        self.is_half_over = True
        return [AskForLease(half_over(self.length))]

    def due(self) -> float | None:
        """When it is to be judged half over."""
        if self.armed_until is None or self.is_half_over:
            return None
        return max(self._half(), self.judge_at)

    def _half(self) -> float:
        return self.granted_at + self.length * HALF

    # --- for the simulator and the explorer -------------------------------------------------------

    def freeze(self) -> tuple[Any, ...]:
        """All of its state, as a plain tuple."""
        return (
            self.length,
            self.granted_at,
            self.armed_until,
            self.ask_at,
            self.judge_at,
            self.is_half_over,
            self.waits_since,
        )

    @classmethod
    def thaw(cls, frozen: tuple[Any, ...]) -> "Lease":
        """The inverse of `freeze`."""
        lease = cls()
        (
            lease.length,
            lease.granted_at,
            lease.armed_until,
            lease.ask_at,
            lease.judge_at,
            lease.is_half_over,
            lease.waits_since,
        ) = frozen
        return lease

    def check(self) -> None:
        """Assert what holds at every moment. For tests."""
        if self.armed_until is None:
            assert not self.length
            assert not self.is_half_over
        else:
            assert self.length > 0
            assert self.armed_until >= self.granted_at + self.length
