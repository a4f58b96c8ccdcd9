"""Damaged journals: never a silent loss. Refused, with what is wrong and where, or read as they were."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from journal_helpers import (
    BOOT,
    OTHER_BOOT,
    SMALL,
    begun,
    one_by_one,
    open_here,
    plain,
    take_snapshot,
    told,
    write,
)
from quiesce.broker import journal_check
from quiesce.broker.journal import JournalDamagedError
from quiesce.broker.journal_head import Head, HeadFile, read_head
from quiesce.broker.journal_read import NAME, NEWER, Damage, chain_row, read_journal
from quiesce.protocol.fact_codec import FORMAT
from quiesce.protocol.frames import Frame
from quiesce.registry import facts
from quiesce.registry.facts import Fact

WAL = f"{NAME}-wal"
HEAD = "head"


def snapshot_of_files(folder: Path, to: Path) -> None:
    """As they would be after a kill now: the files of a journal that is open."""
    to.mkdir(exist_ok=True)
    for name in (NAME, WAL, HEAD):
        if (folder / name).exists():
            shutil.copy(folder / name, to / name)


def killed(folder: Path, to: Path, mode: str = "crash") -> Any:
    """A journal with everything in it, killed; what is read from it."""
    folder.mkdir()
    desk = told(rounds=2)
    journal, _ = open_here(folder, mode)
    one_by_one(journal, desk.turns[:15])
    frozen = desk.registry.freeze(volatile=False)
    take_snapshot(journal, (*frozen, Frame(b"p" * 9000)))
    one_by_one(journal, desk.turns[15:])
    big = facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", Frame(b"q" * 20_000))
    write(journal, [[big]])
    write(journal, [[begun(1)]])
    snapshot_of_files(folder, to)
    journal.close()
    return contents(to)


def contents(folder: Path, boot: str = BOOT) -> Any:
    """What is read, or the damage."""
    found = read_journal(folder, boot)
    if found.damage is not None:
        return found.damage
    return plain(found.frozen), plain(found.facts), found.last


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The files of a killed broker, and what they say."""
    folder = tmp_path_factory.mktemp("whole")
    files = folder / "files"
    said = killed(folder / "live", files)
    assert not isinstance(said, Damage)
    assert (files / WAL).stat().st_size > 10_000
    return files, said


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The same, but ended in order: all is in one file."""
    folder = tmp_path_factory.mktemp("closed")
    killed(folder / "live", folder / "unused")
    snapshot_of_files(folder / "live", folder / "files")
    assert not (folder / "files" / WAL).exists()
    return folder / "files", contents(folder / "files")


def copied(files: Path, to: Path) -> Path:
    shutil.copytree(files, to, dirs_exist_ok=True)
    return to


def refused(folder: Path, boot: str = BOOT) -> str:
    """The text with which it is refused; the files stay as they are."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(JournalDamagedError) as caught:
        open_here(folder, boot=boot)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    text = str(caught.value)
    if " newer " in text:
        assert text.startswith(f"the journal in {folder} is of a newer quiesce: ")
        assert text.endswith(NEWER)
    else:
        assert text.startswith(f"the journal in {folder} is damaged: ")
        assert f"`quiesce doctor {folder} --repair`" in text
    return text


# --- bits


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.mark.parametrize("name", [NAME, WAL, HEAD])
@pytest.mark.parametrize("state", ["killed", "closed"])
def test_no_flipped_bit_changes_what_is_read(
    run_folder: Path, whole: tuple[Path, Any], closed: tuple[Path, Any], name: str, state: str
) -> None:
    files, said = whole if state == "killed" else closed
    if not (files / name).exists():
        return
    chance = random.Random(name)
    size = (files / name).stat().st_size
    places = range(size) if size < 2000 else sorted(chance.sample(range(size), 400))
    if size > 2000:
        places = [*range(100), *places]  # a header is short, and matters
    refusals = 0
    for place in places:
        folder = copied(files, run_folder / "j")
        flip(folder / name, place, chance.randrange(8))
        try:
            now = contents(folder)
        except OSError as error:
            raise AssertionError(f"bit at {place} of {name}: {error}") from error
        if not isinstance(now, Damage):
            assert now == said, f"a bit at {place} of {name} changed what is read"
        else:
            refusals += 1
            assert now.what
        shutil.rmtree(folder)
    if name != HEAD:
        assert refusals > len(places) / 20


