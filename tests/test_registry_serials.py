"""The serials of dead workers: a set that takes no room for those in a row."""

import itertools

import pytest
from hypothesis import given, strategies as st

from quiesce.registry import events
from quiesce.registry.machine import Registry
from quiesce.registry.serials import Serials
from registry_helpers import Desk


@given(added=st.lists(st.integers(1, 30)))
def test_it_holds_what_was_added(added: list[int]) -> None:
    serials = Serials()
    for serial in added:
        serials.add(serial)
    ranges = serials.ranges()
    assert {each for each in range(32) if each in serials} == set(added)
    assert [each for first, last in ranges for each in range(first, last + 1)] == sorted(set(added))
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert Serials(ranges).ranges() == ranges


def dead(desk: Desk, serials: list[int]) -> Serials:
    """What a supervisor of one living worker, with serial 1, remembers of those that died."""
    desk.worker("solo")
    (supervisor,) = desk.registry.state.supervisors.values()
    for serial in serials:
        row = events.ExitRow(serial, 1000 + serial, -9, True, [])
        desk.say(events.WorkerExited(supervisor.id, row))
    return supervisor.dead_serials


def test_a_pool_whose_workers_die_for_weeks_takes_no_more_room() -> None:
    assert dead(Desk(), [*range(2, 500), *range(501, 1000), 500]).ranges() == ((2, 999),)


@pytest.mark.parametrize("serials", [[], [2], [3, 4, 7]])
def test_in_a_snapshot_and_in_an_older_one_they_are_the_same(serials: list[int]) -> None:
    desk = Desk()
    remembered = dead(desk, serials)
    frozen = desk.registry.freeze(volatile=False, payloads=True)
    place = 4
    (plain, workers, ranges, volatile) = frozen[place][0]
    assert ranges == remembered.ranges()
    older = (plain, workers, tuple(serials), volatile)
    for section in ((older,), frozen[place]):
        snapshot = (*frozen[:place], section, *frozen[place + 1 :])
        thawed = Registry.thaw(snapshot, **desk.configuration)
        assert thawed.freeze(volatile=False, payloads=True) == frozen
