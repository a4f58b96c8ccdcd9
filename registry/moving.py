"""What all of `apply` stands on: the one step from state to state, and what goes with it."""

from collections.abc import Iterable

from quiesce.registry.records import Task
from quiesce.registry.state import State
from quiesce.registry.states import State as TaskState


class RegistryFault(Exception):  # noqa: N818 - a bug of ours, no error that a caller could handle
    """The registry was about to break its own rules, or has. The text tells the story."""


def story(task: Task) -> str:
    """All that may explain how a task came to where it is."""
    return (
        f"task {task.id}.{task.attempt} ({task.spawn.kind} {task.spawn.name!r} of tenant "
        f"{task.tenant_id!r}, timeline {task.timeline_id!r}), {task.state}, worker {task.worker}, "
        f"assignment {task.assign_number}, asked to stop: {task.ask is not None}"
    )


def move(task: Task, to: TaskState) -> None:
    """See `move_all`."""
    move_all((task,), to)


def move_all(tasks: Iterable[Task], to: TaskState) -> None:
    """The one place where the state of tasks changes."""
    for task in tasks:
        if to not in task.state.leads_to:
            raise RegistryFault(f"can't go from {task.state} to {to}: {story(task)}")
        task.state = to


def keep_short(state: State) -> None:
    """The oldest of the history go, down to its limit."""
    for _ in range(len(state.history) - state.history_limit):
        state.history.popitem(last=False)