@pytest.mark.parametrize("name", [NAME, WAL, HEAD])
def test_no_cut_goes_unnoticed(run_folder: Path, whole: tuple[Path, Any], name: str) -> None:
    files, said = whole
    size = (files / name).stat().st_size
    for length in sorted(
        {0, 1, 31, 32, 100, 511, 512, *range(0, size, max(1, size // 60)), size - 1}
    ):
        folder = copied(files, run_folder / "j")
        os.truncate(folder / name, length)
        now = contents(folder)
        if not isinstance(now, Damage):
            # The other slot of the head does, and what SQLite keeps behind the end of its log.
            assert now == said, f"{name} of {length} bytes"
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [NAME, HEAD])
def test_a_file_that_is_missing(run_folder: Path, whole: tuple[Path, Any], name: str) -> None:
    folder = copied(whole[0], run_folder / "j")
    (folder / name).unlink()
    assert "is missing" in refused(folder)


def test_a_log_that_is_missing(run_folder: Path, whole: tuple[Path, Any]) -> None:
    folder = copied(whole[0], run_folder / "j")
    (folder / WAL).unlink()
    assert "its end was cut off" in refused(folder) or "missing" in refused(folder)


def test_a_head_of_which_nothing_is_left(run_folder: Path, whole: tuple[Path, Any]) -> None:
    folder = copied(whole[0], run_folder / "j")
    (folder / HEAD).write_bytes(bytes(1024))
    assert "head holds nothing that was written there" in refused(folder)


def test_something_else_in_its_place(run_folder: Path, whole: tuple[Path, Any]) -> None:
    folder = copied(whole[0], run_folder / "j")
    (folder / NAME).write_bytes(b"something else" * 1000)
    assert "is no journal: its first bytes are wrong" in refused(folder)
    (folder / NAME).unlink()
    with closing(sqlite3.connect(folder / NAME)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE other (x)")
        other.commit()
    assert "its tables are not those of a journal" in refused(folder)


def test_an_older_copy_is_noticed(run_folder: Path) -> None:
    """All its checksums are right; only the head knows better."""
    journal, _ = open_here(run_folder)
    one_by_one(journal, [[begun(number)] for number in range(5)])
    snapshot_of_files(run_folder, run_folder / "old")
    one_by_one(journal, [[begun(number)] for number in range(5)])
    journal.close()
    shutil.copy(run_folder / HEAD, run_folder / "old" / HEAD)
    text = refused(run_folder / "old")
    assert "it ends with row 5, but the record `head` says that 10 rows were written" in text


def test_another_journal_of_the_same_length_is_noticed(run_folder: Path) -> None:
    for name in ("a", "b"):
        (run_folder / name).mkdir()
        journal, _ = open_here(run_folder / name)
        one_by_one(journal, [[facts.TaskBegan(1, float(ord(name)))]] * 3)
        journal.close()
    shutil.copy(run_folder / "a" / HEAD, run_folder / "b" / HEAD)
    assert "its row 3 is not the one that was written last" in refused(run_folder / "b")


# --- what a hand, or a bug, could do to the tables


def altered(folder: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return folder


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM facts WHERE seq = {m}", "row {m} is missing, but row {m1} is there"),
        ("DELETE FROM facts WHERE seq IN ({m}, {m1})", "rows {m} to {m1} are missing"),
        ("UPDATE facts SET epoch = 0 WHERE seq = {m}", "row {m} has a wrong checksum"),
        ("UPDATE facts SET body = 'x' WHERE seq = {m}", "row {m} is damaged"),
        ("UPDATE facts SET epoch = -1 WHERE seq = {m}", "row {m} has a wrong checksum"),
        ("UPDATE facts SET count = count + 1 WHERE seq = {m}", "row {m} has a wrong checksum"),
        ("DELETE FROM facts WHERE seq > {m}", "ends with row {m}, but"),
        ("DELETE FROM blobs WHERE length(data) > 10000", "payload 2 of 20000 bytes is missing"),
        ("UPDATE blobs SET data = zeroblob(20000) WHERE length(data) = 20000", "wrong checksum"),
        ("UPDATE blobs SET part = 3 WHERE length(data) = 20000", "payload 2 is damaged"),
        ("DELETE FROM snapshots", "rows 1 to {s} are missing"),
        ("UPDATE snapshots SET chunks = chunks + 1", "what it says of its snapshot is damaged"),
        ("UPDATE snapshots SET first = 'x'", "what it says of its snapshot is damaged"),
        ("DELETE FROM chunks", "its snapshot as of row {s}: piece 1 of 1 is missing"),
        ("UPDATE chunks SET body = x'00'", "piece 1 of 1 has a wrong checksum"),
        ("DROP TABLE blobs", "its tables are not those of a journal"),
    ],
)
def test_what_is_wrong_is_said_and_where(
    run_folder: Path, closed: tuple[Path, Any], statement: str, words: str
) -> None:
    folder = copied(closed[0], run_folder / "j")
    found = read_journal(folder, BOOT)
    assert found.manifest is not None
    first = found.manifest.seq
    names = {"s": first, "m": first + 3, "m1": first + 4}
    altered(folder, statement.format(**names))
    assert words.format(**names) in refused(folder)


def rewritten(
    folder: Path, seq: int, *, epoch: int = 1, version: int = FORMAT, body: bytes
) -> None:
    """A row whose checksum is right, at the end."""
    with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        (before,) = connection.execute(
            "SELECT checksum FROM facts WHERE seq = ?", (seq - 1,)
        ).fetchone()
        checksum = chain_row(before, seq, version, epoch, 1, 1, body)
        connection.execute(
            "INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?,?)",
            (seq, version, epoch, 1, 1, body, checksum),
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 0, "body": b"\x91\x01"}, "is of epoch 0, after epoch 1"),
        ({"body": b"\x91\x01"}, "fact 1 of 1: EpochStarted: expected 6 fields, got 0"),
        ({"body": b"\xc1"}, "fact 1 of 1: "),
        ({"body": b""}, "0 facts, where 1 were written"),
        (
            {"version": FORMAT + 1, "body": b""},
            f"written by a newer quiesce: it has format {FORMAT + 1}",
        ),
        (
            {"body": b"\x91\x7f"},
            "written by a newer quiesce: fact 1 of 1: no fact that this version",
        ),
    ],
)
def test_rows_that_can_not_be(
    run_folder: Path, closed: tuple[Path, Any], changes: dict[str, Any], words: str
) -> None:
    folder = copied(closed[0], run_folder / "j")
    last = read_journal(folder, BOOT).last.seq
    rewritten(folder, last + 1, **changes)
    text = refused(folder)
    assert words in text
    assert f"row {last + 1} " in text or f"row {last + 1}:" in text


