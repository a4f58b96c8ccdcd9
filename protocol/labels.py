"""What a label must be to travel."""


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
