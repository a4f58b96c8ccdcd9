"""What a label must be to travel."""

from quiesce.errors import PayloadTooLargeError
from quiesce.registry.limits import LABEL_LIMIT


def check_label(what: str, value: object, *, optional: bool = True) -> None:
    """TypeError or ValueError unless `value` is a string that can travel (or None, where optional)."""
    if value is None and optional:
        return
    if not isinstance(value, str):
        expected = "a string or None" if optional else "a string"
        raise TypeError(f"{what} must be {expected}, not {value!r} of type {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} can't travel: {value!r} has lone surrogates") from None


def escaped(text: str) -> str:
    """The same, but for lone surrogates: they can't travel, so there is what Python prints for them."""
    return text.encode(errors="backslashreplace").decode()


def check_length(what: str, label: str | None) -> None:
    """PayloadTooLargeError for a label that the broker refuses: one that is huge would not even get there."""
    if label is not None and len(label) > LABEL_LIMIT:
        raise PayloadTooLargeError(
            f"nothing was sent: {what} has {len(label)} characters, the limit is {LABEL_LIMIT}; "
            "labels are for finding a task, pass what is long as an argument"
        )
