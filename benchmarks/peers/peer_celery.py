"""Celery over Redis. Its workers import this file, too, with the address in the environment."""

import os
import subprocess
import sys
from typing import Any

import bodies
import driver
from redis_server import Redis


def make_app(path: str) -> Any:
    """The application for a server that listens at this path."""
    from celery import Celery

    app = Celery("bench", broker=f"redis+socket://{path}", backend=f"redis+socket://{path}")
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_ignore_result=False,
        worker_hijack_root_logger=False,
    )
    return app


if address := os.environ.get("BENCH_REDIS"):
    app = make_app(address)
    noop = app.task(name="noop")(bodies.noop)


class CeleryPeer(driver.Peer):
    """`delay` and `get`, with the worker's own pool of processes."""

    package = "celery"

    def begin(self) -> None:
        self.redis = Redis()
        self.app = make_app(str(self.redis.path))
        self.noop = self.app.task(name="noop")(bodies.noop)
        words = "-A peer_celery worker -c 2 -P prefork -l WARNING --without-gossip --without-mingle"
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "celery", *words.split()],
            env={**os.environ, "BENCH_REDIS": str(self.redis.path), "C_FORCE_ROOT": "1"},
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdin=subprocess.DEVNULL,
        )

    def submit(self) -> Any:
        return self.noop.delay()

    def result(self, pending: Any) -> Any:
        return pending.get(timeout=60, interval=0.001)

    def close(self) -> None:
        self.worker.terminate()
        try:
            self.worker.wait(15)
        finally:
            self.redis.close()


if __name__ == "__main__":
    driver.serve(CeleryPeer())
