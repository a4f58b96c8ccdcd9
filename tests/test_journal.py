"""The journal on disk: what goes in comes out, once it is safe, and is there again after the end."""

import os
import select
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from journal_helpers import (
    BOOT,
    OTHER_BOOT,
    SMALL,
    begun,
    effect,
    epoch,
    flat,
    numbers,
    one_by_one,
    open_here,
    plain,
    registry_of,
    take,
    take_snapshot,
    told,
    write,
)
from quiesce.broker.journal import (
    JournalFailedError,
    JournalLimits,
    MemoryJournal,
    next_epoch,
)
from quiesce.broker.journal_head import read_head
from quiesce.broker.journal_open import discard_journal
from quiesce.broker.journal_read import read_journal
from quiesce.broker.locks import AlreadyLockedError
from quiesce.protocol.frames import Frame
from quiesce.registry import facts
from registry_helpers import spawn_row

MODES = ("crash", "power-loss")


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


# --- what goes in comes out


@pytest.mark.parametrize("mode", MODES)
def test_facts_come_back_and_make_the_same_registry(run_folder: Path, mode: str) -> None:
    desk = told(rounds=3)
    journal, recovered = open_here(run_folder, mode)
    assert (recovered.snapshot, list(recovered.facts), recovered.last_epoch) == (None, [], 0)
    assert recovered.complete
    assert journal.durability == mode
    write(journal, desk.turns)
    journal.close()

    journal, recovered = open_here(run_folder, mode)
    assert list(recovered.facts) == flat(desk.turns)
    assert recovered.last_epoch == 1
    assert recovered.complete
    registry = registry_of(recovered, desk.configuration)
    assert registry.freeze(volatile=False) == desk.registry.freeze(volatile=False)
    journal.close()


def test_effects_come_in_order_and_once(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    for number in range(2000):
        facts_ = [] if number % 3 == 0 else [begun(number)]
        journal.append(facts_, [effect(number)] if number % 5 else [])
    expected = [number for number in range(2000) if number % 5]
    assert numbers(take(journal, len(expected))) == expected
    assert journal.committed() == []
    assert select.select([journal.fileno()], [], [], 0)[0] == []
    journal.close()


def test_effects_without_facts_wait_only_for_what_stands_before_them(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    journal.append([], [effect(1)])
    assert numbers(journal.committed()) == [1]  # at once
    journal.close()


def test_what_comes_during_a_commit_shares_the_next(run_folder: Path) -> None:
    slow = SlowConnection
    slow.gate_open = False
    journal, _ = open_here(run_folder, connect=slow.open)
    journal.append([begun(0)], [effect(0)])
    for number in range(1, 100):
        journal.append([begun(number)], [effect(number)])
    slow.gate_open = True
    take(journal, 100)
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(number) for number in range(100)]
    assert "100 facts in 2 rows" in recovered.words or "100 facts in 1 rows" in recovered.words
    journal.close()


class SlowConnection(sqlite3.Connection):
    """Its first row of facts waits until the gate is open."""

    gate_open = True

    @classmethod
    def open(cls, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=cls)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement.startswith("INSERT INTO facts"):
            while not self.gate_open:
                os.sched_yield()
        return super().execute(statement, *values)


def test_a_group_is_bounded_and_turns_stay_whole(run_folder: Path) -> None:
    limits = JournalLimits(group=10, reserve=0, margin=0)
    journal, _ = open_here(run_folder, limits=limits)
    write(journal, [[begun(turn * 7 + each) for each in range(7)] for turn in range(50)])
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(number) for number in range(350)]
    journal.close()
    with sqlite3.connect(run_folder / "journal.sqlite") as connection:
        counts = {count for (count,) in connection.execute("SELECT count FROM facts")}
    connection.close()
    assert counts <= {7, 14}


