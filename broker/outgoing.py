"""Effects into messages: collected over a turn of the loop, so that each peer gets few messages, then sent.

Control goes before data, so that a request to stop is on its way before any payload of the same turn.
"""

import logging
import math
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from quiesce.broker.peers import Channel, Peer, Peers
from quiesce.protocol import PROTOCOL_VERSION, to_client, to_supervisor, to_worker
from quiesce.protocol.runs import PackedRows
from quiesce.protocol.sizes import held, in_parts, weightless
from quiesce.registry import effects
from quiesce.registry.effects import Effect
from quiesce.registry.ids import SessionId, StopId

log: Final = logging.getLogger("quiesce.broker")
#: Rows of one message, so that none grows without bound; and those that have payloads.
ROWS: Final = 1024
HEAVY: Final = frozenset({to_worker.Assign, to_client.Ended})
#: What a peer need not know soon: it keeps something till then. It goes after so many rows or seconds, as one
#: message for many. To the peer that is a slow network.
PATIENT: Final = frozenset({to_worker.EndedTaken, to_worker.GivenBackTaken})
MANY: Final = 64
LATER: Final = 0.005
#: In which order messages of one turn leave, after those on control: what somebody waits for first.
_ORDER: Final = {to_worker.Assign: 1, to_client.SpawnAnswers: 2, to_client.Ended: 3}
#: Rows of a report that are packed in one turn.
PIECE: Final = 2000


