"""multiprocessing.Pool of the standard library: the fastest pool here."""

from typing import Any

import bodies
import driver


class Pool(driver.Peer):
    """`apply_async` and `map`."""

    def begin(self) -> None:
        import multiprocessing

        self.pool = multiprocessing.Pool(driver.WORKERS)

    def submit(self) -> Any:
        return self.pool.apply_async(bodies.noop)

    def result(self, pending: Any) -> Any:
        return pending.get()

    def map(self, n: int, chunk: int) -> dict[str, Any]:
        """`n` calls in chunks, until all results are in."""
        began = driver.now()
        self.pool.map(bodies.noop_of, range(n), chunksize=chunk)
        return {"seconds": driver.now() - began, "n": n}

    def payload(self, size: int, n: int) -> list[float]:
        """Seconds for `size` bytes there and back, `n` times."""
        value, times = bytes(size), []
        for _ in range(n):
            began = driver.now()
            assert len(self.pool.apply(bodies.echo, (value,))) == size
            times.append(driver.now() - began)
        return times

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


if __name__ == "__main__":
    driver.serve(Pool())
