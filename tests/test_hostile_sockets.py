"""Peers that mean a real broker no good: garbage, floods, and connections that never end.

Meanwhile a well-behaved client is served, and afterwards the broker is there, has counted what it dropped, and
has not grown.
"""

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from hostile_house import House, counters
from quiesce import Client
from quiesce.broker.connections import HIGH, PATIENCE, Connections, aside
from quiesce.broker.peers import Channel
from quiesce.errors import ProtocolError
from quiesce.protocol import PROTOCOL_VERSION, from_client, wire
from quiesce.protocol.codec import encode
from quiesce.testing import fuzz_values as fuzz
from quiesce.testing.bodies import nothing
from system import until

MIB = 2**20


@pytest.fixture
def house(run_folder: Path) -> Iterator[House]:
    house = House(run_folder)
    yield house
    assert house.stop() == 0, house.text()
    assert "Traceback" not in house.text(), house.text()


class Dealers:
    """Connections that speak ZMTP and have not said hello."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._context = context
        self.made: list[zmq.Socket[bytes]] = []

    def __call__(
        self, house: House | None, name: str = "control", *, rcvhwm: int = 1000
    ) -> "zmq.Socket[bytes]":
        """To one of the broker's sockets, or (without a house) to this endpoint."""
        made = self._context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVHWM, rcvhwm)
        if house is not None:
            name = house.settings.control if name == "control" else house.settings.data
        made.connect(name)
        self.made.append(made)
        return made


@pytest.fixture
def dealer() -> Iterator[Dealers]:
    with zmq.Context() as context:
        dealers = Dealers(context)
        yield dealers
        for each in dealers.made:
            each.close(0)


def raw(house: House) -> socket.socket:
    """A connection that speaks nothing."""
    scheme, _, rest = house.settings.control.partition("://")
    if scheme == "ipc":
        made = socket.socket(socket.AF_UNIX)
        where: Any = rest
    else:
        made = socket.socket(socket.AF_INET)
        host, _, port = rest.rpartition(":")
        where = host, int(port)
        made.settimeout(2.0)
    try:
        made.connect(where)
    except BaseException:
        made.close()
        raise
    return made


def hello(session: bytes) -> list[bytes]:
    return encode(from_client.Hello(PROTOCOL_VERSION, session, "control", 1, "h", 0, resumed=False))


def served(client: Client) -> float:
    """Seconds that a well-behaved client waits for an answer that is decided and journalled."""
    began = time.monotonic()
    assert client.spawn("background", "compaction", nothing, name="good").id
    return time.monotonic() - began


# --- garbage


def test_garbage_and_nonsense_while_others_are_served(house: House, dealer: Dealers) -> None:
    chance = random.Random(4)
    with house.client() as client:
        assert served(client) < 10
        dealers = [dealer(house, name) for name in ("control", "data") * 4]
        sessions = [chance.randbytes(16) for _ in dealers]
        world = fuzz.World()
        memory = []
        for _ in range(3):
            for _ in range(100):
                with closing(raw(house)) as one:
                    one.sendall(fuzz.garbage(chance))
            for number in range(2000):
                which = chance.randrange(len(dealers))
                try:
                    good = encode(fuzz.message(chance, chance.choice(fuzz.MESSAGES), world))
                except ProtocolError:
                    continue
                if number % 10 == 0:
                    good = hello(sessions[which])
                elif number % 3 == 0:
                    good = fuzz.frames(chance, good) or [b""]
                dealers[which].send_multipart(good)
            assert served(client) < 10
            memory.append(house.memory())
        seen = until(lambda: counters(client), lambda found: found["malformed_messages"] > 500)
        assert seen["failed_messages"] == 0
        assert memory[-1] - memory[0] < 40 * MIB, memory
        assert client.broker_info().epoch == 1
        client.shutdown_tasks()


def test_too_large_a_frame_ends_its_connection_alone(house: House, dealer: Dealers) -> None:
    with house.client() as client:
        one = dealer(house)
        before = house.memory()
        one.send(b"\x91" * (17 * MIB))
        served(client)
        one.send_multipart(hello(b"s" * 16))
        assert one.poll(10_000), "it was let in again"
        assert house.memory() - before < 40 * MIB


# --- floods


def test_a_client_that_says_hello_for_ever(house: House, dealer: Dealers) -> None:
    """Each time in a new session: those that it has left, and in which nothing was asked for, are over."""
    with house.client() as client:
        one = dealer(house)
        served(client)
        before = house.memory()
        for number in range(5000):
            one.send_multipart(hello(number.to_bytes(16, "big")))
            while one.poll(0):
                one.recv_multipart()
        last = until(lambda: counters(client), lambda found: found["dropped_sessions"] > 4900)
        assert last["peers"] < 20
        assert client.statistics()["sessions"] < 20
        assert house.memory() - before < 40 * MIB
        assert served(client) < 10


def test_a_client_that_never_reads(house: House, dealer: Dealers) -> None:
    """Its answers are kept up to a bound; then it must say hello again."""
    with house.client() as client:
        one = dealer(house, rcvhwm=1)
        one.send_multipart(hello(b"s" * 16))
        one.send_multipart(encode(from_client.Subscribe(1)))
        served(client)
        before = house.memory()
        question = encode(from_client.GetBroker(2))
        for _ in range(45_000):
            one.send_multipart(question)
        until(lambda: counters(client), lambda found: found["overfull_peers"] >= 1, 60.0)
        assert house.memory() - before < 100 * MIB
        assert served(client) < 10
        client.shutdown_tasks()


