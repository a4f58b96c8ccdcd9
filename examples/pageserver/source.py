"""Where the tenants and timelines come from: the folders and files of any directory tree."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

#: The tenant of the loose files at the top; another name where a folder has this one.
ROOT_TENANT = "_root"
_SKIPPED = frozenset({"__pycache__", "site-packages", "node_modules"})


class NoSourceError(Exception):
    """The folder holds nothing that could be served."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a tree is taken, so that it is served in about half a minute."""

    tenants: int = 12
    timelines_per_tenant: int = 16
    file_bytes: int = 256 * 1024
    #: Files looked at; a tree with more is counted no further.
    looked_at: int = 200_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the page server keeps what was taken."""

    page_size: int = 4096
    versions: int = 5
    retained: int = 3
    #: A stream is paced to take about so long, so that there is something to interrupt.
    stream_seconds: float = 15.0
    segment_bytes: int = 32 * 1024


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One timeline: a file as it was when taken. `timeline` is its path inside its tenant."""

    tenant: str
    timeline: str
    path: str
    size: int
    sha256: str

    @property
    def key(self) -> str:
        """What the history of this timeline is derived from, together with its bytes."""
        return f"{self.tenant}\0{self.timeline}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the tree holds, taken or not; `complete` is False where that is too much to count."""

    tenants: int
    files: int
    size: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is served: the timelines of each tenant."""

    folder: str
    tenants: dict[str, tuple[SourceFile, ...]]
    found: Found

    @property
    def files(self) -> list[SourceFile]:
        return [file for files in self.tenants.values() for file in files]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def default_folder() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def scan(folder: Path, limits: Limits | None = None) -> Plan:
    """Choose tenants and timelines: the first of each in the order of their names.

    Links, hidden names, caches, installed packages, empty files and files above the limit are
    left out; so is what cannot be read. Raises NoSourceError if nothing is left.
    """
    limits = limits or Limits()
    folder = folder.resolve()
    if not folder.is_dir():
        raise NoSourceError(f"{folder} is no folder. Give one whose files can be read.")
    top = sorted(_visible(folder), key=lambda entry: entry.name)
    folders = [entry for entry in top if entry.is_dir(follow_symlinks=False)]
    root_tenant = ROOT_TENANT
    while any(entry.name == root_tenant for entry in folders):
        root_tenant += "_"
    walks: list[tuple[str, Iterator[os.DirEntry[str]]]] = [(root_tenant, iter(top))]
    walks += [(entry.name, _walk(entry.path)) for entry in folders]
    tenants: dict[str, tuple[SourceFile, ...]] = {}
    found_tenants = found_files = found_size = 0
    for tenant, entries in sorted(walks, key=lambda walk: walk[0]):
        base = str(folder) if tenant == root_tenant else str(folder / tenant)
        taken: list[SourceFile] = []
        before = found_files
        for entry in entries:
            size = _usable_size(entry)
            if size is None:
                continue
            found_files += 1
            found_size += size
            wanted = len(tenants) < limits.tenants and len(taken) < limits.timelines_per_tenant
            if wanted and 0 < size <= limits.file_bytes:
                taken += _take(tenant, os.path.relpath(entry.path, base), entry.path, limits)
            if found_files >= limits.looked_at:
                break
        found_tenants += found_files > before
        if taken:
            tenants[tenant] = tuple(taken)
        if found_files >= limits.looked_at:
            break
    if not tenants:
        raise NoSourceError(
            f"{folder} holds no readable file of 1 to {limits.file_bytes} bytes. "
            "Give a folder that does."
        )
    found = Found(
        tenants=found_tenants,
        files=found_files,
        size=found_size,
        complete=found_files < limits.looked_at,
    )
    return Plan(folder=str(folder), tenants=tenants, found=found)


def as_json(file: SourceFile) -> dict[str, object]:
    """Return a file's entry for a JSON document; `SourceFile(**entry)` undoes it."""
    return asdict(file)


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _is_plain(entry.name)]
    except OSError:
        return []


def _is_plain(name: str) -> bool:
    # A name that is not UTF-8 could neither be a tenant's id nor stand in a JSON document.
    return not name.startswith(".") and name not in _SKIPPED and name.isprintable()


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder in the order of their names, reading no more than is used."""
    for entry in sorted(_visible(folder), key=lambda entry: entry.name):
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
        except OSError:
            continue
        if is_folder:
            yield from _walk(entry.path)
        else:
            yield entry


def _usable_size(entry: os.DirEntry[str]) -> int | None:
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return None


def _take(tenant: str, timeline: str, path: str, limits: Limits) -> list[SourceFile]:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return []
    if not 0 < len(content) <= limits.file_bytes:
        return []
    return [
        SourceFile(
            tenant=tenant,
            timeline=timeline,
            path=path,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    ]
