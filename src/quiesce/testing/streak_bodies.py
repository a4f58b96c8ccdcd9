"""The body of tasks that follow each other in a row."""

from typing import Final

from quiesce.context import current_context
from quiesce.workers.table import FLAG, Phase

#: Who has run, in that order.
RAN: Final[list[int]] = []


def note(task: int) -> None:
    """Note that this task runs, and look whether its flag is in its own entry of the table.

    Raises:
        LookupError: it is not.
    """
    RAN.append(task)
    context = current_context()
    assert context is not None
    entry = context.flag_index - FLAG
    if context.words[entry] != task or context.words[entry + 1] & 0xFF != Phase.BEGUN:
        raise LookupError(f"the entry {entry} is not that of task {task}")
