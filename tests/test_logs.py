"""Logs for people and for programs: what each process says, and of whom."""

import json
import logging
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce import logs
from quiesce.broker.outgoing import about
from quiesce.logs import JsonFormatter
from quiesce.testing import bodies
from system import System, until

TALK = """
import logging, sys
import structlog
import quiesce

log = structlog.get_logger("talk")

def by_logging():
    logging.getLogger("some.library").warning("by logging\\nin two lines", extra={"size": 3})

def by_structlog():
    structlog.contextvars.bind_contextvars(request="r-1")
    log.warning("by structlog", name="x", size=4)
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("it broke")

def moved():
    quiesce.associate_with("other", None)
    logging.getLogger("talk").warning("moved")
    log.warning("moved, too")

def by_own_structlog():
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    quiesce.associate_with("third", None)
    structlog.get_logger().info("by their own")
"""


@pytest.fixture
def talk(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (run_folder / "talk.py").write_text(TALK)
    monkeypatch.syspath_prepend(run_folder)
    import talk  # type: ignore[import-not-found]  # it was written just now

    yield talk
    del sys.modules["talk"]


def said(system: System) -> list[dict[str, Any]]:
    """All lines; each is an object."""
    return [json.loads(line) for line in system.text().splitlines()]


def one(system: System, message: str) -> dict[str, Any]:
    """The line that says this."""

    def find() -> list[dict[str, Any]]:
        return [line for line in said(system) if line.get("message") == message]

    (found,) = until(find)
    return found


def test_json_says_everything_on_one_line(run_folder: Path, talk: Any) -> None:
    system = System(run_folder, broker='log_format = "json"\nmetrics = "127.0.0.1:0"')
    try:
        with system.client() as client:
            for body in (talk.by_logging, talk.by_structlog, talk.moved, talk.by_own_structlog):
                handle = client.spawn(
                    "compute-request", "compaction", body, tenant_id="acme", timeline_id="main"
                )
                handle.result(30)
            failing = client.spawn("compute-request", "compaction", bodies.fail)
            assert failing.exception(30) is not None
            killed = client.spawn("mgmt-request", "attach", bodies.leave_by, "sigkill")
            assert killed.exception(30) is not None
    finally:
        assert system.stop() == 0, system.text()

    lines = said(system)
    head = ["time", "level", "logger", "process", "pid", "message"]
    ours = [line for line in lines if "event" not in line]
    assert {line["logger"] for line in ours if line["process"] == "up"} == {"quiesce.up"}
    assert [line for line in ours if list(line)[:6] != head] == []
    who = {line["process"] for line in ours}
    assert {
        "up",
        "broker",
        "metrics",
        "worker of compute-request",
        "supervisor of background",
    } <= who

    task = {"kind": "compaction", "tenant_id": "acme", "timeline_id": "main", "attempt": 1}
    by_logging = one(system, "by logging\nin two lines")
    assert by_logging["logger"] == "some.library"
    assert by_logging["process"] == "worker of compute-request"
    assert by_logging["size"] == 3
    assert task.items() <= by_logging.items()

    by_structlog = one(system, "by structlog")
    assert by_structlog["task_id"] == by_logging["task_id"] + 1
    assert task.items() <= by_structlog.items()
    assert (by_structlog["name"], by_structlog["size"]) == ("x", 4)
    assert by_structlog["request"] == "r-1"
    assert not [name for name in by_structlog if name.endswith("_")]
    assert "ZeroDivisionError" in one(system, "it broke")["exception"]

    for message in ("moved", "moved, too"):
        moved = one(system, message)
        assert (moved["tenant_id"], "timeline_id" in moved) == ("other", False)

    (own,) = [line for line in lines if line.get("event") == "by their own"]
    assert (own["tenant_id"], own["kind"]) == ("third", "compaction")
    assert own["task_id"] == by_logging["task_id"] + 3

    (failed,) = [line for line in ours if "ValueError: on purpose" in line.get("exception", "")]
    assert (failed["level"], failed["task_id"]) == ("ERROR", failing.id)
    words = f"task {failing.id}.1 compaction 'fail' (tenant None, timeline None)"
    assert failed["message"] == f"{words} failed"
    assert failed["exception"].startswith("Traceback (most recent call last):")
    (crash,) = [line for line in ours if "ended with signal 9 while it ran" in line["message"]]
    assert (crash["process"], crash["task_id"], crash["attempt"]) == ("broker", killed.id, 1)
    (replaced,) = [line for line in ours if "and is replaced" in line["message"]]
    assert replaced["process"] == "supervisor of mgmt-request"
    assert (replaced["worker_pid"], replaced["exit_status"]) == (crash["worker_pid"], -9)


def test_for_people_structlog_says_the_task_too(run_folder: Path, talk: Any) -> None:
    system = System(run_folder)
    try:
        with system.client() as client:
            handle = client.spawn(
                "compute-request", "compaction", talk.by_structlog, tenant_id="acme", name="n"
            )
            handle.result(30)
            task_id = handle.id
    finally:
        assert system.stop() == 0, system.text()
    (line,) = [line for line in system.text().splitlines() if "[warning" in line]
    for part in (f"task_id={task_id}", "kind=compaction", "tenant_id=acme", "size=4"):
        assert part in line


def test_why_a_broker_can_not_start_is_json_too(run_folder: Path) -> None:
    (run_folder / "run").mkdir(mode=0o755)
    system = System(run_folder, broker='log_format = "json"')
    assert system.wait() == 1
    broker, *others = said(system)
    assert broker["level"] == "CRITICAL"
    assert broker["process"] == "broker"
    assert "must be yours alone" in broker["message"]
    assert [(line["process"], line["level"]) for line in others] == [("up", "ERROR")]
    (run_folder / "run").rmdir()


# --- one line


def record(message: str = "said", **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("some").makeRecord(
        "some", logging.INFO, __file__, 1, message, (), None, extra=extra
    )
    made.created = 1_000_000_000.25
    return made


def line(**extra: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(JsonFormatter("up").format(record(**extra)))
    return found


def test_a_line_has_a_head_and_what_is_known() -> None:
    found = line(quiesce_task_id=3, quiesce_tenant_id="", quiesce=" [task=3]", size=5)
    head = ["time", "level", "logger", "process", "pid", "message"]
    assert list(found) == [*head, "task_id", "size"]
    assert found["time"] == "2001-09-09T01:46:40.250Z"
    assert (found["process"], found["message"], found["size"]) == ("up", "said", 5)


def test_a_log_file_that_was_moved_away_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "log"
    handler = logs.handler(logs.CONSOLE, "broker", "%(message)s", str(path))
    handler.handle(record("one"))
    path.rename(folder / "log.1")
    handler.handle(record("two"))
    assert ((folder / "log.1").read_text(), path.read_text()) == ("one\n", "two\n")
    folder.rename(tmp_path / "old")
    handler.handle(record("homeless"))
    folder.mkdir()
    handler.handle(record("three"))
    handler.close()
    assert path.read_text() == "three\n"
    said, homeless = capsys.readouterr().err.splitlines()
    assert f"the log file {path} can't be written: No such file or directory. Its records" in said
    assert homeless == "homeless"


def test_what_a_log_file_does_not_take_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = logs.handler(logs.CONSOLE, "broker", "%(levelname)s %(message)s", "/dev/full")
    for n in range(100):
        handler.handle(record(f"record {n}"))
    handler.close()
    said, *records = capsys.readouterr().err.splitlines()
    assert said.startswith("ERROR the log file /dev/full can't be written: No space left on device")
    assert records == [f"INFO record {n}" for n in range(100)]


def test_a_log_file_that_can_be_written_again_has_each_record_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    handler = logs.handler(logs.CONSOLE, "broker", "%(message)s", str(path))
    handler.handle(record("one"))
    path.unlink()
    handler.handle(record("two"))
    handler.handle(record("three"))
    handler.close()
    assert path.read_text() == "two\nthree\n"
    assert capsys.readouterr().err.splitlines()[1:] == ["one"]


def test_a_record_that_can_not_be_formatted_is_shown_as_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = logs.handler(logs.CONSOLE, "broker", "%(message)s", "/dev/full")
    handler.handle(logging.LogRecord("some", logging.INFO, "", 1, "%d", ("x",), None))
    handler.close()
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_said_too(tmp_path: Path) -> None:
    logs.say("folder \udcff", logs.CONSOLE, "up", file=str(tmp_path / "log"))
    assert (tmp_path / "log").read_text().endswith(" INFO quiesce.up folder \\udcff\n")


def test_on_a_terminal_what_is_said_has_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as terminal, os.fdopen(theirs, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.say("all is well", logs.CONSOLE, "up")
        assert terminal.readline() == b"all is well\r\n"
        logs.say("all is well", logs.JSON, "up", logging.WARNING)
        assert json.loads(terminal.readline())["level"] == "WARNING"


def test_what_is_taken_gets_another_name() -> None:
    found = line(quiesce_kind="compaction", kind="mine", level="high", pid=-1)
    assert (found["kind"], found["kind_"]) == ("compaction", "mine")
    assert (found["level"], found["level_"]) == ("INFO", "high")
    assert found["pid_"] == -1


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, {("a", 1): 2}, b"\xff", float("inf"), "\ud800", "\x1b[31m"]
)
def test_any_value_makes_a_line(value: Any) -> None:
    text = JsonFormatter("up").format(record(value=value))
    assert "\n" not in text
    assert "\x1b" not in text
    assert "value" in json.loads(text)
    text.encode(errors="surrogatepass")


def test_a_circle_makes_a_line() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert line(value=circle)["value"] == "[[...]]"


def test_who_a_text_of_the_registry_is_about() -> None:
    assert about("task 3.2 gc 'task 9' failed; 2 retries left") == {
        "quiesce_task_id": 3,
        "quiesce_attempt": 2,
    }
    assert about("task 3 gc 'n' does not stop") == {"quiesce_task_id": 3}
    assert about("stop 7 of [tenant_id=x] is complete") == {"quiesce_stop_id": 7}
    assert about(
        "process 5 of runtime 'x' ended with signal 9 while it ran task 3.1 gc 'task 8.1'"
    ) == {
        "quiesce_worker_pid": 5,
        "quiesce_task_id": 3,
        "quiesce_attempt": 1,
    }
    assert about("the system stops: task 3 failed") == {}