class Outgoing:
    """Carries out effects. `again` and `stopped` are what the loop must do itself."""

    def __init__(self, peers: Peers, *, payload_limit: int, patience: float = 0.0) -> None:
        """`patience`: seconds for which what is PATIENT may wait for company."""
        self._peers = peers
        self._payload_limit = payload_limit
        self._patience = patience
        #: What waits for company, by receiver and kind; and when it waits no longer.
        self._later: dict[Any, dict[type, list[Any]]] = {}
        self.later_at = math.inf
        self.epoch = 0
        #: Stops and sessions that want their next slice, in the order of their turns.
        self.again: deque[StopId | SessionId] = deque()
        #: Not None once the system has stopped; True if a failure was the cause.
        self.stopped: bool | None = None
        #: What is done about a stop that still waits.
        self.on_still_waiting: Callable[[effects.StillWaiting], None] = lambda effect: None
        self._rows: dict[tuple[Any, ...], list[Any]] = {}
        #: Long reports, to be packed piece by piece; they leave in this order.
        self._long: deque[tuple[Any, to_client.StopReport]] = deque()

    def carry_out(self, effect: Effect) -> None:
        """Do one effect, or collect it until `flush`."""
        _CARRY[type(effect)](self, effect)

    @property
    def busy(self) -> bool:
        """Whether there is something to be done in the next turn, whatever else comes."""
        return bool(self.again or self._long)

    def flush(self, tick: float) -> None:
        """Send what was collected, but for what may wait still."""
        if self._rows:
            self._flush_rows(tick)
        if tick >= self.later_at:
            self.later_at = math.inf
            for key in list(self._later):
                self._send_later(key)

    def _flush_rows(self, tick: float) -> None:
        rows, self._rows = self._rows, {}
        for (kind, channel, key), batch in sorted(rows.items(), key=_urgency):
            if kind in PATIENT and self._patience:
                self._keep(kind, key, batch, tick)
                continue
            self._send_rows(kind, channel, key, batch)

    def _send_rows(self, kind: type, channel: Channel, key: Any, rows: list[Any]) -> None:
        peer = self._peer(key)
        for part in in_parts(rows, ROWS, held if kind in HEAVY else weightless):
            self._peers.send(peer, channel, self._message(kind, part))

    def _keep(self, kind: type, key: Any, rows: list[Any], tick: float) -> None:
        kept = self._later.setdefault(key, {}).setdefault(kind, [])
        kept += rows
        if len(kept) >= MANY:
            self._send_later(key)
        else:
            self.later_at = min(self.later_at, tick + self._patience)

    def _send_later(self, key: Any) -> None:
        for kind, rows in self._later.pop(key).items():
            self._send_rows(kind, "data", key, rows)

    def flush_all(self) -> None:
        """Send what was collected, long reports too: these are the last words."""
        self.flush(math.inf)
        while self.pack_long():
            pass

    def pack_long(self) -> bool:
        """A piece of the first long report, if there is one: nobody shall wait for all of it."""
        if not self._long:
            return False
        key, report = self._long[0]
        rows = report.tasks
        assert isinstance(rows, PackedRows)  # ours: else it is not long
        if rows.pack(PIECE):
            self._long.popleft()
            self._say(key, "control", report)  # says so, too, if it can't be packed
        return True

    def _flush_control(self, key: Any) -> None:
        """Send what was collected for one peer's control route."""
        for each in [each for each in self._rows if each[1:] == ("control", key)]:
            self._peers.send(
                self._peer(key), "control", self._message(each[0], self._rows.pop(each))
            )

    def _message(self, kind: type, rows: list[Any]) -> Any:
        if kind in _WITH_EPOCH:
            return kind(self.epoch, rows)
        return kind(rows)

    def _peer(self, key: Any) -> Peer | None:
        if isinstance(key, int):
            return self._peers.by_worker.get(key)
        return self._peers.by_key.get(key)

    def _collect(self, kind: type, channel: Channel, key: Any, rows: list[Any]) -> None:
        self._rows.setdefault((kind, channel, key), []).extend(rows)

    def _say(self, key: Any, channel: Channel, message: Any) -> None:
        self._peers.send(self._peer(key), channel, message)

    # --- one method for each effect ---------------------------------------------------------------

    def welcome_session(self, effect: effects.WelcomeSession) -> None:
        self._say(
            ("session", effect.session),
            "control",
            to_client.Welcome(PROTOCOL_VERSION, self.epoch, effect.known, self._payload_limit),
        )

    def want_hello(self, effect: effects.WantHello) -> None:
        for channel in ("control", "data"):
            self._say(
                ("session", effect.session),
                channel,
                to_client.HelloWanted(self.epoch),
            )

    def answer_spawns(self, effect: effects.AnswerSpawns) -> None:
        self._collect(to_client.SpawnAnswers, "data", ("session", effect.session), effect.rows)

    def send_results(self, effect: effects.SendResults) -> None:
        self._collect(to_client.Ended, "data", ("session", effect.session), effect.rows)

    def answer_stop(self, effect: effects.AnswerStop) -> None:
        report = to_client.StopReport(
            effect.request,
            effect.stop_id,
            effect.timed_out,
            effect.requested_at,
            effect.completed_at,
            *effect.report,
        )
        key = ("session", effect.session)
        if len(report.tasks) > PIECE:
            self._long.append((key, report._replace(tasks=PackedRows(report.tasks))))
        else:
            self._say(key, "control", report)

    def answer_done(self, effect: effects.AnswerDone) -> None:
        self._say(("session", effect.session), "control", to_client.Done(effect.request))

    def refuse_request(self, effect: effects.RefuseRequest) -> None:
        self._say(
            ("session", effect.session),
            "control",
            to_client.Refused(effect.request, effect.error, effect.text),
        )

    def welcome_supervisor(self, effect: effects.WelcomeSupervisor) -> None:
        self._say(
            ("supervisor", effect.supervisor),
            "control",
            to_supervisor.Registered(
                PROTOCOL_VERSION, self.epoch, effect.incarnation, effect.sent_at, effect.lease
            ),
        )

    def refuse_supervisor(self, effect: effects.RefuseSupervisor) -> None:
        self._say(
            ("supervisor", effect.supervisor),
            "control",
            to_supervisor.Refused(effect.text, effect.grace),
        )

    def want_supervisor(self, effect: effects.WantSupervisor) -> None:
        self._say(
            ("supervisor", effect.supervisor), "control", to_supervisor.HelloWanted(self.epoch)
        )

    def grant_lease(self, effect: effects.GrantLease) -> None:
        self._say(
            ("supervisor", effect.supervisor),
            "control",
            to_supervisor.Grant(self.epoch, effect.sent_at, effect.lease),
        )

    def welcome_worker(self, effect: effects.WelcomeWorker) -> None:
        key = ("worker", (effect.supervisor, effect.serial))
        peer = self._peers.by_key.get(key)
        if peer is not None:
            self._peers.is_worker(peer, effect.incarnation)
        self._say(
            key,
            "control",
            to_worker.Registered(
                PROTOCOL_VERSION, self.epoch, effect.incarnation, self._payload_limit
            ),
        )

    def refuse_worker(self, effect: effects.RefuseWorker) -> None:
        key = ("worker", (effect.supervisor, effect.serial))
        self._say(key, "control", to_worker.Refused(effect.text))

    def assign_tasks(self, effect: effects.AssignTasks) -> None:
        self._collect(to_worker.Assign, "data", effect.worker, effect.rows)

    def take_ends(self, effect: effects.TakeEnds) -> None:
        self._collect(to_worker.EndedTaken, "data", effect.worker, effect.rows)

    def take_given_back(self, effect: effects.TakeGivenBack) -> None:
        self._collect(to_worker.GivenBackTaken, "data", effect.worker, effect.rows)

    def ask_stops(self, effect: effects.AskStops) -> None:
        rows = [to_worker.StopOrder(*row) for row in effect.rows]
        self._collect(to_worker.Stop, "control", effect.worker, rows)

    def raise_flags(self, effect: effects.RaiseFlags) -> None:
        rows = [to_supervisor.FlagRow(*row) for row in effect.rows]
        self._collect(to_supervisor.Flag, "control", ("supervisor", effect.supervisor), rows)

    def force_task(self, effect: effects.ForceTask) -> None:
        self._say(
            effect.worker,
            "control",
            to_worker.Force(self.epoch, effect.task_id, effect.attempt),
        )

    def kill_worker(self, effect: effects.KillWorker) -> None:
        self._say(
            ("supervisor", effect.supervisor),
            "control",
            to_supervisor.Kill(
                self.epoch, effect.serial, effect.task_id, effect.attempt, effect.spared
            ),
        )

    def answer_associate(self, effect: effects.AnswerAssociate) -> None:
        # A request to stop that follows from it goes first: when associate_with returns, the task knows.
        self._flush_control(effect.worker)
        self._say(
            effect.worker,
            "control",
            to_worker.Associated(effect.request, effect.error, effect.text),
        )

    def take_exit(self, effect: effects.TakeExit) -> None:
        self._say(
            ("supervisor", effect.supervisor), "control", to_supervisor.ExitTaken(effect.serial)
        )

    def exit_worker(self, effect: effects.ExitWorker) -> None:
        self._say(effect.worker, "control", to_worker.Exit(self.epoch))

    def exit_supervisor(self, effect: effects.ExitSupervisor) -> None:
        self._say(
            ("supervisor", effect.supervisor),
            "control",
            to_supervisor.Exit(self.epoch, effect.grace),
        )

    def say(self, effect: effects.Log) -> None:
        level = logging.getLevelNamesMapping()[effect.level]
        log.log(level, "%s", effect.text, extra=about(effect.text))

    def still_waiting(self, effect: effects.StillWaiting) -> None:
        self.on_still_waiting(effect)

    def once_more(self, effect: effects.Again) -> None:
        self.again.append(effect.of)

    def system_stopped(self, effect: effects.SystemStopped) -> None:
        self.stopped = effect.failed


