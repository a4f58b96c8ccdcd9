"""Values by their digests, so that a state of the whole cluster is a small tuple of integers.

Digests depend on nothing but the value, so that processes which explore together can exchange them.
"""

import io
import pickle
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

#: Entries of one memo, before it begins anew.
MEMO: Final = 2_000_000


class Store:
    """Values are plain: tuples, lists, strings, bytes, numbers, None; and NamedTuples of these."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def put(self, value: Any) -> int:
        """Its digest. Equal values of the same types have the same, different ones don't (but for one in 2**63)."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, 5)
        pickler.fast = True  # no references: what was shared makes no difference
        pickler.dump(value)
        digest = blake2b(buffer.getbuffer(), digest_size=8).digest()
        key = int.from_bytes(digest, "little") >> 1
        self._values.setdefault(key, value)
        return key

    def __getitem__(self, key: int) -> Any:
        return self._values[key]

    def __contains__(self, key: int) -> bool:
        return key in self._values

    def learn(self, values: dict[int, Any]) -> None:
        """What another store has."""
        for key, value in values.items():
            self._values.setdefault(key, value)


class Memo:
    """Machines are pure, so what one has done in a state with an input it need not do again."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        self.hits = 0
        self.misses = 0

    def __call__(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, or has given for this key."""
        found = self._found.get(key)
        if found is None:
            self.misses += 1
            found = make()
            if len(self._found) >= MEMO:
                self._found.clear()
            self._found[key] = found
        else:
            self.hits += 1
        return found
