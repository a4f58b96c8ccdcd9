# ruff: noqa: ISC004 - the expected lines are longer than a line of code
"""What a ShutdownReport says to people."""

from dataclasses import replace

import pytest

from quiesce.cli.output import print_error
from quiesce.registry.ids import TaskId
from quiesce.registry.states import Evidence, Outcome
from quiesce.values import ShutdownReport, StoppedTask


def task(
    number: int,
    outcome: Outcome | None = Outcome.COMPLETED,
    evidence: Evidence | None = Evidence.RETURNED,
    *,
    exit_status: int | None = None,
    tenant_id: str | None = "t1",
    delivered: float | None = 0.002,
    observed: float | None = 0.01,
    stopped: float | None = 0.5,
    waiting_for: str = "",
) -> StoppedTask:
    """Times are relative to the request."""
    at = 1000.0

    def moment(since: float | None) -> float | None:
        return None if since is None else at + since

    return StoppedTask(
        id=TaskId(number),
        attempt=1,
        kind="compaction",
        name="compact",
        runtime="background",
        tenant_id=tenant_id,
        outcome=outcome,
        evidence=evidence,
        exit_status=exit_status,
        requested_at=at,
        delivered_at=moment(delivered),
        observed_at=moment(observed),
        stopped_at=moment(stopped),
        waiting_for=waiting_for,
    )


def test_how_each_task_ended_and_when() -> None:
    report = ShutdownReport(
        tasks=(
            task(1),
            task(2, Outcome.CANCELLED, observed=None),
            task(
                3, Outcome.CANCELLED, Evidence.NEVER_RAN, delivered=None, observed=None, stopped=0
            ),
            task(
                14, Outcome.CRASHED, Evidence.REAPED, exit_status=-9, delivered=None, observed=None
            ),
        ),
        scope="tenant_id=t1",
        reason="detach",
        requested_at=1000.0,
        completed_at=1000.41,
    )
    assert str(report).splitlines() == [
        "stopped 4 tasks of tenant_id=t1 in 0.41 s: 1 completed, 2 cancelled, 1 crashed",
        "reason: detach",
        "  1.1   compaction  compact  t1  completed RETURNED               "
        "delivered +0.002 s  observed +0.010 s  stopped +0.500 s",
        "  2.1   compaction  compact  t1  cancelled RETURNED               "
        "delivered +0.002 s  never observed     stopped +0.500 s",
        "  3.1   compaction  compact  t1  cancelled NEVER_RAN              "
        "                                       stopped +0.000 s",
        "  14.1  compaction  compact  t1  crashed REAPED (exit status -9)  "
        "never delivered                        stopped +0.500 s",
    ]


def test_what_has_not_ended_and_who_else_is_concerned() -> None:
    open_end = task(2, None, None, observed=None, stopped=None, waiting_for="the task, to look")
    caller = task(3, None, None, delivered=None, observed=None, stopped=None)
    lines = str(
        ShutdownReport(
            tasks=(task(1),),
            remaining=(open_end,),
            caller=(caller,),
            collateral=(task(4, Outcome.CRASHED, Evidence.REAPED, exit_status=-9, tenant_id=None),),
            scope="kind=compaction",
        )
    ).splitlines()
    assert lines[0] == (
        "stopped 1 of 2 tasks of kind=compaction: 1 completed; 1 not ended, the scope stays closed"
    )
    assert [line for line in lines if not line.startswith("  ")][1:] == [
        "not ended:",
        "the caller, left out because it asked for the stop:",
        "outside the scope, died because their process had to be killed:",
    ]
    assert lines[3].split() == [
        *("2.1", "compaction", "compact", "t1", "no", "end"),
        *("delivered", "+0.002", "s", "never", "observed"),
        *("waiting", "for", "the", "task,", "to", "look"),
    ]
    assert lines[5] == "  3.1  compaction  compact  t1  goes on"


def test_names_of_users_forge_no_line_and_nothing_that_a_terminal_obeys() -> None:
    hostile = "acme\n  9.9  short  loop  globex\x1b[31m"
    report = ShutdownReport(
        tasks=(replace(task(1, tenant_id=hostile), name="\x1b]0;named\x07"),),
        remaining=(task(2, None, None, stopped=None, waiting_for=f"task 3 of {hostile}"),),
        scope=f"tenant_id={hostile}",
        reason="\x1b[5mdetach",
    )
    lines = str(report).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 5  # the headline, the reason, a task, "not ended:", a task
    assert lines[0].startswith(
        "stopped 1 of 2 tasks of tenant_id=acme�  9.9  short  loop  globex�[31m:"
    )
    assert lines[1] == "reason: �[5mdetach"
    assert report.tasks[0].tenant_id == hostile  # the data is as it was given


def test_an_error_shows_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("TaskFailedError", "failed:\n\x1b[31mit", as_json=False)
    assert capsys.readouterr().err == "error: failed:\n�[31mit\n"


def test_of_many_the_slowest_are_shown() -> None:
    tasks = tuple(task(number, stopped=number / 100) for number in range(1, 51))
    lines = str(ShutdownReport(tasks=tasks)).splitlines()
    assert lines[0] == "stopped 50 tasks of everything: 50 completed"
    assert [line.split()[0] for line in lines[1:-1]] == [f"{n}.1" for n in range(50, 30, -1)]
    assert lines[-1] == "  … and 30 more, none slower"


def test_nothing_and_one_alone() -> None:
    assert str(ShutdownReport()) == "stopped 0 tasks of everything"
    assert str(ShutdownReport(tasks=(task(5),), scope="task 5")).splitlines()[0] == (
        "stopped task 5: 1 completed"
    )
    timed_out = ShutdownReport(remaining=(task(5, None, None, stopped=None),), scope="task 5")
    assert str(timed_out).splitlines()[0] == "not stopped: task 5; 1 not ended"
