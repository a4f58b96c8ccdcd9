"""For tests of quiesce and of programs that use it: a witness, and task bodies that can be imported."""

from quiesce.testing.witness import Witness

__all__ = ["Witness"]