# --- connections


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_more_connections_than_descriptors(run_folder: Path, dealer: Dealers, scheme: str) -> None:
    """At 70 % of them nobody else comes in; who is in is served; and once the idle ones are gone, all come in."""
    address = None if scheme == "ipc" else f"tcp://127.0.0.1:{_port()}"
    house = House(run_folder, address=address, descriptors=400)
    try:
        with house.client() as client, ExitStack() as stack:
            served(client)
            talker = dealer(house)  # speaks ZMTP, and says nothing
            refused = 0
            for _ in range(800):
                if refused > 100:
                    break
                try:
                    stack.enter_context(raw(house))
                except OSError:
                    refused += 1
            seen = until(lambda: counters(client), lambda found: found["times_shut"] >= 1)
            assert house.open_descriptors() < 4 * 400
            assert served(client) < 10
            if scheme == "ipc":
                assert refused > 100
                assert all(aside(path).exists() for path in house.settings.socket_files)
            used = house.cpu()
            began = time.monotonic()
            seen = until(
                lambda: counters(client),
                lambda found: (
                    found["connections"] < 0.5 * HIGH * 400 and found["connections_cut_off"]
                ),
                30.0,
            )
            assert seen["connections_cut_off"] > 100
            assert house.cpu() - used < 0.5 * (time.monotonic() - began) + 0.5, "it spins"
            with house.client() as another:
                assert served(another) < 10
            assert talker is not None
            client.shutdown_tasks()
        assert "nobody else is let in" in house.text()
        assert house.text().count("all are let in again") >= 1
    finally:
        assert house.stop() == 0, house.text()
    assert not any(aside(path).exists() for path in house.settings.socket_files)


@contextmanager
def watched(
    folder: Path,
    knows: Callable[[Channel, bytes], bool],
    tick: Callable[[], float],
    limit: int | None = None,
) -> Iterator[tuple[Connections, "zmq.Socket[bytes]"]]:
    """The broker's part, played in this process: who is connected to a socket `s` there."""
    with zmq.Context() as context:
        router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        files = [folder / "s"]
        here = Connections(context, {"control": router}, files, knows, tick, limit=limit)
        router.bind(f"ipc://{folder}/s")
        try:
            yield here, router
        finally:
            here.close()
            router.close(0)


@contextmanager
def strangers(folder: Path, many: int) -> Iterator[list[socket.socket]]:
    """So many that are connected to it."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(many)]
        for each in made:
            each.settimeout(10)
            each.connect(str(folder / "s"))
        yield made


@pytest.mark.parametrize("first", ["told", "heard"])
def test_who_says_nothing_is_cut_off_and_who_is_known_is_not(
    run_folder: Path, dealer: Dealers, first: str
) -> None:
    """By a clock of the test's own. A broker that has much to do may hear somebody before it is told who came."""
    clock = [0.0]
    known: set[bytes] = set()
    with (
        watched(run_folder, lambda _, route: route in known, lambda: clock[0]) as (here, router),
        strangers(run_folder, 3) as made,
    ):
        talker = dealer(None, f"ipc://{run_folder}/s")
        talker.send(b"hello")
        route = router.recv()
        fd = router.recv(copy=False).get(zmq.SRCFD)
        if first == "told":
            here.look()
        here.heard("control", fd, route)
        here.look()
        known.add(route)
        assert here.counters()["connections"] == 4
        for clock[0] in (PATIENCE - 1, PATIENCE + 1, 2 * PATIENCE):
            here.look()
            expected = 4 if clock[0] < PATIENCE else 1
            assert here.counters()["connections"] == expected
        for each in made:
            while each.recv(100):
                pass  # what is left of the greeting, and then the end
        # Nobody's any more: as long as a stranger it may stay.
        known.clear()
        for clock[0] in (3 * PATIENCE - 1, 3 * PATIENCE + 1):
            here.look()
        assert here.counters() == {
            "connections": 0,
            "connections_cut_off": 4,
            "times_shut": 0,
        }
    (run_folder / "s").unlink()


def test_in_a_flood_the_doors_are_shut_before_all_are_counted(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/null") as lowest:
        limit = int((lowest.fileno() + 40) / HIGH)
    shut: list[bool] = []
    with (
        watched(run_folder, lambda *_: False, lambda: 0.0, limit) as (here, _),
        strangers(run_folder, 50) as made,
    ):

        def reading(monitor: Any) -> tuple[int, int]:
            shut.append(here.shut)
            return wire.read_event(monitor)

        monkeypatch.setattr("quiesce.broker.connections.read_event", reading)
        for each in made:
            each.recv(1)  # of the greeting: it is accepted
        assert not here.shut
        here.look()
        assert shut == [True] * 50
        assert aside(run_folder / "s").exists()
    aside(run_folder / "s").unlink()


def _port() -> int:
    """Two free ports in a row: control and data."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def test_what_a_killed_broker_put_aside_is_cleared_away(run_folder: Path) -> None:
    house = House(run_folder)
    with house.client() as client:
        served(client)
        house.kill()
        for path in house.settings.socket_files:
            path.rename(aside(path))
        house.start()
        assert served(client) < 10
        assert not any(aside(path).exists() for path in house.settings.socket_files)
        client.shutdown_tasks()
    assert house.stop() == 0
