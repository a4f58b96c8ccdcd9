"""Fixtures for pytest, loaded by it where quiesce is installed. Nothing but pytest is imported before one is used.

quiesce_cluster   a running `Cluster`; @pytest.mark.quiesce_cluster(network=True, ...) says how it is made
quiesce_witness   a `Witness` with 1024 slots; @pytest.mark.quiesce_witness(slots=20_000) changes that
quiesce_leaks     the test, and its other fixtures of quiesce, may leave nothing behind
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quiesce.testing.cluster import Cluster
    from quiesce.testing.witness import Witness


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line(
        "markers", "quiesce_cluster(**arguments): of quiesce.testing.Cluster, for quiesce_cluster"
    )
    config.addinivalue_line("markers", "quiesce_witness(slots): how many quiesce_witness has")


@pytest.fixture
def quiesce_leaks() -> Iterator[None]:
    """Fails the test if a process, thread or descriptor is left when it and its fixtures of quiesce have ended.

    For all tests of a module: `pytestmark = pytest.mark.usefixtures("quiesce_leaks")`. Other fixtures that are to
    be checked must be set up after it.
    """
    from quiesce.testing.failures import LeakError
    from quiesce.testing.leaks import no_leaks

    try:
        with no_leaks():
            yield
    except LeakError as error:
        left = str(error)
    else:
        return
    pytest.fail(left, pytrace=False)


@pytest.fixture
def quiesce_witness(request: pytest.FixtureRequest) -> "Iterator[Witness]":
    """A witness in a folder of its own; `quiesce_witness.path` is for the tasks."""
    _leaks_first(request)
    import tempfile

    from quiesce.testing.witness import Witness

    arguments = {"slots": 1024} | _arguments(request, "quiesce_witness")
    with (
        tempfile.TemporaryDirectory(prefix="quiesce-") as folder,
        Witness(f"{folder}/witness", **arguments) as witness,
    ):
        yield witness


@pytest.fixture
def quiesce_cluster(request: pytest.FixtureRequest) -> "Iterator[Cluster]":
    """A cluster that runs. It is stopped in order after the test, which fails if something of it is left."""
    _leaks_first(request)
    from quiesce.testing.cluster import Cluster

    with Cluster(**_arguments(request, "quiesce_cluster")) as cluster:
        yield cluster


def _leaks_first(request: pytest.FixtureRequest) -> None:
    """Whatever the order of a test's arguments: the count goes around all else."""
    if "quiesce_leaks" in request.fixturenames:
        request.getfixturevalue("quiesce_leaks")


def _arguments(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """Of all markers of that name, the nearest to the test counting most, and of an indirect parameter."""
    arguments: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(name))):
        if marker.args:
            raise pytest.UsageError(f"the marker {name} takes arguments by name: {marker.args!r}")
        arguments |= marker.kwargs
    return arguments | dict(getattr(request, "param", {}))
