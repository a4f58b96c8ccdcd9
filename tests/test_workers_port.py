"""What tasks ask of their worker, near the end of what they may call."""

from quiesce.registry.ids import Attempt, TaskId
from quiesce.workers.nursery import Nursery
from quiesce.workers.port import ROOM, Event, Port


class _Task:
    key = (TaskId(1), Attempt(1))


def test_the_session_is_told_in_whole_or_not_at_all() -> None:
    """It is told what neighbours have come to, too: a RecursionError in the midst of that would lose it."""
    begun: list[Event] = []
    told: list[Event] = []

    def recurse(calls: int) -> None:
        if calls:
            recurse(calls - 1)

    def say(event: Event) -> None:
        begun.append(event)
        recurse(ROOM // 2)
        told.append(event)

    port, task = Port(say, Nursery()), _Task()
    refused = 0

    def deep() -> None:
        nonlocal refused
        try:
            deep()
        except RecursionError:
            pass
        if not told:
            try:
                port.report_progress(task, 1, None, "")  # type: ignore[arg-type]  # its key is all that matters
            except RecursionError:
                refused += 1

    deep()
    assert refused
    assert told == begun != []
