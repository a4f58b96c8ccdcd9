"""Messages into events: who says it, whether they may, and what the registry is told.

A message from a route that has not said hello is answered with HelloWanted. Queries, which decide
nothing, go to `queries`. Nothing a peer sends can stop the broker: what is malformed, or says what can't be
(see `sense`), is counted and dropped; and so is a message whose handler fails, as long as it has decided nothing.
"""

from collections.abc import Callable
from typing import Any, Final

from quiesce.broker import sense
from quiesce.broker.admission import Admission
from quiesce.broker.journal import JournalFailedError
from quiesce.broker.peers import Channel, Peer, Peers
from quiesce.broker.queries import Queries
from quiesce.errors import ProtocolError
from quiesce.protocol import (
    PROTOCOL_VERSION,
    from_client,
    from_supervisor,
    from_worker,
    to_client,
    to_supervisor,
    to_worker,
)
from quiesce.protocol.codec import Decoder, peek_version
from quiesce.protocol.sizes import CONTROL_LIMIT, NOTE_LIMIT, TEXT_LIMIT, cut, data_limit
from quiesce.registry import events
from quiesce.registry.ids import Incarnation, RequestNumber, SessionId, StopId, TaskId
from quiesce.registry.limits import LABEL_LIMIT
from quiesce.registry.machine import HalfDoneError
from quiesce.registry.rows import AlikeEnds, EndedRow, spawns_with
from quiesce.registry.scope import Scope

Speaks: Final = frozenset({PROTOCOL_VERSION, PROTOCOL_VERSION - 1})

Handle = Callable[[events.Event], None]

_WANTED: Final[dict[str, type]] = {
    from_client.__name__: to_client.HelloWanted,
    from_worker.__name__: to_worker.HelloWanted,
    from_supervisor.__name__: to_supervisor.HelloWanted,
}


