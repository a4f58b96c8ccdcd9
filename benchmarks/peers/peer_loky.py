"""loky: the executor of joblib."""

import driver
from executors import Executor


class Loky(Executor):
    """`get_reusable_executor`."""

    package = "loky"

    def begin(self) -> None:
        from loky import get_reusable_executor

        self.executor = get_reusable_executor(driver.WORKERS, timeout=600)

    def close(self) -> None:
        self.executor.shutdown(wait=True, kill_workers=True)


if __name__ == "__main__":
    driver.serve(Loky())
