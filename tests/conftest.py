"""What holds for every test: it starts from a clean environment and leaves nothing behind."""

import importlib
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from quiesce.testing.leaks import LeakCheck, become_subreaper, sockets_and_locks
from system import System, running
from workers_fakes import FakeBroker, Pool

# An example that takes long says that the machine is busy: no test has a promise about that from Hypothesis.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")  # `--hypothesis-profile` comes later


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("quiesce"):
        # The tree is tested, and what is installed beside it knows of no plugin.
        plugin = importlib.import_module("quiesce.testing.plugin")
        config.pluginmanager.register(plugin, "quiesce")
    become_subreaper()
    # Started in the background of a script, or by nohup: what the tests start must hear signals all the same.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    for name in list(os.environ):
        if name.startswith("QUIESCE_"):
            del os.environ[name]  # the caller's own broker and settings are no part of the tests
    if path := os.environ.get("PYTHONPATH"):
        # PYTHONPATH=src must hold in processes that run in other folders, too.
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))


def pytest_report_header() -> str:
    spec = importlib.util.find_spec("quiesce")
    return f"quiesce: {Path(spec.origin).parent if spec and spec.origin else 'not installed'}"


@pytest.fixture(scope="session", autouse=True)
def leak_check() -> Iterator[LeakCheck]:
    """The check of the whole run: also fixtures wider than one test must clean up."""
    check = LeakCheck()
    before = check.begin()
    yield check
    _report("the whole run, or a fixture wider than one test", check.end(before))


@pytest.fixture(autouse=True)
def nothing_left_behind(leak_check: LeakCheck) -> Iterator[None]:
    """After each test: no new process, thread or descriptor.

    It is set up after the fixtures of wider scope and before those of the test, and torn down
    after these; so what a wider fixture started is not the test's, and what the test's own fixtures
    started must be gone.
    """
    before = leak_check.begin()
    yield
    _report("this test or its fixtures", leak_check.end(before))


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets. No socket, pipe, lock or pid file may stay."""
    folder = Path(tempfile.mkdtemp(prefix="q-", dir="/tmp"))
    try:
        yield folder
        left = sockets_and_locks(folder)
    finally:
        shutil.rmtree(folder)
    _report("this test in its run_folder", left)


def _report(whose: str, left: list[str]) -> None:
    if left:
        pytest.fail(f"left behind by {whose}:\n  " + "\n  ".join(left), pytrace=False)


# --- for tests against a whole system


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """One as `quiesce up` starts it, for all tests of a module. Who needs another overrides this."""
    with running() as system:
        yield system


# --- for tests of what bodies do in real workers


@pytest.fixture(scope="module", params=[4, 1], ids=["shared", "alone"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    """Workers of many slots and of one, whose broker the test plays."""
    pool = Pool(tmp_path_factory.mktemp("p"), slots=request.param)
    pool.broker.await_peer()  # so that all its processes and sockets are there before the first test
    yield pool
    pool.close()


@pytest.fixture
def broker(pool: Pool) -> FakeBroker:
    """That broker, which has noted nothing yet."""
    pool.broker.await_peer()
    pool.broker.log.clear()
    return pool.broker
