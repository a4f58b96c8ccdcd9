"""The bare parts: pyzmq and msgpack with next to no logic, in the places where quiesce has its processes.

    this driver (client) --DEALER/ROUTER-- router --ROUTER/DEALER-- two workers

It shows what the parts cost by themselves, and so the limit of what is built from them. A task is a number, a
name and pickled arguments; its end is the number and a pickled result, which the client finds by a dict. The router
forwards to the workers in turn; with `registry` it keeps a dict of all tasks, which is its only logic. There are no
acknowledgements, no journal, no scopes, no proof of anything; a worker that dies takes its tasks with it. A second
pair of sockets carries requests to stop to a thread of each worker, which sets an Event.

It is written in two ways. The plain one is what the guides of ZeroMQ show: poll, then one `recv_multipart` and one
`send_multipart`. The `tuned` one reads a socket until it is empty, frame by frame, which costs less for each
message. With `payloads` nothing is copied on its way; for small messages copies are cheaper. With `journal` the
router commits each message to SQLite before it goes on, so that none is lost if it dies.
"""

import itertools
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bodies
import driver
from waiting import until_written

#: Messages read from one socket before the others are looked at.
CAP = 256


def open_socket(context: Any, kind: int, folder: str, name: str, *, bind: bool = False) -> Any:
    """One of the router's sockets, or one that is connected to it; no limit on what it holds."""
    import zmq

    socket = context.socket(kind)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    if bind:
        socket.bind(f"ipc://{folder}/{name}")
    else:
        socket.connect(f"ipc://{folder}/{name}")
    return socket


def serve_sockets(handlers: dict[Any, Callable[[], None]], tuned: bool) -> None:
    """Call the handler of each socket that can be read, for ever."""
    import zmq

    poller = zmq.Poller()
    for socket in handlers:
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            handler = handlers[socket]
            handler()
            if tuned:
                for _ in range(CAP):
                    if not socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                        break
                    handler()


class Style:
    """How messages of few frames are received and sent."""

    def __init__(self, tuned: bool, payloads: bool) -> None:
        import zmq

        self.more = zmq.SNDMORE
        self.copy = not payloads
        self.receive = self.receive_tuned if tuned else self.receive_plainly
        self.send = self.send_tuned if tuned else self.send_plainly

    def receive_tuned(self, socket: Any, frames: int) -> Any:
        """All frames of a message, the last as it comes if nothing is to be copied."""
        return [socket.recv() for _ in range(frames - 1)] + [socket.recv(copy=self.copy)]

    def send_tuned(self, socket: Any, frames: list[Any]) -> None:
        """One message."""
        for frame in frames[:-1]:
            socket.send(frame, self.more)
        socket.send(frames[-1], copy=self.copy)

    def receive_plainly(self, socket: Any, frames: int) -> Any:
        """The same."""
        message = socket.recv_multipart(copy=self.copy)
        assert len(message) == frames
        return message if self.copy else [*map(bytes, message[:-1]), message[-1]]

    def send_plainly(self, socket: Any, frames: list[Any]) -> None:
        """The same."""
        socket.send_multipart(frames, copy=self.copy)


def contents(frame: Any) -> Any:
    """The bytes of a frame that may not have been copied."""
    return frame if isinstance(frame, bytes) else frame.buffer


