"""For tests of quiesce and of programs that use it; `docs/testing.md` shows how.

    Cluster       a real broker and real pools in a folder of their own, and every way to hurt them
    Witness       what really ran, by memory that the tasks write themselves
    TaskHarness   one task function in this process, without a broker, and how often it looks
    no_leaks      a block that may leave nothing behind
    wait_until    a condition with a deadline, in place of a sleep

Installed with quiesce are the fixtures `quiesce_cluster`, `quiesce_witness` and `quiesce_leaks` for pytest.
Names are imported on first use: workers that run the task bodies of this package load none of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Cluster": "quiesce.testing.cluster",
    "ClusterError": "quiesce.testing.failures",
    "ClusterProcess": "quiesce.testing.members",
    "LeakCheck": "quiesce.testing.leaks",
    "LeakError": "quiesce.testing.failures",
    "LinkState": "quiesce.testing.network",
    "NotInTimeError": "quiesce.testing.failures",
    "TaskHarness": "quiesce.testing.harness",
    "Tick": "quiesce.testing.witness",
    "Witness": "quiesce.testing.witness",
    "WitnessError": "quiesce.testing.failures",
    "is_running": "quiesce.testing.leaks",
    "no_leaks": "quiesce.testing.leaks",
    "wait_until": "quiesce.testing.conditions",
}
__all__ = sorted(_HOME)  # noqa: PLE0605 - one table serves both

if TYPE_CHECKING:
    from quiesce.testing.cluster import Cluster as Cluster
    from quiesce.testing.conditions import wait_until as wait_until
    from quiesce.testing.failures import (
        ClusterError as ClusterError,
        LeakError as LeakError,
        NotInTimeError as NotInTimeError,
        WitnessError as WitnessError,
    )
    from quiesce.testing.harness import TaskHarness as TaskHarness
    from quiesce.testing.leaks import (
        LeakCheck as LeakCheck,
        is_running as is_running,
        no_leaks as no_leaks,
    )
    from quiesce.testing.members import ClusterProcess as ClusterProcess
    from quiesce.testing.network import LinkState as LinkState
    from quiesce.testing.witness import Tick as Tick, Witness as Witness


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'quiesce.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
