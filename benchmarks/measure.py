"""What is measured, in phases. Within each, those that are compared take turns, round by round."""

from contextlib import ExitStack

import peerlist
from drivers import Driver
from session import Session, rotated

#: By name, as `--only` takes it: what it is, for `--help` and the documentation.
MEASURES = {
    "individual": "no-ops handed over one by one, until all results are in",
    "batch": "no-ops handed over together (spawn_many; 64 in a message of the bare parts)",
    "map": "executor.map with chunks of 64",
    "roundtrip": "one no-op at a time, from handing it over to its result",
    "loaded": "the same while another client keeps 10,000 tasks queued on another runtime",
    "stop-seen": "from the call of a stop to when a running task sees it",
    "stop-many": "shutdown_tasks of 200 running coroutines, and of 100,000 queued tasks",
    "checks": "is_shutdown_requested() and checkpoint() in a task",
    "backlog": "throughput and memory with 10,000 to 1,000,000 tasks queued",
    "clients": "1,000 connected clients",
    "workers": "throughput by number of worker processes, and 200 of them",
    "start": "from nothing to the first result",
    "rest": "memory and processor time of a system with nothing to do",
    "payload": "1 KiB to 64 MiB there and back",
    "growth": "throughput by number of tasks, and of clients",
}

#: Those of the two phases here.
CORE = ("individual", "batch", "map", "roundtrip")
PEERS = ("individual", "roundtrip", "stop-seen", "start", "rest")

#: Tasks in one message, or one chunk.
CHUNK = 64


def core(session: Session) -> None:
    """Throughput and round trips of quiesce, the bare parts and the standard library, all alive side by side."""
    measures = [name for name in CORE if session.wants(name)]
    with ExitStack() as stack:
        drivers = session.started(stack, peerlist.CORE)
        for number in range(session.rounds):
            for measure in measures:
                for name in rotated(list(drivers), number):
                    if name in CAPABLE.get(measure, peerlist.CORE):
                        with session.attempt(measure, name, number):
                            _core_measure(session, drivers[name], measure, number)


#: Who of the core can do what not all can.
CAPABLE = {
    "batch": (
        "quiesce", "quiesce-power-loss", "quiesce-none", "quiesce-slots",
        "floor", "floor-plain", "floor-tuned", "floor-journal",
    ),
    "map": ("quiesce", "futures", "pool"),
    "roundtrip": (
        "quiesce", "quiesce-slots", "floor", "floor-tuned", "floor-journal", "pool", "futures",
    ),
}  # fmt: skip


def _core_measure(session: Session, driver: Driver, measure: str, number: int) -> None:
    if measure == "individual":
        session.rate(driver, measure, number, 20_000)
    elif measure in ("batch", "map"):
        session.rate(driver, measure, number, 50_000, chunk=CHUNK)
    else:
        session.roundtrips(driver, number)


def peers(session: Session) -> None:
    """All peers, each started anew in each round and alone while it is measured."""
    names = [name for name in peerlist.KINDS if name not in peerlist.CORE]
    names = session.participants([*peerlist.IN_BOTH, *names])
    for number in range(min(session.rounds, session.amount(3, 1))):
        for name in rotated(names, number):
            with session.attempt("peers", name, number), session.driver(name, start=False) as peer:
                _peer(session, peer, number)


def _peer(session: Session, driver: Driver, number: int) -> None:
    figures, name = session.figures, driver.name
    figures.add("start", name, number, session.start(driver), "s")
    # Those of the core are measured here, too, so under names of this phase's own.
    if session.wants("individual"):
        session.rate(driver, "individual", number, 20_000, prefix="peers-")
    if session.wants("roundtrip"):
        session.roundtrips(driver, number, "peers-roundtrip")
    if session.wants("rest"):
        figures.add("memory", name, number, driver.ask("memory")["bytes"], "B")
    if session.wants("stop-seen") and name in STOPPABLE:
        n = session.amount(5, 2)
        session.latency(driver, "asleep", number, driver.ask("stop_seen", how="asleep", n=n))


#: Of the peers, those whose running tasks can be reached in some way.
STOPPABLE = ("pebble", "dask", "ray", "saq")
