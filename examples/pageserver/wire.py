"""The page service's protocol, and a client of it.

A message is two lengths, a JSON object and bytes. The first request on a connection names the
tenant and the timeline; each further one asks for a page of a version:

    {"tenant": …, "timeline": …}  -> {"status": "ok", "versions": [3, 4, 5], "sizes": [n, n, n]}
    {"version": 4, "page": 7}     -> {"status": "ok"} and the page

Any answer may carry "downloads": the ids of the download tasks that it had to wait for.
"""

import json
import select
import socket
import struct
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

_LENGTHS = struct.Struct(">II")
_MAX_HEADER = 1 << 16
_MAX_PAYLOAD = 1 << 20
#: Few enough that the requests fit in the socket's buffer while the answers are not yet read.
_BATCH = 32


class Status(StrEnum):
    """What became of a request."""

    OK = "ok"
    #: The version has not arrived yet.
    NOT_YET = "not-yet"
    #: The version was dropped by the garbage collector.
    COLLECTED = "collected"
    #: There is no such tenant or timeline here.
    UNKNOWN = "unknown"
    #: The tenant, or the whole server, is stopping.
    STOPPING = "stopping"
    #: The server could not answer; "error" says why.
    ERROR = "error"


class Message(NamedTuple):
    """One message: `header` is its JSON object."""

    header: dict[str, Any]
    payload: bytes = b""


class StopAskedError(Exception):
    """The descriptor to watch became readable before a message was complete."""


class ConnectionBrokenError(Exception):
    """The other side is gone, or talks nonsense."""


class Channel:
    """Sends and receives messages on a connected socket, which it owns. Not thread-safe."""

    def __init__(self, connection: socket.socket, timeout: float = 30.0) -> None:
        self._socket = connection
        self._timeout = timeout
        self._socket.settimeout(timeout)
        self._buffer = bytearray()

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send one message. Raises ConnectionBrokenError."""
        text = json.dumps(header).encode()
        try:
            self._socket.sendall(_LENGTHS.pack(len(text), len(payload)) + text + payload)
        except OSError as error:
            raise ConnectionBrokenError(f"nothing could be sent: {error}") from error

    def receive(self, watch: int | None = None) -> Message | None:
        """Return the next message, or None if the other side has closed the connection between
        two.

        With `watch`, a descriptor, it waits for as long as it takes, and raises StopAskedError
        when that becomes readable. Without, it waits up to the timeout. Raises
        ConnectionBrokenError.
        """
        while (message := self._parse()) is None:
            if watch is not None:
                self._wait(watch)
            try:
                received = self._socket.recv(256 * 1024)
            except OSError as error:
                raise ConnectionBrokenError(f"nothing could be received: {error}") from error
            if not received:
                if self._buffer:
                    raise ConnectionBrokenError("the connection ended inside a message")
                return None
            self._buffer += received
        return message

    def _wait(self, watch: int) -> None:
        # poll, since select() cannot take descriptors above 1023
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(watch, select.POLLIN)
        if any(descriptor == watch for descriptor, _ in poller.poll()):
            raise StopAskedError

    def _parse(self) -> Message | None:
        if len(self._buffer) < _LENGTHS.size:
            return None
        header_length, payload_length = _LENGTHS.unpack_from(self._buffer)
        if header_length > _MAX_HEADER or payload_length > _MAX_PAYLOAD:
            raise ConnectionBrokenError("a message is larger than any of this protocol")
        start = _LENGTHS.size + header_length
        end = start + payload_length
        if len(self._buffer) < end:
            return None
        try:
            header = json.loads(self._buffer[_LENGTHS.size : start])
        except ValueError as error:
            raise ConnectionBrokenError(f"a message is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise ConnectionBrokenError("a message is no JSON object")
        payload = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return Message(header, payload)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class PageClient:
    """A connection to the page service for one timeline. A context manager.

    `greeting` is the answer to the first request. Raises ConnectionBrokenError where the service
    is not there, or went away.
    """

    def __init__(self, address: Path, tenant: str, timeline: str, timeout: float = 30.0) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(str(address))
        except OSError as error:
            connection.close()
            raise ConnectionBrokenError(f"{address}: {error}") from error
        self._channel = Channel(connection, timeout)
        try:
            self.greeting = self._ask({"tenant": tenant, "timeline": timeline}).header
        except BaseException:
            self._channel.close()
            raise

    @property
    def status(self) -> Status:
        """Whether the timeline can be read; only if OK, `versions` and pages can be asked for."""
        return Status(self.greeting["status"])

    @property
    def versions(self) -> dict[int, int]:
        """Return {version: size} of what could be read when the connection was made."""
        return dict(zip(self.greeting["versions"], self.greeting["sizes"], strict=True))

    def get_page(self, version: int, page: int) -> Message:
        """Ask for one page."""
        return self._ask({"version": version, "page": page})

    def get_pages(self, version: int, pages: range) -> list[Message]:
        """Ask for many pages, in batches whose requests are sent before their answers are read."""
        answers = []
        for start in range(0, len(pages), _BATCH):
            batch = pages[start : start + _BATCH]
            for page in batch:
                self._channel.send({"version": version, "page": page})
            answers += [self._answer() for _ in batch]
        return answers

    def _ask(self, header: dict[str, Any]) -> Message:
        self._channel.send(header)
        return self._answer()

    def _answer(self) -> Message:
        answer = self._channel.receive()
        if answer is None:
            raise ConnectionBrokenError("the page service closed the connection")
        return answer

    def close(self) -> None:
        """Close the connection, which ends its handler."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
