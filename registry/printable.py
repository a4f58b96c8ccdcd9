"""Words that come from users, on a line for people: nothing in them ends the line or is obeyed by a terminal."""


def printable(text: str) -> str:
    """On one line, without control characters. The text itself is kept raw, as data; this is for showing it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)
