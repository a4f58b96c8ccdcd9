"""What only quiesce has, or only a system as a whole: stops, queues, clients, memory."""

from contextlib import ExitStack

from drivers import Driver
from session import Session

QUIESCE = "quiesce"


def stop_seen(session: Session) -> None:
    """When a running task sees the stop: asleep, in a loop, beside a large payload; and by bare parts."""
    if not session.wants("stop-seen"):
        return
    n = session.amount(20, 5)
    with ExitStack() as stack:
        running = session.started(stack, ("quiesce", "floor"))
        for number in range(session.rounds):
            for how in ("asleep", "busy", "neighbour", "payload"):
                for name, driver in running.items():
                    if name == "floor" and how in ("neighbour", "payload"):
                        continue
                    with session.attempt(how, name, number):
                        many = max(2, n // 5) if how == "payload" else n
                        times = driver.ask("stop_seen", how=how, n=many, limit=120)
                        session.latency(driver, how, number, times)


def loaded(session: Session) -> None:
    """Round trips while another client keeps another runtime's queue full; and the bare parts alone."""
    if not session.wants("loaded"):
        return
    depth = session.amount(10_000, 2_000)
    with ExitStack() as stack:
        running = session.started(stack, ("quiesce", "floor"))
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
    if not session.wants("stop-many"):
        return
    figures = session.figures
    many, limit = session.amount(100_000, 5_000), session.amount(40, 5)
    with ExitStack() as stack:
        running = session.started(stack, (QUIESCE,))
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
    if not session.wants("checks"):
        return
    with ExitStack() as stack:
        for name, driver in session.started(stack, ("quiesce", "quiesce-slots")).items():
            for number in range(session.rounds):
                with session.attempt("checks", name, number):
                    costs = driver.ask("checks", n=session.amount(500_000, 50_000))
                    for what, seconds in costs.items():
                        session.figures.add(what, name, number, seconds, "s")


def backlog(session: Session) -> None:
    """Throughput with many tasks queued, and what each costs the broker."""
    if not session.wants("backlog"):
        return
    depths = (10_000, 100_000, 1_000_000)
    depths = depths if not session.quick else (2_000, 10_000)
    line = session.figures.curves["backlog"].setdefault(QUIESCE, [])
    for number in range(session.amount(2, 1)):
        for depth in depths:
            if number and depth == depths[-1] and not session.quick:
                continue  # once is long enough
            with session.attempt("backlog", QUIESCE, number), ExitStack() as stack:
                for driver in session.started(stack, (QUIESCE,)).values():
                    _backlog(session, driver, number, depth, deepest=depth == depths[-1])
    line.sort()


def _backlog(session: Session, driver: Driver, number: int, depth: int, deepest: bool) -> None:
    figures = session.figures
    session.rate(driver, "batch", 0, 2_000, prefix="warm-up-", chunk=0)
    n = session.amount(10_000, 1_000)
    limit = session.amount(90, 5)
    answer = driver.ask("backlog", depth=depth, n=n, patience=limit, limit=limit + 400)
    reached = answer["depth"]
    name = "backlog-deep" if deepest else f"backlog-{depth}"
    figures.add(name, QUIESCE, number, answer["rate"], "tasks/s", reached)
    figures.add(f"{name}-bytes", QUIESCE, number, answer["bytes"], "B", reached)
    figures.add(f"{name}-stop", QUIESCE, number, answer["stop_rest"], "s", reached - n)
    figures.curves["backlog"][QUIESCE].append((reached, answer["rate"]))


def clients(session: Session) -> None:
    """Many connected clients, ten processes of them, and what a round trip costs among them."""
    if not session.wants("clients"):
        return
    each = session.amount(100, 5)
    with ExitStack() as stack:
        for driver in session.started(stack, (QUIESCE,)).values():
            with session.attempt("clients", QUIESCE, 0):
                session.roundtrips(driver, 0, "clients-none")
                crowd = [_other(session, stack, driver) for _ in range(10)]
                for other in crowd:
                    other.ask("clients", n=each, limit=240)
                session.roundtrips(driver, 0, "clients-many")
                session.figures.add("clients", QUIESCE, 0, 10 * (each + 1) + 1, "clients")


def workers(session: Session) -> None:
    """Throughput by number of worker processes, and whether 200 hold."""
    if not session.wants("workers"):
        return
    line = session.figures.curves["workers"].setdefault(QUIESCE, [])
    counts = session.amount(1, 0) * [1, 2, 4, 8, 200] or [1, 4]
    for count in counts:
        with session.attempt("workers", QUIESCE, 0), ExitStack() as stack:
            options = {"runtimes": {"single": [count, 1]}}
            for driver in session.started(stack, (QUIESCE,), options=options).values():
                ready = driver.ask("until_ready", n=count, limit=240)
                session.figures.add(f"workers-{count}", QUIESCE, 0, ready, "workers")
                n = session.amount(5_000, 500)
                driver.ask("individual", n=n // 5)
                answer = driver.ask("individual", n=n, limit=120)
                line.append((count, answer["n"] / answer["seconds"]))


def rest(session: Session) -> None:
    """A system with nothing to do: its memory, and what it takes of a processor. And how it starts."""
    if session.wants("rest"):
        options = {"runtimes": {"single": [2, 1]}}
        with ExitStack() as stack:
            for driver in session.started(stack, (QUIESCE,), options=options).values():
                with session.attempt("rest", QUIESCE, 0):
                    memory = driver.ask("system_memory")
                    n = memory["processes"]
                    session.figures.add("system-memory", QUIESCE, 0, memory["bytes"], "B", n)
    if not session.wants("rest", "start"):
        return
    for number in range(min(session.rounds, 3)):
        with session.attempt("start", QUIESCE, number), ExitStack() as stack:
            for name in session.participants((QUIESCE,)):
                four = {"default_runtimes": True}
                driver = stack.enter_context(session.driver(name, options=four, start=False))
                began = session.start(driver)
                session.figures.add("start-four", QUIESCE, number, began, "s")
                if session.wants("rest") and number == 0:
                    part = driver.ask("idle", seconds=session.amount(8, 3))
                    session.figures.add("idle", QUIESCE, number, part, "of a processor")


def payload(session: Session) -> None:
    """Bytes there and back, from a few to many."""
    if not session.wants("payload"):
        return
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
    if not session.wants("growth"):
        return
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