# --- a loss that was to be expected, and one that was not


def cut_back(folder: Path, rows: int, head: dict[str, Any]) -> None:
    """A journal of so many rows, whose head says `head`."""
    folder.mkdir()
    journal, _ = open_here(folder)
    one_by_one(journal, [[begun(number)] for number in range(rows)])
    journal.close()
    there = read_head(folder)
    assert there is not None
    values = {"checksum": there.checksum, "boot": BOOT, "mode": "crash", **head}
    (folder / HEAD).unlink()
    file = HeadFile(folder)
    file.write(Head(**values), sync=False)
    file.close()


@pytest.mark.parametrize(
    ("head", "boot", "refusal"),
    [
        ({"seq": 9, "synced": 5}, OTHER_BOOT, False),
        ({"seq": 9, "synced": 5}, BOOT, True),
        ({"seq": 9, "synced": 6}, OTHER_BOOT, True),
        ({"seq": 9, "synced": 9, "mode": "power-loss"}, OTHER_BOOT, True),
        ({"seq": 3, "synced": 3, "checksum": b"x" * 16}, BOOT, False),
    ],
)
def test_what_the_machine_forgot(
    run_folder: Path, head: dict[str, Any], boot: str, refusal: bool
) -> None:
    """In crash mode a new boot may lose what was not synced; a synced row is never missing."""
    folder = run_folder / "j"
    cut_back(folder, 5, head)
    if refusal:
        assert "its end was cut off" in refused(folder, boot)
        return
    lost = head["seq"] - 5
    for _ in range(2):
        journal, recovered = open_here(folder, boot=boot)
        assert list(recovered.facts)[:5] == [begun(number) for number in range(5)]
        if lost > 0:
            assert not recovered.complete
        assert (f"{lost} rows before it were lost" in recovered.words) is (lost > 0)
        write(journal, [[begun(9)]])
        journal.close()
        lost = 0


