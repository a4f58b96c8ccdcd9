"""What follows from steps of workers, supervisors, attempts and clients."""

from typing import Any

from quiesce.protocol import from_supervisor
from quiesce.registry.ids import AttemptKey
from quiesce.registry.states import Outcome as TaskOutcome
from quiesce.testing.explorer import rules
from quiesce.testing.explorer.clients import ASKED, Client
from quiesce.testing.explorer.cluster import CHANNELS, Cluster
from quiesce.testing.explorer.process_states import Pool, Worker
from quiesce.testing.explorer.rules import CANCELLED, COMPLETED, DIED, RUNS, BrokenRule
from quiesce.testing.explorer.scenario import Associate, Call, Scenario, Spawn, Stop, scope_of
from quiesce.testing.explorer.world import (
    CLIENT,
    DEAD_POOL,
    DEAD_WORKER,
    EMPTY,
    GONE,
    NEW,
    POOL,
    UP,
    WORKER,
    Actor,
    Draft,
    Link,
    World,
)


class Moves(Cluster):
    """The other part of the steps."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._numbers = {spawn.name: number for number, spawn in enumerate(scenario.spawns)}
        self._labels = {labels: number for number, labels in enumerate(scenario.labels)}

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
        kind, *_, runtime = self.scenario.labels[
            self._labels[self.scenario.spawns[attempt.spawn].labels]
        ]
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
                client = self._client_inside(draft, attempt.key)
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
        rows = list(self.processes.untaken(draft.actors[place].state))
        for other, actor in enumerate(draft.actors):
            if actor.kind == WORKER and self.store[actor.state].pool == place:
                self._kill_worker(draft, other, keep=keep)
            dead = draft.actors[other]
            if dead.kind == DEAD_WORKER and self.store[dead.state].pool == place:
                rows.append(self.store[dead.state].row)
                draft.actors[other] = Actor(GONE, 0, dead.control, dead.data)
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

    def _gives_back(self, draft: Draft, place: int) -> None:
        self._tell(draft, place, "give_back")

    def _time_passes(self, draft: Draft) -> None:
        draft.clock += 1

    # --- attempts ---------------------------------------------------------------------------------

    def _spawn_of(self, world: World, key: AttemptKey) -> Spawn:
        attempt = world.truth.find(*key)
        assert attempt is not None
        return self.scenario.spawns[attempt.spawn]

    def _begins(
        self, draft: Draft, place: int, key: AttemptKey, *, by_itself: bool = False
    ) -> None:
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
        self._tell(draft, place, "take" if by_itself else "begin", key)

    def _ends(self, draft: Draft, place: int, key: AttemptKey, outcome: str) -> None:
        attempt = draft.truth.find(*key)
        assert attempt is not None
        client = self._client_inside(draft, key)
        if client is not None:
            self._bury(draft, client, GONE, 0, keep=True)
        how = COMPLETED if outcome == "completed" else CANCELLED
        draft.truth = draft.truth.put(attempt._replace(how=how, labels=-1))
        untold = self.processes.view(draft.actors[place].state).ends_untold == key
        self._tell(draft, place, "end_in_row" if untold else "end", key, TaskOutcome(outcome))

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
        """The spawns that this stop must not leave behind: its own, and those that others know to be there.

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
                if scope_of(stop).matches(*spawn.labels):
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
