"""A lease that is over counts once nothing is left, on this machine, of what it stood for."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quiesce import leftovers
from quiesce.broker import fence
from quiesce.broker.fence import Fence
from quiesce.markers import WORKER_MARKER
from quiesce.registry.ids import Incarnation
from quiesce.registry.records import Supervisor
from quiesce.testing import wait_until

DEAD = os.urandom(8)


def supervisor(of: bytes) -> Supervisor:
    return Supervisor(of, Incarnation(1), "pool", 1, "here", 1, 1, "", 33.0)


@contextmanager
def left_by(of: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of a task of its, which nobody waits for."""
    mark = {WORKER_MARKER: f"{of.hex()}:3"}
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, **mark}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_left_of_it_is_ended_and_nothing_else() -> None:
    with left_by(DEAD) as its, left_by(os.urandom(8)) as of_another:
        looking = Fence()
        assert not looking.is_clear(supervisor(DEAD))  # it does not block
        wait_until(lambda: looking.is_clear(supervisor(DEAD)))
        assert its.wait() == -9
        assert of_another.poll() is None


def test_it_looks_anew_each_time() -> None:
    """The next lease of the same pool may be over, too, before the broker has ended."""
    looking = Fence()
    for _ in range(2):
        with left_by(DEAD) as its:
            wait_until(lambda: looking.is_clear(supervisor(DEAD)))
            assert its.wait() == -9


def _none(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


def test_as_long_as_something_of_it_does_not_end_it_is_not_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(fence.log, "warning", lambda text, *args: said.append(text % args))

    def sweep(whose: leftovers.Whose, patience: float) -> leftovers.Swept:
        looks.append(patience)
        if len(looks) == 1:
            raise OSError("no descriptors")
        return leftovers.Swept(["7 (x)"], {}, ["7 (x)"] if len(looks) < 4 else [])

    monkeypatch.setattr(fence, "AGAIN", 0.001)
    monkeypatch.setattr(leftovers, "sweep", sweep)
    looking = Fence()
    with monkeypatch.context() as short:
        short.setattr(threading, "_start_new_thread", _none, raising=False)  # before Python 3.13
        short.setattr(threading, "_start_joinable_thread", _none, raising=False)
        assert not looking.is_clear(supervisor(DEAD))
    assert not looks
    wait_until(lambda: looking.is_clear(supervisor(DEAD)))
    assert len(looks) == 4
    assert said[0].endswith("does not end: what can't be looked for: OSError('no descriptors')")
    assert sum("does not end" in each for each in said) == 1
