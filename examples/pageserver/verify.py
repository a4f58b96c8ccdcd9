"""Reads every version of every timeline back, and compares hashes with the originals."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from quiesce.examples.pageserver import versions
from quiesce.examples.pageserver.source import Settings, SourceFile
from quiesce.examples.pageserver.wire import ConnectionBrokenError, PageClient, Status


@dataclass
class Verification:
    """What was read and found. `wrong` is empty iff everything was as it must be."""

    #: Timelines of which every kept version was right, versions that were, and how many of these
    #: had the hash of the file itself.
    timelines: int = 0
    versions: int = 0
    originals: int = 0
    pages: int = 0
    size: int = 0
    #: Dropped versions that were asked for and refused.
    collected: int = 0
    #: How often a request had to wait for a download, and the ids of the tasks it waited for.
    download_waits: int = 0
    downloads: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


class _Job(NamedTuple):
    file: SourceFile
    version: int
    is_kept: bool


class _Read(NamedTuple):
    """What one job brought; `problem` is empty if it was as it must be."""

    job: _Job
    problem: str = ""
    pages: int = 0
    size: int = 0
    waited: tuple[str, ...] = ()


def verify(address: Path, files: Iterable[SourceFile], settings: Settings) -> Verification:
    """Read all versions that must be there, and ask for those that must not.

    What a version must hold is derived here from the original file, read anew, and never from the
    work folder. The versions of a timeline are read at the same time, each through a handler of
    its own: where a layer has to be downloaded first, several of them want it.
    """
    first_kept = max(1, settings.versions - settings.retained + 1)
    jobs = [
        _Job(file, version, version >= first_kept)
        for file in files
        for version in range(1, settings.versions + 1)
    ]
    result = Verification()
    sound: dict[tuple[str, str], bool] = {}
    with ThreadPoolExecutor(8) as executor:
        for read in executor.map(lambda job: _do(address, job, settings), jobs):
            file, version, is_kept = read.job
            timeline = (file.tenant, file.timeline)
            sound[timeline] = sound.get(timeline, True) and not read.problem
            result.pages += read.pages
            result.size += read.size
            result.download_waits += len(read.waited)
            result.downloads |= set(read.waited)
            if read.problem:
                place = f"{file.tenant}/{file.timeline}, version {version}"
                result.wrong.append(f"{place}: {read.problem}")
            elif is_kept:
                result.versions += 1
                result.originals += version == settings.versions
            else:
                result.collected += 1
    result.timelines = sum(sound.values())
    return result


def _do(address: Path, job: _Job, settings: Settings) -> _Read:
    try:
        original = Path(job.file.path).read_bytes()
    except OSError as error:
        return _Read(job, f"its file cannot be read any more: {error}")
    if hashlib.sha256(original).hexdigest() != job.file.sha256:
        return _Read(job, "its file was changed while the demo ran, so nothing can be said")
    try:
        with PageClient(address, job.file.tenant, job.file.timeline) as client:
            if client.status is not Status.OK:
                return _Read(job, f"the page service says {client.status}")
            if not job.is_kept:
                return _ask_for_collected(client, job)
            return _read_kept(client, job, settings, original)
    except ConnectionBrokenError as error:
        return _Read(job, str(error))


def _ask_for_collected(client: PageClient, job: _Job) -> _Read:
    status = client.get_page(job.version, 0).header["status"]
    if status == Status.COLLECTED:
        return _Read(job)
    return _Read(job, f"should have been collected, but the page service says {status}")


def _read_kept(client: PageClient, job: _Job, settings: Settings, original: bytes) -> _Read:
    if job.version not in client.versions:
        return _Read(job, f"not among the versions offered, {sorted(client.versions)}")
    pages = range(versions.page_count(client.versions[job.version], settings.page_size))
    answers = client.get_pages(job.version, pages)
    waited = tuple(task for answer in answers for task in answer.header.get("downloads", ()))
    for page, answer in zip(pages, answers, strict=True):
        if answer.header["status"] != Status.OK:
            return _Read(job, f"page {page}: {answer.header}", waited=waited)
    content = b"".join(answer.payload for answer in answers)
    expected = (
        job.file.sha256
        if job.version == settings.versions
        else versions.expected_hash(
            original, job.file.key, job.version, settings.versions, settings.page_size
        )
    )
    problem = ""
    if hashlib.sha256(content).hexdigest() != expected:
        problem = f"its sha256 is not {expected}"
    return _Read(job, problem, len(answers), len(content), waited)
