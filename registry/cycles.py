"""Who waits for whom: from a task to those whose end it waits for, and round again.

A task waits for another in `result` and its like, which its worker tells of when it lasts, or for all that is
left of a stop that it has asked for. Looked up when somebody wants to see it, never kept.
"""

from collections import deque
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import Final

from quiesce.registry.ids import TaskId
from quiesce.registry.records import Stop, Task
from quiesce.registry.state import State

#: Tasks that are looked at for a cycle through one of them: there may be very many in a chain.
LOOKED: Final = 256


def asked_for(state: State, task: Task) -> list[Stop]:
    """The open stops whose call this attempt still waits in.

    It ends with ShutdownRequested when the task is itself asked to stop, and the stop goes on without it.
    """
    if not state.open_stops or task.ask is not None:
        return []
    key = (task.id, task.attempt)
    return [stop for stop in state.open_stops.values() if stop.asked_by == key]


def waits_of(state: State, task: Task) -> list[TaskId]:
    """The live tasks that this one waits for and that wait for others themselves; each perhaps twice.

    Only those can be in a cycle with it, and a stop may have very many others.
    """
    found: list[TaskId] = [other for other in task.waits_on if other in state.tasks]
    stops = asked_for(state, task)
    if stops:
        askers = {stop.asked_by[0] for stop in state.open_stops.values() if stop.asked_by}
        for stop in stops:
            found += [
                member
                for member in sorted(stop.held)  # who is queued waits for nobody
                if member in askers or state.tasks[member].waits_on
            ]
    return found


def cycle_of(state: State, task: Task) -> list[Task]:
    """The shortest cycle of waits through this task, from it on; [] if there is none among the LOOKED next."""
    #: Who was found to wait for this one first.
    before: dict[TaskId, TaskId] = {}
    queue = deque([task.id])
    for _ in range(LOOKED):
        if not queue:
            break
        at = queue.popleft()
        for other in waits_of(state, state.tasks[at]):
            if other == task.id:
                path = [at]
                while path[-1] != task.id:
                    path.append(before[path[-1]])
                return [state.tasks[each] for each in reversed(path)]
            if other not in before:
                before[other] = at
                queue.append(other)
    return []


def first_cycle(state: State, tasks: Iterable[Task]) -> list[Task]:
    """A cycle that one of these tasks is in; [] if there is none.

    As a rule there is none anywhere, which takes one look at each of them and of those that they wait for.
    """
    tasks = list(tasks)
    found = _any_cycle(state, tasks)
    if not found:
        return []
    shortest = next(filter(None, (cycle_of(state, task) for task in tasks)), [])
    if not shortest and any(task in found for task in tasks):
        return found
    return shortest


def _any_cycle(state: State, tasks: list[Task]) -> list[Task]:
    """One among these and all that they wait for; [] if there is none."""
    waits: dict[TaskId, list[TaskId]] = {}
    left = [task.id for task in tasks]
    while left:
        at = left.pop()
        if at not in waits:
            waits[at] = waits_of(state, state.tasks[at])
            left += waits[at]
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        # Each of these is waited for by the next, the last by the first.
        return [state.tasks[each] for each in reversed(error.args[1][1:])]
    return []


def cycle_words(cycle: list[Task]) -> str:
    """ "a cycle of waits: task 12 'a' waits for 13 'b' waits for 12 'a'"."""
    names = [f"{task.id} {task.spawn.name!r}" for task in (*cycle, cycle[0])]
    return f"a cycle of waits: task {' waits for '.join(names)}"
