"""What the shared table tells of a supervisor that died and was reaped with its workers: its successor hands it on.

As a JSON-able dictionary, since it travels in `PoolSettings.predecessor`.
"""

from collections.abc import Mapping
from typing import Any

from quiesce.protocol.from_supervisor import AttemptPhase, Predecessor, WorkerExitedRow
from quiesce.workers.table import PoolTable


def describe(
    table: PoolTable,
    pid: int,
    status: int,
    statuses: Mapping[int, int] | None = None,
    *,
    fenced: bool = False,
) -> dict[str, object]:
    """The account of a dead supervisor, for its successor's settings.

    `statuses`: how its workers ended, by pid, as far as the caller reaped them; the others were killed
    with it (PR_SET_PDEATHSIG). `fenced`: the timer of its lease killed it. Call it when all of them are
    dead, and before the successor starts.
    """
    known = statuses or {}
    return {
        "supervisor": table.supervisor.hex(),
        "pid": pid,
        "status": status,
        "fenced": fenced,
        "workers": [
            {
                "serial": place.serial,
                "pid": place.pid,
                "status": known.get(place.pid, -9),
                "attempts": [
                    [row.task_id, row.attempt, row.phase.name.lower()] for row in place.phases
                ],
            }
            for place in table.account()
        ],
    }


def parse(account: Mapping[str, Any] | None) -> Predecessor | None:
    """The inverse, as the protocol has it."""
    if account is None:
        return None
    workers = [
        WorkerExitedRow(
            each["serial"],
            each["pid"],
            each["status"],
            True,
            [AttemptPhase(*row) for row in each["attempts"]],
        )
        for each in account["workers"]
    ]
    return Predecessor(
        bytes.fromhex(account["supervisor"]),
        account["pid"],
        account["status"],
        account["fenced"],
        workers,
    )
