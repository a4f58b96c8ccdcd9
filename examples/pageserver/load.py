"""Load: clients of the page service that ask without pause, and check every page they get."""

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from quiesce.examples.pageserver import versions
from quiesce.examples.pageserver.source import Plan, Settings, SourceFile
from quiesce.examples.pageserver.wire import ConnectionBrokenError, PageClient, Status

_REQUESTS_PER_CONNECTION = 40
_PAUSE = 0.004


class Tally:
    """What the clients have met, counted by the clients. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._by_tenant: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, what: str, tenant: str) -> None:
        with self._lock:
            self._counts[what] += 1
            if what == Status.OK:
                self._by_tenant[tenant] += 1

    def add_wrong(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)

    def counts(self) -> dict[str, int]:
        """Return how often each status was met; besides those, "broken" connections."""
        with self._lock:
            return dict(self._counts)

    def pages_of(self, tenant: str) -> int:
        """Return how many pages of a tenant were served."""
        with self._lock:
            return self._by_tenant[tenant]


class LoadGenerator:
    """Threads that read random pages of random versions of random timelines. A context manager."""

    def __init__(self, address: Path, plan: Plan, settings: Settings, threads: int = 4) -> None:
        self._address = address
        self._settings = settings
        self._originals = {file: Path(file.path).read_bytes() for file in plan.files}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._count = threads
        self.tally = Tally()

    def start(self) -> None:
        for number in range(self._count):
            self._run(number, list(self._originals))

    def add_for(self, tenant: str, threads: int = 2) -> None:
        """Let more threads ask for one tenant only; also after a `stop`."""
        self._stop.clear()
        files = [file for file in self._originals if file.tenant == tenant]
        for number in range(threads):
            self._run(1000 + number, files)

    def _run(self, seed: int, files: list[SourceFile]) -> None:
        thread = threading.Thread(
            target=self._work,
            args=(random.Random(seed), files),
            name=f"load-{seed}",
        )
        self._threads.append(thread)
        thread.start()

    def _work(self, chance: random.Random, files: list[SourceFile]) -> None:
        while not self._stop.is_set():
            file = chance.choice(files)
            try:
                with PageClient(self._address, file.tenant, file.timeline) as client:
                    if client.status is Status.OK:
                        self._read_some(client, file, chance)
                    else:
                        self.tally.add(client.status, file.tenant)
                        self._stop.wait(0.05)
            except ConnectionBrokenError:
                self.tally.add("broken", file.tenant)
                self._stop.wait(0.05)

    def _read_some(self, client: PageClient, file: SourceFile, chance: random.Random) -> None:
        if not client.versions:
            self.tally.add(Status.NOT_YET, file.tenant)
            self._stop.wait(0.05)
            return
        last = self._settings.versions
        page_size = self._settings.page_size
        for _ in range(_REQUESTS_PER_CONNECTION):
            if self._stop.is_set():
                return
            version = chance.randint(min(client.versions), min(last, max(client.versions) + 1))
            page = chance.randrange(versions.page_count(file.size, page_size))
            answer = client.get_page(version, page)
            status = Status(answer.header["status"])
            self.tally.add(status, file.tenant)
            if status is Status.STOPPING:
                return
            if status is Status.ERROR:
                self.tally.add_wrong(f"{file.tenant}/{file.timeline}: {answer.header['error']}")
            elif status is Status.OK:
                expected = versions.version_page(
                    self._originals[file], file.key, version, last, page, page_size
                )
                if answer.payload != expected:
                    self.tally.add_wrong(
                        f"{file.tenant}/{file.timeline}: page {page} of version {version} is wrong"
                    )
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """End all threads and wait for them. May be called again."""
        self._stop.set()
        while self._threads:
            self._threads.pop().join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
