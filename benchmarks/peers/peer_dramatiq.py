"""dramatiq over Redis. Its workers import this file, too, with the address in the environment."""

import os
import subprocess
import sys
from typing import Any

import bodies
import driver
from redis_server import Redis


def make_noop(path: str) -> Any:
    """The actor for a server that listens at this path."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(url=f"unix://{path}")
    broker.add_middleware(Results(backend=RedisBackend(url=f"unix://{path}")))
    dramatiq.set_broker(broker)
    return dramatiq.actor(bodies.noop, store_results=True)


if address := os.environ.get("BENCH_REDIS"):
    noop = make_noop(address)


class Dramatiq(driver.Peer):
    """`send` and `get_result`."""

    package = "dramatiq"

    def begin(self) -> None:
        self.redis = Redis()
        self.noop = make_noop(str(self.redis.path))
        words = "peer_dramatiq --processes 2 --threads 1 --skip-logging"
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "dramatiq", *words.split()],
            env={**os.environ, "BENCH_REDIS": str(self.redis.path)},
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdin=subprocess.DEVNULL,
        )

    def submit(self) -> Any:
        return self.noop.send()

    def result(self, pending: Any) -> Any:
        return pending.get_result(block=True, timeout=60_000)

    def close(self) -> None:
        self.worker.terminate()
        try:
            self.worker.wait(15)
        finally:
            self.redis.close()


if __name__ == "__main__":
    driver.serve(Dramatiq())
