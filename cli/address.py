"""What `up` does at an address: claim it, see whether its broker listens, remove what a killed one left."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from quiesce.broker.settings import BrokerSettings
from quiesce.errors import ConfigurationError
from quiesce.protocol.addresses import endpoints

#: The state of a listening socket in /proc/net/tcp: TCP_LISTEN of the kernel.
_LISTEN: Final = 10


@contextmanager
def claimed(settings: BrokerSettings, new: tuple[str, ...] = ()) -> Iterator[None]:
    """A block in which no other `up` starts on this state folder; ConfigurationError if one has it.

    The lock is on the folder, so it leaves no file.
    `new`: the folders that this start made, deepest first; of a start that came to nothing they are empty,
    and are removed.
    """
    folder = os.open(settings.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken_by("another `quiesce up`", f"the state folder {settings.state}") from None
        try:
            yield
        finally:
            for made in new:  # only under the lock: nobody else may just begin to use them
                with suppress(OSError):
                    os.rmdir(made)
    finally:
        os.close(folder)


def refuse_taken(settings: BrokerSettings) -> None:
    """ConfigurationError if a broker has this state folder or address.

    It would refuse by itself, but later: by then our supervisors would have joined the other one's system,
    and would be killed in the middle of its tasks.
    """
    _refuse_held(os.path.join(settings.state, "lock"), f"the state folder {settings.state}")
    _refuse_held(settings.lock_path, f"the address {settings.address}")


def _refuse_held(lock: str, what: str) -> None:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        raise _taken_by(f"another broker (pid {holder or 'unknown'})", what) from None
    finally:
        os.close(fd)


def _taken_by(who: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{who} uses {what}: stop it first, or choose another address and state folder"
    )


def is_bound_by(address: str, pid: int) -> bool:
    """Whether the process `pid` accepts connections at both endpoints: it, and nobody who has taken them before."""
    where = endpoints(address)
    return all(_accepts(each, pid) for each in (where.control, where.data))


def _accepts(endpoint: str, pid: int) -> bool:
    scheme, _, rest = endpoint.partition("://")
    try:
        if scheme == "tcp":
            return _listens(pid, int(rest.rpartition(":")[2]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(rest)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return False
    # The pid of who called listen(): a socket that an older broker left, or another's, does not count.
    return bool(struct.unpack("3i", credentials)[0] == pid)


def _listens(pid: int, port: int) -> bool:
    """Whether a socket of this process listens at this tcp port, as /proc has it."""
    own = set[str]()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            own.add(os.readlink(each))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, where, _, state, *_, inode = line.split()[:10]
        listens = int(state, 16) == _LISTEN and int(where.rpartition(":")[2], 16) == port
        if listens and f"socket:[{inode}]" in own:
            return True
    return False


def clean_up(settings: BrokerSettings, *, remove_folder: bool) -> None:
    """Remove the sockets and locks of a broker that was killed, unless another one has come since."""
    from quiesce.broker.connections import aside

    folder = endpoints(settings.address).folder
    with _taken(settings.lock_path) as ours:
        if ours and folder:
            for path in settings.socket_files:
                for each in (path, aside(path)):
                    with suppress(OSError):
                        os.unlink(each)
    with _taken(os.path.join(settings.state, "lock")):
        pass
    if remove_folder and folder:
        remove_empty(folder)


def remove_empty(folder: str) -> None:
    """Remove a folder, unless something is in it or it is gone."""
    with suppress(OSError):
        os.rmdir(folder)


def forget_epoch(settings: BrokerSettings) -> None:
    """Remove the first epoch of a broker that could not start, and its journal: it has told nobody of them."""
    from quiesce.broker.journal_open import discard_journal

    with suppress(OSError):
        os.unlink(os.path.join(settings.state, "epoch"))
    with suppress(OSError):
        discard_journal(Path(settings.state))


@contextmanager
def _taken(lock: str) -> Iterator[bool]:
    """Whether a lock file is there and nobody holds it; then it is ours in the block, and removed after it.

    The broker locks before it binds, so without a lock there is nothing of it.
    """
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
            with suppress(FileNotFoundError):
                os.unlink(lock)
    finally:
        os.close(fd)
