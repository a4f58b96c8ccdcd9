"""Counts of things by what they are."""

from typing import TypeVar

_K = TypeVar("_K")


def count(counts: dict[_K, int], key: _K, change: int) -> None:
    """Add to a count; no zeros are kept."""
    new = counts.get(key, 0) + change
    if new:
        counts[key] = new
    else:
        del counts[key]
