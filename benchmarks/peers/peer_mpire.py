"""mpire.WorkerPool."""

from typing import Any

import bodies
import driver


class Mpire(driver.Peer):
    """`apply_async` and `map`."""

    package = "mpire"

    def begin(self) -> None:
        from mpire import WorkerPool

        self.pool = WorkerPool(n_jobs=driver.WORKERS, keep_alive=True)

    def submit(self) -> Any:
        return self.pool.apply_async(bodies.noop)

    def result(self, pending: Any) -> Any:
        return pending.get()

    def close(self) -> None:
        self.pool.terminate()


if __name__ == "__main__":
    driver.serve(Mpire())
