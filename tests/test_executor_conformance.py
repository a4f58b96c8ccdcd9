"""CPython's own tests of executors, run against QuiesceExecutor with private brokers.

They come with CPython's `test` package, which many builds leave out: CONTRIBUTING.md says where to get it.
"""

import functools
import importlib
import os
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from quiesce.client.executor import QuiesceExecutor
from quiesce.testing.worker_bodies import wait_for_file

WHERE = "test.test_concurrent_futures"


def part(module: str, name: str) -> Any:
    """A class of the suite: a package since 3.12, one module before."""
    package = importlib.import_module(WHERE)
    if hasattr(package, "__path__"):
        package = importlib.import_module(f"{WHERE}.{module}")
    return getattr(package, name)


try:
    BaseTestCase: Any = part("util", "BaseTestCase")
    ExecutorMixin: Any = part("util", "ExecutorMixin")
    ExecutorTest: Any = part("executor", "ExecutorTest")
    WaitTests: Any = part("test_wait", "WaitTests")
    AsCompletedTests: Any = part("test_as_completed", "AsCompletedTests")
    ExecutorShutdownTest: Any = part("test_shutdown", "ExecutorShutdownTest")
except (ImportError, unittest.SkipTest) as error:
    pytest.skip(f"this Python has no {WHERE}: {error}", allow_module_level=True)

pytestmark = pytest.mark.slow


class QuiesceMixin(ExecutorMixin):  # type: ignore[misc]  # only known when it runs
    executor_type = QuiesceExecutor

    def create_event(self) -> Any:
        """What a test of Python 3.14 and its calls wait for: calls run in other processes."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        sign = Path(folder.name, "set")
        return SimpleNamespace(wait=functools.partial(wait_for_file, str(sign)), set=sign.touch)

    def setUp(self) -> None:
        # Some tests run a program that has its executor from concurrent.futures, in an isolated interpreter.
        module = sys.modules[ExecutorShutdownTest.__module__]
        run = module.assert_python_ok

        def ours(*words: str, **env: str) -> Any:
            changed = [
                word.replace(
                    "from concurrent.futures import Quiesce", "from quiesce import Quiesce"
                )
                for word in words
            ]
            return run(*changed, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **env)

        patch = mock.patch.object(module, "assert_python_ok", ours)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


def build(tests: Any) -> Any:
    """As CPython builds its classes for each kind of pool."""
    name = f"Test{tests.__name__}"
    return type(name, (QuiesceMixin, tests, BaseTestCase), {"__module__": __name__})


TestExecutor = build(ExecutorTest)
TestWait = build(WaitTests)
TestAsCompleted = build(AsCompletedTests)
TestShutdown = build(ExecutorShutdownTest)
