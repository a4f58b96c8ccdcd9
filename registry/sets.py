"""Large sets, changed a little at a time."""

from collections.abc import Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


def take_out(members: set[_T] | dict[_T, Any], gone: Iterable[_T]) -> None:
    """All of these leave the set, or the keys of a dictionary; KeyError if one is not in it.

    One by one: where many leave at once (`difference_update`) Python makes the whole set anew when there are enough
    gaps, and of a large one that takes long.
    """
    leave = members.remove if isinstance(members, set) else members.pop
    for each in gone:
        leave(each)
