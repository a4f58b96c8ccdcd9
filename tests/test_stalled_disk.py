"""The loop commits what is small by itself; and a disk that stalls holds up neither leases nor requests to stop."""

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import quiesce
from journal_helpers import begun, effect, numbers, open_here, take
from quiesce.broker.journal import JournalFailedError
from quiesce.broker.journal_head import read_head
from quiesce.broker.journal_thread import LIGHT, DiskJournal
from quiesce.broker.stand_in import StandIn
from quiesce.protocol.frames import Frame
from quiesce.registry import effects, facts
from quiesce.registry.ids import RequestNumber, SessionId
from quiesce.registry.scope import Scope
from quiesce.testing import Cluster, Witness, bodies, wait_until
from registry_helpers import spawn_row

SYNCED = facts.ScopesReopened(Scope(), False)


@pytest.fixture
def journal(run_folder: Path) -> Iterator[DiskJournal]:
    """One that the loop may commit to by itself; `aside` is entered for nothing else."""
    journal, _ = open_here(run_folder)
    assert isinstance(journal, DiskJournal)
    journal.commit_here(contextlib.nullcontext)
    yield journal
    with contextlib.suppress(JournalFailedError):
        journal.close()


def large(number: int) -> facts.Fact:
    """A fact with a payload of a size."""
    return facts.TaskEnded(number, "completed", "RETURNED", None, 1.0, 2.0, "", Frame(bytes(10**5)))


def told(number: int) -> effects.Effect:
    """An effect that binds."""
    return effects.AnswerDone(SessionId(b""), RequestNumber(number))


