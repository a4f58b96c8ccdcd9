"""What a cluster writes before it starts: a folder with a short path, a configuration, and perhaps a small disk."""

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from quiesce.protocol.addresses import PATH_LIMIT
from quiesce.testing.failures import ClusterError

#: Enough for the room that a broker wants to have left before it takes spawns, and some.
DISK: Final = 96 * 2**20
#: Of a socket's path: "/n12/control".
_TAIL: Final = 12
_DETACH: Final = 2
_BALLAST: Final = "ballast"


def make_folder() -> Path:
    """A new folder for one cluster: where temporary files go, or in /tmp if that path is too long for sockets."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) + len("/quiesce-xxxxxxxx") + _TAIL > PATH_LIMIT:
        base = "/tmp"
    return Path(tempfile.mkdtemp(prefix="quiesce-", dir=base))


# --- the configuration


def configuration(
    broker: Mapping[str, Any],
    runtimes: Mapping[str, Mapping[str, Any]] | Iterable[str] | None,
    kinds: Mapping[str, Mapping[str, Any]] | Iterable[str] | None,
) -> str:
    """A quiesce.toml with these tables. Nothing is checked: reading it does that."""
    lines = _table(["broker"], broker)
    for table, named in (("runtimes", runtimes), ("kinds", kinds)):
        tables = named if isinstance(named, Mapping) else {name: {} for name in named or ()}
        for name, values in tables.items():
            lines += _table([table, name], values)
    return "\n".join(lines) + "\n"


def _table(path: list[str], values: Mapping[str, Any]) -> list[str]:
    head = ".".join(_quoted(each) for each in path)
    return [f"[{head}]", *(f"{_quoted(key)} = {_toml(value)}" for key, value in values.items()), ""]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(each):04x}" if each < " " or each == "\x7f" else each
        for each in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


# --- the disk


class Disk:
    """A file system of its own for the state folder, so that it can be full."""

    def __init__(self, folder: Path, size: int) -> None:
        """Mount it at `folder`, which is made. ClusterError if this process may not."""
        self.folder = folder
        folder.mkdir(mode=0o700)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={size},mode=0700".encode()
        if self._libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), options):
            code = ctypes.get_errno()
            folder.rmdir()
            raise ClusterError(
                f"a disk that can be full needs the right to mount (root, CAP_SYS_ADMIN): mounting a tmpfs "
                f"of {size} bytes at {folder} failed: {os.strerror(code)}. Leave `disk` out, or run as root"
            )

    def fill(self) -> None:
        """Leave no byte."""
        fd = os.open(self.folder / _BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (2**20, 2**12):
                block = bytes(size)
                while True:
                    try:
                        os.write(fd, block)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break
        finally:
            os.close(fd)

    def free(self) -> None:
        """Undo it."""
        (self.folder / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, at once or, where something still uses it, with its last user."""
        unmount(self.folder)


def unmount(folder: Path) -> None:
    """Take a file system away; nothing if there is none."""
    ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(folder), _DETACH)
