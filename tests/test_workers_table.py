"""The shared table: what each side writes, the other reads; also when its writer is killed between two writes."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.registry.ids import Attempt, TaskId
from quiesce.workers import predecessor
from quiesce.workers.table import CHECKS, ENTRIES, FLAG, Phase, Place, PoolTable, flag_key


@pytest.fixture
def table() -> Iterator[PoolTable]:
    table = PoolTable.create(2)
    table.adopt(b"12345678")
    yield table
    table.close()


def begin(place: Place, task: int, attempt: int = 1) -> int:
    return place.begin((TaskId(task), Attempt(attempt)))


def test_both_sides_see_the_same(table: PoolTable) -> None:
    mine, theirs = table.place(1), table.place(1)
    theirs.assign(7)
    theirs.set_pid(4711)
    begin(mine, 5, 2)
    assert theirs.phases() == [(5, 2, Phase.BEGUN)]
    mine.end((TaskId(5), Attempt(2)), Phase.FAILED)
    assert theirs.phase(5, 2) is Phase.FAILED
    assert theirs.phase(5, 1) is Phase.FREE
    mine.free((TaskId(5), Attempt(2)))
    mine.free((TaskId(5), Attempt(2)))
    assert theirs.phases() == []
    assert [(each.serial, each.pid, each.ready) for each in table.account()] == [(7, 4711, False)]
    mine.set_ready()
    assert theirs.ready
    theirs.clear()
    assert table.account() == []


def test_another_process_opens_it_by_path(table: PoolTable) -> None:
    begin(table.place(0), 9)
    other = PoolTable.open(f"/proc/{os.getpid()}/fd/{table.fd}")
    assert other.place(0).phase(9, 1) is Phase.BEGUN
    assert other.supervisor == b"12345678"
    assert other.places == 4
    other.close()


def test_what_is_no_table_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="no pool table"):
        PoolTable.open(fd)
    os.close(fd)


def test_flags_reach_the_attempts_that_they_are_meant_for(table: PoolTable) -> None:
    place = table.place(0)
    entries = [begin(place, task) for task in (1, 2, 3)]
    table.place(0).flag({(2, 1), (3, 2), (9, 1)})
    flags = [place.words[entry + FLAG] for entry in entries]
    assert flags == [0, flag_key(2, 1), 0]


def test_a_stale_flag_says_nothing_to_the_next_attempt(table: PoolTable) -> None:
    place = table.place(0)
    entry = begin(place, 1)
    table.place(0).flag({(1, 1)})
    place.free((TaskId(1), Attempt(1)))
    again = begin(place, 1, 2)
    assert again == entry
    assert place.words[again + FLAG] == flag_key(1, 1) != flag_key(1, 2)


def test_flag_keys_differ_and_are_never_zero() -> None:
    keys = [flag_key(task, attempt) for task in range(1, 300) for attempt in range(1, 30)]
    assert len(set(keys)) == len(keys)
    assert all(keys)
    assert 0 < flag_key(2**64 - 1, 2**16) < 2**64


def test_check_counters_begin_at_zero(table: PoolTable) -> None:
    place = table.place(0)
    entry = begin(place, 1)
    place.words[entry + CHECKS] += 5
    assert table.place(0).checks() == {(1, 1): 5}
    place.free((TaskId(1), Attempt(1)))
    begin(place, 2)
    assert table.place(0).checks() == {(2, 1): 0}


def test_what_is_reserved_or_put_off_has_not_begun(table: PoolTable) -> None:
    place = table.place(0)
    entry = place.reserve((TaskId(1), Attempt(1)))
    assert table.place(0).phases() == []
    for _ in range(2):
        assert begin(place, 1) == entry
        assert table.place(0).phases() == [(1, 1, Phase.BEGUN)]
        place.put_off((TaskId(1), Attempt(1)))
        assert table.place(0).phases() == []
    assert begin(place, 2) != entry
    place.free((TaskId(1), Attempt(1)))
    assert begin(place, 3) == entry


def test_all_entries_can_be_used_and_used_again(table: PoolTable) -> None:
    place = table.place(0)
    for _ in range(2):
        for task in range(1, ENTRIES + 1):
            begin(place, task)
        with pytest.raises(IndexError):
            begin(place, ENTRIES + 1)
        for task in range(1, ENTRIES + 1):
            place.free((TaskId(task), Attempt(1)))


class Killed(BaseException):
    pass


class DyingWords:
    """The words of a process that is killed before one of its writes."""

    def __init__(self, words: Any, writes: int) -> None:
        self._words = words
        self._left = writes

    def __getitem__(self, at: int) -> Any:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        self._words[at] = value


@pytest.mark.parametrize("writes", range(6))
def test_a_kill_between_two_writes(table: PoolTable, writes: int) -> None:
    """Begin one attempt where another was, end it, free it: after each write the account is true."""
    place = table.place(0)
    begin(place, 1)
    place.end((TaskId(1), Attempt(1)), Phase.FAILED)
    place.free((TaskId(1), Attempt(1)))
    place.words = DyingWords(place.words, writes)  # type: ignore[assignment]  # of the same shape
    try:
        begin(place, 2)
        place.end((TaskId(2), Attempt(1)), Phase.COMPLETED)
        place.free((TaskId(2), Attempt(1)))
    except Killed:
        pass
    # Three writes begin it, one ends it, one frees it.
    expected: dict[int, list[Any]] = {
        3: [(2, 1, Phase.BEGUN)],
        4: [(2, 1, Phase.COMPLETED)],
    }
    assert table.place(0).phases() == expected.get(writes, [])


@pytest.mark.parametrize("writes", range(2 + ENTRIES * 4 + 8, 0, -97))
def test_a_supervisor_killed_while_it_clears_a_place(table: PoolTable, writes: int) -> None:
    """The old worker's account is settled by then: nothing of it may pass for the new one's."""
    place = table.place(0)
    place.assign(1)
    begin(place, 1)
    supervisor = table.place(0)
    supervisor.words = DyingWords(supervisor.words, writes)  # type: ignore[assignment]  # of the same shape
    try:
        supervisor.assign(2)
    except Killed:
        assert table.account() == []
    else:
        assert [(each.serial, each.phases) for each in table.account()] == [(2, [])]


def test_the_account_goes_to_the_successor(table: PoolTable) -> None:
    table.place(0).assign(3)
    table.place(0).set_pid(4711)
    begin(table.place(0), 8, 2)
    account = predecessor.describe(table, pid=99, status=-9, statuses={4711: 1})
    told = predecessor.parse(account)
    assert told is not None
    assert (told.supervisor, told.pid, told.status) == (b"12345678", 99, -9)
    assert told.workers == [(3, 4711, 1, True, [(8, 2, "begun")])]
    assert predecessor.parse(None) is None
    table.adopt(b"87654321")
    assert table.account() == []


# --- the lease of the pool ------------------------------------------------------------------------


def test_the_note_of_a_lease_is_never_earlier_than_its_timer(table: PoolTable) -> None:
    assert (table.armed_until, table.place(0).lease) == (0.0, 0.0)
    for until, noted in [(12.0, 12.0), (12.0001, 12.001), (1e9 + 0.25, 1e9 + 0.25)]:
        table.note_lease(until, 0.5)
        assert table.armed_until == noted
        assert table.place(3).lease == 0.5
    table.note_lease(13.0, 0.0001)
    assert table.place(0).lease > 0


def test_half_a_lease_sets_all_flags(table: PoolTable) -> None:
    places = [table.place(0), table.place(3)]
    entries = [begin(place, task) for place, task in zip(places, (7, 8), strict=True)]
    places[0].reserve((TaskId(9), Attempt(1)))
    over = begin(places[1], 10)
    places[1].end((TaskId(10), Attempt(1)), Phase.COMPLETED)
    table.ask_all()
    assert [place.lease_turns for place in places] == [1, 1]
    flags = [place.words[entry + FLAG] for place, entry in zip(places, entries, strict=True)]
    assert flags == [flag_key(7, 1), flag_key(8, 1)]
    assert places[1].words[over + FLAG] == 0


def test_turns_are_counted(table: PoolTable) -> None:
    turns = []
    for turn in (
        table.lease_is_back,
        table.ask_all,
        table.ask_all,
        table.lease_is_back,
        table.lease_is_back,
        table.ask_all,
    ):
        turn()
        turns.append(table.place(1).lease_turns)
    assert turns == [0, 1, 1, 2, 2, 3]


def test_a_successor_has_no_lease_yet(table: PoolTable) -> None:
    table.note_lease(100.0, 30.0)
    table.ask_all()
    assert table.armed_until == 100.0
    table.adopt(b"87654321")
    place = table.place(0)
    assert (table.armed_until, place.lease, place.lease_turns) == (0.0, 0.0, 0)


def test_the_lease_is_said_to_be_over_before_the_first_flag(table: PoolTable) -> None:
    """So whoever ends because of a flag finds out why. A supervisor is killed after so many writes."""
    place = table.place(0)
    entry = begin(place, 1)
    whole: Any = table._words
    table._words = DyingWords(whole, 1)  # type: ignore[assignment]  # of the same shape
    with pytest.raises(Killed):
        table.ask_all()
    table._words = whole
    assert place.lease_turns == 1
    assert place.words[entry + FLAG] == 0
