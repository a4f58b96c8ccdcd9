"""Who waits for a task that it has spawned learns first of all that it is to stop itself.

A stop that covers both marks both in one step of the registry. But the end of the one and the request to the other
come by different ways, and the end may be there first: then it would look as if the child alone had been stopped.
So the parent asks the registry, which knows.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from quiesce.client.records import SpawnRecord
from quiesce.client.waiting import raise_if_asked
from quiesce.context import TaskContext, current_context
from quiesce.errors import QuiesceError
from quiesce.registry.states import Outcome

if TYPE_CHECKING:
    from quiesce.client.client import Client

#: As rows have it: a plain string, as in `outcomes`.
_CANCELLED: Final = str(Outcome.CANCELLED)


def may_come(record: SpawnRecord) -> TaskContext | None:
    """The task that we are in, if this is the end of a child of its that was stopped, and it has not seen a request
    to stop yet.
    """
    row = record.result
    if row is None or row.outcome != _CANCELLED:  # first: of nearly all that is asked for
        return None
    task = current_context()
    if task is None or task.has_observed or record.parent != task.key:
        return None
    return task


def comes_first(client: "Client", record: SpawnRecord) -> None:
    """Before the end of a record is told. ShutdownRequested: it `may_come`, and has."""
    task = may_come(record)
    if task is None:
        return
    if not task.is_asked:
        # Without an answer nobody can tell. (A closed client is a RuntimeError.)
        with suppress(QuiesceError, RuntimeError):
            now = client.task(task.key[0])
            if now.stopping and now.attempt == task.key[1]:
                task.root.wait(client.timeout)  # it is said until the worker has heard it
    raise_if_asked(task)
