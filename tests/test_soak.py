"""The soak's judge finds what it is there for, and its command says so."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import QueueFullError, ScopeClosedError, TaskCancelledError, TaskInfo, TaskLostError
from quiesce.registry.ids import TaskId
from quiesce.registry.states import Outcome
from quiesce.testing import Witness, soak
from quiesce.testing.soak_bodies import BEGUN, ran_on, slot_of
from quiesce.testing.soak_load import Load, Row
from quiesce.testing.soak_result import SoakResult


class Handle:
    """Of a task that ended so."""

    def __init__(self, task_id: int, error: Exception | None = None, *, ended: bool = True) -> None:
        self.id = task_id
        self._error = error
        self._ended = ended

    def done(self) -> bool:
        return self._ended

    def exception(self, timeout: float) -> Exception | None:
        return self._error


class Registry:
    """What a client is told by the broker."""

    def __init__(self) -> None:
        self.live: list[TaskInfo] = []
        self.ended: list[TaskInfo] = []

    def tasks(self, state: str | None = None) -> list[TaskInfo]:
        return self.ended if state == "ended" else self.live


class Account:
    """A load whose rows a test makes up, and what its end says."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.result = SoakResult(seed=1)
        self.load = Load(witness, self.result)
        self.registry = Registry()

    def row(self, handle: Any, *, begun: int = 1, ticks: bool = True, **of: Any) -> Row:
        slot = self.witness.new_slot(width=6)
        row = Row(slot=slot, tenant="t0", runtime="background", kind="attach", body="doze", **of)
        row.handle = handle
        self.load._enter(row)
        for _ in range(begun):
            self.witness.tick(slot + BEGUN)
        if ticks:
            self.witness.tick(slot)
        return row

    def settle(self) -> SoakResult:
        self.load.settle(self.registry, 0.0)  # type: ignore[arg-type]  # all of a client that it asks
        return self.result


@pytest.fixture
def account(run_folder: Path) -> Iterator[Account]:
    with Witness(run_folder / "witness", slots=100) as witness:
        yield Account(witness)


def wrong(result: SoakResult) -> dict[str, list[str]]:
    return {name: found for name, found in result.wrong.items() if found}


def info(task_id: int, outcome: Outcome | None) -> TaskInfo:
    return TaskInfo(
        id=TaskId(task_id), attempt=1, kind="attach", name="", runtime="r", outcome=outcome
    )


def test_an_even_account(account: Account) -> None:
    account.row(Handle(1))
    account.row(Handle(2, TaskCancelledError()), begun=0)
    account.row(Handle(3, TaskLostError()), begun=3, retries=2)
    account.row(Handle(0, ScopeClosedError()), begun=0, ticks=False)
    account.row(Handle(0, QueueFullError()), begun=0, ticks=False)
    account.row(Handle(4), unique_key="k")
    account.row(Handle(4), begun=0, unique_key="k")
    account.row(Handle(5), begun=17, restart="always")
    account.registry.ended = [info(1, Outcome.COMPLETED), info(3, Outcome.COMPLETED)]
    assert wrong(account.settle()) == {}
    assert account.result.tasks == {"completed": 4, "cancelled": 1, "lost": 1, "refused": 2}


def test_a_handle_without_an_end_is_lost(account: Account) -> None:
    row = account.row(Handle(1, ended=False))
    assert account.settle().lost == [str(row)]


def test_a_task_that_is_still_registered_is_lost(account: Account) -> None:
    account.registry.live = [info(7, None)]
    assert "still registered after all was stopped" in account.settle().lost[0]


def test_a_completed_task_that_never_began_is_lost(account: Account) -> None:
    account.row(Handle(1), begun=0)
    assert "has completed, and never begun" in account.settle().lost[0]


@pytest.mark.parametrize(("retries", "begun"), [(0, 2), (2, 4)])
def test_a_task_that_runs_more_often_than_it_may(
    account: Account, retries: int, begun: int
) -> None:
    account.row(Handle(1), begun=begun, retries=retries)
    (text,) = account.settle().doubled
    assert f"has begun {begun} times, at most {retries + 1} allowed" in text


def test_a_refused_task_that_runs(account: Account) -> None:
    account.row(Handle(0, ScopeClosedError()))
    assert "it was refused, and has begun all the same" in account.settle().doubled[0]


def test_one_key_and_two_that_ran(account: Account) -> None:
    account.row(Handle(4), unique_key="k")
    account.row(Handle(4), unique_key="k")
    assert "has begun 2 times" in account.settle().doubled[0]


def test_two_ends_of_one_task(account: Account) -> None:
    account.row(Handle(4), unique_key="k")
    account.row(Handle(4, TaskCancelledError()), begun=0, unique_key="k")
    account.row(Handle(5))
    account.registry.ended = [info(5, Outcome.CANCELLED)]
    several, other = account.settle().doubled
    assert several.startswith("one task, several ends")
    assert other.endswith("the registry says cancelled")


def test_a_task_that_ticks_after_its_end_was_told(account: Account) -> None:
    row = account.row(Handle(1))
    assert account.load.look_at(row)
    account.witness.tick(row.slot + 1)
    assert "after its end was told" in account.settle().ran_on[0]


def test_an_error_that_is_none_of_the_known_is_a_trouble(account: Account) -> None:
    account.row(Handle(1, ValueError("what?")))
    assert account.settle().troubles[0].endswith("ValueError: what?")


def test_slots_in_a_scope(account: Account) -> None:
    rows = [account.row(Handle(1, ended=False)), account.row(Handle(2))]
    rows[0].tenant, rows[1].tenant = "t1", "t2"
    assert account.load.slots_in(tenant="t1") == list(rows[0].slots)
    assert len(account.load.slots_in(runtime="background", kind=None)) == 6
    account.load.look_at(rows[1])
    assert account.load.slots_in() == list(rows[0].slots)


def test_who_has_run_on(account: Account) -> None:
    row = account.row(Handle(1))
    instant = account.witness.now()
    assert ran_on(account.witness.path, [f"slot-{row.slot}", "other"], instant) == []
    account.witness.tick(row.slot + 1)
    assert ran_on(account.witness.path, [f"slot-{row.slot}", "other"], instant) == ["slot-0"]
    assert slot_of("slot-") is slot_of("my-slot-1") is None


# --- the result and the command


def made(**of: Any) -> SoakResult:
    return SoakResult(seed=7, seconds=60.0, network=True, **of)


def test_the_page_says_what_is_wrong() -> None:
    tried = {"stops": Counter({"of tasks": 2}), "tasks": Counter(completed=1)}
    assert not made().ok  # nothing was tried
    assert made(**tried).ok
    assert str(made(**tried)).endswith("all is well")
    result = made(**tried, false_stops=[f"number {number}" for number in range(9)])
    assert not result.ok
    assert "WRONG  9 false stops" in str(result)
    assert "number 4\n        … and 4 more" in str(result)
    assert str(result).endswith("NOT WELL; again with: --seed 7")
    found = json.loads(result.to_json())
    assert found["ok"] is False
    assert found["stops"] == {"of tasks": 2}


@pytest.mark.slow
def test_the_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = run_folder / "log"
    words = ["--minutes", "0.05", "--seed", "3", "--json", "--no-disk", "--log", str(log)]
    code = soak.main(words)
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert found["ok"]
    assert found["seed"] == 3
    assert "quiesce is up" in log.read_text()
