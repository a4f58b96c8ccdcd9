"""A lock that a signal's handler leaves to nobody, whatever it raises in the main thread, and wherever."""

import sys
from _thread import RLock

__all__ = ["Lock"]

if sys.version_info >= (3, 14):

    class Lock(RLock):
        """`with` calls the `__enter__` of a lock as it does any function since Python 3.14: a handler may run when
        it has returned, and what that raises leaves the statement before it has begun.
        """

        __slots__ = ()

        def __enter__(self) -> bool:
            try:
                return self.acquire()
            except BaseException:
                try:
                    self.release()
                except RuntimeError:  # it has not come to that, and the lock is another's
                    pass
                raise

else:
    Lock = RLock
