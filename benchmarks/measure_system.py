"""What only quiesce has, or only a system as a whole: stops, queues, clients, memory."""

from contextlib import ExitStack

from drivers import Driver
from session import Session

QUIESCE = "quiesce"

#: Processes, and slots in each: as other pools have it; many tasks in one process; room for hundreds of coroutines.
SINGLE, SHARED, WIDE = (2, 1), (1, 16), (2, 128)
#: Of the default configuration's four runtimes.
DEFAULT_WORKERS = 8


def stop_seen(session: Session) -> None:
    """When a running task sees the stop: asleep, in a loop, beside a large payload; and by bare parts."""
    n = session.amount(20, 5)
    with ExitStack() as stack:
        runtimes = {"single": SINGLE, "shared": SHARED}
        running = session.started(stack, ("quiesce", "floor"), runtimes=runtimes)
        # Of the bare parts those that copy nothing: else their router would be busy with that.
        uncopied = {"payloads": True, "registry": False}
        beside = {**running, **session.started(stack, ("floor",), options=uncopied)}
        for number in range(session.rounds):
            for how in ("asleep", "busy", "neighbour", "payload"):
                drivers = beside if how in ("neighbour", "payload") else running
                for name, driver in drivers.items():
                    with session.attempt(how, name, number):
                        many = max(2, n // 5) if how == "payload" else n
                        times = driver.ask("stop_seen", how=how, n=many, limit=120)
                        session.latency(driver, how, number, times)


def loaded(session: Session) -> None:
    """Round trips while another client keeps another runtime's queue full; and the bare parts alone."""
    depth = session.amount(10_000, 2_000)
    with ExitStack() as stack:
        runtimes = {"single": SINGLE, "other": SINGLE}
        running = session.started(stack, ("quiesce", "floor"), runtimes=runtimes)
        if QUIESCE not in running:
            return
        driver = running[QUIESCE]
        other = _other(session, stack, driver)
        for number in range(min(session.rounds, 3)):
            with session.attempt("loaded", QUIESCE, number):
                if "floor" in running:
                    session.roundtrips(running["floor"], number, "loaded-base")
                session.roundtrips(driver, number, "loaded-base")
                other.ask("load_begin", runtime="other", depth=depth, seconds=0.01, limit=120)
                session.roundtrips(driver, number, "loaded")
                other.ask("load_end", limit=120)


def _other(session: Session, stack: ExitStack, driver: Driver) -> Driver:
    """One more client of the same system, in a process of its own."""
    return stack.enter_context(session.driver(driver.name, options=driver.ask("where")))


def stop_many(session: Session) -> None:
    """Stops of many tasks, and the longest round trip of another client meanwhile."""
    figures = session.figures
    many, limit = session.amount(100_000, 5_000), session.amount(40, 5)
    with ExitStack() as stack:
        runtimes = {"single": SINGLE, "other": SINGLE, "wide": WIDE}
        running = session.started(stack, (QUIESCE,), runtimes=runtimes)
        if not running:
            return
        driver = running[QUIESCE]
        for number in range(session.rounds):
            with session.attempt("stop-many", QUIESCE, number):
                answer = driver.ask("stop_coroutines", n=200, limit=120)
                figures.add("stop-200", QUIESCE, number, answer["seconds"], "s", 200)
        other = _other(session, stack, driver)
        for number in range(session.amount(2, 1)):
            with session.attempt("stop-many", QUIESCE, number):
                few = driver.ask("stop_queued", n=500, others=0, limit=60 + limit)
                figures.add("stop-500", QUIESCE, number, few["seconds"], "s", 500)
                others = many // 2
                few = driver.ask("stop_queued", n=500, others=others, limit=180, patience=limit)
                figures.add("stop-500-of-many", QUIESCE, number, few["seconds"], "s", others)
                other.ask("watch_begin")
                answer = driver.ask("stop_queued", n=many, others=0, limit=240, patience=limit)
                n = answer["n"]
                figures.add("stop-queued", QUIESCE, number, answer["seconds"], "s", n)
                waits = other.ask("watch_end", began=answer["began"], ended=answer["ended"])
                if waits:
                    figures.add("stop-queued-wait", QUIESCE, number, max(waits), "s", n)


def checks(session: Session) -> None:
    """The price of a look for a request to stop."""
    with ExitStack() as stack:
        for name, driver in session.started(stack, ("quiesce", "quiesce-slots")).items():
            for number in range(session.rounds):
                with session.attempt("checks", name, number):
                    costs = driver.ask("checks", n=session.amount(500_000, 50_000))
                    for what, seconds in costs.items():
                        session.figures.add(what, name, number, seconds, "s")


def backlog(session: Session) -> None:
    """Throughput with many tasks queued, and what each costs the broker.

    A few queued before and after the many, in the same system: what changes meanwhile must not count.
    """
    few, some, many = (2_000, 5_000, 10_000) if session.quick else (10_000, 100_000, 1_000_000)
    curve = session.figures.curves["backlog"]
    with ExitStack() as stack:
        for driver in session.started(stack, (QUIESCE,)).values():
            session.fitting(driver, "batch", 2_000, chunk=0)  # warms it up
            for depth, name, rounds in (
                (few, "shallow", (0,)),
                (some, "middle", (0,)),
                (many, "deep", (0, 1)),
                (few, "shallow", (1,)),
            ):
                with session.attempt("backlog", QUIESCE, rounds[0]):
                    _backlog(session, driver, depth, name, rounds)
    for name in ("shallow", "middle", "deep"):
        figure = session.figures.get(f"backlog-{name}", QUIESCE)
        if figure is not None and figure.n:
            curve.setdefault(QUIESCE, []).append((figure.n, figure.median))


def _backlog(
    session: Session, driver: Driver, depth: int, name: str, rounds: tuple[int, ...]
) -> None:
    n = session.amount(10_000, 1_000)
    patience = session.amount(90, 5)
    answer = driver.ask("backlog", depth=depth, n=n, patience=patience, limit=patience + 300)
    for number in rounds:
        for what, value, unit in (
            ("", answer["rate"], "tasks/s"),
            ("-bytes", answer["bytes"], "B"),
            ("-queueing", answer["queueing"], "tasks/s"),
        ):
            measure = f"backlog-{name}{what}"
            session.figures.add(measure, QUIESCE, number, value, unit, answer["depth"])


def clients(session: Session) -> None:
    """Many connected clients, ten processes of them, and what a round trip costs among them."""
    each = session.amount(100, 5)
    with ExitStack() as stack:
        for driver in session.started(stack, (QUIESCE,)).values():
            with session.attempt("clients", QUIESCE, 0):
                session.roundtrips(driver, 0, "clients-none")
                crowd = [_other(session, stack, driver) for _ in range(10)]
                for other in crowd:
                    other.ask("clients", n=each, limit=240)
                session.roundtrips(driver, 0, "clients-many")
                held = 10 * (each + 1) + 1
                session.figures.add("clients", QUIESCE, 0, held, "clients", held)


def workers(session: Session) -> None:
    """Throughput by number of worker processes, and whether 200 hold."""
    line = session.figures.curves["workers"].setdefault(QUIESCE, [])
    counts = (1, 2, 4, 8, 200)
    for count in (1, 4) if session.quick else counts:
        with session.attempt("workers", QUIESCE, 0), ExitStack() as stack:
            runtimes = {"single": (count, 1)}
            for driver in session.started(stack, (QUIESCE,), runtimes=runtimes).values():
                ready = driver.ask("until_ready", n=count, limit=240)
                session.figures.add("sessions", QUIESCE, 0, ready, "workers", count)
                n = session.amount(5_000, 500)
                n = session.fitting(driver, "individual", n, seconds=4.0)
                answer = driver.ask("individual", n=n, limit=120)
                line.append((count, answer["n"] / answer["seconds"]))


def rest(session: Session) -> None:
    """A system with nothing to do: its memory, and what it takes of a processor. And how it starts."""
    if session.wants("rest"):
        with ExitStack() as stack:
            for driver in session.started(stack, (QUIESCE,)).values():
                with session.attempt("rest", QUIESCE, 0):
                    memory = driver.ask("system_memory")
                    n = memory["processes"]
                    session.figures.add("system-memory", QUIESCE, 0, memory["bytes"], "B", n)
    if not session.wants("rest", "start"):
        return
    for number in range(session.amount(3, 1)):
        with session.attempt("start", QUIESCE, number), ExitStack() as stack:
            for name in session.participants((QUIESCE,)):
                four = {"default_runtimes": True}
                driver = stack.enter_context(session.driver(name, options=four, start=False))
                began = session.start(driver)
                session.figures.add("start-four", QUIESCE, number, began, "s")
                if session.wants("rest") and number == 0:
                    # The first result does not wait for the second worker of each pool.
                    driver.ask("until_ready", n=DEFAULT_WORKERS, limit=60)
                    part = driver.ask("idle", seconds=session.amount(8, 3))
                    session.figures.add("idle", QUIESCE, number, part, "of a processor")


def payload(session: Session) -> None:
    """Bytes there and back, from a few to many."""
    sizes = [(1 << 10, 50), (1 << 14, 50), (1 << 18, 20), (1 << 22, 5), (1 << 26, 2)]
    with ExitStack() as stack:
        names = ("quiesce", "pool", "futures")
        running = session.started(stack, names)
        options = {"payloads": True, "registry": False}
        running |= session.started(stack, ("floor",), options=options)
        for number in range(session.amount(2, 1)):
            for size, n in sizes[: session.amount(5, 4)]:
                for name, driver in running.items():
                    with session.attempt("payload", name, number):
                        few = max(2, session.amount(n, n // 5))
                        times = driver.ask("payload", size=size, n=few, limit=120)
                        session.latency(driver, f"payload-{size}", number, times)
    for size, _ in sizes:
        for figure in session.figures.of(f"payload-{size}-p50"):
            line = session.figures.curves["payload"].setdefault(figure.who, [])
            line.append((size, figure.median))


def growth(session: Session) -> None:
    """Throughput by the number of tasks, and of clients that hand them over at once."""
    curves = session.figures.curves
    with ExitStack() as stack:
        running = session.started(stack, ("quiesce", "floor", "pool"))
        for n in (100, 1_000, 10_000, 50_000)[: session.amount(4, 2)]:
            for name, driver in running.items():
                with session.attempt("growth", name, 0):
                    fits = session.fitting(driver, "individual", n, seconds=6.0)
                    if fits < n:
                        continue
                    answer = driver.ask("individual", n=n, limit=120)
                    line = curves["tasks"].setdefault(name, [])
                    line.append((n, answer["n"] / answer["seconds"]))
        if QUIESCE in running:
            _many_clients(session, stack, running[QUIESCE])


def _many_clients(session: Session, stack: ExitStack, driver: Driver) -> None:
    line = session.figures.curves["clients"].setdefault(QUIESCE, [])
    crowd = [driver]
    for count in (1, 2, 4, 8)[: session.amount(4, 2)]:
        with session.attempt("growth", QUIESCE, 0):
            while len(crowd) < count:
                crowd.append(_other(session, stack, driver))
                crowd[-1].ask("individual", n=50)
            n = session.amount(8_000, 800) // count
            for each in crowd:
                each.send("individual", n=n)
            slowest = max(each.answer("individual", 120)["seconds"] for each in crowd)
            line.append((count, n * count / slowest))
