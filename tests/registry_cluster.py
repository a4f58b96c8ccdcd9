"""A small cluster around a registry: messages wait, get lost and come late, and somebody knows the truth.

The model knows what really happens: which attempts run in which living process. Whatever the registry says
of an end must be true of it: an attempt with evidence of its end does not run, and never will. When a stop
is reported, nothing in its scope runs but its caller.
"""

from collections import deque
from typing import Any

from quiesce.registry import effects, events, facts
from quiesce.registry.effects import Effect
from quiesce.registry.ids import Attempt, AttemptKey, Incarnation, TaskId
from quiesce.registry.limits import KindLimits, RuntimeLimits
from quiesce.registry.machine import Registry
from quiesce.registry.rows import TIMED_OUT, AssignRow, EndedRow, SpawnRow, one_by_one
from registry_helpers import Desk, ended_row, session_id, supervisor_id

#: Seconds of a lease here.
L = 20.0

Labels = tuple[str, str | None, str | None, str]


class Truth:
    """What really is, as no peer of the registry sees it."""

    def __init__(self) -> None:
        #: Every attempt that ever began, and the process in which it did.
        self.begun: dict[AttemptKey, Process] = {}
        #: How attempts that ended by themselves did.
        self.ended: dict[AttemptKey, str] = {}
        #: Attempts of whose end the registry has been sure.
        self.over: set[AttemptKey] = set()
        #: The attempt that each task is at, if not the first.
        self.attempt: dict[int, int] = {}
        #: The labels of tasks, as far as the registry has confirmed them.
        self.labels: dict[int, Labels] = {}
        #: Those of the spawn, which each new attempt begins with.
        self.spawned: dict[int, Labels] = {}

    def runs(self, key: AttemptKey) -> bool:
        """Whether instructions of this attempt may be executed."""
        process = self.begun.get(key)
        return process is not None and process.alive and key in process.running


class Process:
    """A worker process: what it has received, runs and holds, and the messages on both its connections."""

    def __init__(self, truth: Truth, runtime: str, supervisor: bytes, serial: int) -> None:
        self.truth = truth
        self.runtime = runtime
        self.supervisor = supervisor
        self.serial = serial
        self.alive = True
        self.incarnation = 0
        self.registered = False
        self.last_assign = 0
        self.received: dict[AttemptKey, AssignRow] = {}
        self.running: set[AttemptKey] = set()
        self.held: dict[AttemptKey, EndedRow] = {}
        self.tombstones: dict[AttemptKey, int] = {}
        #: Messages to it, and from it: on the control connection and on the data connection.
        self.to: dict[str, deque[Effect]] = {"control": deque(), "data": deque()}
        self.says: dict[str, deque[events.Event]] = {"control": deque(), "data": deque()}
        #: The broker knows the connection: by a hello on it.
        self.found = {"control": False, "data": False}
        self.hello()

    def hello(self) -> None:
        self.registered = False
        self.says["control"].append(
            events.WorkerHello(
                self.supervisor,
                self.serial,
                self.runtime,
                1000 + self.serial,
                "here",
                2,
                self.incarnation,
                self.last_assign,
                [*sorted(self.running), *self.held],
                list(self.received),
            )
        )

    def reconnect(self) -> None:
        """Both connections break; what is on its way is lost, and what is sent before it is found again."""
        self.found = {"control": False, "data": False}
        for queues in (self.to, self.says):
            for queue in queues.values():
                queue.clear()
        self.hello()

    def say_begun(self, keys: list[AttemptKey]) -> None:
        rows: list[tuple[int, int, float]] = [(task, attempt, 0.0) for task, attempt in keys]
        self.says["data"].append(events.TasksBegun(Incarnation(self.incarnation), rows))

    def say_ended(self) -> None:
        if self.held and self.registered:
            rows = list(self.held.values())
            self.says["data"].append(events.TasksEnded(Incarnation(self.incarnation), rows))

    def take(self, channel: str) -> None:
        """One message that has arrived."""
        message = self.to[channel].popleft()
        match message:
            case effects.WelcomeWorker():
                self.incarnation = message.incarnation
                self.registered = True
                self.says["data"].append(events.WorkerAttached(message.incarnation))
                if self.running:
                    self.say_begun(sorted(self.running))
                self.say_ended()
            case effects.AssignTasks():
                for row in one_by_one(message.rows):
                    self._assigned(row)
                self.say_ended()
            case effects.TakeEnds():
                for task, attempt in message.rows:
                    self.held.pop((TaskId(task), Attempt(attempt)), None)
            case effects.AskStops():
                for task, attempt, last_assign, _ in message.rows:
                    self._asked((TaskId(task), Attempt(attempt)), last_assign)
                self.say_ended()

    def _assigned(self, row: AssignRow) -> None:
        key = (row.task_id, row.attempt)
        if row.assign_number <= self.last_assign:
            return
        self.last_assign = row.assign_number
        if key in self.tombstones:
            self._bury(key)
        elif key not in self.running and key not in self.held:
            self.received[key] = row
        self.tombstones = {
            each: number for each, number in self.tombstones.items() if number > self.last_assign
        }

    def _asked(self, key: AttemptKey, last_assign: int) -> None:
        if key not in self.running and key not in self.held:
            if self.received.pop(key, None) is None and last_assign > self.last_assign:
                self.tombstones[key] = last_assign
            else:
                self._bury(key)
        seen = (*key, "running", 0.0, None)
        self.says["control"].append(events.StopsSeen(Incarnation(self.incarnation), [seen]))

    def _bury(self, key: AttemptKey) -> None:
        self.held[key] = ended_row(*key, outcome="cancelled", evidence="NEVER_RAN", begun_age=None)

    def begin(self, key: AttemptKey) -> None:
        assert key not in self.truth.over, f"{key} begins after the registry was sure of its end"
        assert key not in self.truth.begun, f"{key} begins twice"
        del self.received[key]
        self.running.add(key)
        self.truth.begun[key] = self
        if self.registered:
            self.says["data"].append(
                events.TasksBegun(Incarnation(self.incarnation), [(*key, 0.0)])
            )

    def end(self, key: AttemptKey, outcome: str) -> None:
        self.running.remove(key)
        self.held[key] = ended_row(*key, outcome=outcome)
        self.truth.ended[key] = outcome
        self.say_ended()

    def die(self, *, table_known: bool) -> events.WorkerExited:
        """What its supervisor reports. What it had sent may still arrive."""
        self.alive = False
        self.found = {"control": False, "data": False}
        for queue in self.to.values():
            queue.clear()
        rows = [events.Phase(task, attempt, "begun") for task, attempt in sorted(self.running)]
        rows += [
            events.Phase(task, attempt, row.outcome)
            for (task, attempt), row in sorted(self.held.items())
            if row.evidence == "RETURNED"
        ]
        row = events.ExitRow(
            self.serial, 1000 + self.serial, -9, table_known, rows if table_known else []
        )
        return events.WorkerExited(self.supervisor, row)


