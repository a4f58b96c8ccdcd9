"""The scenarios that there are. `complete` ones are meant to be explored to their end, the others to a budget."""

from typing import Final

from quiesce.testing.explorer.scenario import Batch, Faults, Scenario, Spawn, Stop

ONE_STOP: Final = Scenario(
    name="one-stop",
    words="one worker, two tasks, one stop of both; a break, a message said twice, a dead worker",
    clients=((Batch((Spawn("a", endless=True), Spawn("b"))), Stop(tenant="T")),),
    faults=Faults(total=1, breaks=1, hasty=1, workers=1),
)

SCENARIOS: Final = {each.name: each for each in (ONE_STOP,)}
