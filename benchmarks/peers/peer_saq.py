"""SAQ over Redis. Its two workers import this file, too, with the address in the environment."""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import driver
from redis_server import Redis
from waiting import until_written


async def noop(_: Any) -> None:
    """Return at once."""


def note(path: str, text: str) -> None:
    """For the driver, in a file."""
    Path(path).write_text(text)


async def until_aborted(_: Any, path: str) -> None:
    """Say by a file that it runs, and write the time at which it was cancelled beside it."""
    note(path, str(os.getpid()))
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note(path + ".seen", repr(driver.now()))
        raise


def make_queue(path: str) -> Any:
    """The queue in a server that listens at this path."""
    from redis.asyncio import from_url
    from saq.queue.redis import RedisQueue

    return RedisQueue(from_url(f"unix://{path}"))


if address := os.environ.get("BENCH_REDIS"):
    settings = {
        "queue": make_queue(address),
        "functions": [noop, until_aborted],
        "concurrency": 10,
    }


class Saq(driver.Peer):
    """`enqueue` and `refresh(until_complete)`; two worker processes with ten coroutines each."""

    package = "saq"

    def begin(self) -> None:
        self.redis = Redis()
        self.loop = asyncio.new_event_loop()
        self.queue = make_queue(str(self.redis.path))
        self.loop.run_until_complete(self.queue.connect())
        self.workers = [
            subprocess.Popen(
                [sys.executable, "-m", "saq", "peer_saq.settings", "--quiet"],
                env={**os.environ, "BENCH_REDIS": str(self.redis.path)},
                cwd=os.path.dirname(os.path.abspath(__file__)),
                stdin=subprocess.DEVNULL,
            )
            for _ in range(driver.WORKERS)
        ]

    async def _enqueue(self) -> Any:
        return await self.queue.enqueue("noop")

    def submit(self) -> Any:
        return self.loop.run_until_complete(self._enqueue())

    def result(self, pending: Any) -> Any:
        self.loop.run_until_complete(pending.refresh(until_complete=60))

    def individual(self, n: int) -> dict[str, Any]:
        """As the others, 200 at a time: more wait for each other's notifications."""

        async def all_of_them(count: int) -> None:
            jobs = [await self.queue.enqueue("noop") for _ in range(count)]
            await asyncio.gather(*(job.refresh(until_complete=60) for job in jobs))

        began = driver.now()
        for first in range(0, n, 200):
            self.loop.run_until_complete(all_of_them(min(200, n - first)))
        return {"seconds": driver.now() - began, "n": n}

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from `abort` to when the coroutine is cancelled."""
        assert how == "asleep"
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(n):
                path = os.path.join(folder, str(number))
                job = self.loop.run_until_complete(self.queue.enqueue("until_aborted", path=path))
                until_written(path)
                began = driver.now()
                self.loop.run_until_complete(job.abort("bench"))
                times.append(float(until_written(path + ".seen")) - began)
        return times

    def close(self) -> None:
        self.loop.run_until_complete(self.queue.disconnect())
        for worker in self.workers:
            worker.terminate()
        try:
            for worker in self.workers:
                worker.wait(15)
        finally:
            self.redis.close()


if __name__ == "__main__":
    driver.serve(Saq())