class Cluster:
    """The registry among its peers."""

    def __init__(self) -> None:
        self.desk = Desk(
            runtimes=[
                RuntimeLimits(name="pool", slots=2, kill_neighbours=True, max_queue=30),
                RuntimeLimits(name="solo", slots=2, max_queue=30),
            ],
            kinds=[
                KindLimits(name="gc", stop_grace=1.0, max_running=2),
                KindLimits(name="flush", stop_grace=2.0, max_running_per_tenant=1),
            ],
            lease=L,
            shutdown_order=("flush",),
            session_timeout=1e9,
            history=5,
            alike=2,
        )
        self.truth = Truth()
        self.processes: list[Process] = []
        self.serials = 0
        self.supervisors = {"pool": supervisor_id("pool"), "solo": supervisor_id("solo")}
        self.generation = 1
        #: Spawns on their way, by session, in order; and the last number used.
        self.spawns: dict[str, deque[events.SpawnsAsked]] = {}
        self.sent: dict[str, int] = {}
        self.rows: dict[tuple[str, int], SpawnRow] = {}
        self.requests = 0
        #: The stops that were asked for and not answered, by session and request; and whom each may leave running.
        self.asked: dict[tuple[bytes, int], tuple[events.StopAsked, int | None]] = {}
        #: Spawns that have arrived and were not answered, by session.
        self.unanswered: dict[bytes, list[events.SpawnsAsked]] = {}
        self.blocks: list[tuple[str, int]] = []
        #: Deaths that the supervisors have not reported.
        self.pending_exits: list[events.WorkerExited] = []
        #: Deaths that they have reported and the broker has not taken.
        self.untaken: dict[tuple[bytes, int], events.WorkerExited] = {}
        #: What the journal holds; and the turns that it does not hold yet, with the effects that wait for it.
        self.durable = Registry(**self.desk.configuration)
        self.uncommitted: list[tuple[list[facts.Fact], list[Effect]]] = []
        #: The journal commits each turn at once.
        self.prompt = True
        #: Which incarnation each supervisor was given, and the predecessor that each speaks of.
        self.welcomed: dict[bytes, int] = {}
        self.before: dict[bytes, events.Predecessor] = {}
        #: When each supervisor last renewed its lease; those that can't any more.
        self.renewed: dict[bytes, float] = {}
        self.cut: set[bytes] = set()
        for runtime in self.supervisors:
            self.supervise(runtime)

    def supervise(self, runtime: str, before: events.Predecessor | None = None) -> None:
        """The supervisor of this runtime says hello."""
        name = self.supervisors[runtime]
        if before is not None:
            self.before[name] = before
        if name not in self.cut:
            self.renewed[name] = self.desk.tick
            self.say(
                events.SupervisorHello(
                    name,
                    runtime,
                    pid=1,
                    host="here",
                    processes=2,
                    slots=2,
                    incarnation=self.welcomed.get(name, 0),
                    run="run",
                    sent_at=1.0,
                    armed=True,
                    predecessor=self.before.get(name),
                )
            )

    def succeed(self, runtime: str, before: events.Predecessor | None = None) -> None:
        """Another supervisor takes over."""
        self.generation += 1
        self.supervisors[runtime] = supervisor_id(runtime, self.generation)
        self.supervise(runtime, before)

    # --- the registry -----------------------------------------------------------------------------

    def say(self, event: events.Event) -> None:
        if isinstance(event, events.WorkerAttached):
            for process in self.processes:
                if process.incarnation == event.worker and process.alive:
                    process.found["data"] = True
        if isinstance(event, events.SpawnsAsked):
            self.unanswered.setdefault(event.session, []).append(event)
        self.desk.say(event)
        self.follow()

    def follow(self) -> None:
        """What need not wait for the journal is carried out at once."""
        patient = []
        for effect in self.desk.effects:
            if type(effect) in effects.HASTY:
                self.carry_out(effect)
            else:
                patient.append(effect)
        self.uncommitted.append((self.desk.facts, patient))
        if self.prompt:
            self.commit()

    def commit(self) -> None:
        """The journal has it: judge what was decided, carry out what was asked."""
        while self.uncommitted:
            decided, patient = self.uncommitted.pop(0)
            for fact in decided:
                self.durable.apply(fact)
            for fact in facts.singly(decided):
                self.judge(fact)
            for effect in patient:
                self.carry_out(effect)

    def restart(self) -> None:
        """The broker dies with what the journal has not got; the next one recovers, and all say hello again."""
        self.uncommitted.clear()
        self.desk.replayed = Registry.thaw(
            self.durable.freeze(volatile=False), **self.desk.configuration
        )
        for process in self.processes:
            if process.alive:
                process.reconnect()
            else:
                for queue in process.says.values():
                    queue.clear()
        self.desk.restart(run="run")
        self.follow()
        for runtime in self.supervisors:
            self.supervise(runtime)
        for exited in list(self.untaken.values()):
            self.say(exited)
        for name in ("A", "B"):
            session = session_id(name)
            self.say(events.SessionHello(session, 1, "here", 0, resumed=True))
            lost, self.unanswered[session] = self.unanswered.get(session, []), []
            self.spawns[name] = deque([*lost, *self.spawns[name]])
        for event, _ in list(self.asked.values()):
            self.say(event)

    def pass_time(self, seconds: float) -> None:
        """Supervisors renew their leases; the kernel ends those that can't."""
        for runtime, name in self.supervisors.items():
            if name in self.cut:
                if self.renewed[name] + L <= self.desk.tick + seconds:
                    self.fence(runtime, name)
            else:
                self.renewed[name] = self.desk.tick
                self.say(events.LeaseRenewed(name, 1.0, True))
        self.desk.wait(seconds)
        self.follow()

    def fence(self, runtime: str, name: bytes) -> None:
        for process in self.processes:
            if process.supervisor == name and process.alive:
                process.die(table_known=False)
        self.forget_exits(name)
        self.succeed(runtime)

    def forget_exits(self, name: bytes) -> list[events.WorkerExited]:
        """This supervisor is dead: the deaths of which the broker may not have heard from it."""
        told = [event for event in self.pending_exits if event.supervisor == name]
        self.pending_exits = [event for event in self.pending_exits if event.supervisor != name]
        untaken = [event for (of, _), event in self.untaken.items() if of == name]
        self.untaken = {key: event for key, event in self.untaken.items() if key[0] != name}
        return [*told, *untaken]

    def judge(self, fact: facts.Fact) -> None:
        match fact:
            case facts.TaskRegistered():
                row = fact.row
                labels = (row.kind, row.tenant_id, row.timeline_id, row.runtime)
                self.truth.labels[fact.task_id] = self.truth.spawned[fact.task_id] = labels
            case facts.TaskAssociated():
                kind, _, _, runtime = self.truth.labels[fact.task_id]
                self.truth.labels[fact.task_id] = (kind, fact.tenant_id, fact.timeline_id, runtime)
            case facts.TaskRequeued():
                self.requeued(fact)
            case facts.TaskEnded():
                self.ended(fact)

    def requeued(self, fact: facts.TaskRequeued) -> None:
        for attempt in range(1, fact.attempt):
            key: Any = (fact.task_id, attempt)
            assert not self.truth.runs(key), f"{key} runs, and another attempt is queued"
            self.truth.over.add(key)
        if fact.attempt > 1:
            self.truth.labels[fact.task_id] = self.truth.spawned[fact.task_id]
        self.truth.attempt[fact.task_id] = fact.attempt
        key = (fact.task_id, fact.attempt)
        assert key not in self.truth.begun, f"{key} is queued, but it has begun"

    def ended(self, fact: facts.TaskEnded) -> None:
        last: Any = max(
            [key for key in self.truth.begun if key[0] == fact.task_id], default=(fact.task_id, 1)
        )
        assert not self.truth.runs(last), f"{last} runs, and the registry says {fact}"
        if fact.evidence == "NEVER_RAN":
            attempt: Any = self.truth.attempt.get(fact.task_id, 1)
            assert (fact.task_id, attempt) not in self.truth.begun, f"it ran: {fact}"
        elif fact.evidence == "RETURNED":
            outcome = self.truth.ended[last]
            late = fact.text.startswith(TIMED_OUT)  # it took longer than it may, and has failed so
            assert fact.outcome == ("failed" if late else outcome), f"it did not end so: {fact}"
        for attempt in range(1, 10):
            self.truth.over.add((fact.task_id, attempt))  # type: ignore[arg-type]  # plain ints

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case effects.WelcomeWorker():
                for process in self.processes:
                    if (process.supervisor, process.serial) == effect[:2] and process.alive:
                        process.found["control"] = True
                        process.to["control"].append(effect)
            case effects.WelcomeSupervisor():
                self.welcomed[effect.supervisor] = effect.incarnation
            case effects.TakeExit():
                self.untaken.pop((effect.supervisor, effect.serial), None)
            case effects.AssignTasks() | effects.TakeEnds() | effects.AskStops():
                channel = "control" if isinstance(effect, effects.AskStops) else "data"
                for process in self.processes:
                    if process.incarnation == effect.worker and process.found[channel]:
                        process.to[channel].append(effect)
            case effects.KillWorker():
                self.kill_if_begun(effect)
            case effects.AnswerSpawns():
                answered = {row.number for row in one_by_one(effect.rows)}
                self.unanswered[effect.session] = [
                    event
                    for event in self.unanswered.get(effect.session, [])
                    if not {row.number for row in one_by_one(event.rows)} <= answered
                ]
            case effects.AnswerStop():
                self.reported(effect)

    def kill_if_begun(self, effect: effects.KillWorker) -> None:
        for process in self.processes:
            here = (process.supervisor, process.serial) == effect[:2]
            wanted = (effect.task_id, effect.attempt) in process.running
            begun = [key for key in effect.spared if key in process.running]
            if here and process.alive and wanted and not begun:
                event = process.die(table_known=True)
                self.pending_exits.append(event)

    def reported(self, answer: effects.AnswerStop) -> None:
        """The caller may remove its files now: nothing of its scope runs, nor ever did what it names."""
        event, caller = self.asked.pop((answer.session, answer.request), (None, None))
        if event is None or answer.timed_out:
            return  # answered before
        if event.hold:
            name = answer.session.decode()[:1]
            self.blocks.append((name, answer.stop_id))
        scope, task_id = event.scope, event.task_id
        for process in self.processes:
            for key in process.running if process.alive else ():
                inside = key[0] == task_id if task_id else scope.matches(*self.truth.labels[key[0]])
                assert not inside or key[0] == caller, (
                    f"{key} runs, and {scope} is said to be quiet"
                )
        for row in answer.report.tasks:
            assert (row.id, row.attempt) in self.truth.over
        assert answer.report.remaining == []
