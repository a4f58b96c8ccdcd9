"""The Python examples of docs/testing.md run as they stand there."""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def write_examples(page: Path, folder: Path) -> list[str]:
    """Each block of Python begins with the name of its file; blocks of the same file go on. Gives the names."""
    files: dict[str, list[str]] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        first, _, rest = block.partition("\n")
        name = first.removeprefix("# ")
        assert re.fullmatch(r"\w+\.py", name), f"{page.name}: this block names no file: {first}"
        files.setdefault(name, []).append(rest)
    for name, blocks in files.items():
        (folder / name).write_text("\n\n".join(blocks))
    return list(files)


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
