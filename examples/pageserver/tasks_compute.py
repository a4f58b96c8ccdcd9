"""Tasks of the compute-request runtime: the page service's listener and its handlers.

A handler may run in any process of the pool, so the listener cannot simply call it. It keeps the
accepted connection under a ticket, spawns the handler with that, and passes the connection's
descriptor to whoever comes to its second socket with the ticket.
"""

import contextlib
import selectors
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import quiesce
from quiesce import TaskKind
from quiesce.errors import (
    QuiesceError,
    ScopeClosedError,
    ShutdownRequested,
    TaskCancelledError,
)
from quiesce.examples.pageserver.names import COMPUTE
from quiesce.examples.pageserver.reader import (
    TimelineReader,
    VersionCollectedError,
    VersionUnknownError,
)
from quiesce.examples.pageserver.tasks_layers import read_page
from quiesce.examples.pageserver.tenant_paths import Work
from quiesce.examples.pageserver.timeline import Timeline
from quiesce.examples.pageserver.wire import (
    Channel,
    ConnectionBrokenError,
    Message,
    Status,
    StopAskedError,
)

_CLAIM_SECONDS = 20.0


def listen_for_pages(work: str) -> int:
    """libpq-endpoint-listener: accept connections, spawn a handler for each. Returns how many."""
    with _Listener(Work(Path(work))) as listener:
        return listener.run()


@dataclass(frozen=True)
class _Waiting:
    """An accepted connection that no handler has come for yet."""

    connection: socket.socket
    until: float


class _Listener:
    """The two sockets of the page service, and the connections between them."""

    def __init__(self, place: Work) -> None:
        self._place = place
        self._client = quiesce.current_client()
        self._waiting: dict[str, _Waiting] = {}
        self._accepted = 0
        self._closing = contextlib.ExitStack()
        self._selector = self._closing.enter_context(selectors.DefaultSelector())
        self._desk = self._bind(place.hand_over_socket)
        self._door = self._bind(place.pages_socket)

    def _bind(self, path: Path) -> socket.socket:
        # A listener that was killed leaves its socket's name behind.
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._closing.enter_context(listening)
        listening.bind(str(path))
        self._closing.callback(path.unlink, missing_ok=True)
        listening.listen(128)
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        return listening

    def run(self) -> int:
        """Serve until this task is asked to stop."""
        # The descriptor becomes readable when that happens, so one select watches all there is to
        # watch.
        stop = quiesce.shutdown_token().fileno()
        self._selector.register(stop, selectors.EVENT_READ)
        while not quiesce.is_shutdown_requested():
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._door:
                    self._accept()
                elif key.fileobj is self._desk:
                    self._greet_handler()
                elif isinstance(key.fileobj, socket.socket):
                    self._hand_over(key.fileobj)
            self._give_up()
        return self._accepted

    def _accept(self) -> None:
        try:
            connection, _ = self._door.accept()
        except BlockingIOError:
            return
        self._accepted += 1
        ticket = uuid.uuid4().hex
        self._waiting[ticket] = _Waiting(connection, time.monotonic() + _CLAIM_SECONDS)
        # Of no tenant yet: only the first request says whom the connection is about.
        self._client.spawn(
            COMPUTE, TaskKind.PAGE_REQUEST_HANDLER, serve_pages, str(self._place.root), ticket
        )

    def _greet_handler(self) -> None:
        with contextlib.suppress(BlockingIOError):
            handler, _ = self._desk.accept()
            handler.setblocking(False)
            self._selector.register(handler, selectors.EVENT_READ)

    def _hand_over(self, handler: socket.socket) -> None:
        self._selector.unregister(handler)
        with handler, contextlib.suppress(OSError):
            ticket = handler.recv(64).decode(errors="replace")
            waiting = self._waiting.pop(ticket, None)
            if waiting is not None:
                with waiting.connection:
                    socket.send_fds(handler, [b"+"], [waiting.connection.fileno()])

    def _give_up(self) -> None:
        """Close the connections whose handler never came: it died, or was refused.

        The client asks again.
        """
        now = time.monotonic()
        for ticket, waiting in list(self._waiting.items()):
            if waiting.until < now:
                self._waiting.pop(ticket).connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for waiting in self._waiting.values():
            waiting.connection.close()
        self._closing.close()


