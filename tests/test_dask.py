"""dask's own schedulers run on a QuiesceExecutor."""

import operator
import os
from typing import Any

import pytest

from quiesce import QuiesceExecutor

dask: Any = pytest.importorskip("dask", reason="dask is not installed (extra: dev)")
pytestmark = pytest.mark.slow


def fail(_: object) -> None:
    raise KeyError("on purpose")


def pid_after(_: object) -> int:
    return os.getpid()


def test_schedulers_of_dask() -> None:
    """All in one, since each private pool takes a second."""
    with QuiesceExecutor(2) as executor, dask.config.set(pool=executor):
        squares = [dask.delayed(operator.mul)(n, n) for n in range(20)]
        total = dask.delayed(sum)(squares)
        for scheduler in ("threads", "processes"):
            assert total.compute(scheduler=scheduler) == sum(n * n for n in range(20))
            pids = dask.compute(
                *(dask.delayed(pid_after)(square) for square in squares), scheduler=scheduler
            )
            workers = {worker.pid for worker in executor.client.workers()}
            assert set(pids) <= workers
        # Its scheduler for threads hands tracebacks around, which stay in their process.
        with pytest.raises(KeyError, match="on purpose"):
            dask.delayed(fail)(total).compute(scheduler="processes")
        assert dask.delayed(lambda value: value + 1)(total).compute(scheduler="threads") == 2471
