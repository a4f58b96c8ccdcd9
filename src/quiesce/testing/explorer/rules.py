"""What must never happen, whatever else does.

What a broker decides is judged in two steps: what its own state shows at once (`judge`), and what the truth of the
world shows (`Truth` and its functions), which no part of the cluster sees.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from quiesce.registry import facts
from quiesce.registry.facts import Fact
from quiesce.registry.ids import Attempt as AttemptNumber, AttemptKey, StopId, TaskId
from quiesce.registry.scope import Scope
from quiesce.registry.state import State

#: How an attempt that has begun is, in `Attempt.how`.
RUNS: Final = 0
COMPLETED: Final = 1
CANCELLED: Final = 2
DIED: Final = 3
_WORDS: Final = {COMPLETED: "completed", CANCELLED: "cancelled"}


class BrokenRule(Exception):  # noqa: N818 - what the explorer looks for, not an error of it
    """A rule does not hold."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Judgement(NamedTuple):
    """Of one fact, what is to be compared with the world."""

    what: str
    task_id: int
    attempt: int
    outcome: str
    evidence: str


class Quiet(NamedTuple):
    """A stop is complete: but for its caller, nothing runs in its scope."""

    scope: Scope
    caller: int


class Attempt(NamedTuple):
    """An attempt that has begun: where it runs (an actor), which spawn it is of, and its present labels."""

    task_id: int
    attempt: int
    how: int
    actor: int
    spawn: int
    labels: int

    @property
    def key(self) -> AttemptKey:
        """As the machines name it."""
        return (TaskId(self.task_id), AttemptNumber(self.attempt))


class Truth(NamedTuple):
    """What really is.

    `begun`: the attempts that began and whose end the journal does not hold. `dead`: spawns that were there
    before a stop that has been reported covered them.
    """

    begun: tuple[Attempt, ...] = ()
    dead: tuple[int, ...] = ()

    def find(self, task_id: int, attempt: int) -> Attempt | None:
        """This attempt, if it has begun and is not settled."""
        for each in self.begun:
            if each.task_id == task_id and each.attempt == attempt:
                return each
        return None

    def put(self, attempt: Attempt) -> "Truth":
        """With this attempt as it is now."""
        others = [each for each in self.begun if each[:2] != attempt[:2]]
        return self._replace(begun=tuple(sorted([*others, attempt])))


def judge(
    state: State, attempts: dict[TaskId, int], decided: Sequence[Fact]
) -> tuple[Judgement | Quiet, ...]:
    """The facts of one turn, after it.

    Args:
        state: what they have led to.
        attempts: of each task that was live before.
        decided: the facts.

    Raises:
        BrokenRule: something came into a closed scope.
    """
    found: list[Judgement | Quiet] = []
    for fact in facts.singly(decided):
        match fact:
            case facts.TaskRegistered():
                attempts[TaskId(fact.task_id)] = 1
                twins = [
                    task.id for task in state.tasks.values() if task.spawn.name == fact.row.name
                ]
                if len(twins) > 1:
                    raise BrokenRule("a spawn becomes one task", f"{fact.row.name}: {twins}")
                _no_closed_scope(state, fact.task_id, "is registered")
            case facts.TaskAssigned():
                _no_closed_scope(state, fact.task_id, "is assigned")
            case facts.TaskRequeued():
                attempts[TaskId(fact.task_id)] = fact.attempt
                found.append(Judgement("requeued", fact.task_id, fact.attempt, "", ""))
            case facts.TaskEnded():
                attempt = attempts[TaskId(fact.task_id)]
                found.append(Judgement("ended", fact.task_id, attempt, fact.outcome, fact.evidence))
            case facts.StopEnded():
                stop = state.stops.get(StopId(fact.stop_id))
                if stop is not None and stop.closes and not fact.timed_out:
                    caller = 0 if stop.caller is None else stop.caller.id
                    found.append(Quiet(stop.scope, caller))
    return tuple(found)


def _no_closed_scope(state: State, task_id: int, verb: str) -> None:
    task = state.tasks.get(TaskId(task_id))
    if task is None:
        return
    spawn = task.spawn
    labels = (spawn.kind, task.tenant_id, task.timeline_id, spawn.runtime)
    for stop in state.open_stops.values():
        if stop.closes and stop.scope.matches(*labels):
            text = f"task {task_id} {verb} while stop {stop.id} of [{stop.scope}] is open"
            raise BrokenRule("nothing comes into a scope that a stop has closed", text)


def decided(
    truth: Truth,
    judgement: Judgement | Quiet,
    labels: Sequence[tuple[str, str | None, str | None, str]],
) -> None:
    """Compare what was decided with the world. `labels`: by their numbers.

    Raises:
        BrokenRule: it is not true.
    """
    if isinstance(judgement, Quiet):
        for each in truth.begun:
            if each.how != RUNS or each.labels < 0 or each.task_id == judgement.caller:
                continue
            if judgement.scope.matches(*labels[each.labels]):
                text = f"{each.task_id}.{each.attempt} runs in [{judgement.scope}], whose stop is complete"
                raise BrokenRule("when a stop returns, it is true", text)
        return
    what, task_id, number, outcome, evidence = judgement
    attempt = truth.find(task_id, number)
    name = f"{task_id}.{number}"
    if what == "requeued":
        before = truth.find(task_id, number - 1)
        if before is not None and before.how == RUNS:
            raise BrokenRule(
                "one attempt at a time", f"{task_id}.{number - 1} runs, {name} is queued"
            )
        if attempt is not None:
            raise BrokenRule("what has begun is not queued again", name)
        return
    if attempt is not None and attempt.how == RUNS:
        text = f"{name} {outcome} {evidence}, and it runs"
        raise BrokenRule("no end is noted of what runs", text)
    if evidence == "NEVER_RAN" and attempt is not None:
        raise BrokenRule("NEVER_RAN is true", f"{name} has begun")
    if evidence == "RETURNED":
        told = None if attempt is None else _WORDS.get(attempt.how)
        if told != outcome:
            raise BrokenRule("RETURNED is true", f"{name} is said to have {outcome}, not {told}")


def committed(truth: Truth, judgements: Sequence[Judgement | Quiet]) -> Truth:
    """The journal has it: nothing more can be said of these attempts."""
    said = [each for each in judgements if isinstance(each, Judgement)]
    over = {each.task_id for each in said if each.what == "ended"}
    newer = {each.task_id: each.attempt for each in said if each.what == "requeued"}
    if not over and not newer:
        return truth
    kept = []
    for each in truth.begun:
        if each.task_id in over or each.attempt < newer.get(each.task_id, 0):
            if each.how == RUNS:
                name = f"{each.task_id}.{each.attempt}"
                raise BrokenRule("no end is noted of what runs", f"{name} is over, and runs")
        else:
            kept.append(each)
    return truth._replace(begun=tuple(kept))
