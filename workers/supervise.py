"""`python -m quiesce.workers.supervise`: one supervisor; its PoolSettings come as one line of JSON on stdin.

Worker processes import this module as their `__mp_main__`, so it imports nothing by itself.
"""


def main() -> None:
    """Run until the pool has ended."""
    import signal
    import sys

    # Its import takes as long as that of ZeroMQ. Without it multiprocess takes pickle, and a supervisor hands
    # plain values and a function's name to its workers; these have it.
    sys.modules["dill"] = None  # type: ignore[assignment]  # how an import is refused
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # until the supervisor has its own handler, or for good
    from quiesce.workers.settings import PoolSettings
    from quiesce.workers.supervisor import supervise

    supervise(PoolSettings.from_json(sys.stdin.readline()))


if __name__ == "__main__":
    main()
