"""huey over Redis. Its workers import this file, too, with the address in the environment."""

import os
import subprocess
import sys
from typing import Any

import bodies
import driver
from redis_server import Redis


def make_huey(path: str) -> Any:
    """The queue in a server that listens at this path."""
    from huey import RedisHuey

    return RedisHuey("bench", url=f"unix://{path}", blocking=True, notify_result=True)


def noop() -> int:
    """Huey stores no result that is None, so this gives a number."""
    return 0


if address := os.environ.get("BENCH_REDIS"):
    huey = make_huey(address)
    task = huey.task()(noop)


class Huey(driver.Peer):
    """Tasks and `get(blocking=True)`."""

    package = "huey"

    def begin(self) -> None:
        self.redis = Redis()
        self.task = make_huey(str(self.redis.path)).task()(noop)
        # The consumer must know the task under the name that it has here: that of `__main__`.
        code = (
            "import sys; sys.argv[1:] = ['peer_huey.huey', '-k', 'process', '-w', '2', '-n', '-q'];"
            "import peer_huey; from huey.bin.huey_consumer import consumer_main; consumer_main()"
        )
        self.worker = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "BENCH_REDIS": str(self.redis.path)},
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdin=subprocess.DEVNULL,
        )

    def submit(self) -> Any:
        return self.task()

    def result(self, pending: Any) -> Any:
        return pending.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.001)

    def close(self) -> None:
        self.worker.terminate()
        try:
            self.worker.wait(15)
        finally:
            self.redis.close()


if __name__ == "__main__":
    import peer_huey

    bodies.noop.__module__ = "bodies"
    driver.serve(peer_huey.Huey())
