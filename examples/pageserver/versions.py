"""The history of a timeline, made from one file: its versions, and the records between them.

The last version is the file itself. In an earlier version some of its pages are masked: combined
with a stream of bytes that depends on the timeline, the version and the page only. So anyone who
has the original can say what any version must hold, and its hash, without asking the page server.
"""

import hashlib
from collections.abc import Iterator

from quiesce.examples.pageserver import wal


def page_count(size: int, page_size: int) -> int:
    """Return the number of pages of so many bytes; the last one may be short."""
    return -(-size // page_size)


def is_masked(key: str, version: int, last: int, page: int, pages: int) -> bool:
    """Tell whether a version holds this page otherwise than the original does.

    Each version but the last differs in about a third of its pages, and in one at least.
    """
    if version >= last:
        return False
    if page == version % pages:
        return True
    return hashlib.blake2b(f"{key}\0{version}\0{page}".encode(), digest_size=1).digest()[0] % 3 == 0


def mask(page: bytes, key: str, version: int, number: int) -> bytes:
    """Mask a page, or take the mask off again: doing it twice gives the page back."""
    stream = hashlib.shake_128(f"{key}\0{version}\0{number}".encode()).digest(len(page))
    return (int.from_bytes(page) ^ int.from_bytes(stream)).to_bytes(len(page))


def version_page(
    original: bytes, key: str, version: int, last: int, number: int, page_size: int
) -> bytes:
    """Return what a version holds at a page."""
    page = original[number * page_size : (number + 1) * page_size]
    if is_masked(key, version, last, number, page_count(len(original), page_size)):
        return mask(page, key, version, number)
    return page


def version_bytes(original: bytes, key: str, version: int, last: int, page_size: int) -> bytes:
    """Return the whole of a version."""
    return b"".join(
        version_page(original, key, version, last, number, page_size)
        for number in range(page_count(len(original), page_size))
    )


def expected_hash(original: bytes, key: str, version: int, last: int, page_size: int) -> str:
    """Return the sha256 that a version must have."""
    return hashlib.sha256(version_bytes(original, key, version, last, page_size)).hexdigest()


def changed_pages(key: str, version: int, last: int, pages: int) -> list[int]:
    """Return the pages that a version holds otherwise than the one before it; in the first, all."""
    return [
        page
        for page in range(pages)
        if version == 1
        or is_masked(key, version - 1, last, page, pages)
        or is_masked(key, version, last, page, pages)
    ]


def stream_length(size: int, key: str, last: int, page_size: int) -> int:
    """Return the number of records in a timeline's whole stream."""
    pages = page_count(size, page_size)
    return sum(len(changed_pages(key, version, last, pages)) + 1 for version in range(1, last + 1))


def stream(
    original: bytes, key: str, last: int, page_size: int, after: int = 0
) -> Iterator[wal.Record]:
    """Yield the records of all versions, or those above an LSN, for a stream that broke there."""
    size = len(original)
    pages = page_count(size, page_size)
    lsn = 0
    for version in range(1, last + 1):
        for number in changed_pages(key, version, last, pages):
            lsn += wal.record_size(min(page_size, size - number * page_size))
            if lsn > after:
                data = version_page(original, key, version, last, number, page_size)
                yield wal.Record(lsn, number, data)
        end = wal.commit_record(0, version, size)
        lsn += wal.record_size(len(end.data))
        if lsn > after:
            yield end._replace(lsn=lsn)
