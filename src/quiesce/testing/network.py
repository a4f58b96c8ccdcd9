"""The network of a cluster: links that can be cut, as orders to the proxy process that all of them go through."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from quiesce.protocol.addresses import endpoints
from quiesce.testing.failures import ClusterError
from quiesce.testing.proxy import CHANNELS, TO_BROKER, TO_PEER

#: The two names beside those of runtimes.
BROKER: Final = "broker"
CLIENTS: Final = "clients"
#: Seconds for the proxy to obey.
_WITHIN: Final = 20.0


class LinkState(NamedTuple):
    """One link at one moment. `connections` go through; `waiting` ones have found a partition and wait for its end.

    `to_broker`, `to_peer`: bytes that have passed so far. `cuts`: connections that were broken.
    """

    connections: int
    waiting: int
    to_broker: int
    to_peer: int
    cuts: int


class Network:
    """The proxy process and its links: one for the clients, and one for each runtime."""

    def __init__(self, folder: Path, address: str, names: list[str], log: Path) -> None:
        """`address`: the broker's. The links get addresses of the same kind, ipc below `folder`."""
        self.addresses: dict[str, str] = {}
        self._names = names
        ours, its = socket.socketpair()
        with ours, its, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quiesce.testing.proxy"],
                stdin=its.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self._socket = ours.dup()
        self._socket.settimeout(_WITHIN)
        self._answers = self._socket.makefile("rb")
        try:
            for number, name in enumerate((CLIENTS, *names)):
                self._link(name, folder / f"n{number}", address)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the proxy."""
        return int(self._process.pid)

    def _link(self, name: str, folder: Path, target: str) -> None:
        to = endpoints(target)
        if to.folder is not None:
            folder.mkdir(mode=0o700)
        while True:
            address = f"ipc://{folder}" if to.folder is not None else free_tcp_address()
            at = endpoints(address)
            if {at.control, at.data} & {to.control, to.data}:
                continue  # the broker's, which it has not bound yet
            answer = self._order(
                order="link",
                name=name,
                listen={"control": at.control, "data": at.data},
                targets={"control": to.control, "data": to.data},
            )
            if "error" not in answer:
                self.addresses[name] = address
                return
            if to.folder is not None:
                raise ClusterError(f"the proxy can't listen at {address}: {answer['error']}")

    def _order(self, **order: Any) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ClusterError(f"the proxy (pid {self.pid}) does not answer: {error}") from None
        if not line:
            raise ClusterError(f"the proxy has ended with status {self._process.poll()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    # --- faults

    def partition(self, a: str, b: str, one_way: bool, channel: str | None) -> None:
        """See `Cluster.partition`."""
        self._set(a, b, one_way, channel, held=True)

    def delay(self, a: str, b: str, seconds: float, one_way: bool, channel: str | None) -> None:
        """See `Cluster.delay`."""
        self._set(a, b, one_way, channel, delay=float(seconds))

    def _set(self, a: str, b: str, one_way: bool, channel: str | None, **what: Any) -> None:
        name, direction = self._between(a, b)
        directions = [direction] if one_way else [TO_BROKER, TO_PEER]
        self._order(
            order="set", name=name, directions=directions, channels=_channels(channel), **what
        )

    def cut(self, a: str, b: str, after: int | None, channel: str | None) -> None:
        """See `Cluster.cut`."""
        name, direction = self._between(a, b)
        if after is not None and after < 1:
            raise ValueError(f"after is a number of bytes, 1 or more, not {after}")
        self._order(
            order="cut",
            name=name,
            directions=[direction],
            channels=_channels(channel),
            after=after,
        )

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """See `Cluster.heal`."""
        if a is None or b is None:
            names = [each for each in self.addresses if (a or b) in (None, each, BROKER)]
            if not names:
                raise ValueError(f"there is no link of {a or b!r}; there are: {self._known()}")
        else:
            names = [self._between(a, b)[0]]
        for name in names:
            self._order(order="heal", name=name)

    def state(self, a: str, b: str) -> LinkState:
        """See `Cluster.link`."""
        name, _ = self._between(a, b)
        return LinkState(**self._order(order="look", name=name))

    def _between(self, a: str, b: str) -> tuple[str, str]:
        """The name of the link, and the direction from a to b."""
        ends = {a, b} - {BROKER}
        if len(ends) == 1 and BROKER in (a, b):
            (name,) = ends
            if name in self.addresses:
                return name, TO_BROKER if b == BROKER else TO_PEER
        raise ValueError(
            f"there is no link between {a!r} and {b!r}: one end is 'broker', the other one of {self._known()}"
        )

    def _known(self) -> str:
        return ", ".join(repr(each) for each in (CLIENTS, *self._names))

    def close(self) -> None:
        """End the proxy, and with it all connections."""
        self._answers.close()
        self._socket.close()
        try:
            self._process.wait(_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _channels(channel: str | None) -> list[str]:
    if channel is not None and channel not in CHANNELS:
        raise ValueError(f"a channel is 'control' or 'data' (None: both), not {channel!r}")
    return list(CHANNELS) if channel is None else [channel]


def free_tcp_address() -> str:
    """A loopback address whose two ports were free a moment ago."""
    draw = random.Random(os.urandom(8))
    while True:
        port = draw.randrange(20_000, 32_000)
        try:
            for each in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return f"tcp://127.0.0.1:{port}"
