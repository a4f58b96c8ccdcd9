"""The body of tasks that follow each other in a row."""

from typing import Final

#: Who has run, in that order.
RAN: Final[list[int]] = []


def note(task: int) -> None:
    """Note that this task runs."""
    RAN.append(task)
