"""The judge: it sees what really runs, and holds against that whatever clients are told.

Of the broker it takes only the order in which it decided what it has written down (which spawns came before
which stop), never its word on what runs or has ended.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from quiesce.protocol import to_client
from quiesce.registry import facts
from quiesce.registry.facts import Fact
from quiesce.registry.rows import TIMED_OUT, ResultRow, StoppedRow
from quiesce.registry.scope import Scope
from quiesce.testing.simulator.engine import Engine, Violation
from quiesce.testing.simulator.truths import Call, Closed, Labels, StopTruth, TaskTruth

if TYPE_CHECKING:
    from quiesce.testing.simulator.attempts import Attempt
    from quiesce.testing.simulator.client import Client

#: So many tasks that are over are remembered, for results and reports that come late.
REMEMBERED: Final = 100_000


class Judge:
    """See the module. Every method raises Violation if a promise is broken."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Facts that were written down.
        self.number = 0
        #: Live tasks, and some that are over, oldest first.
        self.tasks: OrderedDict[int, TaskTruth] = OrderedDict()
        #: Tasks that the disk has lost, by number and birth: workers may still have them.
        self.ghosts: dict[tuple[int, float], TaskTruth] = {}
        #: By tenant, all attempts that run; an attempt is under each tenant it ever had.
        self.running: dict[str | None, dict[Attempt, None]] = {}
        #: By number and the moment of its request: numbers begin anew where there is no journal.
        self.stops: dict[tuple[int, float], StopTruth] = {}
        self._open_stops: dict[int, StopTruth] = {}
        #: By scope, the number of the newest stop of it that has been reported as complete.
        self.reported: dict[Scope, int] = {}
        #: By session, its newest complete stop: the last spawn it counts, and its scope.
        self.completed: dict[bytes, tuple[int, Scope]] = {}
        self.closed: dict[int, Closed] = {}
        #: By scope, the number of the last fact by which it was reopened, or a stop of it was complete.
        self.reopened: dict[Scope, int] = {}
        self.quiet: dict[Scope, int] = {}
        #: Calls of reopen that may still be on their way.
        self.reopening: dict[Call, None] = {}
        self.sessions: dict[bytes, Client] = {}
        #: Sessions that the broker may not know any more.
        self.forgotten: set[bytes] = set()
        self.evidence: dict[str, int] = {}
        self.checked = 0
        self.results = 0
        #: The disk has been allowed to lose facts.
        self.lossy = False

    def fail(self, text: str) -> None:
        """A promise is broken."""
        raise Violation(f"at {self._engine.now:.6f} s: {text}")

    # --- what really happens ----------------------------------------------------------------------

    def begins(self, attempt: "Attempt") -> None:
        """Its first instruction is executed."""
        row, labels = attempt.row, attempt.labels
        truth = self.tasks.get(row.task_id)
        if truth is None or (self.lossy and truth.created_at != row.created_at):
            truth = self.ghosts.get((row.task_id, row.created_at))
        if truth is None:
            self.fail(f"task {row.task_id}, which begins, was never registered")
            return
        if self._engine.trace is not None:
            self._engine.note(f"{attempt} begins in {attempt.worker}")
        number = row.attempt
        if truth.over:
            self.fail(f"{attempt} begins in {attempt.worker}; a client has been told of its end")
        if number in truth.begun and not truth.smudged:
            self.fail(f"{attempt} begins twice: in {truth.begun[number]} and {attempt.worker}")
        if truth.running is not None and not truth.smudged:
            self.fail(f"{attempt} begins while {truth.running} runs in {truth.running.worker}")
        for closed in self.closed.values():
            if closed.scope.matches(*labels) and row.task_id not in closed.left:
                self.fail(f"{attempt} begins in [{closed.scope}], which is closed")
        if truth.history is None and not truth.smudged:
            self._look_at_reports(attempt, truth, labels)
        truth.begun[number] = attempt.worker
        truth.running = attempt
        attempt.truth = truth
        self._enter(attempt, labels[1])

    def _look_at_reports(self, attempt: "Attempt", truth: TaskTruth, labels: Labels) -> None:
        kind, tenant, timeline, runtime = labels
        reported, number = self.reported, truth.number
        for scope in (
            (None, tenant, None, None),
            (None, tenant, timeline, None),
            (kind, tenant, None, None),
            (None, tenant, None, runtime),
            (kind, None, None, None),
            (None, None, None, runtime),
            (None, None, None, None),
        ):
            if reported.get(scope, -1) > number:  # type: ignore[call-overload]  # a Scope is such a tuple
                self.fail(
                    f"{attempt} begins; a stop of {scope} that came after its spawn is complete"
                )

    def _enter(self, attempt: "Attempt", tenant: str | None) -> None:
        here = self.running.get(tenant)
        if here is None:
            here = self.running[tenant] = {}
        here[attempt] = None

    def is_put_off(self, attempt: "Attempt") -> None:
        """It was loaded, and nothing of it has begun after all."""
        truth = attempt.truth
        if truth is not None:
            truth.begun.pop(attempt.row.attempt, None)
            self._leave(attempt, truth)

    def ends(self, attempt: "Attempt", outcome: str) -> None:
        """It ends, with all that it began."""
        truth = attempt.truth
        if truth is not None:
            if self._engine.trace is not None:
                self._engine.note(f"{attempt} ends in {attempt.worker}: {outcome}")
            truth.ended[attempt.row.attempt] = outcome
            self._leave(attempt, truth)

    def process_dies(self, attempts: Iterable["Attempt"]) -> None:
        """These run no more."""
        for attempt in attempts:
            if attempt.truth is not None:
                self._leave(attempt, attempt.truth)

    def _leave(self, attempt: "Attempt", truth: TaskTruth) -> None:
        if truth.running is attempt:
            truth.running = None
        self.running[attempt.labels[1]].pop(attempt, None)
        if truth.history is not None:
            for _, labels in truth.history:
                self.running.get(labels[1], {}).pop(attempt, None)
        attempt.truth = None

    # --- what is written down ---------------------------------------------------------------------

    def committed(self, row: list[Fact]) -> None:
        """The broker's decisions, in their order, once they are there for good."""
        number = self.number
        trace = self._engine.trace
        for fact in row:
            number += 1
            if trace is not None:
                self._engine.note(f"fact {number} {fact!r:.300}")
            handler = _FACTS.get(type(fact))
            if handler is not None:
                self.number = number
                handler(self, fact)
        self.number = number

    def _registered(self, fact: facts.TaskRegistered) -> None:
        row = fact.row
        labels = (row.kind, row.tenant_id, row.timeline_id, row.runtime)
        last, scope = self.completed.get(fact.session, (0, None))
        if fact.number <= last and scope is not None and scope.matches(*labels):
            self.fail(f"spawn {fact.number} becomes task {fact.task_id} after a stop of [{scope}]")
        self.tasks[fact.task_id] = TaskTruth(fact.task_id, labels, self.number, fact.at)
        if len(self.tasks) > REMEMBERED:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        for _ in range(len(self.tasks) - REMEMBERED):
            task_id, truth = next(iter(self.tasks.items()))
            if not truth.over:
                self.tasks.move_to_end(task_id)
            else:
                del self.tasks[task_id]

    def _associated(self, fact: facts.TaskAssociated) -> None:
        truth = self.tasks.get(fact.task_id)
        if truth is None:
            return
        kind, _, _, runtime = truth.labels
        labels = (kind, fact.tenant_id, fact.timeline_id, runtime)
        if truth.history is None:
            truth.history = [(truth.number, truth.labels)]
        truth.history.append((self.number, labels))
        if truth.running is not None:
            self._enter(truth.running, fact.tenant_id)

    def _requeued(self, fact: facts.TaskRequeued) -> None:
        """A new attempt only once the last is proved over; the same one only if it never began."""
        truth = self.tasks.get(fact.task_id)
        if truth is None or truth.smudged:
            return
        if truth.running is not None and truth.running.row.attempt < fact.attempt:
            self.fail(f"{truth.running} runs in {truth.running.worker}, and is tried again: {fact}")
        if fact.attempt in truth.begun:
            self.fail(f"task {fact.task_id}.{fact.attempt} has begun, and is queued: {fact}")
        if truth.history is not None and fact.attempt > 1:
            truth.history.append((self.number, truth.labels))

    def _ended(self, fact: facts.TaskEnded) -> None:
        truth = self.tasks.get(fact.task_id)
        if truth is not None and truth.running is not None and not truth.smudged:
            self.fail(f"{truth.running} runs in {truth.running.worker}, and has ended: {fact}")

    def _many(self, fact: Fact) -> None:
        for each in facts.singly([fact]):
            handler = _FACTS.get(type(each))
            if handler is not None:
                handler(self, each)

    def _opened(self, fact: facts.StopOpened) -> None:
        stop = StopTruth(fact, self.number)
        self.stops[(fact.stop_id, fact.at)] = self._open_stops[fact.stop_id] = stop
        if fact.caller is not None:
            truth = self.tasks.get(fact.caller)
            if truth is not None and truth.history is None:
                truth.history = [(truth.number, truth.labels)]  # no stop of its own ends it

    def _stop_ended(self, fact: facts.StopEnded) -> None:
        stop = self._open_stops.pop(fact.stop_id, None)
        if stop is None:
            return
        stop.ended = self.number
        if not fact.timed_out and stop.task_id is None:
            self.completed[stop.session] = (stop.last_spawn, stop.scope)
            self.quiet[stop.scope] = self.number
            self._open(stop.scope, kept=False)
        client = self.sessions.get(stop.session)
        if client is None or not client.alive:
            self.stops.pop((fact.stop_id, stop.at), None)

    def _reopened(self, fact: facts.ScopesReopened) -> None:
        if not fact.timed_out_only:
            self.reopened[fact.scope] = self.number

    def _session_closed(self, fact: facts.SessionClosed) -> None:
        self.forgotten.add(fact.session)
        self.completed.pop(fact.session, None)

    def lost(self, rows: list[list[Fact]]) -> None:
        """These were committed, and the disk has lost them as it may: of all they speak of little is promised."""
        for row in rows:
            for fact in facts.singly(row):
                self.lossy = True
                task_id = getattr(fact, "task_id", None)
                if type(fact) is facts.TaskRegistered:
                    truth = self.tasks.pop(fact.task_id, None)
                    if truth is not None:
                        self._is_lost(truth)
                elif task_id is not None and task_id in self.tasks:
                    self.tasks[task_id].smudged = True
                    if type(fact) is facts.TaskEnded:
                        # A result tells what may get lost; the report of a stop has waited for the disk.
                        self.tasks[task_id].over = self.tasks[task_id].reported
                elif isinstance(fact, facts.ResultsForgotten):
                    for each in fact.task_ids:
                        if each in self.tasks:
                            self.tasks[each].smudged = True

    def _is_lost(self, truth: TaskTruth) -> None:
        truth.smudged = True
        self.ghosts[(truth.id, truth.created_at)] = truth

    def lost_all(self) -> None:
        """There is no journal: numbers begin anew."""
        self.lossy = True
        for truth in self.tasks.values():
            self._is_lost(truth)
        self.tasks.clear()
        self._open_stops.clear()
        self.closed.clear()
        self.completed.clear()

    def may_forget(self, session: bytes) -> None:
        """A client is told that its session is unknown."""
        if session not in self.forgotten and not self.lossy:
            self.fail(f"session {session.hex()} was never closed, and is forgotten")

    # --- what clients do and are told -------------------------------------------------------------

    def stop_is_called(self, call: Call) -> None:
        """A client waits for it from now on."""
        call.number = self.number

    def reopens(self, call: Call) -> None:
        """A client asks for it: from now on the scope may be open, until the answer at any time."""
        self.reopening[call] = None
        self._open(call.scope, kept=True)

    def has_reopened(self, call: Call) -> None:
        """It is answered, or nothing of it is on its way any more."""
        self.reopening.pop(call, None)

    def _open(self, scope: Scope, *, kept: bool) -> None:
        if self.closed:
            for stop_id, closed in list(self.closed.items()):
                if scope.covers(closed.scope) and (kept or not closed.kept):
                    del self.closed[stop_id]

    def releases(self, stop_id: int) -> None:
        """A block is over."""
        self.closed.pop(stop_id, None)

    def report(self, client: "Client", call: Call, report: to_client.StopReport) -> None:
        """shutdown_tasks returns: is it true?"""
        stop = self.stops.pop((report.stop_id, report.requested_at), None)
        if stop is None:
            self.fail(f"{client} gets a report of a stop that was never written down: {report}")
            return
        for row in report.tasks:
            self._row(row, report)
        for row in report.collateral:
            self._collateral(row)
        if report.timed_out:
            self._engine.counts["stops timed out"] += 1
            left = frozenset([row.id for row in report.remaining])
        else:
            if report.remaining:
                self.fail(f"{client}: {report} is complete, and something remains")
            left = frozenset()
            self._nothing_runs(client, call, stop)
            if call.task_id is None:
                self._is_complete(call, stop)
        if call.task_id is None and (report.timed_out or call.hold or call.keep):
            self._is_closed(call, report, stop, left)
        self.checked += 1

    def _is_complete(self, call: Call, stop: StopTruth) -> None:
        scope = call.scope
        if self.reported.get(scope, -1) < stop.number:
            self.reported[scope] = stop.number

    def _is_closed(
        self, call: Call, report: to_client.StopReport, stop: StopTruth, left: frozenset[int]
    ) -> None:
        """From now on nothing begins in the scope, unless others have opened it meanwhile."""
        scope, kept = call.scope, call.keep or not report.timed_out
        opened = [self.reopened] if kept else [self.reopened, self.quiet]
        if any(
            number > stop.ended and each.covers(scope)
            for numbers in opened
            for each, number in numbers.items()
        ) or any(each.scope.covers(scope) for each in self.reopening):
            return
        self.closed[report.stop_id] = Closed(scope, left, kept=kept)

    def _nothing_runs(self, client: "Client", call: Call, stop: StopTruth) -> None:
        scope, number = call.scope, stop.number
        if call.task_id is not None:
            truth = self.tasks.get(call.task_id)
            if truth is not None and truth.number < number:
                if truth.running is not None and stop.caller != truth.id:
                    self.fail(f"{truth.running} runs, and a stop of it is complete")
                if stop.caller != truth.id:
                    truth.over = truth.reported = True
            return
        if scope.tenant_id is not None:
            running: Iterable[Attempt] = self.running.get(scope.tenant_id, ())
        else:
            running = [each for here in self.running.values() for each in here]
        for attempt in running:
            truth = attempt.truth
            if truth is None or truth.id == stop.caller or truth.number > number:
                continue
            if truth.was_in(scope, number, stop.ended):
                self.fail(
                    f"{attempt} of {truth.history or truth.labels} runs in {attempt.worker}, and {client} is told "
                    f"that [{scope}] is quiet"
                )

    def _row(self, row: StoppedRow, report: to_client.StopReport) -> None:
        times = [each for each in row[10:14] if each is not None]
        if times != sorted(times):
            self.fail(f"the times of {row} are in no order")
        evidence = row.evidence or ""
        self.evidence[evidence] = self.evidence.get(evidence, 0) + 1
        self._judge_end(row.id, row.attempt, row.outcome, evidence, row.exit_status, "", report)
        truth = self.tasks.get(row.id)
        if truth is not None:
            truth.reported = truth.over

    def _collateral(self, row: StoppedRow) -> None:
        """That attempt is over; another may follow."""
        truth = self.tasks.get(row.id)
        worker = None if truth is None or truth.smudged else truth.begun.get(row.attempt)
        if worker is not None and worker.alive:
            self.fail(f"{worker} is alive, but: {row}")

    def result(self, row: ResultRow) -> None:
        """A client learns how a task of it ended."""
        self.results += 1
        self._judge_end(
            row.task_id, row.attempt, row.outcome, row.evidence, row.exit_status, row.text, row
        )

    def _judge_end(
        self,
        task_id: int,
        attempt: int,
        outcome: str | None,
        evidence: str,
        status: int | None,
        text: str,
        said: Any,
    ) -> None:
        truth = self.tasks.get(task_id)
        if truth is None or truth.smudged:
            return
        if truth.running is not None:
            self.fail(f"{truth.running} runs in {truth.running.worker}, but: {said}")
        truth.over = True
        worker = truth.begun.get(attempt)
        if evidence == "NEVER_RAN":
            if worker is not None:
                self.fail(f"it began in {worker}, but: {said}")
        elif evidence == "RETURNED":
            real = truth.ended.get(attempt)
            if real != outcome and not (
                real is not None
                and outcome == "failed"
                and (not text or text.startswith(TIMED_OUT))
            ):
                self.fail(f"it really ended as {real}, but: {said}")
        elif evidence in ("REAPED", "FENCED"):
            if worker is not None and worker.alive:
                self.fail(f"{worker}, in which it began, is alive, but: {said}")
            if worker is not None and status not in (None, worker.status, -9, 0):
                self.fail(f"{worker} ended with {worker.status}, but: {said}")
        else:
            self.fail(f"there is no such evidence: {said}")


_FACTS: Final[dict[type, Any]] = {
    facts.TaskRegistered: Judge._registered,
    facts.TasksRegistered: Judge._many,
    facts.TaskAssociated: Judge._associated,
    facts.TaskRequeued: Judge._requeued,
    facts.TaskEnded: Judge._ended,
    facts.TasksCompleted: Judge._many,
    facts.TasksNeverRan: Judge._many,
    facts.StopOpened: Judge._opened,
    facts.StopEnded: Judge._stop_ended,
    facts.ScopesReopened: Judge._reopened,
    facts.SessionClosed: Judge._session_closed,
}
