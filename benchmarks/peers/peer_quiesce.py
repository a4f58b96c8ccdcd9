"""quiesce itself: one `quiesce up` with its journal, and a client; or, with an address, a client alone.

    {"durability": "crash"}             a system and a client of it
    {"address": "ipc:///tmp/.../run"}   one more client of a system that another driver has started

Its only runtime is `single` unless `runtime` or `runtimes` say otherwise: two processes that run one task each at a
time, as the other pools do.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import bodies
import driver
import quiesce
import quiesce_bodies
from waiting import until_written

KIND = quiesce.TaskKind.COMPACTION

#: Processes and slots of those that measures need.
RUNTIMES = {
    "single": (2, 1),
    "slots": (2, 16),
    "shared": (1, 16),
    "wide": (2, 128),
    "other": (2, 1),
}

CONFIG = """
[broker]
address = "{address}"
state = "{folder}/state"
app_dir = "{app_dir}"
durability = "{durability}"
payload_limit = 134217728
log_level = "WARNING"
default_runtimes = {default}
"""

RUNTIME = """
[runtimes.{name}]
processes = {processes}
slots = {slots}
max_queue = 10000000
"""


class Up:
    """A `quiesce up` in a folder of its own."""

    def __init__(self, durability: str, runtimes: dict[str, tuple[int, int]] | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="q-"))
        self.address = f"ipc://{self.folder}/run"
        text = CONFIG.format(
            address=self.address,
            folder=self.folder,
            app_dir=os.path.dirname(os.path.abspath(__file__)),
            durability=durability,
            default="true" if runtimes is None else "false",
        )
        for name, (processes, slots) in (runtimes or {}).items():
            text += RUNTIME.format(name=name, processes=processes, slots=slots)
        config = self.folder / "quiesce.toml"
        config.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quiesce", "up", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def close(self) -> None:
        """End it in order, or hard."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class Load(threading.Thread):
    """Keeps a runtime's queue at a length, until it is ended."""

    def __init__(self, client: quiesce.Client, runtime: str, depth: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.client, self.runtime, self.depth, self.seconds = client, runtime, depth, seconds
        self.full, self.over = threading.Event(), threading.Event()
        self.trouble = ""

    def run(self) -> None:
        """Spawn what has ended since it looked last."""
        live: list[Any] = []
        try:
            while not self.over.wait(0.05 if live else 0):
                live = [handle for handle in live if not handle.done()]
                missing = [(self.seconds,)] * (self.depth - len(live))
                spawn = self.client.spawn_many
                live += spawn(self.runtime, KIND, bodies.nap, missing, tenant_id="load")
                if not self.full.is_set():
                    live[-1].id  # noqa: B018 - waits for the answer: all are queued
                    self.full.set()
        except quiesce.QuiesceError as error:
            if not self.over.is_set():
                self.trouble = repr(error)
        self.full.set()


class Quiesce(driver.Peer):
    """The client's side of all measurements."""

    package = "quiesce"

    def __init__(
        self,
        durability: str = "crash",
        runtime: str = "single",
        runtimes: dict[str, Any] | None = None,
        default_runtimes: bool = False,
        address: str = "",
    ) -> None:
        self.durability = durability
        self.runtime = "compute-request" if default_runtimes else runtime
        if runtimes is None:
            runtimes = {runtime: RUNTIMES[runtime]}
        self.runtimes = None if default_runtimes else runtimes
        self.given = address
        self.up: Up | None = None
        self.names = itertools.count()

    def begin(self) -> None:
        if not self.given:
            self.up = Up(self.durability, self.runtimes)
        self.address = self.up.address if self.up else self.given
        self.client = quiesce.Client(self.address)
        self.spawn = self.client.spawn
        durability = self.client.broker_info().durability
        if self.up is not None and durability != self.durability:
            raise RuntimeError(f"this broker's durability is {durability}, not {self.durability}")

    def submit(self) -> Any:
        return self.spawn(self.runtime, KIND, bodies.noop)

    def result(self, pending: Any) -> Any:
        return pending.result()

    def close(self) -> None:
        try:
            if hasattr(self, "client"):
                self.client.close()
        finally:
            if self.up is not None:
                self.up.close()

    def where(self) -> dict[str, Any]:
        """For others that shall use this system."""
        return {"address": self.address}

    # --- throughput

    def batch(self, n: int, chunk: int) -> dict[str, Any]:
        """`n` no-ops by one `spawn_many`, until all results are in; it makes its own chunks."""
        del chunk
        began = driver.now()
        for handle in self.client.spawn_many(self.runtime, KIND, bodies.noop, [()] * n):
            handle.result()
        return {"seconds": driver.now() - began, "n": n}

    def map(self, n: int, chunk: int) -> dict[str, Any]:
        """`n` calls in chunks by QuiesceExecutor, on this system, until all results are in."""
        executor = quiesce.QuiesceExecutor(
            driver.WORKERS, client=self.client, runtime=self.runtime, kind=KIND
        )
        with executor:
            list(executor.map(bodies.noop_of, range(driver.WORKERS)))
            began = driver.now()
            for _ in executor.map(bodies.noop_of, range(n), chunksize=chunk):
                pass
            return {"seconds": driver.now() - began, "n": n}

    def payload(self, size: int, n: int) -> list[float]:
        """Seconds for `size` bytes there and back, `n` times."""
        value, times = bytes(size), []
        for _ in range(n):
            began = driver.now()
            assert len(self.spawn(self.runtime, KIND, bodies.echo, value).result()) == size
            times.append(driver.now() - began)
        return times

    def backlog(self, depth: int, n: int, patience: float) -> dict[str, Any]:
        """Results a second of the first `n` of `depth` queued no-ops, and what a queued one costs the broker.

        Looks at fewer results if `n` take over ten seconds, and gives up the rest of the depth when queueing has
        taken `patience` seconds.
        """
        self._block("single")
        broker = self.client.broker_info().pid
        before = driver.pss(broker)
        began = driver.now()
        handles: list[Any] = []
        while len(handles) < depth and driver.now() - began < patience:
            size = min(10_000, depth - len(handles))
            handles += self.client.spawn_many("single", KIND, bodies.noop, [()] * size)
            handles[-1].id  # noqa: B018 - waits for the answer
        queued_in = driver.now() - began
        memory = (driver.pss(broker) - before) / len(handles)
        began = driver.now()
        self.client.shutdown_tasks(tenant_id="blocker", timeout=60)
        done = 0
        while done < min(n, len(handles)) and driver.now() < began + 10.0:
            handles[done].result()
            done += 1
        seconds = driver.now() - began
        stopped_in = self._timed(lambda: self.client.shutdown_tasks(runtime="single", timeout=120))
        return {
            "depth": len(handles),
            "queueing": len(handles) / queued_in,
            "rate": done / seconds,
            "bytes": memory,
            "stop_rest": stopped_in,
        }

    def _queue(self, n: int, tenant: str, patience: float) -> int:
        """Queue no-ops behind what `_block` has started; how many there was time for."""
        end = driver.now() + patience
        queued = 0
        while queued < n and driver.now() < end:
            size = min(5_000, n - queued)
            handles = self.client.spawn_many(
                "other", KIND, bodies.noop, [()] * size, tenant_id=tenant
            )
            handles[-1].id  # noqa: B018 - waits for the answer
            queued += size
        return queued

    def _block(self, runtime: str) -> list[Any]:
        """Fill every slot of a runtime."""
        processes, slots = RUNTIMES[runtime]
        spawn = self.client.spawn_many
        handles = spawn(
            runtime, KIND, quiesce_bodies.blocker, [()] * (processes * slots), tenant_id="blocker"
        )
        self._until_running(handles)
        return handles

    def _until_running(self, handles: list[Any]) -> None:
        deadline = driver.now() + 30
        wanted = {handle.id for handle in handles}
        while wanted - {task.id for task in self.client.tasks(state="running")}:
            if driver.now() > deadline:
                raise TimeoutError("not all tasks run")
            time.sleep(0.01)

    @staticmethod
    def _timed(call: Any) -> float:
        began = driver.now()
        call()
        return driver.now() - began

    # --- stopping

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from the call of shutdown_tasks to when a running task sees the request.

        "payload": the task sleeps, and 64 MiB are on their way to another task of the same worker. "neighbour":
        the same worker, without the payload.
        """
        body = quiesce_bodies.busy if how == "busy" else quiesce_bodies.asleep
        runtime = "shared" if how in ("payload", "neighbour") else self.runtime
        value = bytes(64 * 1024 * 1024) if how == "payload" else b""
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(n):
                path = os.path.join(folder, str(next(self.names)))
                handle = self.spawn(runtime, KIND, body, path, tenant_id="watched")
                until_written(path)
                if value:
                    large = self.spawn(runtime, KIND, bodies.swallow, value)
                began = driver.now()
                self.client.shutdown_tasks(tenant_id="watched", timeout=60)
                times.append(handle.result() - began)
                if value:
                    large.result()
        return times

    def stop_coroutines(self, n: int) -> dict[str, Any]:
        """Seconds from the call to the proof that `n` running coroutine tasks have ended."""
        spawn = self.client.spawn_many
        handles = spawn("wide", KIND, quiesce_bodies.coroutine, [()] * n, tenant_id="coroutines")
        self._until_running(handles)
        began = driver.now()
        report = self.client.shutdown_tasks(tenant_id="coroutines", timeout=60)
        seconds = driver.now() - began
        assert len(report.tasks) == n, f"{len(report.tasks)} tasks in the report"
        return {"seconds": seconds, "n": n}

    def stop_queued(self, n: int, others: int, patience: float = 30.0) -> dict[str, Any]:
        """The same for `n` queued ones, while `others` more stay queued that nobody stops.

        Fewer, if queueing them takes more than `patience` seconds.
        """
        self._block("other")
        self._queue(others, "stays", patience)
        n = self._queue(n, "queued", patience)
        began = driver.now()
        report = self.client.shutdown_tasks(tenant_id="queued", timeout=120)
        ended = driver.now()
        assert len(report.tasks) == n, f"{len(report.tasks)} tasks in the report"
        self.client.shutdown_tasks(tenant_id="stays", timeout=120)
        self.client.shutdown_tasks(tenant_id="blocker", timeout=60)
        return {"seconds": ended - began, "began": began, "ended": ended, "n": n}

    def checks(self, n: int) -> dict[str, float]:
        """Seconds that one look costs in a task."""
        costs: dict[str, float] = self.spawn(self.runtime, KIND, quiesce_bodies.checks, n).result()
        return costs

    # --- beside others

    def load_begin(self, runtime: str, depth: int, seconds: float) -> int:
        """Keep so many tasks of so many seconds queued, until `load_end`."""
        self.load = Load(self.client, runtime, depth, seconds)
        self.load.start()
        self.load.full.wait(60)
        return depth

    def load_end(self) -> int:
        """Stop them all."""
        self.load.over.set()
        self.load.join(30)
        self.client.shutdown_tasks(tenant_id="load", timeout=120)
        if self.load.trouble:
            raise RuntimeError(self.load.trouble)
        return 0

    def watch_begin(self) -> int:
        """Make round trips, one after the other, until `watch_end`."""
        self.watched: list[tuple[float, float]] = []
        self.watching = threading.Event()

        def watch() -> None:
            while not self.watching.is_set():
                began = driver.now()
                self.result(self.submit())
                self.watched.append((began, driver.now()))

        self.watcher = threading.Thread(target=watch, daemon=True)
        self.watcher.start()
        return 0

    def watch_end(self, began: float, ended: float) -> list[float]:
        """Seconds of those that were under way in this time."""
        self.watching.set()
        self.watcher.join(60)
        return [end - begin for begin, end in self.watched if begin < ended and end > began]

    def clients(self, n: int) -> dict[str, Any]:
        """So many more clients in this process, each with one task done; they stay until `clients_end`."""
        began = driver.now()
        self.more = []
        for _ in range(n):
            self.more.append(quiesce.Client(self.address, timeout=60))
        pending = [each.spawn(self.runtime, KIND, bodies.noop) for each in self.more]
        for each in pending:
            each.result(60)
        return {"seconds": driver.now() - began, "n": n}

    def clients_end(self) -> int:
        """Close them."""
        for each in self.more:
            each.close()
        self.more = []
        return 0

    # --- the system at rest

    def until_ready(self, n: int) -> int:
        """Wait for so many ready workers; how many there are."""
        deadline = driver.now() + 180
        while driver.now() < deadline:
            ready = sum(worker.state == "ready" for worker in self.client.workers())
            if ready >= n:
                break
            time.sleep(0.05)
        return ready

    def system_memory(self) -> dict[str, Any]:
        """Bytes (PSS) of `up` and all below it, without this client."""
        assert self.up is not None
        tree = driver.descendants(self.up.process.pid)
        return {"bytes": sum(map(driver.pss, tree)), "processes": len(tree)}

    def idle(self, seconds: float) -> float:
        """Part of one processor that `up` and all below it use while nothing is asked."""
        assert self.up is not None
        tree = driver.descendants(self.up.process.pid)
        before, began = sum(map(driver.processor_seconds, tree)), driver.now()
        time.sleep(seconds)
        used = sum(map(driver.processor_seconds, tree)) - before
        return used / (driver.now() - began)


if __name__ == "__main__":
    driver.serve(Quiesce(**driver.options()))
