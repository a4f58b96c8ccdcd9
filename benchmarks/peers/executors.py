"""What the drivers of `concurrent.futures` interfaces share."""

from typing import Any

import bodies
import driver


class Executor(driver.Peer):
    """`submit` and `map` of `self.executor`, which `begin` makes."""

    executor: Any

    def submit(self) -> Any:
        return self.executor.submit(bodies.noop)

    def result(self, pending: Any) -> Any:
        return pending.result()

    def map(self, n: int, chunk: int) -> dict[str, Any]:
        """`n` calls in chunks, until all results are in."""
        began = driver.now()
        for _ in self.executor.map(bodies.noop_of, range(n), chunksize=chunk):
            pass
        return {"seconds": driver.now() - began, "n": n}

    def payload(self, size: int, n: int) -> list[float]:
        """Seconds for `size` bytes there and back, `n` times."""
        value, times = bytes(size), []
        for _ in range(n):
            began = driver.now()
            assert len(self.executor.submit(bodies.echo, value).result()) == size
            times.append(driver.now() - began)
        return times

    def close(self) -> None:
        self.executor.shutdown()
