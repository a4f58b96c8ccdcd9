"""The cluster: from each state of the world all of its next ones.

A step is named by a tuple: what happens, to which actor (by its place), and what more must be said. `next_steps`
lists those that are possible, `take` gives what one leads to; both are pure.
"""

from typing import Any, Final, NamedTuple

from quiesce.registry.ids import AttemptKey
from quiesce.registry.states import Outcome as TaskOutcome
from quiesce.testing.explorer.brokers import CLOCKED
from quiesce.testing.explorer.moves import Moves
from quiesce.testing.explorer.process_states import Worker
from quiesce.testing.explorer.rules import Truth
from quiesce.testing.explorer.scenario import Associate, Call, Scenario
from quiesce.testing.explorer.symmetry import Symmetry
from quiesce.testing.explorer.world import (
    BREAKS,
    BROKERS,
    CLIENT,
    CUT,
    DEAD_POOL,
    DEAD_WORKER,
    EMPTY,
    HASTY,
    NEW,
    POOL,
    POOLS,
    SESSIONS,
    TICKS,
    UP,
    WORKER,
    WORKERS,
    Actor,
    Draft,
    Link,
    World,
    allowance,
)

Step = tuple[Any, ...]


class Possible(NamedTuple):
    """A step, and which fault it takes; -1 for none."""

    step: Step
    fault: int


