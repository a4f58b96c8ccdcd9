"""The answers to a session's spawns that the client may not have yet: those to a batch as one."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain, repeat, starmap
from typing import Final

from quiesce.registry.ids import SpawnNumber, TaskId
from quiesce.registry.rows import RUN, Alike, SpawnAnswer

_ACCEPTED: Final = (None, "")
_new: Final = tuple.__new__


class Answers:
    """Answers by spawn number. Numbers are never answered twice."""

    __slots__ = ("_firsts", "_runs", "_single")

    def __init__(self) -> None:
        #: Those that came alone, in the order of their decision.
        self._single: dict[int, SpawnAnswer] = {}
        #: Tasks under consecutive ids, for spawns of consecutive numbers: the numbers, and the ids. Ascending; and
        #: the first numbers of all of them.
        self._runs: list[tuple[range, range]] = []
        self._firsts: list[int] = []

    def add(self, answer: SpawnAnswer) -> None:
        """One more."""
        self._single[answer.number] = answer

    def add_tasks(self, numbers: range, task_ids: range) -> None:
        """These spawns, which are the last that came, are these tasks."""
        self._runs.append((numbers, task_ids))
        self._firsts.append(numbers.start)

    def get(self, number: int) -> SpawnAnswer | None:
        """That to one spawn, if it is still kept."""
        place = bisect_right(self._firsts, number) - 1
        if place >= 0 and number in self._runs[place][0]:
            numbers, task_ids = self._runs[place]
            return _accepted(number, task_ids[number - numbers.start])
        return self._single.get(number)

    def __contains__(self, number: int) -> bool:
        return self.get(number) is not None

    def __iter__(self) -> Iterator[SpawnAnswer]:
        """All, in the order of the spawns."""
        runs = chain.from_iterable(starmap(_all_accepted, self._runs))
        return iter(sorted([*self._single.values(), *runs])) if self._single else runs

    def first(self) -> int | None:
        """A number up to which something is kept, if anything is."""
        single = next(iter(self._single), None)
        if not self._firsts:
            return single
        return self._firsts[0] if single is None else min(single, self._firsts[0])

    def forget(self, through: int) -> None:
        """Those up to this number are kept no longer."""
        for number in [number for number in self._single if number <= through]:
            del self._single[number]
        gone = bisect_right(self._firsts, through)
        if gone == 0:
            return
        numbers, task_ids = self._runs[gone - 1]
        del self._runs[:gone], self._firsts[:gone]
        left = through + 1 - numbers.start
        if left < len(numbers):
            self._runs.insert(0, (numbers[left:], task_ids[left:]))
            self._firsts.insert(0, through + 1)


def _accepted(number: int, task_id: int) -> SpawnAnswer:
    return SpawnAnswer(SpawnNumber(number), TaskId(task_id), *_ACCEPTED)


def _all_accepted(numbers: range, task_ids: range) -> Iterator[SpawnAnswer]:
    """Of a snapshot they may be very many."""
    fields = zip(numbers, task_ids, *map(repeat, _ACCEPTED), strict=False)
    return map(_new, repeat(SpawnAnswer), fields)


def told(numbers: range, task_ids: range) -> list[SpawnAnswer | Alike]:
    """These spawns are these tasks: as their client is told."""
    if len(numbers) < RUN:
        return list(map(_accepted, numbers, task_ids))
    others = chain.from_iterable(zip(numbers[1:], task_ids[1:], strict=True))
    return [Alike(_accepted(numbers[0], task_ids[0]), [*others], len(numbers))]
