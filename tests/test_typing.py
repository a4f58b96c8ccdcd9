"""What type checkers make of the public interface, as typing_tests/ pins it."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import quiesce

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "typing_tests").glob("*.py"))


def reported(command: Sequence[str], folder: Path) -> dict[int, list[str]]:
    """By line: what a type checker says is wrong. It must have run to its end."""
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYRIGHT_PYTHON_FORCE_VERSION": ""}
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={name: value for name, value in env.items() if value},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if "nodeenv" in ran.stderr or "No module named" in ran.stderr:
        pytest.skip(f"{command[0]} can't run here: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    lines: dict[int, list[str]] = {}
    for line in ran.stdout.splitlines():
        if found := re.search(r"\.py:(\d+):.*? error: (.*)", line) or re.search(
            r"\.py:(\d+):\d+ - error: (.*)", line
        ):
            lines.setdefault(int(found[1]), []).append(found[2])
    return lines


def expected(path: Path) -> set[int]:
    return {
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# error: " in line
    }


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_types(path: Path, checker: str, tmp_path: Path) -> None:
    command = {
        "mypy": ("mypy", "--strict", "--cache-dir", str(tmp_path), str(path)),
        "pyright": ("pyright", "--pythonpath", sys.executable, str(path)),
    }[checker]
    found = reported(command, tmp_path)
    assert found.keys() == expected(path), found


def test_the_package_says_that_it_is_typed() -> None:
    assert quiesce.__file__ is not None
    assert Path(quiesce.__file__).with_name("py.typed").is_file()
