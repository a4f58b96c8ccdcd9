"""When what died is started again."""

import pytest

from quiesce.cli.restarts import LONGEST_PAUSE, MAX_FAILURES, WINDOW, Restarts


def test_what_is_never_ready_is_given_up_after_pauses_that_double() -> None:
    restarts = Restarts()
    now, pauses = 100.0, []
    for _ in range(MAX_FAILURES - 1):
        at = restarts.died(now, ready=False)
        pauses.append(at - now)
        assert not restarts.given_up
        now = at
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6])
    restarts.died(now, ready=False)
    assert restarts.given_up


def test_one_that_was_ready_ends_the_row() -> None:
    restarts = Restarts()
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            restarts.died(0.0, ready=False)
        restarts.died(0.0, ready=True)
        assert not restarts.given_up
        assert restarts.failures == []


def test_one_that_was_ready_is_followed_at_once_unless_they_die_fast() -> None:
    restarts = Restarts()
    pauses = [restarts.died(100.0, ready=True) - 100.0 for _ in range(100)]
    assert pauses[:6] == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.0])
    assert set(pauses[6:]) == {LONGEST_PAUSE}
    assert not restarts.given_up
    assert restarts.died(100.0 + WINDOW, ready=True) == 100.0 + WINDOW
    assert restarts.deaths == [100.0 + WINDOW]


def test_who_is_excused_is_never_given_up_and_never_followed_at_once() -> None:
    restarts = Restarts()
    pauses = [restarts.died(0.0, ready=False, excused=True) for _ in range(2000)]
    assert pauses[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    assert set(pauses[5:]) == {LONGEST_PAUSE}
    assert not restarts.given_up


def test_who_is_excused_does_not_end_a_row_of_failures() -> None:
    restarts = Restarts()
    restarts.died(0.0, ready=False)
    restarts.died(0.0, ready=False, excused=True)
    assert restarts.failures == [0.0]
    restarts.died(0.0, ready=True, excused=True)
    assert restarts.failures == []