def _claim(place: Work, ticket: str) -> socket.socket | None:
    """Return the connection that this handler was spawned for, or None if it was given up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as desk:
        desk.settimeout(_CLAIM_SECONDS)
        try:
            desk.connect(str(place.hand_over_socket))
            desk.sendall(ticket.encode())
            _, descriptors, _, _ = socket.recv_fds(desk, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def serve_pages(work: str, ticket: str) -> int:
    """page-request-handler: answer the requests on one connection until either side ends it.

    Returns the number of pages served.
    """
    place = Work(Path(work))
    connection = _claim(place, ticket)
    if connection is None:
        return 0
    handler = _Handler(place, Channel(connection))
    try:
        handler.run()
    except ConnectionBrokenError:
        pass  # the client went away: nobody is left to be told
    except (StopAskedError, ScopeClosedError, ShutdownRequested):
        handler.say_stopping()
        quiesce.checkpoint()
    finally:
        handler.close()
    return handler.served


class _Handler:
    """One connection of the page service."""

    def __init__(self, place: Work, channel: Channel) -> None:
        self._place = place
        self._channel = channel
        self._stop = quiesce.shutdown_token().fileno()
        self.served = 0

    def run(self) -> None:
        greeting = self._next()
        if greeting is None:
            return
        tenant, timeline = greeting.header.get("tenant"), greeting.header.get("timeline")
        if not isinstance(tenant, str) or not isinstance(timeline, str):
            self._channel.send(
                {"status": Status.ERROR, "error": "name a tenant and a timeline first"}
            )
            return
        # Before any file of the tenant is opened: from here on, a stop of the tenant waits for
        # this task. If the tenant is closed already, this task is asked to stop right here.
        quiesce.associate_with(tenant, timeline)
        quiesce.checkpoint()
        try:
            description = self._place.read_tenant(tenant)
            if not description.active or timeline not in description.timelines:
                self._channel.send({"status": Status.UNKNOWN})
                return
            area = Timeline(self._place.timeline(tenant, timeline))
            with TimelineReader(area, description.settings.page_size) as reader:
                available = reader.available()
                sizes = [size for _, size in available.values()]
                self._channel.send({"status": Status.OK, "versions": [*available], "sizes": sizes})
                while (request := self._next()) is not None:
                    self._answer(reader, tenant, timeline, request)
        except FileNotFoundError:
            self._channel.send({"status": Status.UNKNOWN})

    def _next(self) -> Message | None:
        # The channel watches the token while it waits; a client that never pauses must not keep
        # us.
        quiesce.checkpoint()
        return self._channel.receive(watch=self._stop)

    def _answer(self, reader: TimelineReader, tenant: str, timeline: str, request: Message) -> None:
        header: dict[str, Any] = {"status": Status.OK}
        image = b""
        try:
            reader.refresh()
            image, waited = read_page(
                reader,
                int(request.header["version"]),
                int(request.header["page"]),
                str(self._place.root),
                tenant,
                timeline,
            )
            if waited:
                header["downloads"] = waited
            self.served += 1
        except VersionUnknownError:
            header["status"] = Status.NOT_YET
        except VersionCollectedError:
            header["status"] = Status.COLLECTED
        except (ScopeClosedError, TaskCancelledError):
            header["status"] = Status.STOPPING
        except (QuiesceError, IndexError, KeyError, ValueError) as error:
            # The last line: above it may be the traceback of a task.
            text = str(error).strip().rpartition("\n")[2]
            header |= {"status": Status.ERROR, "error": f"{type(error).__name__}: {text}"}
        self._channel.send(header, image)

    def say_stopping(self) -> None:
        """Tell the client why its connection ends, if it still listens."""
        with contextlib.suppress(ConnectionBrokenError):
            self._channel.send({"status": Status.STOPPING})

    def close(self) -> None:
        self._channel.close()
