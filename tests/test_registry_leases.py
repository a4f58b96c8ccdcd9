"""The timing rule of leases: who dies by its own timer is dead before the broker says so, exactly if it is safe."""

import math

import pytest
from hypothesis import example, given, strategies as st

from quiesce.registry import leases
from quiesce.registry.leases import default_bound, is_safe, safe_bound


@pytest.mark.parametrize(
    ("lease", "drift", "kill_delay", "least"),
    [
        (30.0, 0.0, 0.0, 30.0),
        (30.0, 0.0, 1.0, 31.0),
        (30.0, 0.03, 0.0, 1.03 * 30 / 0.97),
        (30.0, 0.03, 1.0, 1.03 * (30 / 0.97 + 1)),
        (1.0, 0.5, 0.25, 1.5 * (2 + 0.25)),
        (0.5, 0.0, 0.0, 0.5),
    ],
)
def test_the_least_safe_bound(lease: float, drift: float, kill_delay: float, least: float) -> None:
    assert safe_bound(lease, drift, kill_delay) == pytest.approx(least)
    assert is_safe(safe_bound(lease, drift, kill_delay), lease, drift, kill_delay)
    assert not is_safe(
        math.nextafter(safe_bound(lease, drift, kill_delay), 0), lease, drift, kill_delay
    )


def test_the_defaults() -> None:
    assert leases.LEASE == 30.0
    assert safe_bound(leases.LEASE) == safe_bound(30.0, leases.DRIFT, leases.KILL_DELAY)
    assert default_bound(leases.LEASE) == 33.0
    assert [default_bound(lease) for lease in (0.5, 1.0, 2.0)] == [2.0, 2.5, 3.5]
    assert leases.RENEWALS * leases.HALF == 3, "three requests without an answer are half a lease"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((0.0,), "lease"),
        ((-1.0,), "lease"),
        ((math.inf,), "lease"),
        ((math.nan,), "lease"),
        ((1.0, -0.01), "clock_drift"),
        ((1.0, 1.0), "clock_drift"),
        ((1.0, math.nan), "clock_drift"),
        ((1.0, 0.0, -0.5), "kill_delay"),
        ((1.0, 0.0, math.inf), "kill_delay"),
        ((1.0, 0.0, math.nan), "kill_delay"),
    ],
)
@pytest.mark.parametrize(
    "function", [safe_bound, default_bound, lambda *values: is_safe(99.0, *values)]
)
def test_values_out_of_range(function: object, values: tuple[float, ...], name: str) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=f"^{name} must be a number"):
        function(*values)


# --- against a world with two clocks --------------------------------------------------------------


class World:
    """Real time, in which the supervisor asks at 0 and the broker handles that `way` seconds later."""

    def __init__(
        self, supervisor_rate: float, broker_rate: float, way: float, kill_delay: float
    ) -> None:
        self.supervisor_rate = supervisor_rate
        self.broker_rate = broker_rate
        self.way = way
        self.kill_delay = kill_delay

    def dies(self, lease: float) -> float:
        """When the last instruction of the supervisor and its workers has run: the timer counts by its clock."""
        return lease / self.supervisor_rate + self.kill_delay

    def is_declared_dead(self, bound: float) -> float:
        """When the broker says so, by its own clock."""
        return self.way + bound / self.broker_rate


leases_of = st.floats(0.01, 3600)
drifts = st.floats(0, 0.9)
delays = st.floats(0, 60)
parts = st.floats(0, 1)


def rate(drift: float, part: float) -> float:
    """A clock rate within 1 - drift and 1 + drift."""
    return 1 - drift + part * 2 * drift


@given(leases_of, drifts, delays, parts, parts, parts, st.floats(0, 10), st.floats(0, 10))
@example(30.0, 0.03, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)  # the worst of all
def test_a_safe_bound_declares_only_the_dead(
    lease: float,
    drift: float,
    kill_delay: float,
    supervisor: float,
    broker: float,
    delay: float,
    way: float,
    more: float,
) -> None:
    bound = safe_bound(lease, drift, kill_delay) + more
    assert is_safe(bound, lease, drift, kill_delay)
    world = World(rate(drift, supervisor), rate(drift, broker), way, delay * kill_delay)
    assert world.dies(lease) <= world.is_declared_dead(bound) * (1 + 1e-12)


@given(leases_of, drifts, delays, st.floats(1e-6, 0.5))
@example(30.0, 0.03, 1.0, 1e-6)
def test_a_shorter_bound_declares_one_that_lives(
    lease: float, drift: float, kill_delay: float, less: float
) -> None:
    """The slowest supervisor, the fastest broker, no way between them and the slowest kill."""
    bound = safe_bound(lease, drift, kill_delay) * (1 - less)
    assert not is_safe(bound, lease, drift, kill_delay)
    world = World(1 - drift, 1 + drift, 0.0, kill_delay)
    assert world.dies(lease) > world.is_declared_dead(bound)


@given(
    leases_of,
    drifts,
    delays,
    st.floats(0, 7300),
    st.lists(st.tuples(parts, parts, parts), max_size=20),
)
def test_safe_is_what_holds_in_every_world(
    lease: float,
    drift: float,
    kill_delay: float,
    bound: float,
    worlds: list[tuple[float, float, float]],
) -> None:
    """In both directions: with the worst world among them, all declare only the dead iff the bound is safe."""
    holds = all(
        world.dies(lease) <= world.is_declared_dead(bound)
        for world in [
            World(1 - drift, 1 + drift, 0.0, kill_delay),
            *(
                World(rate(drift, one), rate(drift, two), 0.0, part * kill_delay)
                for one, two, part in worlds
            ),
        ]
    )
    near = abs(bound - safe_bound(lease, drift, kill_delay)) < 1e-9 * (bound + 1)
    assert near or holds == is_safe(bound, lease, drift, kill_delay)
