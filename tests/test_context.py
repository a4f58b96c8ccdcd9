"""What a look for a request to stop sees, and what it leaves behind for others to see."""

from collections.abc import Callable, Iterator

import pytest

import quiesce
from quiesce import context
from quiesce.errors import NotInTaskError, ShutdownRequested
from quiesce.registry.ids import Attempt, TaskId
from quiesce.values import TaskInfo
from quiesce.workers.table import CHECKS, FLAG, PoolTable, flag_key


class _Port:
    """Counts who has seen the request."""

    def __init__(self) -> None:
        self.seen = 0

    def observed(self, task: context.TaskContext) -> None:
        self.seen += 1

    def associate(self, task: object, tenant_id: object, timeline_id: object) -> None: ...
    def report_progress(self, task: object, done: float, total: object, note: str) -> None: ...
    def wait_began(self, task: object, other: int) -> None: ...
    def wait_ended(self, task: object, other: int) -> None: ...
    def extend_grace(self, task: object, seconds: float) -> None: ...


KEY = (TaskId(70_000), Attempt(2))


@pytest.fixture
def table() -> Iterator[PoolTable]:
    table = PoolTable.create(1)
    yield table
    table.close()


@pytest.fixture
def task(table: PoolTable) -> Iterator[context.TaskContext]:
    """An attempt that has begun, with its words in a real table; the current one."""
    place = table.place(0)
    entry = place.begin(KEY)
    task = context.TaskContext(
        key=KEY,
        describe=lambda: TaskInfo(id=KEY[0], attempt=2, kind="attach", name="me", runtime="test"),
        port=_Port(),
        words=place.words,
        flag_index=entry + FLAG,
        check_index=entry + CHECKS,
        flag_key=flag_key(*KEY),
    )
    token = context.enter(task)
    yield task
    context.leave(token)


def _checkpoint() -> bool:
    try:
        quiesce.checkpoint()
    except ShutdownRequested:
        return True
    return False


def _wait() -> bool:
    return quiesce.wait_for_shutdown(0)


#: All ways to look.
looks = pytest.mark.parametrize("look", [quiesce.is_shutdown_requested, _checkpoint, _wait])


@looks
def test_the_supervisors_flag_is_seen_and_told_once(
    task: context.TaskContext, table: PoolTable, look: Callable[[], bool]
) -> None:
    port = task.port
    assert isinstance(port, _Port)
    assert not look()
    table.place(0).flag({KEY})
    assert port.seen == 0
    assert look()
    assert look()
    assert port.seen == 1


@looks
@pytest.mark.parametrize("of_whom", [(70_000, 1), (69_999, 2), (1, 1)])
def test_the_flag_of_an_attempt_that_had_the_entry_before_says_nothing(
    task: context.TaskContext, look: Callable[[], bool], of_whom: tuple[int, int]
) -> None:
    task.words[task.flag_index] = flag_key(*of_whom)
    assert not look()
    assert not task.is_asked
    task.words[task.flag_index] = flag_key(*KEY)
    assert look()


@looks
@pytest.mark.parametrize("has_token", [False, True])
def test_the_brokers_word_is_seen_without_the_flag(
    task: context.TaskContext, look: Callable[[], bool], has_token: bool
) -> None:
    if has_token:
        assert not quiesce.shutdown_token().is_cancelled()
    assert not look()
    task.root.cancel("go")
    assert task.is_asked
    assert look()
    with pytest.raises(ShutdownRequested, match="go"):
        quiesce.checkpoint()


@looks
def test_cancelling_the_tasks_own_token_is_no_request(
    task: context.TaskContext, look: Callable[[], bool]
) -> None:
    quiesce.shutdown_token().cancel("my own")
    assert not look()


def test_every_look_counts_in_the_table(task: context.TaskContext, table: PoolTable) -> None:
    seen = []
    for look in (quiesce.is_shutdown_requested, _checkpoint, task.is_shutdown_requested):
        look()
        seen.append(table.place(0).checks()[KEY])
    table.place(0).flag({KEY})
    quiesce.is_shutdown_requested()
    seen.append(table.place(0).checks()[KEY])
    assert seen == [1, 2, 3, 4]


def test_whether_it_is_asked_is_no_look(task: context.TaskContext, table: PoolTable) -> None:
    assert not task.is_asked
    assert table.place(0).checks() == {KEY: 0}


def test_outside_of_a_task() -> None:
    with pytest.warns(RuntimeWarning, match="outside of a task") as caught:
        assert quiesce.is_shutdown_requested() is False
    assert caught[0].filename == __file__
    with pytest.raises(NotInTaskError, match=r"checkpoint\(\)"):
        quiesce.checkpoint()
