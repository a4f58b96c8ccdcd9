"""The journal when it is killed, when the disk is full, when it fails, when nothing can be written."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from journal_helpers import (
    OTHER_BOOT,
    SMALL,
    begun,
    effect,
    numbers,
    one_by_one,
    open_here,
    plain,
    take,
    take_snapshot,
    write,
)
from quiesce.broker.journal import Journal, JournalFailedError, JournalLimits, next_epoch
from quiesce.broker.locks import Lock
from quiesce.protocol.frames import Frame
from quiesce.registry import facts

# --- killed


WRITER = """
import contextlib, os, sys
from pathlib import Path
from journal_helpers import begun, effect, numbers, open_here
from quiesce.broker.journal import JournalLimits
from quiesce.protocol.frames import Frame
from quiesce.registry import facts
folder, mode, first = sys.argv[1:]
mode, _, here = mode.partition(" ")
limits = JournalLimits(snapshot_facts=300, checkpoint=100_000, group=20, reserve=65536, margin=0)
journal, recovered = open_here(Path(folder), mode, limits=limits)
if here:
    journal.commit_here(contextlib.nullcontext)
number, stood = int(first), False
kept = list((recovered.snapshot or ((),))[0]) + [
    fact.task_id for fact in recovered.facts if type(fact) is not facts.SessionClosed
]
while True:
    for _ in range(5):
        number += 1
        kept.append(number)
        fact = begun(number)
        if number % 50 == 0:
            payload = Frame(number.to_bytes(8, "big") * 1000)
            fact = facts.TaskEnded(number, "completed", "RETURNED", None, 1.0, 2.0, "", payload)
        journal.append([fact, facts.SessionClosed(b"x" * 50)], [effect(number)])
    safe = numbers(journal.committed())
    if safe:
        os.write(1, b"".join(b"%d\\n" % each for each in safe))
    if journal.wants_snapshot():
        journal.snapshot((tuple(kept), ()))
    if not stood and journal.figures()["snapshots"]:
        stood = True
        os.write(1, b"0\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["crash", "crash here", "power-loss"])
def test_what_was_committed_survives_a_kill(run_folder: Path, mode: str) -> None:
    """Killed again and again in the midst of appends and snapshots: all that was safe is there, in order."""
    folder = run_folder / "j"
    folder.mkdir()
    last = 0
    for round_ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), mode, str(last)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdout is not None
            said = [int(writer.stdout.readline()) for _ in range(150 + 237 * round_)]
            while round_ == 2 and 0 not in said:  # then a snapshot stands
                said.append(int(writer.stdout.readline()))
            writer.send_signal(signal.SIGKILL)
            said += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
        said = [each for each in said if each]
        assert writer.returncode == -signal.SIGKILL
        assert said == list(range(last + 1, said[-1] + 1))
        limits = JournalLimits(snapshot_facts=10**6, reserve=0, margin=0)
        journal, recovered = open_here(folder, mode.partition(" ")[0], limits=limits)
        assert recovered.complete
        snapshot = list((recovered.snapshot or ((),))[0])
        tail: list[Any] = [
            each for each in recovered.facts if type(each) is not facts.SessionClosed
        ]
        assert len(list(recovered.facts)) == 2 * len(tail)  # turns are whole
        known = [*snapshot, *[fact.task_id for fact in tail]]
        assert known == list(range(1, known[-1] + 1))
        assert known[-1] >= said[-1]
        for fact in tail:
            if type(fact) is facts.TaskEnded:
                assert plain(fact.result) == fact.task_id.to_bytes(8, "big") * 1000
        last = known[-1]
        journal.close()
    assert snapshot, "no snapshot was ever made"


# --- a full disk


