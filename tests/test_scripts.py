"""The programs behind scripts/: what is wrong on their command lines is said at once, and starts nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mutants
from quiesce.testing import crash_points, soak
from quiesce.testing.explorer.__main__ import main as explore
from quiesce.testing.simulator.worlds import main as simulate

ENV = Path(__file__).resolve().parent.parent / "scripts" / "_env"


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        (crash_points.main, "--every 0", "--every: expected a whole number from 1 on, got '0'"),
        (crash_points.main, "--steps x", "--steps: expected a whole number from 1 on, got 'x'"),
        (soak.main, "--minutes -1", "--minutes: expected a number of more than 0, got '-1'"),
        (soak.main, "--minutes inf", "--minutes: expected a number of more than 0, got 'inf'"),
        (explore, "--jobs 0", "--jobs: expected a whole number from 1 on, got '0'"),
        (simulate, "--hours 0", "--hours: expected a number of more than 0, got '0'"),
        (
            simulate,
            "--trace /nonexist/x",
            "--trace: /nonexist/x can't be written: No such file or directory",
        ),
    ],
)
def test_a_wrong_number_or_file_is_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    program: Callable[[list[str]], int],
    words: str,
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        program(words.split())
    assert ended.value.code == 2
    assert f"error: argument {expected}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--only", "argument --only: expected at least one argument"),
        ("--only nonsense", "none has any of the words nonsense: --list names all"),
    ],
)
def test_mutants_are_named_or_all(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    expected: str,
) -> None:
    # Else it would begin with all of them.
    monkeypatch.setattr(sys, "argv", ["mutants", "--list", *words.split()])
    with pytest.raises(SystemExit):
        mutants.main()
    assert expected in capsys.readouterr().err


def test_an_interpreter_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    """In a clone that has its .venv already."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "activate").write_text(f"{tmp_path}\n")
    script = 'source "$1"; VENV="$2"; have_venv || find_python'
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(ENV), str(tmp_path)],
        env={**os.environ, "PYTHON": "/nope"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == (
        "error: PYTHON=/nope is not a Python >= 3.11 with the modules venv and ensurepip.\n"
    )
