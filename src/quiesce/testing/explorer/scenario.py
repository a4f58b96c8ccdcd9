"""What is explored: who is there, what clients and tasks do, and what may go wrong."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from quiesce.registry.scope import Scope
from quiesce.registry.state import ALIKE

#: (kind, tenant, timeline, runtime).
Labels = tuple[str, str | None, str | None, str]
#: The one runtime there is.
RUNTIME: Final = "pool"
#: What is spawned; nobody runs it.
FUNCTION: Final = b"f"
#: Kinds: a stop waits for ever for the one, and forces the other.
PATIENT: Final = "patient"
STRICT: Final = "strict"


class Associate(NamedTuple):
    """What a body does: associate_with."""

    tenant: str | None
    timeline: str | None = None


class Call(NamedTuple):
    """What a body does: these steps as a client inside of the task."""

    steps: tuple["Step", ...]


class Spawn(NamedTuple):
    """A client spawns. Names are unique in a scenario.

    `body`: what the task does before it may end. `endless`: it does not end unasked. `stubborn`: it does not end
    when it is asked.
    """

    name: str
    kind: str = PATIENT
    tenant: str | None = "T"
    timeline: str | None = None
    unique: str | None = None
    retries: int = 0
    body: tuple[Associate | Call, ...] = ()
    endless: bool = False
    stubborn: bool = False

    @property
    def labels(self) -> Labels:
        """As it is spawned."""
        return (self.kind, self.tenant, self.timeline, RUNTIME)


class Batch(NamedTuple):
    """A client makes several spawns at once, which travel together."""

    spawns: tuple[Spawn, ...]


class Stop(NamedTuple):
    """A client calls shutdown_tasks, and waits for the report.

    `task`: of this task alone, by the name of its spawn; nothing if it has ended.
    """

    kind: str | None = None
    tenant: str | None = None
    timeline: str | None = None
    grace: float | None = None
    timeout: float | None = None
    keep_closed: bool = False
    task: str | None = None


class Await(NamedTuple):
    """A client waits for the end of a task that it has spawned."""

    name: str


Step = Spawn | Batch | Stop | Await


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often each may happen, and all of them together.

    `breaks`: a connection breaks, and loses what is in it. `hasty`: a timer fires though what it waits for
    is still on its way (so messages are sent twice). `workers`, `pools`, `brokers`: such a process is killed.
    `sessions`: one of a client expires. `ticks`: how far the clock of leases goes; apart from the sum.
    """

    total: int
    breaks: int = 0
    hasty: int = 0
    workers: int = 0
    pools: int = 0
    brokers: int = 0
    sessions: int = 0
    ticks: int = 0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One small cluster.

    `workers`: processes in each of `pools` pools. `slots`: of each. `slow_disk`: commits are steps of their
    own, and what is not committed is lost with the broker; else each turn is committed at once. `flags`: the
    stop flags of the shared table work, too. `symmetric`: all clients do the same, and it makes no difference
    which is which. `eager`: what the broker sends to clients is there at once; None: once no more faults can
    come. `late_notice`: workers and supervisors may go on sending for a while on a connection that has broken;
    the next one gets it. `quick`: new workers count as quick, so that they are handed more than they have slots
    for, and may give it back at any moment. `in_a_row`: workers of one slot run what they are handed by
    themselves, and tell their session when something else happens, or at any moment. `alike`: so many tasks of
    which the same is said make one fact.
    """

    name: str
    words: str
    clients: tuple[tuple[Step, ...], ...]
    faults: Faults
    workers: int = 1
    pools: int = 1
    slots: int = 2
    kill_neighbours: bool = False
    slow_disk: bool = False
    flags: bool = False
    symmetric: bool = False
    eager: bool | None = None
    late_notice: bool = False
    quick: bool = False
    in_a_row: bool = False
    alike: int = ALIKE
    lease: float = 80_000.0
    lease_bound: float = 90_000.0
    spawns: tuple[Spawn, ...] = field(init=False)
    labels: tuple[Labels, ...] = field(init=False)

    def __post_init__(self) -> None:
        spawns = [step for steps in self.clients for step in _spawns(steps)]
        names = [spawn.name for spawn in spawns]
        if len(set(names)) != len(names):
            raise ValueError(f"names of spawns must be unique in {self.name}: {names}")
        labels = [spawn.labels for spawn in spawns]
        labels += [
            (spawn.kind, step.tenant, step.timeline, RUNTIME)
            for spawn in spawns
            for step in spawn.body
            if isinstance(step, Associate)
        ]
        object.__setattr__(self, "spawns", tuple(spawns))
        object.__setattr__(self, "labels", tuple(dict.fromkeys(labels)))


def scope_of(stop: Stop) -> Scope:
    """What it stops."""
    return Scope(stop.kind, stop.tenant, stop.timeline, None)


def _spawns(steps: tuple[Step, ...]) -> list[Spawn]:
    """All spawns of a program and of the tasks that it spawns, in order."""
    found: list[Spawn] = []
    for step in steps:
        batch = step.spawns if isinstance(step, Batch) else (step,)
        for spawn in batch:
            if not isinstance(spawn, Spawn):
                continue
            found.append(spawn)
            for inner in spawn.body:
                if isinstance(inner, Call):
                    found.extend(_spawns(inner.steps))
    return found
