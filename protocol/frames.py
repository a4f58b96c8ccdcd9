"""Payloads: small ones travel inside their message, large ones as frames of their own beside it."""

from typing import Final

#: A payload above this many bytes gets a frame of its own, so that nobody copies it on the way.
INLINE_LIMIT: Final = 32 * 1024


class Frame:
    """A payload that is a frame of its own on the wire. Opaque to the broker."""

    __slots__ = ("data", "digest")

    def __init__(self, data: bytes, digest: bytes | None = None) -> None:
        #: Or, where it has just arrived, a view of them, for as long as nobody needs a copy: see `payload_bytes`.
        self.data = data
        #: What the journal knows it by, once it has looked: so a payload is digested once.
        self.digest = digest

    def __len__(self) -> int:
        return len(self.data)


#: Function, arguments or result, as the broker sees them.
Payload = bytes | Frame


def as_payload(data: bytes) -> Payload:
    """Choose how `data` travels, by its size."""
    return data if len(data) <= INLINE_LIMIT else Frame(data)


def payload_bytes(payload: Payload) -> bytes:
    """The bytes of a payload, however it travelled."""
    data = payload.data if isinstance(payload, Frame) else payload
    return data if type(data) is bytes else bytes(data)


def payload_view(payload: Payload) -> bytes:
    """The same, not copied: bytes or a view of them."""
    return payload.data if isinstance(payload, Frame) else payload
