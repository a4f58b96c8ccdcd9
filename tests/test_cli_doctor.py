"""`quiesce doctor`: what it says of a journal, what it refuses, and what it repairs."""

import errno
import fcntl
import json
import os
import re
import shlex
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cli_system import BACKGROUND, CommandSystem
from journal_helpers import (
    OTHER_BOOT,
    begun,
    epoch,
    one_by_one,
    open_here,
    take_snapshot,
    told,
    write,
)
from quiesce.broker import locks
from quiesce.broker.boot import boot_id
from quiesce.broker.journal_read import Manifest, chain_row
from quiesce.broker.locks import Lock
from quiesce.cli import main
from quiesce.protocol.fact_codec import FORMAT
from quiesce.protocol.frames import Frame
from quiesce.registry import facts


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    yield made
    made.close()


@pytest.fixture
def state(system: CommandSystem) -> Path:
    """The state folder, with a journal of which everything is known."""
    folder = system.folder / "state"
    folder.mkdir()
    desk = told(rounds=2, payload=9000)
    journal, _ = open_here(folder, boot=boot_id())
    (folder / "epoch").write_text("1\n")
    one_by_one(journal, desk.turns)
    take_snapshot(journal, desk.registry.freeze(volatile=False))
    before = len(desk.turns)
    desk.spawn({"tenant_id": "tail", "arguments": b"z" * 20_000})
    desk.spawn({"tenant_id": "tail"})
    one_by_one(journal, desk.turns[before:])
    journal.close()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whole_journal(system: CommandSystem, state: Path) -> None:
    before = files(state)
    lines = system.run("doctor").stdout.splitlines()
    assert lines[0] == f"{state}: the journal is whole"
    assert lines[1] == "  last epoch 1, durability crash, ended in order"
    assert re.fullmatch(r"  journal\.sqlite \d+ KiB", lines[2])
    assert re.fullmatch(
        r"  a snapshot as of row \d+ \(\d+ KiB\), then 2 facts in 2 rows, up to row \d+", lines[3]
    )
    assert lines[4] == "  2 large payloads, 28 KiB"
    assert lines[5] == "  4 live tasks, 0 open stops, 1 closed scope, 1 session"
    assert len(lines) == 6
    assert files(state) == before
    assert system.run("doctor", str(state)).stdout.splitlines() == lines
    assert system.run("doctor", "--config", "quiesce.toml").stdout.splitlines() == lines
    assert system.run("doctor", "--repair").stdout.splitlines() == lines
    assert files(state) == before


def test_a_whole_journal_as_json(system: CommandSystem, state: Path) -> None:
    said = system.json("doctor")
    assert said["repair"] is None
    journal = said["journal"]
    assert journal["folder"] == str(state)
    assert (journal["whole"], journal["complete"], journal["trouble"]) == (True, True, "")
    assert journal["counts"] == {"live_tasks": 4, "open_stops": 0, "closures": 1, "sessions": 1}
    assert (journal["rows"], journal["facts"]) == (2, 2)
    assert journal["last_row"] == journal["expected_row"]


def test_what_an_orderly_stop_has_closed_is_not_counted(system: CommandSystem) -> None:
    """The next start opens it; a scope that a user keeps closed stays so."""
    process = system.up()
    system.run("shutdown", "--tenant", "gone", "--keep-closed")
    system.end(process, signal.SIGTERM)
    assert ", 1 closed scope, " in system.run("doctor").stdout
    process = system.start("up")
    system.until("the broker", lambda: "quiesce is up" in system.text("err", 1))
    assert [each["holder"] for each in system.json("ps", "--closed")["closed"]] == ["kept"]
    stops = system.json("history", "--stops")["stops"]
    assert [stop["scope"] for stop in stops] == ["tenant_id=gone"]
    system.end(process, signal.SIGTERM)


def test_a_journal_from_which_something_may_be_missing(system: CommandSystem, state: Path) -> None:
    journal, _ = open_here(state, boot=OTHER_BOOT)
    write(journal, [[epoch(2)]])
    kill_copy(state, system.folder / "killed")
    journal.close()
    lines = system.run("doctor", str(system.folder / "killed")).stdout.splitlines()
    assert lines[1] == "  last epoch 2, durability crash, ended by a crash or a kill"
    assert lines[2].startswith("  what was acknowledged may be missing from it")


