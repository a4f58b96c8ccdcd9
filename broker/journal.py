"""Where facts go before their effects leave.

`MemoryJournal` keeps nothing: after the broker's death its tasks are gone, and `quiesce up` stops. It has the
shape that a journal on disk has too: facts and effects go in, and effects come out once their facts are safe.
The epoch is durable already: it grows by one at each start, and stale peers are refused by it.
"""

import os
from pathlib import Path
from typing import Protocol

from quiesce.registry.effects import Effect
from quiesce.registry.facts import Fact


class Journal(Protocol):
    """A turn's facts go in with the effects that must wait for them."""

    durability: str

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn."""

    def committed(self) -> list[Effect]:
        """The effects whose facts are safe by now, in order."""

    def close(self) -> None:
        """Finish what was taken."""


class MemoryJournal:
    """Facts live as long as the broker."""

    durability = "none"

    def __init__(self) -> None:
        self._ready: list[Effect] = []

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn; its effects are ready at once."""
        del facts
        self._ready.extend(effects)

    def committed(self) -> list[Effect]:
        """All effects that were taken since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Nothing is pending."""


def next_epoch(state: Path) -> int:
    """The epoch of this start, durable before anyone hears of it.

    Raises:
        OSError: the state folder can't be written.
        ValueError: the file holds no number; the text says what to do.
    """
    path = state / "epoch"
    text = path.read_text() if path.exists() else "0"
    if not text.strip().isdigit():
        raise ValueError(
            f"{path} should hold the number of the broker's last start, but holds {text[:40]!r}; "
            "write a number there that is higher than any before"
        )
    epoch = int(text) + 1
    fresh = state / "epoch.new"
    with fresh.open("w") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return epoch