class Incoming:
    """Takes frames, gives events to `handle`."""

    def __init__(
        self,
        peers: Peers,
        queries: Queries,
        admission: Admission,
        handle: Handle,
        *,
        payload_limit: int,
    ) -> None:
        self._peers = peers
        self._queries = queries
        self._admission = admission
        self._handle = handle
        self._payload_limit = payload_limit
        everything = (*from_client.MESSAGES, *from_worker.MESSAGES, *from_supervisor.MESSAGES)
        self._decoders: dict[Channel, Decoder] = {
            "control": Decoder(everything, max_bytes=CONTROL_LIMIT),
            "data": Decoder(everything, max_bytes=data_limit(payload_limit)),
        }
        self.epoch = 0
        #: Messages that were none, or made no sense.
        self.malformed = 0
        #: Messages whose handler failed: faults of ours, which somebody's message has found.
        self.failed = 0

    def take(self, channel: Channel, frames: list[bytes]) -> None:
        """One message from one route."""
        route, *rest = frames
        try:
            message = self._decoders[channel].decode(rest)
        except ProtocolError as error:
            self.malformed += 1
            version = peek_version(rest)
            if version is not None and version not in Speaks:
                self._peers.send_to_route(
                    channel, route, to_client.Refused(0, "ProtocolError", _other_version(version))
                )
            self._queries.say_malformed(str(error))
            return
        self.hear(channel, route, message)

    def hear(self, channel: Channel, route: bytes, message: Any) -> None:
        """One message that is one, from one route.

        Raises:
            HalfDoneError: it was decided only in part. The broker must not go on with that.
        """
        try:
            sense.check(message)
            self._hear(channel, route, message)
        except sense.SenseError as error:
            self.malformed += 1
            self._queries.say_malformed(f"{_name(message)}: {error}")
        except (HalfDoneError, JournalFailedError, OSError):
            raise
        except Exception as error:
            self.failed += 1
            self._queries.say_failed(_name(message), error)

    def _hear(self, channel: Channel, route: bytes, message: Any) -> None:
        kind = type(message)
        hello = _HELLOS.get(kind)
        if hello is not None:
            hello(self, channel, route, message)
            return
        peer = self._peers.at(channel, route)
        speaker = kind.__module__
        if peer is None or _SPEAKER[peer.key[0]] != speaker:
            self._peers.send_to_route(channel, route, _WANTED[speaker](self.epoch))
            return
        if speaker == from_worker.__name__ and not peer.worker:
            return  # it has said hello, and was not let in: it will say so again
        _HANDLERS[kind](self, peer, message)

    # --- hellos -----------------------------------------------------------------------------------

    def client_hello(self, channel: Channel, route: bytes, hello: from_client.Hello) -> None:
        if hello.version not in Speaks:
            text = _other_version(hello.version)
            self._peers.send_to_route(channel, route, to_client.Refused(0, "ProtocolError", text))
            return
        if hello.channel != channel or len(hello.session) != 16:
            self.malformed += 1
            return
        if channel == "control" and not hello.resumed:
            refusal = self._admission.refuses(SessionId(hello.session))
            if refusal is not None:
                refused = to_client.Refused(0, "BrokerUnavailableError", refusal)
                self._peers.send_to_route(channel, route, refused)
                return
        before = self._peers.at(channel, route)
        if before is not None and before.key[0] == "session" and before.key[1] != hello.session:
            self._admission.moved_on(_session(before))
        self._peers.introduce(("session", hello.session), channel, route)
        session = SessionId(hello.session)
        if channel == "control":
            self._handle(
                events.SessionHello(session, hello.pid, hello.host, hello.worker, hello.resumed)
            )
            return
        peer = self._peers.by_key[("session", session)]
        welcome = to_client.Welcome(PROTOCOL_VERSION, self.epoch, True, self._payload_limit)
        self._peers.send(peer, "data", welcome)
        self._handle(events.SessionAttached(session))

    def worker_hello(self, channel: Channel, route: bytes, hello: from_worker.Hello) -> None:
        if hello.version not in Speaks:
            text = _other_version(hello.version)
            self._peers.send_to_route(channel, route, to_worker.Refused(text))
            return
        if channel != "control":
            self.malformed += 1
            return
        self._peers.introduce(("worker", (hello.supervisor, hello.serial)), channel, route)
        self._handle(
            events.WorkerHello(
                hello.supervisor,
                hello.serial,
                hello.runtime,
                hello.pid,
                hello.host,
                hello.slots,
                hello.incarnation,
                hello.last_assign,
                hello.begun,
                hello.received,
            )
        )

    def worker_attach(self, channel: Channel, route: bytes, attach: from_worker.Attach) -> None:
        peer = self._peers.by_worker.get(attach.incarnation)
        if peer is None or attach.epoch != self.epoch or channel != "data":
            self._peers.send_to_route(channel, route, to_worker.HelloWanted(self.epoch))
            return
        self._peers.introduce(peer.key, "data", route)
        self._handle(events.WorkerAttached(Incarnation(attach.incarnation)))

    def supervisor_hello(
        self, channel: Channel, route: bytes, hello: from_supervisor.Hello
    ) -> None:
        if hello.version not in Speaks:
            text = _other_version(hello.version)
            self._peers.send_to_route(channel, route, to_supervisor.Refused(text, 0.0))
            return
        if channel != "control" or len(hello.supervisor) != 8:
            self.malformed += 1
            return
        self._peers.introduce(("supervisor", hello.supervisor), channel, route)
        before = hello.predecessor
        self._handle(
            events.SupervisorHello(
                hello.supervisor,
                hello.runtime,
                hello.pid,
                hello.host,
                hello.processes,
                hello.slots,
                hello.incarnation,
                hello.run,
                hello.sent_at,
                hello.armed,
                None
                if before is None
                else events.Predecessor(
                    before.supervisor,
                    before.pid,
                    before.status,
                    before.fenced,
                    [_exit_row(row) for row in before.workers],
                ),
            )
        )

    # --- clients ----------------------------------------------------------------------------------

    def spawn(self, peer: Peer, message: from_client.Spawn) -> None:
        through = message.answered_through
        self._handle(events.SpawnsAsked(_session(peer), message.rows, False, through))

    def spawn_many(self, peer: Peer, message: from_client.SpawnMany) -> None:
        run = spawns_with(message.common, message.arguments)
        through = message.answered_through
        self._handle(events.SpawnsAsked(_session(peer), run, True, through))

    def heartbeat(self, peer: Peer, message: from_client.Heartbeat) -> None:
        self._handle(events.SessionHeard(_session(peer), message.answered_through))
        self._peers.send(peer, "control", to_client.Alive(self.epoch))

    def results_taken(self, peer: Peer, message: from_client.ResultsTaken) -> None:
        self._handle(events.ResultsTaken(_session(peer), message.task_ids))

    def stop(self, peer: Peer, message: from_client.Stop) -> None:
        if self._refuse_long(peer, message):
            return
        self._handle(
            events.StopAsked(
                _session(peer),
                RequestNumber(message.request),
                Scope(*message.scope),
                None if message.task_id is None else TaskId(message.task_id),
                message.grace,
                message.timeout,
                message.keep_closed,
                message.hold,
                message.reason,
                message.last_spawn,
                message.caller,
            )
        )

    def release(self, peer: Peer, message: from_client.Release) -> None:
        self._handle(
            events.ReleaseAsked(
                _session(peer), RequestNumber(message.request), StopId(message.stop_id)
            )
        )

    def reopen(self, peer: Peer, message: from_client.Reopen) -> None:
        if self._refuse_long(peer, message):
            return
        self._handle(
            events.ReopenAsked(
                _session(peer), RequestNumber(message.request), Scope(*message.scope)
            )
        )

    def client_goodbye(self, peer: Peer, message: from_client.Goodbye) -> None:
        del message
        self._handle(events.SessionGoodbye(_session(peer)))

    def query(self, peer: Peer, message: Any) -> None:
        self._queries.take(peer, message)

    def _refuse_long(self, peer: Peer, message: Any) -> bool:
        """A request that would be kept, with a label that nobody wants to keep."""
        trouble = sense.too_long(message)
        if trouble is not None:
            refused = to_client.Refused(message.request, "PayloadTooLargeError", trouble)
            self._peers.send(peer, "control", refused)
        return trouble is not None

    # --- workers ----------------------------------------------------------------------------------

    def begun(self, peer: Peer, message: from_worker.Begun) -> None:
        self._handle(events.TasksBegun(Incarnation(peer.worker), message.rows))

    def ended(self, peer: Peer, message: from_worker.Ended) -> None:
        rows = list(map(_cut, message.rows))
        self._handle(events.TasksEnded(Incarnation(peer.worker), rows))

    def given_back(self, peer: Peer, message: from_worker.GivenBack) -> None:
        self._handle(events.TasksGivenBack(Incarnation(peer.worker), message.rows))

    def stop_seen(self, peer: Peer, message: from_worker.StopSeen) -> None:
        rows: list[Any] = list(message.rows)
        self._handle(events.StopsSeen(Incarnation(peer.worker), rows))

    def lingering(self, peer: Peer, message: from_worker.Lingering) -> None:
        what = cut(message.what, NOTE_LIMIT)
        self._handle(
            events.TaskLingers(Incarnation(peer.worker), message.task_id, message.attempt, what)
        )

    def associate(self, peer: Peer, message: from_worker.Associate) -> None:
        for label in (message.tenant_id, message.timeline_id):
            if label is not None and len(label) > LABEL_LIMIT:
                text = f"a label of {len(label)} characters; the limit is {LABEL_LIMIT}"
                refused = to_worker.Associated(message.request, "PayloadTooLargeError", text)
                self._peers.send(peer, "control", refused)
                return
        self._handle(events.AssociateAsked(Incarnation(peer.worker), *message))

    def progress(self, peer: Peer, message: from_worker.Progress) -> None:
        rows = [(*row[:4], cut(row[4], NOTE_LIMIT)) for row in message.rows]
        self._handle(events.ProgressSaid(Incarnation(peer.worker), rows))

    def waiting(self, peer: Peer, message: from_worker.Waiting) -> None:
        self._handle(events.WaitsSaid(Incarnation(peer.worker), message.rows))

    def extend_grace(self, peer: Peer, message: from_worker.ExtendGrace) -> None:
        self._handle(events.GraceAsked(Incarnation(peer.worker), *message))

    def stacks(self, peer: Peer, message: from_worker.Stacks) -> None:
        self._queries.stacks.take(peer, message)

    # --- supervisors ------------------------------------------------------------------------------

    def worker_exited(self, peer: Peer, message: from_supervisor.WorkerExited) -> None:
        self._handle(events.WorkerExited(peer.key[1], _exit_row(message.row)))

    def usage(self, peer: Peer, message: from_supervisor.Usage) -> None:
        workers: list[Any] = list(message.workers)
        self._handle(
            events.UsageSaid(
                peer.key[1], message.cpu_seconds, message.memory_bytes, message.ended_cpu, workers
            )
        )

    def renew(self, peer: Peer, message: from_supervisor.Renew) -> None:
        self._handle(events.LeaseRenewed(peer.key[1], message.sent_at, message.armed))

    def dumped(self, peer: Peer, message: from_supervisor.Dumped) -> None:
        self._queries.stacks.take_dump(peer.key[1], message)

    def supervisor_goodbye(self, peer: Peer, message: from_supervisor.Goodbye) -> None:
        del message
        self._handle(events.SupervisorGoodbye(peer.key[1]))
        self._peers.forget(peer.key)


