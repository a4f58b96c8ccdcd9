"""Numbers as people read them."""

from figures import Ratio

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def amount(value: float, unit: str) -> str:
    """A value with its unit: "0.44 ms", "16,800 tasks/s", "19 MiB"."""
    if unit == "s":
        return _scaled(value, _TIMES)
    if unit == "B":
        return _scaled(value, _BYTES)
    if unit == "of a processor":
        return f"{value:.1%}"
    return f"{_digits(value)} {unit}".strip()


def _scaled(value: float, scale: tuple[tuple[float, str], ...]) -> str:
    for size, name in scale:
        if abs(value) >= size:
            return f"{_digits(value / size)} {name}"
    size, name = scale[-1]
    return f"{_digits(value / size)} {name}"


def _digits(value: float) -> str:
    """Three that count; whole numbers with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio_text(ratio: Ratio) -> str:
    """The median, and the range of all rounds."""
    return f"{ratio.median:.3g}x [{ratio.lowest:.3g} - {ratio.highest:.3g}]"
