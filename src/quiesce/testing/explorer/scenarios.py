"""The scenarios that there are, the small ones first."""

from dataclasses import replace
from typing import Final

from quiesce.testing.explorer.scenario import (
    STRICT,
    Associate,
    Await,
    Batch,
    Call,
    Faults,
    Scenario,
    Spawn,
    Stop,
)

ONE_STOP: Final = Scenario(
    name="one-stop",
    words="one worker, two tasks, one stop of both; a break, or messages said twice, or a dead worker",
    clients=((Batch((Spawn("a", endless=True), Spawn("b"))), Stop(tenant="T")),),
    faults=Faults(total=1, breaks=1, hasty=1, workers=1),
    eager=True,
)

_ALL: Final = (
    ONE_STOP,
    replace(
        ONE_STOP,
        name="one-stop-any-fault",
        words="as one-stop; or a supervisor or the broker dies",
        faults=Faults(total=1, breaks=1, hasty=1, workers=1, pools=1, brokers=1),
    ),
    replace(
        ONE_STOP,
        name="one-stop-in-full",
        words="as one-stop, and what the broker tells the client travels and gets lost, too",
        eager=None,
    ),
    replace(
        ONE_STOP,
        name="one-stop-two-faults",
        words="as one-stop, with any two faults",
        faults=Faults(total=2, breaks=1, hasty=1, workers=1, pools=1, brokers=1),
    ),
    Scenario(
        name="ahead",
        words="a worker of one slot is handed a task ahead, and begins it or gives it back, and a stop comes",
        clients=((Batch((Spawn("a"), Spawn("b"))), Stop(tenant="T")),),
        faults=Faults(total=1, breaks=1, hasty=1, workers=1),
        slots=1,
        quick=True,
        alike=1,
        eager=True,
    ),
    Scenario(
        name="in-a-row",
        words="a worker of one slot runs what it is handed in a row and tells it afterwards, and a stop comes",
        clients=((Batch((Spawn("a"), Spawn("b"), Spawn("c"))), Stop(tenant="T")),),
        faults=Faults(total=1, breaks=1, workers=1),
        slots=1,
        quick=True,
        in_a_row=True,
        alike=1,
        eager=True,
    ),
    Scenario(
        name="two-stops",
        words="two workers, two clients that each spawn and stop the same scope",
        clients=(
            (Spawn("a", endless=True), Stop(tenant="T")),
            (Spawn("b", endless=True), Stop(tenant="T")),
        ),
        faults=Faults(total=1, breaks=1, hasty=1, workers=1),
        workers=2,
        slots=1,
        symmetric=True,
        eager=True,
    ),
    Scenario(
        name="overlapping-stops",
        words="a stop of a tenant and one of a kind, of which one may cover only one of the tasks",
        clients=(
            (Spawn("a", endless=True), Stop(tenant="T")),
            (Spawn("b", kind=STRICT, endless=True), Stop(kind=STRICT)),
        ),
        faults=Faults(total=1, breaks=1, hasty=1, workers=1),
        eager=True,
    ),
    Scenario(
        name="broker-restart",
        words="a spawn and a stop of it around the death of the broker, at every boundary of the journal",
        clients=((Spawn("a"), Stop(tenant="T")),),
        faults=Faults(total=1, brokers=1),
        slow_disk=True,
    ),
    Scenario(
        name="two-restarts",
        words="as broker-restart, and the next broker dies, too",
        clients=((Spawn("a"), Stop(tenant="T")),),
        faults=Faults(total=2, brokers=2),
        slow_disk=True,
        eager=True,
    ),
    Scenario(
        name="restart-and-death",
        words="as broker-restart, with another fault",
        clients=((Spawn("a"), Stop(tenant="T")),),
        faults=Faults(total=2, brokers=1, workers=1, breaks=1, hasty=1),
        slow_disk=True,
        eager=True,
    ),
    Scenario(
        name="pool-death",
        words="a supervisor dies with its workers, and a successor tells of it; another pool is there",
        clients=((Spawn("a", endless=True, retries=1), Stop(tenant="T")),),
        faults=Faults(total=1, pools=1),
        pools=2,
        eager=True,
    ),
    Scenario(
        name="lease",
        words="a supervisor is out of reach for as long as its lease, or not quite, while a stop waits",
        clients=((Spawn("a", endless=True), Stop(tenant="T")),),
        faults=Faults(total=0, ticks=4),
        lease=2.0,
        lease_bound=3.0,
        eager=True,
    ),
    Scenario(
        name="lease-restart",
        words="as lease, and the broker dies, too",
        clients=((Spawn("a", endless=True), Stop(tenant="T")),),
        faults=Faults(total=1, brokers=1, ticks=4),
        lease=2.0,
        lease_bound=3.0,
        eager=True,
    ),
    Scenario(
        name="associate",
        words="a task associates itself with a scope that somebody stops",
        clients=(
            (Spawn("a", tenant="S", body=(Associate("T"),), endless=True),),
            (Stop(tenant="T", keep_closed=True),),
        ),
        faults=Faults(total=1, breaks=1, hasty=1, workers=1),
        eager=True,
    ),
    Scenario(
        name="associate-and-leave",
        words="a task leaves the scope that somebody stops, and comes into one that another stops",
        clients=(
            (Spawn("a", tenant="S", body=(Associate("T"),), endless=True), Stop(tenant="S")),
            (Stop(tenant="T", keep_closed=True),),
        ),
        faults=Faults(total=1, breaks=1, workers=1),
        slow_disk=True,
        eager=True,
    ),
    Scenario(
        name="resend",
        words="a client says its spawns again to a broker that has died, or has forgotten it",
        clients=((Spawn("a"), Spawn("b"), Await("a")),),
        faults=Faults(total=2, brokers=1, breaks=1, sessions=1),
        slow_disk=True,
        eager=True,
    ),
    Scenario(
        name="unique-key",
        words="a spawn waits for the end of the task with its unique_key, which is stopped",
        clients=(
            (Spawn("a", unique="k", endless=True), Stop(task="a")),
            (Spawn("b", unique="k", endless=True), Stop(tenant="T", keep_closed=True)),
        ),
        faults=Faults(total=1, breaks=1, workers=1, hasty=1),
        eager=True,
    ),
    Scenario(
        name="nested",
        words="a task spawns another, and stops a scope that covers both",
        clients=((Spawn("n", body=(Call((Spawn("c", endless=True), Stop(tenant="T"))),)),),),
        faults=Faults(total=1, breaks=1, workers=1),
        eager=True,
    ),
    Scenario(
        name="nested-and-stopped",
        words="as nested, and somebody else stops both",
        clients=(
            (
                Spawn("n", body=(Call((Spawn("c", endless=True), Stop(tenant="T"))),)),
                Stop(tenant="T", keep_closed=True),
            ),
        ),
        faults=Faults(total=1, workers=1),
        eager=True,
    ),
    Scenario(
        name="force",
        words="a task that does not end when it is asked, and a neighbour: its process is killed",
        clients=(
            (
                Batch(
                    (Spawn("a", kind=STRICT, stubborn=True, endless=True), Spawn("b", tenant="U"))
                ),
                Stop(tenant="T"),
            ),
        ),
        faults=Faults(total=1, hasty=1, breaks=1, workers=1),
        kill_neighbours=True,
        flags=True,
        eager=True,
    ),
    Scenario(
        name="late-notice",
        words="a connection breaks, and its owner goes on sending",
        clients=((Spawn("a", endless=True), Stop(tenant="T")),),
        faults=Faults(total=1, breaks=1),
        late_notice=True,
        eager=True,
    ),
    Scenario(
        name="retries",
        words="a worker dies under a task that may run again, and a stop comes",
        clients=((Spawn("a", retries=1), Stop(tenant="T")),),
        faults=Faults(total=2, workers=2, hasty=1),
        workers=2,
        slots=1,
        flags=True,
        eager=True,
    ),
)

SCENARIOS: Final = {each.name: each for each in _ALL}
