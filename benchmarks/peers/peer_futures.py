"""concurrent.futures.ProcessPoolExecutor of the standard library."""

import driver
from executors import Executor


class Futures(Executor):
    """Its default way to start processes."""

    def begin(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.executor = ProcessPoolExecutor(driver.WORKERS)


if __name__ == "__main__":
    driver.serve(Futures())
