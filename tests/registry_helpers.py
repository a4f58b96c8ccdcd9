"""A desk to try the registry at: say an event, see the facts and effects, let time pass.

After every event the desk checks the registry's invariants; that a thawed copy of it does the same with
the event; and that a replay of all the facts so far leads to the same state.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import pytest

from quiesce.registry import effects, events
from quiesce.registry.effects import Effect
from quiesce.registry.events import Event, Instant
from quiesce.registry.facts import Fact, singly
from quiesce.registry.ids import (
    Attempt,
    Incarnation,
    RequestNumber,
    SessionId,
    SpawnNumber,
    StopId,
    TaskId,
)
from quiesce.registry.invariants import check
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.machine import Registry
from quiesce.registry.records import Task
from quiesce.registry.rows import (
    AssignRow,
    EndedRow,
    ResultRow,
    SpawnAnswer,
    SpawnRow,
    StoppedRow,
    one_by_one,
)
from quiesce.registry.scope import Scope

#: The wall clock when the desk's tick is 0.
WALL: Final = 1_000_000.0
#: So that no lease is over by the way.
LEASE: Final = 1e6
#: Seconds of grace of the kinds here.
GRACE: Final = 10.0

_T = TypeVar("_T")


def configuration(**changes: Any) -> dict[str, Any]:
    """Arguments for Registry: two runtimes (solo has one slot, pool three), three kinds."""
    return {
        "runtimes": [
            RuntimeLimits(name="pool", slots=3, max_queue=1000),
            RuntimeLimits(name="solo", slots=1, max_queue=1000),
        ],
        "kinds": [
            KindLimits(name="flush", stop_grace=GRACE),
            KindLimits(name="gc", stop_grace=GRACE),
            KindLimits(name="listen", stop_grace=GRACE),
        ],
        "lease": LEASE,
        **changes,
    }


def handle(registry: Registry, event: Event, now: Instant) -> tuple[list[Fact], list[Effect]]:
    """What follows from an event; rows that are alike one by one, as their receivers see them."""
    decided, caused = registry.handle(event, now)
    return decided, [
        effect._replace(rows=[*one_by_one(effect.rows)])
        if isinstance(effect, (effects.AnswerSpawns, effects.AssignTasks, effects.SendResults))
        else effect
        for effect in caused
    ]


def session_id(name: str) -> SessionId:
    """ "A" -> the 16 bytes of its session."""
    return SessionId(name.encode().ljust(16, b"."))


def supervisor_id(runtime: str, number: int = 1) -> bytes:
    """The 8 bytes that name a supervisor."""
    return f"{runtime}{number}".encode().ljust(8, b".")


def spawn_row(number: int = 1, **changes: Any) -> SpawnRow:
    """A spawn of a gc task in the pool, unless said differently."""
    row = SpawnRow(
        number=SpawnNumber(number),
        runtime="pool",
        kind="gc",
        tenant_id=None,
        timeline_id=None,
        name="t",
        shutdown_process_on_error=False,
        retries=0,
        restart="never",
        timeout=None,
        unique_key=None,
        parent=None,
        function=b"fn",
        arguments=b"args",
    )
    return row._replace(**changes)


def ended_row(task_id: int, attempt: int = 1, **changes: Any) -> EndedRow:
    """A task that returned just now, unless said differently."""
    row = EndedRow(
        task_id=TaskId(task_id),
        attempt=Attempt(attempt),
        outcome="completed",
        evidence="RETURNED",
        begun_age=0.0,
        ended_age=0.0,
        delivered_age=None,
        observed_age=None,
        text="",
        result=b"result",
    )
    return row._replace(**changes)


def answer(number: int, task_id: int, error: str | None = None, text: str = "") -> SpawnAnswer:
    """What became of a spawn."""
    return SpawnAnswer(SpawnNumber(number), TaskId(task_id), error, text)


def assign_row(number: int, task_id: int, **changes: Any) -> AssignRow:
    """What a worker gets of a task that was spawned by `spawn_row` when the tick was 0."""
    row = AssignRow(
        assign_number=number,
        task_id=TaskId(task_id),
        attempt=Attempt(1),
        kind="gc",
        name="t",
        tenant_id=None,
        timeline_id=None,
        shutdown_process_on_error=False,
        created_at=WALL,
        function=b"fn",
        arguments=b"args",
    )
    return row._replace(**changes)


class Desk:
    """A registry, a virtual clock, and what has come of it.

    The worker of each runtime that `pool` starts is reached, and named by its incarnation. Events that are
    said through the verbs below stand for messages of sessions ("A", "B"), workers and supervisors.
    """

    def __init__(self, **changes: Any) -> None:
        self.configuration = configuration(**changes)
        self.registry = Registry(**self.configuration)
        self.replayed = Registry(**self.configuration)
        self.tick = 0.0
        self.step = 0.0
        #: Off for long runs: the copies cost more than the registry.
        self.thorough = True
        #: What followed from the last event, or the last `wait`.
        self.facts: list[Fact] = []
        self.effects: list[Effect] = []
        #: The stops and sessions that want their next slice.
        self.again: list[StopId | SessionId] = []
        self._spawned: dict[SessionId, int] = {}
        self._requests: dict[SessionId, int] = {}
        self._serial = self._reopened = 0
        #: incarnation -> (supervisor, serial)
        self.places: dict[int, tuple[bytes, int]] = {}

    # --- the clock and the registry ---------------------------------------------------------------

    @property
    def now(self) -> Instant:
        """The moment."""
        return Instant(self.tick, WALL + self.step + self.tick)

    @property
    def wall(self) -> float:
        """The moment, in seconds since the epoch."""
        return self.now.wall

    def say(self, event: Event) -> None:
        """One event; what follows is in `facts` and `effects`."""
        self.facts, self.effects = [], []
        self._say(event)

    def _say(self, event: Event) -> None:
        copy = None
        if self.thorough:
            copy = Registry.thaw(self.registry.freeze(), **self.configuration)
            assert self.registry.ahead.go_on()
        decided, caused = handle(self.registry, event, self.now)
        for fact in singly(decided):  # a slice leads to where the ends of single tasks do
            self.replayed.apply(fact)
        self.facts += decided
        self.effects += caused
        self.again += [effect.of for effect in caused if isinstance(effect, effects.Again)]
        if copy is not None:
            assert handle(copy, event, self.now) == (decided, caused), "a thawed copy differs"
            assert copy.freeze() == self.registry.freeze(), "a thawed copy went elsewhere"
            hash(copy.freeze())
            check(self.registry)
            whole = self.registry.freeze(volatile=False, payloads=True)
            assert self.registry.snapshot() == whole, "what was frozen ahead is no more so"
            self.compare_replay()

    def restart(
        self,
        *,
        epoch: int | None = None,
        run: str = "",
        boot_id: str = "boot",
        swept: tuple[str, ...] = (),
        complete: bool = True,
    ) -> None:
        """The broker dies; the next one recovers what the facts say."""
        self.registry = Registry.thaw(self.replayed.freeze(volatile=False), **self.configuration)
        self.again = []
        number = self.registry.state.epoch + 1 if epoch is None else epoch
        self.say(events.EpochBegan(number, boot_id, run, swept, complete))

    def compare_replay(self) -> None:
        """What the facts say is what stands."""
        replayed = self.replayed.freeze(volatile=False)
        for found, expected in zip(replayed, self.registry.freeze(volatile=False), strict=True):
            assert found == expected, "a replay of the facts leads elsewhere"
        check(self.replayed, volatile=False)

    def wait(self, seconds: float) -> None:
        """Time passes; the registry is told at each of its deadlines, and not otherwise."""
        self.facts, self.effects = [], []
        until = self.tick + seconds
        while (due := self.registry.next_deadline()) is not None and due <= until:
            self.tick = max(self.tick, due)
            self._say(events.Tick())
        self.tick = until

    def go_on(self) -> None:
        """Hand back every `Again` until there are no more."""
        self.facts, self.effects = [], []
        while self.again:
            self._say(events.Continue(self.again.pop(0)))

    # --- what came of it --------------------------------------------------------------------------

    def expect(self, *expected: Effect | Fact | type) -> None:
        """These effects followed, in this order, and no others; a type stands for any of its kind."""
        self._compare(self.effects, expected)

    def expect_facts(self, *expected: Effect | Fact | type) -> None:
        """These facts were decided, in this order, and no others."""
        self._compare(self.facts, expected)

    @staticmethod
    def _compare(found: Sequence[object], expected: Sequence[object]) -> None:
        seen = [
            type(each) if place < len(expected) and expected[place] is type(each) else each
            for place, each in enumerate(found)
        ]
        assert seen == list(expected)

    def expect_nothing(self) -> None:
        """Neither fact nor effect."""
        assert (self.facts, self.effects) == ([], [])

    def take(self, kind: type[_T]) -> list[_T]:
        """The effects, or facts, of this kind among what came last."""
        return [each for each in (*self.effects, *self.facts) if isinstance(each, kind)]

    def one(self, kind: type[_T]) -> _T:
        """The one effect or fact of this kind among what came last."""
        found = self.take(kind)
        if len(found) != 1:
            pytest.fail(f"expected one {kind.__name__}, got {found} in {self.effects}")
        return found[0]

    def task(self, task_id: int) -> Task:
        """A live task."""
        return self.registry.state.tasks[TaskId(task_id)]

    def life(self, task_id: int) -> str:
        """ "queued", "running", …; for an ended task "outcome EVIDENCE"."""
        task = self.registry.state.tasks.get(TaskId(task_id))
        if task is not None:
            return str(task.state)
        ended = self.registry.state.history[TaskId(task_id)]
        return f"{ended.outcome} {ended.evidence}"

    def closed(self) -> list[tuple[str, str]]:
        """(scope, holder) of all closures."""
        return [
            (str(each.scope), each.holder)
            for _, each in sorted(self.registry.state.closures.items())
        ]

    # --- sessions ---------------------------------------------------------------------------------

    def session(self, name: str = "A") -> SessionId:
        """A client says hello."""
        session = session_id(name)
        if session not in self.registry.state.sessions:
            self._spawned[session] = self._requests[session] = 0
        self.say(events.SessionHello(session, pid=77, host="here", worker=0))
        return session

    def spawn(
        self, *rows: dict[str, Any] | SpawnRow, session: str = "A", atomic: bool = False
    ) -> int:
        """Spawn what `rows` say (one plain task if nothing); the last task id there is."""
        name = session_id(session)
        made = []
        for row in rows or ({},):
            if isinstance(row, dict):
                self._spawned[name] += 1
                row = spawn_row(self._spawned[name], **row)  # noqa: PLW2901 - a row as it was meant
            else:
                self._spawned[name] = row.number
            made.append(row)
        self.say(events.SpawnsAsked(name, made, atomic))
        return self.registry.state.last_task_id

    def answers(self) -> list[SpawnAnswer]:
        """The spawn answers that came last."""
        return [
            row for effect in self.take(effects.AnswerSpawns) for row in one_by_one(effect.rows)
        ]

    def results(self) -> list[ResultRow]:
        """The results that came last."""
        return [row for effect in self.take(effects.SendResults) for row in one_by_one(effect.rows)]

    def stop(self, session: str = "A", **wishes: Any) -> StopId:
        """shutdown_tasks of a scope (kind, tenant_id, timeline_id, runtime), with these wishes."""
        name = session_id(session)
        scope = Scope(**{field: wishes.pop(field, None) for field in Scope._fields})
        if "request" not in wishes:
            self._requests[name] += 1
        event = events.StopAsked(
            session=name,
            request=RequestNumber(wishes.pop("request", self._requests[name])),
            scope=scope,
            task_id=None,
            grace=None,
            timeout=None,
            keep_closed=False,
            hold=False,
            reason="",
            last_spawn=self._spawned[name],
            caller=None,
        )
        self.say(event._replace(**wishes))
        return self.registry.state.last_stop_id

    def reopen(self, session: str = "A", **scope: str) -> None:
        """Reopen a scope."""
        self._reopened += 1
        self.reopen_again(session, **scope)

    def reopen_again(self, session: str = "A", **scope: str) -> None:
        """The last such request comes once more."""
        request = RequestNumber(900 + self._reopened)
        self.say(events.ReopenAsked(session_id(session), request, Scope(**scope)))

    def release(self, stop_id: int, session: str = "A", request: int = 901) -> None:
        """A `stopped()` block is over."""
        self.say(events.ReleaseAsked(session_id(session), RequestNumber(request), StopId(stop_id)))

    def report(self) -> effects.AnswerStop:
        """The one answer to a stop that came last."""
        return self.one(effects.AnswerStop)

    def rows(self) -> dict[int, StoppedRow]:
        """The tasks of that answer's report."""
        return {row.id: row for row in self.report().report.tasks}

    def ends(self) -> list[tuple[int, str, str]]:
        """(task, outcome, evidence) of that answer's report."""
        return [
            (row.id, row.outcome or "", row.evidence or "") for row in self.report().report.tasks
        ]

    # --- pools ------------------------------------------------------------------------------------

    def supervisor(self, runtime: str = "pool", number: int = 1, **changes: Any) -> bytes:
        """A supervisor says hello."""
        name = supervisor_id(runtime, number)
        hello = events.SupervisorHello(
            name,
            runtime,
            pid=500 + number,
            host="here",
            processes=1,
            slots=3,
            incarnation=0,
            run="",
            sent_at=77.0,
            armed=True,
            predecessor=None,
        )
        self.say(hello._replace(**changes))
        return name

    def hello(
        self,
        serial: int,
        runtime: str = "pool",
        *,
        supervisor: bytes | None = None,
        incarnation: int = 0,
        last_assign: int = 0,
        slots: int | None = None,
        begun: Sequence[tuple[int, int]] = (),
        received: Sequence[tuple[int, int]] = (),
    ) -> None:
        """A worker says hello."""
        self.say(
            events.WorkerHello(
                supervisor or supervisor_id(runtime),
                serial,
                runtime,
                pid=1000 + serial,
                host="here",
                slots=slots or {"pool": 3, "solo": 1}[runtime],
                incarnation=incarnation,
                last_assign=last_assign,
                begun=list(begun),
                received=list(received),
            )
        )

    def worker(self, runtime: str = "pool", *, slots: int | None = None) -> Incarnation:
        """A new worker, with its supervisor if that is new too: registered and reached."""
        supervisor = supervisor_id(runtime)
        if supervisor not in self.registry.state.supervisors:
            self.supervisor(runtime)
        self._serial += 1
        self.hello(self._serial, runtime, slots=slots)
        incarnation = self.one(effects.WelcomeWorker).incarnation
        self.places[incarnation] = (supervisor, self._serial)
        self.say(events.WorkerAttached(incarnation))
        return incarnation

    def assigned(self, worker: int | None = None) -> list[AssignRow]:
        """The assignments that came last, to this worker or to any."""
        return [
            row
            for effect in self.take(effects.AssignTasks)
            if worker in (None, effect.worker)
            for row in one_by_one(effect.rows)
        ]

    def begin(self, worker: int, *task_ids: int) -> None:
        """Tasks begin, in the attempt that the worker was given."""
        rows = [(task_id, int(self.task(task_id).attempt), 0.0) for task_id in task_ids]
        self.say(events.TasksBegun(Incarnation(worker), rows))

    def end(self, worker: int, task_id: int, attempt: int = 1, **changes: Any) -> None:
        """A task ends; see `ended_row`."""
        self.say(events.TasksEnded(Incarnation(worker), [ended_row(task_id, attempt, **changes)]))

    def obey(self, worker: int, *task_ids: int) -> None:
        """Tasks that were asked to stop end so."""
        rows = [
            ended_row(
                task_id,
                self.task(task_id).attempt,
                outcome="cancelled",
                delivered_age=0.0,
                observed_age=0.0,
                result=b"",
            )
            for task_id in task_ids
        ]
        self.say(events.TasksEnded(Incarnation(worker), rows))

    def seen(self, worker: int, task_id: int, observed_age: float | None = None) -> None:
        """The worker acknowledges a request to stop, delivered just now."""
        row = (task_id, int(self.task(task_id).attempt), "running", 0.0, observed_age)
        self.say(events.StopsSeen(Incarnation(worker), [row]))

    def associate(
        self, worker: int, task_id: int, tenant_id: str | None, timeline_id: str | None = None
    ) -> None:
        """associate_with."""
        self.say(events.AssociateAsked(Incarnation(worker), 1, task_id, 1, tenant_id, timeline_id))

    def exit(
        self,
        worker: int,
        status: int = -9,
        phases: dict[int, str] | None = None,
        *,
        table_known: bool = True,
    ) -> None:
        """A worker has died; `phases`: what its table says, task -> phase."""
        supervisor, serial = self.places[worker]
        rows = [
            events.Phase(task_id, int(self.task(task_id).attempt), phase)
            for task_id, phase in (phases or {}).items()
        ]
        row = events.ExitRow(serial, 1000 + serial, status, table_known, rows)
        self.say(events.WorkerExited(supervisor, row))

    def running(self, worker: int, *rows: dict[str, Any]) -> list[int]:
        """Spawn tasks of these rows, of which this worker gets all, and let them begin."""
        first = self.registry.state.last_task_id + 1
        last = self.spawn(*rows)
        ids = list(range(first, last + 1))
        assert sorted(row.task_id for row in self.assigned(worker)) == ids
        self.begin(worker, *ids)
        return ids


def fact_types(desk: Desk) -> list[str]:
    """The names of the facts that were decided last."""
    return [type(fact).__name__ for fact in desk.facts]
