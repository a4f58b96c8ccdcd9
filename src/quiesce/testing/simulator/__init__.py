"""A deterministic simulator: whole clusters under a virtual clock, a lossy network and a disk that loses."""

from quiesce.testing.simulator.engine import Violation
from quiesce.testing.simulator.world import Plan, World

__all__ = ["Plan", "Violation", "World"]
