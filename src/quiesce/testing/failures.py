"""How a test fails by what is here: as by an assertion, so that a test runner shows it as a failure."""


class ClusterError(AssertionError):
    """A cluster is not as a test has asked for; the text ends with the tail of its log."""


class NotInTimeError(AssertionError):
    """A condition did not come true before its deadline; the text says what was seen last."""


class WitnessError(AssertionError):
    """Something ran that was said to have stopped; the text says which slots, and how much later."""


class LeakError(AssertionError):
    """Something was left behind; the text says what."""