#: How the registry's texts begin that are about one task, one stop or one process: before any name of a user's.
_ABOUT: Final = (
    re.compile(r"task (?P<task_id>\d+)(?:\.(?P<attempt>\d+))?\b"),
    re.compile(r"stop (?P<stop_id>\d+)\b"),
    re.compile(
        r"process (?P<worker_pid>\d+) of runtime .*? task (?P<task_id>\d+)\.(?P<attempt>\d+)\b"
    ),
)


def about(text: str) -> dict[str, int]:
    """Who a text is about, as attributes of its record."""
    found = next(filter(None, (each.match(text) for each in _ABOUT)), None)
    named = {} if found is None else found.groupdict()
    return {f"quiesce_{name}": int(value) for name, value in named.items() if value is not None}


def _urgency(item: tuple[tuple[Any, ...], list[Any]]) -> int:
    kind, channel, _ = item[0]
    return 0 if channel == "control" else _ORDER.get(kind, 4)


_WITH_EPOCH: Final = frozenset({to_worker.Assign, to_worker.Stop, to_supervisor.Flag})

_CARRY: Final[dict[type, Callable[[Outgoing, Any], None]]] = {
    effects.WelcomeSession: Outgoing.welcome_session,
    effects.WantHello: Outgoing.want_hello,
    effects.AnswerSpawns: Outgoing.answer_spawns,
    effects.SendResults: Outgoing.send_results,
    effects.AnswerStop: Outgoing.answer_stop,
    effects.AnswerDone: Outgoing.answer_done,
    effects.RefuseRequest: Outgoing.refuse_request,
    effects.WelcomeSupervisor: Outgoing.welcome_supervisor,
    effects.RefuseSupervisor: Outgoing.refuse_supervisor,
    effects.GrantLease: Outgoing.grant_lease,
    effects.WantSupervisor: Outgoing.want_supervisor,
    effects.WelcomeWorker: Outgoing.welcome_worker,
    effects.RefuseWorker: Outgoing.refuse_worker,
    effects.AssignTasks: Outgoing.assign_tasks,
    effects.TakeEnds: Outgoing.take_ends,
    effects.TakeGivenBack: Outgoing.take_given_back,
    effects.AskStops: Outgoing.ask_stops,
    effects.RaiseFlags: Outgoing.raise_flags,
    effects.ForceTask: Outgoing.force_task,
    effects.KillWorker: Outgoing.kill_worker,
    effects.AnswerAssociate: Outgoing.answer_associate,
    effects.TakeExit: Outgoing.take_exit,
    effects.ExitWorker: Outgoing.exit_worker,
    effects.ExitSupervisor: Outgoing.exit_supervisor,
    effects.Log: Outgoing.say,
    effects.StillWaiting: Outgoing.still_waiting,
    effects.Again: Outgoing.once_more,
    effects.SystemStopped: Outgoing.system_stopped,
}
