# ruff: noqa: E501 - the tables of wrong usage have the whole message in one row
"""What the command line says to wrong usage, to what can't be done, and to --help."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_system import BACKGROUND, CommandSystem
from quiesce import __version__
from quiesce.broker.serve import why_not_ours
from quiesce.cli import main, options
from quiesce.cli.verbs import VERBS
from quiesce.client import checks


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    yield made
    made.close()


# --- wrong usage

USAGE = [
    ([], ""),
    (["nonsense"], "error: No such command 'nonsense'"),
    (["ps", "--nonsense"], "error: No such option: --nonsense"),
    (["ps", "--state", "asleep"], "error: Invalid value for --state: expected one of queued, assigned, running, ended; got 'asleep'"),
    (["ps", "--tenant", ""], "error: Invalid value for --tenant: is empty; leave the option out to match any"),
    (["shutdown"], "error: Invalid value: name a scope (--kind, --tenant, --timeline, --runtime) or give --all"),
    (["shutdown", "--all", "--kind", "x"], "error: Invalid value for --all: goes with no other scope option"),
    (["reopen"], "error: Invalid value: name a scope"),
    (["shutdown", "--all", "--grace", "soon"], "error: Invalid value for --grace: expected seconds (0 or more, or inf), got 'soon'"),
    (["shutdown", "--all", "--timeout", "-1"], "error: Invalid value for --timeout: expected seconds (0 or more, or inf), got '-1'"),
    (["spawn", "work:add"], "error: Missing option '--kind'"),
    (["spawn", "work:add", "--kind", ""], "error: Invalid value for --kind: is empty; name a kind of the configuration"),
    (["spawn", "work:add", "--kind", "x", "--tenant", ""], "error: Invalid value for --tenant: is empty; leave the option out for a task of no tenant"),
    (["spawn", "work:add", "--kind", "x", "--timeout", "0"], "error: Invalid value for --timeout: expected seconds (more than 0, or inf), got '0'"),
    (["spawn", "work:add", "--kind", "x", "--timeout", "nan"], "error: Invalid value for --timeout: expected seconds (more than 0, or inf), got 'nan'"),
    (["spawn", "work", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: expected MODULE:FUNCTION, such as package.module:function, got 'work'"),
    (["spawn", ".work:add", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: expected MODULE:FUNCTION, such as package.module:function, got '.work:add'; a module is named in full"),
    (["spawn", "./work.py:add", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: expected MODULE:FUNCTION, such as package.module:function, got './work.py:add'; name the module"),
    (["spawn", "work.:add", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: expected MODULE:FUNCTION, such as package.module:function, got 'work.:add'"),
    (["spawn", "wrok:add", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: there is no module 'wrok'"),
    (["spawn", "work:ad", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: 'work' has no 'ad'; did you mean 'add'?"),
    (["spawn", "work:__name__", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: 'work:__name__' is not a function"),
    (["spawn", "work:add", "text", "--kind", "x"], "error: Invalid value for argument 1: 'text' is not JSON"),
    (["spawn", "work:add", "--kwargs", "[]", "--kind", "x"], "error: Invalid value for --kwargs: expected a JSON object"),
    (["spawn", "work:add", "--kind", "x", "--retries", "9999999999"], "error: Invalid value for --retries: expected a whole number from 0 to 2147483647, got 9999999999"),
    (["spawn", "work:add", "--kind", "x", "--retries", "-1"], "error: Invalid value for --retries: expected a whole number from 0 to 2147483647, got -1"),
    (["pool"], "error: Missing argument 'NAME'"),
    (["pool", "backgroud"], "error: Invalid value for NAME: there is no runtime 'backgroud'; did you mean 'background'?"),
    (["up", "--config", "missing.toml"], "error: Invalid value for --config: configuration missing.toml: there is no such file"),
    (["broker", "--config", ""], "error: Invalid value for --config: is empty"),
    (["ps", "--address", "nowhere"], "error: Invalid value for --address: address 'nowhere': expected ipc:"),
    (["ps", "--address", "tcp://10.0.0.1:70"], "error: Invalid value for --address: address 'tcp://10.0.0.1:70': other machines"),
    (["ps", "--address", ""], "error: Invalid value for --address: is empty"),
    (["spawn", "work:add", "--kind", "x", "--progress"], "error: Invalid value for --progress: goes with --wait"),
    (["history", "--limit", "0"], "error: Invalid value for '--limit': "),
    (["history", "--limit", "ten"], "error: Invalid value for '--limit': "),
    (["history", "--kind", ""], "error: Invalid value for --kind: is empty; leave the option out to match any"),
    (["history", "--state", "ended"], "error: No such option: --state"),
    (["stacks", "--runtime", ""], "error: Invalid value for --runtime: is empty; leave the option out to match any"),
    (["events", "--tenant", "x"], "error: No such option: --tenant"),
    (["doctor", "nowhere"], "error: Invalid value for STATE: there is no folder nowhere"),
    (["doctor", "work.py"], "error: Invalid value for STATE: there is no folder work.py"),
    (["doctor", ".", "--config", "quiesce.toml"], "error: Invalid value for --config: goes without STATE"),
    (["doctor", "--config", "missing.toml"], "error: Invalid value for --config: configuration missing.toml: there is no such file"),
    (["doctor"], "error: Invalid value for STATE: there is no folder "),
    (["top"], "error: Invalid value: needs a terminal; --json prints one snapshot, ps a table"),
    (["top", "--interval", "soon"], "error: Invalid value for --interval: expected seconds (more than 0, or inf), got 'soon'"),
    (["top", "--interval", "0.01"], "error: Invalid value for --interval: expected seconds from 0.1 to 3600, got '0.01'"),
    (["top", "--interval", "inf"], "error: Invalid value for --interval: expected seconds from 0.1 to 3600, got 'inf'"),
    (["top", "--tenant", ""], "error: Invalid value for --tenant: is empty; leave the option out to match any"),
    (["top", "--address", "nowhere"], "error: Invalid value for --address: address 'nowhere': expected ipc:"),
    (["ps", "--tenant", "\udcff"], r"error: Invalid value for --tenant: expected UTF-8, got '\udcff'"),
    (["ps", "--address", "ipc:///tmp/\udcff"], r"error: Invalid value for --address: address 'ipc:///tmp/\udcff': expected ipc:"),
    (["shutdown", "--all", "--reason", "\udcff"], r"error: Invalid value for --reason: expected UTF-8, got '\udcff'"),
    (["spawn", "work:add", "--kind", "x", "--name", "\udcff"], r"error: Invalid value for --name: expected UTF-8, got '\udcff'"),
    (["demo", "--keep"], "error: Option '--keep' requires an argument."),
    (["demo", "--keep", "."], "error: Invalid value for --keep: . is there already; name a folder to be made"),
    (["demo", "nowhere"], "error: Invalid value for FOLDER: there is no folder nowhere"),
    (["demo", "work.py"], "error: Invalid value for FOLDER: there is no folder work.py"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), USAGE)
def test_wrong_usage_exits_2(system: CommandSystem, words: list[str], expected: str) -> None:
    done = system.run(*words, code=2)
    assert done.stderr.startswith(expected)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("up --config", "quiesce up"),
        ("ps --nonsense", "quiesce ps"),
        ("nonsense", "quiesce"),
        ("--nonsense", "quiesce"),
    ],
)
def test_wrong_usage_names_the_help(system: CommandSystem, words: str, command: str) -> None:
    done = system.run(*words.split(), code=2)
    assert done.stderr.splitlines()[1:] == [f"try: {command} --help"]


def test_the_command_and_the_client_count_as_far() -> None:
    assert options.MAX_RETRIES == checks.MAX_RETRIES


def test_wrong_usage_as_json(system: CommandSystem) -> None:
    done = system.run("shutdown", "--json", code=2)
    found = json.loads(done.stderr)
    assert found["error"] == "UsageError"
    assert "or give --all" in found["message"]
    assert done.stdout == ""


FAILURES = [
    (["up", "--config", "work.py"], "ConfigurationError", "work.py: is not valid TOML: "),
    (["spawn", "raising:x", "--kind", "x"], "ImportError", "can't import 'raising': RuntimeError: on purpose, in raising ("),
    (["spawn", "leaving:x", "--kind", "x"], "ImportError", "can't import 'leaving': SystemExit: 3, in leaving ("),
    (["spawn", "importing:x", "--kind", "x"], "ImportError", "can't import 'importing': No module named 'nosuch', in importing ("),
]  # fmt: skip


@pytest.mark.parametrize(("words", "error", "message"), FAILURES)
def test_what_goes_wrong_exits_1(
    system: CommandSystem, words: list[str], error: str, message: str
) -> None:
    for name, text in (
        ("raising", "raise RuntimeError('on purpose')"),
        ("leaving", "raise SystemExit(3)"),
        ("importing", "import nosuch"),
    ):
        (system.folder / f"{name}.py").write_text(f"{text}\n")
    done = system.run(*words, code=1)
    assert done.stderr.startswith(f"error: {message}")
    found = json.loads(system.run(*words, "--json", code=1).stderr)
    assert found["error"] == error
    assert found["message"].startswith(message)


def test_without_a_broker_a_verb_says_so(system: CommandSystem) -> None:
    done = system.run("ps", "--json", code=1)
    error = json.loads(done.stderr)
    assert error["error"] == "BrokerUnavailableError"
    assert error["message"].endswith("name another with --address or QUIESCE_ADDRESS")


def test_a_broker_that_can_not_start_is_json(system: CommandSystem) -> None:
    """Also after its pools have been started; and it leaves no state folder that was not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        done = system.run("up", "--json", code=1, QUIESCE_ADDRESS=taken)
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["error"] == "BrokerUnavailableError"
    assert error["message"].startswith(f"the broker could not start: can't bind {taken}: ")
    assert f"can't bind {taken}: Address already in use" in done.stderr
    assert not (system.folder / "state").exists()

    (system.folder / "q").mkdir(mode=0o755)
    done = system.run("up", code=1)
    assert "must be yours alone" in done.stderr
    assert done.stderr.endswith("the broker could not start: its message is above\n")
    assert not (system.folder / "state").exists()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("q", "/q of the address must be yours alone: it is no folder, but a file. Name a"),
        ("q/in", "/q/in of the address can't be made: what it would be in is a file. Name a"),
    ],
)
def test_an_address_that_is_a_file_is_said_to_be_one(
    system: CommandSystem, address: str, expected: str
) -> None:
    (system.folder / "q").touch()
    done = system.run("up", code=1, QUIESCE_ADDRESS=f"ipc://{system.folder}/{address}")
    assert expected in done.stderr
    assert "chmod" not in done.stderr


