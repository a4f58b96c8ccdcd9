# ruff: noqa: E501 - the tables of wrong usage have the whole message in one row
"""The command line against the real broker and real pools."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaks import descendants
from quiesce import __version__
from quiesce.cli.output import age, clean, duration, plain, size
from quiesce.registry.rows import StopRow
from quiesce.registry.states import Evidence, Outcome
from quiesce.values import Progress, TaskKind

TASKS = """
import subprocess, time
from pathlib import Path
import quiesce

def add(a, b=1):
    return a + b

def fail():
    raise ValueError("on purpose")

def until_asked(path):
    child = subprocess.Popen(["sleep", "1000"])
    try:
        Path(path).touch()
        while not quiesce.is_shutdown_requested():
            quiesce.wait_for_shutdown(1)
    finally:
        child.kill()
        child.wait()

def deaf(path, release):
    Path(path).touch()
    while not Path(release).exists():
        time.sleep(0.01)
"""


class System:
    """A folder with a configuration and tasks, and the processes of `quiesce` that run in it."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        (folder / "work.py").write_text(TASKS)
        (folder / "quiesce.toml").write_text(
            f'[broker]\naddress = "ipc://{folder}/q"\nstate = "{folder}/state"\n{settings}'
        )
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """In the background and in a process group of its own; its output goes to files."""
        number = len(self._running)
        command = [sys.executable, "-m", "quiesce", *words]
        with (
            (self.folder / f"out-{number}").open("wb") as out,
            (self.folder / f"err-{number}").open("wb") as err,
        ):
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=err, process_group=0
            )
        self._running.append(process)
        return process

    def text(self, kind: str = "err", number: int = 0) -> str:
        return (self.folder / f"{kind}-{number}").read_text()

    def run(self, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "quiesce", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, (done, self.text() if self._running else "")
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        done = self.run(*words, "--json", code=code)
        return json.loads(done.stdout)

    def until(self, what: str, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; the log:\n{self.text()}")
            time.sleep(0.01)
        return found

    def until_exists(self, name: str) -> str:
        self.until(name, (self.folder / name).exists)
        return name

    def up(self, *words: str) -> "subprocess.Popen[bytes]":
        process = self.start("up", *words)
        self.until("the line", lambda: "quiesce is up" in self.text() or "pid" in self.text("out"))
        return process

    def end(self, process: "subprocess.Popen[bytes]", signum: int, code: int = 0) -> None:
        """It ends by this signal, and leaves nothing."""
        process.send_signal(signum)
        self.assert_ended(process, code)

    def assert_ended(self, process: "subprocess.Popen[bytes]", code: int) -> None:
        assert process.wait(30) == code, self.text()
        left = [each for each in descendants(os.getpid()) if _is_ours(each.command)]
        assert left == []
        assert not (self.folder / "q").exists()
        assert not (self.folder / "state" / "lock").exists()

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.wait()


def _is_ours(command: str) -> bool:
    return "quiesce" in command or "worker" in command or "sleep 1000" in command


BACKGROUND = "default_runtimes = false\n[runtimes.background]\nprocesses = 1\n"


@pytest.fixture
def system(run_folder: Path) -> Iterator[System]:
    made = System(run_folder, BACKGROUND)
    yield made
    made.close()


# --- tasks


def test_spawn_ps_stacks_shutdown_reopen(system: System) -> None:
    """One system for what needs nothing special: a start takes a second."""
    process = system.up()

    # spawn
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    assert system.json(
        "spawn", "work:add", "--kind", "compaction", "--wait", "--kwargs", '{"a": 5}'
    ) == {
        "id": 2,
        "outcome": "completed",
        "result": 6,
    }
    failed = system.run("spawn", "work:fail", "--kind", "compaction", "--wait", code=1)
    assert failed.stderr.startswith("error: task 3 (fail) failed")
    assert "ValueError: on purpose" in failed.stderr
    unknown = system.run("spawn", "work:fail", "--kind", "compacton", "--json", code=1)
    assert json.loads(unknown.stderr)["error"] == "UnknownKindError"
    mark = str(system.folder / "mark")
    words = ("spawn", "work:until_asked", json.dumps(mark), "--kind", "compaction")
    task_id = int(system.run(*words, "--tenant", "t1", "--name", "a [b]name[/b]").stdout)
    system.until_exists("mark")

    # ps
    listing = system.run("ps").stdout.splitlines()
    header, row = listing[:2]
    assert header.split()[:6] == ["ID", "ATT", "RUNTIME", "KIND", "NAME", "TENANT"]
    assert row.split()[0] == str(task_id)
    assert "a [b]name[/b]" in row
    assert "running" in row
    assert any(line.startswith("background") for line in listing)
    found = system.json("ps", "--tenant", "t1")
    assert [(task["id"], task["state"], task["name"]) for task in found["tasks"]] == [
        (task_id, "running", "a [b]name[/b]")
    ]
    assert found["runtimes"]["background"]["running"] == 1
    assert system.json("ps", "--tenant", "t2")["tasks"] == []
    assert len(system.json("ps", "--state", "ended")["tasks"]) == 3

    # stacks
    (stack,) = system.json("stacks", "--kind", "compaction")["stacks"]
    assert stack["id"] == task_id
    assert any("until_asked" in text for text in stack["stacks"])
    assert "until_asked" in system.run("stacks").stdout

    # shutdown, reopen
    done = system.run(
        "shutdown", "--tenant", "t1", "--keep-closed", "--reason", "for the test"
    ).stdout
    assert done.startswith("stopped 1 task of tenant_id=t1 in ")
    assert "reason: for the test" in done
    assert "completed RETURNED" in done
    assert [each["holder"] for each in system.json("ps", "--closed")["closed"]] == ["kept"]
    assert "tenant_id=t1" in system.run("ps", "--closed").stdout
    refused = system.run(*words, "--tenant", "t1", "--json", code=1)
    assert json.loads(refused.stderr)["error"] == "ScopeClosedError"
    assert system.json("reopen", "--tenant", "t1")["closed"] == []
    assert system.json("shutdown", "--all")["tasks"] == []

    system.end(process, signal.SIGTERM)


def test_shutdown_says_what_it_waits_for_and_that_its_time_is_over(system: System) -> None:
    process = system.up("--json")
    assert json.loads(system.text("out"))["runtimes"] == {
        "background": {"processes": 1, "slots": 16}
    }
    words = [json.dumps(str(system.folder / name)) for name in ("mark", "release")]
    system.run("spawn", "work:deaf", *words, "--kind", "compaction")
    system.until_exists("mark")
    done = system.run(
        "shutdown", "--kind", "compaction", "--grace", "inf", "--timeout", "2", code=1
    )
    assert "s: waiting for 1 tasks of kind=compaction: 1 deaf (" in done.stderr
    assert done.stdout.startswith("stopped 0 of 1 task of kind=compaction in 2.")
    assert "error: the stop of kind=compaction has not ended within 2 s" in done.stderr
    again = system.run("shutdown", "--all", "--timeout", "0.1", "--grace", "inf", "--json", code=1)
    assert [task["id"] for task in json.loads(again.stdout)["remaining"]] == [1]
    assert json.loads(again.stderr)["error"] == "ShutdownTimeoutError"
    (system.folder / "release").touch()
    assert system.json("shutdown", "--all")["remaining"] == []
    system.end(process, signal.SIGTERM)


def test_events_are_one_per_line(system: System) -> None:
    process = system.up()
    events = system.start("events", "--json")

    def event_seen() -> bool:
        system.run("spawn", "work:add", "1", "--kind", "compaction", "--wait")
        return system.text("out", 1) != ""

    system.until("an event", event_seen)
    first = json.loads(system.text("out", 1).splitlines()[0])
    assert set(first) == {"type", "at", "task_id", "data"}
    events.send_signal(signal.SIGINT)
    assert events.wait(30) == 0, system.text("err", 1)
    system.end(process, signal.SIGTERM)


# --- processes


def test_ctrl_c_in_a_terminal_leaves_nothing_behind(run_folder: Path) -> None:
    """SIGINT to the whole group while tasks run, one of them deaf, some with children."""
    system = System(
        run_folder,
        "stop_timeout = 2\ndefault_runtimes = false\n[runtimes.background]\n[runtimes.walreceiver]\n",
    )
    process = system.up()
    for n in range(3):
        mark = json.dumps(str(run_folder / f"mark-{n}"))
        runtime = "background" if n else "walreceiver"
        system.run("spawn", "work:until_asked", mark, "--kind", "compaction", "--runtime", runtime)
        system.until_exists(f"mark-{n}")
    marks = [json.dumps(str(run_folder / name)) for name in ("mark", "never")]
    system.run("spawn", "work:deaf", *marks, "--kind", "compaction")
    system.until_exists("mark")
    os.killpg(process.pid, signal.SIGINT)
    system.assert_ended(process, 0)
    system.close()


def test_sigquit_leaves_nothing_behind(system: System) -> None:
    process = system.up()
    mark = json.dumps(str(system.folder / "mark"))
    system.run("spawn", "work:until_asked", mark, "--kind", "compaction")
    system.until_exists("mark")
    system.end(process, signal.SIGQUIT, code=1)


def test_a_killed_broker_ends_the_system_and_leaves_nothing(system: System) -> None:
    process = system.up("--json")
    mark = json.dumps(str(system.folder / "mark"))
    system.run("spawn", "work:until_asked", mark, "--kind", "compaction")
    system.until_exists("mark")
    os.kill(json.loads(system.text("out"))["broker_pid"], signal.SIGKILL)
    system.assert_ended(process, 1)
    assert "the broker died (killed by SIGKILL)" in system.text()


def test_a_killed_supervisor_is_replaced_and_its_tasks_end_as_crashed(system: System) -> None:
    process = system.up()
    mark = json.dumps(str(system.folder / "mark"))
    system.run("spawn", "work:until_asked", mark, "--kind", "compaction")
    system.until_exists("mark")
    (supervisor,) = [
        each.pid
        for each in descendants(process.pid)
        if each.command.startswith("quiesce supervisor")
    ]
    os.kill(supervisor, signal.SIGKILL)
    ended = system.until("its end", lambda: system.json("ps", "--state", "ended")["tasks"])
    assert [(task["id"], task["outcome"], task["exit_status"]) for task in ended] == [
        (1, "crashed", -9)
    ]
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.end(process, signal.SIGTERM)


def test_a_failed_task_that_is_marked_stops_the_system(system: System) -> None:
    process = system.up()
    system.run("spawn", "work:fail", "--kind", "compaction", "--shutdown-process-on-error")
    system.assert_ended(process, 1)
    assert "because a task marked shutdown_process_on_error failed" in system.text()


def test_a_second_system_is_refused_before_it_starts_anything(system: System) -> None:
    """Its supervisors would join the first system, and die in the middle of its tasks."""
    process = system.up()
    folder = system.folder
    same_state = f"another `quiesce up` uses the state folder {folder}/state: stop it first, or choose another"
    refused = system.run("up", code=1)
    assert refused.stderr == f"error: {same_state} address and state folder\n"
    text = (folder / "quiesce.toml").read_text().replace(f"{folder}/state", f"{folder}/state2")
    (folder / "other.toml").write_text(text)
    refused = system.run("up", "--config", "other.toml", code=1)
    assert refused.stderr.startswith("error: another broker (pid ")
    assert f") uses the address ipc://{folder}/q: stop it first" in refused.stderr
    assert system.json("ps")["runtimes"]["background"]["processes"] <= 1
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.end(process, signal.SIGTERM)


def test_broker_and_pool_start_one_by_one(system: System) -> None:
    pool = system.start("pool", "background")  # first: it waits for its broker
    broker = system.start("broker")
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.until("the line", lambda: "quiesce is up" in system.text("err", 0))
    pool.send_signal(signal.SIGINT)
    assert pool.wait(30) == 0, system.text("err", 0)
    assert system.json("ps")["runtimes"]["background"]["processes"] == 0
    system.end(broker, signal.SIGINT)


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
    (["spawn", "work", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: expected MODULE:FUNCTION, got 'work'"),
    (["spawn", "wrok:add", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: there is no module 'wrok'"),
    (["spawn", "work:ad", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: 'work' has no 'ad'; did you mean 'add'?"),
    (["spawn", "work:__name__", "--kind", "x"], "error: Invalid value for MODULE:FUNCTION: 'work:__name__' is not a function"),
    (["spawn", "work:add", "text", "--kind", "x"], "error: Invalid value for argument 1: 'text' is not JSON"),
    (["spawn", "work:add", "--kwargs", "[]", "--kind", "x"], "error: Invalid value for --kwargs: expected a JSON object"),
    (["pool"], "error: Missing argument 'NAME'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), USAGE)
def test_wrong_usage_exits_2(system: System, words: list[str], expected: str) -> None:
    done = system.run(*words, code=2)
    assert done.stderr.startswith(expected)
    assert "Traceback" not in done.stderr


def test_wrong_usage_as_json(system: System) -> None:
    done = system.run("shutdown", "--json", code=2)
    found = json.loads(done.stderr)
    assert found["error"] == "UsageError"
    assert "or give --all" in found["message"]
    assert done.stdout == ""


FAILURES = [
    (["pool", "backgroud"], "ConfigurationError", "there is no runtime 'backgroud'; did you mean 'background'?"),
    (["up", "--config", "missing.toml"], "ConfigurationError", "configuration missing.toml: there is no such file"),
    (["ps", "--address", "nowhere"], "ConfigurationError", "address 'nowhere': "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "error", "message"), FAILURES)
def test_what_goes_wrong_exits_1(
    system: System, words: list[str], error: str, message: str
) -> None:
    done = system.run(*words, code=1)
    assert done.stderr.startswith(f"error: {message}")
    found = json.loads(system.run(*words, "--json", code=1).stderr)
    assert found["error"] == error
    assert found["message"].startswith(message)


def test_without_a_broker_a_verb_says_so(system: System) -> None:
    done = system.run("ps", "--json", code=1)
    assert json.loads(done.stderr)["error"] == "BrokerUnavailableError"


def test_a_wrong_configuration_starts_nothing(system: System) -> None:
    with (system.folder / "quiesce.toml").open("a") as file:
        file.write("slot = 3\n")
    done = system.run("up", code=1)
    assert done.stderr.startswith(
        "error: quiesce.toml:7: [runtimes.background] has no key 'slot'; did you mean 'slots'?"
    )
    assert not (system.folder / "state").exists()


def test_version_and_help(system: System) -> None:
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
        "demo",
    )
    assert [verb for verb in verbs if verb not in text] == []


def test_a_closed_pipe_is_no_traceback(system: System) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m quiesce --help | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


# --- how it looks


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0.0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (8040, "2h14m"),
        (273_600, "3d04h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_words_for_people() -> None:
    assert age(None) == ""
    assert age(10.0, 12.0) == "2.0s"
    assert [size(n) for n in (0, 2048, 5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "2 KiB",
        "5 MiB",
        "3.0 GiB",
    ]
    assert clean("a\x1b[31mb\nc") == "a�[31mb�c"


def test_json_of_every_value() -> None:
    row = StopRow(1, "everything", "", float("inf"), 0, [])
    assert plain(
        {"a": TaskKind.COMPACTION, "b": Progress(1, None), "c": row, "d": {1, 2} - {2}}
    ) == {
        "a": "compaction",
        "b": {"done": 1, "total": None, "note": ""},
        "c": {
            "stop_id": 1,
            "scope": "everything",
            "reason": "",
            "requested_at": "inf",
            "remaining": 0,
            "tasks": [],
        },
        "d": [1],
    }
    assert plain([Outcome.LOST, Evidence.FENCED]) == ["lost", "FENCED"]
