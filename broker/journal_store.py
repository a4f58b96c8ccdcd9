"""The journal's store: its rows, and snapshots of the registry that make the rows before them superfluous."""

import time
from collections.abc import Iterator
from typing import Any, Final

from quiesce.broker.journal_read import Found, Manifest, chain_chunk
from quiesce.broker.journal_rows import OVERHEAD, Rows
from quiesce.protocol.fact_codec import FORMAT, BlobRef

#: Bytes of one piece of a snapshot (no commit comes in between), and rows deleted at once.
CHUNK: Final = 16 * 1024
SLICE: Final = 500
#: Seconds between a snapshot that was given up and the next.
PAUSE: Final = 60.0
_INSERT_CHUNK: Final = "INSERT INTO chunks (id, body, checksum) VALUES (?,?,?)"
_INSERT_MANIFEST: Final = (
    "INSERT INTO snapshots (seq, version, epoch, first, chunks, chain, checksum, seal)"
    " VALUES (?,?,?,?,?,?,?,?)"
)


class Store(Rows):
    """All of it. See `Rows` for how it is made, and who uses it."""

    def _prepare(self, found: Found) -> None:
        super()._prepare(found)
        self.snapshot_weight = weight(found.frozen or ())
        self.snapshot_bytes = found.snapshot_bytes
        self.paused_until = 0.0
        self._manifest_seq = found.manifest.seq if found.manifest else 0
        (highest,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
        self._next_chunk = highest + 1

    def snapshot(self, frozen: tuple[Any, ...]) -> Iterator[None]:
        """Write the registry as of the last row, a little between two yields, and then delete what is older.

        Between yields rows may be committed. Whenever it ends, what stands on the disk is good. It is given up
        when there is little room left: the rest of it, and the reserve, are for commits.
        """
        cut, facts, size = self.last, self.tail_facts, self.tail_bytes
        heavy = weight(frozen)
        self._since_cut = set()
        names: set[int] = set()
        chunks = self._chunks(frozen, names)
        del frozen
        first = self._next_chunk
        checksum, number, written = cut.checksum, 0, 0
        for body in chunks:
            self.space.look(len(body) + self._fresh_size(), now=True)
            if not self.space.roomy:
                yield from self._give_up(first, number)
                return
            checksum = chain_chunk(checksum, body)
            self._next_chunk += 1
            written += len(body)
            self._has_logged(len(body) + self._fresh_size())
            self._set_sync(False)
            self._write(_INSERT_CHUNK, (first + number, body, checksum), reserved=False)
            number += 1
            yield
        manifest = Manifest(cut.seq, FORMAT, cut.epoch, first, number, cut.checksum, checksum)
        self._set_sync(False)
        self._replace_manifest(manifest)
        # From here on it counts.
        self.tail_facts -= facts
        self.tail_bytes -= size
        self.snapshot_weight = heavy
        self.snapshot_bytes = written + sum(
            ref.size for ref in self._known.values() if ref.id in names
        )
        low, self._manifest_seq = self._manifest_seq, cut.seq
        kept = names | self._since_cut
        doomed = [ref for ref in self._known.values() if ref.id not in kept]
        for ref in doomed:
            del self._known[ref.digest]  # before the next row could name it again
        yield
        for statement, bounds in self._deletions(low, cut.seq, first, doomed):
            self._erase(statement, bounds)
            yield
        yield from self._shrink()
        self._checkpoint("TRUNCATE")
        self.space.look(now=True)

    def _give_up(self, first: int, count: int) -> Iterator[None]:
        """Little room is left: take back what was written of a snapshot."""
        for ref, _ in self._fresh:
            del self._known[ref.digest]
        self._fresh = []
        self.pause_snapshots()
        for start in range(first, first + count, SLICE // 10):
            end = min(start + SLICE // 10, first + count)
            self._erase("DELETE FROM chunks WHERE id >= ? AND id < ?", (start, end))
            yield

    def pause_snapshots(self) -> None:
        """One has been given up: try no other for a while."""
        self.paused_until = time.monotonic() + PAUSE

    def _chunks(self, frozen: tuple[Any, ...], names: set[int]) -> Iterator[bytes]:
        pieces: list[bytes] = []
        size = 0
        self._naming = names
        packed = self._packer.frozen(frozen)
        del frozen
        for piece in packed:
            pieces.append(piece)
            size += len(piece)
            if size + self._fresh_size() >= CHUNK:
                yield b"".join(pieces)
                self._naming = names
                pieces, size = [], 0
        if pieces:
            yield b"".join(pieces)

    def _replace_manifest(self, manifest: Manifest) -> None:
        def write() -> None:
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            execute("DELETE FROM snapshots")
            execute(_INSERT_MANIFEST, (*manifest, manifest.seal()))
            execute("COMMIT")

        self._persist(write)

    def _erase(self, statement: str, bounds: tuple[int, int]) -> None:
        self._set_sync(False)
        self._persist(lambda: self._connection.execute(statement, bounds))
        self._has_logged(OVERHEAD)

    def _deletions(
        self, low: int, high: int, first_chunk: int, doomed: list[BlobRef]
    ) -> Iterator[tuple[str, tuple[int, int]]]:
        """What a snapshot makes superfluous, in slices."""
        for start in range(low, high, SLICE):
            end = min(start + SLICE, high)
            yield "DELETE FROM facts WHERE seq > ? AND seq <= ?", (start, end)
        (lowest,) = self._connection.execute("SELECT min(id) FROM chunks").fetchone()
        for start in range(lowest or first_chunk, first_chunk, SLICE // 10):
            end = min(start + SLICE // 10, first_chunk)
            yield "DELETE FROM chunks WHERE id >= ? AND id < ?", (start, end)
        for ref in doomed:
            yield "DELETE FROM blobs WHERE id >= ? AND id < ?", (ref.id, ref.id + ref.parts)

    def _shrink(self) -> Iterator[None]:
        """Give pages back to the disk while most of the file is empty: what is left serves the next rows."""
        while True:
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
            if free < 4096 or free < pages / 2:
                return
            # A page with each step of the statement; `execute` would take but one.
            self._connection.executescript("PRAGMA incremental_vacuum(256)")
            yield


def weight(frozen: tuple[Any, ...]) -> int:
    """How many things a frozen registry holds."""
    return sum(len(section) for section in frozen if isinstance(section, tuple))
