"""The command line against the real broker and real pools."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_system import BACKGROUND, CommandSystem
from quiesce.cli.output import age, clean, counted, duration, plain, size
from quiesce.registry.rows import StopRow
from quiesce.registry.states import Evidence, Outcome
from quiesce.testing.leaks import descendants
from quiesce.values import Progress, TaskKind


@pytest.fixture
def system(run_folder: Path) -> Iterator[CommandSystem]:
    made = CommandSystem(run_folder, BACKGROUND)
    yield made
    made.close()


# --- tasks


def test_spawn_ps_stacks_shutdown_reopen(system: CommandSystem) -> None:
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
    assert failed.stderr.startswith("task 3 (fail)\nerror: task 3 (fail) failed")
    assert "ValueError: on purpose" in failed.stderr
    unknown = system.run("spawn", "work:fail", "--kind", "compacton", "--json", code=1)
    assert json.loads(unknown.stderr)["error"] == "UnknownKindError"
    for verb in ("ps", "stacks", "history", "shutdown", "reopen", "top"):
        unknown = system.run(verb, "--kind", "compacton", "--json", code=1)
        assert json.loads(unknown.stderr)["error"] == "UnknownKindError", verb
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
    head, how, *lines = system.run("stacks").stdout.splitlines()
    assert head.startswith(f"task {task_id}.1 a [b]name[/b] in process ")
    assert how.startswith("  running; ")
    assert "look" in how
    assert any("until_asked" in line for line in lines)

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
    (kept,) = system.json("ps", "--closed")["closed"]
    assert system.json("reopen", "--tenant", "t2") == {"reopened": [], "closed": [kept]}
    nothing = system.run("reopen", "--tenant", "t2").stdout.splitlines()
    assert nothing[0] == "nothing to open: no scope within [tenant_id=t2] was kept closed"
    assert nothing[1].startswith("still closed: tenant_id=t1, by kept")
    assert system.json("reopen", "--tenant", "t1") == {"reopened": [kept], "closed": []}
    system.run("shutdown", "--tenant", "t1", "--keep-closed")
    assert system.run("reopen", "--all").stdout == "opened: tenant_id=t1\n"
    assert system.json("shutdown", "--all")["tasks"] == []

    failed = system.run("spawn", "work:fail", "--kind", "compaction", "--wait", "--json", code=1)
    document = json.loads(failed.stderr)
    assert document["error"] == "TaskFailedError"
    assert document["id"] == system.json("history")["tasks"][-1]["id"]

    system.end(process, signal.SIGTERM)


def test_shutdown_says_what_it_waits_for_and_that_its_time_is_over(system: CommandSystem) -> None:
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
    assert "s: waiting for 1 task of kind=compaction: 1 deaf (" in done.stderr
    (line,) = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("  1 compaction deaf, process ")
    ]
    assert "never observed" in line
    assert "look for a request" in line
    stack = done.stderr[done.stderr.index("was here at") :].splitlines()
    assert any("in deaf" in line for line in stack)
    assert len(stack) < 20
    assert done.stdout.startswith("stopped 0 of 1 task of kind=compaction in 2.")
    assert done.stderr.splitlines()[-1] == (
        "error: the stop of kind=compaction has not ended within 2 s: 1 of 1 task goes on: 1 (deaf). "
        "The scope stays closed; a shutdown that succeeds, or `quiesce reopen --kind compaction`, opens it"
    )
    again = system.run("shutdown", "--all", "--timeout", "0.1", "--grace", "inf", "--json", code=1)
    assert [task["id"] for task in json.loads(again.stdout)["remaining"]] == [1]
    assert json.loads(again.stderr)["error"] == "ShutdownTimeoutError"
    (system.folder / "release").touch()
    assert system.json("shutdown", "--all")["remaining"] == []
    system.end(process, signal.SIGTERM)


def test_on_a_terminal_shutdown_shows_what_is_left_in_place(system: CommandSystem) -> None:
    process = system.up()
    words = [json.dumps(str(system.folder / name)) for name in ("mark", "release")]
    system.run("spawn", "work:deaf", *words, "--kind", "compaction", "--tenant", "t1")
    system.until_exists("mark")
    screen, terminal = pty.openpty()
    os.set_blocking(screen, False)
    stop = subprocess.Popen(
        [sys.executable, "-m", "quiesce", "shutdown", "--tenant", "t1", "--grace", "inf"],
        cwd=system.folder,
        env={**os.environ, "COLUMNS": "150", "LINES": "50", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    shown = b""

    def is_shown() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(screen, 65536)
        return b"was here at" in shown and b"in deaf" in shown

    system.until("the stack", is_shown)
    assert b"waiting for 1 task of tenant_id=t1" in shown
    assert b"never observed" in shown
    (system.folder / "release").touch()
    done, _ = stop.communicate(timeout=30)
    os.close(screen)
    assert done.startswith("stopped 1 task of tenant_id=t1 in ")
    system.end(process, signal.SIGTERM)


def test_an_interrupted_verb_says_what_goes_on(system: CommandSystem) -> None:
    process = system.up()
    words = [json.dumps(str(system.folder / name)) for name in ("mark", "release")]
    labels = ("--kind", "compaction", "--tenant", "t 1")
    scope = "--kind compaction --tenant 't 1'"

    spawn = system.start("spawn", "work:deaf", *words, *labels, "--wait")
    system.until_exists("mark")
    system.until("the id", lambda: system.text("err", 1) == "task 1 (deaf)\n")
    spawn.send_signal(signal.SIGINT)
    assert spawn.wait(30) == 130
    shown, stopped = (
        f"`quiesce {verb} {scope} --runtime background`" for verb in ("ps", "shutdown")
    )
    assert system.text("err", 1).splitlines()[1] == (
        f"error: interrupted: task 1 (deaf) goes on: {shown} shows it; {stopped} stops it, with all "
        "others of that scope"
    )

    stop = system.start("shutdown", *labels, "--grace", "inf")
    system.until("the stop", lambda: system.json("ps", "--closed")["closed"])
    stop.send_signal(signal.SIGINT)
    assert stop.wait(30) == 130
    said = system.text("err", 2).splitlines()[-1]
    assert said.startswith(
        "error: interrupted: the stop of kind=compaction tenant_id=t 1 goes on: it waits for 1 task, 1 deaf ("
    )
    assert said.endswith(
        "). The scope stays closed until all have ended. `quiesce ps --closed` shows it; "
        f"`quiesce shutdown {scope}` waits for it again"
    )
    (row,) = [
        line for line in system.run("ps", "--closed").stdout.splitlines() if "  stop  " in line
    ]
    assert row.startswith("kind=compaction tenant_id=t 1  stop")
    assert "1 task: 1 'deaf' (the task, to look: the request was delivered, never observed)" in row
    (line,) = [line for line in system.run("ps").stdout.splitlines() if "in progress" in line]
    assert line.startswith(
        "1 stop in progress: 1 of [kind=compaction tenant_id=t 1] waits for 1 task since "
    )
    (stop_row,) = system.json("ps")["stops"]
    assert (stop_row["stop_id"], stop_row["remaining"]) == (1, 1)

    (system.folder / "release").touch()
    system.until("the end", lambda: system.json("ps", "--closed")["closed"] == [])
    assert system.json("ps", "--state", "ended")["tasks"][0]["outcome"] == "completed"
    system.end(process, signal.SIGTERM)


def test_history_shows_tasks_and_stops_newest_last(system: CommandSystem) -> None:
    process = system.up()
    assert system.run("history").stdout == "nothing has ended\n"
    assert system.json("history") == {"tasks": [], "stops": []}
    labels = ("--kind", "compaction", "--tenant")
    system.run("spawn", "work:add", "1", *labels, "t1", "--wait")
    system.run("spawn", "work:fail", *labels, "t2", "--wait", code=1)
    mark = json.dumps(str(system.folder / "mark"))
    system.run("spawn", "work:until_asked", mark, *labels, "t1")
    system.until_exists("mark")
    system.run("shutdown", "--tenant", "t1", "--reason", "to be seen", "--keep-closed")

    header, *rows = system.run("history").stdout.splitlines()
    assert header.split() == [
        "ENDED",
        "WHAT",
        "KIND",
        "NAME",
        "TENANT",
        "HOW",
        "TOOK",
        "REASON",
        "BY",
    ]
    assert [re.split(r"  +", row)[1] for row in rows] == [
        "task 1.1",
        "task 2.1",
        "task 3.1",
        "stop 1",
    ]
    assert "completed RETURNED" in rows[0]
    assert "failed RETURNED" in rows[1]
    assert "[tenant_id=t1]" in rows[3]
    assert "complete: 1 task ended (1 completed), kept closed" in rows[3]
    assert "to be seen" in rows[3]
    assert re.search(r"process \d+ on ", rows[3])

    found = system.json("history", "--tenant", "t1")
    assert [task["id"] for task in found["tasks"]] == [1, 3]
    (stop,) = found["stops"]
    assert (stop["scope"], stop["reason"], stop["keep_closed"]) == (
        "tenant_id=t1",
        "to be seen",
        True,
    )
    assert (stop["outcomes"], stop["evidence"]) == ({"completed": 1}, {"RETURNED": 1})
    assert system.json("history", "--tenant", "t2")["stops"] == []
    assert list(system.json("history", "--stops")) == ["stops"]
    newest = system.json("history", "--limit", "2")
    assert [len(newest["tasks"]), len(newest["stops"])] == [1, 1]
    system.run("history", "--limit", "0", code=2)
    system.run("history", "--kind", "compacton", code=1)
    system.end(process, signal.SIGTERM)


def test_events_are_one_per_line(system: CommandSystem) -> None:
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


def test_events_say_that_some_may_be_missing_once_a_broker_was_killed(
    system: CommandSystem,
) -> None:
    process = system.up("--json")
    broker_pid = json.loads(system.text("out"))["broker_pid"]
    events = [system.start("events", "--json"), system.start("events")]

    def events_seen() -> bool:
        system.run("spawn", "work:add", "1", "--kind", "compaction", "--wait")
        return bool(system.text("out", 1) and system.text("out", 2))

    system.until("events", events_seen)
    os.kill(broker_pid, signal.SIGKILL)
    system.until("the next one", lambda: "the broker is back: pid" in system.text())
    system.until("the mark", lambda: '"missed"' in system.text("out", 1))
    system.until("the mark", lambda: " missed " in system.text("out", 2))
    told = [json.loads(line) for line in system.text("out", 1).splitlines()]
    (missed,) = [event for event in told if event["type"] == "missed"]
    assert (missed["task_id"], missed["data"]["count"]) == (None, None)
    line = next(line for line in system.text("out", 2).splitlines() if " missed " in line)
    assert line.endswith(" missed text=the broker was out of reach: some events may be missing")
    for each in events:
        each.send_signal(signal.SIGINT)
        assert each.wait(30) == 0
    system.end(process, signal.SIGTERM)


def test_verbs_that_wait_say_that_no_broker_answers_and_that_one_does_again(
    system: CommandSystem,
) -> None:
    process = system.up("--json")
    marks = [json.dumps(str(system.folder / name)) for name in ("mark", "release")]
    waits = system.start("spawn", "work:deaf", *marks, "--kind", "compaction", "--wait")
    system.until_exists("mark")
    stops = system.start("shutdown", "--kind", "compaction", "--grace", "inf")
    system.until("the stop", lambda: "waiting for 1 task" in system.text("err", 2))
    events = system.start("events")
    documents = system.start("events", "--json")
    system.until("them to be there", lambda: system.json("top")["statistics"]["sessions"] >= 5)
    process.send_signal(signal.SIGSTOP)  # it starts no other one for now
    os.kill(json.loads(system.text("out"))["broker_pid"], signal.SIGKILL)
    line = f"no broker answers at ipc://{system.folder}/q; still waiting for it\n"
    system.until("the lines", lambda: all(line in system.text("err", each) for each in (1, 2, 3)))
    process.send_signal(signal.SIGCONT)
    again = "the broker answers again\n"
    system.until("its return", lambda: system.text("err", 3) == line + again)
    (system.folder / "release").touch()
    assert waits.wait(30) == 0, system.text("err", 1)
    assert stops.wait(30) == 0, system.text("err", 2)
    for each in (events, documents):
        each.send_signal(signal.SIGINT)
        assert each.wait(30) == 0
    assert system.text("err", 4) == ""
    system.end(process, signal.SIGTERM)


# --- processes


def test_ctrl_c_in_a_terminal_leaves_nothing_behind(run_folder: Path) -> None:
    """SIGINT to the whole group while tasks run, one of them deaf, some with children."""
    system = CommandSystem(
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


def test_sigquit_leaves_nothing_behind(system: CommandSystem) -> None:
    process = system.up()
    mark = json.dumps(str(system.folder / "mark"))
    system.run("spawn", "work:until_asked", mark, "--kind", "compaction")
    system.until_exists("mark")
    system.end(process, signal.SIGQUIT, code=1)


def test_a_killed_broker_is_started_again_and_the_end_leaves_nothing(system: CommandSystem) -> None:
    process = system.up("--json")
    first = json.loads(system.text("out"))["broker_pid"]
    os.kill(first, signal.SIGKILL)
    system.until("the next one", lambda: "the broker is back: pid" in system.text())
    assert f"the broker (pid {first}) died (killed by SIGKILL); starting it again" in system.text()
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.end(process, signal.SIGTERM)
    assert json.loads(system.text("out"))["broker_pid"] == first  # it is announced once


def test_a_killed_supervisor_is_replaced_and_its_tasks_end_as_crashed(
    system: CommandSystem,
) -> None:
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


def test_a_failed_task_that_is_marked_stops_the_system(system: CommandSystem) -> None:
    process = system.up()
    system.run("spawn", "work:fail", "--kind", "compaction", "--shutdown-process-on-error")
    system.assert_ended(process, 1)
    assert "because a task marked shutdown_process_on_error failed" in system.text()


def test_a_second_system_is_refused_before_it_starts_anything(system: CommandSystem) -> None:
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
    assert not (folder / "state2").exists()
    assert system.json("ps")["runtimes"]["background"]["processes"] <= 1
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.end(process, signal.SIGTERM)


def test_broker_and_pool_start_one_by_one(system: CommandSystem) -> None:
    pool = system.start("pool", "background")  # first: it waits for its broker
    missing = f"no broker answers at ipc://{system.folder}/q; waiting for it\n"
    system.until("the line", lambda: missing in system.text("err", 0))
    broker = system.start("broker")
    assert system.run("spawn", "work:add", "2", "--kind", "compaction", "--wait").stdout == "3\n"
    system.until("the line", lambda: "quiesce is up" in system.text("err", 0))
    assert system.text("err", 0).count(missing) == 1
    pool.send_signal(signal.SIGINT)
    assert pool.wait(30) == 0, system.text("err", 0)
    assert system.json("ps")["runtimes"]["background"]["processes"] == 0
    system.end(broker, signal.SIGINT)


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
    assert [counted(n, "task") for n in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
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
