"""What follows from steps of the broker and of connections. `moves` has the rest of the steps."""

from typing import Any, Final

from quiesce.protocol import from_client, to_client
from quiesce.testing.explorer import rules
from quiesce.testing.explorer.brokers import BrokerMachine, Sending
from quiesce.testing.explorer.clients import Client, Clients
from quiesce.testing.explorer.processes import CONTROL, DATA, Processes
from quiesce.testing.explorer.rules import RUNS, BrokenRule
from quiesce.testing.explorer.scenario import Scenario, Stop, scope_of
from quiesce.testing.explorer.store import Store
from quiesce.testing.explorer.world import CLIENT, CUT, EMPTY, LOST, NEW, POOL, UP, Draft, Link

CHANNELS: Final = (CONTROL, DATA)
#: What kind of message, where that makes a difference.
_REPORT: Final = 1
_ANSWERS: Final = 2
_ENDED: Final = 3
_TAKEN: Final = 4


class Cluster:
    """The machines, and the part of the steps that is told here."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.store = Store()
        self.broker = BrokerMachine(scenario, self.store)
        self.processes = Processes(scenario, self.store)
        self.clients = Clients(scenario, self.store)
        self._tags: dict[int, int] = {}

    def _tell(self, draft: Draft, place: int, what: str, *args: Any) -> None:
        raise NotImplementedError

    def _client_did(self, draft: Draft, place: int, result: Any) -> None:
        raise NotImplementedError

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
            for channel, link in enumerate((actor.control, actor.data)):
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
                text = (
                    f"{row.id}.{row.attempt} is reported as {row.outcome} {row.evidence}, and runs"
                )
                raise BrokenRule("when a stop returns, it is true", text)
            if not row.evidence:
                raise BrokenRule("each row of a report has evidence", str(row))
        for attempt in truth.begun:
            if attempt.how != RUNS or attempt.key == client.inside:
                continue
            if attempt.spawn in asked.before:
                text = f"{attempt.task_id}.{attempt.attempt} runs in [{scope_of(stop)}]"
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
            if (
                is_client
                and link.status == UP
                and not link.ins
                and draft.core
                and self._tag(message) == _TAKEN
                and self._is_eager(draft)
            ):
                route = bytes((place, channel))
                outcome = self.broker.hear(draft.core, draft.clock, route, message)
                self._broker_did(draft, *outcome)
                continue
            if link.status == UP or not is_client:
                draft.set_link(place, channel, Link(link.status, (*link.ins, message), link.outs))
