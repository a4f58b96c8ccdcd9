"""What handlers raise leaves no lock of ours behind."""

import signal
import threading
from collections.abc import Iterator

import pytest

from quiesce.locks import Lock


def raise_it(number: int, frame: object) -> None:
    raise TimeoutError("on purpose")


@pytest.fixture
def alarms() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, raise_it)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def is_free(lock: Lock) -> bool:
    """To another thread."""
    found: list[bool] = []

    def look() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("alarms")
def test_a_handler_that_raises_leaves_no_lock_behind() -> None:
    lock = Lock()
    for n in range(300):
        with pytest.raises(TimeoutError):
            signal.setitimer(signal.ITIMER_REAL, (n + 1) * 1e-6)
            while True:
                with lock:
                    pass
        assert is_free(lock), n


def test_a_handler_that_raises_leaves_alone_the_lock_of_another(alarms: None) -> None:
    lock, held, over = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(TimeoutError):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with lock:
            pass
    assert not is_free(lock)
    over.set()
    thread.join()
    assert is_free(lock)


def test_it_is_reentrant() -> None:
    lock = Lock()
    with lock:
        with lock:
            assert not is_free(lock)
        assert not is_free(lock)
    assert is_free(lock)