def test_a_making_that_was_interrupted_is_no_damage(run_folder: Path) -> None:
    (run_folder / NAME).touch()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == []
    journal.close()
    (run_folder / NAME).unlink()
    (run_folder / HEAD).unlink()
    with closing(sqlite3.connect(run_folder / NAME)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    journal, recovered = open_here(run_folder)
    write(journal, [[begun(1)]])
    journal.close()
    journal, recovered = open_here(run_folder)
    assert list(recovered.facts) == [begun(1)]
    journal.close()


# --- repair


def mended(folder: Path) -> tuple[journal_check.Repair, list[Any]]:
    """Repair it; then it opens, and goes on."""
    seen, found = journal_check.examine(folder, BOOT)
    assert not seen.whole
    assert seen.mendable
    done = journal_check.repair(found, BOOT)
    seen, _ = journal_check.examine(folder, BOOT)
    assert seen.whole, seen.trouble
    assert not seen.complete
    journal, recovered = open_here(folder)
    left = plain(list(recovered.facts))
    assert not recovered.complete
    more: Fact = facts.SessionOpened(b"later" + os.urandom(8), 1, "here", 0)
    write(journal, [[more]])
    journal.close()
    journal, recovered = open_here(folder)
    assert plain(list(recovered.facts)) == [*left, *plain([more])]
    journal.close()
    return done, left


def whole_story(folder: Path) -> Any:
    """Without a snapshot of its own making, so that a registry can be made of it."""
    folder.mkdir()
    desk = told(rounds=1)
    journal, _ = open_here(folder)
    one_by_one(journal, desk.turns)
    journal.close()
    return desk


Cut = Callable[[Path], object]


@pytest.mark.parametrize(
    ("cut", "kept", "given_up"),
    [
        (lambda folder: altered(folder, "DELETE FROM facts WHERE seq = 10"), 9, "rows 10 to {n}"),
        (
            lambda folder: altered(folder, "UPDATE facts SET body = x'00' WHERE seq = 10"),
            9,
            "rows 10 to {n}, which held {f} facts",
        ),
        (
            lambda folder: altered(folder, "DELETE FROM facts WHERE seq > 10"),
            10,
            "rows 11 to {n}; how many facts they held is not known",
        ),
        (
            lambda folder: (folder / HEAD).unlink(),
            None,
            "whatever came after row {n}: nobody can say whether anything did",
        ),
        (lambda folder: (folder / NAME).write_bytes(b"?" * 5000), 0, "rows 1 to {n}; how many"),
        (lambda folder: (folder / NAME).unlink(), 0, "rows 1 to {n}; how many"),
        (lambda folder: (folder / "epoch").write_text("?"), None, "nothing that is known of"),
    ],
)
def test_a_repair_keeps_what_is_good_and_says_what_it_gives_up(
    run_folder: Path, cut: Cut, kept: int | None, given_up: str
) -> None:
    folder = run_folder / "j"
    desk = whole_story(folder)
    (folder / "epoch").write_text("1\n")
    turns = desk.turns
    if kept is None:
        kept = len(turns)
    damaged = {path.name for path in folder.iterdir()}
    cut(folder)
    damaged &= {path.name for path in folder.iterdir()}
    before = {name: (folder / name).read_bytes() for name in damaged - {"reserve"}}
    done, left = mended(folder)
    assert left == plain([fact for turn in turns[:kept] for fact in turn])
    lost = sum(len(turn) for turn in turns[kept:])
    assert done.given_up.startswith(given_up.format(n=len(turns), f=lost))
    assert done.kept == (f"everything up to row {kept}" if kept else "nothing")
    assert done.saved == str(folder / "journal.damaged-1")
    for name, data in before.items():
        assert (folder / "journal.damaged-1" / name).read_bytes() == data
    assert (folder / "epoch").read_text().strip().isdigit()


def test_a_repair_keeps_the_snapshot_and_payloads(run_folder: Path) -> None:
    folder = run_folder / "j"
    folder.mkdir()
    desk = told(rounds=1, payload=9000)
    journal, _ = open_here(folder)
    one_by_one(journal, desk.turns)
    frozen = desk.registry.freeze(volatile=False)
    take_snapshot(journal, frozen)
    before = len(desk.turns)
    desk.spawn({"arguments": b"z" * 30_000})
    desk.spawn({"arguments": b"y" * 30_000})
    one_by_one(journal, desk.turns[before:])
    journal.close()
    last = len(desk.turns)
    altered(folder, f"UPDATE facts SET body = x'00' WHERE seq = {last}")
    done, left = mended(folder)
    assert done.given_up == f"row {last}, which held 1 fact"
    assert left == plain([fact for turn in desk.turns[before:-1] for fact in turn])
    found = read_journal(folder, BOOT)
    assert plain(found.frozen) == plain(frozen)
    assert sorted(map(len, found.blobs.values())) == [9000, 30_000]


def test_a_second_repair_has_a_folder_of_its_own(run_folder: Path) -> None:
    folder = run_folder / "j"
    whole_story(folder)
    for number in (1, 2):
        (folder / HEAD).write_bytes(b"?")
        done, _ = mended(folder)
        assert done.saved == str(folder / f"journal.damaged-{number}")


def test_facts_that_make_no_registry_are_damage(run_folder: Path) -> None:
    desk = told(rounds=1)
    journal, _ = open_here(run_folder, limits=SMALL)
    one_by_one(journal, desk.turns)
    one_by_one(journal, [[facts.SessionClosed(b"never opened")], [begun(5)]])
    journal.close()
    seen, _ = journal_check.examine(run_folder, BOOT)
    last = len(desk.turns)
    assert seen.trouble == (
        f"row {last + 1} can't be applied: SessionClosed: KeyError(b'never opened')"
    )
    assert seen.beyond == (2, 2)
    done, left = mended_without_facts(run_folder)
    assert done.given_up == f"rows {last + 1} to {last + 2}, which held 2 facts"
    assert left == plain([fact for turn in desk.turns for fact in turn])


def mended_without_facts(folder: Path) -> tuple[journal_check.Repair, list[Any]]:
    _, found = journal_check.examine(folder, BOOT)
    done = journal_check.repair(found, BOOT)
    journal, recovered = open_here(folder)
    journal.close()
    return done, plain(list(recovered.facts))
