"""A broker that is killed, or whose machine is, at any write of its journal; and at any instant of its work.

The exhaustive run is `scripts/crash-points`; here are the points of a journal's making, and some of all others.
"""

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile_house import House
from quiesce.broker.journal_store import Store
from quiesce.broker.journal_thread import DiskJournal
from quiesce.testing import crash_points
from quiesce.testing.bodies import nothing
from quiesce.testing.crash_work import record
from quiesce.testing.disk import Disk, Op, put
from quiesce.testing.recorder import Recorder, can_record


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder whose syncs cost nothing, if there is one."""
    folder = crash_points.scratch()
    yield folder
    shutil.rmtree(folder)


pytestmark = pytest.mark.skipif(not can_record(), reason="SQLite's functions can't be reached here")


# --- the points


@pytest.mark.slow
@pytest.mark.parametrize("mode", crash_points.MODES)
def test_nothing_that_was_acknowledged_is_lost(memory: Path, mode: str) -> None:
    report = crash_points.explore(
        memory, seed=1, modes=(mode,), every=40, first=50, steps=12, nested=1
    )
    assert report.failures == []
    assert report.points > 60
    assert report.seconds > 0
    assert report.nested == 1
    assert min(report.variants[kind] for kind in ("clean", "torn", "lost")) > 30


def after_a_kill_before_the_sync(folder: Path) -> list[str]:
    """A broker is killed between a row's write and its sync; the next one reads it; then power is lost."""
    chance = random.Random(2)
    live = folder / "live"
    live.mkdir()
    recording = record(live, "power-loss", chance, lives=1, steps=6)
    wrong = []
    tried = 0
    for kind, made in crash_points.crashes(recording, chance, some=0):
        if kind != "clean" or made.recording.ops[made.played - 1].name != "journal.sqlite-wal":
            continue
        assert crash_points.judge(kind, made, folder / "scratch", deep=False) is None
        if made.turn == made.least:
            continue
        tried += 1
        inner = crash_points.record_recovery(folder / f"again-{tried}", kind, made, chance, 1)
        for inner_kind, cut in crash_points.crashes(inner, chance, some=0):
            trouble = crash_points.judge(inner_kind, cut, folder / "scratch", deep=False)
            wrong += [] if trouble is None else [f"{cut.what}: {trouble}"]
        if tried == 2:
            break
    assert tried == 2
    return wrong


def test_what_a_recovery_has_read_is_safe_from_then_on(memory: Path) -> None:
    assert after_a_kill_before_the_sync(memory) == []


def test_else_it_would_have_been_found(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_sync_found", lambda self: None)
    assert "its end was cut off" in "\n".join(after_a_kill_before_the_sync(memory))


def found(folder: Path, mode: str) -> str:
    """What a planted bug leads to."""
    report = crash_points.explore(folder, seed=1, modes=(mode,), every=7, steps=6, nested=0)
    return "\n".join(report.failures)


def test_a_missing_sync_is_found(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Store._set_sync
    monkeypatch.setattr(Store, "_set_sync", lambda self, sync: usual(self, False))
    assert "its end was cut off" in found(memory, "power-loss")  # the head tells


def test_an_answer_before_its_commit_is_found(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(self: DiskJournal, turns: list[Any], **more: Any) -> None:
        with self._lock:
            self._done += len(turns)
            self._hand_back([effect for turn in turns for effect in turn[1]])
        time.sleep(0.01)  # so that it is heard
        facts = [fact for turn in turns for fact in turn[0]]
        if facts:
            self._store.commit(facts, **more)

    monkeypatch.setattr(DiskJournal, "_commit", hasty)
    assert "was promised, and turn" in found(memory, "crash")


# --- the disk that takes notes


def test_notes_make_the_files_again(memory: Path) -> None:
    """All that SQLite and Python did in the folder is in the notes."""
    live = memory / "live"
    live.mkdir()
    recording = record(live, "crash", random.Random(3), lives=2, steps=10)
    disk = Disk()
    for op in recording.ops:
        disk.play(op)
    there = {path.name: path.read_bytes() for path in live.iterdir()}
    assert disk.after_kill() == there
    assert {"journal.sqlite", "head", "epoch", "reserve"} <= there.keys()
    assert "journal.sqlite-wal" in {op.name for op in recording.ops}
    assert put(there, memory / "copy").is_dir()


def test_what_a_loss_of_power_may_take() -> None:
    disk = Disk()
    for op in (
        Op("write", "a", 0, b"1" * 1024),
        Op("sync", "a"),
        Op("folder"),
        Op("write", "a", 0, b"2" * 1024),
        Op("write", "b", 0, b"3"),
        Op("rename", "b", to="c"),
    ):
        disk.play(op)
    assert disk.after_kill() == {"a": b"2" * 1024, "c": b"3"}
    nothing_ = disk.after_power_loss(lambda *_: False, names=False)
    assert nothing_ == {"a": b"1" * 1024}
    half = disk.after_power_loss(lambda name, number, sector: sector == 1, names=True)
    assert half == {"a": b"1" * 512 + b"2" * 512, "c": b""}
    assert disk.torn(Op("write", "a", 0, b"4" * 8), 3)["a"] == b"444" + b"2" * 1021
    assert sorted(disk.unsafe) == ["", "a", "c"]
    assert {what for what, _ in disk.losses(random.Random(0), 1)} >= {
        "nothing arrived",
        "all arrived",
        "only a arrived",
        "only names arrived",
    }


def test_a_file_whose_removal_is_lost_is_there_again() -> None:
    disk = Disk()
    for op in (Op("write", "a", 0, b"1"), Op("folder"), Op("unlink", "a")):
        disk.play(op)
    assert disk.after_kill() == {}
    seen = [files for _, files in disk.losses(random.Random(0), 20)]
    assert {"a": b"1"} in seen
    assert {"a": b""} in seen
    assert {} in seen


def test_a_recorder_leaves_everything_as_it_was(memory: Path) -> None:
    before = {name: getattr(os, name) for name in ("open", "pwrite", "fsync", "replace")}
    recorder = Recorder(memory)
    with recorder.recording():
        assert os.pwrite is not before["pwrite"]
        recorder.connect(memory / "x.sqlite").close()
    assert {name: getattr(os, name) for name in before} == before


# --- any instant


@pytest.mark.slow
def test_a_broker_that_is_killed_again_and_again_keeps_its_word(run_folder: Path) -> None:
    """Tasks whose id somebody was told are there, once each, and nothing that nobody asked for."""
    house = House(run_folder)
    told: dict[str, int] = {}
    asked: list[str] = []
    over = threading.Event()
    chance = random.Random()
    seed = chance.randrange(2**32)
    chance.seed(seed)

    with house.client(60.0) as client:

        def spawn() -> None:
            while not over.is_set():
                name = f"task-{len(asked)}"
                asked.append(name)
                told[name] = client.spawn("background", "compaction", nothing, name=name).id

        thread = threading.Thread(target=spawn)
        thread.start()
        epochs = []
        try:
            for _ in range(6):
                seen = len(told)
                deadline = time.monotonic() + 20
                while len(told) < seen + 5 and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(chance.random() * 0.02)
                house.kill()
                house.start()
                epochs.append(client.broker_info().epoch)
        finally:
            over.set()
            thread.join(30)
        assert epochs == list(range(2, 8)), f"seed {seed}"
        there = {task.name: task.id for task in client.tasks()}
        assert len(there) == len(client.tasks()), "a task is there twice"
        assert there == told, f"seed {seed}"
        assert len(told) == len(asked) >= 30
        client.shutdown_tasks()
    assert house.stop() == 0
