"""The answers that a session keeps: those to a batch as one are what they would be one by one."""

from hypothesis import given, strategies as st

from quiesce.registry.answers import Answers, told
from quiesce.registry.ids import SpawnNumber, TaskId
from quiesce.registry.rows import SpawnAnswer, one_by_one


def accepted(number: int, task_id: int) -> SpawnAnswer:
    return SpawnAnswer(SpawnNumber(number), TaskId(task_id), None, "")


@given(st.lists(st.tuples(st.sampled_from(["one", "batch", "forget", "late"]), st.integers(1, 6))))
def test_a_batch_is_kept_as_each_of_it(steps: list[tuple[str, int]]) -> None:
    answers = Answers()
    plain: dict[int, SpawnAnswer] = {}
    number, task_id = 0, 100
    parked: list[int] = []
    for what, size in steps:
        if what == "forget":
            through = number - size
            answers.forget(through)
            plain = {each: row for each, row in plain.items() if each > through}
        elif what == "batch":
            numbers = range(number + 1, number + 1 + size)
            task_ids = range(task_id + 1, task_id + 1 + size)
            number, task_id = number + size, task_id + size
            answers.add_tasks(numbers, task_ids)
            rows = list(map(accepted, numbers, task_ids))
            plain.update(zip(numbers, rows, strict=True))
            assert list(one_by_one(told(numbers, task_ids))) == rows
        elif what == "late" and parked:
            row = accepted(parked.pop(), 7)
            answers.add(row)
            plain[row.number] = row
        else:
            number += 2
            parked.append(number)
            refused = SpawnAnswer(SpawnNumber(number - 1), TaskId(0), "QueueFullError", "full")
            answers.add(refused)
            plain[refused.number] = refused
        assert list(answers) == [plain[each] for each in sorted(plain)]
        assert [answers.get(each) for each in range(number + 2)] == [
            plain.get(each) for each in range(number + 2)
        ]
        first = answers.first()
        assert (first is None) is (not plain)
        assert first is None or first in plain
