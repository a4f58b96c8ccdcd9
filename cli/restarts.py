"""When what died is started again: arithmetic on lists of times, for the broker and for supervisors alike.

(After the restart intensity of Erlang's supervisors, with pauses in place of the one limit.)
"""

from typing import Final

#: So many deaths in a row before the process was ready, and it is given up.
MAX_FAILURES: Final = 5
#: Half the pause in seconds after the first of these; it doubles with each.
FIRST_PAUSE: Final = 0.1
#: Deaths of processes that were ready count as fast if they lie within so many seconds; they are never given up.
WINDOW: Final = 10.0
#: The longest pause after such a death: a broker that is away uses up the leases of all that run.
LONGEST_PAUSE: Final = 1.0
#: 2 to more than this is more than any pause.
_ENOUGH: Final = 10


class Restarts:
    """What became of the processes of one kind, one after the other. No clock: `now` is an argument."""

    def __init__(self) -> None:
        #: When those died that were not ready, since the last that was.
        self.failures: list[float] = []
        #: When any of them died, within the last WINDOW seconds.
        self.deaths: list[float] = []

    @property
    def given_up(self) -> bool:
        """Whether too many died in a row without having been ready."""
        return len(self.failures) >= MAX_FAILURES

    def died(self, now: float, *, ready: bool, excused: bool = False) -> float:
        """Note a death; gives when to start the next one.

        One that was ready is followed at once, unless it is not the first in a while. `excused`: it could
        not help it (its disk failed, somebody killed it), so it does not count towards giving up, but is
        never followed at once.
        """
        self.deaths = [each for each in self.deaths if now - each < WINDOW]
        self.deaths.append(now)
        if ready:
            self.failures.clear()
        elif not excused:
            self.failures.append(now)
            return now + FIRST_PAUSE * 2.0 ** min(len(self.failures), _ENOUGH)
        fast = len(self.deaths) - (0 if excused else 1)
        if not fast:
            return now
        return now + min(FIRST_PAUSE * 2.0 ** min(fast - 1, _ENOUGH), LONGEST_PAUSE)
