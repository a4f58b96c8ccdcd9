"""The verbs that are one request and one answer: what to send, and how to read what comes.

Shared by Client and AsyncClient. Each function checks its arguments and gives an `Ask`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from quiesce.client import checks, outcomes
from quiesce.client.steps import Request
from quiesce.errors import ShutdownTimeoutError
from quiesce.protocol import from_client, to_client
from quiesce.protocol.labels import check_label, check_length
from quiesce.registry.rows import StopRow
from quiesce.values import (
    BrokerInfo,
    ClosedScope,
    EndedStop,
    ShutdownReport,
    StoppedTask,
    TaskInfo,
    TaskStacks,
    WorkerInfo,
)

T = TypeVar("T")

STATES: Final = ("queued", "assigned", "running", "ended")


class Ask(NamedTuple, Generic[T]):
    """A request. `convert` reads its answer. `verb` names it in error texts."""

    message: Request
    convert: Callable[[Any], T]
    verb: str


def list_tasks(
    kind: str | None,
    tenant_id: str | None,
    timeline_id: str | None,
    runtime: str | None,
    state: str | None,
) -> Ask[list[TaskInfo]]:
    scope = checks.scope(kind, tenant_id, timeline_id, runtime)
    if state is not None and state not in STATES:
        raise ValueError(f"state must be None or one of {', '.join(STATES)}, not {state!r}")
    wanted = None if state is None else str(state)
    return Ask(from_client.ListTasks(0, scope, wanted), outcomes.task_list, "tasks()")


def get_task(task_id: int) -> Ask[TaskInfo]:
    return Ask(from_client.GetTask(0, checks.task_id(task_id)), outcomes.only_task, "task()")


def statistics() -> Ask[dict[str, Any]]:
    def body(message: to_client.Statistics) -> dict[str, Any]:
        return message.body

    return Ask(from_client.GetStatistics(0), body, "statistics()")


def workers() -> Ask[list[WorkerInfo]]:
    return Ask(from_client.GetWorkers(0), outcomes.worker_list, "workers()")


def broker() -> Ask[BrokerInfo]:
    return Ask(from_client.GetBroker(0), outcomes.broker_info, "broker_info()")


def closed() -> Ask[list[ClosedScope]]:
    return Ask(from_client.GetClosed(0), outcomes.closed_list, "closed_scopes()")


def stops() -> Ask[list[StopRow]]:
    def rows(message: to_client.Stops) -> list[StopRow]:
        return message.rows

    return Ask(from_client.GetStops(0), rows, "stops()")


def history(
    kind: str | None, tenant_id: str | None, timeline_id: str | None, runtime: str | None
) -> Ask[list[EndedStop]]:
    scope = checks.scope(kind, tenant_id, timeline_id, runtime)
    return Ask(from_client.GetHistory(0, scope), outcomes.history_list, "history()")


def stacks(
    kind: str | None,
    tenant_id: str | None,
    timeline_id: str | None,
    runtime: str | None,
    task_ids: Iterable[int] | None,
) -> Ask[list[TaskStacks]]:
    scope = checks.scope(kind, tenant_id, timeline_id, runtime)
    ids = None if task_ids is None else [checks.task_id(each) for each in task_ids]
    # No task has the id 0: none of none is asked for, and not all.
    message = from_client.GetStacks(0, scope, [] if ids is None else ids or [0])
    return Ask(message, outcomes.stacks_list, "stacks()")


def reopen(
    kind: str | None, tenant_id: str | None, timeline_id: str | None, runtime: str | None
) -> Ask[None]:
    scope = checks.scope(kind, tenant_id, timeline_id, runtime)
    return Ask(from_client.Reopen(0, scope), nothing, "reopen()")


def release(stop_id: int) -> Ask[None]:
    return Ask(from_client.Release(0, stop_id), nothing, "the end of a stopped() block")


def subscribe() -> Ask[None]:
    return Ask(from_client.Subscribe(0), nothing, "events()")


def nothing(message: object) -> None:
    """The answer says no more than that it is done."""


# --- stops ---------------------------------------------------------------------------------------


class Stopped(NamedTuple):
    """The answer to a stop."""

    stop_id: int
    report: ShutdownReport


def stop(
    kind: str | None,
    tenant_id: str | None,
    timeline_id: str | None,
    runtime: str | None,
    *,
    grace: float | None,
    timeout: float | None,
    keep_closed: bool = False,
    hold: bool = False,
    reason: str,
) -> Ask[Stopped]:
    """Stop a scope. Reading the answer raises ShutdownTimeoutError if it did not end in time."""
    scope = checks.scope(kind, tenant_id, timeline_id, runtime)
    words = outcomes.scope_words(*scope)
    return _stop(scope, None, words, grace, timeout, keep_closed, hold, reason)


def stop_task(
    task_id: int,
    grace: float | None,
    timeout: float | None,
    reason: str,
    *,
    within: float | None = None,
) -> Ask[Stopped]:
    """Stop one task; no scope is closed. `within`: the timeout that was asked for, some of which is over."""
    nowhere = (None, None, None, None)
    return _stop(nowhere, task_id, f"task {task_id}", grace, timeout, False, False, reason, within)


def _stop(
    scope: from_client.ScopeFields,
    task_id: int | None,
    words: str,
    grace: float | None,
    timeout: float | None,
    keep_closed: bool,
    hold: bool,
    reason: str,
    within: float | None = None,
) -> Ask[Stopped]:
    check_label("reason", reason, optional=False)
    check_length("reason", reason)
    if not isinstance(keep_closed, bool):
        raise TypeError(f"keep_closed must be True or False, not {keep_closed!r}")
    grace = checks.seconds("grace", grace)
    timeout = checks.seconds("timeout", timeout)
    message = from_client.Stop(
        request=0,
        scope=scope,
        task_id=task_id,
        grace=grace,
        timeout=timeout,
        keep_closed=keep_closed,
        hold=hold,
        reason=reason,
        last_spawn=0,
        caller=checks.caller(),
    )

    def read(answer: to_client.StopReport) -> Stopped:
        report = outcomes.shutdown_report(answer, words, reason)
        if answer.timed_out:
            text = timeout_text(words, within or timeout, report, waiting=True)
            if task_id is None:
                text += ". The scope stays closed; a stop that succeeds, or reopen(), opens it"
            raise ShutdownTimeoutError(f"{text}. `.report` has all of it", report)
        return Stopped(answer.stop_id, report)

    return Ask(message, read, f"the stop of {words}")


def timeout_text(
    words: str, timeout: float | None, report: ShutdownReport, *, waiting: bool = False
) -> str:
    """What a stop has left that ran out of time, and if `waiting`, what each of the first waits for.

    Without advice: the command line gives its own.
    """

    def name(task: StoppedTask) -> str:
        waits = f"; waits for {task.waiting_for}" if waiting and task.waiting_for else ""
        return f"{task.id} ({task.name}{waits})"

    left = report.remaining
    total = len(left) + len(report.tasks)
    names = ", ".join(map(name, left[:5]))
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    within = "in time" if timeout is None else f"within {timeout:g} s"
    if not left:
        return (
            f"the stop of {words} has not ended {within}: no task of it is known to go on, but spawns made before "
            "it are still on their way to the broker, or the broker has just restarted and can't know what runs"
        )
    return (
        f"the stop of {words} has not ended {within}: {len(left)} of {total} "
        f"task{'s' * (total != 1)} go{'es' * (len(left) == 1)} on: {names}{more}"
    )
