"""When a supervisor that is out of reach is dead: the timing rule of leases, as arithmetic.

A supervisor notes `a` on its own clock, asks for its lease, and on the answer arms a timer of its kernel that
kills it at `a + L`, whatever state it is in. The broker handled that request at `b`, no earlier than `a`, and
declares the supervisor dead at `b + Lb`. (The idea is that of Gray and Cheriton, "Leases", SOSP 1989.)

It is true as long as the rates of both clocks are within 1 - rho and 1 + rho of real time, and the kernel ends
a process, and those that die with it, within K seconds of its timer:

    the supervisor dies by       a + L / (1 - rho) + K           in real time,
    the broker declares at       b + Lb / (1 + rho)              in real time, and b >= a,
    so it is safe iff            Lb >= (1 + rho) * (L / (1 - rho) + K).
"""

import math
from typing import Final

#: The lease L, in seconds.
LEASE: Final = 30.0
#: rho: clocks that drift apart by more than this break the promise. NTP slews by 0.0005 at most.
DRIFT: Final = 0.03
#: K: seconds from the timer to the last instruction of the supervisor and of its workers.
KILL_DELAY: Final = 1.0
#: Parts of a lease: it is renewed each sixth; after half of one without an answer tasks are asked to stop.
RENEWALS: Final = 6
HALF: Final = 0.5


def safe_bound(lease: float, drift: float = DRIFT, kill_delay: float = KILL_DELAY) -> float:
    """The least Lb that is safe, in seconds.

    Raises:
        ValueError: a value is no number in its range; the text says which.
    """
    for name, value, low, high in (
        ("lease", lease, 0.0, math.inf),
        ("clock_drift", drift, -1.0, 1.0),
        ("kill_delay", kill_delay, -1.0, math.inf),
    ):
        if not low < value < high or value < 0:
            raise ValueError(
                f"{name} must be a number from {max(low, 0.0):g} to {high:g}, not {value!r}"
            )
    return (1.0 + drift) * (lease / (1.0 - drift) + kill_delay)


def default_bound(lease: float, drift: float = DRIFT, kill_delay: float = KILL_DELAY) -> float:
    """The Lb that is taken where none is configured: the least safe one, up to the next half of a second."""
    return math.ceil(2 * safe_bound(lease, drift, kill_delay)) / 2


def is_safe(
    bound: float, lease: float, drift: float = DRIFT, kill_delay: float = KILL_DELAY
) -> bool:
    """Whether Lb is long enough for L."""
    return bound >= safe_bound(lease, drift, kill_delay)
