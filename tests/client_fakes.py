"""A broker played by the test: two ROUTER sockets in a thread, scripted answers, everything
recorded."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import zmq

from quiesce.client.steps import CONTROL, DATA
from quiesce.protocol import PROTOCOL_VERSION, from_client, to_client
from quiesce.protocol.addresses import endpoints
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.runs import as_received
from quiesce.registry.ids import Attempt, SpawnNumber, TaskId
from quiesce.registry.rows import ResultRow, SpawnAnswer, StoppedRow, TaskRow

M = TypeVar("M", bound=tuple[Any, ...])
DEADLINE = 10.0


class FakeBroker:
    """Serves one client. Answers Hello, Heartbeat, and what `script` or `Done` covers; the rest by
    hand."""

    def __init__(self, address: str, *, epoch: int = 1, known: bool = False) -> None:
        self.address = address
        self.epoch = epoch
        self.known = known
        self.version = PROTOCOL_VERSION
        #: Answers by type of message; types in `mute` get none.
        self.script: dict[type, Callable[[Any], tuple[Any, ...]]] = {}
        self.mute: set[type] = set()
        self.hellos: list[from_client.Hello] = []
        self._got: list[tuple[Any, ...]] = []
        self._taken: set[int] = set()
        self._news = threading.Condition()
        self._out: deque[tuple[str, list[bytes]]] = deque()
        self._peers: dict[str, bytes] = {}
        self._sessions: set[bytes] = set()
        self._stopping = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-broker")
        self._thread.start()
        assert self._started.wait(DEADLINE)

    def __enter__(self) -> "FakeBroker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(DEADLINE)

    # --- from the test -----------------------------------------------------------------------

    def take(self, kind: type[M]) -> M:
        """The next message of this type that no `take` has given before."""

        def find() -> bool:
            return any(type(m) is kind and i not in self._taken for i, m in enumerate(self._got))

        with self._news:
            assert self._news.wait_for(find, DEADLINE), f"no {kind.__name__} in {self._got}"
            for index, message in enumerate(self._got):
                if type(message) is kind and index not in self._taken:
                    self._taken.add(index)
                    return message
        raise AssertionError

    def count(self, kind: type) -> int:
        with self._news:
            return sum(type(message) is kind for message in self._got)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for what has no message to tell it."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def say(self, channel: str, message: tuple[Any, ...]) -> None:
        self.say_frames(channel, encode(message))

    def say_frames(self, channel: str, frames: list[bytes]) -> None:
        self._out.append((channel, frames))

    def _has(self, number: int) -> bool:
        return any(
            any(row.number == number for row in message.rows)
            if isinstance(message, from_client.Spawn)
            else isinstance(message, from_client.SpawnMany)
            and message.common.number <= number < message.common.number + len(message.arguments)
            for message in self._got
        )

    def _wait_for(self, number: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self._has(number), DEADLINE), f"no spawn {number}"

    def answer(self, number: int, task_id: int) -> None:
        self._wait_for(number)
        row = SpawnAnswer(SpawnNumber(number), TaskId(task_id), None, "")
        self.say(DATA, to_client.SpawnAnswers([row]))

    def refuse(self, number: int, error: str, text: str) -> None:
        self.refuse_all(error, text, numbers=[number])

    def refuse_all(self, error: str, text: str, *, numbers: Iterable[int]) -> None:
        rows = []
        for number in numbers:
            self._wait_for(number)
            rows.append(SpawnAnswer(SpawnNumber(number), TaskId(0), error, text))
        self.say(DATA, to_client.SpawnAnswers(rows))

    def answer_all(self, count: int = 0) -> None:
        """Each spawn gets its number as task id; waits for `count` of them first."""
        if count:
            self._wait_for(count)
        with self._news:
            spawns = [m for m in self._got if isinstance(m, from_client.Spawn)]
        numbers = sorted({row.number for message in spawns for row in message.rows})
        rows = [SpawnAnswer(number, TaskId(number), None, "") for number in numbers]
        self.say(DATA, to_client.SpawnAnswers(rows))

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        where = endpoints(self.address)
        assert where.folder is not None
        folder = Path(where.folder)
        folder.mkdir(exist_ok=True)
        decoder = Decoder(from_client.MESSAGES)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sockets = {CONTROL: context.socket(zmq.ROUTER), DATA: context.socket(zmq.ROUTER)}
        poller = zmq.Poller()
        for channel, socket in sockets.items():
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(where.control if channel == CONTROL else where.data)
            poller.register(socket, zmq.POLLIN)
        self._started.set()
        while not self._stopping:
            ready = dict(poller.poll(2))
            while self._out and self._out[0][0] in self._peers and not self._stopping:
                channel, frames = self._out.popleft()
                sockets[channel].send_multipart([self._peers[channel], *frames])
            for channel, socket in sockets.items():
                if socket not in ready:
                    continue
                peer, *received = socket.recv_multipart()
                message = as_received(decoder.decode(received))
                known_peer = self._peers.get(channel) == peer
                if isinstance(message, from_client.Hello):
                    self._peers[channel] = peer
                    known_peer = True
                with self._news:
                    self._got.append(message)
                    self._news.notify_all()
                if not known_peer:
                    answer: tuple[Any, ...] | None = to_client.HelloWanted(self.epoch)
                else:
                    answer = self._answer(message)
                if answer is not None:
                    socket.send_multipart([peer, *encode(answer)])
        for socket in sockets.values():
            socket.close()
        context.term()
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()

    def _answer(self, message: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if isinstance(message, from_client.Hello):
            self.hellos.append(message)
            known = self.known or message.session in self._sessions
            self._sessions.add(message.session)
            return to_client.Welcome(self.version, self.epoch, known, 64_000_000)
        if type(message) in self.mute:
            return None
        if isinstance(message, from_client.Heartbeat):
            return to_client.Alive(self.epoch)
        if type(message) in self.script:
            return self.script[type(message)](message)
        if isinstance(
            message,
            from_client.Release
            | from_client.Reopen
            | from_client.Subscribe
            | from_client.Unsubscribe,
        ):
            return to_client.Done(message.request)
        return None


def ended(
    task_id: int,
    *,
    outcome: str = "completed",
    exit_status: int | None = None,
    text: str = "",
    result: bytes = b"",
) -> ResultRow:
    return ResultRow(TaskId(task_id), Attempt(1), outcome, "RETURNED", exit_status, text, result)


def stopped_row(task_id: int, waiting_for: str = "") -> StoppedRow:
    return StoppedRow(
        TaskId(task_id), Attempt(1), "compaction", "work", "background", "t", None,
        "cancelled", "RETURNED", None, 1.0, 2.0, 3.0, 4.0, waiting_for,
    )  # fmt: skip


def stop_report(
    request: int,
    *,
    stop_id: int = 1,
    tasks: Iterable[int] = (),
    remaining: Iterable[int] = (),
    timed_out: bool = False,
    waiting_for: str = "",
) -> to_client.StopReport:
    return to_client.StopReport(
        request,
        stop_id,
        timed_out,
        1.0,
        4.0,
        [stopped_row(task) for task in tasks],
        [],
        [],
        [stopped_row(task, waiting_for) for task in remaining],
    )


def task_row(task_id: int) -> TaskRow:
    return TaskRow(
        TaskId(task_id), Attempt(1), "compaction", "work", "background", None, None, "running",
        False, False, None, None, None, "", 1.0, 2.0, None, None, None, "here", 5, "",
    )  # fmt: skip
