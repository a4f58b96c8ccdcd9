"""Parsl's HighThroughputExecutor on this machine."""

import tempfile
from typing import Any

import bodies
import driver


class Parsl(driver.Peer):
    """`HighThroughputExecutor.submit`, below Parsl's graph of dependencies."""

    package = "parsl"

    def begin(self) -> None:
        import parsl
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        self.folder = tempfile.TemporaryDirectory(prefix="p-")
        executor = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=driver.WORKERS,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
            encrypted=False,
        )
        self.parsl = parsl
        parsl.load(Config(executors=[executor], run_dir=self.folder.name))
        self.executor = executor

    def submit(self) -> Any:
        return self.executor.submit(bodies.noop, {})

    def result(self, pending: Any) -> Any:
        return pending.result()

    def close(self) -> None:
        self.parsl.dfk().cleanup()
        self.folder.cleanup()


if __name__ == "__main__":
    driver.serve(Parsl())
