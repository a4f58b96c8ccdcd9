"""Supervisors and workers as data: their real sessions, and of their processes what the sessions can't know.

A step takes the state of one process and gives its next one, what it sends, and what happens to other processes
by it. The clock of a worker stands still: it only says how long ago things were. That of a supervisor is the
clock of leases.
"""

import math
from collections.abc import Callable
from typing import Any, Final

from quiesce.protocol import from_supervisor
from quiesce.registry.ids import Attempt, AttemptKey, TaskId
from quiesce.registry.states import Outcome
from quiesce.testing.explorer.process_states import (
    Body,
    DeadPool,
    DeadWorker,
    Pool,
    PoolView,
    Result,
    Worker,
    WorkerView,
)
from quiesce.testing.explorer.rules import BrokenRule
from quiesce.testing.explorer.scenario import Associate, Scenario
from quiesce.testing.explorer.store import Memo, Store
from quiesce.workers.lease import AskForLease, LeaseIsBack
from quiesce.workers.supervisor_effects import (
    RESEND,
    AskToEnd,
    Identity as PoolIdentity,
    KillAll,
    KillFor,
    Quit as PoolQuit,
    Send,
    SetFlags,
    StartWorker,
)
from quiesce.workers.supervisor_session import SupervisorSession
from quiesce.workers.worker_effects import (
    RESEND as WORKER_RESEND,
    Control,
    Data,
    Identity,
    Quit,
    Ran,
    Settle,
)
from quiesce.workers.worker_gives_back import GIVE_BACK
from quiesce.workers.worker_session import WorkerSession

#: What is due at no time of its own: the explorer says when.
FAR: Final = 1e9
#: Steps of a worker of which its session is not told.
_BY_ITSELF: Final = frozenset({"take", "end_in_row", "flag"})
CONTROL: Final = 0
DATA: Final = 1


