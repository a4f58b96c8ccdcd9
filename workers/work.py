"""What a supervisor starts as a worker process. It names this and loads none of what a worker needs.

Worker processes find it by its name, so it imports nothing by itself: what ends a worker with its supervisor comes
first, the rest takes a while.
"""

from typing import NoReturn


def work(
    settings_json: str, supervisor: bytes, supervisor_pid: int, serial: int, place: int, table: str
) -> NoReturn:
    """The whole life of a worker process, see `worker.worker_main`."""
    from quiesce.workers import kernel

    kernel.die_with_parent(supervisor_pid)
    from quiesce.workers.worker import worker_main

    worker_main(settings_json, supervisor, serial, place, table)