def _name(message: Any) -> str:
    """As in `from_client.Hello`."""
    return f"{type(message).__module__.rpartition('.')[2]}.{type(message).__name__}"


def _cut(row: EndedRow | AlikeEnds) -> EndedRow | AlikeEnds:
    """The same with a text that may be kept."""
    if isinstance(row, AlikeEnds):
        return row._replace(row=row.row._replace(text=cut(row.row.text)))
    return row if len(row.text) <= TEXT_LIMIT else row._replace(text=cut(row.text))


def _session(peer: Peer) -> SessionId:
    return SessionId(peer.key[1])


def _exit_row(row: from_supervisor.WorkerExitedRow) -> events.ExitRow:
    return events.ExitRow(
        row.serial,
        row.pid,
        row.status,
        row.table_known,
        [events.Phase(*phase) for phase in row.attempts],
    )


def _other_version(version: int) -> str:
    return (
        f"this broker speaks protocol versions {sorted(Speaks)}, the peer speaks {version}: "
        "install the same version of quiesce on both sides"
    )


_SPEAKER: Final = {
    "session": from_client.__name__,
    "worker": from_worker.__name__,
    "supervisor": from_supervisor.__name__,
}

_HELLOS: Final[dict[type, Callable[[Incoming, Channel, bytes, Any], None]]] = {
    from_client.Hello: Incoming.client_hello,
    from_worker.Hello: Incoming.worker_hello,
    from_worker.Attach: Incoming.worker_attach,
    from_supervisor.Hello: Incoming.supervisor_hello,
}

