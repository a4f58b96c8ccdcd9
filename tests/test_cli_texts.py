"""Texts that can't be encoded, and results that refuse to be shown, make no verb fail that has done its work."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_system import BACKGROUND, CommandSystem

SHY = """
class Shy:
    def __repr__(self):
        raise RuntimeError("on purpose")

class Mute(Exception):
    def __str__(self):
        raise self

class Worse:
    def __repr__(self):
        raise Mute

def shy():
    return Shy()

def worse():
    return Worse()

def long():
    return 10**5000

def circle():
    made = []
    made.append(made)
    return made
"""


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    (run_folder / "shy.py").write_text(SHY)
    yield made
    made.close()


def test_what_stdout_can_not_encode_is_written_with_escapes(system: CommandSystem) -> None:
    process = system.up()
    mark = json.dumps(str(system.folder / "mark"))
    words = ("spawn", "work:until_asked", mark, "--kind", "compaction", "--tenant", "tö 1")
    system.run(*words)
    system.until_exists("mark")
    assert "t\\xf6 1" in system.run("ps", PYTHONIOENCODING="ascii").stdout
    found = json.loads(system.run("ps", "--json", PYTHONIOENCODING="ascii").stdout)
    assert [task["tenant_id"] for task in found["tasks"]] == ["tö 1"]
    done = system.run("shutdown", "--tenant", "tö 1", "--keep-closed", PYTHONIOENCODING="ascii")
    assert "tenant_id=t\\xf6 1" in done.stdout
    refused = json.loads(system.run(*words, "--json", code=1, PYTHONIOENCODING="ascii").stderr)
    assert "tö 1" in refused["message"]
    echo = ("spawn", "builtins:str", "--kind", "compaction", "--wait", '"\\ud800"')
    assert system.run(*echo).stdout == "\\ud800\n"
    assert json.loads(system.run(*echo, "--json").stdout)["result"] == "\ud800"
    system.end(process, signal.SIGTERM)


def test_a_result_that_can_not_be_shown_is_no_failure(system: CommandSystem) -> None:
    process = system.up()
    for body, text, document in (
        ("shy", "<Shy that can't be shown: RuntimeError: on purpose>", None),
        ("worse", "<Worse that can't be shown: Mute>", None),
        ("long", "<int that can't be shown: ValueError: Exceeds the limit", None),
        ("circle", "[[...]]", "<list that can't be shown: RecursionError: "),
    ):
        words = ("spawn", f"shy:{body}", "--kind", "compaction", "--wait")
        assert system.run(*words).stdout.startswith(text)
        found = json.loads(system.run(*words, "--json").stdout)
        assert found["outcome"] == "completed"
        assert found["result"].startswith(document or text)
    system.end(process, signal.SIGTERM)
