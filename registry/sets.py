"""Large sets, changed a little at a time."""

from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")


def take_out(members: set[_T], gone: Iterable[_T]) -> None:
    """All of these leave the set; KeyError if one is not in it.

    One by one: where many leave at once (`difference_update`) Python makes the whole set anew when there are enough
    gaps, and of a large one that takes long.
    """
    for each in gone:
        members.remove(each)