class Model(Moves):
    """One scenario. Everything it does is remembered, so make one for each process."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._symmetry: Symmetry | None = None

    # --- the beginning ----------------------------------------------------------------------------

    def initial(self) -> World:
        """Everyone is there, is known to the broker, and has nothing to do yet."""
        durable = self.broker.nothing()
        core, durable, _ = self.broker.start(durable, 0)
        draft = Draft(World(0, (0,) * 8, core, durable, (), (), Truth()))
        for _ in range(self.scenario.pools):
            self._start_pool(draft, None)
        world = self._settle(draft.world())
        draft = Draft(world)
        for place, steps in enumerate(self.scenario.clients):
            name = b"client%02d" % place + bytes(8)
            link = Link(NEW)
            draft.actors.append(Actor(CLIENT, self.clients.new(name, steps, 0, None), link, link))
            self._connect(draft, len(draft.actors) - 1)
        world = self._settle(draft.world())
        if self.scenario.symmetric:
            places = [place for place, actor in enumerate(world.actors) if actor.kind == CLIENT]
            names = [self.store[world.actors[place].state].frozen[0][0] for place in places]
            self._symmetry = Symmetry(self.scenario, self.store, places, names)
        return world._replace(faults=allowance(self.scenario.faults))

    def _settle(self, world: World) -> World:
        """Let everything arrive, in some order."""
        ready = {"hear", "hears", "commit", "ticks"}
        for _ in range(1000):
            steps = [each.step for each in self.next_steps(world) if each.step[0] in ready]
            if not steps:
                return world
            world = self.take(world, steps[0])
        raise RuntimeError("the cluster does not come to rest before it has begun")

    # --- what is possible -------------------------------------------------------------------------

    def next_steps(self, world: World) -> list[Possible]:
        """All of them, always in the same order."""
        found: list[Possible] = []
        quiet = self._is_quiet(world)
        #: What a timer costs that fires now.
        hasty = -1 if quiet else HASTY
        faults = world.faults

        def add(fault: int, *step: Any) -> None:
            if fault < 0 or faults[fault]:
                found.append(Possible(step, fault))

        if not world.core:
            add(-1, "the broker starts")
        else:
            if world.pending:
                add(-1, "commit")
            for due, tick in self.broker.dues(world.core):
                if due[0] not in CLOCKED:
                    add(hasty, "timer", due)
                elif tick <= world.clock:
                    add(-1, "timer", due)
            if faults[SESSIONS]:
                for session in self.broker.sessions(world.core):
                    add(SESSIONS, "timer", ("session", session))
            add(BROKERS, "the broker dies")
        for place, actor in enumerate(world.actors):
            self._transport(world, place, actor, add)
            if actor.kind == WORKER:
                self._worker_steps(world, place, actor, hasty, add)
            elif actor.kind == POOL:
                self._pool_steps(world, place, actor, hasty, add)
            elif actor.kind == CLIENT:
                self._client_steps(world, place, actor, hasty, add)
            elif actor.kind == DEAD_WORKER:
                if world.actors[self.store[actor.state].pool].kind == POOL:
                    add(-1, "reaps", place)
            elif actor.kind == DEAD_POOL:
                add(-1, "is succeeded", place)
        if faults[TICKS] and all(
            self.processes.pool_view(actor.state).dies_at > world.clock
            for actor in world.actors
            if actor.kind == POOL
        ):
            add(TICKS, "time passes")
        return found

    def _is_quiet(self, world: World) -> bool:
        """Nothing is on its way: whoever waits for something waits in vain, unless a task or a client acts."""
        if not world.core or world.pending:
            return False
        for kind, state, control, data in world.actors:
            if kind in (DEAD_WORKER, DEAD_POOL):
                return False
            if control is not EMPTY and control != EMPTY:
                return False
            if data is not EMPTY and data != EMPTY:
                return False
            if kind == POOL and self.processes.pool_view(state).due <= world.clock:
                return False
        return True

    def _transport(self, world: World, place: int, actor: Actor, add: Any) -> None:
        alive = actor.kind <= CLIENT
        for channel, link in enumerate((actor.control, actor.data)):
            if link.status == UP:
                if link.ins and world.core:
                    add(-1, "hear", place, channel)
                if link.outs:
                    add(-1, "hears", place, channel)
                if alive and world.core and not (channel and actor.kind == POOL):
                    add(BREAKS, "breaks", place, channel)
            elif link.status == CUT:
                add(-1, "notices", place, channel)

    def _worker_steps(self, world: World, place: int, actor: Actor, hasty: int, add: Any) -> None:
        view = self.processes.view(actor.state)
        for key, _ in view.handed:
            add(-1, "begins", place, key)
            if self.scenario.in_a_row:
                add(-1, "takes", place, key)
        if view.behind:
            add(-1, "catches up", place)
        for key, asked in view.running:
            self._body_steps(world, place, actor, key, asked, add)
        if view.hello_due:
            add(hasty, "says hello again", place)
        if view.ends_due:
            add(hasty, "says its ends again", place)
        if view.leaving:
            add(hasty, "leaves", place)
        if view.stuck:
            add(-1, "gives back", place)
        add(WORKERS, "dies", place, True)
        if actor.control.ins or actor.data.ins:
            add(WORKERS, "dies", place, False)

    def _body_steps(
        self, world: World, place: int, actor: Actor, key: AttemptKey, asked: bool, add: Any
    ) -> None:
        spawn = self._spawn_of(world, key)
        busy = False
        if spawn.body:
            worker: Worker = self.store[actor.state]
            (body,) = [each for each in worker.bodies if each.key == key]
            if body.place < len(spawn.body):
                step = spawn.body[body.place]
                busy = True
                if isinstance(step, Associate) and not body.request:
                    add(-1, "associates", place, key)
                elif isinstance(step, Call):
                    client = self._client_inside(world, key)
                    if client is None:
                        if not asked:
                            add(-1, "calls", place, key)
                    elif self.clients.is_done(world.actors[client].state):
                        busy = False
                    elif asked:
                        if self.store[world.actors[client].state].place < len(step.steps):
                            add(-1, "abandons", client)
                        return
        if not busy and not spawn.endless:
            add(-1, "ends", place, key, TaskOutcome.COMPLETED.value)
        if asked and not spawn.stubborn:
            add(-1, "ends", place, key, TaskOutcome.CANCELLED.value)

    def _pool_steps(self, world: World, place: int, actor: Actor, hasty: int, add: Any) -> None:
        view = self.processes.pool_view(actor.state)
        if view.due <= world.clock:
            add(-1, "ticks", place)
        if view.hello_due:
            add(hasty, "says hello again", place)
        if view.reports_due:
            add(hasty, "says its reports again", place)
        if view.ending:
            add(hasty, "finishes", place)
        if view.dies_at <= world.clock:
            add(-1, "its lease ends it", place)
        add(POOLS, "dies", place, True)
        if any(
            (each.control.ins or each.data.ins) and self.store[each.state].pool == place
            for each in world.actors
            if each.kind == WORKER
        ):
            add(POOLS, "dies", place, False)

    def _client_steps(self, world: World, place: int, actor: Actor, hasty: int, add: Any) -> None:
        view = self.clients.view(actor.state)
        if view.step is not None:
            add(-1, "goes on", place)
        if view.silent and actor.control.status == UP:
            add(hasty, "says hello again", place)

    # --- what follows -----------------------------------------------------------------------------

    def take(self, world: World, step: Step, fault: int = -1) -> World:
        """What this step, which is possible, leads to.

        Raises:
            BrokenRule: what must never happen.
        """
        draft = Draft(world)
        if fault >= 0:
            draft.spend(fault)
        _TAKE[step[0]](self, draft, *step[1:])
        after = draft.world()
        return after if self._symmetry is None else self._symmetry.canonical(after)

    def is_over(self, world: World) -> bool:
        """Everyone has got what it wanted: each stop its report, each spawn its answer and each task its end."""
        return all(
            self.clients.view(actor.state).over for actor in world.actors if actor.kind == CLIENT
        )


_TAKE: Final[dict[str, Any]] = {
    "the broker starts": Model._broker_starts,
    "the broker dies": Model._broker_dies,
    "commit": Model._commit,
    "timer": Model._timer,
    "hear": Model._hear,
    "hears": Model._hears,
    "breaks": Model._breaks,
    "notices": Model._notices,
    "reaps": Model._reaps,
    "is succeeded": Model._is_succeeded,
    "its lease ends it": Model._lease_ends,
    "ticks": lambda model, draft, place: model._tell(draft, place, "tick"),
    "finishes": lambda model, draft, place: model._tell(draft, place, "finish"),
    "leaves": lambda model, draft, place: model._tell(draft, place, "leave"),
    "says hello again": Model._says_hello,
    "gives back": Model._gives_back,
    "says its ends again": lambda model, draft, place: model._tell(draft, place, "ends"),
    "says its reports again": lambda model, draft, place: model._tell(draft, place, "reports"),
    "begins": Model._begins,
    "takes": lambda model, draft, place, key: model._begins(draft, place, key, by_itself=True),
    "catches up": lambda model, draft, place: model._tell(draft, place, "catch_up"),
    "ends": Model._ends,
    "associates": Model._associates,
    "calls": Model._calls,
    "abandons": Model._abandons,
    "dies": Model._dies,
    "goes on": Model._goes_on,
    "time passes": Model._time_passes,
}
