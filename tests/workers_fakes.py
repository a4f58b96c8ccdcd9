"""A broker made by hand, for tests of the pool side: real sockets, real processes, and no opinion of its own.

It welcomes whoever says hello, takes ends and exits at once (unless told not to), and records the rest. Nothing
happens but in `pump`, so a test sees each message in its order.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from quiesce.protocol import (
    PROTOCOL_VERSION,
    from_supervisor,
    from_worker,
    to_supervisor,
    to_worker,
)
from quiesce.protocol.callables import (
    pack_arguments,
    pack_function,
    unpack_exception,
    unpack_value,
)
from quiesce.protocol.codec import Decoder, encode
from quiesce.protocol.frames import Frame, Payload, as_payload, payload_bytes
from quiesce.protocol.runs import as_received
from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.rows import AssignRow, EndedRow
from quiesce.workers.settings import PoolSettings

PATIENCE = 15.0
#: Longer than any test, since the broker answers only while a test waits for something.
LEASE = 600.0
EPOCH = 3
Key = tuple[int, int]


class Peer:
    """One worker as the broker knows it."""

    def __init__(self, hello: from_worker.Hello, incarnation: int, control: bytes) -> None:
        self.hello = hello
        self.incarnation = incarnation
        self.control = control
        self.data = b""
        self.last_assign = 0


class FakeBroker:
    """Both endpoints."""

    def __init__(self, folder: Path, lease: float = LEASE) -> None:
        self.lease = lease
        #: Whether it answers Renew. Its welcome grants a lease, too.
        self.grants = True
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.folder = folder
        self.control = self.context.socket(zmq.ROUTER)
        self.data = self.context.socket(zmq.ROUTER)
        for socket, name in ((self.control, "control"), (self.data, "data")):
            socket.linger = 0
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.bind(self.address(name))
        self._decoder = Decoder([*from_worker.MESSAGES, *from_supervisor.MESSAGES])
        self.epoch = EPOCH
        self.take_ends = True
        self.take_exits = True
        #: Whether it assigns again what is given back.
        self.assigns_again = False
        self.welcome = True
        self.peers: dict[int, Peer] = {}
        self.supervisor = b""
        self.supervisor_hellos: list[from_supervisor.Hello] = []
        self.renewals: list[from_supervisor.Renew] = []
        #: The newest request of the supervisor that was granted, on its CLOCK_BOOTTIME.
        self.granted_at = 0.0
        self.last_incarnation = 100
        self.last_task = 0
        self.last_request = 0
        self.where: dict[Key, Peer] = {}
        self.rows: dict[Key, AssignRow] = {}
        #: Everything that came, in its order.
        self.log: list[Any] = []
        self.begun: list[Key] = []
        self.ended: dict[Key, EndedRow] = {}
        self.exits: dict[int, from_supervisor.WorkerExitedRow] = {}

    def address(self, name: str) -> str:
        return f"ipc://{self.folder}/{name}"

    def close(self) -> None:
        for socket in (self.control, self.data):
            socket.close(0)
        self.context.term()

    # --- what comes -------------------------------------------------------------------------------

    def pump(self, timeout: float = 0.02) -> None:
        poller = zmq.Poller()
        poller.register(self.control, zmq.POLLIN)
        poller.register(self.data, zmq.POLLIN)
        for socket, _ in poller.poll(int(timeout * 1000)):
            sender, *frames = socket.recv_multipart()
            message = as_received(self._decoder.decode(frames))
            self.log.append(message)
            self._on(sender, message)

    def _on(self, sender: bytes, message: Any) -> None:
        match message:
            case from_supervisor.Hello():
                self.supervisor = sender
                self.supervisor_hellos.append(message)
                if self.welcome:
                    self.granted_at = message.sent_at
                    self.tell(
                        self.control,
                        sender,
                        to_supervisor.Registered(
                            PROTOCOL_VERSION, self.epoch, 7, message.sent_at, self.lease
                        ),
                    )
            case from_supervisor.Renew():
                self.renewals.append(message)
                if self.grants:
                    self.granted_at = message.sent_at
                    grant = to_supervisor.Grant(self.epoch, message.sent_at, self.lease)
                    self.tell(self.control, sender, grant)
            case from_supervisor.WorkerExited():
                self.exits[message.row.serial] = message.row
                if self.take_exits:
                    self.tell(self.control, sender, to_supervisor.ExitTaken(message.row.serial))
            case from_worker.Hello():
                if self.welcome:
                    self._on_worker_hello(sender, message)
            case from_worker.Attach():
                self.peers[message.incarnation].data = sender
            case from_worker.Begun():
                self.begun += [(task, attempt) for task, attempt, _ in message.rows]
            case from_worker.Ended():
                keys: list[AttemptKey] = []
                for row in message.rows:
                    self.ended[(row.task_id, row.attempt)] = row
                    keys.append((row.task_id, row.attempt))
                if self.take_ends:
                    self.tell(self.data, sender, to_worker.EndedTaken(keys))
            case from_worker.GivenBack(rows) if self.assigns_again:
                self.tell(self.data, sender, to_worker.GivenBackTaken(rows))
                for task, attempt, _ in rows:
                    peer = self.where[(task, attempt)]
                    peer.last_assign += 1
                    given = self.rows[(task, attempt)]
                    self.assign(peer, given._replace(assign_number=peer.last_assign))

    def _on_worker_hello(self, sender: bytes, hello: from_worker.Hello) -> None:
        known = self.peers.get(hello.incarnation)
        if known is None:
            self.last_incarnation += 1
            known = Peer(hello, self.last_incarnation, sender)
            self.peers[known.incarnation] = known
        known.control, known.hello = sender, hello
        self.tell(
            self.control,
            sender,
            to_worker.Registered(PROTOCOL_VERSION, self.epoch, known.incarnation, 64 * 2**20),
        )

    # --- what goes --------------------------------------------------------------------------------

    def tell(self, socket: "zmq.Socket[bytes]", to: bytes, message: Any) -> None:
        try:
            socket.send_multipart([to, *encode(message)])
        except zmq.ZMQError as error:
            # A replacement that was just being started when its pool was told to end.
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def row(
        self, peer: Peer, fn: Callable[..., Any], *args: Any, fatal: bool = False, **kwargs: Any
    ) -> AssignRow:
        """The next assignment of a worker."""
        self.last_task += 1
        peer.last_assign += 1
        row = AssignRow(
            peer.last_assign,
            TaskId(self.last_task),
            Attempt(1),
            "compaction",
            fn.__name__,
            "tenant-a",
            "timeline-b",
            fatal,
            1000.0,
            as_payload(pack_function(fn)),
            as_payload(pack_arguments(args, kwargs)),
        )
        self.where[(row.task_id, row.attempt)] = peer
        self.rows[(row.task_id, row.attempt)] = row
        return row

    def assign(self, peer: Peer, *rows: AssignRow) -> None:
        self.tell(self.data, peer.data, to_worker.Assign(self.epoch, list(rows)))

    def stop(self, *keys: Key, last_assign: int | None = None, reason: str = "why not") -> None:
        for key in keys:
            peer = self.where[key]
            last = peer.last_assign if last_assign is None else last_assign
            order = to_worker.StopOrder(*key, last, reason)
            self.tell(self.control, peer.control, to_worker.Stop(self.epoch, [order]))

    def force(self, key: Key) -> None:
        self.tell(self.control, self.where[key].control, to_worker.Force(self.epoch, *key))

    def flag(self, key: Key) -> None:
        row = to_supervisor.FlagRow(self.where[key].hello.serial, *key)
        self.tell(self.control, self.supervisor, to_supervisor.Flag(self.epoch, [row]))

    def kill(self, key: Key, *spared: Key) -> None:
        order = to_supervisor.Kill(self.epoch, self.where[key].hello.serial, *key, list(spared))
        self.tell(self.control, self.supervisor, order)

    def stacks(self, *keys: Key) -> list[str]:
        self.last_request += 1
        peer = self.where[keys[0]]
        self.tell(self.control, peer.control, to_worker.StacksWanted(self.last_request, list(keys)))
        wanted = self.last_request
        message = self.await_message(from_worker.Stacks, lambda each: each.request == wanted)
        return [text for row in message.rows for text in row[2]]

    # --- what tests wait for ----------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while True:
            found = condition()
            if found:
                return found
            self.pump()
            assert time.monotonic() < deadline, (
                f"waited for {what or condition}; log: {self.log[-20:]}"
            )

    def settle(self, seconds: float = 0.3) -> None:
        """Let time pass, to see that something does *not* happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.pump()

    def await_message(self, kind: type, fits: Callable[[Any], bool] = lambda each: True) -> Any:
        def found() -> Any:
            return next((each for each in self.log if type(each) is kind and fits(each)), None)

        return self.wait(found, kind.__qualname__)

    def await_peer(self, count: int = 1, patience: float = PATIENCE) -> Peer:
        """The newest worker that is attached, once there are so many of those that ever were."""

        def found() -> Any:
            ready = [peer for peer in self.peers.values() if peer.data]
            return ready[-1] if len(ready) >= count else None

        peer: Peer = self.wait(found, f"{count} attached workers", patience)
        return peer

    def await_end(self, key: Key) -> EndedRow:
        self.wait(lambda: key in self.ended, f"the end of {key}")
        return self.ended[key]

    def await_file(self, path: Path) -> str:
        self.wait(path.exists, str(path))
        return path.read_text(encoding="utf-8")

    def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Key:
        """Assign one task to the newest worker."""
        peer = self.await_peer()
        row = self.row(peer, fn, *args, **kwargs)
        self.assign(peer, row)
        return (row.task_id, row.attempt)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The result of one task."""
        row = self.await_end(self.run(fn, *args))
        assert row.outcome == "completed", row.text
        return value_of(row)


def value_of(row: EndedRow) -> Any:
    return unpack_value(_bytes(row.result))


def error_of(row: EndedRow) -> BaseException | None:
    return unpack_exception(_bytes(row.result))


def _bytes(payload: Any) -> bytes:
    assert isinstance(payload, (bytes, Frame))
    whole: Payload = payload
    return payload_bytes(whole)


class Pool:
    """A real supervisor process with its workers, and the broker that it talks to."""

    def __init__(
        self, folder: Path, lease: float = LEASE, *, by: Sequence[str] = (), **settings: Any
    ) -> None:
        """`by`: the command that runs the supervisor's."""
        self.folder = folder
        self.broker = FakeBroker(folder, lease)
        options: dict[str, Any] = {
            "runtime": "background",
            "address": "nowhere",
            "control": self.broker.address("control"),
            "data": self.broker.address("data"),
            "processes": 1,
            "slots": 4,
            "parent_pid": os.getpid(),
            "log_level": "DEBUG",
            "app_dir": str(folder),
            **settings,
        }
        self.settings = PoolSettings(**options)
        self.stderr = folder / "stderr"
        with self.stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [*by, sys.executable, "-m", "quiesce.workers.supervise"],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=[self.settings.table_fd] if self.settings.table_fd >= 0 else [],
            )
        assert self.process.stdin is not None
        self.process.stdin.write(self.settings.to_json().encode() + b"\n")
        self.process.stdin.close()

    def log(self) -> str:
        return self.stderr.read_text(encoding="utf-8")

    def end(self, grace: float = 0.5) -> int:
        """Exit, as the broker says it; the supervisor's exit status."""
        if self.process.poll() is None:
            broker = self.broker
            broker.wait(lambda: broker.supervisor, "the supervisor")
            broker.tell(broker.control, broker.supervisor, to_supervisor.Exit(broker.epoch, grace))
            broker.wait(lambda: self.process.poll() is not None, "the supervisor's end")
        return self.process.wait()

    def close(self) -> None:
        try:
            self.end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            self.broker.close()
