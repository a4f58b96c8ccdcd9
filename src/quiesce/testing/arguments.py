"""Numbers on the command lines of the programs here, read so that a wrong one is wrong usage."""

import argparse
import math


def count(text: str) -> int:
    """1 or more; argparse says what is wrong with others."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return value


def duration(text: str) -> float:
    """More than 0, and finite; argparse says what is wrong with others."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of more than 0, got {text!r}")
    return value