def open_journal(folder: str) -> Callable[[bytes], object]:
    """What commits one message. Safe from the death of the process, as quiesce's `durability = "crash"`."""
    connection = sqlite3.connect(f"{folder}/journal.db", isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE messages (number INTEGER PRIMARY KEY, body BLOB)")
    return lambda body: connection.execute("INSERT INTO messages (body) VALUES (?)", (body,))


def route(folder: str, registry: bool, tuned: bool, payloads: bool, journal: bool) -> None:
    """The router, until it is killed."""
    import msgpack
    import zmq

    context = zmq.Context()
    style = Style(tuned, payloads)
    receive, send = style.receive, style.send
    front, back, stops, stoppers = (
        open_socket(context, zmq.ROUTER, folder, name, bind=True)
        for name in ("front", "back", "stops", "stoppers")
    )
    workers = [back.recv_multipart()[0] for _ in range(driver.WORKERS)]
    listeners = [stoppers.recv_multipart()[0] for _ in range(driver.WORKERS)]
    turn = itertools.cycle(workers)
    commit = open_journal(folder) if journal else None
    tasks: dict[int, str] = {}

    def from_client() -> None:
        client, body = receive(front, 2)
        if registry:
            tasks.update((number, name) for number, name, _ in msgpack.unpackb(body))
        if commit is not None:
            commit(body)
        send(back, [next(turn), client, body])

    def from_worker() -> None:
        _, client, body = receive(back, 3)
        if registry:
            for number, _ in msgpack.unpackb(body):
                del tasks[number]
        if commit is not None:
            commit(body)
        send(front, [client, body])

    def stop() -> None:
        stops.recv_multipart()
        for listener in listeners:
            stoppers.send_multipart([listener, b"stop"])

    serve_sockets({stops: stop, front: from_client, back: from_worker}, tuned)


class Worker:
    """Runs what comes in its main thread; another thread waits for requests to stop."""

    def __init__(self, folder: str, tuned: bool, payloads: bool) -> None:
        import zmq

        self.tuned = tuned
        self.style = Style(tuned, payloads)
        self.stopping = threading.Event()
        self.functions: dict[str, Callable[..., Any]] = {
            "noop": bodies.noop,
            "echo": bodies.echo,
            "asleep": self.asleep,
            "busy": self.busy,
            "swallow": bodies.swallow,
        }
        self.context = zmq.Context()
        self.tasks = open_socket(self.context, zmq.DEALER, folder, "back")
        self.tasks.send(b"here")
        threading.Thread(target=self.listen, args=(folder,), daemon=True).start()

    def asleep(self, path: str) -> float:
        """Until it is stopped; gives the time at which it saw that."""
        self.stopping.clear()
        Path(path).write_text("running")
        self.stopping.wait()
        return driver.now()

    def busy(self, path: str) -> float:
        """The same in a pure-Python loop, which lets the other thread run only now and then."""
        self.stopping.clear()
        Path(path).write_text("running")
        stopping = self.stopping
        while not stopping.is_set():
            pass
        return driver.now()

    def listen(self, folder: str) -> None:
        """The other thread."""
        import zmq

        socket = open_socket(self.context, zmq.DEALER, folder, "stoppers")
        socket.send(b"here")
        while True:
            socket.recv()
            self.stopping.set()

    def run(self) -> None:
        """For ever."""
        import msgpack

        tasks, functions = self.tasks, self.functions
        receive, send = self.style.receive, self.style.send
        dumps, loads = pickle.dumps, pickle.loads

        def work() -> None:
            client, body = receive(tasks, 2)
            answers = [
                (number, dumps(functions[name](*loads(args)), 5))
                for number, name, args in msgpack.unpackb(contents(body))
            ]
            send(tasks, [client, msgpack.packb(answers)])

        serve_sockets({tasks: work}, self.tuned)


class Floor(driver.Peer):
    """The client."""

    package = "pyzmq"

    def __init__(
        self,
        registry: bool = False,
        tuned: bool = False,
        payloads: bool = False,
        journal: bool = False,
    ) -> None:
        self.router = {"registry": registry, "journal": journal}
        self.way = {"tuned": tuned, "payloads": payloads}

    def begin(self) -> None:
        import msgpack
        import zmq

        self.pack, self.unpack = msgpack.packb, msgpack.unpackb
        self.style = Style(**self.way)
        self.folder = tempfile.mkdtemp(prefix="f-")
        self.children = [self.child("route", **self.router)]
        self.children += [self.child("work") for _ in range(driver.WORKERS)]
        self.context = zmq.Context()
        self.socket = open_socket(self.context, zmq.DEALER, self.folder, "front")
        self.stops = open_socket(self.context, zmq.DEALER, self.folder, "stops")
        self.numbers = itertools.count()
        #: The pickled results, by number, until somebody asks for them.
        self.results: dict[int, bytes] = {}

    def child(self, role: str, **more: Any) -> "subprocess.Popen[bytes]":
        """One of the other processes."""
        given = json.dumps({"role": role, "folder": self.folder, **self.way, **more})
        return subprocess.Popen([sys.executable, __file__, given], stdin=subprocess.DEVNULL)

    def submit(self) -> Any:
        return self.send("noop", ())

    def send(self, name: str, args: tuple[Any, ...]) -> int:
        """One task as a message of its own."""
        number = next(self.numbers)
        self.style.send(self.socket, [self.pack([(number, name, pickle.dumps(args, 5))])])
        return number

    def result(self, pending: Any) -> Any:
        """Read until it is there."""
        results = self.results
        while pending not in results:
            (body,) = self.style.receive(self.socket, 1)
            results.update(self.unpack(contents(body)))
        return pickle.loads(results.pop(pending))

    def batch(self, n: int, chunk: int) -> dict[str, Any]:
        """`n` no-ops, `chunk` in each message there and back, until all results are in."""
        began = driver.now()
        pending = [next(self.numbers) for _ in range(n)]
        for start in range(0, n, chunk):
            tasks = [
                (number, "noop", pickle.dumps((), 5)) for number in pending[start : start + chunk]
            ]
            self.style.send(self.socket, [self.pack(tasks)])
        for number in pending:
            self.result(number)
        return {"seconds": driver.now() - began, "n": n}

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from the request to when a running task sees it.

        "payload": the task sleeps, and 64 MiB are on their way to the other worker. "neighbour": without them.
        """
        body = "busy" if how == "busy" else "asleep"
        value = bytes(64 * 1024 * 1024) if how == "payload" else b""
        times = []
        for number in range(n):
            path = os.path.join(self.folder, f"{how}-{number}")
            pending = self.send(body, (path,))
            until_written(path)
            large = self.send("swallow", (value,)) if value else None
            began = driver.now()
            self.stops.send(b"stop")
            times.append(self.result(pending) - began)
            if large is not None:
                self.result(large)
            os.unlink(path)
        return times

    def payload(self, size: int, n: int) -> list[float]:
        """Seconds for `size` bytes there and back, `n` times."""
        value, times = bytes(size), []
        for _ in range(n):
            began = driver.now()
            assert len(self.result(self.send("echo", (value,)))) == size
            times.append(driver.now() - began)
        return times

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        self.context.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """The driver, or with a role one of its children."""
    given = driver.options()
    role = given.pop("role", None)
    if role == "route":
        route(**given)
    elif role == "work":
        Worker(**given).run()
    else:
        driver.serve(Floor(**given))


if __name__ == "__main__":
    main()
