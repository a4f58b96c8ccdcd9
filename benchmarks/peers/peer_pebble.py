"""pebble.ProcessPool: a pool that can stop a running call, by ending its process."""

import os
import tempfile
from typing import Any

import bodies
import driver
from waiting import until_dead, until_written


class Pebble(driver.Peer):
    """`schedule`, and `Future.cancel` of a running call."""

    package = "pebble"

    def begin(self) -> None:
        from pebble import ProcessPool

        self.pool = ProcessPool(max_workers=driver.WORKERS)

    def submit(self) -> Any:
        return self.pool.schedule(bodies.noop)

    def result(self, pending: Any) -> Any:
        return pending.result()

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from `cancel` to the end of the process; it has no gentler way."""
        assert how == "asleep"
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(n):
                path = os.path.join(folder, str(number))
                future = self.pool.schedule(bodies.sleep_for_long, args=(path,))
                pid = int(until_written(path))
                began = driver.now()
                future.cancel()
                times.append(until_dead(pid) - began)
        return times

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()


if __name__ == "__main__":
    driver.serve(Pebble())