def kill_copy(state: Path, to: Path) -> None:
    to.mkdir()
    for path in state.iterdir():
        (to / path.name).write_bytes(path.read_bytes())


def test_a_damaged_journal_and_its_repair(system: CommandSystem, state: Path) -> None:
    # The last row's payload is damaged; the row before it is good.
    journal, recovered = open_here(state, boot=boot_id())
    last = recovered.words.rpartition(" ")[2]
    result = Frame(b"unlike any other" * 1000)
    ended = facts.TaskEnded(12, "completed", "RETURNED", None, 1.0, 2.0, "", result)
    one_by_one(journal, [[facts.SessionOpened(b"B" * 16, 1, "here", 0)], [ended]])
    journal.close()
    row = int(last) + 2
    path = state / "journal.sqlite"
    path.write_bytes(path.read_bytes().replace(b"unlike any other", b"unlike any ether", 1))
    before = files(state)

    done = system.run("doctor", code=1)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{state}: the journal is DAMAGED"
    assert re.fullmatch(
        rf"  row {row}: fact 1 of 1: payload \d+ of 16000 bytes has a wrong checksum", lines[1]
    )
    assert lines[2] == (
        f"  from row {row} on nothing counts: 1 row with 1 fact can still be seen there"
    )
    assert "  good: 4 live tasks, 0 open stops, 1 closed scope, 2 sessions" in lines
    assert lines[-1].startswith(f"  `quiesce doctor {state} --repair` puts it aside")
    assert files(state) == before
    broker = system.json("doctor", code=1)
    assert broker["journal"]["trouble_from"] == row

    lines = system.run("doctor", "--repair").stdout.splitlines()
    assert lines[:5] == [
        "repaired:",
        f"  the damaged files are in {state}/journal.damaged-1",
        f"  kept: everything up to row {row - 1}",
        f"  given up: row {row}, which held 1 fact",
        "  The next broker takes the journal as incomplete: it answers no stop before every lease has run out.",
    ]
    assert lines[5] == f"{state}: the journal is whole"
    assert "  4 live tasks, 0 open stops, 1 closed scope, 2 sessions" in lines
    assert (state / "journal.damaged-1" / "journal.sqlite").read_bytes() == before["journal.sqlite"]
    assert system.run("doctor").stdout.splitlines() == lines[5:]


def test_the_advice_of_a_broker_leads_to_its_own_journal(
    system: CommandSystem, state: Path
) -> None:
    """Typed as it stands, where another configuration holds, whose own journal is whole."""
    other = system.folder / "another state"
    kill_copy(state, other)
    (other / "head").unlink()
    (system.folder / "other.toml").write_text(
        f'[broker]\naddress = "ipc://{system.folder}/o"\nstate = "{other}"\n{BACKGROUND}'
    )
    text = system.run("up", "--config", "other.toml", code=1).stderr
    examine, mend = (shlex.split(words)[1:] for words in re.findall("`(quiesce doctor.*?)`", text))
    said = system.run(*examine, code=1).stdout.splitlines()
    assert said[0] == f"{other}: the journal is DAMAGED"
    assert f"`quiesce doctor '{other}' --repair` puts it aside" in said[-1]
    assert system.run(*mend).stdout.splitlines()[0] == "repaired:"
    assert system.run("doctor", str(other)).stdout.startswith(f"{other}: the journal is whole")


@pytest.mark.parametrize("table", ["facts", "snapshots"])
def test_a_journal_of_a_newer_version_is_not_called_damaged(
    system: CommandSystem, state: Path, table: str
) -> None:
    make_newer(state, table)
    before = files(state)
    for words in ([], ["--repair"]):
        lines = system.run("doctor", *words, code=1).stdout.splitlines()
        assert lines[0] == f"{state}: the journal is of a newer quiesce"
        assert f"written by a newer quiesce: it has format {FORMAT + 1}; this version" in lines[1]
        assert lines[-1] == (
            "  Nothing is to be repaired: start that version of quiesce again, or put back the copy "
            "of the state folder from before the upgrade"
        )
        assert "DAMAGED" not in "".join(lines)
    journal = system.json("doctor", code=1)["journal"]
    assert (journal["whole"], journal["mendable"], journal["newer"]) == (False, False, True)
    assert files(state) == before