_HANDLERS: Final[dict[type, Callable[[Incoming, Peer, Any], None]]] = {
    from_client.Spawn: Incoming.spawn,
    from_client.SpawnMany: Incoming.spawn_many,
    from_client.Heartbeat: Incoming.heartbeat,
    from_client.ResultsTaken: Incoming.results_taken,
    from_client.Stop: Incoming.stop,
    from_client.Release: Incoming.release,
    from_client.Reopen: Incoming.reopen,
    from_client.ListTasks: Incoming.query,
    from_client.GetTask: Incoming.query,
    from_client.GetStatistics: Incoming.query,
    from_client.GetWorkers: Incoming.query,
    from_client.GetBroker: Incoming.query,
    from_client.GetClosed: Incoming.query,
    from_client.GetStops: Incoming.query,
    from_client.GetStacks: Incoming.query,
    from_client.GetHistory: Incoming.query,
    from_client.Subscribe: Incoming.query,
    from_client.Unsubscribe: Incoming.query,
    from_client.Goodbye: Incoming.client_goodbye,
    from_worker.Begun: Incoming.begun,
    from_worker.Ended: Incoming.ended,
    from_worker.GivenBack: Incoming.given_back,
    from_worker.StopSeen: Incoming.stop_seen,
    from_worker.Lingering: Incoming.lingering,
    from_worker.Associate: Incoming.associate,
    from_worker.Progress: Incoming.progress,
    from_worker.Waiting: Incoming.waiting,
    from_worker.ExtendGrace: Incoming.extend_grace,
    from_worker.Stacks: Incoming.stacks,
    from_supervisor.WorkerExited: Incoming.worker_exited,
    from_supervisor.Usage: Incoming.usage,
    from_supervisor.Renew: Incoming.renew,
    from_supervisor.Dumped: Incoming.dumped,
    from_supervisor.Goodbye: Incoming.supervisor_goodbye,
}