def test_a_folder_of_somebody_else_is_no_case_for_chmod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    assert why_not_ours(tmp_path).endswith(
        "it has mode 0755. Name a folder that does not exist yet "
        "(the broker makes it), or run chmod 700 on it"
    )
    tmp_path.chmod(0o700)
    assert why_not_ours(tmp_path) == ""
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert why_not_ours(tmp_path).endswith(
        f"its owner is {owner}, and you are {owner + 1}. Name a folder that does not exist yet "
        "(the broker makes it)"
    )


def test_a_configuration_may_come_through_a_pipe(system: CommandSystem) -> None:
    """Its relative paths start where we are: a pipe is nowhere."""
    done = subprocess.run(
        [sys.executable, "-m", "quiesce", "doctor", "--config", "/dev/stdin", "--json"],
        cwd=system.folder,
        input='[broker]\nstate = "elsewhere"\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"there is no folder {system.folder}/elsewhere of a broker" in done.stderr


def test_a_wrong_configuration_starts_nothing(system: CommandSystem) -> None:
    with (system.folder / "quiesce.toml").open("a") as file:
        file.write("slot = 3\n")
    done = system.run("up", code=1)
    assert done.stderr.startswith(
        "error: quiesce.toml:7: [runtimes.background] has no key 'slot'; did you mean 'slots'?"
    )
    assert not (system.folder / "state").exists()


def test_version_and_help(system: CommandSystem) -> None:
    assert system.run("--version").stdout == f"quiesce {__version__}\n"
    text = system.run("--help").stdout
    verbs = (
        "up",
        "broker",
        "pool",
        "spawn",
        "ps",
        "shutdown",
        "reopen",
        "stacks",
        "events",
        "history",
        "doctor",
        "top",
        "demo",
    )
    assert [verb for verb in verbs if verb not in text] == []
    assert sorted(verb.__name__ for group in VERBS.values() for verb in group) == sorted(verbs)
    for head in VERBS:
        assert head in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["spawn"], "Usage: quiesce spawn [OPTIONS] MODULE:FUNCTION [ARGS]..."),
        (["pool"], "Usage: quiesce pool [OPTIONS] NAME"),
        (["demo"], "Usage: quiesce demo [OPTIONS] [FOLDER]"),
        (["up"], " [tool.quiesce] in"),
        (["top"], "Usage: quiesce top [OPTIONS]"),
        (["doctor"], "Usage: quiesce doctor [OPTIONS] [STATE]"),
    ],
)
def test_help_reads_well(system: CommandSystem, words: list[str], expected: str) -> None:
    lines = system.run(*words, "--help").stdout.splitlines()
    assert [line for line in lines if line.strip() == expected or expected in line] != []
    assert [line for line in lines if "{" in line or "[[" in line or "\\" in line] == []


