"""The examples of docs/ run as they stand there."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from docs_pages import DOCS, Walk, write_examples

#: Pages to be followed from top to bottom.
WALKS = [
    "tutorial.md",
    "listeners.md",
    "blocking.md",
    "service.md",
    "from-processpool.md",
    "from-celery.md",
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WALKS)
def test_what_a_page_says_comes_true(page: str, run_folder: Path) -> None:
    with Walk(run_folder) as walk:
        walk.follow(DOCS / page)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_of_testing(tmp_path: Path) -> None:
    names = write_examples(DOCS / "testing.md", tmp_path)
    assert names == ["jobs.py", "test_jobs.py"]
    plugin = (
        [] if entry_points(group="pytest11", name="quiesce") else ["-p", "quiesce.testing.plugin"]
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, "-q", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    examples = (tmp_path / "test_jobs.py").read_text().count("\ndef test_")
    assert examples > 15