def test_close_commits_what_was_taken(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    for number in range(500):
        journal.append([begun(number)], [effect(number)])
    journal.close()
    journal.close()  # nothing more to do
    assert numbers(journal.committed()) == list(range(500))
    assert journal.committed() == []
    journal, recovered = open_here(run_folder, boot=OTHER_BOOT)
    assert list(recovered.facts) == [begun(number) for number in range(500)]
    assert recovered.complete
    journal.close()


# --- large payloads


def test_large_payloads_are_written_once(run_folder: Path) -> None:
    big, result = Frame(os.urandom(3_000_000)), os.urandom(20_000)
    row = spawn_row(function=Frame(b"f" * 100_000), arguments=big)
    turns: list[list[Any]] = [[facts.TaskRegistered(n, b"s", n, 1.0, row)] for n in range(1, 6)]
    turns.append([facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", result)])
    journal, _ = open_here(run_folder)
    one_by_one(journal, turns)
    journal.close()
    assert sizes(run_folder)["journal.sqlite"] < 3_500_000

    journal, recovered = open_here(run_folder)
    found = list(recovered.facts)
    assert plain(found) == plain(flat(turns))
    last: Any = found[-1]
    assert type(last.result) is Frame  # so that a snapshot knows it again
    first, second = found[0].row, found[1].row  # type: ignore[union-attr]  # they are spawns
    assert first.arguments is second.arguments
    # A snapshot that names them again writes none of them again.
    take_snapshot(journal, ((first, last.result), (), (1, 2)))
    assert sizes(run_folder)["journal.sqlite"] < 3_500_000
    journal.close()
    journal, recovered = open_here(run_folder)
    assert plain(recovered.snapshot) == plain(((tuple(first), last.result), (), (1, 2)))
    journal.close()


def test_a_payload_of_many_parts(run_folder: Path) -> None:
    big = Frame(os.urandom(20 * 2**20))
    ended = facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", big)
    journal, _ = open_here(run_folder)
    write(journal, [[ended]])
    journal.close()
    journal, recovered = open_here(run_folder)
    assert plain(list(recovered.facts)) == plain([ended])
    journal.close()


def test_payloads_that_nobody_names_go_with_the_next_snapshot(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    payloads = [Frame(os.urandom(2 * 2**20)) for _ in range(20)]
    one_by_one(
        journal,
        [
            [facts.TaskEnded(n, "completed", "RETURNED", None, 1.0, 2.0, "", payload)]
            for n, payload in enumerate(payloads)
        ],
    )
    take_snapshot(journal, ((payloads[7],), ()))
    # One that was deleted, named again; and the one that stayed.
    again = [
        [facts.TaskEnded(50 + n, "completed", "RETURNED", None, 1.0, 2.0, "", payloads[n])]
        for n in (3, 7)
    ]
    write(journal, again)
    journal.close()
    assert sizes(run_folder)["journal.sqlite"] < 25 * 2**20  # pages went back to the disk
    journal, recovered = open_here(run_folder)
    assert plain(recovered.snapshot) == plain(((payloads[7],), ()))
    assert plain(list(recovered.facts)) == plain(flat(again))
    journal.close()


# --- snapshots


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_and_the_tail_make_the_same_as_all_facts(run_folder: Path, mode: str) -> None:
    desk = told(rounds=2)
    journal, _ = open_here(run_folder, mode)
    one_by_one(journal, desk.turns)
    for _ in range(3):
        frozen = desk.registry.freeze(volatile=False)
        journal.snapshot(frozen)
        before = len(desk.turns)
        desk.spawn({"tenant_id": "more"}, {"tenant_id": "more"})
        desk.stop(tenant_id="more", keep_closed=True)
        desk.go_on()
        write(journal, desk.turns[before:])
        take_snapshot(journal, desk.registry.freeze(volatile=False))
        before = len(desk.turns)
        desk.reopen()
        write(journal, desk.turns[before:])
    journal.close()
    journal, recovered = open_here(run_folder, mode)
    assert recovered.snapshot is not None
    assert 0 < len(list(recovered.facts)) < 5
    registry = registry_of(recovered, desk.configuration)
    assert registry.freeze(volatile=False) == desk.registry.freeze(volatile=False)
    journal.close()


def test_a_long_tail_wants_a_snapshot_and_is_short_after_it(run_folder: Path) -> None:
    limits = JournalLimits(snapshot_facts=100, reserve=0, margin=0)
    journal, _ = open_here(run_folder, limits=limits)
    write(journal, [[begun(number)] for number in range(100)])
    assert not journal.wants_snapshot()
    write(journal, [[begun(100)]])
    assert journal.wants_snapshot()
    journal.snapshot((tuple((n, b"x" * 100) for n in range(5000)),))
    assert not journal.wants_snapshot()  # it is under way
    take_snapshot(journal, (tuple((n, b"x" * 100) for n in range(200)),))
    write(journal, [[begun(number)] for number in range(350)])
    assert not journal.wants_snapshot()  # twice the size of the last one counts
    write(journal, [[begun(number)] for number in range(100)])
    assert journal.wants_snapshot()
    journal.close()
    journal, recovered = open_here(run_folder, limits=limits)
    assert journal.wants_snapshot()
    assert len(list(recovered.facts)) == 450
    journal.close()


def test_many_bytes_want_a_snapshot_too(run_folder: Path) -> None:
    limits = JournalLimits(snapshot_bytes=50_000, reserve=0, margin=0)
    journal, _ = open_here(run_folder, limits=limits)
    ended = facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", b"r" * 60_000)
    write(journal, [[ended]])
    assert journal.wants_snapshot()
    journal.close()
    journal, _ = open_here(run_folder, limits=limits)
    assert journal.wants_snapshot()
    take_snapshot(journal, ((1,), (2,)))
    assert not journal.wants_snapshot()
    journal.close()


def test_the_files_do_not_grow_for_ever(run_folder: Path) -> None:
    limits = JournalLimits(snapshot_facts=500, checkpoint=200_000, reserve=0, margin=0)
    journal, _ = open_here(run_folder, limits=limits)
    largest = 0
    for round_ in range(20):
        one_by_one(journal, [[begun(round_ * 100 + n)] * 20 for n in range(100)])
        if journal.wants_snapshot():
            take_snapshot(journal, (tuple((n, "text" * 10) for n in range(1000)), ()))
        largest = max(largest, sum(sizes(run_folder).values()))
    assert largest < 3_000_000
    journal.close()


def test_a_snapshot_that_was_interrupted_leaves_the_journal_as_it_was(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    write(journal, [[begun(number)] for number in range(50)])
    take_snapshot(journal, (("first",), tuple(range(100))))
    write(journal, [[begun(number)] for number in range(50, 60)])
    # Too large to be done by now.
    journal.snapshot((tuple((n, b"y" * 50) for n in range(50_000)), ()))
    journal.close()
    for _ in range(2):
        journal, recovered = open_here(run_folder)
        assert recovered.snapshot == (("first",), tuple(range(100)))
        assert list(recovered.facts) == [begun(number) for number in range(50, 60)]
        journal.close()


# --- epochs and marks


def test_the_epoch_never_goes_back(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    write(journal, [[epoch(7)], [begun(1)]])
    journal.append([epoch(6)], [effect(1)])
    with pytest.raises(JournalFailedError, match="epoch 6 after epoch 7"):
        take(journal, 1)
    journal.close()
    journal, recovered = open_here(run_folder)
    assert recovered.last_epoch == 7
    journal.close()
    assert next_epoch(run_folder, recovered.last_epoch) == 8
    assert next_epoch(run_folder, recovered.last_epoch) == 9
    assert next_epoch(run_folder) == 10
    assert (run_folder / "epoch").read_text() == "10\n"


def test_an_epoch_that_can_not_be_looked_at_is_not_taken_for_the_first(run_folder: Path) -> None:
    (run_folder / "epoch").symlink_to("epoch")  # no error of a disk, but an error
    with pytest.raises(OSError):
        next_epoch(run_folder)


def test_a_file_that_can_not_be_looked_at_is_not_taken_for_none(run_folder: Path) -> None:
    """Neither the head nor the rows: what they hold would be forgotten."""
    for name in ("head", "journal.sqlite"):
        (run_folder / name).symlink_to(name)
        with pytest.raises(OSError):
            read_journal(run_folder, "boot")
        (run_folder / name).unlink()


KILLED = """
import os, sys
from pathlib import Path
from journal_helpers import begun, epoch, open_here, write
folder, mode, boot = sys.argv[1:4]
journal, recovered = open_here(Path(folder), mode, boot=boot)
if "vouch" in sys.argv:
    journal.vouch()
write(journal, [[epoch(recovered.last_epoch + 1)], [begun(1)]]) \
    if mode != "none" else journal.append([begun(1)], [])
if "vouch" in sys.argv and mode != "none":
    write(journal, [[begun(2)]])
if "clean" in sys.argv:
    journal.close()
os._exit(0)
"""


def lived(folder: Path, mode: str, boot: str = BOOT, *words: str) -> None:
    """A broker of this mode has been here, and ended in order ("clean") or not."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), mode, boot, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("mode", "boot", "end", "complete"),
    [
        ("crash", BOOT, "clean", True),
        ("crash", OTHER_BOOT, "clean", True),
        ("crash", BOOT, "killed", True),
        ("crash", OTHER_BOOT, "killed", False),
        ("power-loss", BOOT, "killed", True),
        ("power-loss", OTHER_BOOT, "killed", True),
        ("none", BOOT, "clean", True),
        ("none", BOOT, "killed", False),
        ("none", OTHER_BOOT, "killed", False),
    ],
)
@pytest.mark.parametrize("then", ["crash", "power-loss", "none"])
def test_whether_something_may_be_missing(
    run_folder: Path, mode: str, boot: str, end: str, complete: bool, then: str
) -> None:
    lived(run_folder, mode, BOOT, end)
    journal, recovered = open_here(run_folder, then, boot=boot)
    assert recovered.complete is complete
    assert ("may be missing" in recovered.words) is not complete
    expected = [] if mode == "none" else [epoch(1), begun(1)]
    assert list(recovered.facts) == expected
    journal.close()


def test_a_used_folder_without_a_journal_may_miss_something(run_folder: Path) -> None:
    assert next_epoch(run_folder) == 1
    journal, recovered = open_here(run_folder)
    assert not recovered.complete
    journal.close()


@pytest.mark.parametrize("mode", ["crash", "power-loss", "none"])
def test_doubt_stays_until_somebody_vouches(run_folder: Path, mode: str) -> None:
    """Else a broker that is killed while it waits would leave a journal that looks complete."""
    lived(run_folder, "crash", BOOT)
    lived(run_folder, mode, OTHER_BOOT)
    lived(run_folder, mode, OTHER_BOOT, "clean")
    journal, recovered = open_here(run_folder, mode, boot=OTHER_BOOT)
    assert not recovered.complete
    journal.append([begun(1)], [])
    journal.vouch()
    journal.close()
    journal, recovered = open_here(run_folder, mode, boot=OTHER_BOOT)
    assert recovered.complete
    journal.close()
    # Before the first fact too.
    lived(run_folder, "crash", BOOT)
    lived(run_folder, "crash", OTHER_BOOT, "vouch")
    journal, recovered = open_here(run_folder, mode, boot=OTHER_BOOT)
    assert recovered.complete
    journal.close()


def test_with_durability_none_a_journal_counts_once(run_folder: Path) -> None:
    lived(run_folder, "crash")
    journal, recovered = open_here(run_folder, "none")
    assert isinstance(journal, MemoryJournal)
    assert list(recovered.facts) == [epoch(1), begun(1)]
    journal.close()  # nothing was decided: that broker has not been there
    journal, recovered = open_here(run_folder, "none")
    assert len(list(recovered.facts)) == 2
    journal.append([begun(3)], [])
    for mode in ("none", "crash"):
        journal, recovered = open_here(run_folder, mode)
        assert list(recovered.facts) == []
        assert recovered.last_epoch == 1
        assert not recovered.complete
    journal.vouch()
    write(journal, [[begun(4)]])
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(4)]
    assert recovered.complete
    journal.close()


def test_modes_may_change(run_folder: Path) -> None:
    expected: list[Any] = []
    for number, mode in enumerate(["crash", "power-loss", "crash", "power-loss"], 1):
        journal, recovered = open_here(run_folder, mode)
        assert list(recovered.facts) == expected
        turns: list[list[Any]] = [[epoch(number)], [begun(number)]]
        one_by_one(journal, turns)
        head = read_head(run_folder)
        assert head is not None
        assert head.mode == mode
        assert head.synced == head.seq - (mode == "crash")  # an epoch is synced, a beginning is not
        expected += flat(turns)
        journal.close()


def test_what_must_survive_the_machine_is_synced_in_crash_mode(run_folder: Path) -> None:
    desk = told(rounds=1)
    journal, _ = open_here(run_folder, "crash")
    synced = set()
    for turn in desk.turns:
        write(journal, [turn])
        head = read_head(run_folder)
        assert head is not None
        if head.synced == head.seq:
            synced |= {type(fact) for fact in turn}
        else:
            assert not {type(fact) for fact in turn} & {facts.StopOpened, facts.StopEnded}
    assert {facts.EpochStarted, facts.StopOpened, facts.StopEnded} <= synced
    journal.close()


# --- who may open it


def test_a_second_one_is_refused(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    write(journal, [[begun(1)]])
    with pytest.raises(AlreadyLockedError, match=r"another process has .*journal\.sqlite open"):
        open_here(run_folder)
    write(journal, [[begun(2)]])
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(1), begun(2)]
    journal.close()


def test_a_folder_that_is_not_there(run_folder: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        open_here(run_folder / "nowhere")


def test_an_unused_journal_can_be_taken_away(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    journal.close()
    discard_journal(run_folder)
    assert list(run_folder.iterdir()) == []


def test_memory_keeps_nothing_and_says_so() -> None:
    journal = MemoryJournal()
    journal.append([begun(1)], [effect(1)])
    journal.append([], [effect(2)])
    assert numbers(journal.committed()) == [1, 2]
    assert journal.committed() == []
    assert (journal.fileno(), journal.wants_snapshot(), journal.room()) == (-1, False, True)
    journal.clear_wakeup()
    journal.snapshot(())
    journal.vouch()
    journal.close()


def test_the_limits_are_sane() -> None:
    assert JournalLimits().margin > JournalLimits().reserve > SMALL.reserve
