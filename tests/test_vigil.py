"""A broker that has just been busy waits awake for a moment; not for long, and not at the cost of others."""

import os
import select
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quiesce.broker import vigil
from quiesce.broker.vigil import Vigil

LONGEST = 0.0004


class Clock:
    """Stands still, but while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Descriptors:
    """In place of a poll object: something comes `after` so many seconds of waiting. Keeps how it was asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.after = 0.0
        self.asked: list[int] = []

    def poll(self, timeout: int) -> list[tuple[int, int]]:
        self.asked.append(timeout)
        waited = min(self.after, timeout / 1000) if timeout else 0.00001
        self.clock.now += waited
        self.after -= waited
        return [] if self.after > 1e-9 else [(3, select.POLLIN)]

    def wait(self, watch: Vigil, after: float, timeout: int = 5000) -> list[int]:
        """How a wait asks for what comes after so long."""
        self.after, self.asked = after, []
        ready = watch.wait(timeout)
        assert ready == ([] if after > timeout / 1000 else [(3, select.POLLIN)])
        return self.asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(vigil, "time", made)
    monkeypatch.setattr(
        vigil, "os", SimpleNamespace(**{**vars(os), "sched_getaffinity": lambda pid: {0, 1}})
    )
    return made


@pytest.fixture
def descriptors(clock: Clock) -> Descriptors:
    return Descriptors(clock)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nanoseconds run, and waited for a processor, as the kernel would say."""
    said = [0, 0]
    monkeypatch.setattr(Vigil, "_read", lambda self: tuple(said))
    return said


@pytest.fixture
def watch(descriptors: Descriptors, account: list[int]) -> Iterator[Vigil]:
    made = Vigil(cast(Any, descriptors), LONGEST)
    yield made
    made.close()


def test_after_a_short_wait_it_stays_awake(watch: Vigil, descriptors: Descriptors) -> None:
    assert descriptors.wait(watch, LONGEST / 2) == [5000]  # nothing is known yet
    asked = descriptors.wait(watch, LONGEST / 2)
    assert len(asked) > 10
    assert set(asked) == {0}
    assert set(descriptors.wait(watch, LONGEST / 2)) == {0}


def test_if_that_was_in_vain_it_sleeps_the_next_time(
    watch: Vigil, descriptors: Descriptors
) -> None:
    descriptors.wait(watch, 0.0)
    asked = descriptors.wait(watch, 1.0)
    assert set(asked[:-1]) == {0}
    assert asked[-1] == 5000
    assert descriptors.wait(watch, 1.0) == [5000]
    # Nothing at all was no short wait either.
    descriptors.wait(watch, 0.0)
    descriptors.wait(watch, 1.0, timeout=10)
    assert descriptors.wait(watch, 0.0) == [5000]


def test_a_look_is_a_look(watch: Vigil, descriptors: Descriptors) -> None:
    descriptors.wait(watch, 0.0)
    descriptors.after, descriptors.asked = 1.0, []
    assert watch.wait(0) == []
    assert descriptors.asked == [0]


def test_where_others_want_the_processor_it_sleeps(
    watch: Vigil, descriptors: Descriptors, account: list[int], clock: Clock
) -> None:
    account[:] = [10_000_000, 5_000_000]
    descriptors.wait(watch, 0.0)
    assert descriptors.wait(watch, LONGEST / 2) == [5000]
    # For the account is looked at now and then only, and tells of the time since it was looked at last.
    account[:] = [20_000_000, 5_000_000]
    assert descriptors.wait(watch, LONGEST / 2) == [5000]
    clock.now += vigil.LOOK_EVERY
    assert set(descriptors.wait(watch, LONGEST / 2)) == {0}


@pytest.mark.parametrize("longest", [0.0, LONGEST])
def test_it_can_be_told_not_to_and_does_not_on_one_processor(
    clock: Clock,
    descriptors: Descriptors,
    account: list[int],
    monkeypatch: pytest.MonkeyPatch,
    longest: float,
) -> None:
    if longest:
        monkeypatch.setattr("quiesce.broker.vigil.os.sched_getaffinity", lambda pid: {5})
    watch = Vigil(cast(Any, descriptors), longest)
    descriptors.wait(watch, 0.0)
    assert descriptors.wait(watch, LONGEST / 2) == [5000]


def test_without_the_account_it_sleeps(
    clock: Clock, descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise FileNotFoundError("no /proc here")

    monkeypatch.setattr("quiesce.broker.vigil.os.open", missing)
    watch = Vigil(cast(Any, descriptors), LONGEST)
    descriptors.wait(watch, 0.0)
    assert descriptors.wait(watch, LONGEST / 2) == [5000]
    watch.close()


def test_it_waits_at_real_descriptors_and_reads_the_kernels_account() -> None:
    reader, writer = os.pipe()
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    watch = Vigil(poll, LONGEST)
    try:
        assert watch.wait(1) == []
        os.write(writer, b"x")
        for _ in range(3):
            assert watch.wait(10_000) == [(reader, select.POLLIN)]
        if watch._file >= 0:  # not everywhere there is one
            ran, waited = watch._read()
            assert ran > 0
            assert waited >= 0
    finally:
        watch.close()
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError):
        os.fstat(reader)
    assert watch._file == -1


def test_a_look_for_a_moment_sleeps_not_at_all(watch: Vigil, descriptors: Descriptors) -> None:
    for after, ready in ((LONGEST / 2, [(3, select.POLLIN)]), (1.0, [])):
        descriptors.after, descriptors.asked = after, []
        assert watch.look(LONGEST) == ready
        assert len(descriptors.asked) > 10
        assert set(descriptors.asked) == {0}
