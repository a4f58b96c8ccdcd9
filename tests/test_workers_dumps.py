"""Dumps by the supervisor's own hand: what it does with processes that can't write their stacks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.protocol import from_supervisor, to_supervisor
from quiesce.workers import dumps
from quiesce.workers.dumps import LIMIT, LOOK_EVERY, SIGNAL, WITHIN, Dumps
from quiesce.workers.supervisor_effects import DumpWorker, Identity, Send, StartWorker
from quiesce.workers.supervisor_session import SupervisorSession
from quiesce.workers.table import Place, PoolTable
from system import until

BODY = """
import os, sys, threading, time
from quiesce.workers import dumps
from quiesce.workers.table import PoolTable
dumps.register(PoolTable.open(sys.argv[1]).place(0))
def down(n):
    return down(n - 1) if n else time.sleep(600)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=down, args=(60,), daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


class Process:
    """A process that has registered for dumps, with so many threads deep in Python."""

    def __init__(self, threads: int = 0, body: str = BODY) -> None:
        self.table = PoolTable.create(1)
        self.place: Place = self.table.place(0)
        where = f"/proc/{os.getpid()}/fd/{self.table.fd}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", body, where, str(threads)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.pid = self.process.pid
        self.dumps = Dumps()

    def ask(self, request: int = 1) -> list[from_supervisor.Dumped]:
        """Ask, and look until there is an answer."""
        now = time.monotonic()
        answers = self.dumps.begin(request, 7, self.pid, self.place, now)
        return answers or until(lambda: self.dumps.look(time.monotonic()), bool, 60.0)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.table.close()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.close()


def test_a_dump_is_whole_and_its_file_is_empty_afterwards(process: Process) -> None:
    for request in (1, 2, 3):
        (answer,) = process.ask(request)
        assert answer[:2] == (request, 7)
        assert answer.error == ""
        assert answer.text.count("in <module>") == 1
        assert answer.text.startswith(f"Thread 0x{process.pid:x} (most recent call first):")
        path = f"/proc/{process.pid}/fd/{process.place.dump}"
        assert os.stat(path).st_size == 0
    assert process.dumps.due() is None


def test_a_long_dump_is_whole_too_and_no_look_takes_long() -> None:
    process = Process(threads=60)
    try:
        longest = 0.0
        assert process.dumps.begin(1, 7, process.pid, process.place, 0.0) == []
        answers: list[from_supervisor.Dumped] = []
        while not answers and (due := process.dumps.due()) is not None:
            time.sleep(LOOK_EVERY)  # as long as the supervisor polls for
            before = time.thread_time()
            answers = process.dumps.look(due)
            longest = max(longest, time.thread_time() - before)
        (answer,) = answers
        assert answer.text.count("in down") == 60 * 61
        assert answer.text.count("Thread 0x") == 61
        assert answer.text.index("in <module>") < answer.text.index("in down")
        assert len(answer.text) < LIMIT
        assert longest < 0.05, f"{longest} s of the processor"
    finally:
        process.close()


def test_one_dump_answers_all_who_ask_meanwhile(process: Process) -> None:
    now = time.monotonic()
    for request in (1, 2):
        again = process.dumps.begin(request, 7, process.pid, process.place, now)
        assert again == []
    answers = process.ask(3)
    assert [answer.request for answer in answers] == [1, 2, 3]
    assert len({answer.text for answer in answers}) == 1


def test_why_there_is_no_dump_is_said(process: Process) -> None:
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: process.ask()[0].error, lambda error: "stopped" in error)
    assert process.ask()[0].error == f"process {pid} is stopped (SIGSTOP)"
    os.kill(pid, signal.SIGCONT)
    until(lambda: process.ask()[0].error, lambda error: not error)
    process.process.kill()
    until(lambda: process.ask()[0].error, lambda error: error == f"process {pid} has ended")


def test_a_process_that_dies_in_the_middle_is_said_to_have_ended(process: Process) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: process.ask()[0].error, bool)
    os.kill(process.pid, signal.SIGCONT)
    now = time.monotonic()
    assert process.dumps.begin(1, 7, process.pid, process.place, now) == []
    process.process.kill()
    process.process.wait()
    (answer,) = until(lambda: process.dumps.look(now + 0.5), bool)
    assert answer.error == f"process {process.pid} has ended" or "in <module>" in answer.text


def test_who_has_not_registered_gets_no_signal(process: Process) -> None:
    """Its default action would be the end of the process."""
    process.place.words[process.place._base + 3] = 0
    assert "is starting" in process.ask()[0].error
    process.place.set_dump(0)
    assert "is no longer the file for stacks" in process.ask()[0].error
    assert process.process.poll() is None


def test_threads_that_block_the_signal_are_named(process: Process) -> None:
    body = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG));"
    with subprocess.Popen(
        [sys.executable, "-c", body + BODY, f"/proc/{os.getpid()}/fd/{process.table.fd}", "0"],
        stdout=subprocess.PIPE,
    ) as deaf:
        try:
            assert deaf.stdout is not None
            assert deaf.stdout.readline() == b"ready\n"
            now = time.monotonic()
            assert process.dumps.begin(1, 8, deaf.pid, process.place, now) == []
            (answer,) = process.dumps.look(now + WITHIN)
            assert answer.text.startswith(f"Thread 0x{deaf.pid:x}, which blocks all signals (")
        finally:
            deaf.kill()
    assert SIGNAL != signal.SIGRTMAX - 3  # that of `interrupt`


BUSY = """
def tower(n):
    return tower(n - 1) if n else 0
there = threading.Barrier(4)
def spin(word=""):
    there.wait()
    print(word, end="", flush=True)
    while True:
        tower(20)
for _ in range(3):
    threading.Thread(target=spin, daemon=True).start()
spin("ready\\n")
"""


def test_a_busy_process_survives_its_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread writes its own frames: nobody reads what others change meanwhile."""
    # On a busy machine one of them, which all want the processor, may come to it late.
    monkeypatch.setattr(dumps, "WITHIN", 60.0)
    monkeypatch.setattr(dumps, "_PATIENCE", 30.0)
    process = Process(body=BODY[: BODY.index("def down")] + BUSY)
    try:
        for request in range(40):
            (answer,) = process.ask(request)
            assert answer.error == ""
            assert answer.text.count("Thread 0x") == 4
            assert answer.text.count("in spin") == 4
        assert process.process.poll() is None
    finally:
        process.close()


def test_the_session_passes_orders_on_and_knows_who_is_gone() -> None:
    identity = Identity(b"s" * 8, "background", 1, "here", "boot", processes=1, slots=4, places=2)
    session = SupervisorSession(identity)
    assert StartWorker(0, 1) in session.start(0.0)

    def order(epoch: int, serial: int) -> list[Any]:
        return session.receive(to_supervisor.Dump(epoch, 5, serial), 0.0)

    gone = from_supervisor.Dumped(5, 9, "", "worker 9 of runtime 'background' has ended")
    assert order(3, 1) == [DumpWorker(5, 1)]
    assert order(2, 1) == []
    assert order(3, 9) == [Send(gone)]
    session.worker_died(1, -9, True, 1.0)
    assert order(3, 1) == [Send(gone._replace(serial=1, error=gone.error.replace("9", "1")))]
