"""A folder whose every write, sync and rename is noted: so any moment of a crash can be made again (see `disk`).

`Recorder` watches it: what SQLite does there, through a VFS of its own around the usual one, and what `os.pwrite`,
`os.fsync`, `os.replace` and their like do.
"""

import _sqlite3
import ctypes
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from quiesce.testing.disk import FOLDER, Op

_OK: Final = 0
_FULL: Final = sqlite3.SQLITE_FULL
#: The files that are written by `os.pwrite` alone.
_NOTED: Final = frozenset({"head", "head.new", "reserve"})


# --- SQLite's side --------------------------------------------------------------------------------

_P: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int
_OPEN: Final = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_char_p, _P, _INT, _P)
_DELETE: Final = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_char_p, _INT)
_WRITE: Final = ctypes.CFUNCTYPE(_INT, _P, _P, _INT, ctypes.c_longlong)
_TRUNCATE: Final = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_longlong)
_SYNC: Final = ctypes.CFUNCTYPE(_INT, _P, _INT)
_CLOSE: Final = ctypes.CFUNCTYPE(_INT, _P)


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = (
        ("iVersion", _INT),
        ("szOsFile", _INT),
        ("mxPathname", _INT),
        ("pNext", _P),
        ("zName", ctypes.c_char_p),
        ("pAppData", _P),
        ("xOpen", _P),
        ("xDelete", _P),
        ("others", _P * 15),
    )


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = (
        ("iVersion", _INT),
        ("xClose", _P),
        ("xRead", _P),
        ("xWrite", _P),
        ("xTruncate", _P),
        ("xSync", _P),
        ("others", _P * 13),
    )


def can_record() -> bool:
    """Whether SQLite's own functions can be reached from here."""
    try:
        return bool(ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find)
    except (OSError, AttributeError):
        return False


class Recorder:
    """Notes what happens to the files of one folder, while `recording`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ops: list[Op] = []
        #: Bytes that the files of SQLite may have together; then it is told that the disk is full.
        self.capacity: int | None = None
        #: The reserve was given up: so many bytes more.
        self.given_up = 0
        self._sizes: dict[str, int] = {}
        self._library = ctypes.CDLL(_sqlite3.__file__)
        self._library.sqlite3_vfs_find.restype = _P
        self._library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [_P, _INT]
        self._library.sqlite3_vfs_unregister.argtypes = [_P]
        self._usual = self._library.sqlite3_vfs_find(None)
        usual = _Vfs.from_address(self._usual)
        self._vfs = _Vfs.from_buffer_copy(usual)
        self._name = f"recorder-{id(self):x}".encode()
        self._vfs.zName = self._name
        self._usual_open = _OPEN(usual.xOpen)
        self._usual_delete = _DELETE(usual.xDelete)
        #: Kept, for SQLite points to them.
        self._kept: list[Any] = [_OPEN(self._open), _DELETE(self._delete)]
        self._vfs.xOpen = ctypes.cast(self._kept[0], _P)
        self._vfs.xDelete = ctypes.cast(self._kept[1], _P)
        #: By the address of a file's methods: ours in their place.
        self._methods: dict[int, _Methods] = {}
        #: By the address of an open file.
        self._open_files: dict[int, str] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, everything is noted."""
        self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 0)
        usual = {name: getattr(os, name) for name in _PATCHES}
        for name, patch in _PATCHES.items():
            setattr(os, name, patch(self, usual[name]))
        try:
            yield
        finally:
            for name, function in usual.items():
                setattr(os, name, function)
            self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def connect(self, path: Path) -> sqlite3.Connection:
        """As `journal_rows.connect`, through the VFS that notes."""
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?vfs={self._name.decode()}",
            uri=True,
            isolation_level=None,
            timeout=0,
            check_same_thread=False,
        )

    def mark(self, what: str) -> None:
        """Note that something was said or heard at this point."""
        self.ops.append(Op("mark", to=what))

    def name_of(self, path: Any) -> str | None:
        """The name in the folder; None for what lies elsewhere."""
        at = Path(os.fsdecode(path))
        if at == self.folder:
            return FOLDER
        return at.name if at.parent == self.folder else None

    def fill(self) -> None:
        """From now on the disk is full."""
        self.capacity, self.given_up = sum(self._sizes.values()), 0

    def catch_up(self, name: str) -> None:
        """What was written by means that are not noted: noted now, before its sync."""
        if name not in self._sizes and name not in _NOTED:
            self.ops.append(Op("truncate", name, 0))
            self.ops.append(Op("write", name, 0, (self.folder / name).read_bytes()))

    # --- called by SQLite, perhaps on the journal's thread ----------------------------------------

    def _open(self, vfs: Any, path: bytes | None, file: int, flags: int, out: Any) -> int:
        there = path is not None and os.path.exists(path)
        status: int = self._usual_open(self._usual, path, file, flags, out)
        name = None if path is None else self.name_of(path)
        if status != _OK or name is None:
            return status
        if not there:
            self.ops.append(Op("make", name))
        slot = ctypes.cast(file, ctypes.POINTER(_P))
        address = slot[0]
        assert address is not None
        if address not in self._methods:
            self._methods[address] = self._wrap(_Methods.from_address(address))
        self._open_files[file] = name
        self._sizes[name] = os.stat(os.fsdecode(path or b"")).st_size
        slot[0] = ctypes.addressof(self._methods[address])
        return status

    def _wrap(self, usual: _Methods) -> _Methods:
        methods = _Methods.from_buffer_copy(usual)
        write, truncate = _WRITE(usual.xWrite), _TRUNCATE(usual.xTruncate)
        sync, close = _SYNC(usual.xSync), _CLOSE(usual.xClose)
        synced: set[str] = set()

        def on_write(file: int, data: int, size: int, at: int) -> int:
            name = self._open_files[file]
            end = max(self._sizes[name], at + size)
            others = sum(each for other, each in self._sizes.items() if other != name)
            room = math.inf if self.capacity is None else self.capacity + self.given_up
            if self._sizes[name] < end and room < others + end:
                return _FULL
            self._sizes[name] = end
            self.ops.append(Op("write", name, at, ctypes.string_at(data, size)))
            status: int = write(file, data, size, at)
            return status

        def on_truncate(file: int, size: int) -> int:
            self._sizes[self._open_files[file]] = size
            self.ops.append(Op("truncate", self._open_files[file], size))
            status: int = truncate(file, size)
            return status

        def on_sync(file: int, flags: int) -> int:
            name = self._open_files[file]
            status: int = sync(file, flags)
            self.ops.append(Op("sync", name))
            if name.endswith(("-wal", "-journal")) and name not in synced:
                synced.add(name)
                self.ops.append(Op("folder"))  # SQLite does so for new ones
            return status

        def on_close(file: int) -> int:
            self._open_files.pop(file, None)
            status: int = close(file)
            return status

        ours = (_WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync), _CLOSE(on_close))
        self._kept += [*ours, write, truncate, sync, close]
        methods.xWrite, methods.xTruncate, methods.xSync, methods.xClose = (
            ctypes.cast(each, _P) for each in ours
        )
        return methods

    def _delete(self, vfs: Any, path: bytes, sync_folder: int) -> int:
        status: int = self._usual_delete(self._usual, path, sync_folder)
        name = self.name_of(path)
        if status == _OK and name is not None:
            self._sizes.pop(name, None)
            self.ops.append(Op("unlink", name))
            if sync_folder:
                self.ops.append(Op("folder"))
        return status


