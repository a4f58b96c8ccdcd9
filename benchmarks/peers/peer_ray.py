"""Ray on this machine alone."""

import os
import tempfile
from typing import Any

import bodies
import driver
from waiting import until_written


class Ray(driver.Peer):
    """Remote functions; `ray.cancel` raises KeyboardInterrupt in a running one."""

    package = "ray"

    def begin(self) -> None:
        os.environ["RAY_DEDUP_LOGS"] = "0"
        import ray

        ray.init(
            num_cpus=driver.WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}},
        )
        self.ray = ray
        self.noop = ray.remote(bodies.noop)
        self.interruptible = ray.remote(bodies.interruptible)

    def submit(self) -> Any:
        return self.noop.remote()

    def result(self, pending: Any) -> Any:
        return self.ray.get(pending)

    def individual(self, n: int) -> dict[str, Any]:
        """As the others, but all are waited for in one call: that is Ray's faster way."""
        began = driver.now()
        self.ray.get([self.noop.remote() for _ in range(n)])
        return {"seconds": driver.now() - began, "n": n}

    def stop_seen(self, how: str, n: int) -> list[float]:
        """Seconds from `ray.cancel` to when the task is interrupted."""
        assert how == "asleep"
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(n):
                path = os.path.join(folder, str(number))
                pending = self.interruptible.remote(path)
                until_written(path)
                began = driver.now()
                self.ray.cancel(pending)
                try:
                    seen = self.ray.get(pending)
                except Exception:  # it may come between two statements: then the time is lost
                    continue
                times.append(seen - began)
        return times

    def close(self) -> None:
        self.ray.shutdown()


if __name__ == "__main__":
    driver.serve(Ray())