def test_every_verb_explains_itself_and_its_options(system: CommandSystem) -> None:
    """A sentence for each; none of them empty, none cut by the markup of the help."""
    for verb in (each.__name__ for group in VERBS.values() for each in group):
        text = system.run(verb, "--help", COLUMNS="200").stdout
        options = [line for line in text.splitlines() if " --" in line and "│" in line]
        assert len(options) >= 2
        for line in options:
            words = line.strip("│ ").rpartition("  ")[2]
            assert words[:1].isupper() or words.startswith(("[", "queued")), line
            assert words.endswith((".", "]")), line


def test_top_says_what_is_missing(system: CommandSystem) -> None:
    """Without Textual; on a terminal, or that would be said first."""
    code = (
        "import sys\n"
        "from quiesce.cli import top_verb\n"
        "from quiesce.cli.main import main\n"
        "sys.stdin.isatty = sys.stdout.isatty = lambda: True\n"
        "top_verb.find_spec = lambda name: None\n"
        "main(['top'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=system.folder
    )
    assert done.returncode == 1
    assert "needs Textual, which is not installed: pip install 'quiesce[top]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["up"], (None, False)),
        (["up", "--json"], (None, True)),
        (["up", "--config", __file__], (__file__, False)),
        (["up", "--json", "--config", __file__], (__file__, True)),
        (["up", "--config", __file__, "--json"], (__file__, True)),
        # What is wrong, what asks for help, and what is written in another way is for Typer to say.
        ([], None),
        (["ps"], None),
        (["broker"], None),
        (["up", "--help"], None),
        (["up", "--config"], None),
        (["up", "--config", ""], None),
        (["up", "--config", "/nowhere/quiesce.toml"], None),
        (["up", "--config", __file__, "--config", __file__], None),
        (["up", "--json", "--json"], None),
        (["up", "more"], None),
        (["up", "--config", "/dev/stdin"], ("/dev/stdin", False)),
    ],
)
def test_a_plain_up_is_read_without_typer(
    words: list[str], plain: tuple[str | None, bool] | None
) -> None:
    assert main._plain_up(words) == plain


def test_a_closed_pipe_is_no_traceback(system: CommandSystem) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m quiesce --help | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


# --- completion


def test_a_shell_learns_to_complete(tmp_path: Path) -> None:
    command = f"{sys.executable} -m quiesce --install-completion; exit $?"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "completion installed" in done.stdout
    (script,) = tmp_path.glob("**/quiesce.sh")
    assert "complete -o default" in script.read_text()
    env = {"_QUIESCE_COMPLETE": "complete_bash", "COMP_WORDS": "quiesce sh", "COMP_CWORD": "1"}
    asked = subprocess.run(
        [sys.executable, "-m", "quiesce"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.returncode, asked.stdout.split()) == (0, ["shutdown"])