def make_newer(state: Path, table: str) -> None:
    """The last row of facts, or the snapshot, as a newer version would have left it, with a right checksum."""
    with closing(sqlite3.connect(state / "journal.sqlite", isolation_level=None)) as connection:
        if table == "facts":
            seq, epoch, mode, count, body = connection.execute(
                "SELECT seq, epoch, mode, count, body FROM facts ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            (chain,) = connection.execute(
                "SELECT checksum FROM facts WHERE seq = ?", (seq - 1,)
            ).fetchone()
            checksum = chain_row(chain, seq, FORMAT + 1, epoch, mode, count, body)
            connection.execute(
                "UPDATE facts SET version = ?, checksum = ? WHERE seq = ?",
                (FORMAT + 1, checksum, seq),
            )
        else:
            values = connection.execute(
                "SELECT seq, version, epoch, first, chunks, chain, checksum FROM snapshots"
            ).fetchone()
            manifest = Manifest(*values)._replace(version=FORMAT + 1)
            connection.execute(
                "UPDATE snapshots SET version = ?, seal = ?", (FORMAT + 1, manifest.seal())
            )


def test_a_repair_as_json(system: CommandSystem, state: Path) -> None:
    (state / "head").unlink()
    said = system.json("doctor", "--repair")
    assert said["journal"]["whole"] is True
    assert said["journal"]["complete"] is False
    assert said["repair"]["saved"] == f"{state}/journal.damaged-1"
    assert said["repair"]["given_up"].endswith("nobody can say whether anything did")


def test_facts_that_can_not_follow_are_damage(system: CommandSystem, state: Path) -> None:
    journal, _ = open_here(state, boot=boot_id())
    write(journal, [[begun(10**15)]])  # nobody ever spawned it
    journal.close()
    before = files(state)
    done = system.run("doctor", code=1)
    assert "can't be applied: TaskBegan" in done.stdout
    assert files(state) == before


def test_a_journal_in_use_is_not_touched(system: CommandSystem, state: Path) -> None:
    before = files(state)
    lock = Lock(state / "lock", "this test")
    try:
        for words in ([], ["--repair"]):
            done = system.run("doctor", *words, code=1)
            assert done.stderr.startswith(f"error: another broker (pid {os.getpid()}) uses")
            assert done.stdout == ""
        assert '"error": "AlreadyLockedError"' in system.run("doctor", "--json", code=1).stderr
    finally:
        lock.release()
    assert files(state) == before


def test_a_folder_of_a_running_up_is_not_touched(system: CommandSystem, state: Path) -> None:
    fd = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = system.run("doctor", code=1)
    finally:
        os.close(fd)
    assert done.stderr.startswith(f"error: a `quiesce up` uses the state folder {state}")
    assert not (state / "lock").exists()


def test_a_folder_without_a_journal(system: CommandSystem) -> None:
    (system.folder / "state").mkdir()
    said = system.run("doctor").stdout
    assert said == f"{system.folder}/state: there is no journal (last epoch 0)\n"
    assert list((system.folder / "state").iterdir()) == []
    (system.folder / "state" / "epoch").write_text("3\n")
    said = system.run("doctor", str(system.folder / "state")).stdout
    assert said == f"{system.folder}/state: there is no journal (last epoch 3)\n"


def test_a_folder_on_which_no_broker_has_run_passes_for_no_whole_journal(
    system: CommandSystem,
) -> None:
    said = system.run("doctor", str(system.folder), code=2).stderr
    assert f"{system.folder} is no state folder of a broker: no broker has run on it; name" in said
    assert not (system.folder / "lock").exists()


def test_on_a_read_only_disk_it_says_what_to_do(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, what: str) -> Lock:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(locks, "Lock", refuse)
    before = files(state)
    assert main.run(["doctor", str(state), "--json"]) == 1
    assert json.loads(capsys.readouterr().err) == {
        "error": "QuiesceError",
        "message": f"the state folder {state} is on a read-only file system: copy it, as a whole, to "
        "where it can be written, and name the copy",
    }
    assert files(state) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "error: Invalid value for STATE: there is no folder"),
        (["nowhere"], "error: Invalid value for STATE: there is no folder nowhere"),
        (
            [".", "--config", "quiesce.toml"],
            "error: Invalid value for --config: goes without STATE",
        ),
        (["--config", "missing"], "error: Invalid value for --config: configuration missing"),
    ],
)
def test_wrong_usage(system: CommandSystem, words: list[str], expected: str) -> None:
    assert system.run("doctor", *words, code=2).stderr.startswith(expected)