# --- Python's side --------------------------------------------------------------------------------


def _named(recorder: Recorder, fd: int) -> str | None:
    return recorder.name_of(os.readlink(f"/proc/self/fd/{fd}"))


def _note_open(recorder: Recorder, usual: Callable[..., int]) -> Callable[..., int]:
    def patched(path: Any, flags: int, *more: Any, **others: Any) -> int:
        new = bool(flags & os.O_CREAT) and not os.path.exists(path)
        fd = usual(path, flags, *more, **others)
        name = recorder.name_of(path)
        if new and name:
            recorder.ops.append(Op("make", name))
        return fd

    return patched


def _note_pwrite(recorder: Recorder, usual: Callable[..., int]) -> Callable[..., int]:
    def patched(fd: int, data: bytes, at: int) -> int:
        name = _named(recorder, fd)
        if name:
            recorder.ops.append(Op("write", name, at, bytes(data)))
        return usual(fd, data, at)

    return patched


def _note_sync(recorder: Recorder, usual: Callable[..., None]) -> Callable[..., None]:
    def patched(fd: int) -> None:
        name = _named(recorder, fd)
        if name:
            recorder.catch_up(name)
            recorder.ops.append(Op("syncing", name))
        usual(fd)
        if name == FOLDER:
            recorder.ops.append(Op("folder"))
        elif name:
            recorder.ops.append(Op("sync", name))

    return patched


def _note_replace(recorder: Recorder, usual: Callable[..., None]) -> Callable[..., None]:
    def patched(source: Any, target: Any, **more: Any) -> None:
        usual(source, target, **more)
        names = recorder.name_of(source), recorder.name_of(target)
        if names[0] and names[1]:
            recorder.ops.append(Op("rename", names[0], to=names[1]))

    return patched


def _note_unlink(recorder: Recorder, usual: Callable[..., None]) -> Callable[..., None]:
    def patched(path: Any, **more: Any) -> None:
        usual(path, **more)
        name = recorder.name_of(path)
        if name:
            recorder.ops.append(Op("unlink", name))

    return patched


def _note_truncate(recorder: Recorder, usual: Callable[..., None]) -> Callable[..., None]:
    """Of the reserve: its room serves others from now on."""

    def patched(path: Any, size: int) -> None:
        before = os.stat(path).st_size
        usual(path, size)
        name = recorder.name_of(path) if not isinstance(path, int) else _named(recorder, path)
        if name:
            recorder.given_up += before - size
            recorder.ops.append(Op("truncate", name, size))

    return patched


def _note_allocate(recorder: Recorder, usual: Callable[..., None]) -> Callable[..., None]:
    def patched(fd: int, at: int, size: int) -> None:
        name = _named(recorder, fd)
        if name and recorder.capacity is not None and recorder.given_up:
            raise OSError(28, os.strerror(28))
        usual(fd, at, size)
        if name:
            recorder.ops.append(Op("truncate", name, at + size))

    return patched


_PATCHES: Final[dict[str, Callable[[Recorder, Callable[..., Any]], Callable[..., Any]]]] = {
    "open": _note_open,
    "pwrite": _note_pwrite,
    "fsync": _note_sync,
    "fdatasync": _note_sync,
    "replace": _note_replace,
    "unlink": _note_unlink,
    "truncate": _note_truncate,
    "posix_fallocate": _note_allocate,
}