@dataclass
class Gate:
    """Where the journal's thread stands before a sync, until it may go on."""

    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def sync(journal: DiskJournal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Syncs of the log wait at this gate."""
    gate = Gate()
    usual = journal._store.sync_log

    def slow() -> None:
        gate.entered.set()
        assert gate.go_on.wait(20)
        usual()

    monkeypatch.setattr(journal._store, "sync_log", slow)
    yield gate
    gate.go_on.set()


def test_what_is_small_is_committed_at_once(journal: DiskJournal) -> None:
    journal.append([begun(1)], [effect(1)])
    journal.append([], [effect(2)])
    assert numbers(journal.committed()) == [1, 2]
    assert journal.committed() == []


def test_who_commits_by_itself_is_not_woken(journal: DiskJournal) -> None:
    journal.append([begun(1)], [effect(1)])
    assert numbers(journal.committed()) == [1]
    assert select.select([journal.fileno()], [], [], 0)[0] == []
    journal.append([large(2)], [effect(2)])
    assert journal.committed() == []
    assert select.select([journal.fileno()], [], [], 20)[0] == [journal.fileno()]
    assert numbers(take(journal, 1)) == [2]
    assert select.select([journal.fileno()], [], [], 0)[0] == []


@pytest.mark.parametrize("how", ["a frame", "a parked spawn", "many bytes"])
def test_what_has_large_payloads_is_committed_by_the_thread(journal: DiskJournal, how: str) -> None:
    """Few facts may be very much: the loop must not be held up by it."""
    turn = [large(1)]
    if how == "a parked spawn":
        turn = [facts.SpawnParked(b"s", 1, spawn_row(1)._replace(arguments=Frame(bytes(10**5))))]
    elif how == "many bytes":
        result = bytes(30_000)
        ended = facts.TaskEnded(1, "completed", "RETURNED", None, 1.0, 2.0, "", result)
        turn = [ended._replace(task_id=number) for number in range(LIGHT // 30_000 + 1)]
    journal.append(turn, [effect(1)])
    assert journal.committed() == []
    assert numbers(take(journal, 1)) == [1]


def test_whatever_commits_them_effects_keep_their_order(
    journal: DiskJournal, run_folder: Path
) -> None:
    """Payloads of a size are the thread's; what comes meanwhile waits for it."""
    turns: list[list[facts.Fact]] = [[begun(0)], [SYNCED], [begun(2)], [large(3)], [], [begun(5)]]
    found = []
    for number, turn in enumerate(turns):
        journal.append(turn, [effect(number)])
        found += numbers(journal.committed())
    found += numbers(take(journal, len(turns) - len(found)))
    assert found == list(range(len(turns)))
    journal.close()
    again, recovered = open_here(run_folder)
    assert len(list(recovered.facts)) == 5
    again.close()


def test_while_the_thread_writes_the_loop_does_not(
    journal: DiskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    commit = journal._store.commit

    def slow(batch: list[facts.Fact], **more: bool) -> None:
        entered.set()
        assert go_on.wait(20)
        commit(batch, **more)

    monkeypatch.setattr(journal._store, "commit", slow)
    journal.append([large(1)], [effect(1)])
    assert journal.committed() == []
    assert entered.wait(20)
    journal.append([begun(2)], [effect(2)])
    assert journal.committed() == []
    go_on.set()
    assert numbers(take(journal, 2)) == [1, 2]


def test_for_a_sync_waits_only_who_is_to_be_told(
    journal: DiskJournal, sync: Gate, run_folder: Path
) -> None:
    """And what binds keeps its order, though no sync is for it."""
    journal.append([SYNCED], [told(1), effect(1)])
    assert journal.committed() == [effect(1)]
    assert sync.entered.wait(20)
    journal.append([begun(2)], [effect(2), told(2)])
    journal.append([begun(3)], [effect(3)])
    journal.append([], [told(4), effect(4)])
    assert journal.committed() == [effect(2), effect(3), effect(4)]
    assert journal.behind
    head = read_head(run_folder)
    assert head is not None
    assert (head.seq, head.synced) == (2, 0)
    sync.go_on.set()
    assert take(journal, 3) == [told(1), told(2), told(4)]
    head = read_head(run_folder)
    assert head is not None
    assert (head.seq, head.synced) == (2, 2)
    wait_until(lambda: not journal.behind)
    journal.append([begun(5)], [told(5)])
    assert journal.committed() == [told(5)]


def test_what_is_handed_over_meanwhile_comes_behind_what_waits(
    journal: DiskJournal, sync: Gate
) -> None:
    journal.append([SYNCED], [told(1)])
    assert journal.committed() == []
    journal.snapshot(((), ()))
    journal.append([], [told(2)])
    assert journal.committed() == []
    journal.append([large(3)], [told(3)])
    assert journal.committed() == []
    sync.go_on.set()
    assert take(journal, 3) == [told(1), told(2), told(3)]


def test_who_stands_in_tells_nothing_before_the_sync(journal: DiskJournal, sync: Gate) -> None:
    """While the loop's own commit stalls, others have turns."""

    @contextlib.contextmanager
    def aside() -> Iterator[None]:
        journal.append([], [told(2)])
        assert journal.committed() == []
        yield

    journal.commit_here(aside)
    journal.append([SYNCED], [told(1)])
    assert journal.committed() == []
    sync.go_on.set()
    assert take(journal, 2) == [told(1), told(2)]


def test_what_fails_in_whoever_stands_in_leaves_nothing_behind(journal: DiskJournal) -> None:
    """It is raised in the loop, which then closes the journal."""

    @contextlib.contextmanager
    def aside() -> Iterator[None]:
        yield
        journal.append([begun(2)], [effect(2)])
        assert journal.committed() == []
        raise ZeroDivisionError("in a turn")

    journal.commit_here(aside)
    journal.append([SYNCED], [told(1)])
    with pytest.raises(ZeroDivisionError):
        journal.committed()
    journal.close()
    assert {told(1), effect(2)} <= set(journal.committed())


def test_what_can_not_be_synced_is_never_told(
    journal: DiskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal._store, "sync_log", fail)
    journal.append([SYNCED], [told(1), effect(1)])
    found = journal.committed()
    with pytest.raises(JournalFailedError, match="Input/output error"):
        found += take(journal, 2)
    assert found == [effect(1)]


def test_while_the_thread_syncs_a_long_log_the_loop_commits(
    journal: DiskJournal, sync: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is synced before the log is moved into its file holds nobody up then."""
    moved = threading.Event()
    checkpoint = journal._store._checkpoint

    def move(how: str) -> None:
        checkpoint(how)
        moved.set()

    monkeypatch.setattr(journal._store, "_checkpoint", move)
    monkeypatch.setattr(journal._store, "_logged", 2**30)
    for number in range(5):
        journal.append([begun(number)], [effect(number)])
        assert numbers(journal.committed()) == [number]
        assert sync.entered.wait(20)
    assert not moved.is_set()
    sync.go_on.set()
    assert moved.wait(20)


@pytest.mark.parametrize("pending", [True, False])
def test_a_snapshot_holds_what_is_open_and_nothing_that_comes(
    journal: DiskJournal, run_folder: Path, pending: bool
) -> None:
    journal.append([begun(0)], [effect(0)])
    assert numbers(journal.committed()) == [0]
    if pending:
        journal.append([begun(1)], [effect(1)])
    journal.snapshot(((1,), ()))
    found = [] if pending else [1]
    for number in range(2, 10):
        journal.append([begun(number)], [effect(number)])
        found += numbers(journal.committed())
    found += numbers(take(journal, 9 - len(found)))
    assert found == list(range(1, 10))
    wait_until(lambda: journal.figures()["snapshots"] == 1)
    journal.close()
    again, recovered = open_here(run_folder)
    assert recovered.snapshot == ((1,), ())
    assert [fact.task_id for fact in recovered.facts] == list(range(2, 10))  # type: ignore[union-attr]  # as above
    again.close()


def test_a_disk_that_fails_is_told_of_at_once(
    journal: DiskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: list[facts.Fact], **more: bool) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal._store, "commit", fail)
    journal.append([begun(1)], [effect(1)])
    with pytest.raises(JournalFailedError, match="Input/output error"):
        journal.committed()
    journal.append([begun(2)], [effect(2)])
    with pytest.raises(JournalFailedError):
        journal.committed()


def test_somebody_stands_in_while_a_commit_takes_long() -> None:
    turns = threading.Semaphore(0)
    stand_in = StandIn(lambda longest: turns.release())
    with stand_in.aside():
        for _ in range(3):
            assert turns.acquire(timeout=20)
    there = stand_in.turns
    with stand_in.aside():
        pass
    assert stand_in.turns == there
    stand_in.close()


def test_what_fails_there_fails_here() -> None:
    failed = threading.Event()

    def turn(longest: float) -> None:
        failed.set()
        raise ZeroDivisionError("in a turn")

    stand_in = StandIn(turn)
    with pytest.raises(ZeroDivisionError), stand_in.aside():
        assert failed.wait(20)
    stand_in.close()


STALL = """
import os, sys, time
if any("quiesce.broker" in word for word in sys.orig_argv):
    from quiesce.broker.journal_store import Store
    usual = Store.{method}
    def stalling(self, *args, **more):
        while os.path.exists({path!r}):
            time.sleep(0.01)
        usual(self, *args, **more)
    Store.{method} = stalling
"""


@pytest.fixture
def stall(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Have a method of each broker's store wait while there is the file that this gives."""

    def stall(method: str) -> Path:
        path = run_folder / "stalled"
        text = STALL.format(method=method, path=str(path))
        (run_folder / "sitecustomize.py").write_text(text)
        monkeypatch.syspath_prepend(str(run_folder))
        return path

    return stall


def _stands_still(witness: Witness) -> bool:
    """Whether slot 1 stands still while slot 0 goes on."""
    still, goes = witness.read(1).ticks, witness.read(0).ticks
    wait_until(lambda: witness.read(0).ticks > goes + 20)
    return witness.read(1).ticks == still


@pytest.mark.slow
def test_a_stalled_disk_fences_nobody_and_holds_up_no_request(
    run_folder: Path, stall: Callable[[str], Path]
) -> None:
    """For three leases: what ran runs on, is asked to stop and stops; only the report waits for the disk."""
    stalled, lease = stall("commit"), 2.0
    with (
        Cluster(runtimes={"background": {"processes": 1, "slots": 3}}, lease=lease) as cluster,
        Witness(run_folder / "witness", slots=3) as witness,
        cluster.client() as client,
    ):
        for slot, tenant in enumerate(("stays", "goes")):
            client.spawn("background", "attach", bodies.doze, witness.path, slot, tenant_id=tenant)
        wait_until(lambda: witness.read(0).ticks and witness.read(1).ticks)
        before = cluster.processes("worker")
        stalled.touch()
        began = time.monotonic()
        waiting = client.spawn("background", "attach", bodies.doze, witness.path, 2)
        wait_until(lambda: time.monotonic() > began + 3 * lease, 60.0)
        assert not waiting.done()
        stopper = threading.Thread(target=client.shutdown_tasks, kwargs={"tenant_id": "goes"})
        stopper.start()
        wait_until(lambda: _stands_still(witness))
        assert stopper.is_alive()
        stalled.unlink()
        stopper.join(30)
        assert not stopper.is_alive()
        assert cluster.processes("worker") == before
        client.shutdown_tasks(timeout=30)


def test_a_sync_that_stalls_holds_up_nobody_but_who_is_to_be_told(
    stall: Callable[[str], Path],
) -> None:
    """A stop is asked for, and its tasks have ended; others work; what was reopened is not told either."""
    stalled = stall("sync_log")
    runtimes = {"background": {"processes": 1, "slots": 2}}
    with Cluster(runtimes=runtimes) as cluster, cluster.client() as client:
        goes = client.spawn("background", "attach", quiesce.wait_for_shutdown, tenant_id="goes")
        wait_until(lambda: goes.status().state == "running")
        stalled.touch()
        calls = [
            threading.Thread(target=client.shutdown_tasks, kwargs={"tenant_id": "goes"}),
            threading.Thread(target=client.reopen, kwargs={"tenant_id": "another"}),
        ]
        calls[0].start()
        assert goes.result(timeout=20) is True
        calls[1].start()
        for number in range(20):
            assert client.spawn("background", "attach", bodies.echo, number).result(20) == number
        assert [call.is_alive() for call in calls] == [True, True]
        stalled.unlink()
        for call in calls:
            call.join(20)
        assert [call.is_alive() for call in calls] == [False, False]