@pytest.fixture
def small_disk(run_folder: Path) -> Iterator[Callable[[int], Path]]:
    """A folder on a disk of so many MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = run_folder / "disk"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=700", "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"can't mount a small disk here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        # Lazily: a test that has failed may have left a journal open there.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(folder: Path) -> Path:
    """Somebody else takes all the room that is left."""
    path = folder / "somebody-else"
    with path.open("wb") as file:
        size = 1 << 20
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return path


def until_room(journal: Journal, expected: bool) -> None:
    deadline = time.monotonic() + 20
    while journal.room() is not expected:
        assert time.monotonic() < deadline, f"waited in vain for room() to be {expected}"
        time.sleep(0.01)


LIMITS = JournalLimits(reserve=2 * 2**20, margin=2**20, checkpoint=2**20)


def test_a_full_disk_takes_no_new_work_but_ends_and_stops(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(12)
    journal, _ = open_here(disk, limits=LIMITS)
    one_by_one(journal, [[begun(number)] for number in range(10)])
    assert journal.room()
    other = fill(disk)
    # It notices by itself, or with the next commit; all of these find room in the reserve.
    expected = list(range(10))
    for number in range(10, 600):
        write(journal, [[begun(number), facts.SessionClosed(b"y" * 100)]])
        expected.append(number)
    assert not journal.room()
    assert not journal.wants_snapshot()
    other.unlink()
    until_room(journal, True)  # without any commit
    write(journal, [[begun(600)]])
    journal.close()
    journal, recovered = open_here(disk, limits=LIMITS)
    found = [fact.task_id for fact in recovered.facts if type(fact) is facts.TaskBegan]
    assert found == [*expected, 600]
    assert journal.room()
    journal.close()


def test_little_room_is_noticed_before_the_disk_is_full(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(12)
    limits = JournalLimits(reserve=2**20, margin=12 * 2**20)
    journal, _ = open_here(disk, limits=limits)
    assert not journal.room()
    write(journal, [[begun(1)]])
    journal.close()


def test_a_large_payload_is_looked_ahead_for(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(24)
    journal, _ = open_here(disk, limits=LIMITS)
    payload = Frame(os.urandom(11 * 2**20))  # once in the log, once in the file
    write(journal, [[facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", payload)]])
    assert not journal.room()
    journal.close()


def test_a_disk_without_any_room_ends_the_journal_with_words(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(12)
    journal, _ = open_here(disk, limits=LIMITS)
    write(journal, [[begun(1)]])
    fill(disk)
    payload = Frame(os.urandom(5 * 2**20))
    ended = facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", payload)
    journal.append([ended], [effect(2)])
    with pytest.raises(JournalFailedError, match=r"the disk is full, its reserve too"):
        take(journal, 1)
    with pytest.raises(JournalFailedError):
        journal.committed()
    journal.append([begun(2)], [effect(3)])  # nobody hears of it
    journal.close()
    (disk / "somebody-else").unlink()
    journal, recovered = open_here(disk, limits=LIMITS)
    assert list(recovered.facts) == [begun(1)]
    assert recovered.complete
    journal.close()


def test_a_snapshot_without_room_is_given_up(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(12)
    journal, _ = open_here(disk, limits=LIMITS)
    one_by_one(journal, [[begun(number)] for number in range(10)])
    take_snapshot(journal, ((os.urandom(20_000),), (1,)))
    one_by_one(journal, [[begun(number)] for number in range(10)])
    other = fill(disk)
    take_snapshot(journal, (tuple(os.urandom(60_000) for _ in range(100)), (2,)))
    assert not journal.room()
    one_by_one(journal, [[begun(number)] for number in range(10, 20)])
    other.unlink()
    until_room(journal, True)
    # What the one that was given up had named can be named again.
    journal.append([begun(20)], [effect(1)])
    take(journal, 1)
    journal.close()
    journal, recovered = open_here(disk, limits=LIMITS)
    assert recovered.snapshot is not None
    assert recovered.snapshot[1] == (1,)
    assert list(recovered.facts) == [begun(number) for number in (*range(10), *range(10, 21))]
    journal.close()


# --- errors of the disk


class FaultyConnection(sqlite3.Connection):
    """Fails as told: by the beginning of a statement, the code of its error."""

    faults: ClassVar[dict[str, int]] = {}

    @classmethod
    def open(cls, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(
            path, isolation_level=None, timeout=0, check_same_thread=False, factory=cls
        )

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        for beginning, code in self.faults.items():
            if statement.startswith(beginning):
                error = sqlite3.OperationalError("as the test wants it")
                error.sqlite_errorcode = code
                raise error
        return super().execute(statement, *values)


@pytest.fixture
def faults() -> Iterator[dict[str, int]]:
    yield FaultyConnection.faults
    FaultyConnection.faults.clear()


@pytest.mark.parametrize(
    ("beginning", "code", "words"),
    [
        ("INSERT INTO facts", sqlite3.SQLITE_IOERR_FSYNC, "can't be written: as the test wants it"),
        ("INSERT INTO facts", sqlite3.SQLITE_IOERR_WRITE, "can't be written: as the test wants it"),
        ("INSERT INTO facts", sqlite3.SQLITE_CORRUPT, "can't be written: as the test wants it"),
        ("INSERT INTO facts", sqlite3.SQLITE_FULL, "the disk is full, its reserve too"),
        ("INSERT INTO blobs", sqlite3.SQLITE_IOERR_WRITE, "can't be written"),
        ("COMMIT", sqlite3.SQLITE_IOERR_FSYNC, "can't be written"),
        ("PRAGMA wal_checkpoint", sqlite3.SQLITE_IOERR_FSYNC, "can't be written"),
    ],
)
def test_after_an_error_of_the_disk_nothing_more_is_said_to_be_safe(
    run_folder: Path, faults: dict[str, int], beginning: str, code: int, words: str
) -> None:
    limits = JournalLimits(reserve=4096, margin=0, checkpoint=30_000)
    journal, _ = open_here(run_folder, limits=limits, connect=FaultyConnection.open)
    write(journal, [[begun(1)]])
    faults[beginning] = code
    result = Frame(b"r" * 30_000)
    ended = facts.TaskEnded(2, "completed", "RETURNED", None, 1.0, 2.0, "", result)
    journal.append([ended], [effect(2)])
    journal.append([begun(3)], [effect(3)])
    heard: list[int] = []
    with pytest.raises(JournalFailedError, match=words):
        for _ in range(1000):
            heard += numbers(take(journal, 1))
            journal.append([begun(4)], [effect(4)])
    if not beginning.startswith("PRAGMA"):
        assert heard == []
    faults.clear()  # it is never tried again
    with pytest.raises(JournalFailedError):
        take(journal, 1)
    journal.close()
    journal, recovered = open_here(run_folder, limits=limits)
    found: list[Any] = list(recovered.facts)
    assert found[0] == begun(1)
    assert len(found) >= 1 + len(heard)
    assert recovered.complete
    journal.close()


def test_a_failure_that_nobody_has_heard_of_is_raised_at_the_end(
    run_folder: Path, faults: dict[str, int]
) -> None:
    journal, _ = open_here(run_folder, connect=FaultyConnection.open)
    faults["INSERT INTO facts"] = sqlite3.SQLITE_IOERR
    journal.append([begun(1)], [])
    with pytest.raises(JournalFailedError):
        journal.close()
    faults.clear()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == []
    journal.close()


def test_a_full_disk_is_tried_once_more_in_the_reserve(
    run_folder: Path, faults: dict[str, int]
) -> None:
    journal, _ = open_here(run_folder, limits=SMALL, connect=OnceFull.open)
    OnceFull.left = 1
    write(journal, [[begun(1)]])
    assert not journal.room()
    until_room(journal, True)
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(1)]
    journal.close()


class OnceFull(FaultyConnection):
    """Has no room for some rows."""

    left = 0

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement.startswith("INSERT INTO facts") and OnceFull.left:
            OnceFull.left -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(statement, *values)


def test_a_fact_that_can_not_be_written_down_ends_the_journal(run_folder: Path) -> None:
    journal, _ = open_here(run_folder)
    write(journal, [[begun(1)]])
    wrong: Any = facts.TaskBegan(2**70, 1.0)
    journal.append([wrong], [effect(1)])
    with pytest.raises(JournalFailedError, match="a fact can't be written down"):
        take(journal, 1)
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(1)]
    journal.close()


def test_what_was_safe_before_a_failure_is_handed_out(
    run_folder: Path, faults: dict[str, int]
) -> None:
    journal, _ = open_here(run_folder, connect=FaultyConnection.open)
    journal.append([begun(1)], [effect(1)])
    inside: Any = journal
    deadline = time.monotonic() + 20
    while inside._done < 1:
        assert time.monotonic() < deadline
        os.sched_yield()
    faults["INSERT INTO facts"] = sqlite3.SQLITE_IOERR
    journal.append([begun(2)], [effect(2)])
    inside._thread.join(20)
    assert numbers(journal.committed()) == [1]
    with pytest.raises(JournalFailedError):
        journal.committed()
    journal.close()


# --- where nothing can be written


def test_a_disk_that_can_only_be_read(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(12)
    journal, _ = open_here(disk)
    write(journal, [[begun(1)]])
    journal.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=str(disk)):
        open_here(disk)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    for path in disk.iterdir():
        path.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=r"Read-only file system.*disk"):
        open_here(disk)


def test_a_folder_that_can_not_be_written(run_folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    run_folder.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            open_here(run_folder)
    finally:
        run_folder.chmod(0o700)


def test_a_start_without_any_room(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(4)
    fill(disk)
    with pytest.raises(OSError, match=r"No space left|disk is full"):
        open_here(disk)


def test_a_start_on_a_full_disk_lets_go_of_the_reserve(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(12)
    journal, _ = open_here(disk, limits=LIMITS)
    write(journal, [[begun(1)]])
    journal.close()
    other = fill(disk)
    lock = Lock(disk / "lock", "the disk")  # there is no room for a name in it
    assert (disk / "lock").read_text() == ""
    journal, recovered = open_here(disk, limits=LIMITS)
    assert next_epoch(disk, recovered.last_epoch) > 0
    assert not journal.room()
    write(journal, [[begun(2)]])
    journal.close()
    lock.release()
    journal, recovered = open_here(
        disk, limits=LIMITS
    )  # still full, and the reserve is not taken back
    assert list(recovered.facts) == [begun(1), begun(2)]
    assert not journal.room()
    other.unlink()
    until_room(journal, True)
    journal.close()


def test_the_threads_of_the_journal_end_with_it(run_folder: Path) -> None:
    """The suite looks for what is left; here, that a start that fails leaves nothing either."""
    (run_folder / "head").mkdir()
    with pytest.raises(OSError, match="head"):
        open_here(run_folder, boot=OTHER_BOOT)
