"""The cluster: from each state of the world all of its next ones.

A step is named by a tuple: what happens, to which actor (by its place), and what more must be said. `next_steps`
lists those that are possible, `take` gives what one leads to; both are pure.
"""

from typing import Any, Final, NamedTuple

from quiesce.protocol import from_client, from_supervisor, to_client
from quiesce.registry.ids import AttemptKey
from quiesce.registry.scope import Scope
from quiesce.registry.states import Outcome as TaskOutcome
from quiesce.testing.explorer import rules
from quiesce.testing.explorer.brokers import CLOCKED, BrokerMachine, Sending
from quiesce.testing.explorer.clients import ASKED, Client, Clients
from quiesce.testing.explorer.processes import CONTROL, DATA, Pool, Processes, Worker
from quiesce.testing.explorer.rules import CANCELLED, COMPLETED, DIED, RUNS, BrokenRule, Truth
from quiesce.testing.explorer.scenario import Associate, Call, Scenario, Spawn, Stop
from quiesce.testing.explorer.store import Store
from quiesce.testing.explorer.symmetry import Symmetry
from quiesce.testing.explorer.world import (
    BREAKS,
    BROKERS,
    CLIENT,
    CUT,
    DEAD_POOL,
    DEAD_WORKER,
    EMPTY,
    GONE,
    HASTY,
    LOST,
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
CHANNELS: Final = (CONTROL, DATA)
_REPORT: Final = 1
_ANSWERS: Final = 2
_ENDED: Final = 3
_TAKEN: Final = 4


class Possible(NamedTuple):
    """A step, and which fault it takes; -1 for none."""

    step: Step
    fault: int


class Model:
    """One scenario. Everything it does is remembered, so make one for each process."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.store = Store()
        self.broker = BrokerMachine(scenario, self.store)
        self.processes = Processes(scenario, self.store)
        self.clients = Clients(scenario, self.store)
        self._numbers = {spawn.name: number for number, spawn in enumerate(scenario.spawns)}
        self._labels = {labels: number for number, labels in enumerate(scenario.labels)}
        self._tags: dict[int, int] = {}
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
        for channel in CHANNELS:
            link = actor[2 + channel]
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
        for key, asked in view.running:
            self._body_steps(world, place, actor, key, asked, add)
        if view.hello_due:
            add(hasty, "says hello again", place)
        if view.ends_due:
            add(hasty, "says its ends again", place)
        if view.leaving:
            add(hasty, "leaves", place)
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

    # --- the broker -------------------------------------------------------------------------------

    def _broker_starts(self, draft: Draft) -> None:
        draft.core, draft.durable, turns = self.broker.start(draft.durable, draft.clock)
        for turn in turns:
            self._judge(draft, turn)
            draft.truth = rules.committed(draft.truth, self.store[turn].judgements)
        for place, actor in enumerate(draft.actors):
            if actor.kind <= CLIENT:
                self._connect(draft, place)

    def _broker_dies(self, draft: Draft) -> None:
        draft.core, draft.pending = 0, ()
        for place, actor in enumerate(draft.actors):
            alive = actor.kind <= CLIENT
            for channel in CHANNELS:
                link = actor[2 + channel]
                if not alive:
                    draft.set_link(place, channel, EMPTY)
                elif link.status in (UP, CUT) and not (channel and actor.kind == POOL):
                    # Who notices later does no harm by it: the next broker is not there yet.
                    draft.set_link(place, channel, Link(LOST, link.ins if link.status else ()))
                    self._noticed(draft, place, channel)

    def _hear(self, draft: Draft, place: int, channel: int) -> None:
        link = draft.link(place, channel)
        draft.set_link(place, channel, Link(link.status, link.ins[1:], link.outs))
        route = bytes((place, channel))
        outcome = self.broker.hear(draft.core, draft.clock, route, link.ins[0])
        self._broker_did(draft, *outcome)

    def _timer(self, draft: Draft, due: Any) -> None:
        self._broker_did(draft, *self.broker.fire(draft.core, draft.clock, due))

    def _commit(self, draft: Draft) -> None:
        turn, *draft_pending = draft.pending
        draft.pending = tuple(draft_pending)
        self._committed(draft, turn)
        outcome = self.broker.leave(draft.core, draft.clock, turn)
        self._broker_did(draft, *outcome)

    def _committed(self, draft: Draft, turn: int) -> None:
        draft.durable = self.broker.commit(draft.durable, turn)
        draft.truth = rules.committed(draft.truth, self.store[turn].judgements)

    def _judge(self, draft: Draft, turn: int) -> None:
        for judgement in self.store[turn].judgements:
            rules.decided(draft.truth, judgement, self.scenario.labels)

    def _broker_did(
        self, draft: Draft, core: int, sendings: tuple[Sending, ...], turns: tuple[int, ...]
    ) -> None:
        draft.core = core
        for turn in turns:
            self._judge(draft, turn)
            if self.scenario.slow_disk:
                draft.pending = (*draft.pending, turn)
            else:
                self._committed(draft, turn)
        for place, channel, message in sendings:
            tag = self._tag(message)
            if tag:
                self._check_sending(draft, place, message, tag)
            kind = draft.actors[place].kind
            if kind <= CLIENT:
                link = draft.link(place, channel)
                if link.status == UP:
                    if kind == CLIENT and not link.outs and self._is_eager(draft):
                        state = draft.actors[place].state
                        self._client_did(
                            draft, place, self.clients.receive(state, channel, message)
                        )
                        continue
                    outs = (*link.outs, message)
                    draft.set_link(place, channel, Link(UP, link.ins, outs))

    def _is_eager(self, draft: Draft) -> bool:
        """Whether what the broker sends to clients is there at once.

        That leaves out nothing but the control connection overtaking the data connection on this way, as long as
        nothing can be lost: what a client does before it hears something it might have done before that was sent.
        """
        return not draft.faults[0] if self.scenario.eager is None else self.scenario.eager

    def _tag(self, message: int) -> int:
        tag = self._tags.get(message)
        if tag is None:
            kind = type(self.store[message])
            tag = {
                to_client.StopReport: _REPORT,
                to_client.SpawnAnswers: _ANSWERS,
                to_client.Ended: _ENDED,
                from_client.ResultsTaken: _TAKEN,
            }.get(kind, 0)
            self._tags[message] = tag
        return tag

    def _check_sending(self, draft: Draft, place: int, number: int, tag: int) -> None:
        """Something leaves that a client will rely on."""
        message = self.store[number]
        durable = self.broker.durable(draft.durable)
        if tag == _REPORT:
            self._check_report(draft, place, message)
        elif tag == _ANSWERS:
            for row in message.rows:
                if row.task_id > durable.last_task:
                    text = f"task {row.task_id} is acknowledged and not in the journal"
                    raise BrokenRule("an acknowledged spawn is never lost", text)
        else:
            for row in message.rows:
                if row.task_id in durable.attempts or row.task_id > durable.last_task:
                    text = f"the end of task {row.task_id} is told and not in the journal"
                    raise BrokenRule("an end that is told is never lost", text)

    def _check_report(self, draft: Draft, place: int, report: to_client.StopReport) -> None:
        """The caller may remove its files now."""
        if draft.actors[place].kind != CLIENT:
            return
        client: Client = self.store[draft.actors[place].state]
        request = report.request + client.frozen[3][1]
        (asked,) = [each for each in client.asked if each.request == request]
        if report.timed_out:
            return
        stop = client.steps[asked.place]
        assert isinstance(stop, Stop)
        truth = draft.truth
        for row in report.tasks:
            attempt = truth.find(row.id, row.attempt)
            if attempt is not None and attempt.how == RUNS:
                text = f"{row.id}.{row.attempt} is reported as {row.outcome} {row.evidence}, and runs"
                raise BrokenRule("when a stop returns, it is true", text)
            if not row.evidence:
                raise BrokenRule("each row of a report has evidence", str(row))
        for attempt in truth.begun:
            if attempt.how != RUNS or (attempt.task_id, attempt.attempt) == client.inside:
                continue
            if attempt.spawn in asked.before:
                text = f"{attempt.task_id}.{attempt.attempt} runs in [{_scope(stop)}]"
                raise BrokenRule("when a stop returns, it is true", text)
        if report.remaining:
            raise BrokenRule("when a stop returns, it is true", f"remaining: {report.remaining}")
        draft.truth = truth._replace(dead=tuple(sorted({*truth.dead, *asked.before})))

    # --- connections ------------------------------------------------------------------------------

    def _hears(self, draft: Draft, place: int, channel: int) -> None:
        link = draft.link(place, channel)
        message = link.outs[0]
        draft.set_link(place, channel, Link(link.status, link.ins, link.outs[1:]))
        actor = draft.actors[place]
        if actor.kind == CLIENT:
            self._client_did(draft, place, self.clients.receive(actor.state, channel, message))
        else:
            self._tell(draft, place, "receive", message)

    # When a connection is made again makes no difference: until the first message on it is heard, nobody can send
    # on it, and that may take long. When a client notices that one has broken makes none either: what it sends on a
    # broken one is lost, as if it had broken later. What a worker sends then waits for the next connection.

    def _breaks(self, draft: Draft, place: int, channel: int) -> None:
        draft.core = self.broker.cut(draft.core, bytes((place, channel)))
        if draft.actors[place].kind == CLIENT or not self.scenario.late_notice:
            draft.set_link(place, channel, Link(LOST))
            self._noticed(draft, place, channel)
            self._connect(draft, place)
        else:
            draft.set_link(place, channel, Link(CUT))

    def _notices(self, draft: Draft, place: int, channel: int) -> None:
        draft.set_link(place, channel, Link(LOST, draft.link(place, channel).ins))
        self._noticed(draft, place, channel)
        if draft.core:
            self._connect(draft, place)

    def _noticed(self, draft: Draft, place: int, channel: int) -> None:
        actor = draft.actors[place]
        if actor.kind == CLIENT:
            self._client_did(draft, place, self.clients.lost(actor.state, channel))
        else:
            self._tell(draft, place, "lost")

    def _connect(self, draft: Draft, place: int) -> None:
        """There is a broker: whatever this actor knows to be broken, or has not made yet, is made."""
        again = False
        for channel in CHANNELS:
            link = draft.link(place, channel)
            if link.status in (LOST, NEW):
                again = again or link.status == LOST
                draft.set_link(place, channel, Link(UP, link.ins))
                if draft.actors[place].kind == CLIENT:
                    state = draft.actors[place].state
                    self._client_did(draft, place, self.clients.connected(state, channel))
        if again and draft.actors[place].kind != CLIENT:
            self._tell(draft, place, "connected")

    def _send(self, draft: Draft, place: int, sent: tuple[tuple[int, int], ...]) -> None:
        for channel, message in sent:
            link = draft.link(place, channel)
            is_client = draft.actors[place].kind == CLIENT
            if link.status == UP and is_client and not link.ins and draft.core:
                if self._tag(message) == _TAKEN and self._is_eager(draft):
                    route = bytes((place, channel))
                    outcome = self.broker.hear(draft.core, draft.clock, route, message)
                    self._broker_did(draft, *outcome)
                    continue
            if link.status == UP or not is_client:
                draft.set_link(
                    place, channel, Link(link.status, (*link.ins, message), link.outs)
                )

    # --- workers and supervisors ------------------------------------------------------------------

    def _tell(self, draft: Draft, place: int, what: str, *args: Any) -> None:
        """One step of the session of a worker or a supervisor, and what it causes."""
        actor = draft.actors[place]
        if actor.kind == WORKER:
            result = self.processes.worker(actor.state, what, *args)
        else:
            result = self.processes.pool(actor.state, draft.clock, what, *args)
        draft.set_state(place, result.state)
        self._send(draft, place, result.sent)
        for caused in result.caused:
            if actor.kind == WORKER:
                self._worker_caused(draft, place, *caused)
            else:
                self._pool_caused(draft, place, *caused)

    def _worker_caused(self, draft: Draft, place: int, what: str, *args: Any) -> None:
        if what == "quit":
            self._kill_worker(draft, place, keep=True)
            return
        key, tenant, timeline, error = args
        attempt = draft.truth.find(*key)
        assert attempt is not None
        kind, *_, runtime = self.scenario.labels[self._labels[self.scenario.spawns[attempt.spawn].labels]]
        labels = (kind, tenant, timeline, runtime)
        number = attempt.labels if error is not None else self._labels[labels]
        draft.truth = draft.truth.put(attempt._replace(labels=number))

    def _pool_caused(self, draft: Draft, place: int, what: str, *args: Any) -> None:
        pool: Pool = self.store[draft.actors[place].state]
        if what == "start":
            result = self.processes.new_worker(pool.identity.supervisor, place, args[0])
            link = EMPTY if draft.core else Link(NEW)
            draft.actors.append(Actor(WORKER, result.state, link, link))
            self._send(draft, len(draft.actors) - 1, result.sent)
            return
        if what == "quit":
            self._kill_pool(draft, place, fenced=False, keep=True)
            return
        for other, actor in enumerate(draft.actors):
            if actor.kind != WORKER:
                continue
            worker: Worker = self.store[actor.state]
            if worker.pool != place:
                continue
            if what == "half over":
                self._tell(draft, other, "half_over", *args)
            elif what == "back":
                self._tell(draft, other, "back")
            elif what == "terminate":
                self._tell(draft, other, "terminate")
            elif what == "kill all":
                self._kill_worker(draft, other, keep=True)
            elif what == "flag" and worker.identity.serial == args[0]:
                self._tell(draft, other, "flag", args[1])
            elif what == "kill" and worker.identity.serial == args[0]:
                running = {key for key, _ in self.processes.view(actor.state).running}
                if args[1] in running and running.isdisjoint(args[2]):
                    self._kill_worker(draft, other, keep=True)

    def _kill_worker(self, draft: Draft, place: int, *, keep: bool) -> None:
        """It dies. `keep`: what it had sent may still arrive."""
        actor = draft.actors[place]
        dead = self.processes.killed(actor.state)
        self._bury(draft, place, DEAD_WORKER, dead, keep=keep)
        for attempt in draft.truth.begun:
            if attempt.how == RUNS and attempt.actor == place:
                draft.truth = draft.truth.put(attempt._replace(how=DIED, labels=-1))
                client = self._client_inside(draft, (attempt.task_id, attempt.attempt))
                if client is not None:
                    self._bury(draft, client, GONE, 0, keep=keep)

    def _bury(self, draft: Draft, place: int, kind: int, state: int, *, keep: bool) -> None:
        links = []
        for channel in CHANNELS:
            link = draft.link(place, channel)
            links.append(Link(UP, link.ins) if keep and link.status == UP else EMPTY)
        draft.actors[place] = Actor(kind, state, *links)

    def _dies(self, draft: Draft, place: int, keep: bool) -> None:
        if draft.actors[place].kind == WORKER:
            self._kill_worker(draft, place, keep=keep)
        else:
            self._kill_pool(draft, place, fenced=False, keep=keep)

    def _kill_pool(self, draft: Draft, place: int, *, fenced: bool, keep: bool) -> None:
        """It dies, and its workers with it."""
        pool: Pool = self.store[draft.actors[place].state]
        rows = [row for row in self.processes.untaken(draft.actors[place].state)]
        for other, actor in enumerate(draft.actors):
            if actor.kind == WORKER and self.store[actor.state].pool == place:
                self._kill_worker(draft, other, keep=keep)
            actor = draft.actors[other]
            if actor.kind == DEAD_WORKER and self.store[actor.state].pool == place:
                rows.append(self.store[actor.state].row)
                draft.actors[other] = Actor(GONE, 0, actor.control, actor.data)
        state = self.processes.dead_pool(pool.identity, fenced, tuple(sorted(rows)))
        self._bury(draft, place, DEAD_POOL, state, keep=False)

    def _is_succeeded(self, draft: Draft, place: int) -> None:
        """Whoever started it reaps it, and starts another."""
        dead = self.store[draft.actors[place].state]
        draft.actors[place] = Actor(GONE, 0, EMPTY, EMPTY)
        before = from_supervisor.Predecessor(
            dead.identity.supervisor, dead.identity.pid, -9, dead.fenced, list(dead.rows)
        )
        self._start_pool(draft, before)

    def _start_pool(self, draft: Draft, before: from_supervisor.Predecessor | None) -> None:
        place = len(draft.actors)
        name = b"pool%04d" % place
        result = self.processes.new_pool(name, draft.clock, before)
        link = EMPTY if draft.core else Link(NEW)
        draft.actors.append(Actor(POOL, result.state, link, EMPTY))
        self._send(draft, place, result.sent)
        for caused in result.caused:
            self._pool_caused(draft, place, *caused)

    def _lease_ends(self, draft: Draft, place: int) -> None:
        self._kill_pool(draft, place, fenced=True, keep=True)

    def _reaps(self, draft: Draft, place: int) -> None:
        actor = draft.actors[place]
        pool = self.store[actor.state].pool
        draft.actors[place] = Actor(GONE, 0, actor.control, actor.data)
        self._tell(draft, pool, "reap", actor.state)

    def _says_hello(self, draft: Draft, place: int) -> None:
        actor = draft.actors[place]
        if actor.kind == CLIENT:
            self._client_did(draft, place, self.clients.beat(actor.state))
        else:
            self._tell(draft, place, "hello")

    def _time_passes(self, draft: Draft) -> None:
        draft.clock += 1

    # --- attempts ---------------------------------------------------------------------------------

    def _spawn_of(self, world: World, key: AttemptKey) -> Spawn:
        attempt = world.truth.find(*key)
        assert attempt is not None
        return self.scenario.spawns[attempt.spawn]

    def _begins(self, draft: Draft, place: int, key: AttemptKey) -> None:
        state = draft.actors[place].state
        name = dict(self.processes.view(state).handed)[key]
        number = self._numbers[name]
        words = f"{key[0]}.{key[1]} ({name})"
        present = self.broker.durable(draft.durable).attempts.get(key[0], 0)
        if not present or present > key[1]:
            raise BrokenRule("no attempt begins after its end was certain", words)
        if draft.truth.find(*key) is not None:
            raise BrokenRule("no attempt begins twice", words)
        if number in draft.truth.dead:
            raise BrokenRule("when a stop returns, it is true", f"{words} begins after the report")
        labels = self._labels[self.scenario.spawns[number].labels]
        draft.truth = draft.truth.put(rules.Attempt(*key, RUNS, place, number, labels))
        self._tell(draft, place, "begin", key)

    def _ends(self, draft: Draft, place: int, key: AttemptKey, outcome: str) -> None:
        attempt = draft.truth.find(*key)
        assert attempt is not None
        client = self._client_inside(draft, key)
        if client is not None:
            self._bury(draft, client, GONE, 0, keep=True)
        how = COMPLETED if outcome == "completed" else CANCELLED
        draft.truth = draft.truth.put(attempt._replace(how=how, labels=-1))
        self._tell(draft, place, "end", key, TaskOutcome(outcome))

    def _associates(self, draft: Draft, place: int, key: AttemptKey) -> None:
        attempt = draft.truth.find(*key)
        assert attempt is not None
        (body,) = [each for each in self.store[draft.actors[place].state].bodies if each.key == key]
        step = self.scenario.spawns[attempt.spawn].body[body.place]
        draft.truth = draft.truth.put(attempt._replace(labels=-1))
        self._tell(draft, place, "associate", key, step)

    def _calls(self, draft: Draft, place: int, key: AttemptKey) -> None:
        """The task makes its client, which is connected in a moment."""
        attempt = draft.truth.find(*key)
        assert attempt is not None
        call = self.scenario.spawns[attempt.spawn].body[-1]
        assert isinstance(call, Call)
        worker: Worker = self.store[draft.actors[place].state]
        name = b"nested%02d" % len(draft.actors) + bytes(8)
        state = self.clients.new(name, call.steps, worker.frozen[0], key)
        draft.actors.append(Actor(CLIENT, state, Link(NEW), Link(NEW)))
        if draft.core:
            self._connect(draft, len(draft.actors) - 1)

    def _client_inside(self, world: World | Draft, key: AttemptKey) -> int | None:
        for place, actor in enumerate(world.actors):
            if actor.kind == CLIENT and self.store[actor.state].inside == key:
                return place
        return None

    # --- clients ----------------------------------------------------------------------------------

    def _goes_on(self, draft: Draft, place: int) -> None:
        state = draft.actors[place].state
        client: Client = self.store[state]
        step = client.steps[client.place]
        before = self._before(draft, place, step) if isinstance(step, Stop) else ()
        self._client_did(draft, place, self.clients.go_on(state, before))

    def _before(self, draft: Draft, place: int, stop: Stop) -> tuple[int, ...]:
        """The spawns that this stop must not leave behind: its own ones, and those that others know to be registered.

        (Those that associate themselves with other scopes are judged when the report leaves.)
        """
        client: Client = self.store[draft.actors[place].state]
        if stop.task:
            return (self._numbers[stop.task],)
        own = None if client.inside is None else draft.truth.find(*client.inside)
        found: list[int] = []
        for other, actor in enumerate(draft.actors):
            if actor.kind != CLIENT:
                continue
            for number, known in self.store[actor.state].known:
                spawn = self.scenario.spawns[number]
                if known == ASKED and (other != place or spawn.unique):
                    continue
                moves = any(isinstance(step, Associate) for step in spawn.body)
                if moves or (own is not None and own.spawn == number):
                    continue
                if _scope(stop).matches(*spawn.labels):
                    found.append(number)
        return tuple(sorted(found))

    def _abandons(self, draft: Draft, place: int) -> None:
        self._client_did(draft, place, self.clients.abandon(draft.actors[place].state))

    def _client_did(self, draft: Draft, place: int, result: Any) -> None:
        draft.set_state(place, result.state)
        if result.anew:
            for channel in CHANNELS:
                draft.set_link(place, channel, Link(NEW))
                if draft.core:
                    draft.core = self.broker.cut(draft.core, bytes((place, channel)))
            if draft.core:
                self._connect(draft, place)
        self._send(draft, place, result.sent)


def _scope(stop: Stop) -> Scope:
    return Scope(stop.kind, stop.tenant, stop.timeline, None)


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
    "says its ends again": lambda model, draft, place: model._tell(draft, place, "ends"),
    "says its reports again": lambda model, draft, place: model._tell(draft, place, "reports"),
    "begins": Model._begins,
    "ends": Model._ends,
    "associates": Model._associates,
    "calls": Model._calls,
    "abandons": Model._abandons,
    "dies": Model._dies,
    "goes on": Model._goes_on,
    "time passes": Model._time_passes,
}