class Processes:
    """All steps of workers and supervisors. States and messages are digests in the store."""

    def __init__(self, scenario: Scenario, store: Store) -> None:
        self._scenario = scenario
        self._store = store
        self._spawns = {spawn.name: spawn for spawn in scenario.spawns}
        self.memo = Memo()

    # --- workers ----------------------------------------------------------------------------------

    def new_worker(self, supervisor: bytes, pool: int, serial: int) -> Result:
        """A worker process that has just been started."""
        identity = Identity(
            "pool", supervisor, serial, 1000 + serial, "here", self._scenario.slots, 16
        )
        session = WorkerSession(identity)
        return self._saved(Worker(identity, pool, (), (), ()), session, session.start(0.0))

    def worker(self, state: int, what: str, *args: Any) -> Result:
        """One step of a worker, by the name of the method here."""
        step: Callable[..., Any] = getattr(self, f"_worker_{what}")

        def make() -> Result:
            worker: Worker = self._store[state]
            session = WorkerSession.thaw(worker.identity, worker.frozen)
            told: list[Any] = []
            if what not in _BY_ITSELF:
                worker, told = self._caught_up(worker, session)
            worker, effects = step(worker, session, *args)
            return self._saved(worker, session, [*told, *effects])

        return self.memo((state, what, args), make)  # type: ignore[no-any-return]  # of a memo

    def _worker_receive(self, worker: Worker, session: WorkerSession, message: int) -> Any:
        return worker, session.receive(self._store[message], 0.0)

    def _worker_lost(self, worker: Worker, session: WorkerSession) -> Any:
        return worker, session.connection_lost(0.0)

    def _worker_connected(self, worker: Worker, session: WorkerSession) -> Any:
        return worker, session.connected(0.0)

    def _caught_up(self, worker: Worker, session: WorkerSession) -> tuple[Worker, list[Any]]:
        """The session is told what the main thread has done by itself."""
        effects: list[Any] = []
        if worker.over:
            ends = [Ran(key, 0.0, 0.0, outcome, "", b"") for key, outcome in worker.over]
            effects += session.ran(ends, 0.0)
        if worker.current is not None and worker.current in session.handed:
            effects += session.begin(worker.current, 0.0)
        return worker._replace(over=()), effects

    def _worker_catch_up(self, worker: Worker, session: WorkerSession) -> Any:
        del session
        return worker, []

    def _worker_take(self, worker: Worker, session: WorkerSession, key: AttemptKey) -> Any:
        """Its main thread begins what it was handed, by itself."""
        del session
        return worker._replace(current=key), []

    def _worker_end_in_row(
        self, worker: Worker, session: WorkerSession, key: AttemptKey, outcome: Outcome
    ) -> Any:
        """What its main thread has begun has ended; it was not asked to stop."""
        del session
        return worker._replace(current=None, over=(*worker.over, (key, outcome))), []

    def _worker_begin(self, worker: Worker, session: WorkerSession, key: AttemptKey) -> Any:
        """The gate: its function is loaded and its body begins."""
        name = session.handed[key].name
        effects = [*session.load(key, 0.0), *session.begin(key, 0.0)]
        if self._spawns[name].body:
            worker = worker._replace(bodies=tuple(sorted([*worker.bodies, Body(key, 0, 0)])))
        return worker, effects

    def _worker_end(
        self, worker: Worker, session: WorkerSession, key: AttemptKey, outcome: Outcome
    ) -> Any:
        for body in worker.bodies:
            if body.key == key and body.request:
                session.give_up(body.request)
        bodies = tuple(body for body in worker.bodies if body.key != key)
        current = None if worker.current == key else worker.current
        worker = worker._replace(bodies=bodies, current=current)
        return worker, session.ended(key, outcome, "", b"", 0.0)

    def _worker_associate(
        self, worker: Worker, session: WorkerSession, key: AttemptKey, step: Associate
    ) -> Any:
        request, effects = session.associate(key, step.tenant, step.timeline)
        return self._with_body(worker, key, request=request), effects

    def _worker_go_on(self, worker: Worker, session: WorkerSession, key: AttemptKey) -> Any:
        """The body's present step is done."""
        del session
        (body,) = [body for body in worker.bodies if body.key == key]
        return self._with_body(worker, key, place=body.place + 1, request=0), []

    def _worker_flag(
        self, worker: Worker, session: WorkerSession, keys: tuple[AttemptKey, ...]
    ) -> Any:
        here = {key for key in keys if key in session.running or key == worker.current}
        return worker._replace(flags=tuple(sorted({*worker.flags, *here}))), []

    def _worker_hello(self, worker: Worker, session: WorkerSession) -> Any:
        """Its Hello had no answer in time."""
        session.hello_at = 0.0
        return worker, session.tick(0.0)

    def _worker_ends(self, worker: Worker, session: WorkerSession) -> Any:
        """Its ends had no answer in time."""
        session.resend_at = 0.0
        session.held = {key: held._replace(send_at=0.0) for key, held in session.held.items()}
        return worker, session.tick(0.0)

    def _worker_leave(self, worker: Worker, session: WorkerSession) -> Any:
        """It is to exit, and its last ends had no answer."""
        return worker, session.tick(100.0)

    def _worker_give_back(self, worker: Worker, session: WorkerSession) -> Any:
        """What waits for a slot has waited for long."""
        session.flowed_at = -GIVE_BACK
        return worker, session.give_back(0.0)

    def _worker_half_over(self, worker: Worker, session: WorkerSession, reason: str) -> Any:
        flags = tuple(sorted({*worker.flags, *session.running}))
        return worker._replace(flags=flags), session.lease_half_over(reason, 0.0)

    def _worker_back(self, worker: Worker, session: WorkerSession) -> Any:
        return worker, session.lease_is_back(0.0)

    def _worker_terminate(self, worker: Worker, session: WorkerSession) -> Any:
        return worker, session.exit_asking("the pool is going", 0.0)

    @staticmethod
    def _with_body(worker: Worker, key: AttemptKey, **changes: Any) -> Worker:
        bodies = tuple(
            body._replace(**changes) if body.key == key else body for body in worker.bodies
        )
        return worker._replace(bodies=bodies)

    def _saved(self, worker: Worker, session: WorkerSession, effects: list[Any]) -> Result:
        sent: list[tuple[int, int]] = []
        caused: list[tuple[Any, ...]] = []
        for effect in effects:
            match effect:
                case Control(message):
                    sent.append((CONTROL, self._store.put(message)))
                case Data(message):
                    sent.append((DATA, self._store.put(message)))
                case Settle(request, tenant, timeline, error):
                    for body in worker.bodies:
                        if body.request == request:
                            caused.append(("settled", body.key, tenant, timeline, error))
                            worker = self._with_body(
                                worker, body.key, place=body.place + 1, request=0
                            )
                case Quit(status):
                    caused.append(("quit", status))
        # When things are due is for the explorer to say.
        session.hello_at = None if session.hello_at is None else FAR
        session.hello_interval = WORKER_RESEND
        session.resend_at = FAR if session.held else math.inf
        session.flowed_at = 0.0
        session.look_at = math.inf
        session.held = {
            key: held._replace(send_at=FAR, interval=WORKER_RESEND)
            for key, held in session.held.items()
        }
        try:
            session.check()
        except AssertionError as error:
            raise BrokenRule("a worker session is as it says", repr(error)) from error
        flags = tuple(
            key for key in worker.flags if key in session.running or key == worker.current
        )
        state = worker._replace(frozen=session.freeze(), flags=flags)
        return Result(self._store.put(state), tuple(sent), tuple(caused))

    def view(self, state: int) -> WorkerView:
        """What this worker can do."""

        def make() -> WorkerView:
            worker: Worker = self._store[state]
            session = WorkerSession.thaw(worker.identity, worker.frozen)
            over = dict(worker.over)
            untold = worker.current if worker.current in session.handed else None
            waits = [
                (key, row.name)
                for key, row in session.handed.items()
                if key not in over and key != untold
            ]
            if self._scenario.in_a_row:
                waits = waits[:1] if untold is None else []
            running = list(session.running) if untold is None else [*session.running, untold]
            return WorkerView(
                tuple(waits),
                bool(over or untold),
                untold if untold not in worker.flags else None,
                tuple(
                    (
                        key,
                        key in worker.flags
                        or (key in session.asked and (asked := session.asked[key]).told)
                        or (key in session.asked and asked.lease),
                    )
                    for key in running
                ),
                session.hello_at is not None,
                session.registered and bool(session.held),
                session.exiting_since is not None,
                session.is_stuck(),
            )

        return self.memo(("view", state), make)  # type: ignore[no-any-return]  # of a memo

    def killed(self, state: int) -> int:
        """This worker has just died."""

        def make() -> int:
            worker: Worker = self._store[state]
            session = WorkerSession.thaw(worker.identity, worker.frozen)
            running = set(session.running) | ({worker.current} if worker.current else set())
            phases = [from_supervisor.AttemptPhase(*key, "begun") for key in sorted(running)]
            phases += [
                from_supervisor.AttemptPhase(*key, outcome.value) for key, outcome in worker.over
            ]
            phases += [
                from_supervisor.AttemptPhase(*key, held.outcome)
                for key, held in sorted(session.held.items())
                if held.begun_at is not None
            ]
            serial = worker.identity.serial
            row = from_supervisor.WorkerExitedRow(serial, 1000 + serial, -9, True, phases)
            return self._store.put(DeadWorker(worker.pool, serial, row))

        return self.memo(("killed", state), make)  # type: ignore[no-any-return]  # of a memo

    # --- supervisors ------------------------------------------------------------------------------

    def new_pool(
        self, name: bytes, clock: int, before: from_supervisor.Predecessor | None
    ) -> Result:
        """A supervisor process that has just been started."""
        scenario = self._scenario
        identity = PoolIdentity(
            name,
            "pool",
            500,
            "here",
            "boot",
            scenario.workers,
            scenario.slots,
            scenario.workers + 4,
            "run",
            before,
        )
        session = SupervisorSession(identity)
        return self._saved_pool(identity, session, session.start(float(clock)), clock)

    def pool(self, state: int, clock: int, what: str, *args: Any) -> Result:
        """One step of a supervisor, by the name of the method here."""
        step: Callable[..., Any] = getattr(self, f"_pool_{what}")

        def make() -> Result:
            pool: Pool = self._store[state]
            session = SupervisorSession.thaw(pool.identity, pool.frozen)
            effects = step(session, float(clock), *args)
            return self._saved_pool(pool.identity, session, effects, clock)

        return self.memo((state, clock, what, args), make)  # type: ignore[no-any-return]  # of a memo

    def _pool_receive(self, session: SupervisorSession, now: float, message: int) -> Any:
        return session.receive(self._store[message], now)

    def _pool_lost(self, session: SupervisorSession, now: float) -> Any:
        return session.connection_lost(now)

    def _pool_connected(self, session: SupervisorSession, now: float) -> Any:
        return session.connected(now)

    def _pool_reap(self, session: SupervisorSession, now: float, dead: int) -> Any:
        """A worker is dead, and nothing is left of it."""
        serial, row = self._store[dead].serial, self._store[dead].row
        return [
            *session.worker_died(serial, row.status, ready=True, now=now),
            *session.worker_gone(serial, row, now),
        ]

    def _pool_hello(self, session: SupervisorSession, now: float) -> Any:
        """Its Hello had no answer in time."""
        session.hello_at = now
        return session.tick(now)

    def _pool_reports(self, session: SupervisorSession, now: float) -> Any:
        """Its reports had no answer in time."""
        session.reports = {
            serial: report._replace(send_at=now) for serial, report in session.reports.items()
        }
        return session.tick(now)

    def _pool_tick(self, session: SupervisorSession, now: float) -> Any:
        return session.tick(now)

    def _pool_finish(self, session: SupervisorSession, now: float) -> Any:
        """It ends, and its workers or its reports take too long."""
        session.kill_at = now
        if session.leave_at is not None:
            session.leave_at = now
        return session.tick(now)

    def _saved_pool(
        self, identity: PoolIdentity, session: SupervisorSession, effects: list[Any], clock: int
    ) -> Result:
        sent: list[tuple[int, int]] = []
        caused: list[tuple[Any, ...]] = []
        serials = {place: serial for serial, place in session.alive.items()}
        for effect in effects:
            match effect:
                case Send(message):
                    sent.append((CONTROL, self._store.put(message)))
                case StartWorker(_, serial):
                    caused.append(("start", serial))
                case SetFlags(place, keys):
                    named = tuple((TaskId(task), Attempt(number)) for task, number in keys)
                    caused.append(("flag", serials[place], named))
                case KillFor():
                    spared = tuple(map(tuple, effect.spared))
                    caused.append(("kill", effect.serial, (effect.task_id, effect.attempt), spared))
                case AskForLease(reason):
                    caused.append(("half over", reason))
                case LeaseIsBack():
                    caused.append(("back",))
                case AskToEnd():
                    caused.append(("terminate",))
                case KillAll():
                    caused.append(("kill all",))
                case PoolQuit(status):
                    caused.append(("quit", status))
        session.hello_at = None if session.hello_at is None else FAR
        session.hello_interval = RESEND
        if not self._scenario.faults.ticks:
            session.lease.ask_at = FAR
        session.start_at = 0.0
        # Which place a worker has makes no difference.
        session.alive = {serial: place for place, serial in enumerate(sorted(session.alive))}
        session.reports = {
            serial: report._replace(place=len(session.alive) + place, send_at=FAR)
            for place, (serial, report) in enumerate(sorted(session.reports.items()))
        }
        try:
            session.check()
        except AssertionError as error:
            raise BrokenRule("a supervisor session is as it says", repr(error)) from error
        return Result(self._store.put(Pool(identity, session.freeze())), tuple(sent), tuple(caused))

    def untaken(self, state: int) -> tuple[from_supervisor.WorkerExitedRow, ...]:
        """What this supervisor has reported, and the broker may not have: the table still has it."""
        pool: Pool = self._store[state]
        session = SupervisorSession.thaw(pool.identity, pool.frozen)
        return tuple(report.row for report in session.reports.values())

    def dead_pool(
        self,
        identity: PoolIdentity,
        fenced: bool,
        rows: tuple[from_supervisor.WorkerExitedRow, ...],
    ) -> int:
        """A supervisor that has died with its workers."""
        return self._store.put(DeadPool(identity, fenced, rows))

    def pool_view(self, state: int) -> PoolView:
        """What this supervisor can do."""

        def make() -> PoolView:
            pool: Pool = self._store[state]
            session = SupervisorSession.thaw(pool.identity, pool.frozen)
            due = [math.inf]
            half = session.lease.due()
            if self._scenario.faults.ticks:
                due += [] if half is None else [half]
                due += [session.lease.ask_at] if session.registered else []
            elif session._missing() and session.kill_at is None:
                due.append(0.0)
            return PoolView(
                session.hello_at is not None,
                session.registered and bool(session.reports),
                session.kill_at is not None,
                min(due),
                math.inf if session.lease.armed_until is None else session.lease.armed_until,
            )

        return self.memo(("pool view", state), make)  # type: ignore[no-any-return]  # of a memo
