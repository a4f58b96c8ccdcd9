"""An act of the demo: a worker process is killed, and what it ran crashes and is tried again."""

import os
import signal
import time
from collections import Counter

from quiesce.examples.pageserver.names import WALRECEIVER
from quiesce.examples.pageserver.stage import FalsityError, Stage
from quiesce.registry.ids import TaskId
from quiesce.values import TaskInfo


def kill_worker(stage: Stage) -> None:
    """Kill a process that receives streams; see its tasks crash, its successor, and theirs."""
    stage.phase("serving while the streams come in")
    expected = len(stage.plan.files) * stage.settings.versions

    def streamed() -> int:
        return sum(found["versions"] for found in stage.metrics().values())

    stage.wait_until("a quarter of the versions", lambda: streamed() >= expected / 4, 60, streamed)
    stage.phase("killing a walreceiver worker")
    before = _pids(stage)
    victim, begun = _choose_victim(stage, before)
    killed_at, clock = time.time(), time.monotonic()
    os.kill(victim, signal.SIGKILL)
    crashed, completed = _await_ends(stage, begun)
    stage.wait_until(
        "the killed process is replaced",
        lambda: victim not in _pids(stage) and len(_pids(stage)) >= len(before),
        20,
        lambda: f"there are {_pids(stage)}",
    )
    replaced_after = time.monotonic() - clock
    successors = _await_successors(stage, crashed, killed_at)
    stage.summary["killed"] = {
        "pid": victim,
        "runtime": WALRECEIVER,
        "replaced_by": sorted(_pids(stage) - before),
        "replaced_after_seconds": round(replaced_after, 2),
        "crashed": dict(Counter(str(task.kind) for task in crashed)),
        "completed_before_the_kill": completed,
        "tried_again": successors,
    }
    stage.view.say(
        f"killed worker {victim}: {len(crashed)} tasks crashed, {successors} tried again; "
        f"the process was replaced after {replaced_after:.1f} s",
        "yellow",
    )


def _pids(stage: Stage) -> set[int]:
    return {worker.pid for worker in stage.client.workers() if worker.runtime == WALRECEIVER}


def _choose_victim(stage: Stage, candidates: set[int]) -> tuple[int, list[TaskInfo]]:
    """Return the process that runs most tasks, and these."""
    running = stage.client.tasks(runtime=WALRECEIVER, state="running")
    counts = Counter(
        task.worker_pid
        for task in running
        if task.worker_pid is not None and task.worker_pid in candidates
    )
    if not counts:
        raise FalsityError("no walreceiver worker runs a task, so there is none to kill")
    victim, _ = counts.most_common(1)[0]
    return victim, [task for task in running if task.worker_pid == victim]


def _await_ends(stage: Stage, begun: list[TaskInfo]) -> tuple[list[TaskInfo], int]:
    """Wait until the tasks of the killed process have ended.

    Returns those that crashed, and how many had completed before they could.
    """
    ends: dict[TaskId, TaskInfo] = {}

    def all_ended() -> bool:
        for task in begun:
            if task.id not in ends and (now := stage.client.task(task.id)).state == "ended":
                ends[task.id] = now
        return len(ends) == len(begun)

    stage.wait_until("the tasks of the killed process have ended", all_ended, 20)
    crashed = [task for task in ends.values() if task.outcome == "crashed"]
    others = Counter(str(task.outcome) for task in ends.values() if task.outcome != "crashed")
    unproven = [t for t in crashed if (t.evidence, t.exit_status) != ("REAPED", -signal.SIGKILL)]
    stage.check(bool(crashed), "no task crashed with the killed process")
    stage.check(
        not unproven,
        f"{len(unproven)} crashes lack the killed process's exit status as evidence",
    )
    stage.check(
        not others.keys() - {"completed"},
        f"tasks of the killed process ended otherwise: {dict(others)}",
    )
    return crashed, others["completed"]


def _await_successors(stage: Stage, crashed: list[TaskInfo], since: float) -> int:
    """Wait until each crashed task has a successor, made after the kill. Returns how many have."""
    waiting = {task.id: (task.kind, task.tenant_id, task.timeline_id) for task in crashed}

    def all_found() -> bool:
        later = {
            (task.kind, task.tenant_id, task.timeline_id)
            for state in (None, "ended")
            for task in stage.client.tasks(runtime=WALRECEIVER, state=state)
            if task.created_at is not None and task.created_at >= since
        }
        for found in [task for task, labels in waiting.items() if labels in later]:
            del waiting[found]
        return not waiting

    stage.wait_until(
        "every crashed task has a successor", all_found, 30, lambda: f"without: {len(waiting)}"
    )
    return len(crashed) - len(waiting)
