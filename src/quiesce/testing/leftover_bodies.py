"""Task bodies that leave callbacks, timers and the like behind; each leaves signs in files."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from quiesce.context import (
    current_task_id,
    is_shutdown_requested,
    shutdown_token,
    wait_for_shutdown,
)
from quiesce.testing.worker_bodies import mark

#: Seconds that a callback takes.
_LONG = 0.5


def token_callback(folder: str) -> None:
    """End when asked, while a callback of the token goes on, which begins a thread."""

    def goes_on() -> None:
        time.sleep(_LONG)
        mark(folder, "thread-over")

    def callback() -> None:
        time.sleep(_LONG)
        mark(folder, "callback-over", str(current_task_id()))
        threading.Thread(target=goes_on).start()

    shutdown_token().add_callback(callback)
    mark(folder, "begun")
    while not is_shutdown_requested():
        time.sleep(0.005)


def done_callback(folder: str) -> None:
    """Return while a call in a pool goes on; its callback takes long, and submits another call."""
    pool = ThreadPoolExecutor(1)

    def last() -> None:
        time.sleep(_LONG)
        mark(folder, "last-over", str(current_task_id()))

    def callback(future: Future[bool]) -> None:
        time.sleep(_LONG)
        mark(folder, "callback-over", str(current_task_id()))
        pool.submit(last)

    pool.submit(wait_for_shutdown).add_done_callback(callback)
    mark(folder, "begun")


def cancelled_call(folder: str) -> str:
    """Cancel a call before it has run: its callbacks run in here, and nothing is left."""
    said: list[str] = []
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        call = pool.submit(mark, folder, "ran")
        call.add_done_callback(lambda _: said.append(str(current_task_id())))
        call.cancel()
        go.set()
    return ",".join(said)
