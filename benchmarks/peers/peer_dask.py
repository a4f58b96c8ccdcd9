"""Dask distributed with a local cluster of processes."""

import os
import tempfile
from typing import Any

import bodies
import driver
from waiting import until_written


def wait_for_event(path: str, name: str) -> float:
    """Look at an Event of the scheduler, as Dask's documentation advises, until it is set."""
    import time
    from pathlib import Path

    from distributed import Event

    event = Event(name)
    Path(path).write_text(str(os.getpid()))
    while not event.is_set():
        time.sleep(0.001)
    return time.monotonic()


class Dask(driver.Peer):
    """`Client.submit`; a running task can't be stopped, so it asks the scheduler in a loop."""

    package = "distributed"

    def begin(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=driver.WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = Client(self.cluster)

    def submit(self) -> Any:
        return self.client.submit(bodies.noop, pure=False)

    def result(self, pending: Any) -> Any:
        return pending.result()

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from setting the event to when the task sees it."""
        from distributed import Event

        assert how == "asleep"
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(n):
                path = os.path.join(folder, str(number))
                event = Event(path, client=self.client)
                future = self.client.submit(wait_for_event, path, path, pure=False)
                until_written(path)
                began = driver.now()
                event.set()
                times.append(future.result() - began)
        return times

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


if __name__ == "__main__":
    driver.serve(Dask())
