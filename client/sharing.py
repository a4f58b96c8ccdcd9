"""How many chunks of a `map` go into one task of a QuiesceExecutor: by what the last ones took."""

from collections.abc import Callable
from typing import Any, Final

from quiesce.client import remote
from quiesce.client.calls import Call

#: So many chunks in a task at most, and no more behind so many bytes of arguments, or of results.
_MOST: Final = 64
_BYTES: Final = 64 * 1024
_RESULT_BYTES: Final = 256 * 1024
#: Nor behind such a part of what one message may hold: what fits alone must fit together with the others.
_PART: Final = 16


def together(fn: Callable[..., Any]) -> Callable[..., Any] | None:
    """What runs several calls of `fn` in one task; None: it is no chunk of a `map`.

    By identity: `fn` may be anything, also what can be neither hashed nor compared.
    """
    if fn is remote.chunk:
        return remote.chunks
    if fn is remote.chunk_async:
        return remote.chunks_async
    return None


class Sharing:
    """Of one executor; for its thread alone."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        #: So many chunks of this function (by its identity) a task does in its time.
        self._share = 1
        self._of = 0

    def share_for(self, call: Call, pending: int) -> int:
        """How many chunks may be in the task of this one: not those for which another worker may be idle."""
        if id(call.args[0]) != self._of:
            return 1
        return min(self._share, -(-pending // self._workers))

    def learn(self, call: Call, done: remote.Done) -> None:
        """A task of chunks like this one has done so many in that time."""
        each = done.seconds / len(done.results)
        self._share = min(_MOST, 1 + int(remote.SECONDS / max(each, 1e-6)))
        self._of = id(call.args[0])


def argument_room(payload_limit: int) -> int:
    """Bytes of arguments behind which no other chunk is put into the same task."""
    return min(_BYTES, payload_limit // _PART)


def result_room(payload_limit: int) -> int:
    """The same of the results of those that are done, behind which no other one is begun."""
    return min(_RESULT_BYTES, payload_limit // _PART)
