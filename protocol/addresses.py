"""Where a broker is: one address as users write it, and the two endpoints that it stands for."""

import ipaddress
import os
from pathlib import Path
from typing import Final, NamedTuple

from quiesce.errors import ConfigurationError

#: What a path of a Unix socket may have: sun_path is 108 bytes, the last of them zero.
PATH_LIMIT: Final = 107

_EXPECTED: Final = "expected ipc:///an/absolute/folder or tcp://host:port"


class Endpoints(NamedTuple):
    """What a broker binds and its peers connect to. `folder` holds the sockets, None for tcp."""

    control: str
    data: str
    folder: str | None


def endpoints(address: str) -> Endpoints:
    """The endpoints of `address`.

    ipc:///abs/folder: the sockets `control` and `data` in that folder. tcp://host:port: control on
    that port, data on the next; a name or an IPv4 address. ConfigurationError says what is wrong with
    any other.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "ipc":
        return _ipc(address, rest)
    if separator and scheme == "tcp":
        host, port = _host_and_port(address, rest)
        return Endpoints(f"tcp://{host}:{port}", f"tcp://{host}:{port + 1}", None)
    raise ConfigurationError(f"address {address!r}: {_EXPECTED}")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address`. Of all names only localhost counts as such."""
    if endpoints(address).folder is not None:
        return True
    host, _ = _host_and_port(address, address.partition("://")[2])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refuse_unsafe(address: str) -> None:
    """ConfigurationError if others than this machine could reach `address`."""
    if not is_loopback(address):
        raise ConfigurationError(
            f"address {address!r}: other machines can reach it, and who reaches a broker can run "
            "code in its workers. That needs CURVE, which is not built yet: use an ipc:// address "
            "or tcp://127.0.0.1:port"
        )


def default_address() -> str:
    """In the user's own runtime folder where there is one, else in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute() and Path(runtime).is_dir():
        return f"ipc://{runtime.rstrip('/')}/quiesce"
    return f"ipc:///tmp/quiesce-{os.getuid()}"


def resolve(address: str | None) -> str:
    """The argument, else QUIESCE_ADDRESS, else the default. Not checked: see `endpoints`."""
    return address or os.environ.get("QUIESCE_ADDRESS") or default_address()


def _ipc(address: str, rest: str) -> Endpoints:
    folder = rest.rstrip("/")
    if not folder.startswith("/") or "\0" in folder:
        text = "the folder must be absolute, and not the root"
        raise ConfigurationError(f"address {address!r}: {_EXPECTED}; {text}")
    try:
        longest = len(f"{folder}/control".encode())
    except UnicodeEncodeError:
        text = "the folder's name must be UTF-8"  # ZeroMQ takes no other
        raise ConfigurationError(f"address {address!r}: {_EXPECTED}; {text}") from None
    if longest > PATH_LIMIT:
        raise ConfigurationError(
            f"address {address!r}: the path of its socket {folder}/control has {longest} bytes; "
            f"the limit of Unix sockets is {PATH_LIMIT}. Choose a shorter folder"
        )
    return Endpoints(f"ipc://{folder}/control", f"ipc://{folder}/data", folder)


def _host_and_port(address: str, rest: str) -> tuple[str, int]:
    host, separator, digits = rest.rpartition(":")
    if ":" in host or "[" in host:
        raise ConfigurationError(
            f"address {address!r}: IPv6 is not built yet: use tcp://127.0.0.1:port"
        )
    if not separator or not host or "/" in host:
        raise ConfigurationError(f"address {address!r}: {_EXPECTED}")
    # The data endpoint is one port above.
    usual = digits.isascii() and digits.isdecimal() and len(digits) <= 5
    if not usual or not 1 <= int(digits) <= 65534:
        raise ConfigurationError(
            f"address {address!r}: expected a port from 1 to 65534 (the next one is used too), "
            f"got {digits!r}"
        )
    return host, int(digits)
