"""multiprocess.Pool: the fork of multiprocessing that pickles with dill."""

import driver
import peer_pool


class Pool(peer_pool.Pool):
    """As multiprocessing.Pool."""

    package = "multiprocess"

    def begin(self) -> None:
        import multiprocess

        self.pool = multiprocess.Pool(driver.WORKERS)


if __name__ == "__main__":
    driver.serve(Pool())
