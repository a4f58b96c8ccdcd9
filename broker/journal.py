"""Where facts go before their effects leave: what every journal does, and the one that keeps nothing.

    append(facts, effects)  a turn of the registry goes in
    committed()             the effects come out, in order, once their facts are safe

The journal on disk is made of: `journal_open` (finds what there is, and begins), `journal_thread` (the
journal itself: the loop's side and the thread that writes), `journal_store` and `journal_rows` (SQLite),
`journal_read` (reads everything back and checks it), `journal_head` (the independent record of what was
committed), `journal_space` (room on the disk). `journal_check` is for `quiesce doctor`.

The epoch is durable with any journal: it grows by one at each start, and stale peers are refused by it.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quiesce.registry.effects import Effect
from quiesce.registry.facts import Fact


class JournalFailedError(Exception):
    """The journal can't be written any more: the broker must end, and recover. Never tried again."""


class JournalDamagedError(Exception):
    """What the journal holds is not all that was written; the text says what, where, and how to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalLimits:
    """How a journal behaves. Sizes in bytes.

    `snapshot_facts`, `snapshot_bytes`: a tail longer than this, and than twice the last snapshot, wants a
    new one. `group`: facts that one commit takes, at most (but whole turns). `checkpoint`: what may be
    written before SQLite's log goes into its file. `reserve`: kept on the disk for when it is full.
    `margin`: with less than this left on the disk, there is no room for new spawns.
    """

    snapshot_facts: int = 50_000
    snapshot_bytes: int = 128 * 2**20
    group: int = 5_000
    checkpoint: int = 2 * 2**20
    reserve: int = 8 * 2**20
    margin: int = 32 * 2**20


class Journal(Protocol):
    """A turn's facts go in with the effects that must wait for them. All of it is called on the loop's thread."""

    durability: str

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn. Never waits for the disk."""

    def committed(self) -> list[Effect]:
        """The effects whose facts are safe by now, in order, each once; but the binding ones among themselves: they
        may come later than others that were caused after them.

        Raises:
            JournalFailedError: the journal has failed, and all that was safe before has been handed out.
        """

    @property
    def behind(self) -> bool:
        """Whether something that was taken is not safe yet."""

    def fileno(self) -> int:
        """Readable when `committed` has something new to say; -1: it always has, at once."""

    def clear_wakeup(self) -> None:
        """Make `fileno` unreadable again; `committed` does so by itself."""

    def wants_snapshot(self) -> bool:
        """Whether the tail is so long that recovery would be slow."""

    def snapshot(self, frozen: tuple[Any, ...]) -> None:
        """Take the registry as it stands after all that was appended so far.

        It is written by and by; then what it makes superfluous is deleted.
        """

    def room(self) -> bool:
        """False while the disk is full, or nearly: nothing new should be begun."""

    def vouch(self) -> None:
        """Whatever an incomplete journal may have lost can't matter any more: the next start need not wait.

        To be called once the broker has waited as long as an incomplete journal demands.
        """

    def close(self) -> None:
        """Commit what was taken, and mark the journal as complete.

        Raises:
            JournalFailedError: it can't be written; unless `committed` has said so before.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """What was found at the start.

    `snapshot`: a frozen registry as plain tuples (payloads as bytes or Frame), or None. `facts`: those after
    it. `last_epoch`: of the last broker that wrote here, 0 if none did; the `epoch` file counts too. `complete`:
    nothing that was acknowledged can be missing. `words`: all this for the log.
    """

    snapshot: tuple[Any, ...] | None
    facts: Iterable[Fact]
    last_epoch: int
    complete: bool
    words: str


class MemoryJournal:
    """Facts live as long as the broker.

    `mark` is told when the first one comes ("began"), of a vouch ("vouched") and of an orderly end ("clean").
    """

    durability = "none"

    def __init__(self, mark: Callable[[str], None] | None = None) -> None:
        self._ready: list[Effect] = []
        self._mark = mark or (lambda what: None)
        self._began = False

    def append(self, facts: list[Fact], effects: list[Effect]) -> None:
        """Take one turn; its effects are ready at once."""
        if facts and not self._began:
            self._began = True
            self._mark("began")
        self._ready.extend(effects)

    def committed(self) -> list[Effect]:
        """All effects that were taken since the last call."""
        ready, self._ready = self._ready, []
        return ready

    @property
    def behind(self) -> bool:
        """Never."""
        return False

    def fileno(self) -> int:
        """There is nothing to wait for."""
        return -1

    def clear_wakeup(self) -> None:
        """There is nothing to wait for."""

    def wants_snapshot(self) -> bool:
        """Never."""
        return False

    def snapshot(self, frozen: tuple[Any, ...]) -> None:
        """Nothing is kept."""

    def room(self) -> bool:
        """Always."""
        return True

    def vouch(self) -> None:
        """Leave a mark."""
        self._mark("vouched")

    def close(self) -> None:
        """Nothing is pending; leave the mark of an orderly end."""
        self._mark("clean")


def read_epoch(state: Path) -> int:
    """The epoch of the last start, 0 if there was none.

    Raises:
        OSError: the file can't be read.
        ValueError: the file holds no number; the text says what to do.
    """
    path = state / "epoch"
    text = path.read_text() if exists(path) else "0"
    if not text.strip().isdigit():
        raise ValueError(
            f"{path} should hold the number of the broker's last start, but holds {text[:40]!r}; "
            "write a number there that is higher than any before"
        )
    return int(text)


def next_epoch(state: Path, least: int = 0) -> int:
    """The epoch of this start, above `least`; durable before anyone hears of it.

    Raises:
        OSError: the state folder can't be written.
        ValueError: as `read_epoch`.
    """
    epoch = max(read_epoch(state), least) + 1
    fresh = state / "epoch.new"
    with fresh.open("w") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(state / "epoch")
    sync_folder(state)
    return epoch


def exists(path: Path) -> bool:
    """Whether there is such a file. Since Python 3.14 `Path.exists` says no, too, where that can't be seen.

    Raises:
        OSError: nobody can tell.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
