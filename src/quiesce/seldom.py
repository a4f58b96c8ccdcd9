"""What goes wrong again and again is said, but not each time."""

import math
import time
from typing import Final

#: Seconds between two words about the same.
EVERY: Final = 60.0


class Seldom:
    """One for each thing that may go wrong. Of several threads that ask at once two may say it."""

    def __init__(self) -> None:
        self._say_at = -math.inf

    def is_time(self) -> bool:
        """Whether to say it now; then it is not, for a minute."""
        now = time.monotonic()
        if now < self._say_at:
            return False
        self._say_at = now + EVERY
        return True
